"""The runs that an experiment consists of, and what of them lies in a folder already.

OUTPUT/<row>/seed-<seed>/             a run's folder, as `smartcs.train` writes it
OUTPUT/pretrained/<stage>-seed-<seed> an encoder after additional pretraining, shared by the rows of equal settings
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from smartcs.experiments.data_check import Contents, data_differences
from smartcs.experiments.figures import CHOSEN_PRETRAINING, Row
from smartcs.model.files import CheckpointError, read_json
from smartcs.training.commandline import UsageError
from smartcs.training.config import TrainConfig, flat
from smartcs.training.pretrain_config import PretrainConfig
from smartcs.training.pretrain_run import SETTINGS
from smartcs.training.recipes import AUTO_MODEL, SAMPLE_DATA, SMALL_MODEL, model_name, recipe_values
from smartcs.training.run_folder import METRICS, PRETRAINED

PRETRAINING = "pretraining.json"
"""In the folder of a run: metrics.json of the pretraining that its encoder comes from."""

State = Literal["finished", "diverged", "pretraining diverged", "not finished"]

# Where and how often a run writes, how it reads and how fast it evaluates: its figures do not depend on them. Nor on
# the recipe's name, whose values are among the other settings.
_NOT_THE_METHODS = frozenset(
    {
        *("recipe", "output", "overwrite", "report", "tensorboard", "eval_batch_size", "strict_data"),
        *("checkpoint_every", "keep", "max_skipped_steps"),
    }
)

_ALWAYS_THERE = ("diverged", "seconds", "seconds_total", "data", "config", "environment")  # in metrics.json


@dataclass(frozen=True)
class Options:
    """What all rows of a reproduction have in common.

    Attributes:
        output: folder of the reproduction.
        data, model, fused: as in `TrainConfig`.
        seeds: every row is run with each of them.
        epochs, cycles: of fine-tuning, for every row; None leaves it to the row and to `TrainConfig`.
        pretrain_epochs, pretrain_cycles: the same of additional pretraining, for the rows that have it.
        report: write pages, of every run and of the reproduction.
        overwrite: replace finished runs of other settings.
        settings: other values of `TrainConfig` by name, for every row.
        reuse: another reproduction's folder, whose finished runs of equal settings are taken as they are.
        jobs: runs at a time; more than one run in processes of their own.
        command: what made the tables, quoted in them.
        contents: what the data holds, as far as this command has looked.
    """

    output: Path
    data: str = SAMPLE_DATA
    model: str = AUTO_MODEL
    fused: bool = True
    seeds: tuple[int, ...] = (TrainConfig.seed,)
    epochs: int | None = None
    cycles: int | None = None
    pretrain_epochs: int | None = None
    pretrain_cycles: int | None = None
    report: bool = True
    overwrite: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    reuse: Path | None = None
    jobs: int = 1
    command: str = ""
    contents: Contents = field(default_factory=dict, compare=False, repr=False)

    def describe_seeds(self) -> str:
        """For people: "seed 1", "seeds 1, 2"."""
        return f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}"


@dataclass(frozen=True)
class Stage:
    """Additional pretraining: its folder below the reproduction's, and its configuration."""

    place: str
    config: TrainConfig


@dataclass(frozen=True)
class Job:
    """One run: a row with a seed.

    Attributes:
        row, seed: which.
        place: its folder below the reproduction's.
        config: of fine-tuning; `model` is the stage's folder where there is one.
        stage: what comes before.
    """

    row: Row
    seed: int
    place: str
    config: TrainConfig
    stage: Stage | None = None

    @property
    def from_the_start(self) -> TrainConfig:
        """The configuration of fine-tuning with the model that pretraining, if any, begins with."""
        return self.config if self.stage is None else replace(self.config, model=self.stage.config.model)


@dataclass(frozen=True)
class Outcome:
    """What lies in a run's folder.

    Attributes:
        job: which run.
        folder: where.
        state: "finished" has figures; "diverged" and "pretraining diverged" ended with a loss that is not finite;
            all others are "not finished".
        metrics: metrics.json of a finished run, else {}.
        pretraining: that of its pretraining, {} where there was none.
    """

    job: Job
    folder: Path
    state: State
    metrics: Mapping[str, Any]
    pretraining: Mapping[str, Any]


