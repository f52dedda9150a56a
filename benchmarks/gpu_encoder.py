"""BERT's encoder on the GPU, in turns: this project's, its reference, and Hugging Face's BertModel.

    python benchmarks/gpu_encoder.py --output rows.json

Part of gpu_check.py. Ragged sentences of 20 to 40 tokens, packed for ours, padded for Hugging Face's; the same weights,
drawn at random. First both must compute the same in float32. "forward" is evaluation, "backward" a forward and a
backward pass in training mode, "step" these and AdamW (torch's fused one for Hugging Face). "bf16": ours by
`smartcs.precision`, theirs under autocast; weights are float32 in both. "replayed" is the same as one CUDA graph.

On a CPU this is a rehearsal at tiny sizes, and its figures mean nothing.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch
from gpu_report import Rows, add_arguments
from gpu_stages import SKIPPED
from gpu_timing import clock_of, prepare, rows_of, time_in_turns
from results_io import row
from roof import Passes, operations
from setting import encoder
from timing import Step
from torch import Tensor
from workload import integers, torch_bf16_failure
from workloads import sentence_lengths

import smartcs
from smartcs.data.packing import PackedBatch
from smartcs.model.hf_config import config_to_hf
from smartcs.model.weights import state_dict_to_hf

TOKENS = (150, 1220, 8192)
MODES = ("forward", "backward", "step")
PASSES = {"forward": Passes(1, 0), "backward": Passes(1, 1), "step": Passes(1, 1)}
OWN = ("fused", "reference")
PEERS = ("transformers sdpa", "transformers eager")
COMPILED = "transformers compile"
COMPILED_CASES = (("minilm", 1220), ("base", 1220))
REHEARSED = (("tiny", 30),)
ROUNDS, SHARE = 9, 5e-3
TOLERANCE = 1e-4  # of normalised hidden states, in float32


def make_batch(tokens: int, device: str) -> PackedBatch:
    rows = [integers(30000, length, seed=i).tolist() for i, length in enumerate(sentence_lengths(tokens))]
    return PackedBatch.from_lists(rows).to(device)


class Own:
    """This project's encoder on one backend."""

    def __init__(self, name: str, ours: smartcs.BertModel) -> None:
        self.backend, self.model = name, copy.deepcopy(ours)
        with smartcs.backend(name):  # type: ignore[arg-type]
            self.optimizer: torch.optim.Optimizer = smartcs.AdamW(self.model.parameters(), lr=1e-5)

    def take(self, batch: PackedBatch, precision: str) -> None:
        self.batch, self.precision = batch, precision

    def __call__(self) -> Tensor:
        """(T, C)."""
        with smartcs.backend(self.backend), smartcs.precision(self.precision):  # type: ignore[arg-type]
            return self.model(self.batch, smartcs.DropoutKey(1, 1)).last_hidden_state

    def update(self) -> None:
        with smartcs.backend(self.backend):  # type: ignore[arg-type]
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Peer:
    """Hugging Face's, on padded batches."""

    def __init__(self, name: str, ours: smartcs.BertModel) -> None:
        from transformers import BertConfig, BertModel

        fields = {field: getattr(ours.config, field) for field in ours.config.__dataclass_fields__}
        attention = "eager" if name == "transformers eager" else "sdpa"
        self.device = ours.embeddings.word.weight.device.type
        with torch.device(self.device):
            self.model = BertModel(BertConfig(**config_to_hf(fields), attn_implementation=attention))
        self.model.load_state_dict(state_dict_to_hf(ours.state_dict(), fields))
        self.call: Callable[..., Any] = torch.compile(self.model) if name == COMPILED else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, eps=1e-6, weight_decay=0.0, fused=True)

    def take(self, batch: PackedBatch, precision: str) -> None:
        self.mask, self.low = batch.attention_mask(), precision == "bf16"
        self.inputs = {"input_ids": batch.to_padded(), "attention_mask": self.mask}

    def __call__(self) -> Tensor:
        """(B, S, C), zero where padded."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.low):
            out: Tensor = self.call(**self.inputs).last_hidden_state
        return out * self.mask[:, :, None]

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def step_of(candidate: Own | Peer, mode: str) -> Step:
    def forward() -> None:
        with torch.no_grad():
            candidate()

    def backward() -> None:
        candidate.model.zero_grad(set_to_none=True)
        candidate().float().square().mean().backward()

    def step() -> None:
        backward()
        candidate.update()

    candidate.model.train(mode != "forward")
    return {"forward": forward, "backward": backward, "step": step}[mode]


class Benchmark:
    """The cases of a run until the time is up; candidates are made when they are first needed, and kept."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device, self.on_gpu = options.device, options.device == "cuda"
        self.rows = Rows(options.output, rehearsal=not self.on_gpu)
        self.clock, self.deadline = clock_of(self.device), time.monotonic() + options.seconds
        self.made: dict[tuple[str, str], Own | Peer] = {}
        self.encoders: dict[str, smartcs.BertModel] = {}

    def run(self) -> None:
        cases = [(shape, tokens) for tokens in TOKENS for shape in ("minilm", "base")] if self.on_gpu else REHEARSED
        self.check_equal(*cases[0])
        for shape, tokens in cases:
            for precision, mode in product(("fp32", "bf16"), MODES):
                self.time(shape, tokens, precision, mode, "launched", (*OWN, *PEERS))
                # The reference's attention waits for the device, and torch's AdamW is not made for graphs as it is.
                if self.on_gpu and mode != "step":
                    self.time(shape, tokens, precision, mode, "replayed", (OWN[0], PEERS[0]))
        for shape, tokens in COMPILED_CASES if self.on_gpu else REHEARSED:
            for precision, mode in product(("fp32", "bf16"), MODES[:2]) if self.on_gpu else [("fp32", "forward")]:
                self.time(shape, tokens, precision, mode, "launched", (OWN[0], COMPILED))

    def candidate(self, name: str, shape: str) -> Own | Peer:
        if shape not in self.encoders:
            torch.manual_seed(0)
            with torch.device(self.device):
                self.encoders[shape] = encoder(shape)
        if (name, shape) not in self.made:
            self.made[name, shape] = (Own if name in OWN else Peer)(name, self.encoders[shape])
        return self.made[name, shape]

    def check_equal(self, shape: str, tokens: int) -> None:
        """Fused and Hugging Face's hidden states of one batch, before anything is timed."""
        batch, found = make_batch(tokens, self.device), []
        for name in (OWN[0], PEERS[0]):
            candidate = self.candidate(name, shape)
            candidate.take(batch, "fp32")
            candidate.model.eval()
            with torch.no_grad():
                found.append(candidate())
        difference = (batch.to_padded(found[0]) - found[1]).abs().max().item()
        print(f"hidden states of fused and transformers differ by at most {difference:.1e}", flush=True)
        if not difference <= TOLERANCE:
            sys.exit(f"hidden states differ by {difference:.1e}, allowed is {TOLERANCE:.0e}: nothing was timed")

    def time(self, shape: str, tokens: int, precision: str, mode: str, way: str, names: tuple[str, ...]) -> None:
        key = (f"encoder {mode}", f"{shape}-T{tokens}", precision)

        def left_out(name: str, reason: str) -> None:
            about = {"way": way, "status": "not measured", "reason": reason}
            self.rows.add([row(key[0], name, *key[1:], torch.get_num_threads(), **about)])

        def make(name: str) -> Step:
            if not self.on_gpu and precision == "bf16" and name not in OWN and torch_bf16_failure():
                raise RuntimeError(torch_bf16_failure())
            candidate = self.candidate(name, shape)
            candidate.take(make_batch(tokens, self.device), precision)
            return step_of(candidate, mode)

        if time.monotonic() > self.deadline:
            left_out(names[0], "the time was up")
            return
        steps = prepare({name: partial(make, name) for name in names}, left_out, replay=way == "replayed")
        times = time_in_turns(steps, self.clock, ROUNDS if self.on_gpu else 2, SHARE)
        with torch.device("meta"):
            config = encoder(shape).config
        work = sum(operations(config, sentence_lengths(tokens), PASSES[mode]).values())
        self.rows.add(rows_of(key, way, times, OWN[0], operations=work))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, seconds=80)
    options = parser.parse_args()
    if find_spec("transformers") is None:
        print("transformers is not installed: pip install transformers")
        sys.exit(SKIPPED)
    Benchmark(options).run()


if __name__ == "__main__":
    main()
