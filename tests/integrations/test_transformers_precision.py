"""The regularisers' passes are exact under autocast, TF32 and accelerate's mixed precision; misfits are refused.

No matrix product runs in bf16 here (some CPUs cannot): the model multiplies elementwise and reports what is on.
"""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from smartcs.integrations.inspection import embedded_words
from smartcs.integrations.transformers import SmartObjective


class Elementwise(nn.Module):
    """A classifier without a matrix product."""

    config = SimpleNamespace(num_labels=2, problem_type=None)

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.words = nn.Embedding(100, 6, dtype=dtype)
        self.weights = nn.Parameter(torch.randn(2, 6, dtype=dtype))
        self.passes = []

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, attention_mask, labels=None):
        self.passes.append((torch.is_autocast_enabled("cpu"), torch.backends.cuda.matmul.fp32_precision))
        mean = torch.tanh(self.words(input_ids) * attention_mask[..., None]).mean(dim=1)
        logits = (mean[:, None, :] * self.weights).sum(dim=-1)
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "the batch has input_ids, attention_mask, labels, expected a tensor labels"),
        ({"input_ids": None}, "expected a tensor input_ids"),
        ({"inputs_embeds": torch.zeros(8, 10, 32)}, "expected input_ids in place of inputs_embeds"),
        ({"labels": torch.zeros(8, 2)}, "the labels are torch.float32, expected integers for single_label_classificat"),
        ({"return_dict": False}, "the model returned a tuple, expected named results"),
    ],
)
def test_batches_that_do_not_fit(encoder, sentences, change, message):
    smart = SmartObjective(encoder())
    with pytest.raises((ValueError, TypeError), match=message):
        smart({**sentences(), **change})


def test_masks_and_embeddings_that_do_not_fit():
    with pytest.raises(ValueError, match=r"attention_mask has shape \(8, 1, 10, 10\), expected \(8, 10\) to match"):
        embedded_words(torch.zeros(8, 10, 6), torch.ones(8, 1, 10, 10))
    with pytest.raises(
        ValueError, match=r"input embeddings have shape \(70, 6\), expected \(sentences, positions, chan"
    ):
        embedded_words(torch.zeros(70, 6), torch.ones(8, 10))


def test_models_that_do_not_fit(encoder):
    import transformers

    with pytest.raises(TypeError, match="Linear has no input embeddings to perturb"):
        SmartObjective(nn.Linear(3, 3))
    small = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 100}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    bart = transformers.BartForSequenceClassification(transformers.BartConfig(**small, **heads))
    with pytest.raises(ValueError, match="BartForSequenceClassification is a decoder or a model for generation"):
        SmartObjective(bart)
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=100, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="GPT2LMHeadModel is a decoder or a model for generation"):
        SmartObjective(gpt2)
    with pytest.raises(ValueError, match="the model is wrapped for DataParallel"):
        SmartObjective(nn.DataParallel(encoder()))
    model = Elementwise()
    model.config = SimpleNamespace()
    with pytest.raises(ValueError, match="has neither problem_type nor num_labels"):
        SmartObjective(model)
    assert SmartObjective(model, problem_type="regression").problem_type == "regression"


def test_embeddings_that_do_not_fit(sentences):
    class Bypassing(Elementwise):
        def forward(self, input_ids, attention_mask, labels=None):
            mean = self.words.weight[input_ids].mean(dim=1)
            logits = (mean[:, None, :] * self.weights).sum(dim=-1)
            return SequenceClassifierOutput(loss=logits.sum(), logits=logits)

    class Twice(Elementwise):
        def forward(self, input_ids, attention_mask, labels=None):
            self.words(input_ids[:, :2] if self.uneven else input_ids)
            return super().forward(input_ids, attention_mask, labels)

    with pytest.raises(ValueError, match="forward did not call its input embeddings"):
        SmartObjective(Bypassing().train())(sentences())
    model = Twice().train()
    model.uneven = False
    assert SmartObjective(model)(sentences()).smart > 0
    model.uneven = True
    with pytest.raises(ValueError, match=r"results of shape \(8, 2, 6\) and \(8, 10, 6\) in one pass, expected one"):
        SmartObjective(model)(sentences())
    assert not model.words._forward_hooks


def test_importing_without_transformers_says_what_to_install():
    program = (
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'transformers' else real(name, *rest)\n"
        "import smartcs.integrations.transformers"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("needs transformers: pip install 'smartcs[transformers]'")
