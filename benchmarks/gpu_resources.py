"""Registers, spills, shared memory and occupancy of every GPU kernel, by its compilers; no GPU is needed.

    python benchmarks/gpu_resources.py           compiles what is not recorded yet, or of other code or compilers; goes
                                                 on where it was interrupted
    python benchmarks/gpu_resources.py --all     compiles everything
    python benchmarks/gpu_resources.py --check   likewise, and fails where it is not what is recorded; writes nothing

Triton kernels in every configuration that their launchers can choose (gpu_launches.py), C++ kernels in every instance
(tests/cuda/instances.cu), each for sm_80, sm_90 and sm_100. The rows are results/gpu-resources.json, of which
`python benchmarks/tables.py` makes the table of docs/gpu-resources.md.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gpu_nvcc
import gpu_triton
from gpu_occupancy import CHIPS, occupancy
from gpu_resources_table import CPP, FIGURES, FILE, TRITON, figures_of, read_resources
from results_io import RESULTS

Row = dict[str, Any]
DTYPES = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def name_of(row: Row) -> str:
    """What tells rows apart."""
    instance = " ".join(f"{name}={value}" for name, value in row["instance"].items())
    return f"{row['kernel']}<{row['dtype']}>({row['arguments']}) {instance}".rstrip()


def named(rows: Iterable[Row]) -> dict[str, Row]:
    return {name_of(row): row for row in rows}


def differences(recorded: dict[str, Row], found: dict[str, Row]) -> list[str]:
    """Where rows that were found, on the chips that they have, are not the recorded ones; a line each."""
    lines = []
    for name, row in found.items():
        if name not in recorded:
            lines.append(f"{name} is not recorded")
            continue
        for chip in CHIPS.keys() & row.keys():
            before, now = figures_of(recorded[name], chip), figures_of(row, chip)
            wrong = [f"{one} {before[one]}, now {now[one]}" for one in FIGURES if before[one] != now[one]]
            lines += [f"{name} on {chip}: {'; '.join(wrong)}"] if wrong else []
    return lines


def stale(recorded: dict[str, Row], names: Set[str]) -> list[str]:
    """Recorded rows that are none of those that there should be, and the other way round; a line each."""
    gone, new = sorted(recorded.keys() - names), sorted(names - recorded.keys())
    return [f"{name} is recorded but no longer there" for name in gone] + [f"{name} is not recorded" for name in new]


def versions() -> dict[str, str]:
    """Of the compilers that are here."""
    nvcc = gpu_nvcc.version()
    return gpu_triton.versions([chip.cc for chip in CHIPS.values()]) | ({} if nvcc is None else {"nvcc": nvcc})


def same_compiler(recorded: dict[str, str], current: dict[str, str], language: str, chip: str) -> bool:
    """Whether figures must be equal."""
    names = ["nvcc"] if language == CPP else ["Triton", gpu_triton.ptxas_of(CHIPS[chip].cc)]
    return all(name in recorded and recorded[name] == current.get(name) for name in names)


def codes(rows: Iterable[Row]) -> dict[str, str]:
    """Digests of the code of every file with kernels among the rows, which are Triton's."""
    return {file: gpu_triton.code_of(file) for file in sorted({_file(row) for row in rows})}


def triton_builds(bert_base_only: bool = False) -> list[tuple[Row, gpu_triton.Build]]:
    """All that there should be, as rows without figures."""
    from gpu_launches import bert_base_builds, every_build

    usual = bert_base_builds()
    return [(_row(build, build in usual), build) for build in (usual if bert_base_only else every_build())]


def _row(build: gpu_triton.Build, bert_base: bool) -> Row:
    # Of what the first pointer points to: every kernel's result.
    dtype = next(kind for kind in build.arguments.values() if kind.startswith("*"))
    row = {"language": TRITON, "kernel": build.kernel, "dtype": DTYPES[dtype[1:]], "bert_base": bert_base}
    return row | {"arguments": " ".join(build.arguments.values()), "instance": build.constants | build.options}


