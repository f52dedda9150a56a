"""Which device a run takes, and whether its steps are recorded there."""

import pytest
import torch
from rich.console import Console

import smartcs
from smartcs import BertConfig
from smartcs.ops import backend as selection
from smartcs.ops.precision import arithmetic
from smartcs.training import device as choice
from smartcs.training.commandline import UsageError
from smartcs.training.device import choose_device, choose_recorder, describe_device
from smartcs.training.run import train

GPU = torch.device("cuda", 0)


@pytest.fixture
def with_a_gpu(monkeypatch):
    """A GPU that nothing is run on, with a kernel for every op."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Some GPU")
    monkeypatch.setattr(selection, "_on_gpu", dict.fromkeys(selection.CPU_OPS, ""))
    monkeypatch.setattr(choice, "CudaRecorder", lambda device, required: (str(device), required))


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="device is cuda, but torch .* cannot use a GPU"):
        choose_device("cuda")
    assert describe_device(torch.device("cpu"), "whatever") == "CPU"


def test_with_a_gpu(with_a_gpu):
    assert choose_device("auto") == choose_device("cuda") == GPU and choose_device("cpu").type == "cpu"
    with smartcs.backend("fused"):
        for wanted in ("auto", "on"):
            assert choose_recorder(wanted, GPU, BertConfig()) == (("cuda:0", wanted == "on"), "")
        assert choose_recorder("off", GPU, BertConfig()) == (None, "cuda_graphs is off")
    assert describe_device(GPU, "") == "Some GPU, steps replayed as CUDA graphs"
    assert describe_device(GPU, "because") == "Some GPU, steps launched kernel by kernel: because"


OBSTACLES = {
    "adamw runs on the reference, which waits for the device: not built": {"extension": (False, "not built")},
    "the device is the CPU": {"device": torch.device("cpu")},
    "the reference ops wait for the device": {"backend": "reference"},
    "perturb runs on the reference, which waits for the device: no nvcc": {"missing": {"perturb": "no nvcc"}},
    "heads of 256 in a hidden size of 768 run on the reference": {"shape": BertConfig(num_attention_heads=3)},
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_steps_that_cannot_be_recorded(with_a_gpu, monkeypatch, obstacle):
    case = OBSTACLES[obstacle]
    monkeypatch.setattr(selection, "_on_gpu", {**selection._on_gpu, **case.get("missing", {})})
    if "extension" in case:
        monkeypatch.setattr(selection, "_on_gpu", {})
        monkeypatch.setattr(selection, "extension_status", lambda: case["extension"])
    asked = case.get("device", GPU), case.get("shape", BertConfig())
    with smartcs.backend(case.get("backend", "fused")):
        assert choose_recorder("auto", *asked) == (None, obstacle)
        with pytest.raises(UsageError, match=f"cuda_graphs is on, but steps cannot be recorded: {obstacle}"):
            choose_recorder("on", *asked)


def test_bf16_on_a_gpu(with_a_gpu, monkeypatch):
    unable = ("fp32", "cuBLAS", "Some GPU does not multiply bf16")
    with smartcs.backend("fused"):
        for able, expected in ((True, ("bf16", "cuBLAS", "")), (False, unable)):
            monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, able=able: able)
            assert arithmetic("bf16", "cuda") == expected
            assert arithmetic("fp32", "cuda") == ("fp32", "cuBLAS", "")


@pytest.mark.parametrize("setting", [{"device": "cuda"}, {"cuda_graphs": "on"}])
def test_a_run_that_cannot_have_its_device_leaves_nothing(config, tmp_path, setting):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UsageError):
        train(config(**setting), Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_what_a_run_says_of_its_device(config, quiet_train):
    assert quiet_train(config(cycles=1, device="cpu")).metrics["device"] == "CPU"
