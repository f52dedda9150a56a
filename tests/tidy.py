"""`make tidy`: clang-tidy over csrc/ops.cpp, csrc/module.cpp and csrc/cpu, with the checks of .clang-tidy.

Takes the compiler's commands from the newest build below build/. A kernel, compiled once per instruction set, is read
once, with AVX2. Clang has another OpenMP than g++'s, so the sources are read without; what threads do to each other is
for ThreadSanitizer.

    python tests/tidy.py                          all of them
    python tests/tidy.py csrc/cpu/attention.cpp   these
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PREFERRED = "kernels_avx2.dir"


def commands(folder: Path) -> dict[Path, dict[str, str]]:
    """Source -> its entry in the compilation database of a build."""
    found: dict[Path, dict[str, str]] = {}
    for entry in json.loads((folder / "compile_commands.json").read_text()):
        path = Path(entry["file"])
        if path.suffix == ".cpp" and (path not in found or PREFERRED in entry["command"]):
            found[path] = entry
    return found


def newest_build() -> Path:
    builds = [path for path in ROOT.glob("build/*/compile_commands.json") if "-fsanitize=" not in path.read_text()]
    builds.sort(key=lambda path: path.stat().st_mtime)
    if not builds:
        sys.exit("make tidy needs a build of the extension: run make install")
    return builds[-1].parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    tidy = shutil.which("clang-tidy", path=sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", ""))
    if tidy is None:
        sys.exit("clang-tidy is not there: run pip install clang-tidy")
    known = commands(newest_build())
    wanted = [path.resolve() for path in options.files] or sorted(known)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "compile_commands.json").write_text(json.dumps([known[path] for path in wanted]))

        def read(path: Path) -> str:
            command = [tidy, "--quiet", "-p", folder, "--extra-arg=-fno-openmp", "--extra-arg=-Wno-unknown-pragmas"]
            answer = subprocess.run([*command, str(path)], cwd=ROOT, capture_output=True, text=True)
            if answer.returncode == 0:
                return ""
            return answer.stdout or answer.stderr

        with ThreadPoolExecutor(options.jobs) as pool:
            problems = [text for text in pool.map(read, wanted) if text]
    print("".join(problems) or f"clang-tidy: nothing in {len(wanted)} files")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
