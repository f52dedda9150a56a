"""The commands: flags, exit codes, one line per error, what they print."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import smartcs
from smartcs.train import parse
from smartcs.training.config import TrainConfig

CONTRACT = ["fused", "recipe", "data", "model", "output", "precision", "epochs", "cycles", "seed"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory, data_folder, encoder_folder) -> Path:
    """A short run's folder; not to be changed."""
    from rich.console import Console

    from smartcs.training.run import train

    values = {"data": data_folder, "model": str(encoder_folder), "epochs": 1, "cycles": 4, "batch_qqp": 8}
    output = tmp_path_factory.mktemp("finished") / "run"
    return train(TrainConfig.from_dict({**values, "output": output}), Console(quiet=True)).folder


def flags(config) -> list[str]:
    names = ("data", "model", "output", "epochs", "cycles", "batch_qqp", "learning_rate")
    return [f"--{name.replace('_', '-')}={getattr(config, name)}" for name in names]


def error_line(stderr: str) -> str:
    assert stderr.startswith("error: ") and stderr.count("\n") == 1 and "Traceback" not in stderr, stderr
    return stderr.removeprefix("error: ").strip()


def test_train_help(command):
    code, out, _ = command("train", "--help")
    assert code == 0
    for flag in CONTRACT:
        assert re.search(rf"--{flag}\b", out), flag
    assert "--no-fused" in out and "3e-05" in out and "11711" in out
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_other_help(command, name):
    code, out, _ = command(name, "--help")
    assert code == 0 and "RUN_DIR" in out and "--data" in out and "--no-fused" in out
    assert max(map(len, out.splitlines())) <= 100


def test_flags_reach_the_config():
    values = {
        "recipe": "dropout",
        "data": "d",
        "model": "a/b",
        "output": "o",
        "precision": "fp32",
        "epochs": 3,
        "cycles": 7,
        "seed": 1,
        "learning_rate": 1e-5,
        "batch_sst": 1,
        "batch_qqp": 2,
        "batch_sts": 3,
        "encoder_dropout": 0.2,
        "pooling": "mean",
        "sst_head": "relu_logits",
        "max_length": 99,
        "weight_decay": 0.1,
        "eval_batch_size": 9,
    }
    typed = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    config = parse(["--no-fused", "--overwrite", "--strict-data", *typed]).config
    assert config == TrainConfig(fused=False, overwrite=True, strict_data=True, head_dropout=0.15, **values)


def test_a_flag_beats_recipe_and_sample():
    assert parse(["--recipe", "dropout", "--head-dropout", "0"]).config.head_dropout == 0.0
    assert parse(["--recipe", "dropout"]).config.head_dropout == 0.15
    small = TrainConfig.from_dict({"model": "small"})
    assert parse(["--model", "small"]).config == small
    # Also where the flag says what the paper's default is.
    assert parse(["--model", "small", "--learning-rate", "3e-5"]).config.learning_rate == 3e-5
    assert parse(["--fused"]).config.fused and parse([]).config.fused


def test_train_writes_a_run(command, config):
    settings = config()
    code, out, err = command("train", "--fused", *flags(settings))
    assert (code, err) == (0, "")
    assert "fused ops, recipe baseline, 1 epoch of 8 cycles" in out
    assert "majority class" in out and f"results: {settings.output}" in out
    metrics = json.loads((Path(settings.output) / "metrics.json").read_text())
    assert metrics["config"]["fused"] is True and metrics["steps"] == 24
    code, _, err = command("train", *flags(settings))
    assert code == 2 and "already holds a run" in error_line(err)
    code, out, _ = command("train", "--no-fused", "--overwrite", *flags(settings))
    assert code == 0 and "reference ops" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere: found nothing there"),
        (["--model", "./nowhere"], "no folder"),
        (["--epochs", "0"], "epochs is 0, expected an integer of at least 1"),
        (["--recipe", "bassline"], "recipe is 'bassline', expected baseline, pretrain"),
        (["--head-dropout", "1.5"], "--head-dropout is 1.5"),
        (["--batch-sst", "0"], "--batch-sst is 0, expected an integer of at least 1"),
        (["--output", "x" * 300], "cannot be written (File name too long)"),
    ],
)
def test_user_errors_are_one_line(command, tmp_path, arguments, message):
    code, _, err = command("train", "--output", tmp_path / "run", "--model", "small", *arguments)
    assert code == 2 and message in error_line(err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [["--epoch", "3"], ["--epochs", "three"], ["--precision", "fp64"]])
def test_what_cannot_be_parsed(command, arguments):
    code, _, err = command("train", *arguments)
    assert code == 2 and "Traceback" not in err and arguments[0] in err


