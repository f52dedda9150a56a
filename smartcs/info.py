"""``python -m smartcs.info [--json]``: what this installation is and which backend each op will use, and why.

Made for bug reports, so it also works where the extension is missing or refused.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from smartcs._extension import build_facts, extension_status
from smartcs._version import __version__
from smartcs.kernels import unavailable_reason
from smartcs.ops.backend import backend_report
from smartcs.ops.precision import bf16_products
from smartcs.training.commandline import run_command

_DESCRIPTION = """\
What this installation is, and which backend each op will use and why. Made for bug reports, so it also works where the
extension is missing or refused.
"""
PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "huggingface_hub", "triton", "transformers")
# What /proc/cpuinfo calls the features each compiled instruction set needs (csrc/cpu/isa.cpp asks the CPU itself).
CPU_FLAGS = {
    "avx2": {"avx2", "fma", "bmi2"},
    "avx512": {"avx2", "fma", "bmi2", "avx512f", "avx512bw", "avx512dq", "avx512vl"},
}


def collect() -> dict[str, Any]:
    """Everything the command prints, as plain values that `json` can write."""
    available, reason = extension_status()
    facts = build_facts()
    cpu_model, cpu_flags = _cpu()
    return {
        "smartcs": {"version": __version__, "folder": str(Path(__file__).resolve().parent)},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "machine": {
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "cpu": cpu_model,
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "extension": {"loaded": available, "reason": reason or None, "build": facts},
        "instruction_sets": {
            "compiled": facts["instruction_sets"] if facts else [],
            "cpu": ["baseline", *(name for name, needed in CPU_FLAGS.items() if needed <= cpu_flags)],
            "active": str(torch.ops.smartcs.instruction_set()) if available else None,
        },
        "bf16_products": bf16_products(),
        "triton": {"usable": unavailable_reason() is None, "reason": unavailable_reason()},
        "environment": {name: value for name, value in sorted(os.environ.items()) if _matters(name)},
        "ops": [{"op": op, "backend": backend, "reason": why} for op, backend, why in backend_report()],
        "gpu_ops": [{"op": op, "backend": backend, "reason": why} for op, backend, why in backend_report("cuda")],
    }


def render(info: dict[str, Any]) -> str:
    """The facts as aligned plain text, to be pasted into a bug report."""
    build, sets, machine = info["extension"]["build"], info["instruction_sets"], info["machine"]
    rows = [("smartcs", f"{info['smartcs']['version']} in {info['smartcs']['folder']}")]
    rows += [(name, version or "not installed") for name, version in info["versions"].items()]
    rows += [
        ("", ""),
        ("system", machine["system"]),
        ("CPU", f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"),
        ("GPU", machine["gpu"] or "none"),
        ("", ""),
        ("extension", "loaded" if info["extension"]["loaded"] else f"NOT loaded: {info['extension']['reason']}"),
    ]
    if build:
        rows += [
            ("compiled for", f"torch {build['torch']}"),
            ("compiled by", f"{build['compiler']}, C++{build['cxx_standard'] // 100 % 100}, {build['build_type']}"),
            ("commit", build["git_commit"]),
            ("threads", build["threads"]),
            ("CUDA", build["cuda"] or f"no ({build['no_cuda_reason']})"),
        ]
    rows += [
        (
            "instruction sets",
            f"compiled {', '.join(sets['compiled']) or 'none'}; this CPU {', '.join(sets['cpu'])}; "
            f"active {sets['active'] or 'none'}",
        ),
        ("bf16 products", info["bf16_products"]),
        ("Triton", "usable" if info["triton"]["usable"] else f"no ({info['triton']['reason']})"),
    ]
    rows += list(info["environment"].items())
    rows.append(("", ""))
    for device, ops in (("", info["ops"]), (" on a GPU", info["gpu_ops"])):
        for op in ops:
            why = "the extension is not loaded" if op["reason"] == info["extension"]["reason"] else op["reason"]
            rows.append((op["op"] + device, f"{op['backend']} ({why})"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> tuple[str, set[str]]:
    """The CPU's name and feature flags; without /proc/cpuinfo, what Python knows and no flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), set()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return fields.get("model name", platform.machine()), set(fields.get("flags", "").split())


def _matters(name: str) -> bool:
    return name.startswith(("SMARTCS_", "OMP_", "MKL_NUM_")) or name in ("KMP_AFFINITY", "CUDA_VISIBLE_DEVICES")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m smartcs.info", description=_DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
    arguments = parser.parse_args()
    info = collect()
    print(json.dumps(info, indent=2) if arguments.json else render(info))
    return 0


if __name__ == "__main__":
    run_command(main)
