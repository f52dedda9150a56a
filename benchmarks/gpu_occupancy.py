"""How many warps of a kernel fit on a multiprocessor, from what the kernel takes and what the chip has.

As the CUDA Occupancy Calculator and cuda_occupancy.h have it, with all of the memory that can be shared memory as such.
Limits: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; tuning guides of Ampere, Hopper
and Blackwell.
"""

from dataclasses import dataclass

WARP = 32


@dataclass(frozen=True)
class Chip:
    """A multiprocessor of one compute capability (bytes, and 32-bit registers)."""

    card: str
    cc: int
    shared: int
    shared_per_block: int
    warps: int = 64
    blocks: int = 32
    threads_per_block: int = 1024
    partitions: int = 4
    registers: int = 65536
    registers_per_thread: int = 255
    register_unit: int = 256
    """A warp's registers are allocated in these, in the registers of one partition."""
    shared_unit: int = 128
    shared_reserved: int = 1024
    """Taken by the system for every block."""
    tensor_columns: int = 0
    """Of tensor memory, which a block takes in powers of two from 32 on."""


CHIPS = {
    "sm_80": Chip("A100", 80, shared=164 * 1024, shared_per_block=163 * 1024),
    "sm_90": Chip("H100", 90, shared=228 * 1024, shared_per_block=227 * 1024),
    "sm_100": Chip("B200", 100, shared=228 * 1024, shared_per_block=227 * 1024, tensor_columns=512),
}


@dataclass(frozen=True)
class Occupancy:
    blocks: int
    """Per multiprocessor; 0 where not even one can be launched."""
    share: float
    """Resident warps over the most there can be."""
    limit: str
    """What there is not enough of for one block more: warps, blocks, registers, shared memory, tensor memory;
    several of them where they agree."""


def occupancy(chip: Chip, threads: int, registers: int, shared: int, tensor_columns: int = 0) -> Occupancy:
    """Of blocks with so many threads, registers per thread and bytes of shared memory, static and dynamic together.

    Blocks that wait for tensor memory to start their products count as not resident.

    Raises:
        ValueError: a number is not one that a kernel can have.
    """
    if threads < 1 or registers < 1 or shared < 0 or tensor_columns < 0:
        found = threads, registers, shared, tensor_columns
        raise ValueError(f"occupancy: threads, registers, shared, tensor_columns are {found}, expected >= (1, 1, 0, 0)")
    warps = -(-threads // WARP)
    per_warp = _rounded_up(registers * WARP, chip.register_unit)
    per_partition = chip.registers // chip.partitions // per_warp
    per_block = _rounded_up(shared + chip.shared_reserved, chip.shared_unit)
    fits = {
        "warps": chip.warps // warps if threads <= chip.threads_per_block else 0,
        "blocks": chip.blocks,
        "registers": per_partition * chip.partitions // warps if registers <= chip.registers_per_thread else 0,
        "shared memory": chip.shared // per_block if shared <= chip.shared_per_block else 0,
    }
    if tensor_columns > 0:
        fits["tensor memory"] = chip.tensor_columns // max(32, 1 << (tensor_columns - 1).bit_length())
    blocks = min(fits.values())
    limit = ", ".join(name for name, count in fits.items() if count == blocks)
    return Occupancy(blocks, blocks * warps / chip.warps, limit)


def _rounded_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
