"""``python -m smartcs.predict RUN_DIR``: a finished run on a data folder or on text."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from smartcs.training.commandline import UsageError, run_command

if TYPE_CHECKING:
    from smartcs.model.multitask import MultitaskBert
    from smartcs.training.saved_run import SavedRun

_DESCRIPTION = """\
Predict with a run's best weights.

Without --task: writes the CS224N course's prediction files for dev and test of a data folder.

With --task: reads text, one sentence per line for sst, two separated by a tab for qqp and sts, from
--text or else from standard input, and prints one line each, separated by tabs:
  sst  class 0 to 4, its name, its probability, the sentence
  qqp  1 for a paraphrase or 0, the probability of 1, the two sentences
  sts  similarity, about 0 to 5, the two sentences
"""

_CLASSES = ("negative", "somewhat negative", "neutral", "somewhat positive", "positive")
_CHUNK = 256  # lines read before they are answered, when nobody is typing them


@dataclass(frozen=True)
class PredictConfig:
    """What to predict."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Output folder of a training run."""
    data: Annotated[str | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the run's)")] = None
    """Folder with the course's files, or "sample"."""
    output: Annotated[str | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: RUN_DIR/predictions)")] = (
        None
    )
    """Where to write the prediction files."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace prediction files that are there."""
    task: Annotated[
        Literal["sst", "qqp", "sts"] | None,
        tyro.conf.arg(metavar="{sst,qqp,sts}", help_behavior_hint="(default: predict a data folder)"),
    ] = None
    """Predict text for this task."""
    text: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="[TEXT ...]", help_behavior_hint="(default: standard input)")
    ] = ()
    """Sentences for --task, each an argument; for qqp and sts two arguments make a pair."""
    batch_size: int = 64
    """Examples per batch; changes speed only."""
    fused: bool = True
    """Run the compiled C++ ops, or with --no-fused their PyTorch reference."""


def main() -> int:
    config = tyro.cli(PredictConfig, prog="python -m smartcs.predict", description=_DESCRIPTION)
    _check(config)
    from smartcs.ops.backend import set_backend
    from smartcs.training.saved_run import SavedRun

    set_backend("fused" if config.fused else "reference")
    run = SavedRun.load(config.run)
    if config.task is None:
        _predict_folder(config, run)
    else:
        _predict_text(config.task, config.batch_size, run.model, _lines(config))
    return 0


def _check(config: PredictConfig) -> None:
    if config.batch_size < 1:
        raise UsageError(f"--batch-size is {config.batch_size}, expected at least 1")
    if config.task is None:
        if config.text:
            raise UsageError("--text needs --task sst, qqp or sts")
        return
    if config.data is not None or config.output is not None or config.overwrite:
        raise UsageError("--data, --output and --overwrite are for prediction files, which --task does not write")
    if config.task != "sst" and len(config.text) % 2:
        raise UsageError(f"--text has {len(config.text)} sentences, expected pairs for --task {config.task}")


def _predict_folder(config: PredictConfig, run: SavedRun) -> None:
    from smartcs.training.evaluation import evaluate
    from smartcs.training.predictions import file_name, write_predictions
    from smartcs.training.run_folder import PREDICTIONS

    folder = run.folder / PREDICTIONS if config.output is None else Path(config.output).expanduser()
    data = run.data(config.data)
    splits = {name: split for name, split in (("dev", data.dev), ("test", data.test)) if split}
    taken = [
        file_name(task, name)
        for name, split in splits.items()
        for task in split
        if (folder / file_name(task, name)).exists()
    ]
    if taken and not config.overwrite:
        raise FileExistsError(
            f"{folder} already holds {', '.join(taken)}: pass --overwrite to replace them, or another --output"
        )
    for name in splits:
        encoded = run.encode(data, name)
        result = evaluate(run.model, encoded, config.batch_size)
        ids = {task: examples.ids for task, examples in encoded.items()}
        for path in write_predictions(folder, name, ids, result.predictions):
            print(path)


def _lines(config: PredictConfig) -> Iterator[str]:
    if config.text:
        step = 1 if config.task == "sst" else 2
        texts = [" ".join(text.split()) for text in config.text]
        yield from ("\t".join(texts[at : at + step]) for at in range(0, len(texts), step))
        return
    if sys.stdin.isatty():
        what = "a sentence" if config.task == "sst" else "two sentences separated by a tab"
        print(f"type {what} per line; Ctrl-D ends", file=sys.stderr)
    yield from sys.stdin


def _predict_text(task: str, batch_size: int, model: MultitaskBert, lines: Iterable[str]) -> None:
    # Whoever types gets an answer to every line; a file is read in chunks.
    chunk = 1 if sys.stdin.isatty() else _CHUNK
    numbered = ((number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip())
    while rows := list(islice(numbered, chunk)):
        if task == "sst":
            sentences = [text for _, text in rows]
            for sentence, probabilities in zip(sentences, model.sentiment(sentences, batch_size), strict=True):
                best = int(probabilities.argmax())
                print(f"{best}\t{_CLASSES[best]}\t{probabilities[best]:.3f}\t{sentence}")
        else:
            pairs = [_pair(number, text) for number, text in rows]
            values = (model.paraphrase if task == "qqp" else model.similarity)(pairs, batch_size)
            for (first, second), value in zip(pairs, values.tolist(), strict=True):
                answer = f"{int(value > 0.5)}\t{value:.3f}" if task == "qqp" else f"{value:.3f}"
                print(f"{answer}\t{first}\t{second}")
        sys.stdout.flush()


def _pair(number: int, line: str) -> tuple[str, str]:
    parts = [part.strip() for part in line.split("\t")]
    if len(parts) != 2 or not all(parts):
        raise UsageError(
            f"line {number}: got {len(parts)} tab-separated sentences, expected two that are not empty: {line[:80]!r}"
        )
    return parts[0], parts[1]


if __name__ == "__main__":
    run_command(main)
