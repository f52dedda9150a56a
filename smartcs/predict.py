"""``python -m smartcs.predict RUN_DIR``: a finished run on a data folder or on text."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tyro

from smartcs.model.multitask import MultitaskBert
from smartcs.ops.backend import set_backend
from smartcs.ops.precision import Precision, arithmetic, precision
from smartcs.training.commandline import UsageError, run_command
from smartcs.training.config import Device
from smartcs.training.device import choose_device
from smartcs.training.evaluation import evaluate
from smartcs.training.predictions import file_name, write_predictions
from smartcs.training.run_folder import PREDICTIONS
from smartcs.training.saved_run import SavedRun

_DESCRIPTION = """\
Predict with a run's best weights.

Without --task: writes the CS224N course's prediction files for dev and test of a data folder.

Training has left those of the run's own data in RUN_DIR/predictions.

Those of --data go to RUN_DIR/predictions-NAME, NAME being the folder's, unless --output says where.

With --task: reads text, one sentence per line for sst, two separated by a tab for qqp and sts, from
--text or else from standard input (UTF-8), and prints one line each, separated by tabs:
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
    output: Annotated[
        str | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: predictions in RUN_DIR, see above)")
    ] = None
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
    strict_data: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Make malformed rows and sequences that are too long an error."""
    batch_size: int = 64
    """Examples per batch of a data folder; changes speed only."""
    fused: bool = True
    """Run the compiled C++ ops, or with --no-fused their PyTorch reference."""
    precision: Precision = "fp32"
    """Of matrix products. bf16: of numbers rounded to bfloat16, summed in float32; where it has no fast bf16
    products it runs in fp32."""
    device: Device = "auto"
    """Where it runs: cpu, cuda (an NVIDIA GPU), or auto, a GPU where torch sees one."""


def main() -> int:
    config = tyro.cli(PredictConfig, prog="python -m smartcs.predict", description=_DESCRIPTION)
    _check(config)
    set_backend("fused" if config.fused else "reference")
    device = choose_device(config.device)
    chosen = arithmetic(config.precision, device.type)
    if chosen.reason:
        print(chosen.notice, file=sys.stderr)
    run = SavedRun.load(config.run, device)
    with precision(chosen.precision):
        if config.task is None:
            _predict_folder(config, run)
        else:
            run.check_task(config.task)
            _predict_text(config.task, run.model, _read(config))
    return 0


def _check(config: PredictConfig) -> None:
    if config.batch_size < 1:
        raise UsageError(f"--batch-size is {config.batch_size}, expected at least 1")
    if config.task is None:
        if config.text:
            raise UsageError("--text needs --task sst, qqp or sts")
        return
    if config.data is not None or config.output is not None or config.overwrite or config.strict_data:
        raise UsageError(
            "--data, --output, --overwrite and --strict-data are for prediction files, which --task does not write"
        )
    if config.task != "sst" and len(config.text) % 2:
        raise UsageError(f"--text has {len(config.text)} sentences, expected pairs for --task {config.task}")


def _predict_folder(config: PredictConfig, run: SavedRun) -> None:
    folder = _output(config, run)
    data = run.data(config.data, strict=config.strict_data)
    splits = {name: split for name, split in (("dev", data.dev), ("test", data.test)) if split}
    taken = [
        file_name(task, name)
        for name, split in splits.items()
        for task in split
        if (folder / file_name(task, name)).exists()
    ]
    if taken and not config.overwrite:
        whose = "the run's own predictions are there already" if folder == run.folder / PREDICTIONS else "not replaced"
        raise FileExistsError(
            f"{folder} already holds {', '.join(taken)}: {whose}; pass --overwrite to write them again, "
            "or another --output"
        )
    for name, split in splits.items():
        encoded = run.encode(data, name, strict=config.strict_data)
        result = evaluate(run.model, encoded, config.batch_size)
        ids = {task: examples.ids for task, examples in encoded.items()}
        for task, path in zip(encoded, write_predictions(folder, name, ids, result.predictions), strict=True):
            print(path)
            missing = len(split[task].skipped)
            if missing:
                rows = missing + len(split[task])
                print(f"{path.name} lacks {missing} of the {rows} rows of {split[task].source}", file=sys.stderr)


def _output(config: PredictConfig, run: SavedRun) -> Path:
    if config.output is not None:
        return Path(config.output).expanduser()
    if config.data is None:
        return run.folder / PREDICTIONS
    return run.folder / f"{PREDICTIONS}-{Path(config.data).expanduser().resolve().name}"


class _Row(NamedTuple):
    """What is predicted at once: where it comes from and its one or two sentences."""

    where: str
    texts: tuple[str, ...]


def _read(config: PredictConfig) -> Iterator[_Row]:
    """The rows of --text or standard input. Raises UsageError naming the line that is none."""
    wanted = 1 if config.task == "sst" else 2
    if config.text:
        for number, text in enumerate(config.text, start=1):
            if not text.strip():
                raise UsageError(f"--text: sentence {number} is empty, expected some text")
        texts = [" ".join(text.split()) for text in config.text]
        for at in range(0, len(texts), wanted):
            yield _Row(f"--text, sentence {at + 1}", tuple(texts[at : at + wanted]))
        return
    if sys.stdin.isatty():
        what = "a sentence" if wanted == 1 else "two sentences separated by a tab"
        print(f"type {what} per line; Ctrl-D ends", file=sys.stderr)
    for number, raw in enumerate(sys.stdin.buffer, start=1):
        where = f"line {number}"
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise UsageError(f"{where}: not UTF-8 ({error.reason} at byte {error.start + 1} of it)") from None
        # One column however it is separated: the sentence is printed in one.
        parts = [line.replace("\t", " ")] if wanted == 1 else [part.strip() for part in line.split("\t")]
        if not line:
            raise UsageError(f"{where}: blank, expected {'a sentence' if wanted == 1 else 'two sentences'}")
        if len(parts) != wanted or not all(parts):
            raise UsageError(
                f"{where}: got {len(parts)} tab-separated sentences, expected two that are not empty: {line[:80]!r}"
            )
        yield _Row(where, tuple(parts))


def _chunks(rows: Iterable[_Row], size: int) -> Iterator[list[_Row]]:
    """Up to `size` rows at a time; those before an error come before it."""
    left = iter(rows)
    while True:
        chunk: list[_Row] = []
        failure: UsageError | None = None
        try:
            for row in islice(left, size):
                chunk.append(row)
        except UsageError as error:
            failure = error
        if chunk:
            yield chunk
        if failure is not None:
            raise failure
        if not chunk:
            return


def _predict_text(task: str, model: MultitaskBert, rows: Iterable[_Row]) -> None:
    # Whoever types gets an answer to every line; a file is read in chunks.
    for chunk in _chunks(rows, 1 if sys.stdin.isatty() else _CHUNK):
        _report_cut(model, chunk)
        if task == "sst":
            for row, probabilities in zip(chunk, model.sentiment([row.texts[0] for row in chunk]), strict=True):
                best = int(probabilities.argmax())
                print(f"{best}\t{_CLASSES[best]}\t{probabilities[best]:.3f}\t{row.texts[0]}")
        else:
            pairs = [(row.texts[0], row.texts[1]) for row in chunk]
            values = (model.paraphrase if task == "qqp" else model.similarity)(pairs)
            for (first, second), value in zip(pairs, values.tolist(), strict=True):
                answer = f"{int(value > 0.5)}\t{value:.3f}" if task == "qqp" else f"{value:.3f}"
                print(f"{answer}\t{first}\t{second}")
        sys.stdout.flush()


def _report_cut(model: MultitaskBert, rows: list[_Row]) -> None:
    """Says on stderr which rows the model will not see whole."""
    assert model.tokenizer is not None
    limit = model.bert.config.max_position_embeddings
    texts = [row.texts[0] if len(row.texts) == 1 else row.texts for row in rows]
    for row, encoding in zip(rows, model.tokenizer.encode_batch_fast(texts), strict=True):
        if len(encoding) > limit:
            print(f"{row.where}: {len(encoding)} word pieces, cut to the model's {limit}", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
