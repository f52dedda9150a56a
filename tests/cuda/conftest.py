"""Compiles CUDA device code for the host, once per op and mistake."""

import pytest
from emulated_cuda import build, compiler
from op_harness import threads


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    with threads(1):
        yield


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
