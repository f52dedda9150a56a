"""The table of docs/gpu-resources.md, from results/gpu-resources.json; needs neither torch nor a compiler."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results_io import RESULTS

FILE = "gpu-resources.json"
TRITON, CPP = "Triton", "CUDA C++"
CHIPS = ("sm_80", "sm_90", "sm_100")
FIGURES = ("threads", "registers", "spills", "stack", "static", "dynamic", "tensor", "occupancy", "limit")
"""Of a row on a chip: threads per block, registers per thread, bytes of spills, stack, static and dynamic shared
memory, columns of tensor memory, and what follows from them."""
EMPTY: dict[str, Any] = {"versions": {}, "code": {}, "figures": FIGURES, "rows": []}


def read_resources(folder: Path = RESULTS) -> dict[str, Any]:
    """Versions, digests of the kernels' code, rows; nothing of them where the file does not exist yet."""
    path = folder / FILE
    return json.loads(path.read_text()) if path.is_file() else EMPTY


def figures_of(row: dict[str, Any], chip: str) -> dict[str, Any]:
    """By their names."""
    return dict(zip(FIGURES, row[chip], strict=True))


def resources_table(language: str, folder: Path = RESULTS) -> str:
    """A line per kernel and dtype; dtypes with the same figures share one."""
    found = read_resources(folder)
    rows = [row for row in found["rows"] if row["language"] == language]
    if not rows:
        return "Not compiled."
    compilers = {name: version for name, version in found["versions"].items() if (name == "nvcc") == (language == CPP)}
    by = ", ".join(f"{name} {version}" for name, version in compilers.items())
    spill = sum(figures_of(row, chip)["spills"] > 0 for row in rows for chip in CHIPS)
    counts = f"{len(rows)} instances for {len(CHIPS)} chips; {spill} of {len(rows) * len(CHIPS):,} compilations spill"
    lines = [f"{counts}; {by}:", ""]
    lines.append(
        f"| kernel | dtype | registers | shared, KiB | occupancy {' | '.join(CHIPS)} | instances | most registers "
        "| least occupancy | spills |"
    )
    lines.append("|---" * (8 + len(CHIPS)) + "|")
    dtypes: dict[tuple[str, str], list[str]] = {}
    keys = dict.fromkeys((row["kernel"], row["dtype"]) for row in rows)
    for kernel, dtype in sorted(keys, key=lambda key: key[0]):
        cells = _cells([row for row in rows if (row["kernel"], row["dtype"]) == (kernel, dtype)])
        dtypes.setdefault((kernel, cells), []).append(dtype)
    lines += [f"| `{kernel}` | {', '.join(names)} | {cells} |" for (kernel, cells), names in dtypes.items()]
    return "\n".join(lines)


def _cells(rows: Sequence[dict[str, Any]]) -> str:
    """The worst of BERT-base's instances, then of all."""
    if not _of_bert_base(rows):
        return "not compiled" + " | " * (5 + len(CHIPS))
    usual, every = ([figures_of(row, chip) for row in some for chip in CHIPS] for some in (_of_bert_base(rows), rows))
    shared = max(one["static"] + one["dynamic"] for one in usual)
    cells = [f"{max(one['registers'] for one in usual)}", f"{shared / 1024:.3g}"]
    for chip in CHIPS:
        least = _least([figures_of(row, chip) for row in _of_bert_base(rows)])
        cells.append(f"{least['occupancy']:.0%}" + (f" {least['limit']}" if least["occupancy"] < 1 else ""))
    cells += [f"{len(rows)}", f"{max(one['registers'] for one in every)}", f"{_least(every)['occupancy']:.0%}"]
    return " | ".join([*cells, f"{max(one['spills'] for one in every) or 'none'}"])


def _of_bert_base(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["bert_base"]]


def _least(figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return min(figures, key=lambda one: one["occupancy"])
