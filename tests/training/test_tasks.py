"""Training on some of the tasks: what is read, trained, written and chosen by."""

import json

import pytest

from smartcs.training import run as run_module
from smartcs.training.config import TrainConfig
from smartcs.training.evaluation import evaluate
from smartcs.training.metrics import best_by, score
from smartcs.training.setup import load_data


@pytest.fixture
def two(config):
    """A configuration that trains on SST and STS."""
    return lambda **values: config(tasks="sts+sst", cycles=4, **values)


def test_only_these_tasks_are_read_trained_and_written(two, quiet_train, command):
    settings = two(recipe="pretrain+smart-all", **{"pretrain.epochs": 1, "pretrain.cycles": 1, "report": True})
    assert settings.trained_tasks == settings.smart_tasks == settings.pretrain_tasks == ("sst", "sts")
    assert settings.batch_sizes == {"sst": 6, "sts": 4} and settings.bregman_tasks == ()
    result = quiet_train(settings)
    metrics = json.loads((result.folder / "metrics.json").read_text())
    assert metrics["steps"] == 8 and metrics["pretrain"]["steps"] == 2
    assert metrics["qqp_accuracy"] is None and metrics["score"] is None
    assert isinstance(metrics["sst_accuracy"], float) and isinstance(metrics["sts_pearson"], float)
    assert set(metrics["dev"]["majority"]) == {"sst_accuracy", "sts_pearson"}
    assert set(metrics["data"]["examples"]["train"]) == set(metrics["smart"]) == {"sst", "sts"}
    written = {path.name.split("-")[0] for path in (result.folder / "predictions").iterdir()}
    assert written == {"sst", "sts"} and (result.folder / "report.html").is_file()
    code, out, err = command("evaluate", result.folder)
    assert (code, err) == (0, "") and "STS Pearson" in out and "QQP" not in out
    code, out, _ = command("predict", result.folder, "--overwrite")
    assert code == 0 and len(out.splitlines()) == 4


def test_the_best_epoch_without_a_score(two, quiet_train, monkeypatch):
    """The mean of the score's terms decides: the second epoch has the best SST figure, the third the best mean."""
    figures = iter([(0.4, 0.1), (0.5, -0.3), (0.45, 0.1), (0.4, 0.1)])

    def scored(model, split, *arguments):
        result = evaluate(model, split, *arguments)
        result.figures["sst_accuracy"], result.figures["sts_pearson"] = next(figures)
        return result

    monkeypatch.setattr(run_module, "evaluate", scored)
    metrics = quiet_train(two(epochs=3)).metrics
    assert metrics["best_epoch"] == 3 and metrics["sst_accuracy"] == 0.45


def test_with_all_tasks_it_is_the_score():
    figures = {"sst_accuracy": 0.5, "qqp_accuracy": 0.8, "sts_pearson": 0.6}
    assert best_by({**figures, "score": 0.1}) == 0.1
    assert best_by(figures) == pytest.approx(score(figures))
    assert best_by({"sts_pearson": 0.6}) == pytest.approx(0.8)


def test_a_folder_of_some_tasks(data_folder):
    part = load_data(str(data_folder), tasks=("sst", "sts"))
    assert [list(split) for split in (part.train, part.dev, part.test)] == [["sst", "sts"]] * 3
    assert "qqp" not in part.describe()
    assert len(part.train["sst"]) == len(load_data(str(data_folder)).train["sst"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tasks": "none"}, "tasks is 'none', expected all, or some of sst, qqp, sts"),
        ({"tasks": "sst+nli"}, "tasks is 'sst.nli'"),
        ({"tasks": "sts", "recipe": "smart"}, "smart.tasks is 'sst', expected some of the tasks that are trained, sts"),
        ({"tasks": "sts", "bregman.tasks": "qqp"}, "bregman.tasks is 'qqp', expected some of the tasks that"),
        ({"tasks": "sts", "pretrain.tasks": "sst"}, "pretrain.tasks is 'sst', expected some of the tasks that"),
    ],
)
def test_refused(values, message):
    with pytest.raises(ValueError, match=f"TrainConfig: {message}"):
        TrainConfig.from_dict(values)


def test_a_task_that_was_not_trained_is_not_predicted(command, config, quiet_train, tmp_path):
    quiet_train(config(tasks="sst", cycles=1))
    code, _, err = command("predict", tmp_path / "run", "--task", "qqp", "--text", "rain", "rain")
    assert code == 2 and "was trained on sst, not on qqp" in err
    code, out, _ = command("predict", tmp_path / "run", "--task", "sst", "--text", "rain")
    assert code == 0 and out
