"""What a run of the tests has held to its tolerances: kept by test file, pass and dtype for `--evidence FILE`.

docs/gpu.md's table of proofs is made of it (benchmarks/gpu_proofs.py): every number there was measured by a test.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_DTYPE = re.compile(r"-?torch\.\w+")
planted = False
"""Whether the running test plants a mistake: what it compares is no evidence."""
_held: dict[tuple[str, str, str], list[float]] = defaultdict(list)


def note(name: str, dtype: object, used: float) -> None:
    """The running test has compared a result: `used` is the share of the allowance that its error takes, at most 1."""
    if planted:
        return
    where, _, _ = os.environ.get("PYTEST_CURRENT_TEST", "").partition("::")
    direction = "backward" if name.startswith("gradient") else "forward"
    _held[where, direction, str(dtype).removeprefix("torch.")].append(used)


def write(path: Path, passed: Iterable[tuple[str, bool]]) -> None:
    """All of it, and of each file how many tests passed and how many mistakes they planted, in whatever dtypes.

    Args:
        passed: The tests' ids, and whether each is marked as one that plants a mistake.
    """
    files: dict[str, Any] = {}
    mistakes: dict[str, set[str]] = defaultdict(set)
    for test, is_of_a_mistake in passed:
        where, _, name = test.partition("::")
        entry = files.setdefault(where, {"passed": 0, "held": {}})
        entry["passed"] += 1
        if is_of_a_mistake:
            mistakes[where].add(_DTYPE.sub("", name))
    for where, entry in files.items():
        entry["mistakes"] = len(mistakes[where])
    for (where, direction, dtype), used in sorted(_held.items()):
        if where in files:
            held = files[where]["held"].setdefault(direction, {})
            held[dtype] = {"comparisons": len(used), "share": round(max(used), 3)}
    path.write_text(json.dumps(dict(sorted(files.items())), indent=1, sort_keys=True) + "\n")
