"""How much faster than torch and than the reference: python benchmarks/ratio.py --threads 2 --ops attention

All candidates of a workload take turns in one process, and the ratio of their times is taken within a turn (timing.py).
Printed and kept are the median ratio and its 20 % and 80 % quantiles (above 1: fused is faster), the fused time, the
bandwidth that time means for the bytes that must move, and the share of the run's roof: the time its operations and its
bytes take at the rates measured in this run, whichever is longer, over the fused time. A workload that fits into a
cache can exceed the roof of a copy that does not. Rows are written after every workload.
"""

import argparse
import os
import statistics
from pathlib import Path

import torch
from results_io import RESULTS, Row, bf16_products, environment, ratio_quantiles, row, write
from roof import Roof, measure
from timing import in_turns, repeats_for
from workload import CANDIDATES, COMPILED, torch_bf16_failure
from workloads import Entry, Timed, workloads

from smartcs._extension import extension_status

ROUND_SECONDS = 0.004  # a candidate's share of a round: long against the clock, short against a change of load


def roof_seconds(workload: Timed, mode: str, precision: str, roof: Roof) -> float:
    """What the workload takes at least."""
    products = roof.products(workload.rate(precision))
    return max(workload.operations(mode) / products, workload.bytes(mode, precision) / roof.copy)


def measure_workload(
    name: str, entry: Entry, mode: str, precision: str, roof: Roof, options: argparse.Namespace
) -> list[Row]:
    """The rows of all candidates; what cannot run here is said."""
    workload = entry.make()
    candidates = [*CANDIDATES, COMPILED] if options.compile else list(CANDIDATES)
    key = (f"{name.partition('-')[0]} {mode}", name.partition("-")[2], precision, options.threads)
    rows, steps = [], {}
    for candidate in candidates:
        reason = torch_bf16_failure() if precision == "bf16" and candidate.startswith("torch") else ""
        if reason:
            rows.append(row(key[0], candidate, *key[1:], status="not measured", reason=reason))
            continue
        steps[candidate] = workload.step(candidate, mode, precision)
    times = in_turns(steps, options.rounds, repeats=repeats_for(steps, ROUND_SECONDS))
    least = roof_seconds(workload, mode, precision, roof)
    for candidate, values in times.items():
        middle = statistics.median(values)
        rows.append(
            row(
                key[0],
                candidate,
                *key[1:],
                values=values,
                ratios={"fused": ratio_quantiles(values, times["fused"])},
                bytes=workload.bytes(mode, precision),
                operations=workload.operations(mode),
                gbps=workload.bytes(mode, precision) / middle / 1e9,
                roof_gbps=roof.copy / 1e9,
                roof_gflops=roof.products(workload.rate(precision)) / 1e9,
                roof_share=least / middle,
            )
        )
    return rows


def show(name: str, mode: str, precision: str, rows: list[Row], others: list[str]) -> None:
    by_name = {one["candidate"]: one for one in rows}
    fused = by_name["fused"]
    line = (
        f"{name:30} {mode:9} {precision:5} {fused['median'] * 1e3:9.3f} {fused['gbps']:6.1f} {fused['roof_share']:6.0%}"
    )
    for other in others:
        if by_name[other]["status"] == "measured":
            low, middle, high = by_name[other]["ratios"]["fused"]
            line += f"  {middle:16.2f} {low:5.2f} {high:5.2f}"
        else:
            line += f"  {'not measured':>28}"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--ops", nargs="*", help="only workloads whose name contains one of these")
    parser.add_argument("--precision", nargs="*", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--compile", action="store_true", help="torch.compile as well: minutes of compilation")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    available, reason = extension_status()
    if not available:
        raise SystemExit(f"nothing to compare: {reason}")
    torch.set_num_threads(options.threads)
    if "bf16" in options.precision and bf16_products().startswith("none"):
        print(f"bf16: not measured, {bf16_products()}")
        options.precision.remove("bf16")
    about, roof = environment(), measure()
    print(f"{about['cpu']}, {about['cores']} CPUs, {options.threads} threads, {about['instruction_set']}")
    print(f"torch {torch.__version__}, load {about['load']}, {roof.describe()}")
    print(f"{options.rounds} interleaved rounds; ratio: time of the other / time of fused\n")
    others = [*CANDIDATES[1:], COMPILED] if options.compile else list(CANDIDATES[1:])
    header = f"{'op':30} {'mode':9} {'':5} {'fused ms':>9} {'GB/s':>6} {'roof':>6}"
    print(header + "".join(f"  {'vs ' + other:>16} {'20 %':>5} {'80 %':>5}" for other in others))
    for name, entry in workloads().items():
        if options.ops and not any(word in name for word in options.ops):
            continue
        for precision in (p for p in entry.precisions if p in options.precision):
            entry.make().verify(precision)
            for mode in entry.modes:
                rows = measure_workload(name, entry, mode, precision, roof, options)
                show(name, mode, precision, rows, others)
                write("ops", rows, about, options.output)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
