"""Faults of the place a run writes to: a full disk, a folder that may not be written, damaged checkpoints."""

import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fault_runs import Fault, Row, Runs, done, newest, refused

from smartcs.training.checkpoint import MANIFEST, listed
from smartcs.training.run_folder import CHECKPOINTS

DISKS = (0.02, 0.1, 0.25, 0.4, 0.55, 0.7, 0.85)  # of what a run needs at most
FILES = (0.3, 0.9)  # of its largest file


def size_of(folder: Path) -> int:
    """Bytes of all its files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[Callable[[str], None] | None]:
    """A disk of that many bytes; None where mounting is not allowed. What is yielded mounts it again with options."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        yield None
        return
    try:
        yield lambda options: mount_again(folder, options)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def mount_again(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def disk(runs: Runs, rng: random.Random) -> Row:
    """No room: at sizes from that of nearly nothing to that of nearly all a run writes."""
    row, whole = Row(), runs.whole()
    need = size_of(whole) + size_of(listed(whole / CHECKPOINTS)[0])
    for part in DISKS:
        place = runs.folder / f"disk-{part}"
        with mounted(place, round(part * need)) as again:
            if again is None:
                print("disk: mounting is not allowed here", flush=True)
                break
            process, run = runs.start(place / "run"), place / "run"
            row.hit("full disk")
            broken(runs, process, run, row, ("No space left", "disk is full"), lambda: again("size=1g"))
        print(f"disk: of {part:.0%} of the room, {row.facts()}", flush=True)
    largest = max(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    for part in FILES:
        run, most = runs.folder / f"files-{part}", round(part * largest)
        process = runs.start(run, limit=lambda most=most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)))
        row.hit("files that may not grow")
        broken(runs, process, run, row, ("File too large",), lambda: None)
    return row


def broken(
    runs: Runs, process: subprocess.Popen[str], run: Path, row: Row, words: tuple[str, ...], mend: Callable[[], object]
) -> None:
    """A run that the fault ends in one line, or that says so and goes on; it is mended and gone on with."""
    process.wait(120)
    if process.returncode == 0:
        said = done(process)
        if not any(word in said for word in words):
            raise Fault(f"the fault went unnoticed: {said[-1500:]}")
        row.went_on += 1
    else:
        refused(process, *words)
        row.refused += 1
    mend()
    runs.go_on(run, row)


def readonly(runs: Runs, rng: random.Random) -> Row:
    """A read-only disk, and a folder for checkpoints that becomes unchangeable in the middle."""
    row = Row()
    runs.whole()
    place = runs.folder / "disk"
    with mounted(place, 2**30) as again:
        if again is None:
            print("readonly: mounting is not allowed here", flush=True)
        else:
            again("ro")
            row.hit("read-only disk")
            refused(runs.start(place / "run"), "Read-only", "no permission to write")
            row.refused += 1
            again("rw")
            if any(place.iterdir()):
                raise Fault("something was written to a read-only disk")
            runs.again(place / "run", row)
    for number in range(3):
        run = runs.folder / f"fixed-{number}"
        process, seen = runs.start(run), rng.randrange(1, 4)
        while process.poll() is None and len(listed(run / CHECKPOINTS)) < min(seen, 2):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.2))
        if not fix(run / CHECKPOINTS, True):
            print("readonly: a folder cannot be made unchangeable here", flush=True)
            process.kill()
            process.communicate()
            break
        row.hit("folder unchangeable from some moment on")
        try:
            broken(
                runs,
                process,
                run,
                row,
                ("not permitted", "Permission denied"),
                lambda run=run: fix(run / CHECKPOINTS, False),
            )
        finally:
            fix(run / CHECKPOINTS, False)
        print(f"readonly: {row.facts()}", flush=True)
    return row


def fix(folder: Path, fixed: bool) -> bool:
    """Makes a folder's list of names unchangeable, even for root, or changeable again; whether that worked."""
    return subprocess.run(["chattr", "+i" if fixed else "-i", str(folder)], capture_output=True).returncode == 0


def damaged(runs: Runs, rng: random.Random) -> Row:
    """Each file of the newest checkpoint, cut or with a bit flipped; and all checkpoints."""
    row, source = Row(), runs.folder / "source"
    process = runs.start(source)
    while process.poll() is None and len(listed(source / CHECKPOINTS)) < 2:
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
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
