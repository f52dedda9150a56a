"""Rows of measurements: what was timed, the figures, on which machine, with which versions, at which commit.

A benchmark NAME keeps its rows as results/NAME/rows.json, which the tables are made from, and rows.csv, the same for a
spreadsheet. Writing replaces the rows with the same key and keeps the others, so a run of one candidate or one shape
does not lose the rest. Nothing in a row names a path or a host. torch is imported by `environment` alone.
"""

import csv
import importlib.metadata
import io
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
KEY = ("case", "candidate", "shape", "precision", "threads")
STATUSES = ("measured", "modelled", "not measured")
PACKAGES = ("torch", "transformers", "smartcs")

Row = dict[str, Any]


def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """20 %, 50 % and 80 % of at least one value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return cuts[1], statistics.median(values), cuts[7]


def ratio_quantiles(times: Sequence[float], others: Sequence[float]) -> list[float]:
    """20 %, 50 % and 80 % of times / others, taken turn by turn."""
    return list(quantiles([a / b for a, b in zip(times, others, strict=True)]))


def row(
    case: str,
    candidate: str,
    shape: str,
    precision: str,
    threads: int,
    *,
    unit: str = "s",
    values: Sequence[float] = (),
    ratios: Mapping[str, Sequence[float]] | None = None,
    status: str = "measured",
    reason: str = "",
    **figures: Any,
) -> Row:
    """One row, without the machine.

    Args:
        case, candidate, shape, precision, threads: the key: what was timed (a recipe, an op and its mode), which
            implementation, at which size.
        unit: of the values.
        values: one per turn; kept are their number, median and 20 % and 80 % quantiles.
        ratios: name of another candidate -> its 20 %, 50 % and 80 % quantiles of (this one's value / the other's),
            as `ratio_quantiles` gives them.
        status: "measured" needs values, "modelled" comes from a formula, "not measured" needs a reason.
        figures: anything else worth keeping, as JSON holds it.

    Raises:
        ValueError: the status is unknown or does not fit the values.
    """
    if status not in STATUSES:
        raise ValueError(f"row: status is {status!r}, expected one of {', '.join(STATUSES)}")
    if (status == "measured") != bool(values):
        raise ValueError(
            f"row: status is {status!r} with {len(values)} values, expected values if and only if measured"
        )
    if status == "not measured" and not reason:
        raise ValueError("row: status is 'not measured' without a reason, expected why")
    made: Row = dict(zip(KEY, (case, candidate, shape, precision, threads), strict=True))
    made |= {"status": status, "reason": reason, "unit": unit, "n": len(values)}
    if values:
        made["p20"], made["median"], made["p80"] = (_short(value) for value in quantiles(values))
    made["ratios"] = {name: [_short(value) for value in three] for name, three in (ratios or {}).items()}
    return made | {name: _short(value) for name, value in figures.items()}


def environment() -> Row:
    """What every row of a run says about the machine, the versions and the source."""
    import torch

    from smartcs._extension import build_facts

    build = build_facts() or {}
    compiled = hasattr(torch.ops.smartcs, "instruction_set")
    own = {
        "compiler": build.get("compiler"),
        "instruction_set": str(torch.ops.smartcs.instruction_set()) if compiled else None,
        "bf16_products": bf16_products(),
    }
    about = machine()
    last = {name: about.pop(name) for name in ("load", "commit", "dirty", "date")}
    return about | own | last


def machine() -> Row:
    """The part of `environment` that needs no smartcs."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "load": round(os.getloadavg()[0], 1),
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", "smartcs", "csrc", "benchmarks/*.py", "setup.py")),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def source() -> Row:
    """Of `machine`, what says which code ran when, and on what: for results that are no times."""
    return {key: value for key, value in machine().items() if key in ("commit", "dirty", "date", "cpu")}


def bf16_products() -> str:
    """What multiplies bfloat16 here: "amx", "avx512_bf16", or "none: " and why."""
    import torch

    import smartcs  # noqa: F401, which loads the ops

    if not hasattr(torch.ops.smartcs, "bf16_products"):
        return "none: the compiled extension is not loaded"
    return str(torch.ops.smartcs.bf16_products())


def write(name: str, rows: Iterable[Row], about: Row, folder: Path = RESULTS) -> None:
    """Merges the rows, each with `about`, into the benchmark's files; either file is replaced at once or not at all."""
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    merged = {_key(old): old for old in read(name, folder)}
    for new in rows:
        merged[_key(new)] = new | about
    ordered = list(merged.values())
    _replace(target / "rows.json", "[\n" + ",\n".join(json.dumps(one) for one in ordered) + "\n]\n")
    _replace(target / "rows.csv", _csv(ordered))


def read(name: str, folder: Path = RESULTS) -> list[Row]:
    """The benchmark's rows; none where it has not run yet."""
    path = folder / name / "rows.json"
    return json.loads(path.read_text()) if path.is_file() else []


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY)


def _csv(rows: Sequence[Row]) -> str:
    """Ratios, and other mappings and lists, in columns of their own."""
    flat = [dict(_flat(one)) for one in rows]
    columns = list(dict.fromkeys(column for one in flat for column in one))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}: ")
        elif prefix == "ratios: " and isinstance(value, Sequence):
            yield from zip((f"{prefix}{name} {which}" for which in ("p20", "median", "p80")), value, strict=True)
        else:
            yield f"{prefix}{name}", value


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    os.replace(partial, path)


def _short(value: Any) -> Any:
    """Floats with five digits, which is more than any clock here is worth; containers of them likewise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {name: _short(inner) for name, inner in value.items()}
    return [_short(inner) for inner in value] if isinstance(value, list | tuple) else value


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = fields.get("model name", platform.processor() or platform.machine())
    where = f", family {fields['cpu family']} model {fields['model']}" if "cpu family" in fields else ""
    return name + where


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(RESULTS.parent.parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
