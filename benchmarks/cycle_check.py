"""Before a cycle is timed: all candidates compute the same.

Compared without dropout, on the first batch of each task, with one set of weights and another for the anchor:

* the task's losses and the Bregman divergence, to TOLERANCE of their size;
* SMART's value with the same injected noise. The candidates of this project draw equal noise by themselves; a peer's
  draw is handed to ours. At the published settings the perturbation keeps the noise's direction, which is why the value
  can be compared at all: the peer's inner gradient has lost its digits (its divergence of near-equal logits rounds to
  a few units), and its inner loss is a mean over the examples where ours is a sum.
"""

from collections.abc import Mapping, Sequence

import torch
from peers import Padded, PeerStep, padded
from setting import BATCHES, encoder, mode
from torch import Tensor

import smartcs
from smartcs.data.encode import EncodedTask
from smartcs.data.packing import PackedBatch
from smartcs.training.config import TrainConfig
from smartcs.training.objective import Objective

# Relative, per precision; a value below 0.1 is compared on that scale.
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}
# A perturbation that is one of the largest a token can take moves the logits far: rounding counts for more.
SMART_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}

Values = dict[str, float]


def check(
    shape: str, data: Mapping[str, EncodedTask], own: Mapping[str, tuple[str, str]], peers: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Compares every candidate with the fused float32 one.

    Args:
        own: candidate of this project -> (backend, precision).
        peers: names from `peers.PEERS`, but for the compiled one, which is the SDPA one.

    Returns:
        candidate -> value -> relative difference.

    Raises:
        SystemExit: a difference is too large; names it.
    """
    batches = {task: data[task].batch(range(size)) for task, size in BATCHES.items()}
    torch.manual_seed(1)
    elsewhere = smartcs.MultitaskBert(encoder(shape, dropout=0.0))
    torch.manual_seed(0)
    model = smartcs.MultitaskBert(encoder(shape, dropout=0.0))
    truth = _own(model, elsewhere, batches, "fused", "fp32")
    differences: dict[str, dict[str, float]] = {}
    for name, (backend, precision) in own.items():
        found = _own(model, elsewhere, batches, backend, precision)
        differences[name] = _compare(name, found, truth, precision)
    for name in peers:
        found, noise = _peer(name, model, elsewhere, batches)
        expected = truth | {"smart": _with_noise(model, batches["sst"][0], noise)}
        differences[name] = _compare(name, found, expected, "fp32")
    return differences


def _compare(name: str, found: Values, truth: Values, precision: str) -> Values:
    result = {}
    for what, value in found.items():
        difference = abs(value - truth[what]) / max(abs(truth[what]), 0.1)
        allowed = (SMART_TOLERANCE if what == "smart" else TOLERANCE)[precision]
        if not difference <= allowed:
            raise SystemExit(
                f"{name}: {what} is {value:.8g}, expected {truth[what]:.8g} as smartcs in float32 has it: they differ "
                f"by {difference:.1e}, allowed is {allowed:.0e}. Nothing was timed"
            )
        result[what] = difference
    return result


def _own(
    model: smartcs.MultitaskBert,
    elsewhere: smartcs.MultitaskBert,
    batches: Mapping[str, tuple[PackedBatch, Tensor | None]],
    backend: str,
    precision: str,
) -> Values:
    config = TrainConfig.from_dict({"recipe": "smart-bregman", "data": "none", "model": "none"})
    values: Values = {}
    with mode(backend, precision):
        objective = Objective(config, model.eval(), steps=10)
        assert objective.anchor is not None
        objective.anchor.anchor.load_state_dict(elsewhere.state_dict())
        for task, (batch, labels) in batches.items():
            assert labels is not None
            terms = objective(task, batch, labels, step=0)
            values[task] = terms.task.item()
            if terms.smart is not None and terms.bregman is not None:
                values |= {"smart": terms.smart.item(), "bregman": terms.bregman.item()}
    return values


def _peer(
    name: str,
    model: smartcs.MultitaskBert,
    elsewhere: smartcs.MultitaskBert,
    batches: Mapping[str, tuple[PackedBatch, Tensor | None]],
) -> tuple[Values, Tensor]:
    """Its values, and the noise that it drew for SST, packed (T, C)."""
    step = PeerStep(model, name, "smart-bregman", 1e-5)
    step.model.eval()
    step.anchor = PeerStep(elsewhere, name, "baseline", 1e-5).model.eval()
    values: Values = {}
    for task, (batch, labels) in batches.items():
        assert labels is not None
        torch.manual_seed(2)
        terms = step.terms(task, padded(batch), labels)
        values[task] = terms.pop("task").item()
        values |= {what: value.item() for what, value in terms.items()}
    return values, _noise(padded(batches["sst"][0]), model.bert.config.hidden_size)


def _noise(batch: Padded, hidden: int) -> Tensor:
    """What smart-pytorch draws from the seed above, of the tokens alone."""
    torch.manual_seed(2)
    drawn = torch.randn(*batch.ids.shape, hidden) * 1e-5
    return drawn[batch.mask.to(torch.bool)]


def _with_noise(model: smartcs.MultitaskBert, batch: PackedBatch, noise: Tensor) -> float:
    """SMART's value of the fused float32 model for this noise."""
    regularizer = smartcs.SmartRegularizer(loss="categorical")
    output = model("sst", batch)
    value = regularizer.from_offsets(
        lambda offset: model("sst", batch, perturbation=offset), noise, output, noise=noise
    )
    return value.item()