def make_jobs(rows: Sequence[Row], options: Options, *, chosen: bool = True) -> list[Job]:
    """The runs of these rows, row by row, seed by seed.

    Args:
        chosen: whether these rows were asked for; options that would replace what other rows are do not count there.

    Raises:
        ValueError: an option out of range, as `TrainConfig` says it.
        UsageError: an option that would replace what makes the rows different.
    """
    return [_make_job(row, seed, options, chosen) for row in rows for seed in options.seeds]


def _make_job(row: Row, seed: int, options: Options, asked_for: bool) -> Job:
    chosen: dict[str, Any] = {"epochs": options.epochs, "cycles": options.cycles}
    if row.pretrains:
        chosen |= {"pretrain.epochs": options.pretrain_epochs, "pretrain.cycles": options.pretrain_cycles}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    what_it_is = {**recipe_values(row.recipe), **row.settings}
    swept = [name for name in chosen if row.settings.get(name) != CHOSEN_PRETRAINING.get(name) and name in row.settings]
    swept += [name for name in options.settings if name in what_it_is]
    for name in swept:
        if asked_for:
            flag = f"--set {name}" if name in options.settings else f"--{name.replace('.', '-')}"
            raise UsageError(
                f"{flag} would replace what row {row.name} is about ({name} {what_it_is[name]}): "
                "leave it out, or choose other --rows"
            )
    chosen = {name: value for name, value in {**options.settings, **chosen}.items() if name not in swept}
    place = f"{row.name}/seed-{seed}"
    common = {"data": _data(options.data), "model": _model(options.model), "seed": seed, "fused": options.fused}
    output = {"output": str(options.output / place), "overwrite": True, "report": options.report}
    config = TrainConfig.from_dict({"recipe": row.recipe, **common, **output, **row.settings, **chosen})
    if not config.pretrain.epochs:
        return Job(row, seed, place, config)
    stage_place = f"{PRETRAINED}/{_stage_name(row)}-seed-{seed}"
    stage_folder = str((options.output / stage_place).absolute())
    # Dropout is left to the checkpoint, as `smartcs.pretrain` does: fine-tuning may want its own.
    stage = replace(config, output=stage_folder, encoder_dropout=None)
    tuning = replace(config, model=stage_folder, pretrain=PretrainConfig())
    return Job(row, seed, place, tuning, Stage(stage_place, stage))


def _data(data: str) -> str:
    return data if data in (SAMPLE_DATA, "") else str(Path(data).expanduser().absolute())


def _model(model: str) -> str:
    """A name that means the same tomorrow and from another folder."""
    name = model_name(model)
    if model in (AUTO_MODEL, SMALL_MODEL, "") or not Path(name).expanduser().exists():
        return name
    return str(Path(name).expanduser().absolute())


def _stage_name(row: Row) -> str:
    """Rows of one experiment whose pretraining differs have different names for it."""
    parts = ["mlm"]
    for name, value in row.settings.items():
        if name.startswith("pretrain.") and value != CHOSEN_PRETRAINING.get(name):
            parts += [name.removeprefix("pretrain.").replace("_", "-"), str(value).lower()]
    return "-".join(parts)


def find(job: Job, options: Options, remedy: str = "run it again") -> Outcome:
    """What there is of `job`: in the reproduction's folder, else finished with equal settings in `options.reuse`.

    Args:
        remedy: what the error says that --overwrite is for.

    Raises:
        UsageError: a finished run or pretraining of other settings or data, unless `options.overwrite` is set.
        CheckpointError: a file is damaged.
        DataError, ModelSourceError: there is a run, but no longer its data or model to compare with.
    """
    own = read_run(job, options.output)
    if _replaceable(job.place, differences(job, own, options), options, remedy):
        own = _none(job, options.output)
    if own.state == "not finished" and options.reuse is not None:
        other = read_run(job, options.reuse)
        if other.state == "finished" and not differences(job, other, options):
            return other
    if own.state == "not finished" and job.stage is not None:
        pretraining = find_stage(job.stage, options, remedy)
        if pretraining and pretraining["diverged"]:
            return replace(own, state="pretraining diverged", pretraining=pretraining)
    return own


