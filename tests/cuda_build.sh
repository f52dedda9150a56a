#!/usr/bin/env bash
# Builds the extension against a CUDA build of torch and checks that every CUDA kernel is in it and answers; needs nvcc
# of that torch's CUDA major version and no GPU. Slow, and torch takes 5 GB: run it with `make cuda-build-check`. The
# environment build/cuda-build-check is kept, so that a second run only compiles what changed. What was built goes into
# benchmarks/results/cuda-build.json.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$PWD/build/cuda-build-check
torch=${CUDA_TORCH:?names the torch to install}
export PIP_DISABLE_PIP_VERSION_CHECK=1 SMARTCS_WERROR=1 SMARTCS_REQUIRE_EXT=1
unset PYTHONPATH SMARTCS_BACKEND SMARTCS_ISA

[ -x "$venv/bin/pip" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet "$torch" numpy setuptools pybind11 ninja cmake
# A wheel, not an editable installation: the checkout keeps the extension of its own torch.
"$venv/bin/pip" install --quiet --no-build-isolation --force-reinstall --no-deps .
"$venv/bin/pip" install --quiet smartcs

kernels=$(grep -ho 'm.impl("[a-z_]*"' csrc/cuda/*.cu | cut -d '"' -f 2)
record=$PWD/benchmarks/results/cuda-build.json
cd "$venv"
bin/python -P - "$record" $kernels <<'PYTHON'
import json
import sys
from pathlib import Path

import torch

import smartcs
from smartcs._extension import build_facts
from smartcs.ops.backend import CUDA_OPS, no_gpu_kernel

facts = build_facts()
assert facts["cuda"] is not None and facts["no_cuda_reason"] is None, facts
cuda, x, ids = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), torch.ones(3, 2), torch.ones(3)
calls = {
    "adamw_step": ([x], [x], [], [x], [x], [ids[0]], [], [], [], [], *([1.0] for _ in range(5)), None, 0.0),
    "perturb_noise": (x, 1.0, 0, 0),
    "perturb_step": (x, x, None, "mtdnn", "inf", 1e-3, 1e-5, 1e-6),
    "symmetric_kl_fwd": (x, x, False),
    "symmetric_kl_bwd": (ids, x, x, False, False, True, True),
}
assert sorted(calls) == sorted(sys.argv[2:]) and set(CUDA_OPS.values()) <= set(calls)
assert all(no_gpu_kernel(op) is None for op in CUDA_OPS)
for name, arguments in calls.items():
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"smartcs::{name}", "CUDA"), name
    try:
        getattr(torch.ops.smartcs, name).default.redispatch(cuda, *arguments)
    except RuntimeError as error:
        assert "is on cpu, expected a CUDA tensor" in str(error), error
        print(f"{name}: in the extension, and refuses CPU tensors ({str(error).splitlines()[0]})")
    else:
        raise AssertionError(f"{name} takes CPU tensors for CUDA's")
about = {"torch": facts["torch"], "cuda": torch.version.cuda, "nvcc": facts["cuda"], "kernels": sorted(calls)}
Path(sys.argv[1]).write_text(json.dumps(about, indent=1) + "\n")
print(f"built by nvcc {facts['cuda']} for torch {facts['torch']} (CUDA {torch.version.cuda}) in {smartcs.__file__}")
PYTHON
