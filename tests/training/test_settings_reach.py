"""Every setting of SMART, Bregman and the samplers reaches what it is a setting of."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from smartcs.data.sampling import AnnealedDeterministicSampler, AnnealedSampler, RoundRobinSampler
from smartcs.ops.precision import arithmetic
from smartcs.training.commandline import UsageError
from smartcs.training.config import TrainConfig
from smartcs.training.objective import Objective
from smartcs.training.plan import describe_plan, idle_settings
from smartcs.training.regulariser_config import BregmanConfig, SmartConfig
from smartcs.training.setup import build_model, encode_split, load_data
from smartcs.training.trainer import Trainer, make_sampler

SMART = {
    "tasks": "sst+qqp",
    "weight": 3.0,
    "warmup": 2,
    "decay": "linear",
    "update": "projected",
    "norm": "2",
    "level": "sentence",
    "steps": 2,
    "step_size": 0.25,
    "noise_std": 1e-4,
    "radius": 0.5,
    "perturb_at": "embedding_output",
    "share_dropout": False,
    "detach_clean": True,
    "detach_targets": True,
}
BREGMAN = {"tasks": "qqp", "weight": 0.5, "beta": 0.5, "late_beta": 0.75, "early": 0.25, "inner_steps": 1}


def dotted(part, values):
    return {f"{part}.{name}": value for name, value in values.items()}


def test_the_tables_hold_every_setting_at_another_value():
    for values, kind in ((SMART, SmartConfig), (BREGMAN, BregmanConfig)):
        assert set(values) == {field.name for field in fields(kind)}
        same = [name for name, value in values.items() if value == getattr(kind(), name)]
        assert same == (["inner_steps"] if kind is BregmanConfig else []), "another test has inner_steps"


def test_smart(config):
    settings = config(**dotted("smart", SMART))
    objective = Objective(settings, build_model(settings), steps=12)
    assert set(objective.regularizers) == {"sst", "qqp"}
    for task, reg in objective.regularizers.items():
        for name in ("update", "norm", "level", "steps", "step_size", "noise_std", "radius", "detach_clean"):
            assert getattr(reg, name) == SMART[name], name
        assert reg.detach_targets and reg.seed == settings.seed
        assert reg.loss == {"sst": "categorical", "qqp": "bernoulli"}[task]
    assert [objective.weight(step) for step in (0, 1, 7, 12)] == [1.5, 3.0, 1.5, 0.0]


def test_bregman(config):
    settings = config(**dotted("bregman", BREGMAN))
    anchor = Objective(settings, build_model(settings), steps=12).anchor
    assert [anchor.beta(step) for step in (0, 2, 3, 11)] == [0.5, 0.5, 0.75, 0.75]
    assert settings.bregman_tasks == ("qqp",)
    several = config(**dotted("bregman", {**BREGMAN, "inner_steps": 3}))
    anchor = Objective(several, build_model(several), steps=12).anchor
    # Of the 12 steps, the 4 of QQP count, the first of them is early.
    assert anchor.inner_steps == 3 and [anchor.beta(step) for step in (0, 1)] == [0.5, 0.75]


@pytest.mark.parametrize("perturb_at", ["word_embeddings", "embedding_output"])
def test_the_model_is_perturbed_where_it_is_asked_for(config, perturb_at, monkeypatch):
    settings = config(recipe="smart", **{"smart.perturb_at": perturb_at})
    model = build_model(settings)
    objective = Objective(settings, model, steps=12)
    seen = []
    inner = type(model).forward

    def spy(self, *args, **kwargs):
        seen.append(kwargs.get("perturb_at"))
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", spy)
    data = encode_split(model, load_data(settings.data).train, 64)
    objective("sst", *data["sst"].batch(range(4)), 0)
    assert seen == [None, perturb_at, perturb_at]


def test_samplers(config):
    sizes = {"sst": 48, "qqp": 60, "sts": 40}
    assert type(make_sampler(config(), sizes)) is RoundRobinSampler
    lone = make_sampler(config(sampler="annealed_deterministic", solo_steps=5), sizes)
    assert isinstance(lone, AnnealedDeterministicSampler) and lone.solo_steps == 5 and lone.cycles == 8
    assert make_sampler(config(recipe="stickland"), sizes).solo_steps == 8
    annealed = make_sampler(config(sampler="annealed", epochs=7), sizes)
    assert isinstance(annealed, AnnealedSampler) and annealed.epochs == 7


def test_annealed_epochs_train_and_may_lack_a_task(config, quiet_train):
    metrics = quiet_train(config(sampler="annealed", epochs=2, cycles=1)).metrics
    assert metrics["steps"] == 6
    assert set(metrics["epochs"][0]["train_losses"]) == {"sst", "qqp", "sts"}


@pytest.mark.parametrize("inner_steps", [2, 3])
def test_a_frozen_anchor_of_one_task_is_not_moved_before_each_of_its_steps(config, inner_steps):
    """Counting the steps of all three tasks, three inner steps would move it right before every SST step."""
    values = {"inner_steps": inner_steps, "beta": 0.0, "late_beta": 0.0}
    settings = config(recipe="smart-bregman", encoder_dropout=0.0, **dotted("bregman", values))
    model = build_model(settings)
    trainer = Trainer(settings, model, encode_split(model, load_data(settings.data).train, 64))
    terms = [step.bregman for step in trainer.epoch() if step.task == "sst"]
    assert terms[0] == 0 and all(term > 0 for term in terms[1:])


def test_momentum_follows_the_steps_of_all_tasks(config):
    settings = config(recipe="smart-bregman", encoder_dropout=0.0, **{"bregman.beta": 0.0, "bregman.late_beta": 0.0})
    model = build_model(settings)
    trainer = Trainer(settings, model, encode_split(model, load_data(settings.data).train, 64))
    terms = [step.bregman for step in trainer.epoch() if step.task == "sst"]
    assert terms == [0.0] * 8, "to the letter, with one inner step, the term is nothing"


def test_a_run_too_short_for_its_schedule_is_refused_before_anything_is_lost(config, quiet_train, tmp_path):
    quiet_train(config(cycles=1))
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    with pytest.raises(UsageError, match="smart.warmup is 100, expected less than the run's 3 optimizer steps"):
        quiet_train(config(recipe="smart", cycles=1, overwrite=True, **{"smart.warmup": 100, "smart.decay": "linear"}))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


def test_idle_settings(config):
    idle = idle_settings(config())
    assert idle["smart.weight"] == "smart.tasks is none" and "smart.tasks" not in idle
    assert idle["pretrain.learning_rate"] == "pretrain.epochs is 0" and idle["solo_steps"] == "sampler is round_robin"
    used = idle_settings(config(recipe="pretrain+smart-bregman+stickland"))
    assert list(used) == ["smart.radius"]
    assert not idle_settings(config(recipe="pretrain+smart-adv-bregman+stickland"))
    assert {"cosine", "batch_sts", "batch_qqp"} <= set(idle_settings(config(tasks="sst")))


def test_fallbacks_are_said_at_the_end_and_leave_no_figures(config, monkeypatch):
    import io

    from rich.console import Console

    from smartcs.training.run import train

    monkeypatch.setattr("smartcs.smart.adversarial.SmartRegularizer._inner_gradient", _nan_gradient)
    out = io.StringIO()
    result = train(config(recipe="smart", cycles=3), Console(file=out))
    assert "warning: SMART's gradient or value was not finite in 3 of 3 sst steps" in out.getvalue()
    assert result.metrics["smart"]["sst"]["fallbacks"] == 3
    rows = (result.folder / "losses.csv").read_text().splitlines()[1:]
    assert all(row.endswith(",,,,") for row in rows)


def _nan_gradient(self, forward, v, target):
    return torch.full_like(v, float("nan")), torch.zeros(())


def test_settings_made_in_vain_are_said_and_the_samples_own_are_not(config):
    settings = config(**{"smart.weight": 5.0})
    plan = describe_plan(
        settings, arithmetic("fp32"), make_sampler(settings, {"sst": 48, "qqp": 60, "sts": 40}), Path("run")
    )
    assert "set, but without effect in this run: smart.weight 5.0 (smart.tasks is none)\n" in plan
    sample = TrainConfig.from_dict({"model": "small", "pretrain.cycles": None})
    plan = describe_plan(
        sample, arithmetic("fp32"), make_sampler(sample, {"sst": 48, "qqp": 60, "sts": 40}), Path("run")
    )
    assert "without effect" not in plan and "pretrain" not in plan
