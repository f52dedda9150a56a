"""Makes ``smartcs.kernels`` importable where smartcs runs from its checkout without being installed.

Installed, editable or not, the folder kernels/ is mapped by setup.py and there is nothing to do here.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def register_kernels() -> None:
    """Registers the checkout's kernels/ as ``smartcs.kernels``, unless the import system finds that name already."""
    name = "smartcs.kernels"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    folder = Path(__file__).resolve().parent.parent / "kernels"
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
