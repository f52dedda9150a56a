"""One page that sets several runs, each over its seeds, beside each other and beside the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from smartcs.report.run_data import anchor_divergence

QUANTITIES = ("sst_accuracy", "qqp_accuracy", "sts_pearson", "score", "seconds_per_epoch", "time_ratio")
"""What a row knows mean, spread and paper's value of; time_ratio is seconds per epoch over the baseline row's."""


@dataclass(frozen=True)
class ComparisonRow:
    """One line of a reproduction: a system or a setting, over its seeds.

    Attributes:
        name: unique within the page, e.g. the recipe.
        label: as people read it, e.g. the paper's name of the system.
        n_seeds: finished runs behind the means; 0 for a row that has not been run.
        mean: quantity (see `QUANTITIES`) -> mean over the seeds; what is missing was not measured.
        std: quantity -> sample standard deviation over the seeds; only where there are two or more.
        paper: quantity -> the paper's value; empty where the paper has no such row.
        smart: task -> "fallbacks", "adversarial_alignment", "perturbation_norm", "regulariser", ... (means over the
            seeds of the section of metrics.json); empty without SMART.
        anchor_divergence: tasks, joined by +, -> mean divergence from the Bregman anchor; empty without one.
        reports: the runs' pages, as paths relative to the folder of this page.
        note: anything a reader must know of this row, e.g. "2 of 3 seeds finished".
    """

    name: str
    label: str
    n_seeds: int = 0
    mean: Mapping[str, float] = field(default_factory=dict)
    std: Mapping[str, float] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)
    smart: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    anchor_divergence: Mapping[str, float] = field(default_factory=dict)
    reports: Sequence[str] = ()
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("mean", "std", "paper"):
            unknown = sorted(set(getattr(self, name)) - set(QUANTITIES))
            if unknown:
                raise ValueError(
                    f"ComparisonRow: {name} has unknown keys {', '.join(unknown)}; known: {', '.join(QUANTITIES)}"
                )

    @classmethod
    def from_metrics(
        cls,
        name: str,
        label: str,
        metrics: Sequence[Mapping[str, Any]],
        *,
        split: str = "dev",
        baseline_seconds: float | Sequence[float] | None = None,
        paper: Mapping[str, float | None] | None = None,
        reports: Sequence[str] = (),
        note: str = "",
    ) -> ComparisonRow:
        """The row of some finished runs.

        Args:
            name, label, reports, note: see the class.
            metrics: the runs' metrics.json, one per seed.
            split: "dev" or "test": whose figures.
            baseline_seconds: seconds per epoch of the baseline, for the ratio, one number or one per run; None leaves
                it out.
            paper: the paper's values; None among them are left out.
        """
        measured: dict[str, list[float]] = {}
        each = baseline_seconds if isinstance(baseline_seconds, Sequence) else [baseline_seconds] * len(metrics)
        for run, baseline in zip(metrics, each, strict=True):
            figures = run.get(split) or {}
            seconds = run.get("seconds_per_epoch")
            values = {**{key: figures.get(key) for key in QUANTITIES[:4]}, "seconds_per_epoch": seconds}
            if seconds is not None and baseline:
                values["time_ratio"] = seconds / baseline
            for key, value in values.items():
                if value is not None:
                    measured.setdefault(key, []).append(float(value))
        smart = [run["smart"] for run in metrics if run.get("smart")]
        divergence = [{"tasks": anchor_divergence(run)} for run in metrics]
        return cls(
            name,
            label,
            n_seeds=len(metrics),
            mean={key: fmean(values) for key, values in measured.items()},
            std={key: stdev(values) for key, values in measured.items() if len(values) > 1},
            paper={key: float(value) for key, value in (paper or {}).items() if value is not None},
            smart=_means_by_task(smart),
            anchor_divergence=_means_by_task(divergence).get("tasks", {}),
            reports=tuple(reports),
            note=note,
        )


def _means_by_task(runs: Sequence[Mapping[str, Mapping[str, float | None]]]) -> dict[str, dict[str, float]]:
    """The mean over runs of every number in two levels of names; None among them are left out."""
    collected: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for outer, values in run.items():
            for inner, value in values.items():
                if value is not None:
                    collected.setdefault(outer, {}).setdefault(inner, []).append(float(value))
    return {outer: {inner: fmean(values) for inner, values in names.items()} for outer, names in collected.items()}
