"""Where the values of a configuration come from, and what is refused."""

import ast
import dataclasses
import inspect
import json
import re
import typing

import pytest

from smartcs.training import recipes
from smartcs.training.checks import task_names
from smartcs.training.config import PARTS, TrainConfig, flat, nested
from smartcs.training.recipes import RECIPES, default_values, recipe_values


def test_defaults_are_the_papers():
    config = TrainConfig()
    assert (config.batch_sst, config.batch_qqp, config.batch_sts) == (6, 40, 4)
    assert (config.learning_rate, config.epochs, config.weight_decay) == (3e-5, 10, 0.0)
    assert config.recipe == "baseline" and config.cycles is None and config.fused
    assert config.batch_sizes == {"sst": 6, "qqp": 40, "sts": 4}
    # On real data with a pretrained encoder nothing else applies.
    assert TrainConfig.from_dict({"data": "folder", "model": "a/b"}) == dataclasses.replace(
        config, data="folder", model="a/b"
    )


def test_sample_and_random_weights_have_values_of_their_own():
    for model, kind in (("small", "small"), ("a/b", "pretrained")):
        config = TrainConfig.from_dict({"model": model})
        assert recipes.SAMPLE[kind].items() <= flat(config).items()
        scratch = recipes.FROM_SCRATCH if kind == "small" else {}
        rest = {**flat(TrainConfig()), **scratch, **recipes.SAMPLE[kind], "model": model}
        assert flat(config) == rest, "and nothing else"
    on_files = TrainConfig.from_dict({"model": "small", "data": "folder"})
    assert flat(on_files) == {**flat(TrainConfig()), **recipes.FROM_SCRATCH, "model": "small", "data": "folder"}


@pytest.mark.parametrize(("installed", "name"), [(None, "small"), ("somewhere", "minilm")])
def test_auto_model(monkeypatch, installed, name):
    monkeypatch.setattr(recipes, "bundled_minilm", lambda: installed)
    assert recipes.model_name("auto") == name
    assert recipes.model_name("a/b") == "a/b"
    kind = "small" if name == "small" else "pretrained"
    assert default_values("baseline", "sample", "auto")["epochs"] == recipes.SAMPLE[kind]["epochs"]


def test_recipes_compose_and_flags_win(monkeypatch):
    monkeypatch.setitem(RECIPES, "slow", {"learning_rate": 1e-6, "head_dropout": 0.3})
    assert recipe_values("dropout") == {"head_dropout": 0.15}
    assert recipe_values("slow+dropout") == {"learning_rate": 1e-6, "head_dropout": 0.15}
    assert recipe_values("dropout+slow") == {"learning_rate": 1e-6, "head_dropout": 0.3}
    given = {"recipe": "slow+dropout", "model": "small", "head_dropout": 0.5}
    config = TrainConfig.from_dict(given)
    # The recipe beats the defaults of random weights, the user beats the recipe.
    assert (config.learning_rate, config.head_dropout) == (1e-6, 0.5)


def test_unknown_recipe_lists_the_known():
    with pytest.raises(ValueError, match="'baseline.smartt', expected baseline, pretrain, cosine"):
        TrainConfig.from_dict({"recipe": "baseline+smartt"})
    with pytest.raises(ValueError, match="expected baseline, pretrain, cosine, smart"):
        TrainConfig(recipe="dropout+")


