"""SmartRegularizer on padded embeddings: padding is left alone, and nothing else changes."""

import pytest
import torch
from op_harness import normal, offsets
from smart_formulas import CHANNELS, CLASSES, LENGTHS, LEVELS, SETTINGS, Network, problem
from torch import Tensor

from smartcs.smart import SmartRegularizer


def padded(values: Tensor, lengths: list[int], columns: list[list[int]], fill: float) -> Tensor:
    """(B, S, C) with sentence b's rows in these columns, and a number everywhere else."""
    spread = torch.full((len(lengths), 6, values.shape[1]), fill, dtype=values.dtype)
    for row, chunk in enumerate(values.split(lengths)):
        spread[row, columns[row]] = chunk
    return spread


COLUMNS = {
    "right": [[0, 1, 2], [0], [], [0, 1, 2, 3]],
    "left": [[3, 4, 5], [5], [], [2, 3, 4, 5]],
    "holes": [[0, 2, 5], [3], [], [0, 1, 4, 5]],
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("padding", COLUMNS)
@pytest.mark.parametrize("injected", [True, False])
def test_padded_equals_packed(level: str, padding: str, injected: bool) -> None:
    """Value, gradients and diagnostics, with given noise (whatever it says about padding) and with drawn noise."""
    network, x, v = problem("categorical")
    mask = torch.zeros(len(LENGTHS), 6, dtype=torch.int64)
    for row, columns in enumerate(COLUMNS[padding]):
        mask[row, columns] = 1
    settings = SETTINGS | {"noise_std": 0.02, "level": level, "seed": 3}
    packed, spread = SmartRegularizer(**settings), SmartRegularizer(**settings)
    cu_seqlens = offsets(LENGTHS) if level == "sentence" else None
    seen = []

    def on_padded(embeddings: Tensor) -> Tensor:
        seen.append(embeddings.detach())
        # Padding has a gradient too: a careless network, like a mean over all positions.
        careless = embeddings[~mask.bool()].sum() * torch.tensor([1.0, 0, 0], dtype=x.dtype)
        return network(embeddings[mask.bool()]) + careless

    full = padded(x.detach(), LENGTHS, COLUMNS[padding], fill=0.0)
    noise = padded(v, LENGTHS, COLUMNS[padding], fill=1e6) if injected else None
    first = packed(network, x, network(x), noise=v if injected else None, cu_seqlens=cu_seqlens)
    second = spread(on_padded, full, on_padded(full), noise=noise, attention_mask=mask)
    torch.testing.assert_close(second, first, rtol=1e-7, atol=0)
    gradients = [torch.autograd.grad(value, list(network.parameters())) for value in (first, second)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-9)
    assert packed.last is not None and spread.last is not None
    for one, other in zip(packed.last, spread.last, strict=True):
        torch.testing.assert_close(other.double(), one.double())
    clean, *perturbed = seen
    for embeddings in perturbed:
        assert torch.equal(embeddings[mask == 0], clean[mask == 0])
        assert not torch.equal(embeddings[mask == 1], clean[mask == 1])


def test_without_mask_all_positions_are_tokens() -> None:
    x = normal(2, 3, CHANNELS, seed=1)
    network = Network(CLASSES, [3, 3])
    reg = SmartRegularizer(**SETTINGS, noise_std=0.02)
    other = SmartRegularizer(**SETTINGS, noise_std=0.02)
    first = reg(lambda e: network(e.flatten(0, 1)), x, network(x.flatten(0, 1)))
    assert first == other(network, x.flatten(0, 1), network(x.flatten(0, 1)))
