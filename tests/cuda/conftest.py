"""Compiles CUDA device code for the host, once per op and mistake; prints the budget used as the op tests do."""

import error_budget
import pytest
import torch
from emulated_cuda import build, compiler


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    previous = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(previous)


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """Library of an op: emulated(op), or with mistakes emulated(op, Patch(...))."""
    if compiler() is None:
        pytest.skip("no C++ compiler (set CXX, or install g++)")
    libraries = {}

    def library(op, *patches):
        if (op, patches) not in libraries:
            libraries[op, patches] = build(op, tmp_path_factory.mktemp(op), patches)
        return libraries[op, patches]

    return library


def pytest_terminal_summary(terminalreporter):
    if error_budget.observed:
        terminalreporter.section("largest share of the error budget used, emulated CUDA")
        for (kind, dtype), used in sorted(error_budget.observed.items()):
            terminalreporter.write_line(f"{kind:20} {dtype:10} {used:6.1%}")
