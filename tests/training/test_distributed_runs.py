"""Whole runs by torchrun: the files of one process, whatever their number, also after a resumption."""

import csv
import json
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from op_harness import threads
from training.torchrun import LIMIT, environment, launch, torchrun

from smartcs.model.bert import BertConfig
from smartcs.training import device
from smartcs.training import launch as launch_module
from smartcs.training.commandline import UsageError
from smartcs.training.config import TrainConfig
from smartcs.training.distributed import Ranks
from smartcs.training.interrupt import stop_on_signals
from smartcs.training.launch import local_rank
from smartcs.training.plan import describe_batches
from smartcs.training.resume import Resumption
from smartcs.training.run import train

ROUNDED = 2e-5  # as in test_distributed


@pytest.fixture
def arguments(data_folder, encoder_folder):
    """Settings of a short run by name, with the command line's spelling of them."""

    def make(output, **values) -> tuple[dict, list[str]]:
        settings = {
            "data": data_folder,
            "model": encoder_folder,
            "output": output,
            "epochs": 1,
            "cycles": 4,
            "learning_rate": 1e-3,
            "batch_sst": 6,
            "batch_qqp": 6,
            "batch_sts": 6,
            "device": "cpu",
            "head_dropout": 0.1,
            **values,
        }
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        return settings, ["-m", "smartcs.train", *flags, "--no-report"]

    return make


def losses(folder) -> np.ndarray:
    rows = list(csv.DictReader((folder / "losses.csv").open()))
    return np.array([[float(value or "nan") for name, value in row.items() if name.endswith("loss")] for row in rows])


def test_runs_and_resumed_runs_are_those_of_one_process(arguments, quiet_train, tmp_path):
    """Two processes train an epoch; one with two slices goes on; all is as by one process with the whole batches."""
    run = {"recipe": "pretrain+smart-bregman", "pretrain.epochs": 1, "pretrain.cycles": 2, "pretrain.dropout": True}
    settings, _ = arguments(tmp_path / "alone", **run, epochs=2, batch_sst=12, batch_qqp=12, batch_sts=12)
    with threads(1):
        alone = quiet_train(TrainConfig.from_dict({**settings, "report": False}))
    flags = {name: value for name, value in run.items() if name != "pretrain.dropout"}
    done = torchrun(2, *arguments(tmp_path / "two", **flags, epochs=2)[1], "--pretrain.dropout")
    assert "batches sst 12, qqp 12, sts 12 (2 processes of sst 6, qqp 6, sts 6)" in done.stdout
    assert done.stdout.count("results: ") == done.stdout.count("epoch 2/2: dev") == 1

    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert metrics["ranks"] == 2 and metrics["finished"]
    for name in ("steps", "tokens", "cycles_per_epoch", "best_epoch"):
        assert metrics[name] == alone.metrics[name], name
    assert metrics["pretrain"]["hidden_tokens"] == alone.metrics["pretrain"]["hidden_tokens"]
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "alone"), atol=ROUNDED)
    np.testing.assert_allclose(
        losses(tmp_path / "two" / "pretrained"), losses(tmp_path / "alone" / "pretrained"), atol=ROUNDED
    )
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == sorted(p.name for p in alone.folder.iterdir())


def test_another_number_of_processes_resumes(arguments, quiet_train, tmp_path):
    settings, _ = arguments(tmp_path / "alone", epochs=2, batch_sst=12, batch_qqp=12, batch_sts=12)
    with threads(1):
        quiet_train(TrainConfig.from_dict({**settings, "report": False}))
        torchrun(2, *arguments(tmp_path / "two")[1])
        found = Resumption.find(tmp_path / "two")
        assert found.state["conditions"]["processes"] == 2
        values = {**arguments(tmp_path / "two", epochs=2, accumulate=2)[0], "report": False}
        train(TrainConfig.from_dict(values), quiet_console(), found)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "alone"), atol=ROUNDED)
    assert len(losses(tmp_path / "two")) == 24