def find_stage(stage: Stage, options: Options, remedy: str = "run it again") -> dict[str, Any] | None:
    """metrics.json of a pretraining that has ended by itself; None where it has not.

    Raises:
        UsageError, CheckpointError, DataError, ModelSourceError: see `find`.
    """
    metrics = _read_finished(options.output / stage.place)
    different: list[str] = []
    if metrics:
        different = _stage_differences(stage, metrics)
        different = different or data_differences(stage.config, metrics["data"], options.contents)
    return None if _replaceable(stage.place, different, options, remedy) else metrics


def _replaceable(place: str, different: Sequence[str], options: Options, remedy: str) -> bool:
    """Whether what lies at `place` is of other settings."""
    if different and not options.overwrite:
        raise UsageError(
            f"--output {options.output}: {place} is finished with other settings ({'; '.join(different)}): "
            f"pass --overwrite to {remedy}, or another --output"
        )
    return bool(different)


def differences(job: Job, outcome: Outcome, options: Options) -> list[str]:
    """What a finished run does not share with `job`, settings as "epochs 3, now 1"; [] for any other."""
    if outcome.state == "not finished":
        return []
    # Data is read and tokenized for it: only where all else is equal.
    return _setting_differences(job, outcome) or data_differences(
        job.from_the_start, outcome.metrics["data"], options.contents
    )


def _setting_differences(job: Job, outcome: Outcome) -> list[str]:
    wanted = {name: value for name, value in flat(job.config).items() if name not in _NOT_THE_METHODS}
    if job.stage is None:
        return _compare(wanted, outcome.metrics["config"])
    # The encoder is wherever the folder is now; what it is follows from the settings of its pretraining.
    wanted.pop("model")
    return [*_compare(wanted, outcome.metrics["config"]), *_stage_differences(job.stage, outcome.pretraining)]


def _stage_differences(stage: Stage, metrics: Mapping[str, Any]) -> list[str]:
    wanted = {
        name: value
        for name, value in flat(stage.config).items()
        if name.startswith("pretrain.") or name in set(SETTINGS) - _NOT_THE_METHODS
    }
    return _compare(wanted, metrics["config"])


def _compare(wanted: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[str]:
    # What a run of an earlier version does not name, it did by default.
    found = flat(TrainConfig()) | _flat_names(recorded)
    return [
        f"{name} {found[name]}, now {value}" for name, value in wanted.items() if not _same(name, found[name], value)
    ]


def _same(name: str, one: Any, other: Any) -> bool:
    """Whether two values of a setting are equal; a data folder may be written in several ways."""
    folders = name == "data" and SAMPLE_DATA not in (one, other)
    return one == other or (folders and os.path.realpath(one) == os.path.realpath(other))


def _flat_names(recorded: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in recorded.items():
        values |= (
            {f"{name}.{inner}": item for inner, item in value.items()} if isinstance(value, Mapping) else {name: value}
        )
    return values


def read_run(job: Job, output: Path) -> Outcome:
    """What lies in the folder of `job` below `output`, whatever its settings."""
    folder = output / job.place
    metrics = _read_finished(folder)
    pretraining = _read_finished(folder, PRETRAINING) if job.stage else None
    if metrics is None or (job.stage and pretraining is None):
        return _none(job, output)
    return Outcome(job, folder, "diverged" if metrics["diverged"] else "finished", metrics, pretraining or {})


def _none(job: Job, output: Path) -> Outcome:
    return Outcome(job, output / job.place, "not finished", {}, {})


def _read_finished(folder: Path, name: str = METRICS) -> dict[str, Any] | None:
    """A run's metrics if it has ended by itself."""
    if not os.path.isfile(folder / name):
        return None
    metrics = read_json(folder / name)
    if not metrics.get("finished") or metrics.get("interrupted"):
        return None
    missing = [key for key in _ALWAYS_THERE if key not in metrics]
    if missing:
        raise CheckpointError(f"{folder / name}: no {', '.join(missing)}: not what a finished run writes")
    return metrics
