"""Cosine fusion and direct cosine in the similarity head, and embeddings to compare many sentences with."""

import pytest
import torch
import torch.nn.functional as F
from small_models import small_multitask as model

import smartcs
from smartcs import DropoutKey, HeadConfig, MultitaskBert

PAIRS = [("a fine film", "a good film"), ("the soup was cold", "the train was late"), ("rain", "rain")]


def scaled_cosine(m: MultitaskBert) -> torch.Tensor:
    first, second = m.embed([a for a, _ in PAIRS]), m.embed([b for _, b in PAIRS])
    return (F.cosine_similarity(first, second) + 1) * 2.5


def test_direct_is_the_scaled_cosine():
    m = model(cosine="direct")
    assert not any(name.startswith("sts_output") for name, _ in m.heads.named_parameters())
    scores = m.similarity(PAIRS)
    torch.testing.assert_close(scores, scaled_cosine(m))
    assert scores[2] == pytest.approx(5.0) and ((scores >= 0) & (scores <= 5 + 1e-5)).all()


def test_fusion_concatenates_the_pair_and_the_cosine():
    m = model(cosine="fusion")
    batch = next(m._batches("sts", PAIRS, 64))
    shared = torch.relu(m.heads["pair_shared"](m.bert(batch).pooled))
    expected = m.heads["sts_output"](torch.cat([shared, scaled_cosine(m)[:, None]], dim=1))[:, 0]
    torch.testing.assert_close(m.similarity_score(batch), expected)
    assert m.heads["sts_output"].in_features == 33
    # The other pair task reads the pair alone.
    torch.testing.assert_close(m.paraphrase_logit(batch), m.heads["qqp_output"](shared)[:, 0])
    assert m.encoder_input("qqp", batch) is batch and m.encoder_input("sts", batch).batch_size == 9


@pytest.mark.parametrize("cosine", ["fusion", "direct"])
def test_gradients_reach_the_encoder_and_empty_batches_work(cosine):
    m = model(cosine=cosine)
    m.similarity_score(next(m._batches("sts", PAIRS, 64))).sum().backward()
    assert m.bert.layers[0].qkv.weight.grad.abs().max() > 0
    assert m.similarity_score(smartcs.PackedBatch.from_lists([])).shape == (0,)
    assert m.similarity([]).shape == (0,)


@pytest.mark.parametrize("cosine", ["fusion", "direct"])
def test_saved_heads_come_back(cosine, tmp_path):
    m = model(cosine=cosine)
    m.save_pretrained(tmp_path)
    again = MultitaskBert.from_pretrained(tmp_path)
    assert again.head_config.cosine == cosine
    torch.testing.assert_close(again.similarity(PAIRS), m.similarity(PAIRS))


def test_unknown_cosine():
    with pytest.raises(ValueError, match="cosine is 'sum', expected one of none, fusion, direct"):
        HeadConfig(cosine="sum")


@pytest.mark.parametrize("cosine", ["none", "fusion", "direct"])
@pytest.mark.parametrize("perturb_at", ["word_embeddings", "embedding_output"])
def test_perturbation_moves_every_token_the_encoder_reads(cosine, perturb_at):
    m = model(cosine=cosine).double().train()
    batch, key = next(m._batches("sts", PAIRS, 64)), DropoutKey(1, 2)
    shape = (m.encoder_input("sts", batch).num_tokens, 32)
    v = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    output = m("sts", batch, key, perturbation=v, perturb_at=perturb_at)
    assert torch.equal(output, m("sts", batch, key))
    (g,) = torch.autograd.grad(output.sum(), v)
    assert (g.abs().sum(dim=1) > 0).all()
    # The gradient is that of the output: a small step along a direction changes it by the inner product.
    direction = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = [m("sts", batch, key, perturbation=s * 1e-6 * direction, perturb_at=perturb_at).sum() for s in (1, -1)]
    assert (moved[0] - moved[1]).item() / 2e-6 == pytest.approx((g * direction).sum().item(), rel=1e-5)


def test_perturbation_errors():
    m = model()
    batch = next(m._batches("sts", PAIRS, 64))
    with pytest.raises(ValueError, match=rf"perturbation has shape \(3, 32\), expected \({batch.num_tokens}, 32\)"):
        m("sts", batch, perturbation=torch.zeros(3, 32))
    with pytest.raises(ValueError, match="perturb_at is 'pooler', expected one of word_embeddings, embedding_output"):
        m("sts", batch, perturbation=torch.zeros(batch.num_tokens, 32), perturb_at="pooler")


def test_encode_once_compare_many():
    m = model()
    queries, candidates = m.embed(["a fine film", "rain"]), m.embed([b for _, b in PAIRS])
    scores = smartcs.cosine_similarity(queries, candidates)
    assert scores.shape == (2, 3)
    for i in range(2):
        torch.testing.assert_close(scores[i], F.cosine_similarity(queries[i : i + 1], candidates))
    assert scores.argmax(dim=1).tolist()[1] == 2
    with pytest.raises(ValueError, match=r"b has shape \(3, 4\), expected \(M, 32\)"):
        smartcs.cosine_similarity(queries, torch.zeros(3, 4))
    assert smartcs.cosine_similarity(torch.zeros(1, 4), torch.ones(1, 4)).item() == 0