def test_other_batches_go_on_at_the_same_position(arguments, quiet_train, tmp_path):
    """Three processes after one, whose batches do not have as many examples."""
    quiet_train(TrainConfig.from_dict({**arguments(tmp_path / "run")[0], "report": False}))
    before = Resumption.find(tmp_path / "run").state["loop"]["sampler"]["streams"]["sst"]
    assert before["position"] == 4 * 6
    flags = ["-m", "smartcs.train", f"--resume={tmp_path / 'run'}", "--epochs=2", "--no-report"]
    done = torchrun(3, *flags)
    assert "processes 3, was 1" in done.stdout
    after = Resumption.find(tmp_path / "run").state["loop"]["sampler"]["streams"]["sst"]
    assert 48 * after["pass"] + after["position"] == 4 * 6 + 4 * 18


def test_sigterm_to_torchrun_leaves_a_checkpoint(arguments, tmp_path):
    _, flags = arguments(tmp_path / "run", cycles=5000)
    process = subprocess.Popen(launch(2, *flags), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + LIMIT
        while not (tmp_path / "run" / "losses.csv").is_file() or len(losses(tmp_path / "run")) < 3:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    step = Resumption.find(tmp_path / "run").checkpoint.step
    assert f"stopped by SIGTERM after step {step} of 15000" in output.decode() and step >= 3
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["interrupted"]
    assert len(losses(tmp_path / "run")) == step


def test_an_error_of_the_first_process_is_said_once(arguments, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "metrics.json").write_text("{}")
    done = torchrun(2, *arguments(tmp_path / "taken")[1], check=False)
    assert done.returncode != 0 and done.stderr.count(f"error: output {tmp_path / 'taken'} already holds") == 1
    assert "the first process of the run could not go on" in done.stderr


def quiet_console():
    from rich.console import Console

    return Console(quiet=True)


def test_batches_are_described():
    sizes = {"sst": 6, "qqp": 40}
    assert describe_batches(sizes, 1, 1) == "sst 6, qqp 40"
    assert describe_batches(sizes, 2, 3) == "sst 36, qqp 240 (2 processes x 3 slices of sst 6, qqp 40)"
    assert describe_batches(sizes, 1, 3) == "sst 18, qqp 120 (3 slices of sst 6, qqp 40)"


def test_a_launch_that_is_not_whole_is_refused():
    assert local_rank({}) is None and local_rank({"WORLD_SIZE": "1"}) is None
    whole = {"WORLD_SIZE": "2", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    assert local_rank(whole) == 1
    with pytest.raises(
        UsageError, match="WORLD_SIZE is 2, but LOCAL_RANK, MASTER_PORT is not set; start them by torchrun"
    ):
        local_rank({name: value for name, value in whole.items() if name not in ("LOCAL_RANK", "MASTER_PORT")})


def test_gpus(monkeypatch):
    """Each process has its own, and their steps are not recorded."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: chosen[-1])
    for number, expected in ((0, "cuda:0"), (1, "cuda:1")):
        monkeypatch.setattr(device, "local_rank", lambda number=number: number)
        assert str(device.choose_device("auto")) == expected
    monkeypatch.setattr(device, "local_rank", lambda: 2)
    with pytest.raises(UsageError, match="process 3 of this machine has no GPU: torch sees 2"):
        device.choose_device("cuda")

    monkeypatch.setattr(device, "_obstacle", lambda *_: "")
    shape, gpu = BertConfig(), torch.device("cuda")
    for slices, why in (((2, 1), "2 processes average their gradients"), ((1, 3), "a step has 3 slices")):
        assert device.choose_recorder("auto", gpu, shape, *slices)[0] is None
        assert device.choose_recorder("auto", gpu, shape, *slices)[1].startswith(why)
        with pytest.raises(UsageError, match=f"cuda_graphs is on, but steps cannot be recorded: {why}"):
            device.choose_recorder("on", gpu, shape, *slices)


def test_a_second_signal_is_the_launchers():
    """It comes from torchrun to processes that have had the terminal's; alone, it would end the process."""
    before = signal.getsignal(signal.SIGINT)
    ranks = Ranks(0, 2)
    with stop_on_signals(ranks) as stop:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        assert ranks.asked == signal.SIGINT and not stop, "before the others know"
    assert signal.getsignal(signal.SIGINT) is before


def test_alone_nothing_is_joined():
    with launch_module.launched(torch.device("cpu")) as ranks:
        assert ranks.size == 1 and ranks.is_first and ranks.exchange([1.5]).wait() == [[1.5]]
    assert not torch.distributed.is_initialized()
