"""The page of one training run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from smartcs.model.files import damaged
from smartcs.report import run_details, run_results
from smartcs.report.drawing import house_style
from smartcs.report.page import DASH, Section, counted, figure_text, write_page
from smartcs.report.run_data import RunData
from smartcs.report.training_figures import FIGURES
from smartcs.training.recipes import AUTO_MODEL
from smartcs.training.run_folder import METRICS, PICTURES


def write_run_report(folder: str | Path) -> Path:
    """Writes report.html and figures/*.png into a run's folder; returns the page's path.

    The page is one file that needs no network; parts that the run has nothing for are left out, so that it can be made
    of an interrupted run as well.

    Args:
        folder: the output folder of a training run.

    Raises:
        CheckpointError: it holds no metrics.json, or metrics.json or losses.csv is damaged.
    """
    run = RunData.read(Path(folder))
    with damaged(run.folder / METRICS, "what a training run writes"):
        return _write(run, folder)


def _write(run: RunData, folder: str | Path) -> Path:
    with house_style():
        sections = [section for section in _sections(run) if section]
    heading = "Masked language modelling" if run.is_pretraining else run.recipe or "Training run"
    kind = "Pretraining run" if run.is_pretraining else "Training run"
    context = {
        "title": f"{heading}: {kind.lower()}",
        "kind": kind,
        "heading": heading,
        "summary": _summary(run),
        "status": _status(run),
        "warnings": _warnings(run),
        "tiles": _tiles(run),
        "sections": sections,
        "folder": shlex.quote(str(folder)),
    }
    pictures = [picture for section in sections for picture in section.pictures]
    return write_page(run.folder, "run.html.j2", pictures, context, PICTURES)


def _summary(run: RunData) -> str:
    config, shape, parts = run.config, run.section("model"), []
    if shape:
        named = f"{config['model']}: " if config.get("model", AUTO_MODEL) != AUTO_MODEL else ""
        parts.append(
            f"{named}{counted(shape.get('num_hidden_layers'), 'layer')}, hidden size {shape.get('hidden_size')}"
        )
    if run.section("data").get("source"):
        parts.append(f"data {run.section('data')['source']}")
    if run.planned_epochs is not None:
        cycles = run.metrics.get("cycles_per_epoch")
        parts.append(counted(run.planned_epochs, "epoch") + (f" of {counted(cycles, 'cycle')}" if cycles else ""))
    if run.metrics.get("steps") is not None:
        parts.append(f"{counted(run.metrics['steps'], 'optimizer step')}")
    if config.get("seed") is not None:
        parts.append(f"seed {config['seed']}")
    return " · ".join(parts)


def _status(run: RunData) -> dict[str, str]:
    for name in ("diverged", "interrupted"):
        if run.metrics.get(name):
            return {"kind": "bad", "text": name}
    return {"kind": "good", "text": "finished"} if run.metrics.get("finished", True) else _UNFINISHED


_UNFINISHED = {"kind": "bad", "text": "not finished"}


def _warnings(run: RunData) -> list[str]:
    metrics, warnings = run.metrics, []
    done = len(run.epochs)
    if metrics.get("diverged"):
        warnings.append("Training diverged: a loss was not finite. Figures, if any, are of the epochs before.")
    elif metrics.get("interrupted") or not metrics.get("finished", True):
        warnings.append(f"The run ended early: {done} of {run.planned_epochs} epochs were evaluated.")
    fallbacks = sum(values.get("fallbacks") or 0 for values in run.section("smart").values())
    if fallbacks:
        warnings.append(
            f"SMART fell back to the plain loss in {fallbacks:,} steps because the perturbation's gradient was not "
            "finite."
        )
    return warnings


def _tiles(run: RunData) -> list[dict[str, Any]]:
    dev, majority, published = (
        run.section("dev"),
        run.section("dev", "majority"),
        run_results.published_figures(run),
    )
    tiles = []
    for name, label in FIGURES.items():
        beside = [("majority class", figure_text(majority.get(name)))] if majority else []
        if published:
            beside.append(("the paper", figure_text(published[name])))
        tiles.append({"label": f"{label}, dev", "value": figure_text(dev.get(name)), "beside": beside})
    return tiles if any(tile["value"] != DASH for tile in tiles) else []


def _sections(run: RunData) -> list[Section]:
    return [
        run_results.figures(run),
        run_results.training(run),
        *run_results.analysis(run),
        run_details.smart(run),
        run_details.pretraining(run),
        run_details.time(run),
        run_details.configuration(run),
        run_details.environment(run),
    ]
