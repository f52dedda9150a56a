"""How far several processes' steps are from those of one: the figures of docs/distributed.md's table, anew.

    PYTHONPATH=tests python benchmarks/distributed_equality.py

Runs the trainings of tests/training/test_distributed.py by one process, by two and by three, and with accumulated
slices, and keeps the largest difference of a loss, a gradient norm, a weight or an anchor of each in
benchmarks/results/distributed-equality.json. A minute on a quiet machine.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from results_io import RESULTS
from small_models import small_config
from training.ranked import run
from training.ranked_cases import TRAINED, base_settings, cases, close, distance
from training.torchrun import TESTS, torchrun

import smartcs
from smartcs.data.examples import DataFolder
from smartcs.data.formats import save_folder
from smartcs.data.sample import sample_folder, sample_tokenizer

PATH = RESULTS / "distributed-equality.json"
SIZES = {"train": 48, "dev": 24, "test": 16}


def settings(folder: Path) -> dict[str, object]:
    """Data and encoder as the tests have them."""
    sample = sample_folder()
    splits = {
        split: {
            task: replace(all_, ids=all_.ids[:count], texts=all_.texts[:count], labels=all_.labels[:count])
            for task, all_ in getattr(sample, split).items()
        }
        for split, count in SIZES.items()
    }
    save_folder(DataFolder("part of the sample", **splits), folder / "data")
    torch.manual_seed(0)
    smartcs.BertModel(small_config()).save_pretrained(folder / "encoder", sample_tokenizer())
    return base_settings(folder / "data", folder / "encoder")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        folder = Path(name)
        found = {key: case for key, case in cases(settings(folder)).items() if key in TRAINED}
        (folder / "cases.json").write_text(json.dumps({key: asdict(case) for key, case in found.items()}))
        alone = {key: run(replace(case, accumulate=1)) for key, case in found.items()}
        rows = [
            {
                "training": key,
                "tolerance": close(key),
                "slices": float(f"{distance(alone[key], run(replace(case, accumulate=3))):.1e}"),
            }
            for key, case in found.items()
        ]
        for size in (2, 3):
            torchrun(size, str(TESTS / "training" / "ranked.py"), str(folder))
            for one in rows:
                left = torch.load(folder / f"{one['training']}-0.pt", weights_only=False)
                one[f"processes {size}"] = float(f"{distance(alone[one['training']], left):.1e}")
    PATH.write_text("[\n" + ",\n".join(json.dumps(one) for one in rows) + "\n]\n")
    print(PATH.read_text())


if __name__ == "__main__":
    main()
