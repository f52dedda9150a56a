"""Which op takes which share of a training cycle: writes the generated part of docs/profile.md.

    python benchmarks/profile_cycle.py --shape minilm --threads 2
    python benchmarks/profile_cycle.py --shape base --threads 2 --rounds 4

The smart-bregman cycle on the fused ops, in float32 and in bf16, under torch.profiler. A share is an op's own time,
without that of ops it calls, over the time of all; ops below half a percent are one line. `tables.py --check` holds the
page to having a sentence on each op above 5 %.
"""

import argparse

import torch
from cycle import OWN, WARM_UP, Own, make
from markers import replace_part
from results_io import RESULTS, bf16_products, environment, row, write
from setting import SHAPES, add_arguments, sentences
from torch.profiler import ProfilerActivity, profile

from smartcs.training.memory import keep_freed_memory

PAGE = RESULTS.parent.parent / "docs" / "profile.md"
LEAST = 0.005


def shares(candidate: Own, cycles: int) -> tuple[dict[str, float], dict[str, int], float]:
    """Op -> share of the time and calls per cycle, largest first; and the seconds of a cycle under the profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(cycles):
            candidate()
    events = {event.key: event for event in profiler.key_averages() if event.self_cpu_time_total > 0}
    total = sum(event.self_cpu_time_total for event in events.values())
    ordered = sorted(events.values(), key=lambda event: -event.self_cpu_time_total)
    found = {event.key: event.self_cpu_time_total / total for event in ordered}
    return found, {event.key: round(event.count / cycles) for event in ordered}, total / cycles / 1e6


def table(found: dict[str, float], calls: dict[str, int]) -> str:
    """Markdown."""
    lines = ["| op | share of the cycle | calls |", "|---|---|---|"]
    kept = {op: share for op, share in found.items() if share >= LEAST}
    lines += [f"| `{op}` | {share:.1%} | {calls[op]} |" for op, share in kept.items()]
    rest = [op for op in found if op not in kept]
    lines.append(f"| {len(rest)} others | {sum(found[op] for op in rest):.1%} | {sum(calls[op] for op in rest)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=10)
    parser.add_argument("--shape", choices=SHAPES, default="minilm")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    data, about = sentences(arguments.data), environment()
    for name in ("smartcs fp32", "smartcs bf16"):
        precision = OWN[name][1]
        if precision == "bf16" and bf16_products().startswith("none"):
            print(f"bf16: not measured, {bf16_products()}")
            continue
        candidate = make(name, arguments.shape, "smart-bregman", data)
        assert isinstance(candidate, Own)
        for _ in range(WARM_UP):
            candidate()
        found, calls, seconds = shares(candidate, arguments.rounds)
        key = ("profile", name, arguments.shape, precision, arguments.threads)
        write("profile", [row(*key, values=[seconds], shares=found)], about, arguments.output)
        text = (
            f"{arguments.shape}, {precision}, {arguments.threads} threads, {about['cpu']}, commit {about['commit']}: "
            f"{1e3 * seconds:.0f} ms a cycle under the profiler, mean of {arguments.rounds}.\n\n{table(found, calls)}"
        )
        print(f"\n{text}")
        if arguments.output == RESULTS:
            replace_part(PAGE, f"{arguments.shape} {precision}", text)


if __name__ == "__main__":
    main()
