"""What a run of the tests has held to its tolerances: kept by test file, pass and dtype for `--evidence FILE`.

docs/gpu.md's table of proofs is made of it (benchmarks/gpu_proofs.py): every number there was measured by a test.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_MUTANTS = ("mutant", "mistake", "noticed", "rejects")
_held: dict[tuple[str, str, str], list[float]] = defaultdict(list)


def note(name: str, dtype: object, used: float) -> None:
    """The running test has compared a result: `used` is the share of the allowance that its error takes, at most 1."""
    where, _, test = os.environ.get("PYTEST_CURRENT_TEST", "").partition("::")
    if _is_of_a_mistake(test):
        return
    direction = "backward" if name.startswith("gradient") else "forward"
    _held[where, direction, str(dtype).removeprefix("torch.")].append(used)


def _is_of_a_mistake(test: str) -> bool:
    return any(word in test for word in _MUTANTS)


def write(path: Path, passed: Iterable[str]) -> None:
    """All of it, and how many tests of each file passed, by their ids; how many of those were of mistakes."""
    files: dict[str, Any] = {}
    for test in passed:
        where, _, name = test.partition("::")
        entry = files.setdefault(where, {"passed": 0, "mutants": 0, "held": {}})
        entry["passed"] += 1
        entry["mutants"] += _is_of_a_mistake(name)
    for (where, direction, dtype), used in sorted(_held.items()):
        if where in files:
            held = files[where]["held"].setdefault(direction, {})
            held[dtype] = {"comparisons": len(used), "share": round(max(used), 3)}
    path.write_text(json.dumps(dict(sorted(files.items())), indent=1, sort_keys=True) + "\n")
