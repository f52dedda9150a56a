"""Stages of gpu_check.py: processes with a limit each, whose failure or hanging stops no other."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_report import ROOT, failure, scrubbed

SKIPPED = 77
"""Exit code of a stage that cannot run here; its last line says why."""
COUNTS = ("passed", "failed", "error", "skipped", "unfinished")
_TAIL = 15  # lines of a failed stage's log that are kept
_GRACE = 5.0  # seconds between asking a process to end and ending it


@dataclass(frozen=True)
class Stage:
    """One process.

    Args:
        limit: seconds.
        tests: it is pytest, whose results are kept one by one; at least one test must pass.
        result: the file of JSON that it writes.
    """

    name: str
    command: Sequence[str]
    limit: float
    tests: bool = False
    result: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """What came of a stage: "passed", "failed", "timed out", "skipped" or, for want of time, "not run"."""

    name: str
    limit: float
    status: str = "not run"
    seconds: float = 0.0
    reason: str = ""
    tests: dict[str, int] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)
    budget: dict[str, float] = field(default_factory=dict)
    result: Any = None

    def as_stage(self) -> dict[str, Any]:
        """Its part of the report's "stages"."""
        return {
            "name": self.name,
            "status": self.status,
            "seconds": round(self.seconds, 1),
            "limit": round(self.limit, 1),
            "reason": self.reason,
            "tests": self.tests,
        }


def pytest_stage(name: str, arguments: Sequence[str], limit: float, environment: Mapping[str, str]) -> Stage:
    command = [sys.executable, "-m", "pytest", "-p", "gpu_test_log", "-q", "--no-header", "--color=no", *arguments]
    return Stage(name, command, limit, tests=True, environment=environment)


def run_all(stages: Sequence[Stage], deadline: float, folder: Path, jobs: int = 1) -> list[Outcome]:
    """Runs them, several at a time; `deadline` is `time.monotonic()`'s."""
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda stage: run(stage, deadline, folder), stages))


def run(stage: Stage, deadline: float, folder: Path) -> Outcome:
    """Runs one; its output goes to folder/<name>.log."""
    outcome = Outcome(stage.name, min(stage.limit, deadline - time.monotonic()))
    if outcome.limit <= 0:
        outcome.limit, outcome.reason = 0.0, "the time of the whole check was up"
        return outcome
    log, tests = folder / f"{stage.name}.log", folder / f"{stage.name}.tests"
    for stale in filter(None, (tests, stage.result)):
        stale.unlink(missing_ok=True)
    paths = [str(ROOT), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "SMARTCS_TEST_LOG": str(tests)}
    print(f"{stage.name}: running, at most {outcome.limit:.0f} s", flush=True)
    begin = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            list(stage.command),
            cwd=ROOT,
            env=os.environ | settings | stage.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        code = _wait(process, outcome.limit)
    outcome.seconds = time.monotonic() - begin
    _read(stage, outcome, code, log.read_text(errors="replace"), tests)
    print(f"{stage.name}: {outcome.status} after {outcome.seconds:.1f} s", flush=True)
    return outcome


def _wait(process: subprocess.Popen[Any], limit: float) -> int | None:
    """Its exit code; None where it had to be ended, together with the processes that it started."""
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return None


def _read(stage: Stage, outcome: Outcome, code: int | None, log: str, tests: Path) -> None:
    lines = [line for line in log.splitlines() if line.strip()]
    tail = scrubbed("\n".join(lines[-_TAIL:]))
    outcome.status = {0: "passed", SKIPPED: "skipped", None: "timed out"}.get(code, "failed")
    if outcome.status == "skipped":
        outcome.reason = scrubbed(lines[-1]) if lines else "it does not say why"
    elif outcome.status == "timed out":
        outcome.reason = f"ended after {outcome.limit:.0f} s; its last lines:\n{tail}"
    if stage.result is not None and stage.result.is_file():
        outcome.result = json.loads(stage.result.read_text())
    if stage.tests:
        _read_tests(outcome, tests)
    if outcome.status == "failed" and not outcome.failures:
        outcome.reason = outcome.reason or f"exit code {code}; its last lines:\n{tail}"


def _read_tests(outcome: Outcome, path: Path) -> None:
    """Counts and failures from the log that gpu_test_log keeps, which a process that was ended leaves as well."""
    counts, running = dict.fromkeys(COUNTS, 0), ""
    for line in path.read_text().splitlines() if path.is_file() else []:
        if line[-1:] != "}":
            continue  # cut off in the middle
        entry = json.loads(line)
        running = entry["test"] if entry["outcome"] == "running" else ""
        if entry["outcome"] == "budget":
            outcome.budget = entry["used"]
        elif entry["outcome"] != "running":
            counts[entry["outcome"]] += 1
        if entry["outcome"] in ("failed", "error"):
            outcome.failures.append(failure(outcome.name, entry["test"], entry["message"]))
    if running:
        counts["unfinished"] = 1
        why = "it hung" if outcome.status == "timed out" else "it ended the process"
        outcome.failures.append(failure(outcome.name, running, why))
    outcome.tests = counts
    if outcome.status == "passed" and not counts["passed"]:
        outcome.status, outcome.reason = "failed", f"no test passed, {counts['skipped']} were skipped"
