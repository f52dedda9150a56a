"""Rows of measurements: what they hold, how they replace each other, how they are written."""

import csv
import json
import os
import socket

import pytest
from results_io import KEY, environment, quantiles, ratio_quantiles, read, row, write

KEY_VALUES = ("smart-bregman", "fused", "minilm", "fp32", 2)


def test_quantiles_are_those_of_the_values():
    assert quantiles([4.0, 1.0, 3.0, 2.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]) == (3.0, 6.0, 9.0)
    assert quantiles([2.5]) == (2.5, 2.5, 2.5)


def test_ratios_are_taken_turn_by_turn():
    # A machine that is ten times slower in the second turn must not show in the ratio.
    assert ratio_quantiles([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == [2.0, 2.0, 2.0]


def test_rows_hold_their_quantiles_with_five_digits():
    made = row(*KEY_VALUES, values=[1.2345678, 1.2345678], tasks={"sst": 0.33333333}, count=3)
    assert (made["median"], made["n"], made["tasks"], made["count"]) == (1.2346, 2, {"sst": 0.33333}, 3)
    assert tuple(made[name] for name in KEY) == KEY_VALUES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"status": "guessed", "values": [1.0]}, "expected one of measured, modelled, not measured"),
        ({"status": "measured"}, "'measured' with 0 values"),
        ({"status": "modelled", "values": [1.0]}, "'modelled' with 1 values"),
        ({"status": "not measured"}, "without a reason"),
    ],
)
def test_statuses_must_fit_the_values(settings, message):
    with pytest.raises(ValueError, match=message):
        row(*KEY_VALUES, **settings)


def test_writing_replaces_the_same_key_and_keeps_the_others(tmp_path):
    write("cycle", [row(*KEY_VALUES, values=[1.0]), row("baseline", *KEY_VALUES[1:], values=[2.0])], {}, tmp_path)
    write("cycle", [row(*KEY_VALUES, values=[3.0])], {"commit": "new"}, tmp_path)
    found = {one["case"]: one for one in read("cycle", tmp_path)}
    assert {case: one["median"] for case, one in found.items()} == {"smart-bregman": 3.0, "baseline": 2.0}
    assert found["smart-bregman"]["commit"] == "new" and "commit" not in found["baseline"]
    assert sorted(path.name for path in (tmp_path / "cycle").iterdir()) == ["rows.csv", "rows.json"]


def test_a_failed_write_leaves_the_rows_that_were_there(tmp_path, monkeypatch):
    write("cycle", [row(*KEY_VALUES, values=[1.0])], {}, tmp_path)
    before = read("cycle", tmp_path)

    def fail(*_):
        raise OSError("disk")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk"):
        write("cycle", [row(*KEY_VALUES, values=[3.0])], {}, tmp_path)
    assert read("cycle", tmp_path) == before


def test_the_spreadsheet_has_a_column_per_figure(tmp_path):
    made = row(*KEY_VALUES, values=[1.0], ratios={"reference": [0.1, 0.2, 0.3]}, tasks={"sst": 0.5})
    write("cycle", [made, row("other", *KEY_VALUES[1:], status="not measured", reason="why")], {}, tmp_path)
    with open(tmp_path / "cycle" / "rows.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["ratios: reference median"], first["tasks: sst"], first["median"]) == ("0.2", "0.5", "1.0")
    assert (second["status"], second["reason"], second["median"]) == ("not measured", "why", "")


def test_rows_name_no_path_and_no_host():
    about = environment()
    text = json.dumps(about)
    assert about["torch"] and about["cpu"] and about["cores"] >= 1 and isinstance(about["dirty"], bool)
    assert os.getcwd() not in text and socket.gethostname() not in text and os.path.expanduser("~") + "/" not in text
