"""One training cycle, a batch and an optimizer step of each task, against the reference and Hugging Face's BERT.

    python benchmarks/cycle.py --shape minilm --threads 2 --rounds 15
    python benchmarks/cycle.py --shape base --threads 2 --rounds 5
    python benchmarks/cycle.py --shape base --threads 2 --memory

The paper's cycle: SST 6 sentences with SMART and the Bregman term (`--recipe baseline`: without), QQP 40 pairs, STS 4
pairs, dropout 0.1. Candidates start from the same weights and take the same sentences, cycle by cycle in turn, in one
process, which keeps freed memory for all of them as `smartcs.train` does; first they must compute the same losses
(cycle_check.py). Ours run as `smartcs.train` runs them, data included; peers (peers.py) find their batches padded
before the clock starts. Kept are, per candidate, the median time with 20 % and 80 % quantiles, the ratio to ours within
a turn, the time per task and, of ours, per part, and the time over the floor (roof.py). Rows are written after every
round.
"""

import argparse
import signal
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

import torch
from cycle_memory import measure_all
from results_io import Row, bf16_products, environment, ratio_quantiles, row, write
from roof import Roof, floor, measure
from setting import BATCHES, SHAPES, add_arguments, encoder, mode, sentences
from timing import in_turns

import smartcs
from smartcs.data.encode import EncodedTask
from smartcs.training.config import TrainConfig
from smartcs.training.memory import keep_freed_memory
from smartcs.training.trainer import Trainer, make_sampler

OWN = {"smartcs fp32": ("fused", "fp32"), "smartcs bf16": ("fused", "bf16"), "reference": ("reference", "fp32")}
COMPILED = "transformers compile"
PEERS = ("transformers eager", "transformers sdpa", COMPILED)
WARM_UP = 2  # cycles that are not timed
PARTS = ("data", "forward", "backward", "optimizer", "data_background")


def configuration(recipe: str, precision: str) -> TrainConfig:
    """The paper's settings, for more cycles than are timed."""
    values = {"recipe": recipe, "precision": precision, "data": "none", "model": "none", "cycles": 10**6}
    return TrainConfig.from_dict(values)


class Own:
    """This project's trainer, step by step as a training run takes them."""

    def __init__(self, name: str, recipe: str, model: smartcs.MultitaskBert, data: Mapping[str, EncodedTask]) -> None:
        self.mode = OWN[name]
        self.task_times: dict[str, list[float]] = {task: [] for task in BATCHES}
        self.part_times: dict[str, list[float]] = {part: [] for part in PARTS}
        with mode(*self.mode):
            self.trainer = Trainer(configuration(recipe, self.mode[1]), model, data)
            self.steps = self.trainer.epoch()

    def prepare(self) -> None:
        """Nothing: its data are prepared within its time."""

    def __call__(self) -> None:
        before = self.trainer.seconds_by_part()
        with mode(*self.mode):
            for _ in BATCHES:
                step = next(self.steps)
                self.task_times[step.task].append(step.seconds)
        for part, now in self.trainer.seconds_by_part().items():
            self.part_times[part].append(now - before[part])


class Other:
    """A peer on the batches that the trainer above draws."""

    def __init__(self, name: str, recipe: str, model: smartcs.MultitaskBert, data: Mapping[str, EncodedTask]) -> None:
        from peers import PeerStep, padded
        from timing import seconds

        self._data, self._seconds, self._padded = data, seconds, padded
        config = configuration(recipe, "fp32")
        self.step = PeerStep(model, name, recipe, config.learning_rate)
        self.drawn = make_sampler(config, {task: len(encoded) for task, encoded in data.items()}).batches()
        self.task_times: dict[str, list[float]] = {task: [] for task in BATCHES}
        self.part_times: dict[str, list[float]] = {}

    def prepare(self) -> None:
        self.batches = []
        for _ in BATCHES:
            task, rows = next(self.drawn)
            batch, labels = self._data[task].batch(rows)
            self.batches.append((task, self._padded(batch), labels))

    def __call__(self) -> None:
        for task, batch, labels in self.batches:
            self.task_times[task].append(self._seconds(lambda args=(task, batch, labels): self.step(*args)))


def make(name: str, shape: str, recipe: str, data: Mapping[str, EncodedTask]) -> Own | Other:
    """The candidate, from the weights that all of them start from."""
    torch.manual_seed(0)
    model = smartcs.MultitaskBert(encoder(shape))
    return Own(name, recipe, model, data) if name in OWN else Other(name, recipe, model, data)


def warm_up(candidate: Own | Other) -> None:
    for _ in range(WARM_UP):
        candidate.prepare()
        candidate()


