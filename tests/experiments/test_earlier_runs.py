"""What a command finds in its folder: runs of other rows, seeds, settings or data; and what precedes its own first."""

import json
import shutil
import signal

import pytest
from reproductions import read, states, stop_in_run

from smartcs.training.commandline import UsageError
from smartcs.training.trainer import Trainer


def test_tables_hold_what_earlier_commands_have_run(reproduce, started, tmp_path):
    """Rows and seeds that are asked for later are added, and the ratio has its baseline."""
    reproduce("figure8", "smart", "baseline", seeds=(2, 1))
    result = reproduce("figure8", "dropout", seeds=(1,))
    assert started[4:] == ["dropout/seed-1"] and states(result) == ["finished"] * 5
    rows = {row["name"]: row for row in read(tmp_path / "out" / "results.json")["rows"]}
    assert {name: [run["seed"] for run in row["runs"]] for name, row in rows.items()} == {
        "baseline": [1, 2],
        "dropout": [1],
        "smart": [1, 2],
    }
    seconds = {name: row["runs"][0]["seconds_per_epoch"] for name, row in rows.items()}
    assert rows["dropout"]["mean"]["time_ratio"] == pytest.approx(seconds["dropout"] / seconds["baseline"])
    # One that is not finished is not of this command.
    (tmp_path / "out" / "smart" / "seed-1" / "metrics.json").unlink()
    result = reproduce("figure8", "dropout", seeds=(1,))
    assert [outcome.job.place for outcome in result.results.outcomes] == [
        *("baseline/seed-1", "baseline/seed-2", "dropout/seed-1", "smart/seed-2"),
    ]


def test_earlier_runs_of_other_settings(reproduce, started, tmp_path):
    reproduce("figure8", "smart")
    message = r"smart/seed-11711 is finished .*\(cycles 2, now 1\): pass --overwrite to leave it out"
    with pytest.raises(UsageError, match=message):
        reproduce("figure8", "baseline", cycles=1)
    assert started == ["smart/seed-11711"]
    result = reproduce("figure8", "baseline", cycles=1, overwrite=True)
    assert [row.row.name for row in result.results.rows] == ["baseline"]
    assert "Not in the tables, being of other settings or data: smart/seed-11711." in result.results.warnings
    assert read(tmp_path / "out" / "smart" / "seed-11711" / "metrics.json")["finished"]


def test_runs_taken_from_elsewhere_stay_in_the_tables(reproduce, started, tmp_path):
    """Without naming again where they are from."""
    reproduce("figure2", "smart", output=tmp_path / "first")
    reproduce("figure3", "smart", reuse=tmp_path / "first")
    result = reproduce("figure3", "baseline")
    assert started == ["smart/seed-11711", "baseline/seed-11711"]
    rows = read(tmp_path / "out" / "results.json")["rows"]
    assert [row["runs"][0]["folder"] for row in rows] == ["../first/smart/seed-11711", "baseline/seed-11711"]
    assert states(result) == ["finished"] * 2


def test_other_data_is_another_run(reproduce, started, data_folder, tmp_path):
    """At the same path."""
    data = shutil.copytree(data_folder, tmp_path / "data")
    reproduce("figure8", "baseline", data=str(data))
    metrics = tmp_path / "out" / "baseline" / "seed-11711" / "metrics.json"
    before = read(metrics)
    assert len(before["data"]["sha256"]) == 64
    assert states(reproduce("figure8", "baseline", data=str(data))) == ["finished"]
    path = data / "ids-sst-dev.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], *lines[:0:-1]]))
    message = r"baseline/seed-11711 is finished with other settings \(data of SHA-256 \w{12}, now \w{12}\)"
    with pytest.raises(UsageError, match=message):
        reproduce("figure8", "baseline", data=str(data))
    # Without a digest, of an earlier version, the numbers of examples must do.
    del before["data"]["sha256"]
    metrics.write_text(json.dumps(before))
    assert states(reproduce("figure8", "baseline", data=str(data))) == ["finished"]
    path.write_text("".join(lines[:-1]))
    count = before["data"]["examples"]["dev"]["sst"]
    with pytest.raises(UsageError, match=rf"\({count} dev examples of sst, now {count - 1}\)"):
        reproduce("figure8", "baseline", data=str(data))
    assert len(started) == 1


def test_the_cold_start_is_in_no_run(reproduce, monkeypatch, warmed_up, tmp_path):
    """One cycle of the first row that trains, before it, of which nothing stays."""
    steps = []
    original = Trainer.epoch

    def counting(self):
        steps.append(0)
        for step in original(self):
            steps[-1] += 1
            yield step

    monkeypatch.setattr(Trainer, "epoch", counting)
    reproduce("figure2", "pretrain", "smart")
    assert steps == [3, 6, 6] and [config.recipe for config in warmed_up] == ["pretrain"]
    assert "pretrained" not in warmed_up[0].model
    folders = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert folders == {"pretrained", "pretrain", "smart"}
    reproduce("figure2", "pretrain", "smart")
    assert len(steps) == 3


def test_interrupted_while_warming_up(reproduce, started, monkeypatch, warmed_up):
    with monkeypatch.context() as patch:
        stop_in_run(patch, 1, signal.SIGTERM)
        result = reproduce("figure8", "baseline")
    assert result.signal == signal.SIGTERM and started == [] and states(result) == ["not finished"]
