"""Everything that needs a GPU, in one command: make gpu-check, or python benchmarks/gpu_check.py

Builds the extension in place for the torch that is there, without the network; runs every op's tests on the device,
gradient checks, masks, a few training steps against the reference; times ops, encoder and training beside eager
PyTorch, its attention, torch.compile and Hugging Face. Each stage is a process with a limit of its own; one that fails
or hangs is reported and stops no other. The report goes to benchmarks/results/<gpu>.json, and to $OUT where that is
set. Exit code 1 if a stage failed or hung.

--rehearse, or a machine without a GPU: the same on the CPU, Triton's kernels interpreted, sizes tiny and figures
meaningless; the report goes to build/gpu-check/.
"""

import argparse
import os
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from gpu_report import PROOFS_SHOWN, REHEARSAL_NOTE, ROOT, SCHEMA, environment, scrubbed, slug, summary, write_json
from gpu_stages import COUNTS, Outcome, Stage, pytest_stage, run, run_all
from results_io import RESULTS

WORK = ROOT / "build" / "gpu-check"
SECONDS = 520  # of everything
OPS = ("adamw", "add_layer_norm", "attention", "bias_gelu", "embedding", "linear", "perturb", "symmetric_kl")
DTYPES = ("float32", "bfloat16", "float16")
FAILED = ("failed", "timed out", "not run")
# Seconds: on 16 cores with a GPU, and for a rehearsal on two that others use as well.
LIMITS = {"build": (170, 900), "kernels": (30, 60), "tests": (200, 600), "training": (60, 300)}
LIMITS |= {"encoder": (110, 300), "ops": (130, 300)}


def missing_tools(device: str) -> list[str]:
    """What a stage will fail or be skipped for, with what to do; nothing is installed here."""
    needed = {"pytest": "the tests", "setuptools": "the build", "pybind11": "the build", "numpy": "smartcs"}
    needed |= dict.fromkeys(("tokenizers", "safetensors", "huggingface_hub", "rich"), "smartcs")
    needed |= {"triton": "the kernels", "transformers": "the comparison with Hugging Face", "tyro": "the trainer"}
    lines = [f"{name} is not installed, {what} needs it: pip install {name}" for name, what in needed.items()]
    found = [line for name, line in zip(needed, lines, strict=True) if find_spec(name) is None]
    beside = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    programs = ["cmake", "ninja"] + (["nvcc", "nvidia-smi"] if device == "cuda" else [])
    found += [f"{name} is not on PATH" for name in programs if shutil.which(name, path=beside) is None]
    if not os.environ.get("CXX") and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        found.append("no C++ compiler is on PATH (c++, g++ or clang++)")
    return found


def build_environment() -> dict[str, str]:
    """For a CUDA toolkit without the headers of cuSPARSE and its like: those that came with torch."""
    settings = {"SMARTCS_REQUIRE_EXT": "1"}
    nvcc = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc")
    if shutil.which("nvcc") is None and nvcc.is_file():
        settings["CUDACXX"] = str(nvcc)
    headers = sorted(Path(torch.__file__).parents[1].glob("nvidia/cu*/include"))
    if torch.version.cuda and headers:
        paths = [*filter(None, [os.environ.get("CPLUS_INCLUDE_PATH")]), str(headers[-1])]
        settings["CPLUS_INCLUDE_PATH"] = os.pathsep.join(paths)
    return settings


def build_stage(limit: float) -> Stage:
    """Not by pip: nothing is fetched, and the environment stays as it is."""
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return Stage("build", command, limit, environment=build_environment())


def test_stages(device: str, limit: float) -> list[Stage]:
    """A process per op, and for attention, which has the most to compile, per dtype; every test is in one of them."""
    selected = {op: op for op in OPS if op != "attention"}
    selected |= {f"attention-{dtype}": f"attention and torch.{dtype}" for dtype in DTYPES}
    selected["attention"] = f"attention and not ({' or '.join(f'torch.{dtype}' for dtype in DTYPES)})"
    selected["others"] = f"not ({' or '.join(OPS)})"
    settings = {"SMARTCS_TEST_DEVICE": device, "SMARTCS_REQUIRE_EXT": "1"}
    names = sorted(selected, key=lambda name: not name.startswith("attention"))  # the longest first
    return [pytest_stage(f"test-{name}", ["tests/gpu", "-k", selected[name]], limit, settings) for name in names]


