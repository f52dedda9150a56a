"""How much faster than torch and than the reference: python benchmarks/ratio.py --threads 2 --ops attention

All candidates of a workload are timed in turn, round after round, in one process, so that a busy or throttled machine
slows them alike; the ratio of their times is taken within each round. Prints the median ratio and its 20 % and 80 %
quantiles (above 1: fused is faster), the fused time, and the bandwidth that time means for the bytes that must move.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch
from workloads import CANDIDATES, Workload, workloads

from smartcs._extension import extension_status

ROUND_SECONDS = 0.004  # a candidate's share of a round: long against the clock, short against a change of load


def seconds(step: Callable[[], object], repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - begin) / repeats


def quantiles(values: list[float]) -> tuple[float, float, float]:
    """20 %, 50 % and 80 %."""
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return cuts[1], statistics.median(values), cuts[7]


def measure(workload: Workload, mode: str, rounds: int) -> dict[str, list[float]]:
    """Times per candidate, one per round."""
    steps = {candidate: workload.step(candidate, mode) for candidate in CANDIDATES}
    repeats = {}
    for candidate, step in steps.items():
        step()
        repeats[candidate] = max(1, round(ROUND_SECONDS / max(seconds(step, 1), 1e-7)))
    times: dict[str, list[float]] = {candidate: [] for candidate in CANDIDATES}
    for turn in range(rounds):
        for i in range(len(CANDIDATES)):
            candidate = CANDIDATES[(turn + i) % len(CANDIDATES)]
            times[candidate].append(seconds(steps[candidate], repeats[candidate]))
    return times


def copy_bandwidth() -> float:
    """GB/s of a copy that no cache holds, bytes read and written: what memory allows here."""
    source = torch.zeros(64 * 2**20 // 4)
    target = torch.empty_like(source)
    best = min(seconds(lambda: target.copy_(source), 1) for _ in range(10))
    return 2 * source.numel() * source.element_size() / best / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--ops", nargs="*", help="only workloads whose name contains one of these")
    options = parser.parse_args()
    available, reason = extension_status()
    if not available:
        raise SystemExit(f"nothing to compare: {reason}")
    torch.set_num_threads(options.threads)
    kernels = torch.ops.smartcs.instruction_set()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, {options.threads} threads, {kernels}")
    print(f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f}, copy {copy_bandwidth():.1f} GB/s")
    print(f"{options.rounds} interleaved rounds, float32; ratio: time of the other / time of fused\n")
    header = f"{'op':34} {'mode':9} {'fused ms':>9} {'GB/s':>6}"
    print(header + "".join(f"  {'vs ' + other:>12} {'20 %':>5} {'80 %':>5}" for other in CANDIDATES[1:]))
    for name, make in workloads().items():
        if options.ops and not any(word in name for word in options.ops):
            continue
        workload = make()
        workload.verify()
        for mode in workload.modes:
            times = measure(workload, mode, options.rounds)
            fused = statistics.median(times["fused"])
            line = f"{name:34} {mode:9} {fused * 1e3:9.3f} {workload.bytes(mode) / fused / 1e9:6.1f}"
            for other in CANDIDATES[1:]:
                low, middle, high = quantiles([b / a for a, b in zip(times["fused"], times[other], strict=True)])
                line += f"  {middle:12.2f} {low:5.2f} {high:5.2f}"
            print(line, flush=True)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
