"""Rows of a reproduction: means and spreads over seeds, and the page that sets them beside the paper."""

import re
import statistics

import pytest

from smartcs.report import ComparisonRow, comparison_figures, write_comparison_report
from smartcs.training import paper


def metrics(sst, seconds=10.0, smart=None, bregman=None, config=None):
    figures = {"sst_accuracy": sst, "qqp_accuracy": 0.8, "sts_pearson": 0.7, "score": 0.75}
    return {
        "dev": {**figures, "losses": {}},
        "test": {**figures, "sst_accuracy": sst - 0.1},
        "seconds_per_epoch": seconds,
        "smart": smart,
        "bregman": bregman,
        "config": config or {},
    }


def smart(alignment, regulariser=0.5):
    return {"sst": {"fallbacks": 0, "adversarial_alignment": alignment, "regulariser": regulariser}}


def test_from_metrics():
    runs = [metrics(value, seconds) for value, seconds in ((0.50, 10.0), (0.53, 14.0), (0.41, 12.0))]
    row = ComparisonRow.from_metrics(
        "smart", "SMART", runs, baseline_seconds=8.0, paper={"score": 0.769, "time_ratio": None}
    )
    values = [0.50, 0.53, 0.41]
    assert row.n_seeds == 3 and row.paper == {"score": 0.769}
    assert row.mean["sst_accuracy"] == pytest.approx(statistics.mean(values))
    assert row.std["sst_accuracy"] == pytest.approx(statistics.stdev(values))
    assert row.mean["seconds_per_epoch"] == pytest.approx(12) and row.mean["time_ratio"] == pytest.approx(1.5)
    assert row.std["time_ratio"] == pytest.approx(statistics.stdev([10, 14, 12]) / 8)
    assert row.smart == {} and row.anchor_divergence == {}
    test = ComparisonRow.from_metrics("smart", "SMART", runs, split="test")
    assert test.mean["sst_accuracy"] == pytest.approx(statistics.mean(values) - 0.1) and "time_ratio" not in test.mean


def test_the_baseline_may_be_one_per_run():
    row = ComparisonRow.from_metrics("a", "A", [metrics(0.5, 10.0), metrics(0.5, 12.0)], baseline_seconds=[8.0, 6.0])
    assert row.mean["time_ratio"] == pytest.approx((1.25 + 2) / 2)
    with pytest.raises(ValueError):
        ComparisonRow.from_metrics("a", "A", [metrics(0.5)], baseline_seconds=[8.0, 6.0])


def test_spreads_stay_within_the_chart(monkeypatch):
    axes = []
    original = comparison_figures._row_axes
    monkeypatch.setattr(comparison_figures, "_row_axes", lambda rows: axes.append(original(rows)) or axes[-1])
    rows = [ComparisonRow("a", "A", 2, {"time_ratio": 1.0}, {"time_ratio": 3.0}), ComparisonRow("b", "B", 1)]
    comparison_figures.time_ratios(rows)
    assert axes[0][1].get_xlim()[1] >= 1.2 * 4


def test_one_seed_has_no_spread_and_missing_figures_are_left_out():
    run = metrics(0.5)
    del run["dev"]["qqp_accuracy"]  # a sweep on SST and STS alone
    run["dev"]["score"] = None
    row = ComparisonRow.from_metrics("1e-5", "1e-5", [run])
    assert row.std == {} and set(row.mean) == {"sst_accuracy", "sts_pearson", "seconds_per_epoch"}
    assert ComparisonRow.from_metrics("none", "None", []) == ComparisonRow("none", "None")


def test_diagnostics_are_means_over_the_seeds():
    runs = [metrics(0.5, smart=smart(0.1)), metrics(0.5, smart=smart(0.3, None))]
    assert ComparisonRow.from_metrics("a", "A", runs).smart == {
        "sst": {"fallbacks": 0, "adversarial_alignment": pytest.approx(0.2), "regulariser": 0.5}
    }
    for config, name in (
        ({"bregman": {"tasks": "sst"}}, "sst"),
        ({"bregman": {"tasks": "sts+sst"}}, "sst+sts"),
        ({"bregman": {"tasks": "all"}}, "sst+qqp+sts"),
        ({"tasks": "sst+sts", "bregman": {"tasks": "all"}}, "sst+sts"),
    ):
        seeds = [metrics(0.5, bregman={"anchor_divergence": value}, config=config) for value in (1.0, 3.0)]
        assert ComparisonRow.from_metrics("a", "A", seeds).anchor_divergence == {name: 2.0}


def test_unknown_quantities():
    with pytest.raises(ValueError, match="paper has unknown keys accuracy; known: sst_accuracy, "):
        ComparisonRow("a", "A", paper={"accuracy": 0.5})


