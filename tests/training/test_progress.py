"""Progress: plain lines in a log, one live line on a terminal, estimates that make sense."""

import io

import pytest
from rich.console import Console

from smartcs.data.examples import TASKS
from smartcs.data.sampling import AnnealedDeterministicSampler, RoundRobinSampler
from smartcs.training import progress as module
from smartcs.training.progress import clock, make_progress
from smartcs.training.steps import Step


@pytest.fixture
def now(monkeypatch):
    """A clock that the test moves."""
    time = [100.0]
    monkeypatch.setattr(module, "perf_counter", lambda: time[0])
    return time


def make(console, **values):
    sampler = RoundRobinSampler(dict.fromkeys(TASKS, 10), dict.fromkeys(TASKS, 1), seed=0, cycles=10)
    return make_progress(console, **{"epochs": 2, "sampler": sampler, "eval_tokens": 3000, **values})


def take(progress, now, count, begin=0, epoch=1):
    for number in range(begin, begin + count):
        now[0] += 2.0
        task = ("sst", "qqp", "sts")[number % 3]
        progress.step(Step(number + 1, epoch, number // 3 + 1, task, 0.5 + number % 3, 100, 2.0))


def test_log_lines_every_ten_seconds(now):
    out = io.StringIO()
    with make(Console(file=out)) as progress:
        take(progress, now, 9)
    lines = out.getvalue().splitlines()
    assert len(lines) == 1, "18 seconds hold one line"
    assert lines[0].startswith("epoch 1/2  cycle 2/10  loss sst 0.500 qqp 1.500 sts 2.500  50 tokens/s  ")


def test_time_left_counts_steps_and_evaluations(now):
    out = io.StringIO()
    with make(Console(file=out)) as progress:
        take(progress, now, 5)
        # 55 steps of 2 s and two evaluations of 3,000 tokens at three times 50 tokens/s.
        assert out.getvalue().splitlines()[-1].endswith(f"{clock(55 * 2 + 2 * 20)} left")
        take(progress, now, 25, begin=5)
        progress.evaluating("dev", 10, 50)
        now[0] += 7.0
        progress.evaluating("dev", 50, 50)
        take(progress, now, 5, epoch=2)
        # The line after step 32: 28 steps are left, and one evaluation, now known to take 7 s.
        assert out.getvalue().splitlines()[-1].endswith(f"{clock(28 * 2 + 7)} left")


def test_lone_batches_are_named_and_do_not_spoil_the_estimate(now):
    out = io.StringIO()
    sampler = AnnealedDeterministicSampler({"sst": 9, "qqp": 99, "sts": 9}, dict.fromkeys(TASKS, 1), seed=0, cycles=10)
    with make(Console(file=out), sampler=sampler) as progress:
        for number, (task, seconds, cycle) in enumerate(
            [("qqp", 8.0, 0)] * 10 + [("sst", 1.0, 1), ("qqp", 8.0, 1), ("sts", 1.0, 1)] * 2
        ):
            now[0] += seconds
            progress.step(Step(number + 1, 1, cycle, task, 0.5, 100, seconds))
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("epoch 1/2  qqp alone  loss qqp 0.500")
    # Two epochs of 10 + 10 QQP batches, of which 12 are done, 8 s each; 18 of the others, 1 s each; two evaluations.
    speed = 1600 / (12 * 8 + 4)
    assert lines[-1].endswith(f"{clock(28 * 8 + 36 + 2 * 1000 / speed)} left")


def test_a_slow_evaluation_is_seen(now):
    out = io.StringIO()
    with make(Console(file=out)) as progress:
        for done in range(0, 2001, 500):
            progress.evaluating("test", done, 2000)
            now[0] += 6.0
    assert out.getvalue().splitlines() == [
        "evaluating test: 1,000 of 2,000 examples",
        "evaluating test: 2,000 of 2,000 examples",
    ]


def test_terminal_gets_a_live_line_only(now):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, legacy_windows=False)
    with make(console) as progress:
        take(progress, now, 30)
        progress._bar.refresh()
        progress.say("a message")
        progress.evaluating("dev", 5, 10)
        progress._bar.refresh()
    text = out.getvalue()
    assert "10/10  sst 0.500 qqp 1.500 sts 2.500  50 tokens/s" in text
    assert "evaluating dev" in text and "5 of 10 examples" in text and "a message" in text
    assert "cycle 2/10" not in text, "no log lines beside the bar"


def test_a_dumb_terminal_gets_log_lines(now, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    out = io.StringIO()
    with make(Console(file=out, force_terminal=True)) as progress:
        take(progress, now, 6)
    assert "\r" not in out.getvalue() and "cycle 2/10" in out.getvalue()


def test_long_lines_and_brackets_are_kept_whole(now):
    out = io.StringIO()
    make(Console(file=out, width=40)).say("a path [/with]/brackets " + "x" * 80)
    assert out.getvalue() == "a path [/with]/brackets " + "x" * 80 + "\n"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (65.4, "1:05"), (59.6, "1:00"), (7387, "2:03:07")])
def test_clock(seconds, text):
    assert clock(seconds) == text
