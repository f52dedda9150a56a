"""The model of many GPUs: its counts are those of real models, its times those of the formulas by hand."""

import pytest
import torch
from distributed_tables import BASE, BUCKET, LARGE, MINILM, Network, Shape, exposed, optimizer_seconds

import smartcs

PLAIN = Network(inside=100e9, between=10e9, latency=(0.0, 0.0))


@pytest.mark.parametrize(("shape", "heads"), [(MINILM, 12), (BASE, 12), (LARGE, 16), (Shape("odd", 3, 40, 77, 9), 4)])
def test_parameters_are_those_of_the_model(shape, heads):
    config = smartcs.BertConfig(
        vocab_size=shape.words,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=heads,
        intermediate_size=4 * shape.hidden,
        max_position_embeddings=shape.positions,
    )
    with torch.device("meta"):
        model = smartcs.MultitaskBert(smartcs.BertModel(config))
    assert sum(p.numel() for p in model.parameters()) == shape.parameters
    assert sum(p.numel() for p in model.bert.embeddings.parameters()) == shape.embeddings


def test_a_ring():
    """2 (N - 1) / N of the bytes over each link; between machines of eight over their cards."""
    assert PLAIN.all_reduce(8e9, 8) == pytest.approx(2 * 7 / 8 * 8e9 / 100e9)
    assert PLAIN.all_reduce(8e9, 2) == pytest.approx(2 * 1 / 2 * 8e9 / 100e9)
    between = {cards: PLAIN.all_reduce(8e9, 64, cards) - PLAIN.all_reduce(8e9, 8) for cards in (1, 8)}
    assert between[1] == pytest.approx(2 * 7 / 8 * 8e9 / 10e9) and between[8] == pytest.approx(between[1] / 8)
    slow = Network(inside=100e9, between=10e9, latency=(1e-3, 0.0))
    assert slow.all_reduce(3 * BUCKET, 8) - PLAIN.all_reduce(3 * BUCKET, 8) == pytest.approx(3 * 14 * 1e-3)


def test_what_is_not_hidden():
    """Nothing hides the embeddings' bucket; a step of more passes has the same backward pass to hide behind."""
    whole, rest = exposed(BASE, step=10.0, optimizer=0.0, passes=3, gpus=8, cards=1)
    assert 0 < rest < whole and rest / whole == pytest.approx(BASE.embeddings / BASE.parameters, rel=0.05)
    assert exposed(BASE, 1e-3, 1e-3, 3, 8, 1) == (whole, whole)
    short, long = (exposed(BASE, 1e-3 * passes, 0.0, passes, 8, 1) for passes in (3, 9))
    assert short == long and rest < short[1] < whole


def test_the_optimizers_traffic():
    assert optimizer_seconds(BASE, 1e9, anchored=False) == pytest.approx(28 * BASE.parameters / 1e9)
    assert optimizer_seconds(BASE, 1e9, anchored=True) == pytest.approx(36 * BASE.parameters / 1e9)
