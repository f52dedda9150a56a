"""Taking turns: candidates run one after the other, round after round, in one process.

A busy or throttled machine then slows all of them alike, and the ratio of two candidates' times within a round means
something where the times themselves do not.
"""

import time
from collections.abc import Callable, Mapping

Step = Callable[[], object]
Clock = Callable[[Step, int], float]
"""Mean seconds of a call, from a step and how often to call it."""


def seconds(step: Step, repeats: int = 1) -> float:
    """Mean wall time of a call."""
    begin = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - begin) / repeats


def repeats_for(steps: Mapping[str, Step], share: float, clock: Clock = seconds) -> dict[str, int]:
    """How often to call each within a round, so that a turn takes about `share` seconds; calls each twice."""
    counts = {}
    for name, step in steps.items():
        step()
        counts[name] = max(1, round(share / max(clock(step, 1), 1e-7)))
    return counts


def in_turns(
    steps: Mapping[str, Step],
    rounds: int,
    *,
    repeats: Mapping[str, int] | None = None,
    before: Callable[[str, int], object] | None = None,
    after_round: Callable[[int, dict[str, list[float]]], object] | None = None,
    clock: Clock = seconds,
) -> dict[str, list[float]]:
    """Times of every candidate, one per round; who begins changes from round to round.

    Args:
        steps: what is timed, by candidate.
        rounds: how often each has its turn.
        repeats: calls within a turn, whose mean is kept; 1 where not given.
        before: called with candidate and round before each turn, not timed.
        after_round: called with the rounds done and the times so far, to show or keep them.
        clock: what measures a turn; a GPU's work needs `gpu_timing`'s.
    """
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for i in range(len(names)):
            name = names[(turn + i) % len(names)]
            if before is not None:
                before(name, turn)
            times[name].append(clock(steps[name], (repeats or {}).get(name, 1)))
        if after_round is not None:
            after_round(turn + 1, times)
    return times
