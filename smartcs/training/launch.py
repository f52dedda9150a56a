"""How a run finds out which of several processes it is, and joins the others."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from smartcs.training.commandline import UsageError
from smartcs.training.distributed import Ranks, noticing

# A rank that has died is noticed at once, one that hangs after this. The first rank alone writes files meanwhile.
TIMEOUT = timedelta(minutes=10)


def local_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """This process's number on its machine; None where it is alone.

    Raises:
        UsageError: a launcher has set some of its variables only.
    """
    if int(environment.get("WORLD_SIZE") or 1) == 1:
        return None
    lacking = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if lacking:
        raise UsageError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']}, but {', '.join(lacking)} is not set; start them by torchrun: "
            "torchrun --nproc-per-node N -m smartcs.train ..."
        )
    return int(environment["LOCAL_RANK"])


@contextmanager
def launched(device: torch.device, timeout: timedelta = TIMEOUT) -> Iterator[Ranks]:
    """The processes that torchrun has started this one among; a process alone without it.

    Args:
        device: where this one computes: gradients are averaged by nccl on GPUs, else by gloo.
        timeout: how long to wait for a rank that is alive and silent.

    Raises:
        PeerError: within the block, instead of torch's errors: another process has ended.
    """
    if local_rank() is None:
        yield Ranks()
        return
    own = not dist.is_initialized()
    if own:
        # gloo for what is on the host, in either case.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timeout)
    with noticing():
        yield Ranks(dist.get_rank(), dist.get_world_size())
    # Not after an error: nobody is waited for then, the process ends and its connections with it.
    if own:
        dist.destroy_process_group()
