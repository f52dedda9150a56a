"""The report of gpu_check.py: what it says of the machine, how it is written, and the table that is printed.

Run by itself, it writes which backend every op uses on the device, and why. Importing it loads no smartcs: a report is
written where the extension is broken, too.
"""

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from results_io import Row, machine

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = 1
REHEARSAL_NOTE = "rehearsal on a CPU, not a measurement"
PROOFS_SHOWN = 50
_MESSAGE = 1500  # characters kept of a failure's message


class Rows:
    """Rows of a benchmark that is under way: what there is stays, whatever ends it."""

    def __init__(self, path: Path, rehearsal: bool) -> None:
        self.path, self.rows = path, list[Row]()
        self.note = {"note": REHEARSAL_NOTE} if rehearsal else {}

    def add(self, rows: Sequence[Row]) -> None:
        self.rows += [one | self.note for one in rows]
        write_json(self.path, self.rows)
        for one in rows:
            print(describe(one), flush=True)


def add_arguments(parser: argparse.ArgumentParser, seconds: float) -> None:
    """--device, --output and --seconds of a stage that measures."""
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, required=True, help="file of the rows")
    parser.add_argument("--seconds", type=float, default=seconds, help="begin nothing new after that long")


def write_json(path: Path, value: Any) -> None:
    """Replaced at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(partial, path)


def environment(device: str, commit: str | None) -> dict[str, Any]:
    """Machine, versions and source; names no path and no host.

    Args:
        commit: where the source is not a checkout that could be asked.
    """
    about = machine() | {"triton": _version("triton"), "cuda": torch.version.cuda, "nvcc": _nvcc()}
    about["commit"] = commit or about["commit"]
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        about |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "driver": _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        }
    return about


def slug(name: str) -> str:
    """A GPU's name as a file's: "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def scrubbed(text: str) -> str:
    """Without this machine's paths and name."""
    paths = {str(ROOT): ".", sys.prefix: "<env>", sys.base_prefix: "<python>", os.path.expanduser("~"): "<home>"}
    for path, short in sorted(paths.items(), key=lambda pair: -len(pair[0])):
        if len(path) > 1:
            text = text.replace(path, short)
    return text.replace(os.uname().nodename, "<host>")


def failure(stage: str, test: str, message: str) -> dict[str, str]:
    text = scrubbed(message.strip())
    # The end of a message says what is wrong, its beginning where.
    text = text if len(text) <= _MESSAGE else f"{text[: _MESSAGE // 3]}\n...\n{text[-2 * _MESSAGE // 3 :]}"
    return {"stage": stage, "test": scrubbed(test), "message": text}


def describe(one: Row) -> str:
    """One row as a line."""
    begin = f"{one['case']:28} {one['shape']:15} {one['precision']:5} {one.get('way', ''):9} {one['candidate']:16}"
    if one["status"] != "measured":
        return f"{begin} not measured: {one['reason']}"
    rates = "".join(
        f" {one[name]:9.4g} {unit}" for name, unit in (("gbps", "GB/s"), ("tflops", "TFLOP/s")) if name in one
    )
    ratio = "".join(f"  {three[1]:6.2f} x {name}" for name, three in one["ratios"].items())
    return f"{begin} {1e3 * one['median']:10.4f} ms{ratio}{rates}"


def summary(report: dict[str, Any]) -> Iterable[str]:
    """The lines that are printed at the end."""
    yield ""
    if report["rehearsal"]:
        yield f"*** {REHEARSAL_NOTE.upper()} ***"
    for one in report["benchmarks"]:
        yield describe(one)
    yield ""
    yield f"{'stage':20} {'status':10} {'seconds':>8} {'limit':>6}  tests"
    for stage in report["stages"]:
        counts = ", ".join(f"{count} {what}" for what, count in stage["tests"].items() if count)
        yield f"{stage['name']:20} {stage['status']:10} {stage['seconds']:8.1f} {stage['limit']:6.0f}  {counts}"
    for stage in report["stages"]:
        if stage["reason"]:
            yield f"\n{stage['name']} {stage['status']}: {stage['reason']}"
    for one in report["failures"][:PROOFS_SHOWN]:
        yield f"\nFAILED {one['test']}\n  " + one["message"].replace("\n", "\n  ")
    if len(report["failures"]) > PROOFS_SHOWN:
        yield f"and {len(report['failures']) - PROOFS_SHOWN} more"
    used = ", ".join(f"{kind} {share:.0%}" for kind, share in report["error_budget"].items())
    yield f"\nlargest share of the error budget used: {used or 'no test used it'}"
    counts = ", ".join(f"{count} {what}" for what, count in report["tests"].items() if count) or "no tests"
    left_out = ", ".join(stage["name"] for stage in report["stages"] if stage["status"] == "skipped")
    held = f"every proof that ran held, but {left_out} did not run" if left_out else "every proof held"
    verdict = held if report["passed"] else "NOT PROVEN"
    yield f"\n{verdict}: {counts}; {report['seconds']:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, seconds=0)
    options = parser.parse_args()
    from smartcs._extension import build_facts
    from smartcs.ops.backend import backend_report

    found = [one._asdict() for one in backend_report(options.device)]
    for one in found:
        print(f"{one['op']:16} {one['backend']:10} {one['reason']}")
    write_json(options.output, {"kernels": found, "build": build_facts()})


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nvcc() -> str | None:
    version = re.search(r"release (\S+),", _first_line("nvcc", "--version", whole=True) or "")
    return version[1] if version else None


def _first_line(*command: str, whole: bool = False) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return output if whole else (output.splitlines() or [None])[0]


if __name__ == "__main__":
    main()
