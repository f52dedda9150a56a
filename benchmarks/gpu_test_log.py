"""A pytest plugin: a line of JSON per test in $SMARTCS_TEST_LOG, written at once, so that a hanging test has a name.

The last line has the largest shares of the error budget that were used.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest


def _write(test: str, outcome: str, message: str = "", **more: object) -> None:
    with open(os.environ["SMARTCS_TEST_LOG"], "a") as file:
        file.write(json.dumps({"test": test, "outcome": outcome, "message": message, **more}) + "\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    _write(item.nodeid, "running")
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """One line per test: of its call, or of what kept it from being called."""
    if report.when == "call" or report.outcome != "passed":
        outcome = report.outcome if report.when == "call" or report.skipped else "error"
        _write(report.nodeid, outcome, "" if report.passed else _message(report))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _write(report.nodeid, "error", _message(report))


def pytest_sessionfinish() -> None:
    if "error_budget" in sys.modules:
        observed = sys.modules["error_budget"].observed
        used = {f"{kind} {dtype}": round(share, 4) for (kind, dtype), share in observed.items()}
        _write("", "budget", used=used)


def _message(report: pytest.TestReport | pytest.CollectReport) -> str:
    with suppress(AttributeError):
        return str(report.longrepr.reprcrash.message)  # type: ignore[union-attr]
    return str(report.longrepr)
