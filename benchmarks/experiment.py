"""Does SMART help? Every recipe on real text, settings chosen on held-out training texts, seeds, paired differences.

    python benchmarks/experiment.py --data DIR          runs what is not finished yet, then keeps what the pages need
    python benchmarks/experiment.py --data DIR --keep   only keeps what there is
    make experiment DATA=DIR                            the same, and rewrites the pages

DIR holds the course's files. Every stage is a `python -m smartcs.reproduce` command, printed before it runs, with a
folder in runs/experiment; Ctrl-C leaves what is finished, and the same command goes on. The dev files are evaluated by
the rows that report, once per run, at its end: learning rate, warm-up and pooling are chosen on a tenth of the training
texts. What is kept, without paths, are the tables and every run's metrics.json, in benchmarks/results/experiment.
"""

import argparse
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment_tables import STAGES
from results_io import environment

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "benchmarks" / "results" / "experiment"
REPEATED = ("baseline", "smart", "smart-bregman", "smart-all", "smart-adv", "smart-adv-bregman")
RATES = ("3e-5-warmup-0", "5e-5-warmup-0", "5e-5-warmup-100", "1e-4-warmup-100")
# So that one pass over each of the three sets takes about as many cycles: 14,000 QQP pairs are a part of the paper's
# 283,000, which it reads in batches of 40, and most of a cycle's time would go into them.
QQP_BATCH = 11
HOLDOUT = 0.1


@dataclass(frozen=True)
class Stage:
    """One command: an experiment of `smartcs.reproduce`, some of its rows with some seeds.

    Attributes:
        name: of its folder.
        experiment, rows, seeds, cycles, settings: as the command takes them; rows None for all but the extra ones.
        pretrains: whether rows have additional pretraining, of one epoch as long as fine-tuning.
    """

    name: str
    experiment: str
    rows: tuple[str, ...] | None
    seeds: tuple[int, ...]
    cycles: int
    settings: tuple[str, ...]
    pretrains: bool = False

    def arguments(self, data: str, model: str, output: Path, jobs: int) -> list[str]:
        """The command line behind `python -m smartcs.reproduce`."""
        words = [self.experiment, "--data", data, "--model", model, "--output", str(output / self.name)]
        words += ["--epochs", "1", "--cycles", str(self.cycles), "--seeds", ",".join(map(str, self.seeds))]
        if self.rows is not None:
            words += ["--rows", ",".join(self.rows)]
        if self.pretrains:
            words += ["--pretrain-epochs", "1", "--pretrain-cycles", str(self.cycles)]
        return [*words, "--jobs", str(jobs), "--no-report", "--set", *self.settings]


def choosing(options: argparse.Namespace) -> list[Stage]:
    """The stages that evaluate held-out training texts: the sweep that settings are chosen by, then two checks of it.

    The checks are on all three tasks: some settings at the paper's batches, and the two likeliest at ours.
    """
    settings = (f"precision={options.precision}", f"holdout={HOLDOUT}")
    rows = tuple(f"all-mean-{rate}" for rate in RATES)
    first = options.seeds[:1]
    return [
        Stage("settings", "settings", None, options.seeds[:2], options.sweep_cycles, settings),
        Stage("paper-batches", "settings", rows, first, options.check_cycles, settings),
        Stage("candidates", "settings", rows[:2], first, options.cycles, (*settings, f"batch_qqp={QQP_BATCH}")),
    ]


def reporting(options: argparse.Namespace, chosen: dict[str, Any]) -> list[Stage]:
    """The stages that report on the dev files, one after the other in the order of what they tell."""
    frozen = tuple(f"{name}={value}" for name, value in chosen.items())
    ours = (*frozen, f"batch_qqp={QQP_BATCH}")
    bare, usual = (*frozen, f"precision={options.precision}"), (*ours, f"precision={options.precision}")
    first, cycles = options.seeds[:1], options.cycles
    return [
        Stage("methods", "methods", None, first, cycles, usual, pretrains=True),
        *(Stage("methods", "methods", REPEATED, (s,), cycles, usual, pretrains=True) for s in options.seeds[1:]),
        Stage("float32", "methods", ("smart-adv",), first, cycles, (*ours, "precision=fp32")),
        Stage("batches", "figure7", None, first, cycles, bare),
        # lambda 2 is smart-all.
        Stage("lambda", "lambda", ("lambda-1", "lambda-5"), first, cycles, usual),
        Stage("parts", "parts", None, options.seeds, cycles, usual),
    ]


def choose(output: Path) -> dict[str, Any]:
    """Pooling, learning rate and warm-up of the sweep's best row, by what would choose a run's best epoch."""
    from smartcs.training.metrics import best_by

    rows = json.loads((output / "settings" / "results.json").read_text())["rows"]
    best = max((row for row in rows if row["n_seeds"]), key=lambda row: best_by(row["mean"]))["config"]
    return {name: best[name] for name in ("pooling", "learning_rate", "warmup")}


