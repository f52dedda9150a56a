"""Figures over seeds and the files that hold them, from runs that never happened."""

import csv
import io
import json
import statistics
from pathlib import Path

import pytest
from rich.console import Console

from smartcs.experiments.jobs import Options, Outcome, make_jobs
from smartcs.experiments.results import collect, write_page
from smartcs.experiments.studies import EXPERIMENTS
from smartcs.experiments.tables import console_table, lines_below, markdown, write_tables

SEEDS = (1, 2, 3)
SST = {"baseline": (0.41, 0.44, 0.49), "smart": (0.52, 0.5, 0.57), "pretrain": (0.3, 0.4, 0.6)}
SECONDS = {"baseline": (10.0, 11.0, 12.0), "smart": (12.0, 12.5, 14.0), "pretrain": (10.0, 10.0, 10.0)}


def metrics(sst, seconds, *, test=True, threads=2) -> dict:
    """metrics.json of a run."""
    figures = {"sst_accuracy": sst, "qqp_accuracy": 0.8, "sts_pearson": 0.7, "score": 0.6 + sst / 3}
    return {
        **figures,
        "dev": figures,
        "test": {name: value - 0.1 for name, value in figures.items()} if test else None,
        "seconds_per_epoch": seconds,
        "seconds_total": 2 * seconds,
        "cycles_per_epoch": 7,
        "smart": {"sst": {"fallbacks": 1, "adversarial_alignment": 0.5}},
        "bregman": None,
        "config": {"epochs": 2},
        "data": {"source": "somewhere"},
        "environment": {"smartcs": {"version": "0.0.7"}, "versions": {"torch": "2"}, "machine": {"threads": threads}},
    }


@pytest.fixture
def results(tmp_path):
    """Makes the results of some rows; `changed` replaces what lies there for (row, seed)."""

    def make(experiment, *names, changed=None, seeds=SEEDS, **values):
        spec = EXPERIMENTS[experiment]
        options = Options(output=tmp_path, model="small", data="d", seeds=seeds, command="the command")
        outcomes = []
        for job in make_jobs([row for row in spec.rows if row.name in names], options):
            name, at = job.row.name, SEEDS.index(job.seed)
            found = metrics(SST[name][at], SECONDS[name][at], **values) if name in SST else metrics(0.5, 9.0, **values)
            pretraining = {"seconds": 100.0 + at, "mlm_loss": 3.0} if job.stage else {}
            outcome = Outcome(job, tmp_path / job.place, "finished", found, pretraining)
            outcomes.append((changed or {}).get((name, job.seed), lambda outcome: outcome)(outcome))
        return collect(spec, outcomes, options)

    return make


def state(state):
    return lambda outcome: Outcome(outcome.job, outcome.folder, state, {}, {})


def test_means_spreads_and_ratios(results):
    found = {result.row.name: result for result in results("figure2", "baseline", "smart", "pretrain").rows}
    for name, result in found.items():
        values = result.values
        assert values.n_seeds == 3
        assert values.mean["sst_accuracy"] == pytest.approx(statistics.mean(SST[name]))
        assert values.std["sst_accuracy"] == pytest.approx(statistics.stdev(SST[name]))
        assert values.mean["seconds_per_epoch"] == pytest.approx(statistics.mean(SECONDS[name]))
        ratios = [mine / its for mine, its in zip(SECONDS[name], SECONDS["baseline"], strict=True)]
        assert values.mean["time_ratio"] == pytest.approx(statistics.mean(ratios))
        assert values.std.get("time_ratio") == (None if name == "baseline" else pytest.approx(statistics.stdev(ratios)))
        assert values.std["qqp_accuracy"] == pytest.approx(0) and values.paper == result.row.paper
    assert found["baseline"].values.mean["time_ratio"] == 1.0
    assert found["pretrain"].pretrain_seconds == 101.0 and found["smart"].pretrain_seconds is None
    assert "after 101 s of additional pretraining" in found["pretrain"].values.note and found["pretrain"].note == ""
    assert found["smart"].values.smart == {"sst": {"fallbacks": 1.0, "adversarial_alignment": 0.5}}


