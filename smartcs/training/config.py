"""The settings of a training run: their names, defaults (the paper's) and limits.

Where the values of a run come from is said in `recipes`: `TrainConfig.from_dict` puts them together, the constructor
takes every value as it is. `--help` of the command shows the text below each field.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, get_args

from tyro.conf import FlagCreatePairsOff, arg

from smartcs.model.multitask import Cosine
from smartcs.ops.precision import Precision
from smartcs.training.checks import Fields, task_names
from smartcs.training.pretrain_config import PretrainConfig
from smartcs.training.recipes import AUTO_MODEL, SAMPLE_DATA, default_values, recipe_values
from smartcs.training.regulariser_config import BregmanConfig, SmartConfig

_SHORTEST = 5  # [CLS] a [SEP] b [SEP], the least that `encode` cuts to

Pooling = Literal["auto", "pooler", "cls", "mean"]
SstHead = Literal["relu_hidden", "relu_logits"]
Device = Literal["auto", "cpu", "cuda"]
CudaGraphs = Literal["auto", "on", "off"]
Sampler = Literal["round_robin", "annealed_deterministic", "annealed"]


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run; the defaults are the paper's."""

    fused: bool = True
    """Run the compiled C++ ops; --no-fused runs their PyTorch reference, which learns the same."""
    recipe: str = "baseline"
    """Named settings, several joined by +.
    The paper's figure 2: baseline, pretrain, cosine, smart, smart-bregman, pretrain-smart-bregman, pretrain-cosine,
    smart-bregman-cosine, pretrain-smart-bregman-cosine.
    Its figure 8: dropout, stickland, smart-all.
    With a step that is truly adversarial: smart-adv, smart-adv-bregman."""
    tasks: str = "all"
    """Tasks to train and evaluate: all, or some of sst, qqp, sts joined by +. The score is of all three; without it the
    best epoch is the one of the highest mean of what the score would be made of."""
    data: str = SAMPLE_DATA
    """Folder with the course's files (ids-sst-train.csv, ...); "sample" is the embedded sample."""
    model: str = AUTO_MODEL
    """Encoder to start from: a folder, a hub id, "minilm" (the installed package), "small" (random weights).
    "auto" is minilm where that is installed, else small."""
    output: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: a new one in runs/)")] = None
    """Folder for weights, metrics.json, losses.csv and predictions."""
    overwrite: Annotated[bool, FlagCreatePairsOff] = False
    """Replace the run that the output folder holds."""
    sampler: Sampler = "round_robin"
    """Whose turn it is. round_robin: every task's, one after the other.
    annealed_deterministic: the largest set's alone for a while, then as round_robin (the paper's Stickland baseline).
    annealed: at random, in proportion to the sets' sizes at first, nearly evenly in the end (Stickland & Murray)."""
    solo_steps: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: as many as cycles)")] = None
    """Batches of the largest set alone at the beginning of every epoch of annealed_deterministic."""
    epochs: int = 10
    """Epochs; after each one the dev split is evaluated and the best weights so far are kept."""
    cycles: Annotated[
        int | None, arg(metavar="INT", help_behavior_hint="(default: until the task with fewest batches is exhausted)")
    ] = None
    """Cycles per epoch; a cycle is one batch and one optimizer step of each task."""
    seed: int = 11711
    """Names the initial heads, the order of examples, hidden tokens, SMART's noise and the dropout masks."""
    learning_rate: float = 3e-5
    """AdamW's learning rate, constant after the warm-up."""
    warmup: int = 0
    """Optimizer steps over which the learning rate rises linearly from zero."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 0.0
    """Scale gradients down to this norm, taken over all weights, where it is larger; 0 leaves them as they are."""
    batch_sst: int = 6
    """Sentences per SST batch; of each process, where torchrun has started several, and of each accumulated slice."""
    batch_qqp: int = 40
    """Pairs per QQP batch, likewise."""
    batch_sts: int = 4
    """Pairs per STS batch, likewise."""
    accumulate: int = 1
    """Batches whose gradients add up to one optimizer step, in each process: memory is that of one of them, and the
    step that of one batch of them all."""
    eval_batch_size: int = 64
    """Examples per batch when evaluating; changes speed only."""
    precision: Precision = "fp32"
    """Of matrix products. bf16: of numbers rounded to bfloat16, summed in float32, which all the rest stays: weights,
    sums, optimizer, and SMART's search for a perturbation. Where it has no fast bf16 products it runs in fp32."""
    device: Device = "auto"
    """Where it runs: cpu, cuda (an NVIDIA GPU), or auto, a GPU where torch sees one."""
    cuda_graphs: CudaGraphs = "auto"
    """Record each task's whole optimizer step, per shape of its batches, and replay it on the GPU in one launch. auto:
    where every op has a GPU kernel; "on" makes anything else an error. The numbers are those without."""
    pooling: Pooling = "auto"
    """What stands for a sentence; "auto" follows the checkpoint."""
    sst_head: SstHead = "relu_hidden"
    """Sentiment head: ReLU on a hidden layer, or on the logits (the other reading of the paper)."""
    cosine: Cosine = "none"
    """Similarity head. fusion: the cosine of the sentences, encoded one by one, joins what the pair says.
    direct: that cosine is the score. (A pair that is too long is cut as a pair, before its sentences are encoded.)"""
    head_dropout: float = 0.0
    """Dropout before the output layer of each head."""
    encoder_dropout: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(default: the checkpoint's)")] = (
        None
    )
    """Dropout of the encoder, hidden states and attention alike."""
    max_length: int = 512
    """Longest sequence in word pieces; longer ones are cut, counted and named."""
    holdout: float = 0.0
    """Share of the training texts that is cut off and evaluated in place of the dev files, which then take no part:
    for choosing settings. Which texts those are follows from the texts alone, whatever the seed."""
    strict_data: Annotated[bool, FlagCreatePairsOff] = False
    """Make malformed rows and sequences that are too long an error."""
    checkpoint_every: int = 500
    """Optimizer steps between two checkpoints, from which --resume goes on; 0: at the end of an epoch alone."""
    keep: int = 2
    """Newest checkpoints to keep, and besides the one of the best epoch; 0 writes none."""
    max_skipped_steps: int = 5
    """A step whose loss or gradient is not finite is skipped. This many in a row of one task end the run."""
    report: bool = True
    """Write report.html and its figures into the output folder at the end."""
    tensorboard: Annotated[bool, FlagCreatePairsOff] = False
    """Write TensorBoard events into the output folder as well."""
    smart: SmartConfig = field(default_factory=SmartConfig)
    """SMART regularisation."""
    bregman: BregmanConfig = field(default_factory=BregmanConfig)
    """Bregman proximal point."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """Additional pretraining before fine-tuning."""

    def __post_init__(self) -> None:
        check = Fields(self, "TrainConfig: {}")
        check.integer("epochs", "batch_sst", "batch_qqp", "batch_sts", "accumulate", "eval_batch_size", low=1)
        check.integer("cycles", low=1, optional=True)
        check.integer("solo_steps", low=0, optional=True)
        check.integer("seed", low=0, high=2**63 - 1)
        check.integer("max_length", low=_SHORTEST)
        check.integer("warmup", "checkpoint_every", "keep", low=0)
        check.integer("max_skipped_steps", low=1)
        check.flag("fused", "overwrite", "strict_data", "report", "tensorboard")
        check.text("recipe", "data", "model")
        check.tasks("tasks", none=False)
        check.text("output", what="a folder", optional=True)
        check.number("learning_rate", above=True)
        check.number("weight_decay", "max_grad_norm")
        check.number("head_dropout", "holdout", below=1)
        if self.encoder_dropout is not None:
            check.number("encoder_dropout", below=1)
        for name, choices in (
            ("precision", Precision),
            ("device", Device),
            ("cuda_graphs", CudaGraphs),
            ("pooling", Pooling),
            ("sst_head", SstHead),
            ("cosine", Cosine),
            ("sampler", Sampler),
        ):
            check.choice(name, get_args(choices))
        for name in PARTS:
            part = getattr(self, name)
            check.that(name, isinstance(part, PARTS[name]), "a configuration of its own")
            part.validate(f"TrainConfig: {name}.")
            part_check = Fields(part, f"TrainConfig: {name}.{{}}")
            trained = part.tasks == "none" or bool(self._of_trained(part.tasks))
            part_check.that("tasks", trained, f"some of the tasks that are trained, {'+'.join(self.trained_tasks)}")
        recipe_values(self.recipe)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """A config from what the user set; everything else as `recipes` says.

        Args:
            values: by field; those of a part either as a mapping, {"smart": {"weight": 5}}, or by a name with a dot,
                {"smart.weight": 5}.

        Raises:
            ValueError: an unknown key, recipe or model kind, or a value out of range; says what is valid.
        """
        given = _flat(values)
        known = list(flat(cls()))
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ValueError(f"TrainConfig: unknown keys {', '.join(unknown)}; known: {', '.join(known)}")
        given = {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in given.items()}
        chosen = {key: given.get(key, getattr(cls, key)) for key in ("recipe", "data", "model")}
        return cls(**nested({**default_values(**chosen), **given}))

    @property
    def batch_sizes(self) -> dict[str, int]:
        """Examples per slice of a batch, per task that is trained, in the order of a cycle; see `accumulate`."""
        return {name: getattr(self, f"batch_{name}") for name in self.trained_tasks}

    @property
    def trained_tasks(self) -> tuple[str, ...]:
        """The tasks that are trained and evaluated, in the order of a cycle."""
        return task_names(self.tasks)

    @property
    def smart_tasks(self) -> tuple[str, ...]:
        """The tasks that SMART regularises."""
        return self._of_trained(self.smart.tasks)

    @property
    def bregman_tasks(self) -> tuple[str, ...]:
        """The tasks with a Bregman term."""
        return self._of_trained(self.bregman.tasks)

    @property
    def pretrain_tasks(self) -> tuple[str, ...]:
        """The tasks whose texts additional pretraining reads."""
        return self._of_trained(self.pretrain.tasks)

    def _of_trained(self, tasks: str) -> tuple[str, ...]:
        return tuple(name for name in task_names(tasks) if name in self.trained_tasks)


PARTS: dict[str, type] = {"smart": SmartConfig, "bregman": BregmanConfig, "pretrain": PretrainConfig}


def flat(config: TrainConfig) -> dict[str, Any]:
    """All settings by name, those of a part as "smart.weight"."""
    values: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if item.name in PARTS:
            values |= {f"{item.name}.{part.name}": getattr(value, part.name) for part in fields(value)}
        else:
            values[item.name] = value
    return values


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `TrainConfig` from values by name; what is missing keeps its default."""
    parts: dict[str, Any] = {name: kind() for name, kind in PARTS.items()}
    plain: dict[str, Any] = {}
    for key, value in values.items():
        name, dot, inner = key.partition(".")
        if dot:
            parts[name] = replace(parts[name], **{inner: value})
        else:
            plain[key] = value
    return {**plain, **parts}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for key, value in values.items():
        if key not in PARTS:
            given[key] = value
            continue
        if isinstance(value, PARTS[key]):
            value = vars(value)
        if not isinstance(value, Mapping):
            raise ValueError(f"TrainConfig: {key} is {value!r}, expected a mapping of its settings")
        given |= {f"{key}.{inner}": content for inner, content in value.items()}
    return given
