"""The tables of the experiment (`benchmarks/experiment.py`), from what it keeps in results/experiment."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from results_io import RESULTS, read

STAGES = ("settings", "paper-batches", "candidates", "methods", "float32", "batches", "lambda", "parts")
FIGURES = {"sst_accuracy": "SST", "qqp_accuracy": "QQP", "sts_pearson": "STS", "score": "score"}
Row = Mapping[str, Any]


def stage(name: str, folder: Path = RESULTS) -> Mapping[str, Any] | None:
    """What a stage's tables hold; None where it has not run."""
    path = folder / "experiment" / name / "results.json"
    return json.loads(path.read_text()) if path.is_file() else None


def rows_of(name: str, folder: Path = RESULTS) -> list[Row]:
    """The finished rows of a stage."""
    return [row for row in (stage(name, folder) or {"rows": []})["rows"] if row["n_seeds"]]


def mean_of(row: Row, name: str, digits: int = 3) -> str:
    """Mean and, over several seeds, one standard deviation."""
    if name not in row["mean"]:
        return ""
    spread = f" ± {row['std'][name]:.{digits}f}" if name in row["std"] else ""
    return f"{row['mean'][name]:.{digits}f}{spread}"


def difference_of(row: Row, name: str) -> str:
    """Paired difference and its interval, bold where that excludes zero."""
    found = row["difference"].get(name)
    if found is None:
        return ""
    text = f"{found['mean']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"
    return f"**{text}**" if found["clear"] else text


def papers_difference(row: Row, rows: Sequence[Row], name: str) -> str:
    """The paper's figure minus its baseline's."""
    baseline = next((one for one in rows if one["name"] == "baseline"), None)
    if baseline is None or name not in row["paper"] or row is baseline:
        return ""
    return f"{row['paper'][name] - baseline['paper'][name]:+.3f}"


