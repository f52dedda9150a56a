"""Running an experiment: row by row, seed by seed, going on where an earlier command stopped."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from time import perf_counter

from rich.console import Console

from smartcs.experiments.data_check import warm_up
from smartcs.experiments.differences import with_differences
from smartcs.experiments.earlier import earlier_runs
from smartcs.experiments.figures import Experiment, Row
from smartcs.experiments.jobs import Job, Options, Outcome, find, make_jobs
from smartcs.experiments.results import RESULTS, Results, collect, write_page
from smartcs.experiments.running import Interrupted, in_processes, run_job
from smartcs.experiments.tables import console_table, lines_below, write_tables
from smartcs.model.files import read_json
from smartcs.training.commandline import UsageError
from smartcs.training.plan import SMALL_MODEL_NOTICE
from smartcs.training.progress import clock
from smartcs.training.recipes import AUTO_MODEL, SMALL_MODEL, model_name
from smartcs.training.run_folder import CONFIG, METRICS, choose_folder
from smartcs.training.tables import figures_line


@dataclass(frozen=True)
class Reproduction:
    """What a reproduction left.

    Attributes:
        results: of the chosen rows and seeds, finished or not, and of all others that earlier calls have finished.
        signal: the signal that ended it early, or None.
    """

    results: Results
    signal: int | None = None


def reproduce(
    experiment: Experiment, rows: Sequence[Row], options: Options, console: Console | None = None
) -> Reproduction:
    """Runs what is not finished yet of these rows and writes the tables of all runs there are, after every run anew.

    Ctrl-C or SIGTERM ends it after the current step; finished runs stay, and the same call goes on with the run that
    was stopped, from its beginning. A run whose loss is not finite is recorded as such, and the next one begins.

    Args:
        experiment: whose table it is.
        rows: some of its rows.
        options: what they have in common.
        console: where progress goes; stdout when left out.

    Raises:
        ValueError: an option out of range, as `TrainConfig` says it.
        UsageError: the output folder holds something else, or finished runs of other settings; nothing has been
            done then.
        FileExistsError, PermissionError: the output folder cannot be used; nothing has been done then.
        DataError, ModelSourceError, CheckpointError: from the run that met it.
    """
    options = replace(options, output=options.output.expanduser(), contents={})
    jobs = make_jobs(rows, options)
    _check_folder(experiment, options)
    runner = _Runner(experiment, jobs, options, Console() if console is None else console)
    return runner.execute()


def _check_folder(experiment: Experiment, options: Options) -> None:
    folder = options.output
    if any((folder / name).is_file() for name in (CONFIG, METRICS)):
        raise UsageError(f"--output {folder} is the folder of a single run, expected a new one or one of this command")
    choose_folder(str(folder), overwrite=True)
    if (folder / RESULTS).is_file():
        found = read_json(folder / RESULTS).get("experiment")
        if found != experiment.name:
            raise UsageError(f"--output {folder} holds {found}: expected another folder for {experiment.name}")
    if options.reuse is not None and not (options.reuse / RESULTS).is_file():
        raise UsageError(f"--reuse {options.reuse}: no {RESULTS} there, expected the folder of another reproduction")


@dataclass
class _Runner:
    """The state of one reproduction."""

    experiment: Experiment
    jobs: list[Job]
    options: Options
    console: Console
    outcomes: list[Outcome] = field(default_factory=list)
    earlier: list[Outcome] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    warm: bool = False

    def execute(self) -> Reproduction:
        # All of them before the first begins: a run of other settings shall not be met hours later.
        self.outcomes = [find(job, self.options) for job in self.jobs]
        self.earlier, self.left_out = earlier_runs(self.experiment, self.jobs, self.options)
        self._announce()
        number: int | None = None
        try:
            (self._one_by_one if self.options.jobs == 1 else self._several_at_a_time)()
        except Interrupted as stop:
            number = stop.number
        except KeyboardInterrupt:
            number = signal.SIGINT
        results = with_differences(self._results())
        self._finish(results, number)
        return Reproduction(results, number)

    def _one_by_one(self) -> None:
        for at, job in enumerate(self.jobs):
            if self.outcomes[at].state != "not finished":
                continue
            self._say_where(at)
            if not self.warm:
                number, self.warm = warm_up(job.from_the_start, self.options.contents), True
                if number is not None:
                    raise Interrupted(number)
            run_job(job, self.options, self.console, partial(self._say, style="bold"))
            self._ended(at)

    def _several_at_a_time(self) -> None:
        places = {job.place: at for at, job in enumerate(self.jobs)}
        waiting = [job for job in self.jobs if self.outcomes[places[job.place]].state == "not finished"]
        begin, count = perf_counter(), len(waiting)
        if waiting:
            self._say(f"{count} runs to do, {self.options.jobs} at a time")
        with closing(in_processes(waiting, self.options, self._say)) as ended:
            for done, job in enumerate(ended, start=1):
                at = places[job.place]
                self._ended(at)
                outcome, passed = self.outcomes[at], perf_counter() - begin
                figures = figures_line(outcome.metrics["dev"]) if outcome.metrics else outcome.state
                left = f"{done} of {count} after {clock(passed)}, about {clock(passed / done * (count - done))} left"
                self._say(f"  {job.place}: {figures}; {left}")

    def _ended(self, at: int) -> None:
        self.outcomes[at] = find(self.jobs[at], self.options)
        write_tables(self._results())

    def _results(self) -> Results:
        return collect(self.experiment, [*self.outcomes, *self.earlier], self.options, self.left_out)

    def _announce(self) -> None:
        options, rows = self.options, dict.fromkeys(job.row.name for job in self.jobs)
        count = f"{len(rows)} row{'s' if len(rows) > 1 else ''}, {options.describe_seeds()}"
        self._say(f"{self.experiment.title}: {count}, output {options.output}", style="bold")
        for outcome in self.outcomes:
            if outcome.state != "not finished":
                self._say(f"  {outcome.job.place}: {outcome.state}, not run again{self._elsewhere(outcome)}")
        if self.earlier:
            self._say(f"  in the tables as well: {', '.join(outcome.job.place for outcome in self.earlier)}")
        if model_name(options.model) == SMALL_MODEL and options.model == AUTO_MODEL:
            self._say(SMALL_MODEL_NOTICE)

    def _elsewhere(self, outcome: Outcome) -> str:
        return "" if outcome.folder == self.options.output / outcome.job.place else f", taken from {outcome.folder}"

    def _say_where(self, at: int) -> None:
        job, rows = self.jobs[at], list(dict.fromkeys(job.row.name for job in self.jobs))
        left = self._left()
        self._say(
            f"\nrow {rows.index(job.row.name) + 1} of {len(rows)}: {job.row.label} ({job.row.name}), seed {job.seed}; "
            f"run {at + 1} of {len(self.jobs)}{'' if left is None else f', about {clock(left)} left for all'}",
            style="bold",
        )

    def _left(self) -> float | None:
        """Seconds that the runs to come will take if they are like those that are finished; None before the first."""
        times: dict[str, list[float]] = {}
        stages: dict[str, float] = {}
        for outcome in (*self.outcomes, *self.earlier):
            if outcome.metrics:
                times.setdefault(outcome.job.row.name, []).append(outcome.metrics["seconds_total"])
            if outcome.pretraining and outcome.job.stage:
                stages[outcome.job.stage.place] = outcome.pretraining["seconds_total"]
        everything = [seconds for row in times.values() for seconds in row]
        if not everything:
            return None
        to_come = [outcome.job for outcome in self.outcomes if outcome.state == "not finished"]
        left = sum(fmean(times.get(job.row.name, everything)) for job in to_come)
        missing = {job.stage.place for job in to_come if job.stage} - set(stages)
        return left + len(missing) * fmean(list(stages.values()) or everything)

    def _finish(self, results: Results, number: int | None) -> None:
        paths: list[Path] = write_tables(results)
        if self.options.report:
            paths.append(write_page(results))
        self._say("")
        self.console.print(console_table(results))
        for line in lines_below(results):
            self._say(line)
        if number is not None:
            done = sum(outcome.state != "not finished" for outcome in self.outcomes)
            self._say(
                f"stopped by {signal.Signals(number).name}: {done} of {len(self.jobs)} runs are finished and kept; "
                "repeat the command to go on"
            )
        self._say(f"results: {', '.join(map(str, paths))}")

    def _say(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
