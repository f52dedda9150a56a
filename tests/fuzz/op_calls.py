"""The C++ ops called through Python with wrong arguments: an error each time, or a right result; never a crash.

Every input is made from its number alone (op_inputs.py). A worker process runs numbers one after the other and notes
each before it runs it; where a worker dies, or spends longer than its limit on one input, the number it was at is a
finding, and another worker goes on behind it.

    python tests/fuzz/op_calls.py --inputs 50000
    python tests/fuzz/op_calls.py --show 1234       that input alone, in this process
"""

import argparse
import inspect
import json
import mmap
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import op_inputs
import torch
from torch import Tensor

from smartcs import ops
from smartcs.ops.backend import backend

SECONDS, MEMORY = 60, 16 * 2**30  # of an input
REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError)
FRONT_DOORS = ("attention", "add_layer_norm", "bias_gelu", "embedding", "linear", "perturb", "symmetric_kl")
CALLS = (*op_inputs.MAKERS, *(f"ops.{name}" for name in (*FRONT_DOORS, "perturb_noise")))
# Two kernels round differently; what is looked for is another result.
CLOSE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1}


class Finding(AssertionError):
    """An input that was accepted and should not have been, or whose result is wrong."""


def case(number: int) -> tuple[str, dict[str, Any]]:
    """The call and its arguments, most of them with one to three changes."""
    rng = random.Random(number)
    name = CALLS[number % len(CALLS)]
    raw = name in op_inputs.MAKERS
    if raw:
        schema = getattr(torch.ops.smartcs, name).default._schema
        names = [argument.name for argument in schema.arguments]
        made = op_inputs.MAKERS[name](rng)
    else:
        names = list(inspect.signature(getattr(ops, name[4:])).parameters)
        made = getattr(op_inputs, name[4:].removesuffix("_noise"))(rng)
    arguments = {key: made.get(key) for key in names if raw or made.get(key) is not None}
    tensors = [value for value in arguments.values() if isinstance(value, Tensor)]
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        key = rng.choice(list(arguments))
        try:
            arguments[key] = op_inputs.wrong(rng, arguments[key], tensors)
        except Exception:  # what PyTorch cannot make, such as a sparse tensor of freed memory, stays as it was
            continue
    return name, arguments


def run(number: int) -> bool:
    """One input; whether it was accepted.

    Raises:
        Finding: its result is wrong.
    """
    name, arguments = case(number)
    try:
        if name in op_inputs.MAKERS:
            return _raw(name, arguments)
        return _front_door(name[4:], arguments)
    except REFUSALS as error:
        if not str(error).strip():
            raise Finding(f"{name}: {type(error).__name__} without a message") from error
        if "INTERNAL ASSERT" in str(error):
            raise Finding(f"{name}: {str(error)[:300]}") from error
        return False
    except AttributeError:
        # A fake kernel, which a meta tensor leads to, trusts that what the schema calls a tensor is one.
        if not any(isinstance(value, Tensor) and value.is_meta for value in arguments.values()):
            raise
        return False


def _flat(values: Any) -> list[Tensor]:
    found = values if isinstance(values, tuple | list) else (values,)
    return [value for value in found if isinstance(value, Tensor)]


def _raw(name: str, arguments: dict[str, Any]) -> bool:
    """A raw op: what it returns looks as its fake says, and it writes only what its schema says."""
    op = getattr(torch.ops.smartcs, name).default
    values = list(arguments.values())
    # What is written by adamw_step is in lists.
    before = [(value, value.clone()) for value in values if isinstance(value, Tensor) and _small(value)]
    results = _flat(op(*values))
    for value, copy in before:
        if not _same(value, copy):
            raise Finding(f"{name}: wrote an input")
    meta = [_on_meta(value) for value in values]
    for result, expected in zip(results, _flat(op(*meta)), strict=True):
        if name == "adamw_step" or result.is_meta:
            continue
        if result.shape != expected.shape or result.dtype != expected.dtype:
            raise Finding(f"{name}: {result.dtype} of {tuple(result.shape)}, its fake says {expected.shape}")
    return True