def test_a_seed_that_the_baseline_lacks_is_compared_with_its_mean(results):
    found = results("figure2", "baseline", "smart", changed={("baseline", 2): state("not finished")})
    ratios = [12.0 / 10.0, 12.5 / 11.0, 14.0 / 12.0]
    assert found.rows[1].values.mean["time_ratio"] == pytest.approx(statistics.mean(ratios))
    note = "Time ratio of smart/seed-2: over the mean of the row baseline, which has no run with that seed."
    assert note in found.notes
    assert not any("Time ratio of" in note for note in results("figure2", "baseline", "smart").notes)


def test_order_and_seeds_are_those_of_the_runs(results, tmp_path):
    found = results("figure2", "baseline", "smart")
    again = collect(found.experiment, found.outcomes[::-1], Options(output=tmp_path, seeds=(9,)))
    assert [outcome.job.place for outcome in again.outcomes] == [outcome.job.place for outcome in found.outcomes]
    assert again.options.seeds == (1, 2, 3)


def test_undefined_figures_are_counted(results):
    def constant(outcome):
        run = outcome.metrics
        return Outcome(outcome.job, outcome.folder, "finished", {**run, "dev": {**run["dev"], "sts_pearson": None}}, {})

    found = results("figure2", "baseline", "smart", changed={("smart", 2): constant})
    assert [result.note for result in found.rows] == ["", "sts_pearson undefined in 1 of 3 runs"]


def test_learning_rates_and_random_weights(results):
    said = "starts from random weights"
    assert any(said in note for note in results("figure6", "learning-rate-1e-5").notes)
    assert not any(said in note for note in results("figure7", "batches-40-6-4").notes)


def test_tables_never_stand_beside_an_older_page(results, tmp_path):
    found = results("figure2", "baseline", "smart")
    write_page(found)
    pictures = tmp_path / "figures"
    (pictures / "mine.png").write_bytes(b"")
    assert (tmp_path / "report.html").is_file() and len(list(pictures.iterdir())) > 1
    write_tables(found)
    assert not (tmp_path / "report.html").exists()
    assert [path.name for path in pictures.iterdir()] == ["mine.png"]


def test_one_seed_has_no_spread(results):
    found = results("figure2", "smart", seeds=(2,))
    assert found.rows[0].values.std == {} and "±" not in markdown(found)


def test_without_the_baseline_there_is_no_ratio(results):
    found = results("figure2", "smart")
    assert "time_ratio" not in found.rows[0].values.mean and "time_ratio" in found.quantities
    assert "No time ratio of ours: the row baseline is not among the rows." in found.notes
    line = next(line for line in markdown(found).splitlines() if line.startswith("| SMART"))
    assert line.endswith("| – | 1.11 |")
    found = results("figure2", "baseline", "smart", changed={("baseline", seed): state("diverged") for seed in SEEDS})
    assert "No time ratio of ours: the row baseline has no finished run." in found.notes
    assert "time_ratio" not in results("figure7", "batches-40-6-4").quantities


def test_the_test_split_where_it_has_labels(results):
    found = results("figure3", "smart")
    assert found.split == "test" and found.rows[0].values.mean["sst_accuracy"] == pytest.approx(0.43)
    found = results("figure3", "smart", test=False)
    assert found.split == "dev" and found.rows[0].values.mean["sst_accuracy"] == pytest.approx(0.53)
    note = "The data has no labelled test split: our figures are of dev, the paper's of test."
    assert note in found.notes and note in markdown(found) and "Ours: dev split" in markdown(found)
    assert results("figure2", "smart").split == "dev"


def test_what_is_missing_is_said(results):
    changed = {("smart", 1): state("diverged"), ("smart", 3): state("not finished")}
    changed |= {("pretrain", seed): state("pretraining diverged") for seed in SEEDS}
    found = results("figure2", "baseline", "smart", "pretrain", changed=changed)
    pretrain, smart = found.rows[1:]
    assert smart.note == "diverged with seed 1; not finished with seed 3" and smart.values.n_seeds == 1
    assert pretrain.values.mean == {} and pretrain.values.n_seeds == 0
    assert found.warnings == (
        "smart/seed-1 diverged: the loss was not finite.",
        "pretrain/seed-1, pretrain/seed-2, pretrain/seed-3 diverged in pretraining: the loss was not finite.",
        "1 of 9 runs are not finished; the same command goes on.",
    )
    assert set(found.warnings) <= set(lines_below(found))


