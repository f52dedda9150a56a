"""`make fuzz`: every reader under atheris, the ops through Python, and what came of it in benchmarks/results/fuzz.json.

Each target runs in a process of its own from the committed corpus; what it learns is thrown away with the process. An
input that ends one is kept beside the corpus as found-<hash>, where test_readers.py runs it for ever after.

    python tests/fuzz/campaign.py                         all of them: 1,200,000 inputs
    python tests/fuzz/campaign.py --inputs 20000 --only data_file safetensors_file
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.json"
CORPUS = HERE / "corpus"
# Share of the inputs by target: readers that take microseconds get more of them than those that take milliseconds.
SHARES = {
    "json_values": 50, "data_file": 12, "model_config": 6, "pooling_config": 6, "heads_config": 6, "run_config": 3,
    "safetensors_file": 3, "shard_index": 2, "bin_file": 2, "tokenizer_json": 4, "vocabulary": 4, "metrics_json": 4,
    "checkpoint_manifest": 4, "checkpoint_state": 4,
    "losses_csv": 4, "predictions": 4, "ops": 4,
}  # fmt: skip
ENDS = ("crash", "timeout", "oom", "leak")  # what libFuzzer calls an input that ended it
LIMITS = ["-timeout=30", "-rss_limit_mb=4096", "-max_len=8192", "-print_final_stats=1", "-detect_leaks=0"]


def run_target(name: str, inputs: int, environment: dict[str, str]) -> dict[str, Any]:
    """One reader under atheris."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        learned = Path(folder, "corpus")
        learned.mkdir()
        command = [sys.executable, str(HERE / "guided.py"), name, f"-runs={inputs}", *LIMITS]
        command += [f"-artifact_prefix={folder}/", str(learned), str(CORPUS / name)]
        begun = time.monotonic()
        answer = subprocess.run(
            command, env=environment | {"TMPDIR": folder}, capture_output=True, text=True, errors="replace"
        )
        seconds = time.monotonic() - begun
        done = re.findall(r"number_of_executed_units: (\d+)", answer.stderr)
        kept = [keep(CORPUS / name, path) for kind in ENDS for path in Path(folder).glob(f"{kind}-*")]
    if answer.returncode != 0:
        print(answer.stderr[-3000:], file=sys.stderr)
    return {
        "target": name,
        "inputs": int(done[-1]) if done else 0,
        "seconds": round(seconds, 1),
        "found": sorted(kept),
        "ended": "as asked" if answer.returncode == 0 else f"exit status {answer.returncode}",
    }


def keep(folder: Path, artifact: Path) -> str:
    """Puts an input that ended a run beside the corpus; returns its name there."""
    content = artifact.read_bytes()
    name = f"found-{hashlib.sha256(content).hexdigest()[:12]}"
    (folder / name).write_bytes(content)
    return name


def run_ops(inputs: int, environment: dict[str, str]) -> dict[str, Any]:
    """The ops, by op_calls.py, which notices by itself where its process dies."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        command = [sys.executable, str(HERE / "op_calls.py"), "--inputs", str(inputs), "--result", str(result)]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
        if answer.returncode != 0:
            print(answer.stdout[-3000:], answer.stderr[-3000:], file=sys.stderr)
        found: dict[str, Any] = json.loads(result.read_text())
    return {"target": "ops", **found}


def record(rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Rows replace those of the same targets."""
    known: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"rows": []}
    kept = {row["target"]: row for row in known["rows"]} | {row["target"]: {**row, **about} for row in rows}
    known["rows"] = [kept[name] for name in SHARES if name in kept]
    RESULTS.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_200_000, help="of all targets together")
    parser.add_argument("--only", nargs="+", choices=SHARES, default=list(SHARES), metavar="TARGET")
    parser.add_argument("--no-record", action="store_true", help=f"leave {RESULTS.name} as it is")
    options = parser.parse_args()

    sys.path.insert(0, str(ROOT / "benchmarks"))
    from results_io import source

    about = source()
    places = (ROOT, ROOT / "tests", HERE, os.environ.get("PYTHONPATH"))
    inside = os.environ | {"PYTHONPATH": os.pathsep.join(str(place) for place in places if place)}
    total, failed = sum(SHARES[name] for name in options.only), False
    for name in options.only:
        count = max(1, options.inputs * SHARES[name] // total)
        row = run_ops(count, inside) if name == "ops" else run_target(name, count, inside)
        print(
            f"{name:18}{row['inputs']:>9} inputs in {row['seconds']:>8} s, {row['ended']}, found: {row['found']}",
            flush=True,
        )
        failed = failed or bool(row["found"]) or row["ended"] != "as asked"
        if not options.no_record:
            record([row], about)
    sys.exit(failed)


if __name__ == "__main__":
    main()
