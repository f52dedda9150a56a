"""The first table of docs/robustness.md: what was run on lost runs, strangers' files and several processes."""

from pathlib import Path
from typing import Any

from robustness_tables import count_findings, read

PROCESSES = {"processes 2": "2 processes", "processes 3": "3 processes", "slices": "`--accumulate 3`"}


def fuzzing(folder: Path) -> list[list[str]]:
    """Readers together, and the ops."""
    rows, lines = read("fuzz.json", folder).get("rows", []), []
    for name, is_ops, by, arguments in (
        ("readers of files", False, ("atheris", "random inputs to the targets"), ""),
        ("the ops, called from Python", True, ("the ops' fuzzer",), " ARGS='--only ops'"),
    ):
        of = [row for row in rows if (row["target"] == "ops") == is_ops]
        inputs, hours = sum(row["inputs"] for row in of), sum(row["seconds"] for row in of) / 3600
        how_much, still = f"{inputs:,} inputs, {hours:.2f} hours", sum(len(row["found"]) for row in of)
        fixed = count_findings(folder, *by)
        lines.append([f"fuzzing, {name}", how_much, f"{still} open", fixed, f"`make fuzz{arguments}`"])
    return lines


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
                count_findings(folder, f"faults: {kind}"),
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
    return [
        [
            "resumed equals uninterrupted, to the bit",
            what,
            f"{equal} of {len(rows)}",
            count_findings(folder, "resume equality"),
            command,
        ]
    ]


def processes(folder: Path) -> list[list[str]]:
    """Several processes or slices against one with the whole batch; the largest difference of each arithmetic."""
    rows, lines = list(read("distributed-equality.json", folder)), []
    for tolerance in sorted({row["tolerance"] for row in rows}):
        of = [row for row in rows if row["tolerance"] == tolerance]
        most = ", ".join(f"{what} {max(row[key] for row in of):.0e}" for key, what in PROCESSES.items())
        what = "processes and slices equal one with the whole batch, "
        what += "float64, reference" if tolerance < 1e-6 else "float32, fused"
        command = "`PYTHONPATH=tests python benchmarks/distributed_equality.py`"
        fixed = count_findings(folder, "distributed equality")
        lines.append(
            [what, f"{len(of)} trainings of six steps", f"within {most}; tolerance {tolerance:.0e}", fixed, command]
        )
    return lines


def summary(folder: Path) -> str:
    """All of it."""
    lines = ["| what | how much | came of it | found and fixed | command |", "|---|---|---|--:|---|"]
    for part in (faults, resuming, processes, fuzzing):
        lines += [f"| {' | '.join(row)} |" for row in part(folder)]
    return "\n".join(lines)


TABLES = {"robustness": summary}
