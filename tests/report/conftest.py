"""Folders of runs that never happened, with everything that a page can show."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from smartcs.report import write_run_report
from smartcs.training.analysis import analyse
from smartcs.training.config import TrainConfig

MAJORITY = {"sst_accuracy": 0.2511, "qqp_accuracy": 0.6288, "sts_pearson": 0.0, "score": 0.4599}
EPOCHS, CYCLES = 3, 12
TASKS = ("sst", "qqp", "sts")


def losses(generator, smart=("sst",)) -> list[str]:
    """The lines of losses.csv."""
    lines = ["step,epoch,task,loss,tokens,smart,alignment,perturbation,bregman"]
    for step in range(1, 3 * EPOCHS * CYCLES + 1):
        task = TASKS[(step - 1) % 3]
        terms = [f"{value:.9g}" for value in generator.uniform(0.01, 0.9, 4)] if task in smart else [""] * 4
        epoch = (step - 1) // (3 * CYCLES) + 1
        lines.append(",".join([str(step), str(epoch), task, f"{generator.uniform(0.3, 1.7):.9g}", "99", *terms]))
    return lines


def metrics(generator, **settings) -> dict:
    """metrics.json of a finished run."""
    epochs = []
    for epoch in range(1, EPOCHS + 1):
        figures = dict(zip(MAJORITY, generator.uniform(0.3, 0.9, 4).tolist(), strict=True))
        train, dev = (dict(zip(TASKS, generator.uniform(0.3, 1.7, 3).tolist(), strict=True)) for _ in range(2))
        epochs.append({"epoch": epoch, **figures, "train_losses": train, "dev_losses": dev, "seconds": 10.5 * epoch})
    best = epochs[1]
    figures = {name: best[name] for name in MAJORITY}
    truth = {
        "sst": generator.integers(0, 5, 90),
        "qqp": generator.integers(0, 2, 90),
        "sts": generator.uniform(0, 5, 90),
    }
    said = {
        "sst": generator.integers(0, 5, 90),
        "qqp": generator.integers(0, 2, 90),
        "sts": generator.uniform(0, 5, 90),
    }
    given = {"recipe": "smart-bregman", "data": "/data/course", "model": "minilm", "epochs": EPOCHS, "cycles": CYCLES}
    config = TrainConfig.from_dict({**given, **settings})
    return {
        **figures,
        "seconds": 31.5,
        "tokens_per_second": 1234.4,
        "finished": True,
        "interrupted": False,
        "diverged": False,
        "best_epoch": 2,
        "dev": {
            **figures,
            "losses": best["dev_losses"],
            "examples": dict.fromkeys(TASKS, 1090),
            "majority": MAJORITY,
        },
        "test": {name: value - 0.0137 for name, value in figures.items()},
        "epochs": epochs,
        "seconds_per_epoch": 10.5,
        "smart": {
            "sst": {
                "steps": 36,
                "fallbacks": 0,
                "adversarial_alignment": 0.01234,
                "perturbation_norm": 0.9876,
                "regulariser": 0.004321,
            }
        },
        "bregman": {"steps": 36, "anchor_divergence": 0.03456},
        "pretrain": {
            "mlm_loss": 3.4567,
            "mlm_accuracy": 0.3219,
            "seconds": 77.7,
            "steps": 1212,
            "epochs": [{"epoch": epoch, "dev_losses": best["dev_losses"]} for epoch in (1, 2)],
        },
        "analysis": analyse(said, truth),
        "steps": 3 * EPOCHS * CYCLES,
        "cycles_per_epoch": CYCLES,
        "tokens": 98765,
        "seconds_by_part": {"data": 0.5, "forward": 11.0, "backward": 17.0, "optimizer": 3.0, "data_background": 0.7},
        "seconds_total": 41.25,
        "data": {
            "source": "embedded sample",
            "examples": {"train": {"sst": 3001, "qqp": 6002, "sts": 2403}, "dev": dict.fromkeys(TASKS, 1090)},
            "skipped": 1,
            "skipped_rows": ["quora-train.csv, line 726: sentence2 is empty"],
            "truncated": {"train": {"sst": 7, "qqp": 0, "sts": 0}},
        },
        "config": asdict(config),
        "model": {"num_hidden_layers": 6, "hidden_size": 384},
        "environment": {
            "versions": {"python": "3.11.7", "torch": "2.13.0"},
            "machine": {"cpu": "A Processor", "threads": 2},
            "ops": [{"op": "linear", "backend": "fused", "reason": "oneDNN"}],
        },
    }


def write_run(folder, change=lambda metrics: None, lines=..., **settings) -> Path:
    """Writes a run's folder; `change` edits the metrics, `lines` replaces those of losses.csv (None: no such file)."""
    generator = np.random.default_rng(7)
    folder.mkdir()
    content = metrics(generator, **settings)
    change(content)
    (folder / "metrics.json").write_text(json.dumps(content))
    lines = losses(generator) if lines is ... else lines
    if lines is not None:
        (folder / "losses.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def make_run(tmp_path):
    """`write_run` in a folder of the test."""
    return partial(write_run, tmp_path / "run")


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory) -> Path:
    """The folder of a whole run with its report; not to be changed."""
    folder = write_run(tmp_path_factory.mktemp("whole") / "run")
    write_run_report(folder)
    return folder
