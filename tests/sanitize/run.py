"""`make sanitize`: the C++ ops under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer.

Each builds the extension into build/sanitize/NAME, a package of its own (the installed one stays as it is), and runs
the tests of the ops with it. Then the same with a mistake put into a copy of one source, which the sanitizer must find:
a write beyond a buffer, a signed overflow, two threads that write one number.

    python tests/sanitize/run.py                    everything, up to an hour of two cores
    python tests/sanitize/run.py --only thread      one of address, thread, emulation

address: AddressSanitizer and UndefinedBehaviorSanitizer over tests/ops, but for torch.compile's.
thread: ThreadSanitizer over the tests with several threads (`-k thread`); elsewhere the tests run one.
emulation: tests/cuda, the GPU kernels' device code on the host, under address and undefined; but for
  test_emulation.py and test_rejects, whose kernels are wrong on purpose.

Leaks are not looked for: Python and PyTorch keep what they hold until the process ends. Valgrind is left out: what it
would see beyond AddressSanitizer is reading memory that was never written, and it knows neither AVX-512 nor AMX.
"""

import argparse
import filecmp
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "sanitizers.json"
FLAGS = {"address": "address,undefined", "thread": "thread"}
FOUND = re.compile(r"ERROR: AddressSanitizer[^\n]*|runtime error: [^\n]*|WARNING: ThreadSanitizer: [^\n]*")
SELECTED = {
    "address": ["tests/ops", "--ignore=tests/ops/test_compile.py"],
    "thread": ["tests/ops", "--ignore=tests/ops/test_compile.py", "-k", "thread"],
    "emulation": ["tests/cuda", "--ignore=tests/cuda/test_compiles.py", "--ignore=tests/cuda/test_emulation.py"]
    + ["-k", "not rejects"],
}


@dataclass(frozen=True)
class Mutant:
    """A mistake in one source file, code that meets it, and what its sanitizer must say."""

    sanitizer: str
    file: str
    old: str
    new: str
    code: str
    says: str


MUTANTS = (
    Mutant(
        "address",
        "symmetric_kl.cpp",
        "at::Tensor loss = empty({a.size(0)}, compute_type(a));",
        "at::Tensor loss = empty({a.size(0) - 1}, compute_type(a));",
        "ops.symmetric_kl_fwd(torch.ones(64, 3), torch.ones(64, 3), False)",
        "AddressSanitizer: heap-buffer-overflow",
    ),
    Mutant(
        "address",
        "perturb.cpp",
        "static_cast<uint64_t>(seed),",
        "static_cast<uint64_t>(seed + 1),",
        "ops.perturb_noise(torch.ones(2, 3), 1.0, 2**63 - 1, 0)",
        "runtime error: signed integer overflow",
    ),
    Mutant(
        "thread",
        "embedding.cpp",
        "table.data_ptr(), begin * 64, std::min(end * 64, columns));",
        "table.data_ptr(), 0, columns);",
        "ops.embedding_rows(torch.ones(300, 1024), torch.zeros(300, dtype=torch.int64), 1)",
        "ThreadSanitizer: data race",
    ),
)


def library(name: str) -> str:
    """The compiler's own file of that name."""
    command = [*shlex.split(os.environ.get("CXX", "g++")), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def environment(sanitizer: str, package: Path | None) -> dict[str, str]:
    """Where the sanitizer's runtime comes first, and the package with its build before the installed one."""
    found = dict(os.environ)
    preloaded = [library("libasan.so"), library("libubsan.so"), library("libstdc++.so.6")]
    if sanitizer == "thread":
        preloaded = [library("libtsan.so"), str(openmp())]
    found["LD_PRELOAD"] = ":".join(preloaded)
    # halt_on_error: the first finding ends the process, and with it the test run.
    # allocator_may_return_null: tests ask for sizes that no machine has, and for the error that it is.
    # detect_odr_violation: one library is compiled several times, with mistakes, and loaded beside itself.
    found["ASAN_OPTIONS"] = "detect_leaks=0:detect_odr_violation=0:allocator_may_return_null=1:exitcode=99"
    found["UBSAN_OPTIONS"] = "print_stacktrace=1:halt_on_error=1:exitcode=99"
    found["TSAN_OPTIONS"] = "halt_on_error=1:exitcode=99"
    if package is not None:
        found |= {"PYTHONPATH": str(package), "SMARTCS_REQUIRE_EXT": "1"}
    else:
        found |= {"PYTHONPATH": str(ROOT), "SMARTCS_BACKEND": "reference", "SMARTCS_SANITIZE": FLAGS["address"]}
    return found


def openmp() -> Path:
    """openmp.cpp, compiled."""
    target = ROOT / "build" / "sanitize" / "openmp.so"
    command = [*shlex.split(os.environ.get("CXX", "g++")), "-O1", "-shared", "-fPIC", "-fsanitize=thread"]
    if not target.is_file() or target.stat().st_mtime < (HERE / "openmp.cpp").stat().st_mtime:
        subprocess.run([*command, str(HERE / "openmp.cpp"), "-o", str(target), "-ldl"], check=True)
    return target


def build(sanitizer: str) -> Path:
    """The package with the extension under a sanitizer; ninja compiles only what changed."""
    target = ROOT / "build" / "sanitize" / sanitizer
    command = [sys.executable, "setup.py", "build", "--build-lib", str(target)]
    answer = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"SMARTCS_SANITIZE": FLAGS[sanitizer]}, capture_output=True, text=True
    )
    if answer.returncode != 0:
        sys.exit(answer.stdout[-5000:] + answer.stderr[-2000:])
    return target