class TimedOut(Exception):
    """The time limit of a block was reached."""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raises TimedOut within the block after that long."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimedOut(f"warm-up took longer than {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def sizes(data: Mapping[str, EncodedTask], cycles: int, recipe: str) -> dict[str, list[list[int]]]:
    """Tokens of every sequence of the timed batches, per task and cycle."""
    drawn = make_sampler(
        configuration(recipe, "fp32"), {task: len(encoded) for task, encoded in data.items()}
    ).batches()
    result: dict[str, list[list[int]]] = {task: [] for task in BATCHES}
    for index in range((WARM_UP + cycles) * len(BATCHES)):
        task, rows = next(drawn)
        if index >= WARM_UP * len(BATCHES):
            result[task].append(data[task].lengths[rows].tolist())
    return result


def make_rows(
    arguments: argparse.Namespace,
    times: Mapping[str, list[float]],
    candidates: Mapping[str, Own | Other],
    lengths: Mapping[str, list[list[int]]],
    roof: Roof,
    differences: Mapping[str, Mapping[str, float]],
) -> list[Row]:
    """The rows of the rounds so far."""
    rounds = min(len(values) for values in times.values())
    rows = []
    for name, values in times.items():
        precision = OWN[name][1] if name in OWN else "fp32"
        floors = [
            sum(floor(roof, _config(arguments.shape), cycle, arguments.recipe, precision).values())
            for cycle in ({task: lengths[task][turn] for task in BATCHES} for turn in range(rounds))
        ]
        found = candidates[name]
        rows.append(
            row(
                arguments.recipe,
                name,
                arguments.shape,
                precision,
                arguments.threads,
                values=values[:rounds],
                ratios={
                    other: ratio_quantiles(values[:rounds], times[other][:rounds]) for other in times if other != name
                },
                over_floor=statistics.median(time / least for time, least in zip(values, floors, strict=False)),
                floor=statistics.median(floors),
                tasks={task: statistics.median(found.task_times[task][-rounds:]) for task in BATCHES},
                parts={part: statistics.median(seconds[-rounds:]) for part, seconds in found.part_times.items()},
                tokens={task: statistics.mean(map(sum, lengths[task][:rounds])) for task in BATCHES},
                padded={task: statistics.mean(len(b) * max(b) for b in lengths[task][:rounds]) for task in BATCHES},
                text="sample" if arguments.data == "sample" else "cs224n",
                roof={"float32": roof.float32, "bfloat16": roof.bfloat16, "copy": roof.copy},
                check=dict(differences.get(name, {})),
            )
        )
    return rows


def _config(shape: str) -> smartcs.BertConfig:
    with torch.device("meta"):
        return encoder(shape).config


def show(rows: list[Row], first: str) -> None:
    print(f"\n{'':22}{'ms':>8}{'20 - 80 %':>16}{'time over ' + first:>26}{'over floor':>12}   sst / qqp / sts, ms")
    for one in rows:
        low, middle, high = one["ratios"].get(first, [1.0, 1.0, 1.0])
        spread = f"{1e3 * one['p20']:.0f} - {1e3 * one['p80']:.0f}"
        tasks = " / ".join(f"{1e3 * seconds:.0f}" for seconds in one["tasks"].values())
        print(
            f"{one['candidate']:22}{1e3 * one['median']:8.0f}{spread:>16}"
            f"{f'{middle:.2f} ({low:.2f} - {high:.2f})':>26}{one['over_floor']:12.2f}   {tasks}"
        )
        if one["parts"]:
            print(" " * 22 + ", ".join(f"{part} {1e3 * seconds:.1f}" for part, seconds in one["parts"].items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=15)
    parser.add_argument("--shape", choices=SHAPES, default="minilm")
    parser.add_argument("--recipe", choices=("baseline", "smart-bregman"), default="smart-bregman")
    parser.add_argument("--candidates", nargs="*", choices=(*OWN, *PEERS), default=(*OWN, *PEERS))
    parser.add_argument("--compile-seconds", type=int, default=240, help="limit of torch.compile's warm-up")
    parser.add_argument("--memory", action="store_true", help="peak memory of each in a process of its own, no times")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    about, names = environment(), list(arguments.candidates)
    missing: list[Row] = []

    def leave_out(name: str, reason: str) -> None:
        print(f"{name}: not measured, {reason}", flush=True)
        names.remove(name)
        key = (arguments.recipe, name, arguments.shape, OWN.get(name, ("", "fp32"))[1], arguments.threads)
        missing.append(row(*key, status="not measured", reason=reason))

    if "smartcs bf16" in names and bf16_products().startswith("none"):
        leave_out("smartcs bf16", f"this CPU's bf16 products: {bf16_products()}")
    if arguments.memory:
        write("memory", measure_all(arguments, names), about, arguments.output)
        return

    from cycle_check import check

    keep_freed_memory()
    data = sentences(arguments.data)
    own = {name: OWN[name] for name in names if name in OWN}
    differences = check(arguments.shape, data, own, [name for name in names if name in PEERS and name != COMPILED])
    worst = {name: max(values, key=lambda what: values[what]) for name, values in differences.items()}
    print("same losses: " + "; ".join(f"{name} {differences[name][what]:.0e} ({what})" for name, what in worst.items()))
    roof = measure(SHAPES[arguments.shape][1])
    lengths = sizes(data, arguments.rounds, arguments.recipe)
    print(f"{arguments.recipe}, {arguments.shape}, {arguments.threads} threads, {roof.describe()}")
    print(
        "tokens (padded positions): "
        + ", ".join(
            f"{task} {statistics.mean(map(sum, batches)):.0f} ({statistics.mean(len(b) * max(b) for b in batches):.0f})"
            for task, batches in lengths.items()
        ),
        flush=True,
    )

    candidates: dict[str, Own | Other] = {}
    for name in list(names):
        try:
            with time_limit(arguments.compile_seconds if name == COMPILED else 10**6):
                candidate = make(name, arguments.shape, arguments.recipe, data)
                warm_up(candidate)
            candidates[name] = candidate
            print(f"{name}: ready", flush=True)
        except Exception as error:
            if name != COMPILED:
                raise
            leave_out(name, (str(error) or repr(error)).splitlines()[0])
    write("cycle", missing, about, arguments.output)

    def keep(turn: int, times: dict[str, list[float]]) -> None:
        made = make_rows(arguments, times, candidates, lengths, roof, differences)
        write("cycle", made, about, arguments.output)
        print(f"round {turn}: " + ", ".join(f"{name} {1e3 * t[-1]:.0f}" for name, t in times.items()), flush=True)

    times = in_turns(
        candidates, arguments.rounds, before=lambda name, turn: candidates[name].prepare(), after_round=keep
    )
    show(make_rows(arguments, times, candidates, lengths, roof, differences), next(iter(times)))


if __name__ == "__main__":
    main()
