"""The head over the vocabulary: the loss and gradients of the full projection at a fraction of its work."""

import pytest
import torch
import torch.nn.functional as F

import smartcs
from smartcs import BertConfig, BertModel, DropoutKey, PackedBatch, ops
from smartcs.data.masking import MaskedBatch
from smartcs.model.mlm import MaskedLanguageModel

SHAPE = BertConfig(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=32,
    initializer_range=0.3,
)


@pytest.fixture
def model() -> MaskedLanguageModel:
    torch.manual_seed(0)
    return MaskedLanguageModel(BertModel(SHAPE)).train()


@pytest.fixture
def masked() -> MaskedBatch:
    torch.manual_seed(1)
    lists = [torch.randint(5, 50, (length,)).tolist() for length in (7, 1, 12, 0, 5)]
    batch = PackedBatch.from_lists(lists)
    positions = torch.tensor([2, 6, 7, 11, 24])
    return MaskedBatch(batch, positions, torch.randint(5, 50, (5,)))


def test_equals_the_full_projection(model, masked):
    """Projecting all positions and ignoring the others is the textbook form; loss and every gradient agree."""
    model, key = model.double(), DropoutKey(1, 2)
    loss = model.loss(masked, key)
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)

    labels = torch.full((masked.batch.num_tokens,), -100)
    labels[masked.positions] = masked.targets
    logits = F.linear(model.bert(masked.batch, key).last_hidden_state, model.head.weight, model.head.bias)
    expected = F.nll_loss(F.log_softmax(logits, dim=-1), labels, ignore_index=-100)
    expected_grads = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)

    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for (name, _), got, wanted in zip(model.named_parameters(), grads, expected_grads, strict=True):
        assert (got is None) == (wanted is None) == name.startswith("bert.pooler"), name
        if got is not None:
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12, msg=name)


def test_only_hidden_tokens_are_projected(model, masked, monkeypatch):
    projected = []
    linear = ops.linear

    def count(x, weight, *rest, **options):
        if weight is model.head.weight:
            projected.append(x.shape[0])
        return linear(x, weight, *rest, **options)

    monkeypatch.setattr(ops, "linear", count)
    logits = model(masked.batch, masked.positions)
    assert logits.shape == (5, 50) and projected == [5]


def test_gradient_goes_through_their_rows_alone(model, masked):
    hidden = []

    def keep(module, arguments, output):
        output.last_hidden_state.retain_grad()
        hidden.append(output.last_hidden_state)

    model.bert.register_forward_hook(keep)
    model.loss(masked, DropoutKey(0, 0)).backward()
    touched = hidden[0].grad.abs().sum(dim=1) > 0
    assert touched.nonzero()[:, 0].tolist() == masked.positions.tolist()


def test_fused_and_reference_agree(model, masked):
    results = []
    for name in ("fused", "reference"):
        with smartcs.backend(name):
            loss = model.loss(masked, DropoutKey(3, 4))
            results.append((loss, torch.autograd.grad(loss, model.head.weight)[0]))
    torch.testing.assert_close(*(loss for loss, _ in results), rtol=1e-5, atol=0)
    torch.testing.assert_close(*(grad for _, grad in results), rtol=1e-3, atol=1e-6)
    assert model.loss(masked, DropoutKey(3, 5)) != results[0][0]


def test_dropout_in_training_mode_only(model, masked):
    model.eval()
    assert torch.equal(model.loss(masked, DropoutKey(0, 0)), model.loss(masked, DropoutKey(0, 1)))
    model.train()
    assert not torch.equal(model.loss(masked, DropoutKey(0, 0)), model.loss(masked, DropoutKey(0, 1)))


@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_nothing_hidden(model, masked, backend):
    empty = torch.zeros(0, dtype=torch.int64)
    with smartcs.backend(backend):
        loss = model.loss(MaskedBatch(masked.batch, empty, empty))
        loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def test_heads(model):
    words = model.bert.embeddings.word.weight
    assert model.head.weight.shape == words.shape and not model.head.bias.any()
    assert model.head.weight.abs().max() <= SHAPE.hidden_size**-0.5, "as nn.Linear draws them"
    copied = MaskedLanguageModel(model.bert, head="embeddings").head
    assert torch.equal(copied.weight, words) and not copied.bias.any()
    with torch.no_grad():
        copied.weight.add_(1)
    assert not torch.equal(copied.weight, words), "a copy"
    with pytest.raises(ValueError, match="head is 'tied', expected random or embeddings"):
        MaskedLanguageModel(model.bert, head="tied")