def python(sanitizer: str, package: Path | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    # setarch -R: ThreadSanitizer's shadow memory has fixed addresses, which random ones may take. -P: the checkout's
    # own package must not come before the one built here.
    command = [*(["setarch", "-R"] if sanitizer == "thread" else []), sys.executable, "-P", *arguments]
    answer = subprocess.run(
        command, cwd=ROOT, env=environment(sanitizer, package), capture_output=True, text=True, errors="replace"
    )
    return answer


def run_tests(name: str, package: Path | None) -> dict[str, Any]:
    """The tests selected for `name`; how many passed and what was found."""
    begun = time.monotonic()
    # -s: what a sanitizer writes before it ends the process must not be lost in pytest's capture.
    answer = python(name, package, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *SELECTED[name])
    text = answer.stdout + answer.stderr
    passed = re.findall(r"(\d+) passed", text)
    found = FOUND.findall(text)
    if answer.returncode != 0:
        first = FOUND.search(text)
        print(text[first.start() :][:6000] if first else text[-6000:], file=sys.stderr)
    return {
        "tests": int(passed[-1]) if passed else 0,
        "seconds": round(time.monotonic() - begun),
        "found": found[:20],
        "ended": "clean" if answer.returncode == 0 and not found else f"exit status {answer.returncode}",
    }


def mutated(mutant: Mutant, package: Path) -> Path:
    """A package like `package` whose _ops.so has the mistake: one source is compiled again, and all linked."""
    library = package / "smartcs" / "_ops.so"
    build_folder = next(path.parent for path in ROOT.glob("build/*/_ops.so") if filecmp.cmp(path, library))
    source = ROOT / "csrc" / "cpu" / mutant.file
    text = source.read_text()
    assert text.count(mutant.old) == 1, f"{mutant.file} has no longer one {mutant.old!r}"
    target = ROOT / "build" / "sanitize" / f"mutant-{mutant.file}"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(package, target)
    wrong, compiled = target / mutant.file, target / "mutant.o"
    wrong.write_text(text.replace(mutant.old, mutant.new))
    entries = json.loads((build_folder / "compile_commands.json").read_text())
    entry = next(entry for entry in entries if entry["file"] == str(source))
    compilation = shlex.split(entry["command"])
    right = compilation[compilation.index("-o") + 1]
    command = entry["command"].replace(str(source), str(wrong)).replace(right, str(compiled))
    subprocess.run(f"{command} -w -I{source.parent}", shell=True, check=True, cwd=build_folder)
    ninja = shutil.which("ninja", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    asked = subprocess.run(
        [str(ninja), "-t", "commands", "-s", "_ops.so"], cwd=build_folder, capture_output=True, text=True
    )
    link = asked.stdout.strip().splitlines()[-1]
    link = link.replace(right, str(compiled)).replace("-o _ops.so", f"-o {target}/smartcs/_ops.so")
    subprocess.run(link, shell=True, check=True, cwd=build_folder)
    return target


def run_mutant(mutant: Mutant, package: Path) -> dict[str, Any]:
    """Whether the sanitizer says what it must of the mistake."""
    code = (
        f"import torch, smartcs; torch.set_num_threads(2); ops = torch.ops.smartcs; [{mutant.code} for _ in range(20)]"
    )
    whole = python(mutant.sanitizer, package, "-c", code)
    answer = python(mutant.sanitizer, mutated(mutant, package), "-c", code)
    caught = whole.returncode == 0 and answer.returncode != 0 and mutant.says in answer.stdout + answer.stderr
    if not caught:
        print(whole.stderr[-2000:], answer.stderr[-2000:], file=sys.stderr)
    return {"mistake": f"{mutant.file}: {mutant.new}", "says": mutant.says, "caught": caught}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SELECTED, default=list(SELECTED))
    parser.add_argument("--no-record", action="store_true", help=f"leave {RESULTS.name} as it is")
    parser.add_argument("--no-tests", action="store_true", help="only the mistakes")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from results_io import source

    about = source()
    known: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    bad = False
    for name in options.only:
        package = None if name == "emulation" else build(name)
        row = known.get(name, {}) if options.no_tests else run_tests(name, package) | about
        if package is not None:
            row["mutants"] = [run_mutant(mutant, package) for mutant in MUTANTS if mutant.sanitizer == name]
        print(f"{name}: {row.get('tests')} tests, {row.get('ended')}, {row.get('found')}, {row.get('mutants', [])}")
        bad = bad or row.get("ended") != "clean" or not all(one["caught"] for one in row.get("mutants", []))
        known[name] = row
        if not options.no_record:
            RESULTS.write_text(json.dumps(known, indent=1) + "\n")
    sys.exit(bad)


if __name__ == "__main__":
    main()
