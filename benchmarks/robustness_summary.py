"""The first table of docs/robustness.md: what was run on lost runs, strangers' files and processes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustness_tables import SANITIZERS, read

PROCESSES = {
    "processes 2": "2 processes equal",
    "processes 3": "3 processes equal",
    "slices": "`--accumulate 3` equals",
}


def fuzzing(folder: Path) -> list[list[str]]:
    """Readers together, and the ops."""
    found = read("fuzz.json", folder)
    rows, lines = found.get("rows", []), []
    for name, is_ops in (("readers of files", False), ("the ops, called from Python", True)):
        of = [row for row in rows if (row["target"] == "ops") == is_ops]
        fixed = [one for one in found["findings"] if (one["by"] == "the ops' fuzzer") == is_ops and _by_inputs(one)]
        inputs, hours = sum(row["inputs"] for row in of), sum(row["seconds"] for row in of) / 3600
        still = sum(len(row["found"]) for row in of)
        command = "`make fuzz ARGS='--only ops'`" if is_ops else "`make fuzz`"
        lines.append(
            [f"fuzzing, {name}", f"{inputs:,} inputs, {hours:.2f} hours", f"{still} open", f"{len(fixed)}", command]
        )
    return lines


def _by_inputs(one: Mapping[str, str]) -> bool:
    return one["by"] in ("atheris", "random inputs to the targets", "the ops' fuzzer")


def sanitizers(folder: Path) -> list[list[str]]:
    """One row each."""
    fixed = [one for one in read("fuzz.json", folder).get("findings", []) if one["by"].endswith("Sanitizer")]
    return [
        [
            SANITIZERS[name],
            f"{row['tests']:,} tests",
            row["ended"],
            str(len(fixed)) if name == "address" else "0",
            f"`make sanitize ARGS='--only {name}'`",
        ]
        for name, row in read("sanitizers.json", folder).items()
    ]


FAULTS = {
    "kill": "kill -9",
    "disk": "a full disk, or files that may not grow",
    "readonly": "a folder that may not be written",
    "damaged": "a checkpoint's file cut or with one bit flipped",
    "worker": "the thread that prepares batches ended, or one of two processes killed",
}


def faults(folder: Path) -> list[list[str]]:
    """Runs that were ended by force."""
    lines = []
    for kind, row in read("faults.json", folder).items():
        ended = [f"{row['resumed']} resumed"] + (
            [f"{row['again']} had none that was whole and began again"] if row["again"] else []
        )
        lost = f"at most {row['steps_lost']} steps lost (bound {row['bound']})"
        lines.append(
            [
                FAULTS[kind],
                f"{row['injected']} faults{_moments(row['moments'])}",
                f"{', '.join(ended)}; {lost}; {row['bytes_corrupted']} bytes corrupted",
                str(sum(one["by"] == f"faults: {kind}" for one in read("fuzz.json", folder).get("findings", []))),
                f"`PYTHONPATH=tests python benchmarks/faults.py --only {kind}`",
            ]
        )
    return lines


def _moments(hit: dict[str, int]) -> str:
    """How many faults hit what, where that is short to say."""
    return "" if len(hit) > 3 else ": " + ", ".join(f"{count} {moment}" for moment, count in hit.items())


def resuming(folder: Path) -> list[list[str]]:
    """Runs stopped and resumed, against whole ones."""
    rows: list[dict[str, Any]] = read("resume-equality.json", folder).get("rows", [])
    if not rows:
        return []
    equal = sum(not row["differ"] for row in rows)
    recipes = len({row["recipe"] for row in rows})
    what = f"{len(rows)} runs: {recipes} recipes, fused and reference, at 1 and 2 threads, each stopped twice"
    command = "`PYTHONPATH=tests python benchmarks/resume_equality.py`"
    return [["resumed equals uninterrupted, to the bit", what, f"{equal} of {len(rows)}", "0", command]]


def processes(folder: Path) -> list[list[str]]:
    """Several processes or slices against one with the whole batch; the largest difference of each arithmetic."""
    path = folder / "distributed-equality.json"
    rows = json.loads(path.read_text()) if path.is_file() else []
    lines = []
    for tolerance in sorted({row["tolerance"] for row in rows}):
        of = [row for row in rows if row["tolerance"] == tolerance]
        kind = "float64, reference" if tolerance < 1e-6 else "float32, fused"
        for key, what in PROCESSES.items():
            most = max(row[key] for row in of)
            lines.append(
                [
                    f"{what} one with the whole batch, {kind}",
                    f"{len(of)} trainings of six steps",
                    f"within {most:.0e}, tolerance {tolerance:.0e}",
                    "0",
                    "`PYTHONPATH=tests python benchmarks/distributed_equality.py`",
                ]
            )
    return lines


def summary(folder: Path) -> str:
    """All of it."""
    lines = ["| what | how much | came of it | found and fixed | command |", "|---|---|---|--:|---|"]
    for part in (faults, resuming, processes, fuzzing, sanitizers):
        lines += [f"| {' | '.join(row)} |" for row in part(folder)]
    return "\n".join(lines)


TABLES = {"robustness": summary}
