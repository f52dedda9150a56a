"""Makes ``smartcs.kernels`` the folder kernels/ of the checkout that smartcs runs from.

An installed smartcs has them mapped by setup.py and there is nothing to do here. A checkout that is not installed, or
beside which another one is, must not take the other's.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def register_kernels() -> None:
    """Registers the checkout's kernels/ as ``smartcs.kernels``; without a checkout, leaves it to the import system."""
    name = "smartcs.kernels"
    root = Path(__file__).resolve().parent.parent
    folder = root / "kernels"
    # Not by the folder alone: beside an installed smartcs it could be another project's.
    is_checkout = (root / "csrc" / "ops.cpp").is_file()
    if name in sys.modules or (not is_checkout and importlib.util.find_spec(name) is not None):
        return
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None or not (folder / "__init__.py").is_file():
        raise ImportError(f"smartcs: its Triton kernels are neither installed nor in {folder}; reinstall smartcs")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    # What an ordinary import of a submodule does to its parent.
    vars(sys.modules["smartcs"])["kernels"] = module
