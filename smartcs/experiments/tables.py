"""Results as people and spreadsheets read them: a table on the console, Markdown, CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from rich import box
from rich.table import Table

from smartcs.experiments.results import RESULTS, Results, RowResult, json_text
from smartcs.model.files import text_writer, write_files
from smartcs.report.comparison import QUANTITIES
from smartcs.report.comparison_page import PICTURES
from smartcs.report.page import picture_file
from smartcs.training.run_folder import REPORT

HEADINGS = {
    "sst_accuracy": "SST",
    "qqp_accuracy": "QQP",
    "sts_pearson": "STS",
    "score": "Score",
    "seconds_per_epoch": "s/epoch",
    "time_ratio": "Ratio",
}
_DIGITS = {"seconds_per_epoch": 1, "time_ratio": 2}
_MLM = "MLM s"
_DASH = "–"


def write_tables(results: Results) -> list[Path]:
    """Writes results.json, results.csv and results.md, all or none; returns their paths.

    The page of earlier tables and its pictures are removed.
    """
    texts = {RESULTS: json_text(results), "results.csv": csv_text(results), "results.md": markdown(results)}
    folder = results.options.output
    page = [REPORT, *map(picture_file, PICTURES)]
    write_files(folder, {name: text_writer(text) for name, text in texts.items()}, remove=page)
    return [folder / name for name in texts]


def console_table(results: Results) -> Table:
    """Ours, its spread where there are several seeds and the paper's below each other: 80 columns have room for it."""
    title = f"{results.experiment.title} ({results.split})"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    table.add_column("", overflow="fold", min_width=16)
    for name in results.quantities:
        table.add_column(HEADINGS[name], justify="right", no_wrap=True)
    mlm = _pretrains(results)
    if mlm:
        table.add_column(_MLM, justify="right", no_wrap=True)
    for result in results.rows:
        pretraining = [_pretrain_seconds(result)] if mlm else []
        table.add_row(result.row.label, *(_mean(result, name) for name in results.quantities), *pretraining)
        if result.values.std:
            table.add_row("  ± over seeds", *(_spread(result, name) for name in results.quantities))
        if result.values.paper:
            table.add_row("  the paper", *(_paper(result, name) for name in results.quantities), style="dim")
    return table


def lines_below(results: Results) -> list[str]:
    """What must be known of the rows and of the table, a sentence or two per line."""
    rows = [f"{result.row.label}: {result.note}." for result in results.rows if result.note]
    keys = ["s/epoch: seconds of training steps per epoch, evaluation not counted."]
    if results.experiment.baseline:
        keys.append(f"Ratio: s/epoch over that of the row {results.experiment.baseline} with the same seed.")
    if _pretrains(results):
        keys.append(f"{_MLM}: seconds of additional pretraining, which s/epoch does not count.")
    if any(result.values.std for result in results.rows):
        keys.append("±: one sample standard deviation over the seeds.")
    return [*results.conditions, *rows, *keys, *results.notes, *results.slips, *results.warnings]


def markdown(results: Results) -> str:
    """The table with the paper's figures in columns of their own, then what must be known of it."""
    quantities = results.quantities
    paired = [name for name in quantities if any(name in result.values.paper for result in results.rows)]
    headings, rows = ["Row", "Seeds"], [[result.row.label, str(result.values.n_seeds)] for result in results.rows]
    for name in quantities:
        headings += [HEADINGS[name], *(["paper"] if name in paired else [])]
        for cells, result in zip(rows, results.rows, strict=True):
            cells += [_ours(result, name), *([_paper(result, name)] if name in paired else [])]
    if _pretrains(results):
        headings.append(_MLM)
        for cells, result in zip(rows, results.rows, strict=True):
            cells.append(_pretrain_seconds(result))
    lines = [f"# {results.experiment.title}", "", " ".join(results.conditions), ""]
    lines += [_markdown_line(headings), _markdown_line(["---", *("---:" for _ in headings[1:])])]
    lines += [_markdown_line(cells) for cells in rows]
    lines += _difference_lines(results)
    lines += ["", *(f"- {line}" for line in lines_below(results) if line not in results.conditions)]
    if results.options.command:
        lines += ["", f"    {results.options.command}"]
    return "\n".join(lines) + "\n"


def _difference_lines(results: Results) -> list[str]:
    """The paired differences as a table of their own; nothing where there are none."""
    different = [result for result in results.rows if result.differences]
    if not different:
        return []
    names = [name for name in QUANTITIES if name in different[0].differences]
    lines = ["", f"## Minus {results.experiment.baseline}, same seeds and examples", ""]
    lines += [_markdown_line(["Row", "Seeds", *(HEADINGS[name] for name in names)])]
    lines += [_markdown_line(["---", *("---:" for _ in range(1 + len(names)))])]
    labels = {result.row.name: result.row.label for result in results.rows}
    compared = [(result.row.label, result.differences) for result in different]
    compared += [(f"{labels[a]} minus {labels[b]}", found) for (a, b), found in results.contrasts.items()]
    for label, differences in compared:
        found = [differences[name] for name in names]
        texts = [f"{d.mean:+.3f} ({d.low:+.3f} to {d.high:+.3f})" for d in found]
        cells = [f"**{text}**" if d.clear else text for text, d in zip(texts, found, strict=True)]
        lines.append(_markdown_line([label, str(found[0].seeds), *cells]))
    return [
        *lines,
        "",
        "In brackets: 95 %, the wider of a paired bootstrap over examples and seeds and of Student's t over the seeds; "
        "with one seed of examples alone, which says nothing about another seed. Bold: several seeds, and not zero.",
    ]


def csv_text(results: Results) -> str:
    """One line per row: means, sample standard deviations over the seeds and the paper's figures, unrounded."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    kinds = ("mean", "std", "paper")
    writer.writerow(
        [
            *("row", "label", "recipe", "split", "seeds_finished"),
            *(name if kind == "mean" else f"{name}_{kind}" for name in QUANTITIES for kind in kinds),
            *("pretrain_seconds", "note"),
        ]
    )
    for result in results.rows:
        row, values = result.row, result.values
        writer.writerow(
            [
                *(row.name, row.label, row.recipe, results.split, values.n_seeds),
                *(getattr(values, kind).get(name, "") for name in QUANTITIES for kind in kinds),
                *("" if result.pretrain_seconds is None else result.pretrain_seconds, result.note),
            ]
        )
    return out.getvalue()


def _ours(result: RowResult, name: str) -> str:
    return f"{_mean(result, name)} {_spread(result, name)}".strip()


def _mean(result: RowResult, name: str) -> str:
    mean = result.values.mean
    return f"{mean[name]:.{_DIGITS.get(name, 3)}f}" if name in mean else _DASH


def _spread(result: RowResult, name: str) -> str:
    std = result.values.std
    return f"±{std[name]:.{_DIGITS.get(name, 3)}f}" if name in std else ""


def _paper(result: RowResult, name: str) -> str:
    paper = result.values.paper
    # The paper gives whole seconds.
    digits = 0 if name == "seconds_per_epoch" else _DIGITS.get(name, 3)
    return f"{paper[name]:,.{digits}f}" if name in paper else _DASH


def _pretrains(results: Results) -> bool:
    return any(result.row.pretrains for result in results.rows)


def _pretrain_seconds(result: RowResult) -> str:
    return _DASH if result.pretrain_seconds is None else f"{result.pretrain_seconds:,.1f}"


def _markdown_line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
