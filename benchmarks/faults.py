"""Runs that are ended by force, and what `--resume` makes of them: benchmarks/results/faults.json.

    PYTHONPATH=tests python benchmarks/faults.py                        all, a quarter to half an hour
    PYTHONPATH=tests python benchmarks/faults.py --only kill --kills 5

kill      SIGKILL at random moments, three of eight of them in or near the write of a checkpoint, the others in the last
          70 % of the run's time
damaged   the newest checkpoint with one file cut or one bit flipped, each of its files in turn; and all checkpoints
worker    the thread that prepares batches ended, and one of two processes of torchrun killed
disk      a full disk: a small tmpfs, which takes root's rights, and files that may not grow beyond a limit
readonly  a folder that may not be written, from the start or from some moment on; with root's rights

Every broken run is gone on with until its end and compared with the run in one piece: weights, optimizer state, anchor,
losses, predictions and figures, to the bit. A fault that is not survived as it must be ends the script.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from fault_places import damaged, disk, readonly
from fault_runs import EVERY, Fault, Row, Runs, has_checkpoints, newest, refused, wait_for
from results_io import RESULTS, source

from smartcs.training.run_folder import CHECKPOINTS

PATH = RESULTS / "faults.json"


def has_begun_to_write(run: Path, count: int) -> Callable[[], bool]:
    """Whether so many checkpoints have been begun, of which the last may still be in the making."""
    seen: set[str] = set()

    def look() -> bool:
        seen.update(path.name for path in (run / CHECKPOINTS).glob(".step-*.tmp"))
        return len(seen) >= count

    return look


def kill(runs: Runs, rng: random.Random, count: int) -> Row:
    """SIGKILL at random moments."""
    row = Row()
    runs.whole()
    while row.injected < count:
        run = runs.folder / f"kill-{row.injected}"
        process = runs.start(run)
        if row.injected % 8 < 3:
            wait_for(has_begun_to_write(run, rng.randrange(1, 16)), process)
            time.sleep(rng.uniform(0, 0.01))
        else:
            time.sleep(rng.uniform(0.3, 1.0) * runs.seconds)
        process.kill()
        process.communicate()
        if process.returncode == 0:  # it had ended; another moment
            shutil.rmtree(run)
            continue
        if process.returncode != -signal.SIGKILL:
            raise Fault(f"exit status {process.returncode} before it was killed")
        half = any((run / CHECKPOINTS).glob(".step-*"))
        before = newest(run) is None
        row.hit("in a checkpoint's write" if half else "before the first checkpoint" if before else "between")
        runs.go_on(run, row)
        print(f"kill {row.injected} of {count}: {row.moments}, {row.bytes_corrupted} bytes corrupted", flush=True)
    return row


def worker(runs: Runs, rng: random.Random) -> Row:
    """The thread that prepares batches, and a process of torchrun."""
    row = Row()
    for number in range(3):
        run = runs.folder / f"thread-{number}"
        process = runs.start(run, dies_at=rng.randrange(20, 100))
        row.hit("the thread that prepares batches")
        refused(process, "prepares batches")
        row.refused += 1
        runs.go_on(run, row)
        print(f"worker: thread {number + 1}", flush=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with TemporaryDirectory(dir=runs.folder) as name:
        two = Runs(Path(name), torchrun)
        two.whole()
        for number in range(2):
            run = two.folder / f"rank-{number}"
            process = two.start(run)
            wait_for(has_checkpoints(run, rng.randrange(1, 3)), process)
            os.kill(children(process.pid)[number], signal.SIGKILL)
            row.hit("a process of torchrun")
            refused(process, "Signal 9", traceback=True)  # torchrun's own
            row.refused += 1
            two.go_on(run, row)
            print(f"worker: process {number + 1} of torchrun", flush=True)
    return row


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(number) for number in found.split()]


KINDS: dict[str, Callable[..., Row]] = {
    "kill": kill,
    "damaged": damaged,
    "worker": worker,
    "disk": disk,
    "readonly": readonly,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments and places")
    parser.add_argument("--no-record", action="store_true", help=f"leave {PATH.name} as it is")
    options = parser.parse_args()
    about = source()
    for kind in options.only:
        rng, begun = random.Random(options.seed), time.monotonic()
        with TemporaryDirectory() as name:
            row = KINDS[kind](Runs(Path(name)), rng, **({"count": options.kills} if kind == "kill" else {}))
        bound = EVERY * (1 if kind in ("kill", "worker") else 2)
        facts = {**asdict(row), "bound": bound, "seconds": round(time.monotonic() - begun), **about}
        print(f"{kind}: {facts}", flush=True)
        if row.bytes_corrupted or row.steps_lost > bound:
            sys.exit(f"faults: {kind}: {row.bytes_corrupted} bytes corrupted, {row.steps_lost} steps lost")
        if not options.no_record:
            known = json.loads(PATH.read_text()) if PATH.is_file() else {}
            known[kind] = facts
            PATH.write_text(json.dumps({name: known[name] for name in KINDS if name in known}, indent=1) + "\n")


if __name__ == "__main__":
    main()
