"""One SMART step never holds more than it needs: two sets of activations, the clean pass's and one other."""

import pytest
import torch
from live_activations import ActivationMeter

import smartcs
from smartcs.training.config import TrainConfig
from smartcs.training.objective import Objective
from smartcs.training.setup import build_model, encode_split, load_data


def measure(encoder_folder, **values) -> tuple[ActivationMeter, int]:
    """The meter of one SST step, and the bytes of its clean pass."""
    config = TrainConfig.from_dict({"model": str(encoder_folder), **values})
    model = build_model(config)
    objective = Objective(config, model, 10)
    encoded = encode_split(model, load_data("sample").train, 64)["sst"]
    batch, labels = encoded.batch(range(32))
    with ActivationMeter(model.parameters()) as clean:
        output = model("sst", batch, smartcs.DropoutKey(1, 1))
        one_set = clean.live
    del output
    with ActivationMeter(model.parameters()) as meter:
        objective("sst", batch, labels, 0).total.backward()
    assert meter.live == 0
    return meter, one_set


def test_the_meter_counts_what_autograd_keeps():
    x = torch.ones(10, 100, requires_grad=True)
    weight = torch.ones(100, 50, requires_grad=True)
    with ActivationMeter([weight]) as meter:
        y = (x * 2) @ weight  # x * 2 is kept for the weight's gradient; the weight is not counted
        z = y.exp()  # keeps its result
        assert meter.live == meter.peak == 4 * (10 * 100 + 10 * 50)
        z.sum().backward()
        assert meter.live == 0 and meter.peak == 4 * (10 * 100 + 10 * 50)


@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_smart_holds_two_sets(backend, encoder_folder):
    with smartcs.backend(backend):
        plain, one_set = measure(encoder_folder)
        assert plain.peak <= 1.02 * one_set
        for values in ({"recipe": "smart"}, {"recipe": "smart-bregman"}, {"recipe": "smart", "smart.steps": 3}):
            smart, _ = measure(encoder_folder, **values)
            assert 1.9 * one_set < smart.peak <= 2.02 * one_set


def test_the_bregman_term_holds_none_of_its_own(encoder_folder):
    plain, one_set = measure(encoder_folder, **{"bregman.tasks": "sst"})
    assert plain.peak <= 1.02 * one_set


def test_the_noise_pass_keeps_less_than_a_whole_set(encoder_folder):
    """Without weight gradients the inputs of the matrix products need not be kept."""
    config = TrainConfig.from_dict({"model": str(encoder_folder)})
    model = build_model(config)
    encoded = encode_split(model, load_data("sample").train, 64)["sst"]
    batch, _ = encoded.batch(range(32))
    v = torch.zeros(batch.num_tokens, 32, requires_grad=True)
    with ActivationMeter(model.parameters()) as clean:
        output = model("sst", batch, smartcs.DropoutKey(1, 1), perturbation=v)
        whole = clean.live
    del output
    with ActivationMeter(model.parameters()) as noise, smartcs.ops.input_gradients_only():
        output = model("sst", batch, smartcs.DropoutKey(1, 1), perturbation=v)
        assert output.requires_grad and 0 < noise.live < 0.9 * whole
