"""BertModel beside what test_bert_equality.py proves: dropout keys, pooling, gradients of both backends, messages."""

import pytest
import torch

import smartcs
from smartcs import BertConfig, BertModel, DropoutKey, PackedBatch
from smartcs.model.bert import _sum_by_index, _sum_by_product

SMALL = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
}


def small_model(**overrides) -> BertModel:
    torch.manual_seed(0)
    return BertModel(BertConfig(**{**SMALL, "initializer_range": 0.3, **overrides}))


def batch(*lengths: int) -> PackedBatch:
    generator = torch.Generator().manual_seed(1)
    return PackedBatch.from_lists([torch.randint(0, 50, (length,), generator=generator).tolist() for length in lengths])


RAGGED = (5, 1, 16, 9)


@pytest.mark.parametrize("pooling", ["pooler", "cls", "mean"])
def test_both_backends_give_the_same_loss_and_gradients_with_dropout(pooling):
    model = small_model(pooling=pooling).train().double()
    results = []
    for name in ("reference", "fused"):
        with smartcs.backend(name):
            model.zero_grad()
            out = model(batch(*RAGGED), DropoutKey(seed=2**40 + 1, step=7))
            loss = out.pooled.square().sum() + out.last_hidden_state.sin().sum()
            loss.backward()
        results.append([loss, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == 1 + 5 + 2 * 12 + (2 if pooling == "pooler" else 0)
    for reference, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, reference, rtol=1e-10, atol=1e-10)


def test_equal_keys_give_equal_masks_and_other_steps_and_seeds_give_others():
    model = small_model().train()

    def hidden(key):
        return model(batch(*RAGGED), key).last_hidden_state

    first = hidden(DropoutKey(1, 1))
    assert torch.equal(first, hidden(DropoutKey(1, 1)))
    assert not torch.equal(first, hidden(DropoutKey(1, 2)))
    assert not torch.equal(first, hidden(DropoutKey(2, 1)))


def test_without_a_key_training_draws_from_torchs_generator_and_evaluation_drops_nothing():
    model = small_model().train()
    torch.manual_seed(3)
    first, second = (model(batch(*RAGGED)).last_hidden_state for _ in range(2))
    torch.manual_seed(3)
    again = model(batch(*RAGGED)).last_hidden_state
    assert torch.equal(first, again) and not torch.equal(first, second)
    model.eval()
    assert torch.equal(
        model(batch(*RAGGED), DropoutKey(1, 1)).last_hidden_state, model(batch(*RAGGED)).last_hidden_state
    )


def test_every_place_of_the_network_has_a_mask_of_its_own(monkeypatch):
    streams = []
    for op in ("embedding", "attention", "add_layer_norm"):
        original = getattr(smartcs.ops, op)

        def spy(*args, _original=original, **kwargs):
            streams.append(kwargs["stream"])
            return _original(*args, **kwargs)

        monkeypatch.setattr(smartcs.ops, op, spy)
    small_model().train()(batch(*RAGGED), DropoutKey(1, 5))
    assert len(streams) == len(set(streams)) == 1 + 3 * SMALL["num_hidden_layers"]


@pytest.mark.parametrize("backend", ["reference", "fused"])
def test_a_sentence_does_not_see_its_neighbours(backend):
    model = small_model().eval().double()
    with smartcs.backend(backend):
        whole = model(batch(*RAGGED)).last_hidden_state
        alone = [model(PackedBatch.from_lists([row.tolist()])).last_hidden_state for row in rows_of(batch(*RAGGED))]
    torch.testing.assert_close(whole, torch.cat(alone), rtol=1e-12, atol=1e-12)


def rows_of(packed: PackedBatch):
    return packed.input_ids.split(packed.lengths.tolist())


@pytest.mark.parametrize("backend", ["reference", "fused"])
@pytest.mark.parametrize("pooling", ["pooler", "cls", "mean"])
@pytest.mark.parametrize("lengths", [(), (0,), (0, 3, 0), (3, 0, 2)])
def test_empty_batches_and_empty_sentences(backend, pooling, lengths):
    model = small_model(pooling=pooling)
    with smartcs.backend(backend):
        out = model.train()(batch(*lengths), DropoutKey(0, 0))
        out.pooled.sum().backward()
    assert out.last_hidden_state.shape == (sum(lengths), 24)
    assert out.pooled.shape == (len(lengths), 24)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    if pooling != "pooler":
        empty = [row for row, length in enumerate(lengths) if length == 0]
        assert (out.pooled[empty] == 0).all()


def test_mean_pooling_is_the_mean():
    model = small_model(pooling="mean").eval()
    out = model(batch(*RAGGED))
    expected = torch.stack([rows.mean(dim=0) for rows in out.last_hidden_state.split(list(RAGGED))])
    torch.testing.assert_close(out.pooled, expected)


def test_initialisation_is_berts():
    model = BertModel(BertConfig(**SMALL))
    assert model.layers[0].qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.embeddings.word.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert (model.layers[1].output.bias == 0).all() and (model.layers[1].output_norm.weight == 1).all()


def test_compiles_as_one_graph():
    model = small_model().train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    inputs = batch(*RAGGED)
    for step in (1, 2):
        expected = model(inputs, DropoutKey(9, step)).last_hidden_state
        model.zero_grad()
        out = compiled(inputs, DropoutKey(9, step)).last_hidden_state
        torch.testing.assert_close(out, expected)
        out.sum().backward()
        assert model.layers[0].qkv.weight.grad is not None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hidden_size": 25}, "hidden_size is 25, expected a multiple of num_attention_heads = 3"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob is 1.0"),
        ({"vocab_size": 0}, "vocab_size is 0, expected at least 1"),
        ({"pooling": "max"}, "pooling is 'max', expected one of pooler, cls, mean"),
    ],
)
def test_config_errors_name_the_field(overrides, message):
    with pytest.raises(ValueError, match=message):
        BertConfig(**{**SMALL, **overrides})


def test_unknown_config_keys_are_errors():
    with pytest.raises(ValueError, match="unknown keys hiden_size; known: vocab_size"):
        BertConfig.from_dict({**SMALL, "hiden_size": 3})


@pytest.mark.parametrize("backend", ["reference", "fused"])
def test_bad_batches_are_refused(backend):
    model = small_model()
    with smartcs.backend(backend):
        with pytest.raises(ValueError, match="up to 17 tokens, this model has 16 positions"):
            model(batch(17))
        with pytest.raises(IndexError):
            model(PackedBatch.from_lists([[1, 50]]))


def test_sum_by_product_is_that_by_index():
    """What a GPU pools with, an inert row and an empty sentence included."""
    x, sentence = torch.randn(9, 5, dtype=torch.float64), torch.tensor([0, 0, 0, 2, 2, 3, 3, 3, 3])
    torch.testing.assert_close(_sum_by_product(x, sentence, 4), _sum_by_index(x, sentence, 4))
