"""The floor: operations and bytes against counts made by hand, and against torch's own counter."""

import pytest
import roof
import torch
from roof import PLAIN, SMART_BREGMAN, Passes, Roof, bytes_moved, floor, operations, passes
from torch.utils.flop_counter import FlopCounterMode

import smartcs
from smartcs.model.bert import BertConfig

CONFIG = BertConfig(
    vocab_size=100, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=128, pooling="mean"
)
LENGTHS = [5, 7]


def test_operations_of_a_pass_are_24_c_squared_per_layer_and_token_and_the_attention():
    counted = operations(CONFIG, LENGTHS, Passes(forward=1, full=0))
    assert counted == {"low": 24 * 32**2 * 3 * 12, "exact": 4 * 32 * 3 * (25 + 49)}


def test_the_products_are_those_torch_counts():
    """Of the layers' own matrix products, forward and backward, on one sentence (so that nothing is padded)."""
    model = smartcs.BertModel(CONFIG).train()
    batch = smartcs.PackedBatch.from_lists([[1, 2, 3, 4, 5, 6, 7]])
    with smartcs.backend("reference"), FlopCounterMode(display=False) as counter:
        model(batch).last_hidden_state.sum().backward()
    found = sum(
        count
        for op, count in counter.get_flop_counts()["Global"].items()
        if "bmm" not in str(op)  # attention, which reference and formula count differently
    )
    pooler = 2 * 32 * 32
    # Of the first layer's input there is a gradient too: the embeddings are trained.
    assert found - pooler == operations(CONFIG, [7], PLAIN)["low"]


def test_smart_and_bregman_cost_nine_passes_where_a_plain_step_costs_three():
    plain, both = (sum(operations(CONFIG, [1], counted).values()) for counted in (PLAIN, SMART_BREGMAN))
    attention = 4 * 32 * 3
    products = 24 * 32**2 * 3
    assert plain == 3 * products + 3 * attention
    assert both == 9 * products + (3 + 1 + 2 * 3) * attention


@pytest.mark.parametrize(
    ("recipe", "task", "expected"),
    [("baseline", "sst", PLAIN), ("smart-bregman", "qqp", PLAIN), ("smart-bregman", "sst", SMART_BREGMAN)],
)
def test_only_sst_has_the_extra_passes(recipe, task, expected):
    assert passes(recipe, task) == expected


def test_bytes_follow_the_weights_the_anchor_and_the_packed_copies():
    tokens = 12
    plain = bytes_moved(CONFIG, tokens, Passes(0, 0), "fp32", anchor=False)
    model = smartcs.BertModel(CONFIG)
    # The pooler is not counted (mean pooling has no gradient for it), of the word table only rows with a gradient.
    table, pooler = model.embeddings.word.weight.numel(), sum(p.numel() for p in model.pooler.parameters())
    updated = sum(p.numel() for p in model.parameters()) - table - pooler + tokens * 32
    assert plain == 28 * updated
    assert bytes_moved(CONFIG, tokens, Passes(0, 0), "fp32", anchor=True) == 36 * updated
    products = 12 * 32**2 * 3
    assert bytes_moved(CONFIG, tokens, Passes(0, 0), "bf16", anchor=False) == plain + 4 * products


def test_the_floor_adds_the_times_of_all_parts():
    machine = Roof(float32=1e9, bfloat16=2e9, copy=1e30)
    work = operations(CONFIG, LENGTHS, SMART_BREGMAN)
    single = floor(machine, CONFIG, {"sst": LENGTHS}, "smart-bregman", "fp32")["sst"]
    low = floor(machine, CONFIG, {"sst": LENGTHS}, "smart-bregman", "bf16")["sst"]
    assert single == pytest.approx((work["low"] + work["exact"]) / 1e9)
    assert low == pytest.approx(work["low"] / 2e9 + work["exact"] / 1e9)
    slow = Roof(float32=1e30, bfloat16=None, copy=1e9)
    moved = bytes_moved(CONFIG, 12, SMART_BREGMAN, "fp32", anchor=True)
    assert floor(slow, CONFIG, {"sst": LENGTHS}, "smart-bregman", "fp32")["sst"] == pytest.approx(moved / 1e9)


def test_a_cpu_without_bf16_products_is_judged_by_float32s():
    assert Roof(float32=3.0, bfloat16=None, copy=1.0).products("bf16") == 3.0


def test_the_copy_rate_counts_both_directions(monkeypatch):
    monkeypatch.setattr(roof, "seconds", lambda step: 0.5)
    assert roof.copy_rate(megabytes=1) == 2 * 2**20 / 0.5
    assert torch.zeros(1).element_size() == roof.FLOAT
