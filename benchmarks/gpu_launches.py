"""Every launch of a Triton kernel, as a compilation for a chip that is not here: the launchers' options, not a copy.

Only where Triton interprets ($TRITON_INTERPRET=1 before it is imported) can launches be noted without a GPU.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from gpu_triton import PACKAGE, Build
from smartcs.kernels import add_layer_norm, attention, bias_gelu, embedding, linear
from smartcs.kernels.attention import MAX_HEAD_SIZE
from smartcs.kernels.layer_norm_row import Dropout
from smartcs.kernels.rows import MAX_COLUMNS
from triton.backends.nvidia.compiler import CUDAOptions
from triton.runtime.interpreter import InterpretedFunction

TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
}
FULL = (torch.float32, torch.bfloat16, torch.float16)
RAGGED = FULL[:2]
GRADIENT_CHECKS = torch.float64
# BERT-base's.
HEADS, HEAD_SIZE, HIDDEN, INTERMEDIATE, TABLES = 12, 64, 768, 3072, (30522, 2, 512)
TOKENS, LONGEST = 150, (20, 100)
Launch = tuple[InterpretedFunction, tuple[Any, ...], dict[str, Any]]


def every_build() -> list[Build]:
    """All that launchers can choose: every block size, dropout or none, every optional argument or none.

    Widths are multiples of 16, as a model's are. With everything that is optional, narrower ones too, which do not
    fill their block (not in float16, which is loaded as bfloat16 is); and for float64, which is for gradient checks,
    BERT-base's alone.
    """
    with recorded() as launches:
        for dtype in FULL:
            for width, dropout in product(_powers(16, MAX_HEAD_SIZE), _dropouts()):
                launch_attention(dtype, width, dropout)
            for width, dropout, extras in product(_powers(16, MAX_COLUMNS), _dropouts(), (True, False)):
                launch_layer_norms(dtype, width, dropout, extras)
            for width, has_bias, bias_grad in product(_powers(16, MAX_COLUMNS), (True, False), (True, False)):
                launch_bias_gelu(dtype, width, has_bias, bias_grad)
                launch_linear(dtype, width, has_bias, bias_grad)
        for dtype in RAGGED:
            for width in _powers(16, MAX_HEAD_SIZE):
                launch_attention(dtype, width // 4 * 3, _dropouts()[-1])
            for width in _powers(16, MAX_COLUMNS):
                launch_layer_norms(dtype, width - 1, _dropouts()[-1], True)
                launch_bias_gelu(dtype, width - 1, True, True)
                launch_linear(dtype, width - 1, True, True)
        _launch_bert_base(GRADIENT_CHECKS)
    return distinct(launches)


def bert_base_builds() -> list[Build]:
    """What one layer of BERT-base launches in a step of training that is recorded as a CUDA graph, in every dtype."""
    with recorded() as launches:
        for dtype in (*FULL, GRADIENT_CHECKS):
            _launch_bert_base(dtype)
    return distinct(launches)


def distinct(launches: list[Launch]) -> list[Build]:
    """The compilations of the launches, each once."""
    return list({str(one): one for one in map(build, launches)}.values())


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Within it kernels are not run, but noted with their arguments, and tensors are without memory."""
    launches: list[Launch] = []

    def note(self, *args, grid, warmup, **kwargs):
        launches.append((self, args, kwargs))

    with patch.object(InterpretedFunction, "run", note), torch.device("meta"):
        yield launches


def build(launch: Launch) -> Build:
    """What Triton would compile at this launch."""
    kernel, args, kwargs = launch
    parameters = inspect.signature(kernel.fn).parameters
    options = {name: value for name, value in kwargs.items() if name not in parameters}
    values = inspect.signature(kernel.fn).bind(*args, **{k: v for k, v in kwargs.items() if k in parameters}).arguments
    free = kernel.kwargs.get("do_not_specialize") or ()
    arguments, constants = {}, {}
    for name, value in values.items():
        # Triton takes an integer that is 1 for a constant, and a pointer that is None.
        one = isinstance(value, int) and value == 1 and name not in free
        if value is None or one or "constexpr" in str(parameters[name].annotation):
            constants[name] = value
        else:
            multiple = isinstance(value, int) and value % 16 == 0 and name not in free
            arguments[name] = _type(value, parameters[name]) + ":16" * multiple
    defaults = {name: CUDAOptions.__dataclass_fields__[name].default for name in ("num_warps", "num_stages")}
    file = kernel.fn.__module__.removeprefix(f"{PACKAGE}.")
    return Build(f"{file}.{kernel.fn.__name__}", arguments, constants, defaults | options)


