"""Figures of how a run went: what it reached, its losses, its dev figures by epoch, its time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from smartcs.report.drawing import COLOURS, Picture, finish, mark, new_figure, powers, smoothed, steps, thinned
from smartcs.report.run_data import Curve, RunData
from smartcs.training.metrics import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURES = {
    "sst_accuracy": "SST accuracy",
    "qqp_accuracy": "QQP accuracy",
    "sts_pearson": "STS Pearson",
    "score": "Score",
}
LOSSES = {"sst": "cross entropy", "qqp": "binary cross entropy", "sts": "mean squared error"}
PARTS = {"data": "Data", "forward": "Forward", "backward": "Backward", "optimizer": "Optimizer", "step": "Step"}
_MASKED_LOSS = "cross entropy at hidden word pieces"
_MARKERS = {"sst_accuracy": "o", "qqp_accuracy": "s", "sts_pearson": "^", "score": "D"}
FIGURE_COLOURS = {**{name: COLOURS[task] for task, name in METRICS.items()}, "score": COLOURS["score"]}


def headline(run: RunData, majority: Mapping[str, float], paper: Mapping[str, float]) -> Picture | None:
    """The dev figures on one scale, beside the majority class and the paper's row."""
    dev = run.section("dev")
    shown = [name for name in FIGURES if dev.get(name) is not None]
    if not shown:
        return None
    figure, axes = new_figure(5.2, 0.62 + 0.46 * len(shown))
    low, drawn = 0.0, set()
    for row, name in enumerate(shown):
        points = {"majority": majority.get(name), "theirs": paper.get(name), "ours": dev[name]}
        known = [value for value in points.values() if value is not None]
        low = min(low, *known)
        axes.plot([min(known), max(known)], [row, row], color=COLOURS["line"], linewidth=3, zorder=1)
        for kind, value in points.items():
            if value is not None:
                axes.plot([value], [row], label=None if kind in drawn else _LABELS[kind], **mark(kind))
                drawn.add(kind)
    axes.set_yticks(range(len(shown)), [FIGURES[name] for name in shown], color=COLOURS["ink"])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(low - 0.02, 1.0)
    axes.grid(axis="y", visible=False)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, handletextpad=0.2, columnspacing=1.4)
    axes.set_title("Dev figures of the best epoch")
    beside = {"majority": "the majority class (grey square)", "theirs": "the paper's row (bar)"}
    against = " and ".join(text for kind, text in beside.items() if kind in drawn)
    caption = f"Dev figures of the best epoch (dot){f' beside {against}' if against else ''}. Further right is better."
    return finish(figure, "headline", caption)


_LABELS = {"ours": "this run", "theirs": "the paper", "majority": "majority class"}


def loss_curves(run: RunData) -> list[Picture]:
    """One figure per task: its loss at every step, smoothed, and the dev loss at the end of each epoch."""
    pictures = []
    for task, curve in run.curves.get("loss", {}).items():
        loss = _MASKED_LOSS if run.is_pretraining else LOSSES[task]
        figure, axes = new_figure()
        window = draw_curve(axes, curve, COLOURS[task], "training")
        _mark_epochs(axes, run)
        dev = [
            (run.epoch_ends[epoch["epoch"]], epoch["dev_losses"][task])
            for epoch in run.epochs
            if epoch.get("epoch") in run.epoch_ends and (epoch.get("dev_losses") or {}).get(task) is not None
        ]
        if dev:
            axes.plot(
                *zip(*dev, strict=True), "o-", color=COLOURS["ink"], linewidth=1, markersize=4.5, label="dev",
                markerfacecolor=COLOURS["page"], markeredgewidth=1.3, clip_on=False, zorder=4,
            )  # fmt: skip
        axes.set_ylabel(loss)
        axes.set_ylim(0, _ceiling(curve, [value for _, value in dev], window))
        steps(axes, run.last_step)
        figure.legend(loc="outside lower right", ncols=2, handlelength=1.4)
        axes.set_title(f"{task.upper()} loss")
        caption = f"{task.upper()}, {loss}: every training batch (faint) and {_mean_of(window)}."
        if dev:
            caption += " Circles: the dev split after each epoch; where they rise while the line falls, it overfits."
        pictures.append(finish(figure, f"loss-{task}", caption))
    return pictures


def draw_curve(axes: Axes, curve: Curve, colour: str, label: str) -> int:
    """A curve as it is, faint, under its moving mean; returns the window."""
    window = _window(curve)
    # On its own a curve of few points is no noise to look through.
    faint = 0.28 if len(curve.values) > 20 else 0.45
    axes.plot(*thinned(curve.steps, curve.values), color=colour, alpha=faint, linewidth=0.7)
    mean = smoothed(curve.values, window)
    axes.plot(*thinned(curve.steps, mean), color=colour, linewidth=1.9, label=label)
    return window