ON_SST_AND_STS = {"bregman": {"tasks": "sst+sts"}}
NASTY = '<script>alert("x")</script> & $1$'


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    runs = {
        "baseline": [metrics(0.4811, 10.0), metrics(0.4933, 11.0)],
        "smart-bregman": [
            metrics(0.5055, 13.0, smart(0.0123), {"anchor_divergence": 0.0345}, ON_SST_AND_STS),
            metrics(0.5077, 12.0, smart(0.0125), {"anchor_divergence": 0.0355}, ON_SST_AND_STS),
        ],
    }
    rows = [
        ComparisonRow.from_metrics(
            name,
            paper.NAMES[name],
            found,
            baseline_seconds=10.5,
            paper={**paper.DEV[name].as_dict(), "time_ratio": paper.time_ratio(name)},
            reports=[f"runs/{name}-{seed}/report.html" for seed in range(2)],
        )
        for name, found in runs.items()
    ]
    rows.append(
        ComparisonRow.from_metrics(
            "own", NASTY, [metrics(0.3)], baseline_seconds=10.5, note=NASTY, reports=["javascript:x(1)", 'a b".html']
        )
    )
    rows.append(ComparisonRow("dropout", "Dropout Baseline", paper=paper.DEV["dropout"].as_dict(), note="not run"))
    folder = tmp_path_factory.mktemp("comparison") / "figure2"
    path = write_comparison_report(
        folder, f"Figure 2 {NASTY}", rows, intro=[f"On {NASTY}"], notes=["A note."], warnings=["Mind."], command=NASTY
    )
    assert path == folder / "report.html"
    return folder, path.read_text(encoding="utf-8"), rows


def words(source):
    return " ".join(re.sub(r"<[^>]+>", " ", source[source.index("</style>") :]).split())


def test_numbers_are_the_rows(page):
    _, source, rows = page
    said = words(source)
    for row in rows:
        for name in ("sst_accuracy", "qqp_accuracy", "sts_pearson", "score"):
            assert row.mean.get(name) is None or f"{row.mean[name]:.3f}" in said
            assert row.std.get(name) is None or f"± {row.std[name]:.3f}" in said
            assert row.paper.get(name) is None or f"{row.paper[name]:.3f}" in said
    assert "10.5 ± 0.7 1.00 ± 0.07 1.00" in said and "12.5 ± 0.7 1.19 ± 0.07 1.20" in said
    assert "0.0124" in said and "0.035" in said and "not run" in said and "A note." in said and "Mind." in said
    assert f"{paper.NAMES['smart-bregman']} SST + STS – – – – 0.035" in said
    assert said.count("the paper prints a score of") == 1
    assert paper.score_slip("Baseline", paper.DEV["baseline"].as_dict()) in said
    assert said.count("The axis does not start at zero.") == 4


def test_pictures(page):
    import matplotlib.image

    folder, source, _ = page
    names = {path.stem for path in (folder / "figures").iterdir()}
    # No perturbation_norm was measured, so it has no picture.
    assert names == {
        *(f"compare-{name}" for name in ("sst_accuracy", "qqp_accuracy", "sts_pearson", "score", "time", "seconds")),
        *(f"compare-{name}" for name in ("adversarial-alignment", "regulariser", "anchor-divergence")),
    }
    assert set(re.findall(r'<figure id="([^"]+)"', source)) == names
    for name in names:
        pixels = matplotlib.image.imread(folder / "figures" / f"{name}.png")[..., :3]
        assert 0.003 < (abs(pixels - pixels[0, 0]).max(axis=-1) > 0.1).mean() < 0.9, name


def test_is_one_file_and_escapes(page):
    _, source, _ = page
    assert "<script" not in source and "http" not in source and "src=" not in source
    assert source.count("&lt;script&gt;") >= 6
    ids = re.findall(r' id="([^"]+)"', source)
    assert len(set(ids)) == len(ids)
    links = [link for link in re.findall(r'href="([^"]*)"', source) if link[0] != "#"]
    assert links == [
        "data:,",
        *(f"runs/{name}-{seed}/report.html" for name in ("baseline", "smart-bregman") for seed in range(2)),
        "javascript%3Ax%281%29",
        "a%20b%22.html",
    ]


def test_a_sweep_without_paper_nor_time(tmp_path):
    rows = [
        ComparisonRow(str(weight), f"λ = {weight}", 1, {"sst_accuracy": 0.4 + weight / 100}) for weight in (1, 2, 5)
    ]
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "compare-score.png").write_bytes(b"old")
    source = write_comparison_report(tmp_path, "Lambda", rows, split="test").read_text()
    said = words(source)
    assert "λ = 5" in said and "0.450" in said and "SST accuracy, test" in said and "paper</th>" not in source
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["compare-sst_accuracy.png"]
    assert "0.769" not in said


def test_an_axis_from_below_zero_is_not_said_to_start_elsewhere(tmp_path):
    rows = [ComparisonRow(str(value), str(value), 1, {"sts_pearson": value}) for value in (-0.1, 0.4)]
    assert "does not start at zero" not in write_comparison_report(tmp_path, "Low", rows).read_text()


def test_rows_must_have_names_of_their_own(tmp_path):
    with pytest.raises(ValueError, match=r"rows are named \['a', 'a'\], expected at least one, each its own name"):
        write_comparison_report(tmp_path / "new", "T", [ComparisonRow("a", "A"), ComparisonRow("a", "B")])
    with pytest.raises(ValueError, match=r"rows are named \[\]"):
        write_comparison_report(tmp_path / "new", "T", [])
    assert not (tmp_path / "new").exists()