def run(stages: Sequence[Stage], options: argparse.Namespace) -> None:
    """Runs the stages; exits where one is interrupted or has a run without figures."""
    from smartcs.experiments.runner import reproduce
    from smartcs.reproduce import parse

    for stage in stages:
        words = stage.arguments(options.data, options.model, options.output, options.jobs)
        print(f"\n$ python -m smartcs.reproduce {shlex.join(words)}", flush=True)
        result = reproduce(*parse(words))
        if result.signal is not None:
            sys.exit(128 + result.signal)
        if any(outcome.state != "finished" for outcome in result.results.outcomes):
            sys.exit(f"{stage.name}: not all runs have figures, see {options.output / stage.name / 'results.md'}")


def keep(options: argparse.Namespace, kept: Path = KEPT) -> None:
    """Copies every stage's results.json and every finished run's metrics.json, without paths, into `kept`.

    A stage that was kept before is replaced when all is copied, and not before; one that has not run here stays.
    """
    found = [name for name in STAGES if (options.output / name / "results.json").is_file()]
    if not found:
        sys.exit(f"nothing is kept: {options.output} has no results of {', '.join(STAGES)}")
    kept.mkdir(parents=True, exist_ok=True)
    hidden = _hidden(options)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        copied = Path(folder)
        for name in found:
            stage = options.output / name
            results = json.loads((stage / "results.json").read_text())
            hidden |= {row["config"]["data"]: "DIR" for row in results["rows"]}  # as it was written then
            tables = _without_paths(results, hidden)
            _write(copied / name / "results.json", tables, indent=1)
            for row in tables["rows"]:
                for one in row["runs"]:
                    if one["state"] == "finished":
                        place = Path(row["name"]) / f"seed-{one['seed']}"
                        metrics = json.loads((stage / place / "metrics.json").read_text())
                        metrics.pop("environment")  # results.json has it once
                        _write(copied / name / f"{place}.json", _without_paths(metrics, hidden), indent=None)
            _write(copied / name / "about.json", _about(), indent=1)
        for name in found:
            shutil.rmtree(kept / name, ignore_errors=True)
            shutil.move(copied / name, kept / name)
    print(f"kept {', '.join(found)} in {kept}: {sum(1 for _ in kept.rglob('seed-*.json'))} runs in all")


def _about() -> dict[str, Any]:
    """Which source this was kept at."""
    return {name: value for name, value in environment().items() if name in ("commit", "dirty", "date", "cpu", "torch")}


def _hidden(options: argparse.Namespace) -> dict[str, str]:
    """Absolute paths, which results may name, and what stands for them."""
    found = {}
    for path, name in ((options.data, "DIR"), (options.model, "MODEL"), (options.output, "OUTPUT"), (ROOT, ".")):
        if name != "MODEL" or Path(path).exists():
            found |= {str(Path(path).absolute()): name, str(Path(path).resolve()): name}
    return found


def _without_paths(value: Any, hidden: dict[str, str]) -> Any:
    """The same without what names this machine's folders or quotes the data."""
    if isinstance(value, dict):
        dropped = ("skipped_rows", "folder", "truncated", "command")
        return {name: _without_paths(inner, hidden) for name, inner in value.items() if name not in dropped}
    if isinstance(value, list):
        return [_without_paths(inner, hidden) for inner in value]
    if isinstance(value, str):
        for path in sorted(hidden, key=len, reverse=True):
            value = value.replace(path, hidden[path])
    return value


def _write(path: Path, value: Any, indent: int | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def _seeds(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DIR", help="folder with the course's files")
    parser.add_argument("--model", default="minilm", help="encoder to start from (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/experiment"), help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: %(default)s)")
    parser.add_argument("--seeds", type=_seeds, default=(1, 2, 3), metavar="S,T,...", help="default: 1,2,3")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"), help="default: %(default)s")
    parser.add_argument("--cycles", type=int, default=300, help="of every run that reports (default: %(default)s)")
    parser.add_argument("--sweep-cycles", type=int, default=175, help="on SST and STS (default: %(default)s)")
    parser.add_argument("--check-cycles", type=int, default=250, help="at the paper's batches (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="run nothing, keep what there is")
    return parser


def main() -> None:
    options = _parser().parse_args()
    if not options.keep:
        run(choosing(options), options)
        chosen = choose(options.output)
        print(f"\nchosen: {', '.join(f'{name} {value}' for name, value in chosen.items())}")
        run(reporting(options, chosen), options)
    keep(options)


if __name__ == "__main__":
    main()
