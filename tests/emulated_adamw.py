"""adamw's CUDA code, emulated, as a function like `smartcs.ops.adamw`."""

import ctypes
import math
import struct

import torch
from emulated_cuda import SCHEDULES, EmulationError, Memory, identical

STATE = ("parameter", "exp_avg", "exp_avg_sq", "anchor", "step")
TWO_SUMS = -2  # see tests/cuda/adamw.cpp


class Table:
    """The device's memory of a step: it is filled once, and every step after that only launches."""

    def __init__(self, library, memory, tensors, max_grad_norm, anchor_weight, schedule, table):
        self.library, self.memory, self.tensors = library, memory, tensors
        self.schedule = None if schedule is None else memory.place(schedule)
        names = (*STATE, "grad", "packed")
        self.placed = [{n: memory.place(t) for n in names if (t := getattr(e, n)) is not None} for e in tensors]
        rows, sums, size = [], 0, library.code.adamw_chunk()
        for e, own in zip(tensors, self.placed, strict=True):
            count = e.parameter.numel()
            pointers = [own.get(name) for name in ("parameter", "grad", "exp_avg", "exp_avg_sq", "anchor")]
            pointers += [own.get("packed"), own["step"] if e.grad is not None else None]
            addresses = [0 if t is None or t.numel() == 0 else t.data_ptr() for t in pointers]
            wide = e.parameter.dtype == torch.float64, e.step.dtype == torch.float64
            rows.append(struct.pack("@7QqiH??", *addresses, count, -1, 65535, *wide))
            sums += max(1, -(-count // size))
        assert len(rows[0]) == library.code.adamw_tensor_bytes()
        given = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8)
        numbers = torch.tensor([e.settings for e in tensors], dtype=torch.float64)
        measured = max_grad_norm is not None
        scratch = (torch.full((n,), math.nan, dtype=torch.float64) for n in (sums if measured else 0, 1))
        partial_sums, self.norm = map(memory.place, scratch)
        self.arguments = [ctypes.c_int64(table), ctypes.c_int64(len(rows))]
        self.arguments += [pointer(memory.place(given)), pointer(memory.place(numbers)), pointer(self.schedule)]
        self.arguments += [ctypes.c_double(anchor_weight)]
        self.arguments += [ctypes.c_double(max_grad_norm if measured else math.inf)]
        self.arguments += map(pointer, (partial_sums, self.norm))

    def step(self, grads, seed=7):
        """One step with new gradients in the old places; the norm."""
        for own, grad in zip(self.placed, grads, strict=True):
            if grad is not None:
                own["grad"].copy_(grad)
        self.library.code.set_schedule(seed)
        self.library.code.adamw_step.restype = ctypes.c_char_p
        message = self.library.code.adamw_step(*self.arguments)
        if message is not None:
            raise EmulationError(message.decode())
        return self.norm[0].clone()

    def read(self):
        """The tensors as they are now."""
        return [
            e._replace(**{n: own[n].clone() for n in (*STATE, "packed") if n in own})
            for e, own in zip(self.tensors, self.placed, strict=True)
        ]


def pointer(tensor):
    return ctypes.c_void_p(None if tensor is None or tensor.numel() == 0 else tensor.data_ptr())


def emulated_step(library, table=0):
    """A function like smartcs.ops.adamw, in two orders of threads; `table` is what a launch holds, see adamw.cpp."""

    def step(tensors, *, max_grad_norm=None, anchor_weight=0.0, schedule=None):
        results = []
        for seed, at_end in SCHEDULES:
            with Memory(library, at_end) as memory:
                own = Table(library, memory, tensors, max_grad_norm, anchor_weight, schedule, table)
                norm = own.step([e.grad for e in tensors], seed)
                assert all(
                    e.grad is None or identical(e.grad, o["grad"]) for e, o in zip(tensors, own.placed, strict=True)
                )
                results.append((own.read(), norm))
        for e, first, second in zip(tensors, results[0][0], results[1][0], strict=True):
            for name in STATE if e.packed is None else (*STATE, "packed"):
                assert identical(getattr(first, name), getattr(second, name)), f"{name} depends on the threads' order"
                getattr(e, name).copy_(getattr(first, name))
        assert identical(results[0][1], results[1][1])
        return None if max_grad_norm is None else results[0][1]

    return step
