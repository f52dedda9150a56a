"""The benchmark tables of the pages and README's picture, made from the committed rows in benchmarks/results.

    python benchmarks/tables.py           rewrites the generated parts of the pages and draws docs/cycle.png
    python benchmarks/tables.py --check   fails where a page is not what the rows say; needs neither torch nor network

A generated part stands between `<!-- generated: NAME -->` and `<!-- end: NAME -->` in README.md or one of `PAGES`; the
figures of docs/experiment.md must also be those of every run's metrics in results/experiment.
The check also holds docs/profile.md to a sentence, outside its generated parts, on every op that takes more than 5 % of
the cycle.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import distributed_tables
import experiment_tables
import gpu_proofs
import gpu_tables
import robustness_summary
import robustness_tables
from goals import goals_table
from gpu_resources_table import CPP, TRITON, resources_table
from markers import generated_part, part_names, with_part, without_parts
from results_io import RESULTS, Row, read

ROOT = RESULTS.parent.parent
PAGES = (
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{page}.md"
        for page in ("performance", "experiment", "gpu", "gpu-resources", "distributed", "robustness")
    ),
)
WITH_TABLES = (
    experiment_tables,
    gpu_tables,
    gpu_proofs,
    distributed_tables,
    robustness_tables,
    robustness_summary,
)
PROFILE, PICTURE = ROOT / "docs" / "profile.md", ROOT / "docs" / "cycle.png"
OWN = "smartcs"
SHAPES = {"minilm": "MiniLM's shape, 6 x 384", "base": "BERT-base's shape, 12 x 768"}
NOTED = 0.05


def with_most_threads(rows: Sequence[Row]) -> list[Row]:
    """The rows of the largest number of threads among them."""
    most = max((one["threads"] for one in rows), default=0)
    return [one for one in rows if one["threads"] == most]


def span(three: Sequence[float], digits: int = 2) -> str:
    """Median, and 20 % and 80 % in brackets."""
    low, middle, high = (f"{value:.{digits}f}" for value in three)
    return f"{middle} ({low} - {high})"


def where(one: Row) -> str:
    """The conditions that stand above a table."""
    dirty = " with changes" if one["dirty"] else ""
    return (
        f"{one['cpu']}, {one['threads']} threads, {one['compiler']}, torch {one['torch']}, transformers "
        f"{one['transformers']}, commit {one['commit']}{dirty}, {one['date']}"
    )


def cycle_table(rows: Sequence[Row], memory: Sequence[Row]) -> str:
    """The smart-bregman cycle of all candidates, a table per shape."""
    parts = []
    for shape, title in SHAPES.items():
        found = with_most_threads([r for r in rows if r["shape"] == shape and r["case"] == "smart-bregman"])
        measured = [r for r in found if r["status"] == "measured"]
        if not measured:
            parts.append(f"{title}: not measured.")
            continue
        peaks = {r["candidate"]: r for r in memory if r["shape"] == shape and r["status"] == "measured"}
        lines = [f"{title}; {where(measured[0])}:", ""]
        lines.append(
            "| SMART + Bregman cycle | ms | over ours, float32 | over ours, bf16 | time over floor | peak MB |"
        )
        lines.append("|---|---|---|---|---|---|")
        for one in found:
            if one["status"] != "measured":
                lines.append(f"| {one['candidate']} | not measured: {one['reason']} | | | | |")
                continue
            ratios = [
                span(one["ratios"][f"{OWN} {p}"])
                if f"{OWN} {p}" in one["ratios"]
                else ("1" if p == one_of(one) else "")
                for p in ("fp32", "bf16")
            ]
            peak = peaks.get(one["candidate"])
            megabytes = f"{peak['median'] / 2**20:,.0f}" if peak else "not measured"
            lines.append(
                f"| {one['candidate']} | {1e3 * one['median']:,.0f} | {' | '.join(ratios)} | {one['over_floor']:.2f} | "
                f"{megabytes} |"
            )
        tokens = measured[0]
        text = ", ".join(f"{t.upper()} {tokens['tokens'][t]:.0f} ({tokens['padded'][t]:.0f})" for t in tokens["tokens"])
        source = "embedded sentences" if tokens["text"] == "sample" else "sentences of the CS224N data"
        lines += ["", f"{source}; tokens a batch (padded positions): {text}."]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def one_of(row: Row) -> str:
    """The precision of one of our own candidates, else nothing."""
    return row["precision"] if row["candidate"].startswith(OWN) else ""


def ops_table(rows: Sequence[Row]) -> str:
    """Per op, mode and precision the smallest and largest ratio over its sizes, losses included."""
    rows = with_most_threads([r for r in rows if r["status"] == "measured"])
    if not rows:
        return "Not measured."
    lines = [f"{where(rows[0])}:", ""]
    lines.append(
        "| op | mode | precision | time of the reference over fused | of torch's own over fused | of the roof |"
    )
    lines.append("|---|---|---|---|---|---|")
    for case, precision in dict.fromkeys((r["case"], r["precision"]) for r in rows):
        group = [r for r in rows if (r["case"], r["precision"]) == (case, precision)]

        def ratios(name: str, group: list[Row] = group) -> str:
            medians = sorted(r["ratios"]["fused"][1] for r in group if r["candidate"] == name)
            return f"{medians[0]:.2f} - {medians[-1]:.2f}" if medians else "not measured"

        shares = sorted(r["roof_share"] for r in group if r["candidate"] == "fused")
        op, mode = case.rsplit(" ", 1)
        share = f"{shares[0]:.0%} - {shares[-1]:.0%}" if shares else ""
        lines.append(f"| {op} | {mode} | {precision} | {ratios('reference')} | {ratios('torch')} | {share} |")
    return "\n".join(lines)


def embed_table(rows: Sequence[Row]) -> str:
    """Sentences per second of `embed` and its peers."""
    found = with_most_threads([r for r in rows if r["shape"] == "minilm"] or list(rows))
    measured = [r for r in found if r["status"] == "measured"]
    if not measured:
        return "Not measured."
    lines = [f"{where(measured[0])}:", "", "| sentence embeddings, MiniLM | sentences/s | time over ours, float32 |"]
    lines.append("|---|---|---|")
    for one in found:
        if one["status"] != "measured":
            lines.append(f"| {one['candidate']} | not measured: {one['reason']} | |")
            continue
        ratio = span(one["ratios"][f"{OWN} fp32"]) if f"{OWN} fp32" in one["ratios"] else "1"
        lines.append(f"| {one['candidate']} | {one['per_second'][1]:,.0f} | {ratio} |")
    return "\n".join(lines)


def cost_table(rows: Sequence[Row]) -> str:
    """What the paper's methods cost over the baseline's cycle."""
    rows = with_most_threads(rows)
    if not rows:
        return "Not measured."
    columns = list(dict.fromkeys((r["shape"], r["precision"]) for r in rows))
    lines = ["| recipe | by operations | " + " | ".join(f"{shape}, {p}" for shape, p in columns) + " |"]
    lines.append("|---" * (2 + len(columns)) + "|")
    for recipe in dict.fromkeys(r["case"] for r in rows):
        found = {(r["shape"], r["precision"]): r for r in rows if r["case"] == recipe}
        expected = next(iter(found.values())).get("by_operations")
        cells = [span(found[c]["ratios"]["baseline"]) if c in found else "" for c in columns]
        lines.append(f"| `{recipe}` | {f'{expected:.2f}' if expected else ''} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Time of every candidate's cycle by task, a panel per shape."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 3.2), layout="constrained")
    colours = {"sst": "#1d3557", "qqp": "#8d99ae", "sts": "#e76f51"}
    for axis, (shape, title) in zip(axes, SHAPES.items(), strict=True):
        found = with_most_threads([r for r in rows if r["shape"] == shape and r["case"] == "smart-bregman"])
        found = [r for r in found if r["status"] == "measured"][::-1]
        left = [0.0] * len(found)
        for task, colour in colours.items():
            widths = [1e3 * r["tasks"][task] for r in found]
            axis.barh([r["candidate"] for r in found], widths, left=left, color=colour, label=task.upper())
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axis.set(title=title, xlabel="ms a cycle")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def parts(folder: Path = RESULTS) -> dict[str, Callable[[], str]]:
    """What makes each generated part, by name."""
    return {
        "cycle": lambda: cycle_table(read("cycle", folder), read("memory", folder)),
        "ops": lambda: ops_table(read("ops", folder)),
        "embed": lambda: embed_table(read("embed", folder)),
        "cost": lambda: cost_table(read("cost", folder)),
        "goals": lambda: goals_table(folder),
        "gpu-resources-triton": lambda: resources_table(TRITON, folder),
        "gpu-resources-cpp": lambda: resources_table(CPP, folder),
        **{name: partial(table, folder) for one in WITH_TABLES for name, table in one.TABLES.items()},
    }


def differences(pages: Sequence[Path] = PAGES, profile: Path = PROFILE, folder: Path = RESULTS) -> list[str]:
    """What is wrong with the committed pages, one line each."""
    known, found = parts(folder), []
    for path in pages:
        page = path.read_text()
        for name in part_names(page):
            if name not in known:
                found.append(f"{path.name}: unknown generated part {name}, expected one of {', '.join(known)}")
            elif generated_part(page, name) != known[name]():
                found.append(f"{path.name}: part {name} is not what the rows say; run python benchmarks/tables.py")
    for name in experiment_tables.STAGES:
        found += experiment_tables.from_metrics(name, folder)
    by_hand = without_parts(profile.read_text()) if profile.is_file() else ""
    for one in read("profile", folder):
        for op, share in one["shares"].items():
            if share > NOTED and f"`{op}`" not in by_hand:
                found.append(
                    f"{profile.name}: no sentence on `{op}`, {share:.1%} of {one['shape']} in {one['precision']}"
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where something is out of date")
    if parser.parse_args().check:
        wrong = differences()
        sys.exit("\n".join(wrong) if wrong else None)
    known = parts()
    for path in PAGES:
        page = path.read_text()
        for name in part_names(page):
            page = with_part(page, name, known[name]())
        path.write_text(page)
    if any(one["status"] == "measured" and one["shape"] in SHAPES for one in read("cycle")):
        draw(read("cycle"), PICTURE)
    if experiment_tables.rows_of("methods"):
        from experiment_picture import draw_analysis, draw_finding

        draw_finding(ROOT / "docs" / "experiment.png")
        draw_analysis(ROOT / "docs" / "experiment-analysis.png")


if __name__ == "__main__":
    main()