def short_table(folder: Path = RESULTS) -> str:
    """The recipes with several seeds: differences from the baseline, cost, and the paper's beside them."""
    rows = rows_of("methods", folder)
    repeated = [row for row in rows if row["n_seeds"] > 1]
    if not repeated:
        return "Not run."
    lines = [conditions("methods", folder), ""]
    lines.append(
        "| minus the baseline's, same seeds | SST accuracy | the paper's | score | cycle's time | the paper's |"
    )
    lines.append("|---|---|---|---|---|---|")
    cycles = cycle_ratios(folder)
    for row in repeated:
        if row["name"] == "baseline":
            values = " / ".join(mean_of(row, name) for name in FIGURES)
            lines.append(f"| `baseline`: {values} | 0 | | 0 | 1 | 1 |")
            continue
        theirs = row["paper"].get("time_ratio")
        cells = [difference_of(row, "sst_accuracy"), papers_difference(row, rows, "sst_accuracy")]
        cells += [
            difference_of(row, "score"),
            cycles.get(row["name"], "not measured"),
            "" if theirs is None else f"{theirs:.2f}",
        ]
        lines.append(f"| `{row['name']}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def conditions(name: str, folder: Path = RESULTS) -> str:
    """What the figures of a stage are of."""
    found = stage(name, folder)
    if found is None:
        return "Not run."
    finished = [row for row in found["rows"] if row["n_seeds"]]
    config, machine = finished[0]["config"], found["environment"]["machine"]
    versions = found["environment"]["versions"]
    counts = sorted({row["n_seeds"] for row in finished})
    about = json.loads((folder / "experiment" / name / "about.json").read_text())
    examples = found["data"]["examples"]
    trained = ", ".join(f"{task.upper()} {n:,}" for task, n in examples["train"].items())
    dev = ", ".join(f"{task.upper()} {n:,}" for task, n in examples["dev"].items())
    batches = f"batches of {' / '.join(str(config[f'batch_{task}']) for task in examples['dev'])}"
    seeds = " or ".join(map(str, counts))
    return (
        f"{config['cycles']} cycles, {batches}, {config['learning_rate']:g} with {config['warmup']} steps of warm-up, "
        f"{config['pooling']} pooling, {config['precision']}; seeds: {seeds}; trained on {trained}; evaluated once, at "
        f"the end, on {dev}. {machine['cpu']}, torch {versions['torch']}, kept at commit "
        f"{about['commit']}{' with changes' if about['dirty'] else ''}."
    )


def cycle_ratios(folder: Path = RESULTS, precision: str = "fp32") -> dict[str, str]:
    """Recipe -> time of a cycle over the baseline's at the paper's batches, taken in turns."""
    rows = [row for row in read("cost", folder) if (row["shape"], row["precision"]) == ("minilm", precision)]
    most = max((row["threads"] for row in rows), default=0)
    return {row["case"]: f"{row['ratios']['baseline'][1]:.2f}" for row in rows if row["threads"] == most}


def methods_table(folder: Path = RESULTS) -> str:
    """Every recipe: figures, differences and cost."""
    rows = rows_of("methods", folder)
    if not rows:
        return "Not run."
    lines = [
        conditions("methods", folder),
        "",
        f"| recipe | seeds | {' | '.join(FIGURES.values())} |",
        "|---" * 6 + "|",
    ]
    for row in rows:
        lines.append(f"| `{row['name']}` | {row['n_seeds']} | {' | '.join(mean_of(row, n) for n in FIGURES)} |")
    lines += [
        "",
        "Minus the baseline, same seeds, same dev examples; the paper's difference in SST and score beside it:",
        "",
    ]
    lines += [f"| recipe | {' | '.join(FIGURES.values())} | the paper's SST | the paper's score |", "|---" * 7 + "|"]
    for row in rows:
        if row["difference"]:
            cells = [difference_of(row, name) for name in FIGURES]
            theirs = [papers_difference(row, rows, name) for name in ("sst_accuracy", "score")]
            lines.append(f"| `{row['name']}` | {' | '.join([*cells, *theirs])} |")
    return "\n".join(lines)


def cost_and_diagnostics(folder: Path = RESULTS) -> str:
    """Time ratios, and what SMART and Bregman did on SST."""
    rows = rows_of("methods", folder)
    if not rows:
        return "Not run."
    float32, bf16 = (cycle_ratios(folder, precision) for precision in ("fp32", "bf16"))
    lines = ["| recipe | time, float32 | bf16 | the paper's | alignment | norm of v | R_s on SST | from the anchor |"]
    lines.append("|---" * 8 + "|")
    for row in rows:
        theirs = row["paper"].get("time_ratio")
        cells = [ratios.get(row["name"], "not measured") for ratios in (float32, bf16)]
        cells += ["" if theirs is None else f"{theirs:.2f}", *_diagnostics(row)]
        divergence = row["anchor_divergence"].get("sst")
        cells.append("" if divergence is None else f"{divergence:.3g}")
        lines.append(f"| `{row['name']}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _diagnostics(row: Row) -> list[str]:
    """Alignment, size of v and R_s on SST; empty without SMART, and the alignment where v is random."""
    smart = dict(row["smart"].get("sst", {}))
    if smart and row["config"]["smart.step_size"] == 0:
        del smart["adversarial_alignment"]  # its gradient was taken elsewhere
    keys = {"adversarial_alignment": ".2f", "perturbation_norm": ".3g", "regulariser": ".3g"}
    return [format(smart[key], form) if key in smart else "" for key, form in keys.items()]


def parts_table(folder: Path = RESULTS) -> str:
    """SMART's parts on SST alone."""
    rows = rows_of("parts", folder)
    if not rows:
        return "Not run."
    lines = [conditions("parts", folder), ""]
    lines.append("| on SST alone | seeds | SST | minus no regulariser | alignment | norm of v | R_s |")
    lines.append("|---" * 7 + "|")
    for row in rows:
        cells = [str(row["n_seeds"]), mean_of(row, "sst_accuracy"), difference_of(row, "sst_accuracy")]
        lines.append(f"| {row['label']} | {' | '.join([*cells, *_diagnostics(row)])} |")
    return "\n".join(lines)


def contrasts_table(folder: Path = RESULTS) -> str:
    """Rows against each other in SST accuracy, seed by seed."""
    lines = ["| SST accuracy of | minus | difference | seed by seed |", "|---|---|---|---|"]
    for name in ("methods", "parts"):
        labels = {row["name"]: row["label"] if name == "parts" else f"`{row['name']}`" for row in rows_of(name, folder)}
        for pair in (stage(name, folder) or {"contrasts": []})["contrasts"]:
            each = ", ".join(f"{value:+.3f}" for value in pair["difference"]["sst_accuracy"]["each"])
            cells = [labels[pair["row"]], labels[pair["minus"]], difference_of(pair, "sst_accuracy"), each]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else "Not run."


def settings_table(folder: Path = RESULTS) -> str:
    """What the settings were chosen by."""
    rows = [row for name in ("settings", "paper-batches", "candidates") for row in rows_of(name, folder)]
    if not rows:
        return "Not run."
    lines = ["| held-out training texts | QQP batch | cycles | seeds | SST | QQP | STS | score |", "|---" * 8 + "|"]
    for row in rows:
        config = row["config"]
        batch = str(config["batch_qqp"]) if config["tasks"] == "all" else ""
        cells = [batch, str(config["cycles"]), str(row["n_seeds"]), *(mean_of(row, name) for name in FIGURES)]
        lines.append(f"| {row['label']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def others_table(folder: Path = RESULTS) -> str:
    """Batches and lambda, and both precisions of one row; one seed each."""
    methods = {row["name"]: row for row in rows_of("methods", folder)}
    if not methods:
        return "Not run."
    lines = [f"| one seed | {' | '.join(FIGURES.values())} | the paper's score |", "|---" * 6 + "|"]
    lines += [_one_seed(row, row["label"]) for row in rows_of("batches", folder)]
    config = methods["baseline"]["config"]
    ours = f"Batches of {config['batch_qqp']} QQP, {config['batch_sst']} SST, {config['batch_sts']} STS: `baseline`"
    lines.append(_one_seed({**methods["baseline"], "paper": {}}, ours))
    lines += [_one_seed(row, row["label"]) for row in rows_of("lambda", folder) if row["name"] != "baseline"]
    if "smart-all" in methods:
        lines.append(_one_seed(methods["smart-all"], "SMART on all, lambda 2: `smart-all`"))
    for row in rows_of("float32", folder):
        lines.append(_one_seed(row, f"`{row['name']}` in float32"))
        lines.append(
            _one_seed(methods[row["name"]], f"`{row['name']}` in {methods[row['name']]['config']['precision']}")
        )
    return "\n".join(lines)


def _one_seed(row: Row, label: str) -> str:
    first = row["runs"][0]
    theirs = row["paper"].get("score")
    cells = [f"{first[name]:.3f}" if first[name] is not None else "" for name in FIGURES]
    return f"| {label} | {' | '.join(cells)} | {'' if theirs is None else f'{theirs:.3f}'} |"


def from_metrics(name: str, folder: Path = RESULTS) -> list[str]:
    """Where a stage's tables are not what its runs' metrics say; one line each."""
    wrong = []
    for row in rows_of(name, folder):
        paths = sorted((folder / "experiment" / name / row["name"]).glob("seed-*.json"))
        metrics = [json.loads(path.read_text()) for path in paths]
        if len(metrics) != row["n_seeds"]:
            wrong.append(f"{name}: {len(metrics)} metrics of {row['name']}, expected {row['n_seeds']}")
            continue
        for key in (*FIGURES, "seconds_per_epoch"):
            values = [one[key] for one in metrics if one[key] is not None]
            if not values:
                continue
            if abs(fmean(values) - row["mean"][key]) > 1e-9:
                wrong.append(f"{name}: {key} of {row['name']} is {row['mean'][key]}, its runs say {fmean(values)}")
            if len(values) > 1 and abs(stdev(values) - row["std"][key]) > 1e-9:
                wrong.append(f"{name}: {key} of {row['name']} has spread {row['std'][key]}, its runs {stdev(values)}")
    return [*wrong, *_wrong_differences(name, folder)]


def _wrong_differences(name: str, folder: Path) -> list[str]:
    """Where differences are not those of the runs' figures, seed by seed; their intervals need the predictions."""
    found = stage(name, folder)
    if found is None:
        return []
    pairs = [(row["name"], found["baseline"], row["difference"]) for row in found["rows"] if row.get("difference")]
    pairs += [(pair["row"], pair["minus"], pair["difference"]) for pair in found.get("contrasts", [])]
    wrong = []
    for one, other, differences in pairs:
        runs = [_by_seed(folder / "experiment" / name / row) for row in (one, other)]
        common = sorted(set(runs[0]) & set(runs[1]))
        for key, difference in differences.items():
            each = [runs[0][seed][key] - runs[1][seed][key] for seed in common]
            same = len(each) == len(difference["each"])
            if not same or any(abs(a - b) > 1e-6 for a, b in zip(each, difference["each"], strict=True)):
                wrong.append(f"{name}: {key} of {one} minus {other} is {difference['each']}, the runs say {each}")
    return wrong


def _by_seed(folder: Path) -> dict[int, Mapping[str, Any]]:
    return {int(path.stem.removeprefix("seed-")): json.loads(path.read_text()) for path in folder.glob("seed-*.json")}


TABLES = {
    "experiment": short_table,
    "experiment-methods": methods_table,
    "experiment-cost": cost_and_diagnostics,
    "experiment-parts": parts_table,
    "experiment-contrasts": contrasts_table,
    "experiment-settings": settings_table,
    "experiment-others": others_table,
}
"""By the name of the generated part."""