def test_runs_of_different_machines(results):
    def elsewhere(outcome):
        return Outcome(outcome.job, outcome.folder, "finished", metrics(0.5, 1.0, threads=64), {})

    note = "The runs differ in machine, threads or versions: their times cannot be compared."
    assert note in results("figure2", "baseline", "smart", changed={("smart", 2): elsewhere}).notes
    assert note not in results("figure2", "baseline", "smart").notes


def test_the_files_agree(results, tmp_path):
    found = results("figure2", "baseline", "smart", "pretrain", changed={("pretrain", 2): state("not finished")})
    paths = write_tables(found)
    assert [path.name for path in paths] == ["results.json", "results.csv", "results.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    written = json.loads(paths[0].read_text())
    assert (written["experiment"], written["seeds"], written["command"]) == ("figure2", [1, 2, 3], "the command")
    assert written["environment"]["versions"] == {"torch": "2"} and "data" in written
    # The runs', whatever makes the tables.
    assert written["version"] == "0.0.7" and "commit" not in written
    assert any("0.764; its own formula gives 0.769" in note for note in written["notes"])
    rows = {row["name"]: row for row in written["rows"]}
    assert [run["sst_accuracy"] for run in rows["pretrain"]["runs"]] == [0.3, None, 0.6]
    assert rows["pretrain"]["runs"][0]["pretrain"] == {"seconds": 100.0, "mlm_loss": 3.0, "mlm_accuracy": None}
    assert rows["smart"]["config"]["smart.weight"] == 2.0 and rows["pretrain"]["config"]["pretrain.epochs"] == 5
    assert rows["pretrain"]["config"]["model"] == "small"
    for line in csv.DictReader(io.StringIO(paths[1].read_text())):
        row = rows[line["row"]]
        assert int(line["seeds_finished"]) == row["n_seeds"] and line["recipe"] == row["recipe"]
        for name in ("sst_accuracy", "score", "seconds_per_epoch", "time_ratio"):
            assert float(line[name]) == row["mean"][name] and float(line[f"{name}_paper"]) == row["paper"][name]
            std = line[f"{name}_std"]
            assert (float(std) if std else None) == row["std"].get(name)


def test_what_people_read(results):
    found = results("figure2", "baseline", "smart", "pretrain")
    lines = markdown(found).splitlines()
    assert lines[0] == "# Figure 2: development set performance of all approaches"
    assert lines[6].startswith("| Baseline | 3 | 0.447 ±0.040 | 0.480 | 0.800 ±0.000 | 0.887 |")
    assert lines[7].endswith("| 10.0 ±0.0 | 1,416 | 0.91 ±0.08 | 0.87 | 101.0 |")
    cells = [line.count("|") for line in lines if line.startswith("|")]
    assert len(set(cells)) == 1 and len(cells) == 5
    assert any("its own formula gives 0.769" in line for line in lines) and lines[-1] == "    the command"

    console = Console(file=io.StringIO(), width=80)
    console.print(console_table(found))
    shown = [line.split() for line in console.file.getvalue().splitlines() if line.strip()]
    assert shown[1] == ["SST", "QQP", "STS", "Score", "s/epoch", "Ratio", "MLM", "s"]
    assert shown[3] == ["Baseline", "0.447", "0.800", "0.700", "0.749", "11.0", "1.00", "–"]
    assert shown[4][-5:] == ["±0.040", "±0.000", "±0.000", "±0.013", "±1.0"]
    assert shown[5] == ["the", "paper", "0.480", "0.887", "0.882", "0.764", "1,620", "1.00"]


def test_the_page_links_the_runs(results, tmp_path):
    page = tmp_path / "smart" / "seed-2" / "report.html"
    page.parent.mkdir(parents=True)
    page.write_text("")
    found = results("figure2", "baseline", "smart", changed={("smart", 3): state("not finished")})
    assert found.rows[1].values.reports == ("smart/seed-2/report.html",)
    text = write_page(found).read_text()
    assert 'href="smart/seed-2/report.html"' in text and "the command" in text
    conditions = "Ours: dev split, somewhere, model small, seeds 1, 2, 3, fused ops, first row 2 epochs of 7 cycles."
    assert found.conditions[0] == conditions and conditions in text
    assert "1 of 6 runs are not finished" in text and "formula gives 0.769" in text
    assert Path(tmp_path / "figures").is_dir()
