"""Faults of the place a run writes to: a full disk, a folder that may not be written, damaged checkpoints."""

import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fault_runs import LIMIT, Fault, Row, Runs, done, has_checkpoints, newest, refused, wait_for

from smartcs.training.checkpoint import MANIFEST, listed
from smartcs.training.run_folder import CHECKPOINTS

DISKS = (0.02, 0.1, 0.25, 0.4, 0.55, 0.7, 0.85)  # of what a run needs at most
FILES = (0.3, 0.9)  # of its largest file


def size_of(folder: Path) -> int:
    """Bytes of all its files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def system(*command: str) -> None:
    """A command of the system's that only root may give."""
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode != 0:
        raise SystemExit(f"faults: {' '.join(command)}: {answer.stderr.strip()}; disk and readonly need root's rights")


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[Callable[[str], None]]:
    """A disk of that many bytes; what is yielded mounts it again with options."""
    folder.mkdir()
    system("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield lambda options: system("mount", "-o", f"remount,{options}", str(folder))
    finally:
        system("umount", str(folder))


@contextmanager
def unchangeable(folder: Path) -> Iterator[Callable[[], None]]:
    """A folder whose list of names cannot be changed, even by root; what is yielded ends that before the block does."""
    system("chattr", "+i", str(folder))
    try:
        yield lambda: system("chattr", "-i", str(folder))
    finally:
        system("chattr", "-i", str(folder))


def disk(runs: Runs, rng: random.Random) -> Row:
    """No room: at sizes from that of nearly nothing to that of nearly all a run writes."""
    row, whole = Row(), runs.whole()
    need = size_of(whole) + size_of(listed(whole / CHECKPOINTS)[0])
    for part in DISKS:
        place = runs.folder / f"disk-{part}"
        with mounted(place, round(part * need)) as again:
            run = place / "run"
            row.hit("full disk")
            broken(runs, runs.start(run), run, row, "No space left", partial(again, "size=1g"))
        print(f"disk: of {part:.0%} of the room, {row}", flush=True)
    for part in FILES:
        bounded(runs, runs.folder / f"files-{part}", row, part)
    return row


def bounded(runs: Runs, run: Path, row: Row, part: float) -> None:
    """Files of at most a part of a run's largest: what a quota does, without root's rights."""
    most = round(part * max(path.stat().st_size for path in runs.whole().rglob("*") if path.is_file()))
    row.hit("files that may not grow")
    process = runs.start(run, limit=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most, most)))
    broken(runs, process, run, row, "File too large", lambda: None)


def broken(
    runs: Runs, process: subprocess.Popen[str], run: Path, row: Row, reason: str, mend: Callable[[], None]
) -> None:
    """A run that the fault ends in one line, or that says so and goes on; it is mended and gone on with."""
    if process.wait(LIMIT) == 0:
        if reason not in (said := done(process)):
            raise Fault(f"the fault went unnoticed: {said[-1500:]}")
        row.went_on += 1
    else:
        refused(process, reason)
        row.refused += 1
    mend()
    runs.go_on(run, row)


def readonly(runs: Runs, rng: random.Random) -> Row:
    """A read-only disk, and a folder for checkpoints that becomes unchangeable in the middle."""
    row = Row()
    runs.whole()
    place = runs.folder / "disk"
    with mounted(place, 2**30) as again:
        again("ro")
        row.hit("read-only disk")
        refused(runs.start(place / "run"), "no permission to write")
        row.refused += 1
        again("rw")
        if any(place.iterdir()):
            raise Fault("something was written to a read-only disk")
        runs.again(place / "run", row)
    for number in range(3):
        run = runs.folder / f"fixed-{number}"
        process = runs.start(run)
        wait_for(has_checkpoints(run, rng.randrange(1, 3)), process)
        time.sleep(rng.uniform(0, 0.2))
        row.hit("folder unchangeable from some moment on")
        with unchangeable(run / CHECKPOINTS) as end:
            broken(runs, process, run, row, "not permitted", end)
        print(f"readonly: {row}", flush=True)
    return row


def damaged(runs: Runs, rng: random.Random) -> Row:
    """Each file of the newest checkpoint, cut or with a bit flipped; and all checkpoints."""
    row, source = Row(), runs.folder / "source"
    process = runs.start(source)
    wait_for(has_checkpoints(source, 2), process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LIMIT)
    if process.returncode != 128 + signal.SIGTERM or len(listed(source / CHECKPOINTS)) != 2:
        raise Fault(f"exit status {process.returncode}, expected a run stopped with two checkpoints")
    last, before = listed(source / CHECKPOINTS)
    names = sorted(path.relative_to(last).as_posix() for path in last.rglob("*") if path.is_file())
    for number, (name, harm) in enumerate((name, harm) for name in names for harm in (cut, flip)):
        run = runs.folder / f"damaged-{number}"
        shutil.copytree(source, run)
        harm(run / CHECKPOINTS / last.name / name, rng)
        row.hit(f"{name} {'cut' if harm is cut else 'with a bit flipped'}")
        if (found := newest(run)) is None or found.folder.name != before.name:
            raise Fault(f"{name}: the damage was not seen")
        said = runs.go_on(run, row)
        if "passed over a damaged checkpoint" not in said or last.name not in said:
            raise Fault(f"{name}: not said that the checkpoint before is used: {said[:1500]}")
        print(f"damaged: {name}, {row.bytes_corrupted} bytes corrupted", flush=True)
    run = runs.folder / "all"
    shutil.copytree(source, run)
    for checkpoint in listed(run / CHECKPOINTS):
        flip(checkpoint / MANIFEST, rng)
    row.hit("all checkpoints")
    refused(runs.process("--resume", str(run)), "no checkpoint is whole")
    row.refused += 1
    runs.again(run, row)
    return row


def cut(path: Path, rng: random.Random) -> None:
    """Leaves the beginning of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def flip(path: Path, rng: random.Random) -> None:
    """One bit of a file."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
