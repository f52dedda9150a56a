"""The tables of docs/robustness.md but its first, from fuzz.json, sanitizers.json and findings.json."""

import json
from pathlib import Path
from typing import Any

WHAT = {
    "json_values": "JSON, any",
    "data_file": "data files",
    "model_config": "config.json of a model",
    "pooling_config": "1_Pooling/config.json",
    "heads_config": "smartcs.json",
    "run_config": "train_config.json",
    "checkpoint_manifest": "manifest of a checkpoint",
    "checkpoint_state": "state.json of a checkpoint",
    "safetensors_file": "safetensors",
    "shard_index": "index of shards",
    "bin_file": "pytorch_model.bin",
    "tokenizer_json": "tokenizer.json",
    "vocabulary": "vocab.txt",
    "metrics_json": "metrics.json",
    "losses_csv": "losses.csv",
    "predictions": "prediction files",
    "ops": "the ops, called from Python",
}
SANITIZERS = {
    "address": "AddressSanitizer, UndefinedBehaviorSanitizer: tests/ops",
    "thread": "ThreadSanitizer: tests/ops, several threads",
    "emulation": "AddressSanitizer, UndefinedBehaviorSanitizer: the GPU kernels on the host",
}
FOUND_BY = {"address": ("AddressSanitizer", "UndefinedBehaviorSanitizer"), "thread": ("ThreadSanitizer",)}


def read(name: str, folder: Path) -> Any:
    """A file of results, {} where there is none yet."""
    return json.loads((folder / name).read_text()) if (folder / name).is_file() else {}


def count_findings(folder: Path, *by: str) -> str:
    """How many findings.json has of these. It is written by hand: a finding goes there once it is fixed."""
    return str(sum(one["by"] in by for one in read("findings.json", folder)))


def fuzz_table(folder: Path) -> str:
    """Inputs and time by reader, and their sum."""
    rows = read("fuzz.json", folder).get("rows", [])
    lines = ["| reader | inputs | seconds | open findings | command |", "|---|--:|--:|--:|---|"]
    for row in rows:
        command = f"`python tests/fuzz/campaign.py --only {row['target']} --inputs {row['inputs']}`"
        figures = f"{row['inputs']:,} | {row['seconds']:,.0f} | {len(row['found'])}"
        lines.append(f"| {WHAT[row['target']]} | {figures} | {command} |")
    inputs, seconds = sum(row["inputs"] for row in rows), sum(row["seconds"] for row in rows)
    found = sum(len(row["found"]) for row in rows)
    lines.append(f"| **all** | **{inputs:,}** | **{seconds:,.0f}** | **{found}** | `make fuzz` |")
    return "\n".join(lines)


def findings_table(folder: Path) -> str:
    """What was found, each fixed."""
    lines = ["| found by | what | now | kept by |", "|---|---|---|---|"]
    for one in read("findings.json", folder):
        lines.append(f"| {one['by']} | {one['what']} | {one['now']} | `{one['test']}` |")
    return "\n".join(lines)


def sanitizer_table(folder: Path) -> str:
    """Tests run under each sanitizer, what it found, and the mistakes that it was given."""
    lines = ["| what | tests | ended | found and fixed | mistakes put in, found | command |"]
    lines.append("|---|--:|---|--:|--:|---|")
    for name, row in read("sanitizers.json", folder).items():
        mutants = row.get("mutants", [])
        caught = f"{sum(one['caught'] for one in mutants)} of {len(mutants)}" if mutants else "by the tests themselves"
        command = f"`make sanitize ARGS='--only {name}'`"
        fixed = count_findings(folder, *FOUND_BY.get(name, ()))
        lines.append(f"| {SANITIZERS[name]} | {row['tests']:,} | {row['ended']} | {fixed} | {caught} | {command} |")
    return "\n".join(lines)


TABLES = {"fuzzing": fuzz_table, "findings": findings_table, "sanitizers": sanitizer_table}
