"""Everything in a checkpoint's state matters: without any one part of it a resumed run is another."""

import copy
import shutil
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from run_comparison import differences

from smartcs.model.files import CheckpointError
from smartcs.training.pretraining import Pretrainer
from smartcs.training.resume import Resumption
from smartcs.training.run import train

# What a clock says, and what does not go on but is compared.
_NOT_STATE = {"seconds", "background_seconds", "seconds_total", "data", "conditions", "format"}


def parts(state: dict[str, Any], other: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of what differs between two states, to the depth where names of tensors or epochs begin."""
    found = []
    for key in state:
        if key in _NOT_STATE or (key in other and equal(state[key], other[key])):
            continue
        inner = (
            isinstance(state[key], dict) and isinstance(other.get(key), dict) and state[key].keys() == other[key].keys()
        )
        if inner and len(path) < 3 and not any("." in name for name in state[key]):
            found += parts(state[key], other[key], (*path, key))
        else:
            found.append((*path, key))
    return found


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if hasattr(one, "numpy") and hasattr(other, "numpy"):
        return one.numpy().tobytes() == other.numpy().tobytes()
    return type(one) is type(other) and one == other


def with_part_of(state: dict[str, Any], other: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """The state with one part as it is in another."""
    changed = copy.deepcopy(state)
    place, source = changed, other
    for key in path[:-1]:
        place, source = place[key], source[key]
    place[path[-1]] = copy.deepcopy(source[path[-1]])
    return changed


@pytest.mark.parametrize("stage", ["fine-tuning", "pretraining"])
def test_no_part_can_be_left_out(short, quiet_train, stop_at, best_is, stage):
    """Each takes the value that it had at an earlier step: the run ends otherwise, or says that it cannot go on."""
    best_is("first")
    pretraining = stage == "pretraining"
    settings = {"recipe": "pretrain" if pretraining else "smart-bregman", "cycles": 1 if pretraining else 2}
    settings |= {"pretrain.cycles": 2} if pretraining else {}
    whole = quiet_train(short("whole", **settings)).folder
    states = []
    for step in (2, 8):
        stop_at(step, *([Pretrainer] if pretraining else []))
        folder = quiet_train(short(f"stopped-{step}", **settings)).folder
        states.append(Resumption.find(folder))
    early, late = states
    if not pretraining:
        early.state["objective"]["smart"]["sst"] = dict.fromkeys(early.state["objective"]["smart"]["sst"], 0.0)
    changing = parts(late.state, early.state)
    expected = {
        ("loop", "step"),
        ("loop", "tokens"),
        ("optimizer", "step"),
        ("optimizer", "exp_avg"),
        ("optimizer", "exp_avg_sq"),
    }
    assert expected <= set(changing) and len(changing) > 12, changing
    survived = []
    for path in [(), *changing]:
        again = short("again", **settings, overwrite=True)
        shutil.rmtree(again.output, ignore_errors=True)
        shutil.copytree(late.folder, again.output)
        found = Resumption.find(again.output)
        if path:
            found = replace(found, state=with_part_of(found.state, early.state, path))
        try:
            train(found.config, Console(quiet=True), found)
        except CheckpointError:
            continue
        if not differences(whole, found.folder):
            survived.append(path)
    # How many epochs are over counts only between the last one's steps and its evaluation.
    assert survived == [(), ("loop", "sampler", "epoch")][: 2 if pretraining else 1]
