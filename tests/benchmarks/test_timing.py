"""Taking turns: order, counts and what is timed."""

import time
from types import SimpleNamespace

import timing
from timing import in_turns, repeats_for


def test_every_candidate_has_one_time_per_round_and_who_begins_changes():
    order: list[str] = []
    steps = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = in_turns(steps, 3)
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}
    assert "".join(order) == "abcbcacab"


def test_preparing_is_not_timed_and_rounds_are_reported(monkeypatch):
    reported, now = [], [0]

    def take(seconds: int) -> None:
        now[0] += seconds

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    times = in_turns(
        {"a": lambda: take(3)},
        2,
        before=lambda name, turn: take(50),
        after_round=lambda done, so_far: reported.append((done, len(so_far["a"]))),
    )
    assert times == {"a": [3, 3]}
    assert reported == [(1, 1), (2, 2)]


def test_a_turn_repeats_short_steps_and_keeps_their_mean():
    calls = {"short": 0, "long": 0}

    def step(name: str, seconds: float) -> None:
        calls[name] += 1
        time.sleep(seconds)

    steps = {"short": lambda: step("short", 0.001), "long": lambda: step("long", 0.05)}
    repeats = repeats_for(steps, share=0.02)
    assert repeats["long"] == 1 and repeats["short"] > 1
    before = calls["short"]
    times = in_turns(steps, 1, repeats=repeats)
    assert calls["short"] == before + repeats["short"]
    assert times["short"][0] < times["long"][0]
