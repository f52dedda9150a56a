"""One run of an experiment, in this process or, several at a time, in processes of their own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import get_context, parent_process
from multiprocessing.synchronize import Event
from threading import Thread
from time import sleep
from typing import NamedTuple

import torch
from rich.console import Console

from smartcs.experiments.data_check import warm_up
from smartcs.experiments.jobs import PRETRAINING, Job, Options, Stage, find_stage
from smartcs.model.files import json_writer, write_files
from smartcs.training.config import TrainConfig
from smartcs.training.interrupt import stop_on_signals
from smartcs.training.memory import keep_freed_memory
from smartcs.training.pretrain_run import pretrain_run
from smartcs.training.run import train
from smartcs.training.skipping import NonFiniteLossError

Say = Callable[[str], None]
_POLL = 1.0  # seconds


class Interrupted(Exception):
    """A run has been stopped by a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_job(job: Job, options: Options, console: Console, say: Say) -> None:
    """One run, and the pretraining before it where that is not there yet.

    Raises:
        Interrupted: by a signal.
    """
    folder = options.output / job.place
    if job.stage is None:
        _train(job.config, job.place, console, say)
        return
    if run_stage(job, options, console, say)["diverged"]:
        return
    (folder / PRETRAINING).unlink(missing_ok=True)
    _train(job.config, job.place, console, say)
    pretraining = find_stage(job.stage, options)
    assert pretraining is not None
    # Last: without it the run does not count, so that none is ever taken for one from another encoder.
    write_files(folder, {PRETRAINING: json_writer(pretraining)})


def run_stage(job: Job, options: Options, console: Console, say: Say) -> dict[str, object]:
    """The pretraining that `job` starts from, where it is not there yet; its metrics.json."""
    stage = job.stage
    assert stage is not None
    metrics = find_stage(stage, options)
    if metrics is None:
        say(f"additional pretraining, into {options.output / stage.place}")
        try:
            result = pretrain_run(stage.config, console)
        except NonFiniteLossError as error:
            say(f"{stage.place} diverged: {error}")
        else:
            if result.signal is not None:
                raise Interrupted(result.signal)
        metrics = find_stage(stage, options)
        assert metrics is not None  # it has just been written
    return metrics


def _train(config: TrainConfig, place: str, console: Console, say: Say) -> None:
    try:
        result = train(config, console)
    except NonFiniteLossError as error:
        say(f"{place} diverged: {error}")
        return
    if result.signal is not None:
        raise Interrupted(result.signal)


class _Work(NamedTuple):
    """What a process is given: a run, or the pretraining that it and perhaps others start from."""

    job: Job
    stage: Stage | None = None

    @property
    def place(self) -> str:
        return self.job.place if self.stage is None else self.stage.place


def in_processes(jobs: list[Job], options: Options, say: Say) -> Generator[Job, None, None]:
    """Runs jobs in `options.jobs` processes that share this machine's cores evenly, without their progress.

    Rows that share a pretraining wait for it. After SIGINT or SIGTERM no run is started, and those that are under way
    stop after their current step; so they do where one raises, or the caller takes no more jobs.

    Yields:
        A job when it has ended.

    Raises:
        Interrupted: by a signal.
        OSError: a process was killed.
        Whatever a run raises.
    """
    waiting: list[_Work] = []
    for job in jobs:
        if job.stage is not None and all(work.place != job.stage.place for work in waiting):
            waiting.append(_Work(job, job.stage))
        waiting.append(_Work(job))
    running: dict[Future[list[str]], _Work] = {}
    # "spawn": a forked process would inherit locks that this one's threads hold.
    context = get_context("spawn")
    ending, threads = context.Event(), max(1, torch.get_num_threads() // options.jobs)
    pool = ProcessPoolExecutor(options.jobs, context, _start_worker, (threads, ending))
    with pool, stop_on_signals() as stop:
        try:
            while running or (waiting and not stop):
                busy = {work.place for work in running.values()}
                ready = [work for work in waiting if work.job.stage is None or work.job.stage.place not in busy]
                if ready and not stop and len(running) < options.jobs:
                    work = ready[0]
                    waiting.remove(work)
                    say(f"  {work.place}: started")
                    with _without_interrupts():
                        running[pool.submit(_work, work, options)] = work
                    continue
                done, _ = wait(running, timeout=_POLL, return_when=FIRST_COMPLETED)
                if stop:
                    ending.set()
                for future in done:
                    work = running.pop(future)
                    for message in _result(future):
                        say(message)
                    if work.stage is None:
                        yield work.job
        finally:
            ending.set()
    if stop.signal is not None:
        raise Interrupted(stop.signal)


def _result(future: Future[list[str]]) -> list[str]:
    try:
        return future.result()
    except BrokenProcessPool:
        raise OSError("the process of a run was killed, perhaps for want of memory: try fewer --jobs") from None


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ctrl-C waits, and a process that is started here never hears of it: it is the parent's to pass on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(threads: int, ending: Event) -> None:
    torch.set_num_threads(threads)
    keep_freed_memory()
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # between two runs; a run has its own way

    parent = parent_process()

    def end() -> None:
        while True:
            if parent is not None and not parent.is_alive():
                os._exit(1)  # nobody waits for the run, and a repeated command will start it again
            if ending.wait(_POLL):
                os.kill(os.getpid(), signal.SIGTERM)  # again and again: a run may not be listening yet
                sleep(_POLL)

    Thread(target=end, daemon=True).start()


_warm = False


def _work(work: _Work, options: Options) -> list[str]:
    """In a process of the pool: does it, and returns what there is to say."""
    global _warm
    messages: list[str] = []
    options = replace(options, contents={})
    with suppress(Interrupted):  # by the parent, which raises it
        if not _warm:
            number, _warm = warm_up(work.job.from_the_start, options.contents), True
            if number is not None:
                return messages
        do = run_job if work.stage is None else run_stage
        do(work.job, options, Console(quiet=True), messages.append)
    return messages
