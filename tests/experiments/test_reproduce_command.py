"""The command: flags, rows, exit codes, one line per error."""

import json
import re
import signal

import pytest

from smartcs import reproduce
from smartcs.experiments import running
from smartcs.experiments.jobs import Options, make_jobs
from smartcs.experiments.studies import EXPERIMENTS
from smartcs.training.skipping import NonFiniteLossError
from smartcs.training.trainer import Trainer


def error_line(stderr: str) -> str:
    assert stderr.startswith("error: ") and stderr.count("\n") == 1 and "Traceback" not in stderr, stderr
    return stderr.removeprefix("error: ").strip()


@pytest.fixture
def flags(data_folder, encoder_folder, tmp_path) -> list[str]:
    """Of a reproduction of a second."""
    values = {"data": data_folder, "model": encoder_folder, "output": tmp_path / "out", "epochs": 1, "cycles": 1}
    return [f"--{name}={value}" for name, value in values.items()] + ["--no-report"]


def names(*arguments) -> list[str]:
    return [row.name for row in reproduce.parse(list(arguments))[1]]


def test_help(command):
    code, out, _ = command("reproduce", "--help")
    assert code == 0 and max(map(len, out.splitlines())) <= 100
    for experiment in EXPERIMENTS.values():
        assert experiment.name in out
        for row in experiment.rows:
            assert re.search(rf"[ ,]{row.name}(,|\n)", out), row.name
    for flag in ("rows", "extra", "seeds", "data", "model", "output", "epochs", "cycles", "pretrain-epochs",
                 "pretrain-cycles", "no-fused", "no-report", "overwrite", "reuse", "set", "jobs"):  # fmt: skip
        assert f"--{flag}" in out


def test_rows():
    paper = [row.name for row in EXPERIMENTS["figure8"].rows if not row.extra]
    assert names("figure8") == paper
    assert names("figure8", "--extra") == [*paper, "smart-adv", "smart-adv-bregman"]
    assert names("figure8", "--rows", "smart-adv, baseline") == ["baseline", "smart-adv"]
    assert names("figure8", "--rows", "smart,smart", "--extra") == ["smart", "smart-adv", "smart-adv-bregman"]


def test_options():
    typed = ["--data=d", "--model=a/b", "--output=o", "--epochs=1", "--cycles=2", "--pretrain-epochs=3"]
    typed += ["--pretrain-cycles=4", "--seeds=5,6,5", "--no-fused", "--no-report", "--overwrite", "--reuse=r"]
    experiment, _, options = reproduce.parse(["pretrain", *typed])
    assert experiment is EXPERIMENTS["pretrain"]
    assert options == Options(
        output=reproduce.Path("o"), data="d", model="a/b", fused=False, seeds=(5, 6), epochs=1, cycles=2,
        pretrain_epochs=3, pretrain_cycles=4, report=False, overwrite=True, reuse=reproduce.Path("r"),
        command=" ".join(["python -m smartcs.reproduce pretrain", *typed]),
    )  # fmt: skip
    _, _, options = reproduce.parse(["figure2"])
    assert options == Options(reproduce.Path("runs/figure2"), command="python -m smartcs.reproduce figure2")


def test_every_experiment_is_known():
    assert [reproduce.parse([name])[0].name for name in EXPERIMENTS] == list(EXPERIMENTS)


def test_runs_and_goes_on(command, flags, tmp_path):
    code, out, err = command("reproduce", "figure8", "--rows=baseline,dropout", "--seeds=3,4", *flags)
    assert (code, err) == (0, "")
    assert "row 2 of 2: Dropout Baseline (dropout), seed 4; run 4 of 4, about" in out
    assert "Figure 8: SMART beside other regularisers" in out and "± over seeds" in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["command"].startswith("python -m smartcs.reproduce figure8 --rows=baseline,dropout --seeds=3,4")
    code, out, err = command("reproduce", "figure8", "--rows=baseline", "--seeds=3", *flags)
    assert (code, err) == (0, "") and "baseline/seed-3: finished, not run again" in out
    code, _, err = command("reproduce", "figure8", "--rows=baseline", "--seeds=3", *flags, "--cycles=2")
    assert code == 2 and "finished with other settings (cycles 1, now 2)" in error_line(err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows=smartt"], "--rows names 'smartt', expected some of baseline, dropout, "),
        (["--rows="], "--rows names ''"),
        (["--seeds=1,x"], "--seeds is '1,x', expected integers joined by commas"),
        (["--seeds=-1"], "--seeds is -1, expected an integer from 0"),
        (["--epochs=0"], "--epochs is 0, expected an integer of at least 1"),
        (["--cycles=0"], "--cycles is 0, expected an integer of at least 1"),
        (["--pretrain-epochs=0"], "--pretrain-epochs is 0, expected an integer of at least 1"),
        (["--pretrain-epochs=2"], "--pretrain-epochs: no row of figure8 has additional pretraining"),
        (["--pretrain-cycles=2"], "--pretrain-cycles: no row of figure8 has additional pretraining"),
        (["--output="], "--output is empty, expected a folder"),
        (["--model="], "--model is '', expected a name"),
        (["--data="], "--data is '', expected a name"),
        (["--reuse=nowhere"], "--reuse nowhere: no results.json there"),
        (["--jobs=0"], "--jobs is 0, expected an integer of at least 1"),
        (["--set", "warmup"], "--set names 'warmup', expected NAME=VALUE with a name among"),
        (["--set", "epochs=3"], "--set names 'epochs=3', expected NAME=VALUE with a name among"),
        (["--set", "head_dropout=0.5", "--rows=dropout"], "--set head_dropout would replace what row dropout is about"),
        (["--set", "warmup=-1"], "--warmup is -1, expected an integer of at least 0"),
        (["--data=nowhere"], "nowhere: found nothing there"),
        (["--model=./nowhere"], "no folder"),
    ],
)
def test_errors_are_one_line(command, flags, tmp_path, arguments, message):
    code, _, err = command("reproduce", "figure8", *flags, *arguments)
    assert code == 2 and message in error_line(err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["figure9"], ["figure2", "--epoch", "3"], ["figure2", "--epochs", "three"], []])
def test_what_cannot_be_parsed(command, arguments):
    code, _, err = command("reproduce", *arguments)
    assert code == 2 and "Traceback" not in err


def test_settings_of_every_row():
    words = ["figure8", "--rows", "smart,dropout", "--set", "precision=bf16", "smart.weight=5", "holdout=0.25"]
    _, rows, options = reproduce.parse(words)
    assert options.settings == {"precision": "bf16", "smart.weight": 5, "holdout": 0.25}
    for job in make_jobs(rows, options):
        config = job.config
        assert (config.precision, config.smart.weight, config.holdout) == ("bf16", 5, 0.25)
        assert config.head_dropout == (0.15 if job.row.name == "dropout" else 0)


def test_exit_codes(command, flags, monkeypatch):
    def interrupted(config, console):
        raise KeyboardInterrupt

    def diverging(self):
        raise NonFiniteLossError("the loss is nan")

    with monkeypatch.context() as patch:
        patch.setattr(running, "train", interrupted)
        code, out, _ = command("reproduce", "figure8", "--rows=baseline", *flags)
        assert code == 128 + signal.SIGINT and "repeat the command to go on" in out
    monkeypatch.setattr(Trainer, "epoch", diverging)
    code, out, _ = command("reproduce", "figure8", "--rows=baseline", *flags)
    assert code == 1 and "baseline/seed-11711 diverged: the loss is nan" in out
