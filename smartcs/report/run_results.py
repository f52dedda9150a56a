"""Sections of a run's page on what it reached: figures, training, analysis of the dev predictions."""

from __future__ import annotations

from typing import Any

from smartcs.data.examples import TASKS
from smartcs.report import analysis_figures, training_figures
from smartcs.report.page import DASH, Section, Table, counted, figure_text
from smartcs.report.papers_row import changed_conditions, changed_method, has_row
from smartcs.report.run_data import RunData
from smartcs.report.training_figures import FIGURES
from smartcs.training import paper


def published_figures(run: RunData) -> dict[str, float]:
    """The paper's dev figures of what the run did; {} where it has no such row."""
    return paper.DEV[run.recipe].as_dict() if has_row(run) else {}


def figures(run: RunData) -> Section:
    """The best epoch's dev figures and the test figures beside the paper's and the majority class's."""
    dev, test, majority, published = (
        run.section("dev"),
        run.section("test"),
        run.section("dev", "majority"),
        published_figures(run),
    )
    if not dev and not test:
        return Section("figures", "Figures")
    test_row = paper.TEST.get(run.recipe) if published else None
    columns: list[tuple[str, dict[str, Any]]] = [("dev", dev), ("majority, dev", majority)]
    if published:
        columns.append(("paper, dev", published))
    if any(test.get(name) is not None for name in FIGURES):
        columns.append(("test", test))
        if test_row:
            columns.append(("paper, test", test_row.as_dict()))
    rows = [[label, *(figure_text(values.get(name)) for _, values in columns)] for name, label in FIGURES.items()]
    losses = dev.get("losses") or {}
    examples = dev.get("examples") or {}
    details = [
        [task.upper(), figure_text(losses.get(task)), f"{examples[task]:,}" if task in examples else DASH]
        for task in TASKS
        if task in losses or task in examples
    ]
    notes = ["Score = (SST accuracy + QQP accuracy + (STS Pearson + 1) / 2) / 3."]
    if published:
        notes.append(_conditions(run))
        if slip := paper.score_slip(paper.NAMES[run.recipe], published):
            notes.append(slip)
    elif changed := changed_method(run):
        notes.append(
            f"The paper's row ({paper.NAMES[run.recipe]}) is not shown: this run's method is another, with settings "
            f"other than the recipe's (in brackets): {', '.join(changed)}."
        )
    else:
        notes.append("The paper has no row for this recipe.")
    picture = training_figures.headline(run, majority, published)
    tables = [Table(["", *(name for name, _ in columns)], rows)]
    if details:
        tables.append(Table(["Task", "Dev loss", "Dev examples"], details))
    return Section("figures", "Figures", pictures=[picture] if picture else [], tables=tables, notes=notes)


def _conditions(run: RunData) -> str:
    """What the paper's row and this run are of."""
    shape, train = run.section("model"), run.section("data", "examples", "train")
    mine = []
    if shape:
        mine.append(f"{counted(shape.get('num_hidden_layers'), 'layer')} of hidden size {shape.get('hidden_size')}")
    if train:
        mine.append(" + ".join(f"{count:,} {task.upper()}" for task, count in train.items()) + " training examples")
    if run.config.get("epochs"):
        cycles = counted(run.metrics.get("cycles_per_epoch") or 0, "cycle")
        mine.append(f"{counted(run.config['epochs'], 'epoch')} of {cycles}")
    changed = changed_conditions(run)
    return (
        f"The paper's row ({paper.NAMES[run.recipe]}) is of BERT base, 12 layers of hidden size 768, on the full data "
        f"for {paper.EPOCHS} epochs."
        + (f" This run is of {', '.join(mine)}." if mine else "")
        + (f" Its settings other than the recipe's (in brackets): {', '.join(changed)}." if changed else "")
    )


def training(run: RunData) -> Section:
    """Losses and dev figures over time."""
    pictures = training_figures.loss_curves(run)
    dev = training_figures.dev_curves(run, run.section("dev", "majority"))
    names = [name for name in FIGURES if any(epoch.get(name) is not None for epoch in run.epochs)]
    best = run.metrics.get("best_epoch")
    rows = [
        [
            f"{epoch['epoch']}{' (best)' if epoch['epoch'] == best else ''}",
            *(figure_text(epoch.get(name)) for name in names),
            *(
                figure_text((epoch.get(kind) or {}).get(task))
                for kind in ("train_losses", "dev_losses")
                for task in TASKS
            ),
        ]
        for epoch in run.epochs
    ]
    headings = ["Epoch", *(FIGURES[name] for name in names)]
    headings += [f"{task.upper()} {split} loss" for split in ("train", "dev") for task in TASKS]
    tables = [Table(headings, rows, "Every epoch in numbers", folded=True)] if rows else []
    return Section("training", "Training", pictures=[*pictures, *([dev] if dev else [])], tables=tables)


def analysis(run: RunData) -> list[Section]:
    """One section for each task that was analysed."""
    found, sections = run.section("analysis"), []
    sst, qqp, sts = (found.get(task) for task in ("sst", "qqp", "sts"))
    if sst:
        by_class = zip(
            paper.SST_CLASSES, sst["recall"], paper.SST_RECALL, sst["precision"], paper.SST_PRECISION,
            sst["adjacent_errors_by_class"], strict=True,
        )  # fmt: skip
        rows = [[name, *map(figure_text, values)] for name, *values in by_class]
        headings = ["Class", "Recall", "the paper", "Precision", "the paper", "Adjacent errors"]
        pictures = [
            analysis_figures.sst_by_class("recall", sst["recall"]),
            analysis_figures.sst_by_class("precision", sst["precision"]),
            analysis_figures.adjacent_errors(sst),
            analysis_figures.confusion("sst", sst["confusion"]),
        ]
        sections.append(
            Section("sst", "Sentiment by class", pictures=pictures, tables=[Table(headings, rows)], notes=[_SST_NOTE])
        )
    pictures, tables = [], []
    if qqp:
        by_class = zip(_QQP_NAMES, qqp["recall"], qqp["precision"], strict=True)
        pictures.append(analysis_figures.confusion("qqp", qqp["confusion"]))
        rows = [[name, figure_text(recall), figure_text(precision)] for name, recall, precision in by_class]
        tables.append(Table(["QQP class", "Recall", "Precision"], rows))
    if sts:
        pictures.append(analysis_figures.sts_histograms(sts))
        rows = [["labels", figure_text(sts.get("true_mean"))], ["predictions", figure_text(sts.get("predicted_mean"))]]
        tables.append(Table(["STS", "Mean"], rows))
    sections.append(Section("pairs", "Paraphrases and similarity", pictures=pictures, tables=tables))
    return sections


_QQP_NAMES = ("different", "duplicate")
_SST_NOTE = (
    "From the dev predictions of the best epoch. The paper's figure 9 does not name its model; its recalls make an "
    "accuracy of .494, that of SMART + Bregman and of Stickland."
)