def _window(curve: Curve) -> int:
    return min(len(curve.values), max(5, round(len(curve.values) / 40)))


def _mean_of(window: int) -> str:
    return f"the mean of the {window} batches around each step (line)" if window > 1 else "their line"


def _ceiling(curve: Curve, dev: list[float], window: int) -> float:
    """The top of the axis: single batches far above the rest are cut off rather than flatten the curve."""
    ordered = sorted(curve.values)
    usual = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return 1.08 * max([usual, *smoothed(curve.values, window), *dev, 1e-9])


def _mark_epochs(axes: Axes, run: RunData) -> None:
    ends = sorted(run.epoch_ends.values())[:-1]
    if len(ends) <= 40:
        for end in ends:
            axes.axvline(end, color=COLOURS["line"], linewidth=0.8, linestyle=(0, (3, 3)), zorder=0.5)


def dev_curves(run: RunData, majority: Mapping[str, float]) -> Picture | None:
    """The dev figures after each epoch."""
    epochs = run.epochs
    shown = [name for name in FIGURES if any(epoch.get(name) is not None for epoch in epochs)]
    if not shown:
        return None
    figure, axes = new_figure()
    values = [0.0]
    for name in shown:
        points = [(epoch["epoch"], epoch[name]) for epoch in epochs if epoch.get(name) is not None]
        values += [value for _, value in points]
        axes.plot(
            *zip(*points, strict=True), marker=_MARKERS[name], markersize=4.5, linewidth=1.7,
            color=FIGURE_COLOURS[name], label=FIGURES[name],
        )  # fmt: skip
        if majority.get(name) is not None:
            axes.axhline(majority[name], color=FIGURE_COLOURS[name], linewidth=0.9, linestyle=(0, (1, 2)))
    best = run.metrics.get("best_epoch")
    if best is not None and len(epochs) > 1:
        axes.axvline(best, color=COLOURS["muted"], linewidth=0.9, linestyle=(0, (4, 3)), zorder=0.5)
        axes.annotate(
            "best", (best, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 1), textcoords="offset points",
            ha="center", fontsize=8, color=COLOURS["muted"],
        )  # fmt: skip
    last = max(epoch["epoch"] for epoch in epochs)
    axes.set_xlim(0.7 if last > 1 else 0.5, last + (0.3 if last > 1 else 0.5))
    axes.set_xticks(range(1, last + 1, max(1, -(-last // 12))))
    axes.set_ylim(min(values) - (0.02 if min(values) < 0 else 0), 1.0)
    axes.set_xlabel("epoch")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.6)
    axes.set_title("Dev figures by epoch", pad=14)
    caption = "Dev figures after each epoch"
    if any(majority.get(name) is not None for name in shown):
        caption += "; dotted, in the same colour, what always answering with the commonest training label reaches"
    return finish(figure, "dev-figures", caption + ". The weights of the best score are kept.")


def time_parts(run: RunData) -> Picture | None:
    """Where the training time went."""
    seconds = {name: value for name, value in run.section("seconds_by_part").items() if value is not None}
    background = seconds.pop("data_background", None)  # passes while the others do
    total = sum(seconds.values())
    if total <= 0:
        return None
    meanwhile = "" if background is None else f" Batches were prepared meanwhile, in {background:,.1f} s of one core."
    passes = "With SMART, forward includes the perturbed passes and the search for the perturbation."
    if "step" in seconds:
        passes = "On a GPU a step is timed as a whole."
    figure, axes = new_figure(4.5, 0.95 + 0.34 * len(seconds))
    for row, value in enumerate(seconds.values()):
        axes.barh(row, value, height=0.62, color=COLOURS["ours"], alpha=0.85)
        axes.annotate(
            f"{value:,.1f} s  ({value / total:.0%})", (value, row), xytext=(5, 0), textcoords="offset points",
            va="center", fontsize=8.5,
        )  # fmt: skip
    axes.set_yticks(range(len(seconds)), [PARTS.get(name, name) for name in seconds], color=COLOURS["ink"])
    axes.set_ylim(len(seconds) - 0.5, -0.5)
    axes.set_xlim(0, 1.38 * max(seconds.values()))
    axes.set_xlabel("seconds")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_title("Training time by part")
    return finish(
        figure,
        "time-parts",
        f"The {total:,.1f} s of the training steps by part. {passes} Evaluation and loading are not in it.{meanwhile}",
    )


def epoch_seconds(run: RunData) -> Picture | None:
    """Training seconds of each epoch."""
    ends = [(epoch["epoch"], epoch["seconds"]) for epoch in run.epochs if epoch.get("seconds") is not None]
    if not ends:
        return None
    seconds = [end - begin for (_, end), begin in zip(ends, [0.0, *(end for _, end in ends)], strict=False)]
    figure, axes = new_figure(4.5, 2.4)
    axes.bar([epoch for epoch, _ in ends], seconds, width=0.7, color=COLOURS["ours"], alpha=0.85)
    mean = sum(seconds) / len(seconds)
    axes.axhline(mean, color=COLOURS["ink"], linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"mean\n{mean:,.1f} s", (1, mean), xycoords=("axes fraction", "data"), xytext=(4, 0),
        textcoords="offset points", va="center", fontsize=8.5,
    )  # fmt: skip
    last = max(epoch for epoch, _ in ends)
    axes.set_xlim(0.2, last + 0.8)
    axes.set_xticks(range(1, last + 1, max(1, -(-last // 12))))
    axes.set_ylim(0, 1.22 * max(seconds) or 1.0)
    axes.set(xlabel="epoch", ylabel="seconds")
    axes.grid(axis="x", visible=False)
    axes.set_title("Training time by epoch")
    return finish(figure, "time-epochs", "Seconds of training steps in each epoch, evaluation not counted.")


def diagnostics(run: RunData) -> list[Picture]:
    """SMART's and the Bregman anchor's quantities over the steps; none for a run without them."""
    pictures = []
    for column, (title, unit, log, caption) in _DIAGNOSTICS.items():
        curves = run.curves.get(column, {})
        if not curves:
            continue
        figure, axes = new_figure()
        values = [value for curve in curves.values() for value in curve.values]
        logarithmic = log and min(values) > 0 and max(values) > 30 * min(values)
        for task, curve in curves.items():
            draw_curve(axes, curve, COLOURS[task], task.upper())
        if logarithmic:
            axes.set_yscale("log")
            powers(axes.yaxis)
        elif column == "alignment":
            axes.set_ylim(min(-0.1, 1.1 * min(values)), 1.05)
            axes.axhline(0, color=COLOURS["muted"], linewidth=0.9)
        else:
            top = max(_ceiling(curve, [], _window(curve)) for curve in curves.values())
            axes.set_ylim(min(0.0, 1.08 * min(values)), top)
        axes.set_ylabel(unit)
        steps(axes, run.last_step)
        axes.legend(loc="best", handlelength=1.4)
        axes.set_title(title)
        pictures.append(finish(figure, f"smart-{column}", caption + (" Logarithmic axis." if logarithmic else "")))
    return pictures


# Column of losses.csv -> title, unit, whether a logarithmic axis may suit it, caption.
_DIAGNOSTICS = {
    "alignment": (
        "Adversarial alignment",
        "cosine",
        False,
        "Cosine of the perturbation with the gradient it should climb: 1 follows it, 0 is a random direction.",
    ),
    "perturbation": (
        "Perturbation size",
        "norm",
        True,
        "Norm of the perturbation, in the norm of the configuration. The embeddings it is added to have entries of "
        "the order of 0.05 in BERT.",
    ),
    "smart": (
        "Regulariser",
        "divergence",
        True,
        "How far the output moves under the perturbation, before it is weighted. Near zero, it does not regularise.",
    ),
    "bregman": (
        "Divergence from the anchor",
        "divergence",
        False,
        "How far the output is from that of the anchor, the moving average of the weights, before it is weighted.",
    ),
}


def pretraining(stage: Mapping[str, Any]) -> Picture | None:
    """Loss of the masked language model by epoch, on training batches and on dev."""
    epochs = stage.get("epochs") or []
    if not epochs:
        return None
    figure, axes = new_figure()
    top = 0.0
    for task, colour in ((task, COLOURS[task]) for task in METRICS):
        for kind, style in (("train_losses", (0, (2, 2))), ("dev_losses", "-")):
            losses = [(epoch["epoch"], (epoch.get(kind) or {}).get(task)) for epoch in epochs]
            points = [(epoch, loss) for epoch, loss in losses if loss is not None]
            if points:
                top = max(top, *(loss for _, loss in points))
                label = f"{task.upper()} {kind.split('_')[0]}"
                axes.plot(
                    *zip(*points, strict=True),
                    marker="o",
                    markersize=4,
                    color=colour,
                    linestyle=style,
                    linewidth=1.6,
                    label=label,
                )
    last = max(epoch["epoch"] for epoch in epochs)
    axes.set_xlim(0.5, last + 0.5)
    axes.set_xticks(range(1, last + 1, max(1, -(-last // 12))))
    axes.set_ylim(0, 1.08 * top or 1.0)
    axes.set(xlabel="pretraining epoch", ylabel=_MASKED_LOSS)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=2)
    axes.set_title("Masked language modelling")
    return finish(
        figure,
        "pretrain-loss",
        "Loss at the hidden word pieces by epoch: training batches (dashed) and dev (line). Where dev rises while "
        "training falls, the encoder learns the training texts by heart.",
    )