def compile_triton(
    wanted: Sequence[tuple[Row, gpu_triton.Build, str]], jobs: int, after: Callable[[int], None] | None = None
) -> None:
    """Adds the figures of every row on its chip.

    Args:
        after: called with how many have them, now and then.
    """
    done = 0
    for batch in gpu_triton.resources_of([(build, CHIPS[chip].cc) for _, build, chip in wanted], jobs):
        for (row, _, chip), found in zip(wanted[done : done + len(batch)], batch, strict=True):
            row[chip] = figures(chip, **found)
        done += len(batch)
        if after is not None:
            after(done)


def compile_cpp(chips: Sequence[str], jobs: int = 1) -> list[Row]:
    """Every C++ kernel, with its figures on these chips."""
    rows: dict[str, Row] = {}
    with ThreadPoolExecutor(jobs) as pool:
        for chip, instances in zip(chips, pool.map(gpu_nvcc.compiled, chips), strict=True):
            for one in instances:
                row: Row = {"language": CPP, "kernel": one.kernel, "dtype": one.dtype or "any", "bert_base": True}
                row |= {"arguments": "", "instance": {"template": list(one.numbers)} if one.numbers else {}}
                rows.setdefault(name_of(row), row)[chip] = figures(chip, **one.figures)
    return list(rows.values())


def figures(chip: str, **found: int) -> list[Any]:
    """What FIGURES names."""
    found = {"static": 0, "dynamic": 0, "tensor": 0} | found
    shared = found["static"] + found["dynamic"]
    fits = occupancy(CHIPS[chip], found["threads"], found["registers"], shared, found["tensor"])
    return [*(found[name] for name in FIGURES[:-2]), round(fits.share, 4), fits.limit]


def update(recorded: Row, everything: bool, jobs: int, save: Callable[[Row], None] | None = None) -> Row:
    """What there is to record, compiled where it is not what is recorded.

    Args:
        save: called now and then with the part that is compiled.
    """
    builds, current, before = triton_builds(), versions(), named(recorded["rows"])
    code = codes(row for row, _ in builds)
    wanted = []
    for row, build in builds:
        old = before.get(name_of(row), {}) if recorded["code"].get(_file(row)) == code[_file(row)] else {}
        for chip in CHIPS:
            row[chip] = []
            if not everything and chip in old and same_compiler(recorded["versions"], current, TRITON, chip):
                row[chip] = old[chip]
            else:
                wanted.append((row, build, chip))
    cpp = compile_cpp(tuple(CHIPS), jobs)
    print(f"C++: {len(cpp)} kernels compiled for {len(CHIPS)} chips", flush=True)

    def record() -> Row:
        done = [row for row, _ in builds if all(row[chip] for chip in CHIPS)]
        return {"versions": current, "code": code, "figures": list(FIGURES), "rows": done + cpp}

    def after(count: int) -> None:
        print(f"Triton: {count} of {len(wanted)} compiled", flush=True)
        if save is not None:
            save(record())

    compile_triton(wanted, jobs, after)
    return record()


def write(found: Row) -> None:
    """A line per row."""
    head = json.dumps({name: value for name, value in found.items() if name != "rows"}, indent=1).removesuffix("\n}")
    rows = ",\n".join(map(json.dumps, found["rows"]))
    partial = RESULTS / f".{FILE}.{os.getpid()}"
    partial.write_text(f'{head},\n "rows": [\n{rows}\n]}}\n')
    os.replace(partial, RESULTS / FILE)


def _file(row: Row) -> str:
    return row["kernel"].split(".")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="compile what is recorded too")
    which.add_argument("--check", action="store_true", help="compile everything and compare; write nothing")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="compilers at a time")
    options = parser.parse_args()
    if gpu_nvcc.version() is None:
        sys.exit("gpu_resources: nvcc is not on PATH")
    # Before gpu_launches imports Triton.
    os.environ["TRITON_INTERPRET"] = "1"
    recorded = read_resources()
    if not options.check:
        write(update(recorded, options.all, options.jobs, write))
        return
    found = update(recorded, True, options.jobs)
    before, now = named(recorded["rows"]), named(found["rows"])
    lines = stale(before, now.keys()) + differences(before, {name: now[name] for name in before.keys() & now.keys()})
    if lines and recorded["versions"] != found["versions"]:
        lines.append(f"compilers differ: recorded {recorded['versions']}, here {found['versions']}")
    sys.exit("\n".join(lines) if lines else None)


if __name__ == "__main__":
    main()
