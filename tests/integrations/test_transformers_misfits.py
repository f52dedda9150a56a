"""Models, batches and settings that do not fit are refused, in words that say what would."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from integrations.elementwise import Elementwise
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from smartcs.integrations.embeddings import EmbeddingCalls
from smartcs.integrations.inspection import embedded_words
from smartcs.integrations.transformers import SmartArguments, SmartObjective


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


def test_models_that_do_not_fit(encoder):
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

    with pytest.raises(ValueError, match="forward did not call its input embeddings.* compiled by itself hides"):
        SmartObjective(Bypassing().train())(sentences())
    model = Twice().train()
    model.uneven = False
    assert SmartObjective(model)(sentences()).smart > 0
    model.uneven = True
    with pytest.raises(ValueError, match=r"results of shape \(8, 2, 6\) and \(8, 10, 6\) in one pass, expected one"):
        SmartObjective(model)(sentences())
    assert not model.words._forward_hooks


@pytest.mark.parametrize(
    ("embedded", "mask", "message"),
    [
        ((8, 10, 6), (8, 1, 10, 10), r"attention_mask has shape \(8, 1, 10, 10\), expected \(8, 10\) to match"),
        ((70, 6), (8, 10), r"input embeddings have shape \(70, 6\), expected \(sentences, positions, chan"),
        (
            (10, 8, 6),
            (8, 10),
            r"called with ids of shape \(10, 8\), expected \(8, 10\) as in the batch's input_ids",
        ),
    ],
)
def test_masks_and_embeddings_that_do_not_fit(embedded, mask, message):
    calls = EmbeddingCalls()
    calls.record((torch.zeros(embedded[:-1], dtype=torch.long),), torch.zeros(embedded))
    batch = {"input_ids": torch.zeros(8, 10, dtype=torch.long), "attention_mask": torch.ones(mask)}
    with pytest.raises(ValueError, match=message):
        embedded_words(calls, batch, compare=True)


def test_positions_before_sentences_are_refused(sentences):
    """Also as many sentences as positions, where only the ids tell."""
    shape = {"vocab_size": 100, "d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 64}
    xlnet = transformers.XLNetForSequenceClassification(transformers.XLNetConfig(**shape)).train()
    with pytest.raises(ValueError, match=r"ids of shape \(10, 8\), expected \(8, 10\).*positions first \(XLNet\)"):
        SmartObjective(xlnet)(sentences(8))
    with pytest.raises(ValueError, match=r"called with other ids than the batch's.*positions first \(XLNet\)"):
        SmartObjective(xlnet)(sentences(10))


def test_embeddings_that_return_no_tensor_are_refused(sentences):
    shape = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ibert = transformers.IBertForSequenceClassification(transformers.IBertConfig(**shape, intermediate_size=64)).train()
    with pytest.raises(TypeError, match="the input embeddings returned a tuple, expected a tensor"):
        SmartObjective(ibert)(sentences())


@pytest.mark.parametrize("task", ["MultipleChoice", "TokenClassification"])
def test_choices_and_tokens_are_classes_whatever_the_config(encoder, task):
    for settings in ({"num_labels": 1}, {"num_labels": 1, "problem_type": "regression"}):
        smart = SmartObjective(encoder(task=task, **settings), bregman_weight=1.0)
        assert smart.problem_type == "single_label_classification"
        assert smart._regularizer.loss == smart._anchor.loss == "categorical"


def test_integer_labels_are_no_numbers_to_regress(encoder, sentences):
    smart = SmartObjective(encoder(num_labels=1))
    with pytest.raises(ValueError, match="the labels are torch.int64, expected floating-point numbers for regression"):
        smart(sentences())


def test_evaluation_without_labels(encoder, sentences):
    batch = sentences()
    del batch["labels"]
    with pytest.raises(ValueError, match="the batch has input_ids, attention_mask, expected a tensor labels"):
        SmartObjective(encoder().eval())(batch)


def test_dropout_is_shared_on_cpu_and_cuda_alone(encoder, sentences):
    model = encoder().to("meta")
    batch = {name: values.to("meta") for name, values in sentences().items()}
    with pytest.raises(ValueError, match="the model is on meta, expected cpu or cuda.*pass share_dropout=False"):
        SmartObjective(model)(batch)
    with SmartObjective(model, share_dropout=False).clean_pass() as clean:
        assert clean.exact


@pytest.mark.parametrize("name", ["smart_weight", "bregman_weight"])
def test_weights_that_are_none(encoder, sentences, name):
    with pytest.raises(TypeError, match=f"{name} is '2', a str, expected a number or a schedule"):
        SmartArguments(**{name: "2"})
    for value in (-1.0, float("nan")):
        smart = SmartObjective(encoder(), **{name: lambda step, value=value: value})
        with pytest.raises(ValueError, match=f"{name}'s schedule gives {value} at step 0, expected a number >= 0"):
            smart(sentences())


def test_settings_in_a_dict(encoder):
    for settings in ({}, {"steps": 2}):
        with pytest.raises(TypeError, match="the settings of SMART are a dict, expected SmartArguments or None"):
            SmartObjective(encoder(), settings)
