"""Every op on the GPU, forward and backward, in turns: fused, the reference, torch's functions, torch.compile.

    python benchmarks/gpu_ops.py --output rows.json

Part of gpu_check.py. torch's functions are eager PyTorch's own kernels, for attention `scaled_dot_product_attention` on
padded batches, and `varlen_attn` on packed ones where torch has it. A workload is held to the error budget on the
device before it is timed, at its smallest size. "launched" is call by call, "replayed" the same as one CUDA graph.
torch.compile, which takes seconds for each function, comes last. What there was no time for is said.

On a CPU this is a rehearsal at tiny sizes, and its figures mean nothing.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from gpu_report import Rows, add_arguments
from gpu_timing import clock_of, prepare, rows_of, time_in_turns
from results_io import row
from timing import Step
from workload import CANDIDATES, COMPILED, torch_bf16_failure
from workloads import Entry, workloads

import smartcs  # noqa: F401, which loads the ops

SIZES = tuple((tokens, width) for width in (384, 768) for tokens in (150, 1220, 8192))
COMPILED_SIZE = "T1220-C768"
REHEARSED = ((30, 48),)
ROUNDS, SHARE = 15, 2e-3
VARLEN = "torch varlen"


def entries(device: str) -> dict[str, Entry]:
    """The workloads with a kernel of ours: float32 products are cuBLAS's, and a table's gradient is dense."""
    found = workloads(SIZES if device == "cuda" else REHEARSED)
    if device != "cuda":
        found = {name: entry for name, entry in found.items() if "T1024" not in name and name != "adamw-base"}
    found = {name: entry for name, entry in found.items() if not name.startswith("embedding_sparse")}
    low = {name: entry._replace(precisions=("bf16",)) for name, entry in found.items() if name.startswith("linear")}
    return found | low


def modes_of(name: str, entry: Entry) -> tuple[str, ...]:
    if name.startswith("adamw"):
        return ("training",)
    return ("forward", "backward") if "training" in entry.modes else ("forward",)


def varlen_step(workload: Any) -> Step:
    """torch's own attention on packed sentences, without dropout: FlashAttention, in bfloat16."""
    from torch.nn.attention.varlen import varlen_attn

    values = {name: t.to(workload.device) for name, t in workload.problem.rounded(torch.bfloat16).items()}
    cu_seqlens, longest = values["cu_seqlens"], workload.problem.settings["max_seqlen"]
    q, k, v = values["qkv"].unbind(1)

    def run() -> object:
        with torch.no_grad():
            return varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest)

    return run


class Benchmark:
    """The cases of a run, in order of importance, until the time is up."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device, self.options = options.device, options
        self.rows = Rows(options.output, rehearsal=options.device == "cpu")
        self.clock = clock_of(options.device, options.flush)
        self.deadline = time.monotonic() + options.seconds
        self.rounds = ROUNDS if options.device == "cuda" else 2
        self.wrong: list[str] = []

    def run(self) -> None:
        checked: set[tuple[str, str]] = set()
        ways = ("launched", "replayed") if self.device == "cuda" else ("launched",)
        for name, entry in entries(self.device).items():
            workload = replace(entry.make(), device=self.device)  # type: ignore[type-var]
            for precision in entry.precisions:
                op = name.partition("-")[0]
                if (op, precision) not in checked:
                    checked.add((op, precision))
                    self._verify(op, workload, precision)
                for mode in modes_of(name, entry):
                    for way in ways:
                        self._time(name, workload, mode, precision, way, CANDIDATES)
        for name, entry, precision in self._compiled():
            workload = replace(entry.make(), device=self.device)  # type: ignore[type-var]
            for mode in modes_of(name, entry):
                self._time(name, workload, mode, precision, "launched", ("fused", COMPILED))

    def _compiled(self) -> Iterator[tuple[str, Entry, str]]:
        for name, entry in entries(self.device).items():
            at_size = name.endswith((COMPILED_SIZE, "N64-K5")) if self.device == "cuda" else name.startswith("bias")
            if at_size:
                yield from ((name, entry, precision) for precision in entry.precisions)

    def _verify(self, op: str, workload: Any, precision: str) -> None:
        try:
            workload.verify(precision)
        except Exception as error:
            self.wrong.append(f"{op} in {precision}: {error}")
            print(f"WRONG: {self.wrong[-1]}", flush=True)

    def _time(self, name: str, workload: Any, mode: str, precision: str, way: str, names: tuple[str, ...]) -> None:
        op, _, size = name.partition("-")
        key = (f"{op} {mode}", size, precision)

        def left_out(candidate: str, reason: str) -> None:
            about = {"way": way, "status": "not measured", "reason": reason}
            self.rows.add([row(key[0], candidate, size, precision, torch.get_num_threads(), **about)])

        if time.monotonic() > self.deadline:
            left_out("fused", "the time was up")
            return
        makers: dict[str, Callable[[], Step]] = {}
        for candidate in names:
            if self.device == "cpu" and precision == "bf16" and "torch" in candidate and torch_bf16_failure():
                left_out(candidate, torch_bf16_failure())
            elif not (way == "replayed" and candidate == "reference"):  # whose checks wait for the device
                makers[candidate] = partial(workload.step, candidate, mode, precision)
        if op == "attention" and (mode, precision) == ("forward", "bf16") and COMPILED not in names:
            makers[VARLEN] = partial(varlen_step, workload)
        steps = prepare(makers, left_out, replay=way == "replayed")
        times = time_in_turns(steps, self.clock, self.rounds, SHARE)
        work = {"moved": workload.bytes(mode, precision), "operations": workload.operations(mode)}
        self.rows.add(rows_of(key, way, times, "fused", **work))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, seconds=100)
    parser.add_argument("--flush", action="store_true", help="empty the L2 cache before every call")
    options = parser.parse_args()
    # The backward pass is timed by itself, over and over on one graph.
    torch._functorch.config.donated_buffer = False
    benchmark = Benchmark(options)
    benchmark.run()
    if benchmark.wrong:
        sys.exit("wrong results, by the error budget:\n" + "\n".join(benchmark.wrong))


if __name__ == "__main__":
    main()