def measuring_stage(name: str, script: str, device: str, limit: float, deadline: float) -> Stage:
    """A benchmark that begins nothing new a little before its limit."""
    limit = min(limit, deadline - time.monotonic())
    rows = WORK / f"{name}.rows.json"
    command = [sys.executable, f"benchmarks/{script}", "--device", device, "--output", str(rows)]
    return Stage(name, [*command, "--seconds", f"{max(0.75 * limit, 1):.0f}"], limit, result=rows)


class Check:
    """A run: its stages one after the other, and the report of those that are done."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, "cpu" if options.rehearse else "cuda"
        self.begin = time.monotonic()
        self.deadline = self.begin + options.seconds * (4 if options.rehearse else 1)
        self.outcomes: list[Outcome] = []
        self.about = environment(self.device, options.commit)
        self.missing = missing_tools(self.device)
        self.kernels: dict[str, Any] = {"kernels": [], "build": None}

    def limit(self, stage: str) -> float:
        return LIMITS[stage][self.options.rehearse]

    def execute(self) -> dict[str, Any]:
        for line in self.missing:
            print(f"missing: {line}", flush=True)
        self.add(run(build_stage(self.limit("build")), self.deadline, WORK))
        self.find_kernels()
        jobs = 1 if self.options.rehearse else max(1, min(8, (os.cpu_count() or 1) // 2))
        self.add(*run_all(test_stages(self.device, self.limit("tests")), self.deadline, WORK, jobs))
        self.measure("training", "gpu_training.py")
        self.measure("encoder", "gpu_encoder.py")
        self.measure("ops", "gpu_ops.py")
        return self.report()

    def measure(self, name: str, script: str) -> None:
        stage = measuring_stage(name, script, self.device, self.limit(name), self.deadline)
        self.add(run(stage, self.deadline, WORK))

    def find_kernels(self) -> None:
        """Which backend every op uses: written by a process that can import what was built."""
        target = WORK / "kernels.json"
        command = [sys.executable, "benchmarks/gpu_report.py", "--device", self.device, "--output", str(target)]
        outcome = run(Stage("kernels", command, self.limit("kernels"), result=target), self.deadline, WORK)
        self.kernels = outcome.result or self.kernels
        self.add(outcome)

    def add(self, *outcomes: Outcome) -> None:
        """The report is written after every stage: what there is stays, whatever ends the run."""
        self.outcomes += outcomes
        write_json(self.path(), self.report())

    def path(self) -> Path:
        if self.options.output is not None:
            return self.options.output
        return WORK / "rehearsal.json" if self.options.rehearse else RESULTS / f"{slug(self.about['gpu'])}.json"

    def report(self) -> dict[str, Any]:
        tests = {what: sum(one.tests.get(what, 0) for one in self.outcomes) for what in COUNTS}
        failures = [failure for one in self.outcomes for failure in one.failures]
        budget: dict[str, float] = {}
        for kind, used in (pair for one in self.outcomes for pair in one.budget.items()):
            budget[kind] = max(used, budget.get(kind, 0.0))
        rehearsal = {"note": REHEARSAL_NOTE} if self.options.rehearse else {}
        return {
            "schema": SCHEMA,
            "rehearsal": self.options.rehearse,
            **rehearsal,
            "passed": not failures and not any(one.status in FAILED for one in self.outcomes),
            "seconds": round(time.monotonic() - self.begin, 1),
            "environment": self.about,
            "missing": [scrubbed(line) for line in self.missing],
            **self.kernels,
            "stages": [one.as_stage() for one in self.outcomes],
            "tests": tests,
            "failed_tests": len(failures),
            "failures": failures[:PROOFS_SHOWN],
            "error_budget": dict(sorted(budget.items())),
            "benchmarks": [row for one in self.outcomes if isinstance(one.result, list) for row in one.result],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, though there be a GPU")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="limit of everything; a rehearsal's is 4 times")
    parser.add_argument("--commit", help="what the report names as the source, where git cannot tell")
    parser.add_argument("--output", type=Path, help="file of the report")
    options = parser.parse_args()
    if not options.rehearse and not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = "torch sees no GPU" if built else f"torch {torch.__version__} is a CPU build"
        print(f"\n*** NO GPU ({why}): THIS IS A REHEARSAL ON THE CPU, IT PROVES AND MEASURES NOTHING ON A GPU ***\n")
        options.rehearse = True
    WORK.mkdir(parents=True, exist_ok=True)
    check = Check(options)
    report = check.execute()
    print("\n".join(summary(report)))
    target = check.path()
    copies = os.environ.get("OUT")
    if copies:
        shutil.copy2(target, Path(copies, target.name))
    print(f"written to {os.path.relpath(target)}")
    sys.exit(0 if report["passed"] else 1)


if __name__ == "__main__":
    main()