def test_unknown_key_lists_the_valid():
    with pytest.raises(ValueError, match="unknown keys epoch, lr; known: .*learning_rate"):
        TrainConfig.from_dict({"lr": 1e-3, "epoch": 3})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs is 0, expected an integer of at least 1"),
        ({"epochs": 1.5}, "epochs is 1.5, expected an integer"),
        ({"epochs": True}, "epochs is True, expected an integer"),
        ({"cycles": 0}, "cycles is 0, expected an integer of at least 1"),
        ({"batch_qqp": -1}, "batch_qqp is -1, expected an integer of at least 1"),
        ({"seed": -1}, "seed is -1, expected an integer from 0"),
        ({"seed": 2**63}, "expected an integer from 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0, expected a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": "3e-5"}, "learning_rate is '3e-5', expected a number"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"head_dropout": 1.0}, "head_dropout is 1.0, expected 0 <= head_dropout < 1"),
        ({"encoder_dropout": -0.1}, "encoder_dropout is -0.1"),
        ({"max_length": 4}, "max_length is 4, expected an integer of at least 5"),
        ({"precision": "fp16"}, "precision is 'fp16', expected one of fp32"),
        ({"pooling": "max"}, "pooling is 'max', expected one of auto, pooler, cls, mean"),
        ({"sst_head": "linear"}, "sst_head is 'linear'"),
        ({"fused": "yes"}, "fused is 'yes', expected true or false"),
        ({"data": ""}, "data is '', expected a name"),
        ({"output": 3}, "output is 3, expected a folder"),
        ({"sampler": "random"}, "sampler is 'random', expected one of round_robin, annealed_deterministic, annealed"),
        ({"cosine": "both"}, "cosine is 'both', expected one of none, fusion, direct"),
        ({"solo_steps": -1}, "solo_steps is -1, expected an integer of at least 0"),
        ({"smart.tasks": "sst+nli"}, "smart.tasks is 'sst.nli', expected none, all, or some of sst, qqp, sts joined"),
        ({"smart.tasks": ""}, "smart.tasks is ''"),
        ({"smart.weight": -1.0}, "smart.weight is -1.0, expected a number of at least 0"),
        ({"smart.update": "fgsm"}, "smart.update is 'fgsm', expected one of mtdnn, projected, paper"),
        ({"smart.norm": 2}, "smart.norm is 2, expected one of inf, 2, 1"),
        ({"smart.noise_std": 0.0}, "smart.noise_std is 0.0, expected a number above 0"),
        ({"smart.steps": 0}, "smart.steps is 0, expected an integer from 1 to 100"),
        ({"smart.share_dropout": 1}, "smart.share_dropout is 1, expected true or false"),
        ({"bregman.beta": 1.0}, "bregman.beta is 1.0, expected 0 <= beta < 1"),
        ({"bregman.early": 1.5}, "bregman.early is 1.5, expected a number from 0 to 1"),
        ({"bregman.inner_steps": 0}, "bregman.inner_steps is 0"),
        ({"pretrain.epochs": -1}, "pretrain.epochs is -1"),
        ({"pretrain.fraction": 1.5}, "pretrain.fraction is 1.5"),
    ],
)
def test_bad_values_name_the_field(values, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**nested(values))


def test_parts_are_given_as_mappings_or_with_dots():
    dotted = TrainConfig.from_dict({"model": "a/b", "recipe": "smart-bregman", "smart.weight": 5.0})
    mapped = TrainConfig.from_dict({"model": "a/b", "recipe": "smart-bregman", "smart": {"weight": 5.0}})
    assert dotted == mapped == TrainConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(dotted))))
    assert dotted.smart.weight == 5.0 and dotted.smart_tasks == ("sst",) and dotted.bregman_tasks == ("sst",)
    with pytest.raises(ValueError, match="unknown keys smart.wait; known: .*smart.weight"):
        TrainConfig.from_dict({"smart": {"wait": 1}})
    with pytest.raises(ValueError, match="smart is 'all', expected a mapping of its settings"):
        TrainConfig.from_dict({"smart": "all"})
    with pytest.raises(ValueError, match="smart is 3, expected a configuration"):
        TrainConfig(smart=3)


def test_recipes_are_the_papers_systems():
    """METHOD's table: every composed row is its parts, every part its own setting, nothing else."""
    alone = {
        "pretrain": {"pretrain.epochs": 5},
        "cosine": {"cosine": "fusion"},
        "smart": {"smart.tasks": "sst"},
        "dropout": {"head_dropout": 0.15},
        "stickland": {"sampler": "annealed_deterministic"},
        "smart-all": {"smart.tasks": "all"},
    }
    for name, values in alone.items():
        assert RECIPES[name] == values
    for name in RECIPES:
        if name not in (*alone, "baseline", "smart-adv", "smart-adv-bregman"):
            parts = [{"bregman.tasks": "sst"} if part == "bregman" else alone[part] for part in name.split("-")]
            assert RECIPES[name] == {key: value for part in parts for key, value in part.items()}
    assert recipe_values("pretrain+smart-bregman") == RECIPES["pretrain-smart-bregman"]
    smart = TrainConfig.from_dict({"data": "folder", "model": "a/b", "recipe": "smart"}).smart
    assert (smart.weight, smart.noise_std, smart.radius, smart.step_size, smart.steps) == (2.0, 1e-5, 1e-5, 1e-3, 1)
    assert (smart.update, smart.norm, smart.level, smart.perturb_at) == ("mtdnn", "inf", "token", "word_embeddings")


def test_task_names():
    assert [task_names(text) for text in ("none", "all", "sts+sst")] == [(), ("sst", "qqp", "sts"), ("sst", "sts")]


@pytest.mark.parametrize("kind", [TrainConfig, *PARTS.values()])
def test_every_field_has_a_text_for_help(kind):
    body = ast.parse(inspect.getsource(kind)).body[0].body
    documented = {
        node.target.id
        for node, following in zip(body, body[1:], strict=False)
        if isinstance(node, ast.AnnAssign) and isinstance(following, ast.Expr)
    }
    assert documented == {field.name for field in dataclasses.fields(kind)}


def test_the_text_of_recipe_lists_all_of_them():
    source = inspect.getsource(TrainConfig)
    assert all(re.search(rf"[ ,]{name}[,.]", source) for name in RECIPES)
    assert typing.get_type_hints(TrainConfig)["precision"] is not None
