"""``python -m smartcs.pretrain``: its flags and errors, and a checkpoint that others can go on from."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer
from transformers import BertModel as TransformersBert

import smartcs
from smartcs.model.tokenizer import load_tokenizer
from smartcs.pretrain import parse
from smartcs.train import parse as parse_train
from smartcs.training.config import TrainConfig
from smartcs.training.pretrain_config import PretrainConfig
from smartcs.training.pretrain_run import pretrain_run


@pytest.fixture
def flags(data_folder, encoder_folder, tmp_path) -> list[str]:
    """A short run into the folder "pre"."""
    values = {"data": data_folder, "model": encoder_folder, "output": tmp_path / "pre", "epochs": 2, "cycles": 3}
    values |= {"learning-rate": 1e-3, "batch-qqp": 8}
    return [f"--{name}={value}" for name, value in values.items()]


def error_line(stderr: str) -> str:
    assert stderr.startswith("error: ") and stderr.count("\n") == 1 and "Traceback" not in stderr, stderr
    return stderr.removeprefix("error: ").strip()


def test_help(command):
    code, out, _ = command("pretrain", "--help")
    assert code == 0 and "--no-fused" in out and "--no-dropout" in out
    for name in ("data", "model", "output", "epochs", "cycles", "learning-rate", "mask", "mask-fraction", "head"):
        assert re.search(rf"--{name}\b", out), name
    assert max(map(len, out.splitlines())) <= 100


def test_flags_reach_the_settings():
    typed = "--mask mask --mask-fraction 0.15 --tasks sst --dropout --head embeddings --epochs 3 --cycles 7"
    typed += " --learning-rate 2e-5 --no-fused --data d --model m --output o --overwrite --seed 4 --batch-sst 1"
    typed += " --batch-qqp 2 --batch-sts 3 --eval-batch-size 5 --pooling cls --max-length 99 --strict-data"
    assert parse(typed.split()) == TrainConfig(
        recipe="pretrain",
        pretrain=PretrainConfig(3, 7, 2e-5, "mask", 0.15, "sst", True, "embeddings"),
        **{"fused": False, "data": "d", "model": "m", "output": "o", "overwrite": True, "seed": 4, "batch_sst": 1},
        **{"batch_qqp": 2, "batch_sts": 3, "eval_batch_size": 5, "pooling": "cls", "max_length": 99},
        strict_data=True,
    )


def test_defaults_are_the_papers_and_the_recipes():
    config = parse(["--data", "d", "--model", "m"])
    assert config.pretrain == PretrainConfig(epochs=5) and config.pretrain.learning_rate == 1e-5
    assert config.batch_sizes == {"sst": 6, "qqp": 40, "sts": 4}
    # On the sample they are those of the train command's recipe, for longer, and the checkpoint keeps its dropout.
    recipe = TrainConfig.from_dict({"recipe": "pretrain", "model": "small"})
    assert recipe.encoder_dropout == 0.0
    sample = parse(["--model", "small"])
    assert sample.pretrain == replace(recipe.pretrain, cycles=4 * recipe.pretrain.cycles)
    assert sample.batch_sizes == recipe.batch_sizes
    assert sample.encoder_dropout is None


def test_a_run(command, flags, tmp_path, encoder_folder, data_folder):
    folder = tmp_path / "pre"
    code, out, err = command("pretrain", *flags)
    assert (code, err) == (0, "")
    assert "one token per sequence hidden (80/10/10)" in out and "fused ops" in out
    assert re.search(r"pretraining epoch 2/2: dev loss \d\.\d+  accuracy 0\.\d+", out)
    assert f"fine-tune it: python -m smartcs.train --model {folder} --data {data_folder}\n" in out

    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["finished"] and not metrics["interrupted"] and metrics["steps"] == 18
    assert metrics["mlm_loss"] == metrics["epochs"][1]["mlm_loss"]
    assert metrics["config"]["pretrain"]["epochs"] == 2 and metrics["config"]["batch_qqp"] == 8
    assert "recipe" not in metrics["config"] and metrics["environment"]["versions"]["torch"] == torch.__version__
    with open(folder / "losses.csv", newline="") as file:
        losses = list(csv.DictReader(file))
    assert [int(row["step"]) for row in losses] == list(range(1, 19))
    assert [row["task"] for row in losses[:4]] == ["sst", "qqp", "sts", "sst"]
    assert sum(int(row["tokens"]) for row in losses) == metrics["tokens"]
    assert not (folder / "train_config.json").exists()

    old = smartcs.BertModel.from_pretrained(encoder_folder)
    new = smartcs.BertModel.from_pretrained(folder)
    assert new.config == old.config and new.config.pooling == "mean"
    assert not torch.equal(new.embeddings.word.weight, old.embeddings.word.weight)
    assert torch.equal(new.pooler.weight, old.pooler.weight)


def test_a_small_model_keeps_its_settings_for_fine_tuning(command, tmp_path):
    run = ["--model", "small", "--epochs", "1", "--cycles", "1", "--output", tmp_path / "a folder"]
    _, out, _ = command("pretrain", *run)
    typed = re.search("fine-tune it: python -m smartcs.train (.*)", out)[1]
    config, small = parse_train(shlex.split(typed)).config, TrainConfig.from_dict({"model": "small"})
    assert config.model == str(tmp_path / "a folder")
    assert replace(config, model="small", pretrain=small.pretrain) == small


def test_transformers_reads_it(command, flags, tmp_path):
    assert command("pretrain", *flags)[0] == 0
    sentence = "The meal was awful."
    theirs = TransformersBert.from_pretrained(tmp_path / "pre", attn_implementation="eager").eval()
    tokens = AutoTokenizer.from_pretrained(tmp_path / "pre")(sentence, return_tensors="pt")
    ids = load_tokenizer(tmp_path / "pre").encode(sentence).ids
    assert tokens["input_ids"][0].tolist() == ids
    ours = smartcs.BertModel.from_pretrained(tmp_path / "pre")
    with torch.inference_mode():
        states = ours(smartcs.PackedBatch.from_lists([ids])).last_hidden_state
        torch.testing.assert_close(states, theirs(**tokens).last_hidden_state[0], rtol=1e-4, atol=1e-5)


def test_fine_tuning_starts_from_it(command, flags, tmp_path, data_folder, monkeypatch):
    assert command("pretrain", *flags)[0] == 0
    pretrained, started = smartcs.BertModel.from_pretrained(tmp_path / "pre").state_dict(), []
    take_steps = smartcs.training.trainer.Trainer.epoch

    def watch(trainer):
        started.append({name: value.clone() for name, value in trainer.model.bert.state_dict().items()})
        return take_steps(trainer)

    monkeypatch.setattr(smartcs.training.trainer.Trainer, "epoch", watch)
    run = ["--output", tmp_path / "fine", "--data", data_folder, "--epochs", "1", "--cycles", "1", "--no-report"]
    assert command("train", "--model", tmp_path / "pre", *run)[0] == 0
    assert all(torch.equal(value, pretrained[name]) for name, value in started[0].items())


def test_the_folder_of_an_earlier_run(command, flags, tmp_path):
    assert command("pretrain", *flags, "--tasks", "sst")[0] == 0
    code, _, err = command("pretrain", *flags)
    assert code == 2 and "already holds a run (metrics.json, losses.csv)" in error_line(err)
    code, out, _ = command("pretrain", *flags, "--overwrite", "--no-fused")
    assert code == 0 and "reference ops" in out
    metrics = json.loads((tmp_path / "pre" / "metrics.json").read_text())
    assert metrics["config"]["pretrain"]["tasks"] == "all" and metrics["config"]["fused"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere: found nothing there"),
        (["--model", "./nowhere"], "no folder"),
        (["--epochs", "0"], "--epochs is 0, expected an integer of at least 1"),
        (["--epochs", "-1"], "--epochs is -1, expected an integer of at least 0"),
        (["--cycles", "0"], "--cycles is 0, expected an integer of at least 1"),
        (["--mask-fraction", "2"], "--mask-fraction is 2.0, expected a number above 0 and at most 1"),
        (["--tasks", "all+sst"], "--tasks is 'all+sst', expected all, or some of sst, qqp, sts joined by +"),
        (["--batch-sst", "0"], "--batch-sst is 0, expected an integer of at least 1"),
        (["--model", ""], "--model is '', expected a name"),
        (["--output", "x" * 300], "cannot be written (File name too long)"),
    ],
)
def test_user_errors_are_one_line(command, flags, tmp_path, arguments, message):
    code, _, err = command("pretrain", *flags, *arguments)
    assert code == 2 and message in error_line(err)
    assert not (tmp_path / "pre").exists()


@pytest.mark.parametrize("arguments", [["--mask", "half"], ["--head", "tied"], ["--strategy", "bert"]])
def test_what_cannot_be_parsed(command, arguments):
    code, _, err = command("pretrain", *arguments)
    assert code == 2 and "Traceback" not in err and arguments[0] in err


def test_divergence(command, flags, tmp_path):
    code, _, err = command("pretrain", *flags, "--learning-rate", "1e30", "--max-skipped-steps", "1")
    assert code == 1 and re.search(
        r"in pretraining, the \w+ loss is (nan|inf) at step \d+ \(epoch 1\)", error_line(err)
    )
    metrics = json.loads((tmp_path / "pre" / "metrics.json").read_text())
    assert metrics["diverged"] and metrics["finished"] and not (tmp_path / "pre" / "model.safetensors").exists()


def test_no_dropout_by_default(config, tmp_path):
    """With the checkpoint's dropout, not with that of fine-tuning; it stays in the checkpoint either way."""
    curves = []
    for dropout in (False, True):
        settings = PretrainConfig(epochs=1, cycles=2, dropout=dropout)
        folder = str(tmp_path / str(dropout))
        pretrain_run(replace(config(encoder_dropout=0.3), pretrain=settings, output=folder), Console(quiet=True))
        assert smartcs.BertModel.from_pretrained(folder).config.hidden_dropout_prob == 0.3
        curves.append((Path(folder) / "losses.csv").read_text())
    assert curves[0] != curves[1]


def test_the_callers_state_is_left_alone(config, tmp_path):
    settings = replace(config(fused=False), pretrain=PretrainConfig(epochs=1, cycles=1))
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with smartcs.backend("fused"):
        pretrain_run(settings, Console(quiet=True))
        assert smartcs.get_backend() == "fused"
    assert torch.equal(torch.rand(3), expected)


def test_ctrl_c(flags, tmp_path):
    """A real process, a real signal."""
    process = subprocess.Popen(
        [sys.executable, "-m", "smartcs.pretrain", *flags, "--epochs=500", "--cycles=500"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    losses = tmp_path / "pre" / "losses.csv"
    deadline = time.monotonic() + 60
    while not (losses.is_file() and losses.read_text().count("\n") > 4):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert re.search(r"stopped by SIGINT after step \d+ of 750000: the weights of this step are in", output)
    assert "fine-tune it: " in output and "Traceback" not in output
    metrics = json.loads((tmp_path / "pre" / "metrics.json").read_text())
    assert metrics["interrupted"] and metrics["steps"] == losses.read_text().count("\n") - 1
    assert smartcs.BertModel.from_pretrained(tmp_path / "pre").config.hidden_size == 32