def _front_door(name: str, arguments: dict[str, Any]) -> bool:
    """A front door: the fused op and the reference agree, where the reference's numbers are finite."""
    function = getattr(ops, name)
    with backend("fused"):
        fused = _flat(function(**arguments))
    # perturb_noise reads a shape and a type, no numbers.
    read = [value for key, value in arguments.items() if (name, key) != ("perturb_noise", "like")]
    if any(isinstance(value, Tensor) and op_inputs.freed(value) for value in read):
        raise Finding(f"{name}: accepted a tensor without memory")
    with backend("reference"):
        reference = _flat(function(**arguments))
    overflows = any(_small(value) and _size(value) > 1e30 for value in _flat(list(arguments.values())))
    for got, wanted in zip(fused, reference, strict=True):
        if got.shape != wanted.shape or got.dtype != wanted.dtype or got.device != wanted.device:
            raise Finding(f"{name}: {got.dtype} of {tuple(got.shape)}, the reference {wanted.dtype} {wanted.shape}")
        if got.is_meta or not _small(got) or got.dtype not in CLOSE:
            continue
        finite = wanted.isfinite()
        size = _size(wanted)
        if overflows or size > 1e30:  # what is summed in another order overflows elsewhere
            continue
        error = (got[finite].double() - wanted[finite].double()).abs()
        if finite.any() and not (error <= CLOSE[got.dtype] * max(size, 1e-30)).all():
            raise Finding(f"{name}: differs from the reference by {float(error.max()):.3g} of {size:.3g}")
    return True


def _small(tensor: Tensor) -> bool:
    plain = tensor.layout == torch.strided and not tensor.is_meta
    return plain and tensor.numel() < 10_000 and tensor.untyped_storage().nbytes() >= tensor.element_size()


def _size(tensor: Tensor) -> float:
    """The largest of a tensor's finite numbers."""
    finite = tensor[tensor.isfinite()] if tensor.is_floating_point() else tensor[:0]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _same(tensor: Tensor, copy: Tensor) -> bool:
    return tensor.shape == copy.shape and bool(
        torch.equal(tensor.contiguous().view(-1).view(torch.uint8), copy.contiguous().view(-1).view(torch.uint8))
    )


def _on_meta(value: Any) -> Any:
    if isinstance(value, list):
        return [_on_meta(item) for item in value]
    return value.to("meta") if isinstance(value, Tensor) else value


def worker(first: int, last: int, note: Path) -> None:
    """Runs inputs `first` to `last` - 1, noting each before it runs; findings to stdout."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with note.open("r+b") as file, mmap.mmap(file.fileno(), 8) as memory:
        for number in range(first, last):
            memory[:] = number.to_bytes(8, "little")
            signal.alarm(SECONDS)  # ends the process, also inside a kernel
            try:
                run(number)
            except Exception as error:
                print(json.dumps({"input": number, "what": f"{type(error).__name__}: {str(error)[:300]}"}), flush=True)


def campaign(first: int, inputs: int, limit: int = 100) -> dict[str, Any]:
    """Runs inputs `first` to `first` + `inputs` - 1 in workers until `limit` died; the counts and what was found."""
    found: list[dict[str, Any]] = []
    at, end, begun, deaths = first, first + inputs, time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder, "note")
        while at < end and deaths < limit:
            note.write_bytes(at.to_bytes(8, "little"))
            command = [sys.executable, __file__, "--worker", str(at), str(end), str(note)]
            answer = subprocess.run(command, capture_output=True, text=True, errors="replace")
            for line in answer.stdout.splitlines():
                found.append(json.loads(line))
            if answer.returncode == 0:
                break
            number = int.from_bytes(note.read_bytes(), "little")
            slow = answer.returncode == -signal.SIGALRM
            what = f"took more than {SECONDS} s" if slow else f"died: {answer.returncode} {answer.stderr[-300:]}"
            found.append({"input": number, "what": f"{CALLS[number % len(CALLS)]} {what}"})
            at, deaths = number + 1, deaths + 1
    return {
        "inputs": inputs if deaths < limit else at - first,
        "seconds": round(time.monotonic() - begun, 1),
        "found": found,
        "ended": "as asked" if deaths < limit else f"after {deaths} deaths",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--result", type=Path, help="write the counts and findings there, as JSON")
    parser.add_argument("--show", type=int, metavar="NUMBER", help="run one input in this process")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        return worker(int(options.worker[0]), int(options.worker[1]), Path(options.worker[2]))
    if options.show is not None:
        name, arguments = case(options.show)
        print(name, {key: _shown(value) for key, value in arguments.items()}, flush=True)
        print("accepted" if run(options.show) else "refused")
        return None
    result = campaign(options.first, options.inputs)
    print(json.dumps(result, indent=1))
    if options.result is not None:
        options.result.write_text(json.dumps(result))
    sys.exit(bool(result["found"]))


def _shown(value: Any) -> Any:
    if isinstance(value, list):
        return [_shown(item) for item in value]
    if not isinstance(value, Tensor):
        return value
    short = value.tolist() if _small(value) and value.numel() < 20 else "..."
    return (
        f"{value.dtype} {tuple(value.shape)} strides {value.stride() if value.layout == torch.strided else '-'} {short}"
    )


if __name__ == "__main__":
    main()
