"""A state in files comes back as it was, in its order, bit for bit."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from smartcs.model.files import CheckpointError
from smartcs.training.state_files import STATE, read_state, write_state


def test_round_trip(tmp_path):
    state = {
        "step": 7,
        "z": {"sts": 0.1, "qqp": 1 / 3, "sst": [1e-300, None, True, "text"], "none": {}},
        "a": {"deep": {"bert.x": torch.randn(3, 2), "count": 2}, "half": torch.ones(2).bfloat16(), "last": "kept"},
        "scalar": {"step": torch.tensor(5.0), "empty": torch.empty(0, 3), "whole": torch.tensor([1, -2])},
    }
    write_state(tmp_path, state)
    found = read_state(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {STATE, "a.safetensors", "scalar.safetensors"}
    assert list(found) == list(state) and list(found["z"]) == ["sts", "qqp", "sst", "none"]
    assert (found["step"], found["z"]) == (7, state["z"])
    assert found["a"]["deep"]["count"] == 2 and found["a"]["last"] == "kept"
    for one, other in (
        (found["a"]["deep"]["bert.x"], state["a"]["deep"]["bert.x"]),
        (found["a"]["half"], state["a"]["half"]),
        *((found["scalar"][name], value) for name, value in state["scalar"].items()),
    ):
        assert one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


def test_numbers_that_json_lacks(tmp_path):
    write_state(tmp_path, {"values": [math.nan, math.inf, {"x": -math.inf}]})
    assert "NaN" not in (tmp_path / STATE).read_text() and "Infinity" not in (tmp_path / STATE).read_text()
    first, second, third = read_state(tmp_path)["values"]
    assert math.isnan(first) and (second, third) == (math.inf, {"x": -math.inf})


def test_a_tensor_that_is_not_contiguous(tmp_path):
    matrix = torch.arange(6.0).view(2, 3)
    write_state(tmp_path, {"part": {"t": matrix.t(), "view": matrix[:, 1]}})
    assert torch.equal(read_state(tmp_path)["part"]["t"], matrix.t())
    assert torch.equal(read_state(tmp_path)["part"]["view"], matrix[:, 1])


def test_names_with_a_slash_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a/b"):
        write_state(tmp_path, {"part": {"a/b": torch.ones(1)}})


def test_damage_is_a_checkpoint_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"state.json: missing"):
        read_state(tmp_path)
    write_state(tmp_path, {"part": {"t": torch.ones(3), "number": 3}})
    save_file({**load_file(tmp_path / "part.safetensors"), "number/x": torch.ones(1)}, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match="number/x has no place"):
        read_state(tmp_path)
    (tmp_path / "part.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"part.safetensors"):
        read_state(tmp_path)
    (tmp_path / STATE).write_text(json.dumps([1]))
    with pytest.raises(CheckpointError, match=STATE):
        read_state(tmp_path)


@pytest.mark.parametrize("part", ["../outside", "/etc/outside", "a/b", "", "x" * 20 + "\n"])
def test_parts_are_names_in_the_folder(tmp_path, part):
    """state.json of elsewhere names no file of this machine."""
    folder = tmp_path / "checkpoint"
    write_state(folder, {"outside": {"w": torch.ones(2)}})
    (folder / "outside.safetensors").rename(tmp_path / "outside.safetensors")
    (folder / "state.json").write_text(json.dumps({part: {}}))
    with pytest.raises(CheckpointError, match="state.json: .* is no part of a run's state"):
        read_state(folder)
