"""Runs with --precision bf16: what they record, that they learn the same, and what happens without fast products."""

import json

import pytest
import torch

import smartcs
import smartcs.ops.precision as mode
from smartcs._extension import extension_status
from smartcs.training import run as run_module
from smartcs.training.config import TrainConfig
from smartcs.training.objective import Objective
from smartcs.training.plan import describe_plan
from smartcs.training.setup import build_model, encode_split, load_data
from smartcs.training.trainer import Trainer

WHY = "none: this CPU multiplies them no faster"


@pytest.fixture
def no_products(monkeypatch):
    monkeypatch.setattr(mode, "bf16_products", lambda: WHY)


def saved(result) -> dict:
    return json.loads((result.folder / "metrics.json").read_text())


def test_a_run_in_bf16(config, quiet_train, fused_products):
    """Metrics name what multiplied; losses are fp32's but for the rounding, in SMART and Bregman steps, too."""
    values = {"recipe": "smart-bregman", "cycles": 3}
    metrics = {
        name: saved(quiet_train(config(**values, precision=name, output=None, overwrite=True)))
        for name in ("bf16", "fp32")
    }
    assert (metrics["bf16"]["precision"], metrics["bf16"]["products"]) == ("bf16", fused_products)
    assert metrics["fp32"]["precision"] == "fp32" and metrics["fp32"]["products"] != fused_products
    assert smartcs.get_precision() == "fp32"
    for figures in ("train_losses", "dev_losses"):
        low, exact = (metrics[name]["epochs"][0][figures] for name in ("bf16", "fp32"))
        assert low == pytest.approx(exact, rel=0.02) and low != exact
    assert metrics["bf16"]["smart"]["sst"]["fallbacks"] == 0


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Runs without an output folder go there."""
    monkeypatch.chdir(tmp_path)


def test_without_fast_products_it_is_said_once_and_recorded(config, no_products, capsys):
    result = run_module.train(config(precision="bf16", cycles=1))
    said = capsys.readouterr().out
    assert said.count("this CPU multiplies them no faster") == 1 and "note: running in fp32" in said
    metrics = saved(result)
    assert metrics["precision"] == "fp32" and metrics["config"]["precision"] == "bf16"
    if extension_status()[0]:
        assert metrics["products"] == torch.ops.smartcs.linear_library()


def test_that_run_is_fp32s(config, quiet_train, no_products):
    low, exact = (quiet_train(config(precision=name, cycles=2, output=None)).metrics for name in ("bf16", "fp32"))
    assert low["epochs"][0]["train_losses"] == exact["epochs"][0]["train_losses"]


def test_the_reference_rounds(config, quiet_train):
    low, exact = (
        quiet_train(config(precision=name, cycles=1, fused=False, output=None)).metrics for name in ("bf16", "fp32")
    )
    assert (low["precision"], low["products"]) == ("bf16", "reference")
    assert low["epochs"][0]["train_losses"] != exact["epochs"][0]["train_losses"]


def test_steps_of_both_backends_agree_in_bf16(config, fused_products):
    """Weights after nine steps and how far they moved (0.31 of it: Adam makes whole steps of small gradients)."""
    ends = {}
    for name in ("fused", "reference"):
        settings = config(recipe="smart-bregman", cycles=3)
        with smartcs.backend(name), smartcs.precision("bf16"):
            model = build_model(settings)
            start = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
            trainer = Trainer(settings, model, encode_split(model, load_data(settings.data).train, 64))
            assert len(list(trainer.epoch())) == 9
            ends[name] = torch.cat([p.detach().flatten() for p in model.parameters()])
    moved = (ends["reference"] - start).norm()
    assert moved > 0
    assert (ends["fused"] - ends["reference"]).norm() < 0.5 * moved


def test_the_inner_loop_of_a_run_is_exact(config, fused_products, monkeypatch):
    settings = config(recipe="smart")
    model = build_model(settings)
    objective = Objective(settings, model, steps=3)
    batch, labels = encode_split(model, load_data(settings.data).train, 64)["sst"].batch(range(4))
    modes, forward = [], type(model).forward

    def noticed(self, *arguments, **options):
        modes.append(smartcs.get_precision())
        return forward(self, *arguments, **options)

    monkeypatch.setattr(type(model), "forward", noticed)
    with smartcs.precision("bf16"):
        objective("sst", batch, labels, 0)
    assert modes == ["bf16", "fp32", "fp32", "bf16"]  # clean, the target, the noise, the perturbed


def test_plan_names_what_runs(config):
    settings = config(precision="bf16")
    model = build_model(settings)
    sampler = Trainer(settings, model, encode_split(model, load_data(settings.data).train, 64)).sampler
    text = describe_plan(settings, mode.Arithmetic("fp32", "oneDNN", "no"), sampler, settings.output)
    assert "fp32 products by oneDNN" in text


@pytest.fixture
def finished(config, quiet_train):
    return quiet_train(config(cycles=1)).folder


def test_evaluate_and_predict(command, finished, fused_products):
    code, exact, _ = command("evaluate", finished, "--json")
    assert code == 0 and json.loads(exact)["precision"] == "fp32"
    code, low, errors = command("evaluate", finished, "--json", "--precision", "bf16")
    assert code == 0 and "note" not in errors
    exact, low = json.loads(exact), json.loads(low)
    assert low["precision"] == "bf16"
    assert low["losses"] == pytest.approx(exact["losses"], rel=0.02) and low["losses"] != exact["losses"]
    arguments = ("predict", finished, "--task", "sts", "--text", "a film .", "a good movie .")
    found = {name: command(*arguments, "--precision", name)[1].split("\t")[0] for name in ("fp32", "bf16")}
    assert float(found["bf16"]) == pytest.approx(float(found["fp32"]), rel=0.05)
    assert smartcs.get_precision() == "fp32"


@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_commands_without_fast_products(command, finished, no_products, name):
    arguments = (finished, "--overwrite") if name == "predict" else (finished,)
    code, _, errors = command(name, *arguments, "--precision", "bf16")
    assert code == 0 and errors.count("this CPU multiplies them no faster") == 1


def test_pretraining(command, config, encoder_folder, data_folder, tmp_path, fused_products):
    arguments = ["--model", encoder_folder, "--data", data_folder, "--epochs", 1, "--cycles", 1, "--no-report"]
    found = {}
    for name in ("bf16", "fp32"):
        folder = tmp_path / name
        code, said, _ = command("pretrain", *arguments, "--output", folder, "--precision", name)
        assert code == 0
        found[name] = json.loads((folder / "metrics.json").read_text())
        assert f"{found[name]['precision']} products by {found[name]['products']}" in said.replace("\n", " ")
    assert (found["bf16"]["precision"], found["bf16"]["products"]) == ("bf16", fused_products)
    assert found["bf16"]["mlm_loss"] == pytest.approx(found["fp32"]["mlm_loss"], rel=0.01)
    assert found["bf16"]["mlm_loss"] != found["fp32"]["mlm_loss"]


def test_info_has_a_line(command):
    code, text, _ = command("info")
    (line,) = [line for line in text.splitlines() if line.startswith("bf16 products")]
    assert code == 0 and line.endswith(mode.bf16_products())


@pytest.mark.parametrize("value", [-1.0, float("nan"), "much"])
def test_max_grad_norm_is_checked(value):
    with pytest.raises(ValueError, match="max_grad_norm is"):
        TrainConfig(max_grad_norm=value)