def _type(value: Any, parameter: inspect.Parameter) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + TYPES[value.dtype]
    bits = 64 if "64" in str(parameter.annotation) else 32
    return f"fp{bits}" if isinstance(value, float) else f"i{bits}"


def _powers(first: int, last: int) -> list[int]:
    return [2**n for n in range(first.bit_length() - 1, last.bit_length())]


def _dropouts() -> list[Dropout]:
    """None, dropout, and dropout counted from a place on the device."""
    offset = torch.empty(2, dtype=torch.int64)
    return [(0.0, 1, 2, None), (0.1, 1, 2, None), (0.1, 1, 2, offset)]


def _launch_bert_base(dtype: torch.dtype) -> None:
    launch_attention(dtype, HEAD_SIZE, _dropouts()[-1])
    launch_layer_norms(dtype, HIDDEN, _dropouts()[-1], True)
    launch_bias_gelu(dtype, INTERMEDIATE, True, True)
    launch_linear(dtype, INTERMEDIATE, True, True)


def launch_attention(dtype: torch.dtype, head_size: int, dropout: Dropout) -> None:
    """Forward and backward; short sentences are whole in one block, long ones are not."""
    for longest in LONGEST:
        qkv = torch.empty(longest, 3, HEADS, head_size, dtype=dtype)
        settings = torch.empty(2, dtype=torch.int32), longest, 0.125, *dropout
        out, lse = attention.attention_fwd(qkv, *settings)
        attention.attention_bwd(out, qkv, lse, *settings)


def launch_layer_norms(dtype: torch.dtype, width: int, dropout: Dropout, extras: bool) -> None:
    """add_layer_norm and embedding; `extras` are input bias, perturbation and the gradients of parameters."""
    x, row, (*named, offset) = torch.empty(TOKENS, width, dtype=dtype), torch.empty(width, dtype=dtype), dropout
    _, *saved = add_layer_norm.add_layer_norm_fwd(x, row if extras else None, x, row, row, 1e-12, *dropout)
    add_layer_norm.add_layer_norm_bwd(x, *saved, row, *named, extras, offset)
    ids = [torch.empty(TOKENS, dtype=torch.int64) for _ in TABLES]
    tables = [torch.empty(rows, width, dtype=dtype) for rows in TABLES]
    _, *saved = embedding.embedding_fwd(*ids, *tables, row, row, x if extras else None, 1e-12, *dropout)
    embedding.embedding_bwd(x, *ids, *saved, row, *TABLES, *named, *[extras] * 5, offset)


def launch_bias_gelu(dtype: torch.dtype, width: int, has_bias: bool, bias_grad: bool) -> None:
    x, bias = torch.empty(TOKENS, width, dtype=dtype), torch.empty(width, dtype=dtype) if has_bias else None
    bias_gelu.bias_gelu_fwd(x, bias)
    bias_gelu.bias_gelu_bwd(x, x, bias, bias_grad)


def launch_linear(dtype: torch.dtype, width: int, has_bias: bool, bias_grad: bool) -> None:
    """In bf16 mode, with GELU and without; the results of products are of `dtype`."""
    x, weight = torch.empty(TOKENS, HIDDEN, dtype=dtype), torch.empty(width, HIDDEN, dtype=torch.bfloat16)
    bias, grad_y = torch.empty(width) if has_bias else None, torch.empty(TOKENS, width, dtype=dtype)
    low, z = x.bfloat16(), torch.empty_like(grad_y, dtype=torch.bfloat16)
    for gelu in (True, False):
        for keep in (True, False):
            linear.linear_bf16_fwd(x, weight, width, bias, gelu, keep, keep, dtype)
        needs = True, True, bias_grad, dtype
        linear.linear_bf16_bwd(grad_y, low, z if gelu else None, weight, HIDDEN, width, *needs)
