"""Prediction files in the form that the CS224N default project hands in.

`{sst,para,sts}-{dev,test}-output.csv`: a header with tabs and then lines with commas, `{id} , {prediction} `,
blanks and the course's spelling of "Similiary" included. As by the course's own script, sentiment classes are written
as integers, paraphrases as 1.0 and 0.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from smartcs._reading import MIB, read_text
from smartcs.model.files import CheckpointError, text_writer, write_files

_BYTES = 256 * MIB
# Task -> (beginning of the file name, name of the column)
_FILES = {
    "sst": ("sst", "Predicted_Sentiment"),
    "qqp": ("para", "Predicted_Is_Paraphrase"),
    "sts": ("sts", "Predicted_Similiary"),
}


def file_name(task: str, split: str) -> str:
    """The course's file name of a task's predictions."""
    return f"{_FILES[task][0]}-{split}-output.csv"


def read_predictions(folder: Path, split: str, tasks: Iterable[str]) -> dict[str, np.ndarray]:
    """What `write_predictions` has written: task -> (N,) float64, in the order of the examples.

    Raises:
        CheckpointError: a file is missing, or not what is written there.
    """
    found = {}
    for task in tasks:
        path = folder / file_name(task, split)
        try:
            lines = read_text(path, _BYTES).splitlines()[1:]
            found[task] = np.array([float(line.rsplit(",", 1)[1]) for line in lines])
            if not np.isfinite(found[task]).all():
                raise ValueError("a prediction is not finite")
        except (OSError, ValueError, IndexError) as error:
            raise CheckpointError(f"{path}: expected lines of ids and predictions ({error})") from error
    return found


def write_predictions(
    folder: Path, split: str, ids: Mapping[str, Sequence[str]], predictions: Mapping[str, np.ndarray]
) -> list[Path]:
    """Writes one file per task, each whole or not at all; returns their paths.

    Args:
        folder: created if missing.
        split: "dev" or "test".
        ids: task -> N example ids.
        predictions: task -> (N,), integers or floats.
    """
    contents = {}
    for task, values in predictions.items():
        header = f"id \t {_FILES[task][1]} \n"
        numbers = values.astype(float) if task == "qqp" else values
        rows = zip(ids[task], numbers.tolist(), strict=True)
        contents[file_name(task, split)] = header + "".join(f"{name} , {value} \n" for name, value in rows)
    write_files(folder, {name: text_writer(text) for name, text in contents.items()})
    return [folder / name for name in contents]
