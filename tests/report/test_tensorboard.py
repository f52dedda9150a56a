"""TensorBoard events hold what was logged; without the package the error says what to install."""

import sys

import pytest

from smartcs.report.tensorboard import FOLDER, TensorBoardLog, check_available
from smartcs.training.commandline import UsageError


def test_events(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    check_available()
    for first in (7.0, 1.5):  # the second run replaces the first
        with TensorBoardLog(tmp_path) as log:
            log.step(1, "sst", first, smart=0.25, alignment=-0.5, perturbation=1.0, bregman=0.0)
            log.step(2, "qqp", 0.75)
            log.step(4, "sst", 1.25, smart=None, alignment=float("nan"))
            log.evaluation(1, 4, {"sst_accuracy": 0.5, "score": 0.625}, {"sst": 1.125})
    assert len(list((tmp_path / FOLDER).iterdir())) == 1
    events = accumulator.EventAccumulator(str(tmp_path / FOLDER))
    events.Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found == {
        "train/loss/sst": [(1, 1.5), (4, 1.25)],
        "train/loss/qqp": [(2, 0.75)],
        "smart/regulariser/sst": [(1, 0.25)],
        "smart/alignment/sst": [(1, -0.5)],
        "smart/perturbation/sst": [(1, 1.0)],
        "bregman/divergence/sst": [(1, 0.0)],
        "dev/epoch": [(4, 1.0)],
        "dev/sst_accuracy": [(4, 0.5)],
        "dev/score": [(4, 0.625)],
        "dev/loss/sst": [(4, 1.125)],
    }


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    for use in (check_available, lambda: TensorBoardLog(tmp_path / "run")):
        with pytest.raises(UsageError, match=r"pip install 'smartcs\[tensorboard\]'"):
            use()
    assert not (tmp_path / "run").exists()
