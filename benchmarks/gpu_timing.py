"""Clocks for a GPU, whose work goes on after a call has returned, and the turns of candidates by them."""

import statistics
from collections.abc import Callable, Mapping
from functools import partial

import torch
from results_io import Row, ratio_quantiles, row
from timing import Clock, Step, in_turns, repeats_for, seconds

WARM_UP = 3
_CACHE_BYTES = 2**28  # more than any chip's L2


class EventClock:
    """Mean seconds of a call by CUDA events.

    Args:
        flush: every call finds the L2 cache without its data, and is timed by itself, without the launches around it.
    """

    def __init__(self, flush: bool = False) -> None:
        self.cache = torch.empty(_CACHE_BYTES, dtype=torch.uint8, device="cuda") if flush else None

    def __call__(self, step: Step, repeats: int = 1) -> float:
        pairs = []
        for calls in [repeats] if self.cache is None else [1] * repeats:
            if self.cache is not None:
                self.cache.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(calls):
                step()
            end.record()
            pairs.append((begin, end))
        torch.cuda.synchronize()
        return sum(begin.elapsed_time(end) for begin, end in pairs) / 1e3 / repeats


def clock_of(device: str, flush: bool = False) -> Clock:
    """Events on a GPU; on a CPU, in a rehearsal, the wall clock."""
    return EventClock(flush) if device == "cuda" else seconds


def captured(make: Callable[[], Step]) -> Step:
    """A step as one CUDA graph: what it takes where the host need not launch its kernels one by one.

    Args:
        make: makes the step, on the stream that captures it: a backward pass runs where its forward pass ran.

    Raises:
        RuntimeError: the step waits for the device, or does something else that a graph cannot hold.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step = make()
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        step()
    return partial(_replay, graph, step)


def _replay(graph: torch.cuda.CUDAGraph, step: Step) -> None:
    """`step` keeps alive what the graph reads."""
    graph.replay()


def time_in_turns(steps: Mapping[str, Step], clock: Clock, rounds: int, share: float) -> dict[str, list[float]]:
    """Seconds of every candidate per round, `share` seconds of calls each, after a warm-up."""
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    return in_turns(steps, rounds, repeats=repeats_for(steps, share, clock), clock=clock)


def prepare(
    makers: Mapping[str, Callable[[], Step]], failed: Callable[[str, str], None], replay: bool = False
) -> dict[str, Step]:
    """The steps of the candidates that run here, called once; the others are told to `failed` with the reason.

    Args:
        replay: as CUDA graphs.
    """
    steps = {}
    for name, make in makers.items():
        try:
            step = captured(make) if replay else make()
            step()
            steps[name] = step
        except Exception as error:  # whatever one candidate meets, the others are to be timed
            failed(name, f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]:.200}")
    return steps


def rows_of(
    key: tuple[str, str, str],
    way: str,
    times: Mapping[str, list[float]],
    first: str,
    *,
    moved: float = 0,
    operations: float = 0,
) -> list[Row]:
    """Rows of the candidates, with the ratio of their times to `first`'s, and the rates that the times mean.

    Args:
        key: case, shape and precision.
        way: "launched" call by call, or "replayed" as a CUDA graph.
        moved: bytes that must move.
    """
    case, shape, precision = key
    made = []
    for name, values in times.items():
        middle = statistics.median(values)
        figures = {"gbps": moved / middle / 1e9} if moved else {}
        figures |= {"tflops": operations / middle / 1e12} if operations else {}
        ratios = {first: ratio_quantiles(values, times[first])} if first in times and name != first else {}
        threads = torch.get_num_threads()
        made.append(row(case, name, shape, precision, threads, values=values, ratios=ratios, way=way, **figures))
    return made
