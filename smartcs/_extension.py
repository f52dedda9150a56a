"""Loads the compiled extension, or says why it is not there; refuses one that was built for another torch.

Three outcomes, decided once, when smartcs is imported:

* loaded: ``torch.ops.smartcs`` holds the operators.
* missing (no compiler at installation, a checkout that was never installed): the PyTorch reference runs and the
  default backend warns once. ``SMARTCS_REQUIRE_EXT=1`` makes this an ImportError. ``SMARTCS_BACKEND=reference`` asks
  for this outcome: the extension is not looked for and nothing warns.
* refused (built for another torch, or it does not load): an ImportError that says what to do. Falling back would
  hide a broken installation behind a slow run.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import sys
from pathlib import Path
from typing import Any

import torch

REINSTALL = (
    "reinstall it for this torch: pip install -e . in a checkout, pip install --force-reinstall --no-deps smartcs "
    "elsewhere; or set SMARTCS_BACKEND=reference to run without it"
)

_FOLDER = Path(__file__).resolve().parent
_status: tuple[bool, str] | None = None
_facts: dict[str, Any] | None = None


def extension_status() -> tuple[bool, str]:
    """Whether the compiled operators are loaded, and if not, why (one sentence; empty where they are)."""
    return _status if _status is not None else (False, "smartcs has not looked for its extension yet")


def build_facts() -> dict[str, Any] | None:
    """What the extension says about its build (see ``smartcs._C.build_facts``); None where it was not found."""
    return _facts


def load_extension() -> None:
    """Loads the operators into ``torch.ops.smartcs``; called once by ``import smartcs``.

    Raises:
        ImportError: the extension was built for another torch or does not load, or it is missing while
            ``SMARTCS_REQUIRE_EXT`` is set. ``python -m smartcs.info`` is exempt: it is there to show the reason.
    """
    global _status
    if _status is not None:
        return
    if os.environ.get("SMARTCS_BACKEND") == "reference":
        _status = (False, "SMARTCS_BACKEND=reference is set, so the extension was not loaded")
        return
    try:
        missing = _load()
        refused = None
    except ImportError as error:
        missing, refused = None, str(error)
    _status = (missing is None and refused is None, refused or missing or "")
    if refused is None and missing is not None and os.environ.get("SMARTCS_REQUIRE_EXT", "0") not in ("", "0"):
        refused = f"SMARTCS_REQUIRE_EXT is set, but {missing}"
    if refused is not None and not _running_info():
        raise ImportError(refused)


def _load() -> str | None:
    """Loads the operators. Returns why they are missing, or None; raises ImportError where they are refused."""
    global _facts
    try:
        module = importlib.import_module("smartcs._C")
    except ModuleNotFoundError:
        return _why_missing()
    except ImportError as error:
        raise ImportError(f"smartcs: its compiled module does not load ({error}); {REINSTALL}") from error
    _facts = dict(module.build_facts())

    built_for, running = _facts["torch"], str(torch.__version__)
    if _public(built_for) != _public(running):
        raise ImportError(
            f"smartcs: its extension was compiled for torch {built_for}, this is torch {running}; {REINSTALL}"
        )
    # One CUDA runtime, torch's, serves both: it takes what another minor version has compiled.
    if _facts["cuda"] is not None and _major(_facts["cuda"]) != _major(torch.version.cuda or "none"):
        raise ImportError(
            f"smartcs: its extension was compiled for CUDA {_facts['cuda']}, this torch has "
            f"{torch.version.cuda or 'none'}; {REINSTALL}"
        )
    library = _FOLDER / "_ops.so"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise ImportError(f"smartcs: {library} does not load ({error}); {REINSTALL}") from error
    wanted = os.environ.get("SMARTCS_ISA")
    if wanted:
        try:
            torch.ops.smartcs.set_instruction_set(wanted)
        except RuntimeError as error:
            raise ImportError(f"smartcs: SMARTCS_ISA: {str(error).splitlines()[0]}") from error
    return None


def _why_missing() -> str:
    own = importlib.machinery.EXTENSION_SUFFIXES[0]
    others = sorted(path.name for path in _FOLDER.glob("_C.*.so") if path.name != f"_C{own}")
    if others:
        return (
            f"the extension is built for another Python ({', '.join(others)}), this is {sys.implementation.cache_tag}; "
            "run pip install with this Python"
        )
    return (
        "the compiled extension is not there: smartcs was installed where it could not be compiled (pip install -v "
        "says why: mostly no C++ compiler), or runs from a checkout that was not installed (pip install -e .)"
    )


def _public(version: str) -> str:
    """2.13.0 of 2.13.0+cpu: torch's ABI is the same across the builds of one release."""
    return version.split("+")[0]


def _major(version: str) -> str:
    return version.split(".")[0]


def _running_info() -> bool:
    """True while ``python -m smartcs.info`` imports the package: argv[0] is "-m" until the module is found."""
    return sys.argv[:1] == ["-m"] and any(word in ("smartcs.info", "-msmartcs.info") for word in sys.orig_argv)
