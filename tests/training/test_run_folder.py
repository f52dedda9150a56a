"""Which folder a run may use, and what is written there."""

import json
import math

import pytest

from smartcs.model.files import CheckpointError
from smartcs.training.commandline import UsageError
from smartcs.training.config import TrainConfig
from smartcs.training.run_folder import LossLog, choose_folder, read_config, start_folder, write_metrics
from smartcs.training.setup import load_data
from smartcs.training.steps import Step


def test_without_output_the_next_free_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(choose_folder(None, False)) == "runs/train"
    (tmp_path / "runs/train").mkdir(parents=True)
    (tmp_path / "runs/train-2").mkdir()
    assert str(choose_folder(None, False)) == "runs/train-3"
    assert sorted(entry.name for entry in (tmp_path / "runs").iterdir()) == ["train", "train-2"]


def test_a_folder_with_a_run_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    assert choose_folder(str(tmp_path), False) == tmp_path
    (tmp_path / "losses.csv").touch()
    with pytest.raises(FileExistsError, match=r"already holds a run \(losses.csv\): pass --overwrite"):
        choose_folder(str(tmp_path), False)
    assert choose_folder(str(tmp_path), True) == tmp_path


def test_a_file_or_a_folder_inside_a_file_is_refused(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for output in (file, file / "run"):
        with pytest.raises(FileExistsError, match="is a file, expected a folder"):
            choose_folder(str(output), True)


def test_no_permission(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(PermissionError, match="no permission to write in"):
        choose_folder(str(tmp_path / "a/b"), False)


def test_start_removes_the_earlier_run_and_nothing_else(tmp_path):
    old = ["metrics.json", "losses.csv", "heads.safetensors", "model.safetensors", "predictions/sst-test-output.csv"]
    (tmp_path / "predictions").mkdir()
    for name in (*old, "notes.txt", "predictions/mine.csv"):
        (tmp_path / name).touch()
    start_folder(tmp_path, TrainConfig(epochs=3))
    assert not any((tmp_path / name).exists() for name in old)
    assert (tmp_path / "notes.txt").exists() and (tmp_path / "predictions/mine.csv").exists()
    assert read_config(tmp_path) == TrainConfig(epochs=3)


def test_config_finds_its_data_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start_folder(tmp_path / "run", TrainConfig(data="my/data"))
    assert read_config(tmp_path / "run").data == str(tmp_path / "my/data")
    start_folder(tmp_path / "other", TrainConfig())
    assert read_config(tmp_path / "other").data == "sample"


def test_a_damaged_config_is_named(tmp_path):
    assert read_config(tmp_path) is None
    (tmp_path / "train_config.json").write_text('{"epoch": 3}')
    with pytest.raises(CheckpointError, match=r"train_config.json: .*unknown keys epoch"):
        read_config(tmp_path)


def test_metrics_are_json(tmp_path):
    write_metrics(tmp_path, {"score": math.nan, "list": [1.5, math.inf], "in": {"x": -math.inf, "n": 3}})
    text = (tmp_path / "metrics.json").read_text()
    assert json.loads(text) == {"score": None, "list": [1.5, None], "in": {"x": None, "n": 3}}
    assert text.index('"score"') < text.index('"list"'), "the order is that of the caller"


def test_losses_are_on_disk_after_every_cycle_and_exact(tmp_path):
    value = 0.1 + 2**-20
    with LossLog(tmp_path, tasks=3) as log:
        for step in range(1, 8):
            log.add(Step(step, 1, 1, "sst", value, 11, 0.1))
        assert len((tmp_path / "losses.csv").read_text().splitlines()) == 1 + 6
    lines = (tmp_path / "losses.csv").read_text().splitlines()
    assert lines[0] == "step,epoch,task,loss,tokens,smart,alignment,perturbation,bregman,skipped" and len(lines) == 8
    assert lines[7].startswith("7,1,sst,0.10000095") and lines[7].endswith(",11,,,,,")


def test_losses_of_regularisers_are_logged(tmp_path):
    with LossLog(tmp_path, tasks=3) as log:
        log.add(Step(1, 1, 1, "sst", 0.5, 11, 0.1, smart=2e-9, alignment=0.25, perturbation=1.0, bregman=0.0))
    assert (tmp_path / "losses.csv").read_text().splitlines()[1] == "1,1,sst,0.5,11,2e-09,0.25,1,0,"


def test_a_folder_that_cannot_be_made_is_refused_and_a_good_one_not_left(tmp_path):
    with pytest.raises(UsageError, match=r"cannot be written \(File name too long\)"):
        choose_folder(str(tmp_path / "a" / ("x" * 300)), False)
    choose_folder(str(tmp_path / "b/c"), False)
    assert list(tmp_path.iterdir()) == []


def test_home_is_expanded(tmp_path, monkeypatch, data_folder):
    monkeypatch.setenv("HOME", str(data_folder.parent))
    data = f"~/{data_folder.name}"
    assert load_data(data).source == str(data_folder)
    start_folder(tmp_path, TrainConfig(data=data))
    assert read_config(tmp_path).data == str(data_folder)
