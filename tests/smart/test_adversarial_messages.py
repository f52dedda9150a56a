"""What SmartRegularizer refuses, and how it says so."""

import pytest
import torch
from torch import nn

from smartcs.smart import SmartRegularizer

NETWORK = nn.Linear(4, 3)
X = torch.zeros(5, 4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"step_size": -1.0}, "step_size is -1.0, expected a finite number >= 0"),
        ({"noise_std": 0.0}, "noise_std is 0.0, expected a finite number > 0"),
        ({"radius": float("nan")}, "radius is nan, expected a finite number > 0"),
        ({"norm_eps": float("inf")}, "norm_eps is inf, expected a finite number > 0"),
        ({"steps": -1}, "steps is -1, expected an int >= 0"),
        ({"steps": 1.5}, "steps is 1.5, expected an int >= 0"),
        ({"seed": -1}, "seed is -1, expected 0 <= seed"),
        ({"norm": 2}, "norm is 2, expected one of inf, 2, 1"),
        ({"update": "fgsm"}, "update is 'fgsm', expected one of mtdnn, projected, paper"),
        ({"level": "batch"}, "level is 'batch', expected one of token, sentence"),
        ({"loss": "kl"}, "loss is 'kl', expected one of categorical, bernoulli, squared"),
        ({"inner_loss": "kl"}, "inner_loss is 'kl', expected one of categorical"),
        ({"inner_reduction": "none"}, "inner_reduction is 'none', expected one of sum, mean"),
    ],
)
def test_options(options, message) -> None:
    with pytest.raises(ValueError, match=f"SmartRegularizer: {message}"):
        SmartRegularizer(**options)


@pytest.mark.parametrize(
    "call, error, message",
    [
        ({"embeddings": X.long()}, TypeError, "embeddings has dtype torch.int64, expected a floating-point dtype"),
        ({"embeddings": X[0]}, ValueError, r"embeddings has shape \(4,\), expected packed \(T, C\) or padded"),
        ({"embeddings": X[:, :0]}, ValueError, r"embeddings has shape \(5, 0\).* with C > 0"),
        ({"clean_output": [1.0]}, TypeError, "clean_output is list, expected a torch.Tensor"),
        ({"clean_output": torch.zeros(4, 3)}, ValueError, r"result of forward has shape \(5, 3\), expected \(4, 3\)"),
        ({"clean_output": torch.zeros(5, 3).double()}, TypeError, "result of forward has dtype torch.float32"),
        ({"noise": torch.zeros(5, 3)}, ValueError, r"noise has shape \(5, 3\), expected \(5, 4\)"),
        ({"noise": torch.zeros(5, 4).double()}, TypeError, "noise has dtype torch.float64, expected torch.float32"),
        ({"attention_mask": torch.ones(5, 4)}, ValueError, r"attention_mask is for padded \(B, S, C\)"),
        ({"stream": -1}, ValueError, "stream -1, expected both in"),
        ({"level": "sentence"}, ValueError, "on packed embeddings needs cu_seqlens"),
        ({"level": "sentence", "cu_seqlens": torch.tensor([0, 5])}, TypeError, "cu_seqlens has dtype torch.int64"),
        ({"embeddings": X[None], "cu_seqlens": torch.tensor([0, 5]).int()}, ValueError, r"cu_seqlens is for packed"),
        (
            {"embeddings": X[None], "attention_mask": torch.ones(1, 4)},
            ValueError,
            r"attention_mask has shape \(1, 4\), expected \(1, 5\) to match embeddings",
        ),
        ({"forward": lambda e: (NETWORK(e),)}, TypeError, "the result of forward is tuple, expected a torch.Tensor"),
        ({"forward": lambda e: NETWORK(X)}, ValueError, "output of forward does not depend on its argument"),
        ({"forward": lambda e: NETWORK(e.detach())}, ValueError, "output of forward does not depend on its argument"),
        ({"loss": lambda a, b: a - b}, ValueError, r"the loss has shape \(5, 3\), expected a scalar"),
        ({"loss": lambda a, b: 0.0}, TypeError, "the loss is float, expected a torch.Tensor"),
    ],
)
def test_calls(call, error, message) -> None:
    options = {name: call[name] for name in ("level", "loss") if name in call}
    arguments = {"forward": NETWORK, "embeddings": X, "clean_output": NETWORK(X)} | {
        name: value for name, value in call.items() if name not in options
    }
    reg = SmartRegularizer(**options)
    with pytest.raises(error, match=message):
        reg(**arguments)
    assert reg.statistics()["steps"] == 0 and reg.last is None
    assert all(p.requires_grad and p.grad is None for p in NETWORK.parameters())


def test_offsets_are_called_like() -> None:
    with pytest.raises(ValueError, match=r"like has shape \(4,\), expected packed"):
        SmartRegularizer().from_offsets(NETWORK, X[0], NETWORK(X))


def test_low_precision_is_refused_where_the_noise_would_vanish() -> None:
    network = nn.Linear(4, 3).bfloat16()
    x = torch.randn(5, 4).bfloat16()
    with pytest.raises(
        ValueError, match="noise_std is 1e-05, expected at least 0.0078125 because the embeddings round"
    ):
        SmartRegularizer()(network, x, network(x))
    with pytest.raises(ValueError, match="radius is 1e-05, expected at least 0.0078125"):
        SmartRegularizer(update="projected", noise_std=0.1)(network, x, network(x))
    assert SmartRegularizer(noise_std=0.01)(network, x, network(x)).isfinite()
    # The rule's perturbation has norm 1, so given noise is the caller's business.
    assert SmartRegularizer()(network, x, network(x), noise=0.1 * torch.ones_like(x)).isfinite()


@pytest.mark.parametrize("state", [{}, {"steps": 1}, {"colour": 1.0}])
def test_states(state) -> None:
    with pytest.raises(ValueError, match="SmartRegularizer: the state has the keys .*expected adversarial_alignment"):
        SmartRegularizer().load_state_dict(state)