def test_disk_error_is_one_line(command, config, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr(smartcs.MultitaskBert, "save_pretrained", full)
    settings = config()
    code, _, err = command("train", *flags(settings))
    assert code == 1 and "No space left on device" in error_line(err)
    assert len((Path(settings.output) / "losses.csv").read_text().splitlines()) == 25


def test_divergence_is_one_line(command, config):
    code, _, err = command("train", *flags(config(learning_rate=1e30, cycles=20)))
    assert code == 1 and re.search(
        r"the \w+ loss is (nan|inf) at step \d+ \(epoch 1\) on the examples", error_line(err)
    )


def test_ctrl_c(config):
    """A real process, a real signal."""
    settings = config(epochs=500)
    process = subprocess.Popen(
        [sys.executable, "-m", "smartcs.train", *flags(settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    losses = Path(settings.output) / "losses.csv"
    deadline = time.monotonic() + 60
    while not (losses.is_file() and losses.read_text().count("\n") > 4):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "stopped by SIGINT after step" in output and "Traceback" not in output
    metrics = json.loads((Path(settings.output) / "metrics.json").read_text())
    assert metrics["interrupted"] is True and metrics["steps"] == losses.read_text().count("\n") - 1
    assert smartcs.MultitaskBert.from_pretrained(settings.output).embed(["fine"]).shape == (1, 32)


def test_evaluate(command, finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    code, out, err = command("evaluate", finished, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    for key in ("sst_accuracy", "qqp_accuracy", "sts_pearson", "score"):
        assert result[key] == pytest.approx(metrics[key], abs=1e-6)
        assert result["majority"][key] == metrics["dev"]["majority"][key]
    code, out, _ = command("evaluate", finished)
    assert code == 0 and f"{metrics['score']:.3f}" in out and "majority class" in out
    code, out, _ = command("evaluate", finished, "--split", "test", "--no-fused", "--json")
    assert json.loads(out)["sts_pearson"] == pytest.approx(metrics["test"]["sts_pearson"], abs=1e-4)


def test_evaluate_on_other_data(command, finished):
    code, out, _ = command("evaluate", finished, "--data", "sample", "--json")
    assert code == 0 and json.loads(out)["examples"] == {"sst": 400, "qqp": 600, "sts": 400}


def test_evaluate_errors(command, finished, data_folder, encoder_folder, tmp_path):
    for arguments, message in (
        ([tmp_path], "no config.json"),
        (["nothing"], "no folder 'nothing': expected the output folder"),
        ([encoder_folder], "without task heads"),
        ([finished, "--data", tmp_path], "missing ids-sst-train.csv"),
        ([finished, "--batch-size", "0"], "--batch-size is 0, expected at least 1"),
    ):
        code, _, err = command("evaluate", *arguments)
        assert code == 2 and message in error_line(err)
    unlabelled = tmp_path / "unlabelled"
    unlabelled.mkdir()
    for file in data_folder.iterdir():
        lines = file.read_text().splitlines()
        if "test" in file.name:
            lines = [line.rpartition("\t")[0] for line in lines]
        (unlabelled / file.name).write_text("\n".join(lines) + "\n")
    code, _, err = command("evaluate", finished, "--data", unlabelled, "--split", "test")
    assert code == 2 and "the test split has no labels for sst, qqp, sts" in error_line(err)
    assert command("predict", finished, "--data", unlabelled, "--output", tmp_path / "out")[0] == 0
    assert len(list((tmp_path / "out").iterdir())) == 6


def test_weights_without_a_run_need_data(command, finished, tmp_path):
    smartcs.MultitaskBert.from_pretrained(finished).save_pretrained(tmp_path)
    code, _, err = command("evaluate", tmp_path)
    assert code == 2 and "pass --data" in error_line(err)
    assert command("evaluate", tmp_path, "--data", "sample")[0] == 0


def test_predict_writes_the_same_files_as_training(command, finished, tmp_path):
    code, out, err = command("predict", finished, "--output", tmp_path / "out")
    assert (code, err) == (0, "")
    written = sorted((finished / "predictions").iterdir())
    assert len(written) == 6 == len(out.splitlines())
    for path in written:
        ours, trained = ((folder / path.name).read_text() for folder in (tmp_path / "out", finished / "predictions"))
        if path.name.startswith("sts"):
            values = [[float(line.split(" , ")[1]) for line in text.splitlines()[1:]] for text in (ours, trained)]
            np.testing.assert_allclose(*values, rtol=1e-5)
        else:
            assert ours == trained
    code, _, err = command("predict", finished)
    assert code == 2 and "already holds sst-dev-output.csv" in err and "the run's own predictions" in error_line(err)
    assert command("predict", finished, "--output", tmp_path / "out", "--overwrite")[0] == 0


def test_predict_text(command, finished):
    model = smartcs.MultitaskBert.from_pretrained(finished)
    code, out, _ = command("predict", finished, "--task", "sst", stdin="\ufeffA fine film.\n  A\tdull film.  \r\n")
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and [row[3] for row in rows] == ["A fine film.", "A dull film."]
    expected = model.sentiment(["A fine film.", "A dull film."])
    assert [int(row[0]) for row in rows] == expected.argmax(-1).tolist()
    np.testing.assert_allclose([float(row[2]) for row in rows], expected.amax(-1).numpy(), atol=6e-4)

    pairs = [("a boat", "a ship"), ("a dog", "a house")]
    _, out, _ = command("predict", finished, "--task", "qqp", stdin="a boat\ta ship\na dog\ta house\n")
    rows = [line.split("\t") for line in out.splitlines()]
    assert [(row[2], row[3]) for row in rows] == pairs
    expected = model.paraphrase(pairs)
    np.testing.assert_allclose([float(row[1]) for row in rows], expected.numpy(), atol=6e-4)
    assert [row[0] for row in rows] == [str(int(value > 0.5)) for value in expected]

    _, out, _ = command("predict", finished, "--task", "sts", "--text", "a boat", "a ship", "a dog", "a house")
    rows = [line.split("\t") for line in out.splitlines()]
    np.testing.assert_allclose([float(row[0]) for row in rows], model.similarity(pairs).numpy(), atol=6e-4)


def test_predict_text_errors(command, finished):
    for arguments, stdin, message in (
        (["--task", "qqp"], "a\tb\nonly one\n", "line 2: got 1 tab-separated sentences, expected two"),
        (["--task", "sts"], "a\t\n", "line 1: got 1 tab-separated"),
        (["--task", "sst"], "a\n \nb\n", "line 2: blank, expected a sentence"),
        (["--task", "sst"], b"a\n\xff\n", "line 2: not UTF-8 (invalid start byte at byte 1 of it)"),
        (["--task", "sst", "--text", "a", " "], "", "--text: sentence 2 is empty"),
        (["--task", "sts", "--text", "a", "b", "c"], "", "--text has 3 sentences, expected pairs"),
        (["--text", "a"], "", "--text needs --task"),
        (["--task", "sst", "--output", "x"], "", "are for prediction files"),
    ):
        code, _, err = command("predict", finished, *arguments, stdin=stdin)
        assert code == 2 and message in error_line(err)


def test_predict_answers_the_lines_before_a_bad_one(command, finished):
    code, out, err = command("predict", finished, "--task", "sst", stdin="one\ntwo\n\nthree\n")
    assert code == 2 and [line.split("\t")[3] for line in out.splitlines()] == ["one", "two"]
    assert "line 3: blank" in error_line(err)


def test_predict_says_what_it_cuts(command, finished):
    code, out, err = command("predict", finished, "--task", "sst", stdin="short\n" + "the " * 80 + "\n")
    assert code == 0 and len(out.splitlines()) == 2
    assert err == "line 2: 82 word pieces, cut to the model's 64\n"


@pytest.fixture
def flawed(data_folder, tmp_path) -> Path:
    """The data with a malformed row in quora-dev.csv and an overlong one in ids-sst-dev.csv."""
    folder = tmp_path / "flawed"
    folder.mkdir()
    for file in data_folder.iterdir():
        (folder / file.name).write_text(file.read_text())
    with open(folder / "quora-dev.csv", "a") as file:
        file.write("24\tbroken\tonly one sentence\n")
    with open(folder / "ids-sst-dev.csv", "a") as file:
        file.write(f"24\tlong\t{'the ' * 80}\t2\n")
    return folder


def test_evaluate_reports_what_it_left_out(command, finished, flawed):
    code, out, err = command("evaluate", finished, "--data", flawed, "--json")
    assert code == 0 and "skipped 1 malformed row:" in err and "quora-dev.csv, line 26: 3 columns" in err
    assert "truncated 1: " in err and "ids-sst-dev.csv, line 26 (82 word pieces)" in err
    result = json.loads(out)
    assert result["skipped"] == {"sst": 0, "qqp": 1, "sts": 0}
    assert result["truncated"] == {"sst": 1, "qqp": 0, "sts": 0}
    code, _, err = command("evaluate", finished, "--data", flawed, "--strict-data")
    assert code == 2 and "quora-dev.csv, line 26" in error_line(err)
    lines = (flawed / "quora-dev.csv").read_text().splitlines(keepends=True)
    (flawed / "quora-dev.csv").write_text("".join(lines[:-1]))
    code, _, err = command("evaluate", finished, "--data", flawed, "--strict-data")
    assert code == 2 and "ids-sst-dev.csv, line 26 (82 word pieces)" in error_line(err)


def test_predict_on_other_data_has_its_own_folder(command, finished, flawed):
    before = {path: path.read_bytes() for path in (finished / "predictions").iterdir()}
    code, _, err = command("predict", finished, "--data", flawed, "--overwrite")
    target = finished / "predictions-flawed"
    assert code == 0 and "quora-dev.csv, line 26" in err
    assert f"para-dev-output.csv lacks 1 of the 25 rows of {flawed / 'quora-dev.csv'}" in err
    assert len((target / "para-dev-output.csv").read_text().splitlines()) == 1 + 24
    assert before == {path: path.read_bytes() for path in (finished / "predictions").iterdir()}
    code, _, err = command("predict", finished, "--data", flawed, "--output", target.with_name("x"), "--strict-data")
    assert code == 2 and "quora-dev.csv, line 26" in error_line(err) and not target.with_name("x").exists()
