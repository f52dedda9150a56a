"""Where the values of a configuration come from, and what is refused."""

import dataclasses
import typing

import pytest

from smartcs.training import recipes
from smartcs.training.recipes import RECIPES, TrainConfig, default_values, recipe_values


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
        assert recipes.SAMPLE[kind].items() <= dataclasses.asdict(config).items()
        assert config == TrainConfig(model=model, **recipes.SAMPLE[kind]), "and nothing else"
    on_files = TrainConfig.from_dict({"model": "small", "data": "folder"})
    assert on_files == TrainConfig(model="small", data="folder", **recipes.FROM_SCRATCH)


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
    with pytest.raises(ValueError, match="'baseline.smartt', expected baseline, dropout"):
        TrainConfig.from_dict({"recipe": "baseline+smartt"})
    with pytest.raises(ValueError, match="expected baseline, dropout"):
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
    ],
)
def test_bad_values_name_the_field(values, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**values)


def test_every_field_has_a_text_for_help():
    import ast
    import inspect

    body = ast.parse(inspect.getsource(TrainConfig)).body[0].body
    documented = {
        node.target.id
        for node, following in zip(body, body[1:], strict=False)
        if isinstance(node, ast.AnnAssign) and isinstance(following, ast.Expr)
    }
    assert documented == {field.name for field in dataclasses.fields(TrainConfig)}
    source = inspect.getsource(TrainConfig)
    assert all(name in source for name in RECIPES), "--recipe's text lists the recipes"
    assert typing.get_type_hints(TrainConfig)["precision"] is not None
