"""The pages' generated parts: made from rows, found between markers, checked for drift."""

import subprocess
import sys
from pathlib import Path

import pytest
from goals import Goal, data_share, goals_table, speed_up
from markers import generated_part, with_part, without_parts
from results_io import row, write
from tables import cycle_table, differences, ops_table, parts

ABOUT = {
    "cpu": "a CPU",
    "compiler": "GNU 1",
    "torch": "2",
    "transformers": "5",
    "commit": "abc",
    "dirty": False,
    "date": "2026-01-01",
}
PAGE = "before\n<!-- generated: cycle -->\nold\n<!-- end: cycle -->\nafter `op`\n"


def cycle_row(candidate, seconds, ratios, precision="fp32", threads=2, **figures):
    made = row("smart-bregman", candidate, "base", precision, threads, values=[seconds], ratios=ratios, **figures)
    return made | ABOUT


def cycle_rows():
    figures = {
        "over_floor": 1.3,
        "tasks": {"sst": 0.5},
        "parts": {"data": 0.01, "forward": 0.99},
        "tokens": {"sst": 150},
        "padded": {"sst": 244},
        "text": "cs224n",
    }
    rows = [
        cycle_row("smartcs fp32", 2.0, {"transformers eager": [0.2, 0.3, 0.4]}, **figures),
        cycle_row("transformers eager", 6.0, {"smartcs fp32": [2.9, 3.0, 3.1]}, **figures),
        cycle_row("transformers sdpa", 7.0, {"smartcs fp32": [3.4, 3.5, 3.6]}, **figures),
        cycle_row("transformers eager", 1.0, {"smartcs fp32": [9.0, 9.0, 9.0]}, threads=1, **figures),
    ]
    missing = row("smart-bregman", "transformers compile", "base", "fp32", 2, status="not measured", reason="too slow")
    return [*rows, missing | ABOUT]


def test_the_speed_up_is_over_the_fastest_peer_of_the_most_threads():
    assert speed_up(cycle_rows(), "base", "fp32") == 3.0
    assert speed_up(cycle_rows(), "base", "bf16") is None
    assert speed_up(cycle_rows(), "minilm", "fp32") is None


def test_the_share_of_the_data_counts_their_preparation_where_it_is_known():
    parts = {"data": 1.0, "forward": 3.0, "backward": 4.0, "optimizer": 2.0}
    assert data_share(parts) == ("waiting for data", 0.1)
    assert data_share({**parts, "data_background": 2.0}) == ("data loading", pytest.approx(0.3))
    assert data_share({}) == ("waiting for data", None)


@pytest.mark.parametrize(
    ("measured", "below", "verdict"),
    [(1.4, False, "missed"), (1.5, False, "reached"), (2.0, False, "aim reached"), (None, False, "")],
)
def test_verdicts(measured, below, verdict):
    assert Goal("g", 1.5, 2.0, measured, below).line().rsplit("|", 2)[1].strip() == verdict


def test_verdicts_where_less_is_better():
    verdicts = [Goal("g", 1.26, 1.2, value, below=True).line().rsplit("|", 2)[1].strip() for value in (1.3, 1.25, 1.19)]
    assert verdicts == ["missed", "reached", "aim reached"]


def test_goals_without_rows_are_not_measured(tmp_path):
    assert goals_table(tmp_path).count("not measured") == goals_table(tmp_path).count("\n") - 1


def test_the_cycle_table_says_what_was_not_measured_and_why():
    table = cycle_table(cycle_rows(), [])
    assert "| transformers compile | not measured: too slow |" in table
    assert "| transformers eager | 6,000 | 3.00 (2.90 - 3.10) |" in table
    assert "MiniLM's shape, 6 x 384: not measured." in table
    assert "sentences of the CS224N data" in table and "1 threads" not in table


def test_the_ops_table_shows_losses_as_plainly_as_wins():
    rows = []
    for shape, ratio in (("small", 0.5), ("large", 4.0)):
        key = {"values": [1.0], "ratios": {"fused": [1.0, 1.0, 1.0]}, "roof_share": 0.5}
        rows.append(row("linear training", "fused", shape, "fp32", 2, **key) | ABOUT)
        for name in ("reference", "torch"):
            ratios = {"fused": [ratio, ratio, ratio]}
            rows.append(row("linear training", name, shape, "fp32", 2, values=[ratio], ratios=ratios) | ABOUT)
    assert "| linear | training | fp32 | 0.50 - 4.00 | 0.50 - 4.00 | 50% - 50% |" in ops_table(rows)


def test_parts_are_replaced_between_their_markers_alone():
    page = with_part(PAGE, "cycle", "new \\1 text")
    assert generated_part(page, "cycle") == "new \\1 text"
    assert page.startswith("before\n") and page.endswith("\nafter `op`\n") and "old" not in page
    assert with_part(page, "cycle", "new \\1 text") == page
    assert "new" not in without_parts(page) and "after" in without_parts(page)


@pytest.mark.parametrize("page", ["nothing", PAGE + PAGE])
def test_markers_must_stand_once(page):
    with pytest.raises(ValueError, match="expected 1"):
        with_part(page, "cycle", "text")


def test_drift_is_found_and_a_rewrite_mends_it(tmp_path):
    page, profile = tmp_path / "page.md", tmp_path / "profile.md"
    write("cycle", cycle_rows(), {}, tmp_path)
    page.write_text(PAGE)
    (found,) = differences([page], profile, tmp_path)
    assert found.startswith("page.md: part cycle")
    page.write_text(with_part(PAGE, "cycle", parts(tmp_path)["cycle"]()))
    assert differences([page], profile, tmp_path) == []


def test_large_lines_of_the_profile_need_a_sentence_by_hand(tmp_path):
    shares = {"aten::mm": 0.6, "small": 0.04}
    write("profile", [row("profile", "smartcs fp32", "base", "fp32", 2, values=[1.0], shares=shares)], {}, tmp_path)
    profile = tmp_path / "profile.md"
    profile.write_text("<!-- generated: base fp32 -->\n| `aten::mm` | 60 % |\n<!-- end: base fp32 -->\n")
    (found,) = differences([], profile, tmp_path)
    assert "no sentence on `aten::mm`, 60.0%" in found
    profile.write_text(profile.read_text() + "`aten::mm` is what there is to do.\n")
    assert differences([], profile, tmp_path) == []


def test_the_check_is_cheap():
    """It runs with every `make check`: no torch."""
    folder = str(Path(__file__).parents[2] / "benchmarks")
    code = f"import sys; sys.path.insert(0, {folder!r}); import tables; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
