"""Every system of the paper learns the sample: a short run ends above the score it began with."""

import io
import json

import pytest
from rich.console import Console

from smartcs.training.config import TrainConfig
from smartcs.training.evaluation import evaluate
from smartcs.training.recipes import RECIPES
from smartcs.training.run import train
from smartcs.training.setup import build_model, encode_split, load_data


@pytest.fixture(scope="module")
def dev():
    return load_data("sample").dev


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_learns_the_sample(recipe, dev, tmp_path):
    config = TrainConfig.from_dict(
        {
            "recipe": recipe,
            "model": "small",
            "output": tmp_path / "run",
            "epochs": 1,
            "cycles": 40,
            "pretrain.epochs": 1 if "pretrain" in recipe else 0,
            "pretrain.cycles": 5,
            "report": False,
        }
    )
    model = build_model(config)
    untrained = evaluate(model, encode_split(model, dev, 512)).figures["score"]
    metrics = train(config, Console(file=io.StringIO())).metrics
    assert metrics["score"] > untrained + 0.02
    assert metrics == json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["pretrain"] is not None) == ("pretrain" in recipe)
    assert (metrics["smart"] is not None) == ("smart" in recipe)
    assert (metrics["bregman"] is not None) == ("bregman" in recipe)
