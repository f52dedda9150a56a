"""The regularisers' passes are exact under autocast, TF32 and accelerate's mixed precision.

No matrix product runs in bf16 here (some CPUs cannot): the model multiplies elementwise and reports what is on.
"""

import subprocess
import sys

import pytest
import torch
from integrations.elementwise import Elementwise

from smartcs.integrations.transformers import SmartObjective


def passes(smart):
    """What was on in each pass of the model, and in each of the anchor."""
    return [on for on, _ in smart.model.passes], [on for on, _ in smart._anchor.anchor.passes]


def test_autocast_is_off_in_the_regularisers_passes(sentences):
    smart = SmartObjective(Elementwise().train(), bregman_weight=1.0)
    exact = smart(sentences())
    assert passes(smart) == ([False] * 3, [False])  # clean, inner and perturbed
    smart.model.passes.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = smart(sentences())
        assert torch.is_autocast_enabled("cpu")
    assert passes(smart) == ([True] + [False] * 3, [False] * 2)  # the clean one again, for the others to compare with
    assert output.smart > 0 and output.smart.dtype == torch.float32
    torch.testing.assert_close(output.bregman, exact.bregman)


def test_accelerates_mixed_precision_is_off_in_the_regularisers_passes(sentences):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        model = Accelerator(mixed_precision="bf16", cpu=True).prepare(Elementwise().train())
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    smart = SmartObjective(model, bregman_weight=1.0)
    output = smart(sentences())
    assert passes(smart) == ([True] + [False] * 3, [False])
    output.loss.backward()
    model(**sentences())
    assert model.passes[-1][0]  # the wrapper is back


def test_autocast_that_cannot_be_switched_off_is_refused(sentences):
    class Insisting(Elementwise):
        def forward(self, *args, **kwargs):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(*args, **kwargs)

    with pytest.raises(RuntimeError, match="autocast is on in the model's forward, where a perturbation would be"):
        SmartObjective(Insisting().train())(sentences())


def test_tf32_is_off_in_the_regularisers_passes_alone(sentences):
    flag = torch.backends.cuda.matmul
    before = flag.fp32_precision
    smart = SmartObjective(Elementwise().train())
    try:
        flag.fp32_precision = "tf32"
        smart(sentences())
        assert flag.fp32_precision == "tf32"
    finally:
        flag.fp32_precision = before
    assert [precision for _, precision in smart.model.passes] == ["tf32", "ieee", "ieee"]


def test_weights_in_bf16_are_refused(sentences):
    model = Elementwise(torch.bfloat16).train()
    with pytest.raises(ValueError, match="noise_std is 1e-05, expected at least 0.0078125"):
        SmartObjective(model)(sentences())


def test_importing_without_transformers_says_what_to_install():
    program = (
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'transformers' else real(name, *rest)\n"
        "import smartcs.integrations.transformers"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("needs transformers: pip install 'smartcs[transformers]'")
