"""A few steps of SMART and Bregman training on the device: fused against the reference, a float64 run as the truth.

The loss of every step, its terms, and how far the weights and the anchor have moved: held to the ops' error budget,
which allows what the float32 reference on the same device loses.
"""

import pytest
import torch
import torch.nn.functional as F
from devices import DEVICE, REHEARSAL, fused
from error_budget import check
from small_models import small_multitask

import smartcs
from smartcs import kernels
from smartcs.ops.random import DropoutKey

LENGTHS = [[3, 1]] if REHEARSAL else [[17, 3, 40, 1, 25, 9], [33, 64, 8, 16, 2, 1], [5, 5, 12, 30, 7, 63]]
NOISE_SITE = 2**16 - 1
# The CPU's adamw writes the CPU's packed weights, which are not those of a GPU's linear.
OPS = (*(op for op in kernels.OPS if op != "linear" or not REHEARSAL), "perturb", "symmetric_kl", "adamw")


def batches(device: str) -> list[tuple[smartcs.PackedBatch, torch.Tensor]]:
    generator, made = torch.Generator().manual_seed(0), []
    for lengths in LENGTHS:
        rows = [torch.randint(5, 300, (n,), generator=generator).tolist() for n in lengths]
        labels = torch.randint(5, (len(lengths),), generator=generator)
        made.append((smartcs.PackedBatch.from_lists(rows).to(device), labels.to(device)))
    return made


def train(backend: str, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    """The terms of every loss, and what weights and anchor have moved by, on the CPU."""
    with smartcs.backend(backend):
        model = small_multitask().train().to(device, dtype)
        start = torch.cat([p.detach().flatten() for p in model.parameters()])
        smart = smartcs.SmartRegularizer(loss="categorical", seed=1, step_size=0.1, noise_std=0.01, radius=0.1)
        anchor = smartcs.BregmanAnchor(model, beta=0.9)
        # A large eps: where a gradient is all rounding, the step must not be its sign.
        optimizer = smartcs.AdamW(model.parameters(), lr=1e-2, eps=1e-2, max_grad_norm=1.0)
        rows = []
        for step, (batch, labels) in enumerate(batches(device)):
            rows.append(losses(model, smart, anchor, batch, labels, DropoutKey(5, step)))
            rows[-1].sum().backward()
            optimizer.step(anchor=anchor)
            optimizer.zero_grad(set_to_none=True)
        ends = [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (model, anchor.anchor)]
    moved = {name: (end - start).cpu() for name, end in zip(("weights", "anchor"), ends, strict=True)}
    return {"losses": torch.stack(rows).detach().cpu(), **moved}


def losses(model, smart, anchor, batch, labels, key) -> torch.Tensor:
    """The task's loss, SMART's and Bregman's."""
    output = model("sst", batch, key)
    word = model.bert.embeddings.word.weight
    value = smart.from_offsets(
        lambda offset: model("sst", batch, key, perturbation=offset),
        word.new_empty(batch.num_tokens, word.shape[1]),
        output,
        cu_seqlens=batch.cu_seqlens,
        stream=key.stream(NOISE_SITE),
    )
    task = F.cross_entropy(output, labels)
    return torch.stack([task, value.to(task.dtype), anchor.divergence(output, "sst", batch).to(task.dtype)])


def test_fused_and_reference_take_the_same_steps():
    truth, fallback = train("reference", torch.float64, "cpu"), train("reference", torch.float32, DEVICE)
    with fused(*OPS):
        results = train("fused", torch.float32, DEVICE)
    for name, kind in (("losses", "statistic"), ("weights", "summed gradient"), ("anchor", "summed gradient")):
        check(results[name], truth[name], fallback[name], kind, name=name)


def test_bf16_products_stay_near_float32():
    exact = train("reference", torch.float32, "cpu")["losses"]
    with fused(*OPS), smartcs.precision("bf16"):
        results = train("fused", torch.float32, DEVICE)["losses"]
    torch.testing.assert_close(results, exact, rtol=5e-2, atol=5e-3)


def test_repeats_bit_for_bit():
    if REHEARSAL:
        pytest.skip("tests/training says so of a CPU")
    with fused(*OPS):
        first, second = (train("fused", torch.float32, DEVICE) for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
