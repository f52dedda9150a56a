"""The clocks of a GPU, on a stand-in whose time is counted: what is timed, what is not, and what a graph holds."""

from contextlib import contextmanager
from types import SimpleNamespace

import gpu_timing
import pytest
import torch
from gpu_timing import EventClock, captured, clock_of, prepare, rows_of, time_in_turns
from timing import seconds


class Chip:
    """Milliseconds of work so far; events note them."""

    def __init__(self) -> None:
        self.now, self.order, self.recording, self.stream = 0.0, [], None, "default"

    def work(self, milliseconds: float, name: str = "step") -> None:
        if self.recording is not None:
            self.recording.append(milliseconds)
            return
        self.now += milliseconds
        self.order.append(name)


@pytest.fixture
def chip(monkeypatch):
    found = Chip()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = found.now

        def elapsed_time(self, end: "Event") -> float:
            return end.at - self.at

    class Graph(list):
        def replay(self) -> None:
            found.work(sum(self), "replay")

    @contextmanager
    def on(stream):
        found.stream = stream.name
        yield
        found.stream = "default"

    @contextmanager
    def capture(graph, stream):
        found.recording = graph
        try:
            with on(stream):
                yield
        finally:
            found.recording = None

    stream, side = (SimpleNamespace(name=name, wait_stream=lambda other: None) for name in ("default", "side"))
    stand_in = {
        "Event": Event, "synchronize": lambda: None, "Stream": lambda: side, "current_stream": lambda: stream,
        "stream": on, "CUDAGraph": Graph, "graph": capture,
    }  # fmt: skip
    for name, value in stand_in.items():
        monkeypatch.setattr(gpu_timing.torch.cuda, name, value)
    return found


def test_events_time_the_calls(chip):
    assert EventClock()(lambda: chip.work(3), 4) == pytest.approx(0.003)
    assert chip.order == ["step"] * 4


def test_emptying_the_cache_is_not_timed(chip, monkeypatch):
    clock = EventClock()
    clock.cache = SimpleNamespace(zero_=lambda: chip.work(50, "flush"))
    assert clock(lambda: chip.work(3), 2) == pytest.approx(0.003)
    assert chip.order == ["flush", "step"] * 2


def test_a_graph_holds_one_call(chip):
    streams = []

    def make():
        streams.append(chip.stream)
        return lambda: (streams.append(chip.stream), chip.work(3))

    replay = captured(make)
    assert chip.order == ["step"] * gpu_timing.WARM_UP and set(streams) == {"side"}
    replay()
    assert chip.order[-1] == "replay" and chip.now == 3 * (gpu_timing.WARM_UP + 1)


def test_on_a_cpu_the_wall_clock_is_enough():
    assert clock_of("cpu") is seconds


def test_what_cannot_run_is_said_and_the_others_are_timed(chip):
    def broken() -> None:
        raise RuntimeError("cannot be captured\nand more")

    reasons = {}
    makers = {"good": lambda: lambda: chip.work(2), "bad": lambda: broken, "slow": lambda: lambda: chip.work(8)}
    steps = prepare(makers, reasons.__setitem__, replay=True)
    assert reasons == {"bad": "RuntimeError: cannot be captured"} and list(steps) == ["good", "slow"]
    times = time_in_turns(steps, EventClock(), rounds=3, share=0.01)
    good, slow = rows_of(("op forward", "T1", "fp32"), "replayed", times, "good", moved=4e6, operations=2e9)
    assert (good["median"], good["gbps"], good["tflops"], good["ratios"]) == (0.002, 2.0, 1.0, {})
    assert slow["ratios"] == {"good": [4.0, 4.0, 4.0]} and slow["way"] == "replayed"
    assert torch.get_num_threads() == slow["threads"]
