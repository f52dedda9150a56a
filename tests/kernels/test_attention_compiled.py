"""attention's Triton kernels compile for A100, H100 and B200, and spill no registers there.

By default at BERT's head size; with SMARTCS_COMPILE_ALL=1 at every configuration (minutes).
"""

import os
from itertools import product

import pytest
import torch
from compiled import CHIPS, Build, resources_of

pytest.importorskip("triton", reason="Triton is not installed")

from smartcs.kernels.attention import blocks  # noqa: E402

ALL = os.environ.get("SMARTCS_COMPILE_ALL") == "1"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16} | ({"fp16": torch.float16} if ALL else {})
HEAD_SIZES = (16, 32, 64, 128) if ALL else (64,)
DROPOUT = (True, False) if ALL else (True,)
# Name, its kernel and what it is compiled for.
KERNELS = {
    "forward": ("_forward", {}),
    "queries": ("_gradients_of_queries", {}),
    "keys": ("_gradients_of_keys", {"WHOLE": False}),
    "whole": ("_gradients_of_keys", {"WHOLE": True}),
}
SCALARS = {"tokens": "i32", "heads": "i32", "scale": "fp64", "keep_scale": "fp64"}
SCALARS |= {"seed": "i64", "stream": "i64", "threshold": "i64"}


def build(kernel: str, dtype: str, head_size: int, dropout: bool, cc: int) -> Build:
    name, constants = KERNELS[kernel]
    tile = blocks(DTYPES[dtype], head_size)
    data = ("out", "qkv", "grad_out", "grad_qkv")
    pointers = dict.fromkeys(data, f"*{dtype}") | {"cu_seqlens": "*i32"}
    pointers |= dict.fromkeys(("lse", "means", "sums"), "*fp32")
    return Build(
        f"smartcs.kernels.attention:{name}",
        pointers | SCALARS,
        {"DROPOUT": dropout, "HEAD_SIZE": head_size, "BLOCK_D": head_size, "BLOCK_Q": tile.BLOCK_Q}
        | {"BLOCK_K": tile.BLOCK_K, **constants},
        cc,
        tile.num_warps,
        tile.num_stages,
        {"enable_fp_fusion": False},
    )


def test_no_spills():
    cases = list(product(KERNELS, DTYPES, HEAD_SIZES, DROPOUT, CHIPS))
    used = dict(zip(cases, resources_of([build(*case) for case in cases]), strict=True))
    for case, found in used.items():
        print(*case, found)
    assert not {case: found for case, found in used.items() if found["spills"] or found["stack"]}
    # What a block may have on each chip, 99 KiB on the smallest of their generations (sm_86, sm_89).
    assert max(found["shared"] for found in used.values()) <= 99 * 1024
