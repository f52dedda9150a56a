"""Progress of a run: a live line on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from smartcs.data.examples import TASKS
from smartcs.data.sampling import RoundRobinSampler
from smartcs.training.interrupt import Stopped, StopRequest
from smartcs.training.steps import Step

_LOG_SECONDS = 10.0
_WINDOW = 60  # steps over which losses and speed are averaged: twenty cycles of three tasks
_FORWARD_SHARE = 1 / 3  # of a training step's time, until an evaluation has been timed


def make_progress(console: Console, epochs: int, sampler: RoundRobinSampler, eval_tokens: int) -> Progress:
    """The kind that suits where `console` writes.

    Args:
        epochs, sampler: the length of the run, how many of its steps are of each task, and how many are over.
        eval_tokens: word pieces of one evaluation, for the estimate of the time left.
    """
    live = console.is_terminal and not console.is_dumb_terminal
    return (_LiveProgress if live else Progress)(console, epochs, sampler, eval_tokens)


class Progress:
    """Keeps the running figures and prints them as plain lines; a context manager."""

    def __init__(self, console: Console, epochs: int, sampler: RoundRobinSampler, eval_tokens: int) -> None:
        self.console = console
        self.epochs, self.cycles = epochs, sampler.cycles
        done = sampler.epoch + sampler.position / sampler.steps_per_epoch
        self._steps = {task: (epochs - done) * steps for task, steps in sampler.expected_steps().items()}
        self._seconds: dict[str, deque[float]] = {task: deque(maxlen=_WINDOW // 3) for task in self._steps}
        self._evaluations = epochs - sampler.epoch
        self._eval_tokens, self._eval_seconds = eval_tokens, 0.0
        self._eval_begin: float | None = None
        self._recent: deque[Step] = deque(maxlen=_WINDOW)
        self._shown = perf_counter()

    def step(self, step: Step) -> None:
        """Counts one optimizer step, and says so where it was skipped."""
        if step.skipped:
            self.say(f"warning: a step was skipped: {step.skipped}")
        self._recent.append(step)
        self._steps[step.task] -= 1
        self._seconds[step.task].append(step.seconds)
        self._show_step(step)

    def evaluating(self, split: str, done: int, total: int) -> None:
        """Reports the examples done of an evaluation; `done == total` ends it."""
        now = perf_counter()
        if self._eval_begin is None:
            self._eval_begin = now
        if done == total and split == "dev":
            self._evaluations -= 1
            self._eval_seconds = now - self._eval_begin
        self._show_evaluation(split, done, total)
        if done == total:
            self._eval_begin = None

    def say(self, text: str | Table) -> None:
        """Prints above whatever is shown; long lines are left to the terminal, so that a log can be searched."""
        if isinstance(text, Table):
            self.console.print(text)
        else:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def _show_step(self, step: Step) -> None:
        if self._due():
            self.say(
                f"epoch {step.epoch}/{self.epochs}  {self._place(step)}  loss {self._losses()}  "
                f"{self._speed():,.0f} tokens/s  {self._left()} left"
            )

    def _show_evaluation(self, split: str, done: int, total: int) -> None:
        if self._due():
            self.say(f"evaluating {split}: {done:,} of {total:,} examples")

    def _due(self) -> bool:
        due = perf_counter() - self._shown >= _LOG_SECONDS
        if due:
            self._shown = perf_counter()
        return due

    def _place(self, step: Step) -> str:
        return f"cycle {step.cycle}/{self.cycles}" if step.cycle else f"{step.task} alone"

    def _losses(self) -> str:
        """The mean loss of each task over the last steps."""
        by_task: dict[str, list[float]] = {task: [] for task in TASKS}
        for step in self._recent:
            if not step.skipped:
                by_task[step.task].append(step.loss)
        means = {task: sum(values) / len(values) for task, values in by_task.items() if values}
        return " ".join(f"{task} {mean:.3f}" for task, mean in means.items())

    def _speed(self) -> float:
        """Tokens per second over the last steps."""
        return sum(step.tokens for step in self._recent) / sum(step.seconds for step in self._recent)

    def _left(self) -> str:
        """Time to the end of the run: its steps, and its evaluations of the dev split."""
        usual = sum(step.seconds for step in self._recent) / len(self._recent)
        steps = sum(
            max(0, left) * (sum(seen) / len(seen) if (seen := self._seconds[task]) else usual)
            for task, left in self._steps.items()
        )
        per_evaluation = self._eval_seconds or self._eval_tokens * _FORWARD_SHARE / self._speed()
        return clock(steps + self._evaluations * per_evaluation)


class _LiveProgress(Progress):
    """The same figures in one line that is redrawn."""

    def __init__(self, console: Console, epochs: int, sampler: RoundRobinSampler, eval_tokens: int) -> None:
        super().__init__(console, epochs, sampler, eval_tokens)
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[figures]}"),
            console=console,
            transient=True,
        )
        self._row = self._bar.add_task("starting", total=None, figures="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def _show_step(self, step: Step) -> None:
        self._bar.update(
            self._row,
            description=f"epoch {step.epoch}/{self.epochs}",
            completed=step.cycle,
            total=self.cycles,
            figures=f"{self._place(step)}  {self._losses()}  {self._speed():,.0f} tokens/s  {self._left()} left",
        )

    def _show_evaluation(self, split: str, done: int, total: int) -> None:
        self._bar.update(
            self._row,
            description=f"evaluating {split}",
            completed=done,
            total=total,
            figures=f"{done:,} of {total:,} examples",
        )


def watch(progress: Progress, split: str, stop: StopRequest | None) -> Callable[[int, int], None]:
    """For an evaluation: shows how far it is, and raises Stopped when a signal has come."""

    def report(done: int, total: int) -> None:
        progress.evaluating(split, done, total)
        if stop:
            raise Stopped

    return report


def clock(seconds: float) -> str:
    """1:05 or 2:03:07."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
