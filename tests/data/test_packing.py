"""PackedBatch: conversions there and back, every kind of mask, and what it refuses."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch

from smartcs.data.packing import PackedBatch
from smartcs.data.pairs import sentences_of_pairs


def _random_padded(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * 100 + columns)
    lengths = torch.randint(0, columns + 1, (rows, 1), generator=generator)
    mask = (torch.arange(columns) < lengths).long()
    ids = torch.randint(1, 1000, (rows, columns), generator=generator) * mask
    types = torch.randint(0, 2, (rows, columns), generator=generator) * mask
    return ids, mask, types


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 7), (16, 33), (0, 5), (4, 0)])
def test_padded_round_trip(rows: int, columns: int, mask_dtype: torch.dtype) -> None:
    ids, mask, types = _random_padded(rows, columns)
    batch = PackedBatch.from_padded(ids.int(), mask.to(mask_dtype), types.int())
    width = batch.max_seqlen
    assert width == (int(mask.sum(1).max()) if rows else 0)
    assert (batch.batch_size, batch.num_tokens) == (rows, int(mask.sum()))
    assert torch.equal(batch.to_padded(), ids[:, :width])
    assert torch.equal(batch.to_padded(batch.token_type_ids), types[:, :width])
    assert torch.equal(batch.attention_mask(), mask[:, :width])
    assert torch.equal(batch.lengths, mask.sum(1).int())
    assert batch.cu_seqlens.dtype == torch.int32
    for name in ("input_ids", "token_type_ids", "position_ids"):
        assert getattr(batch, name).dtype == torch.int64


def test_lists_equal_padded() -> None:
    rows = [[5, 6, 7], [], [8], [9, 10]]
    types = [[0, 1, 1], [], [0], [1, 0]]
    ids = torch.tensor([[5, 6, 7], [0, 0, 0], [8, 0, 0], [9, 10, 0]])
    mask = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 0]])
    padded_types = torch.tensor([[0, 1, 1], [0, 0, 0], [0, 0, 0], [1, 0, 0]])
    a, b = PackedBatch.from_lists(rows, types), PackedBatch.from_padded(ids, mask, padded_types)
    for name in ("input_ids", "token_type_ids", "position_ids", "cu_seqlens"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert a.max_seqlen == b.max_seqlen == 3
    assert a.position_ids.tolist() == [0, 1, 2, 0, 0, 1]
    assert PackedBatch.from_lists(rows).token_type_ids.tolist() == [0] * 6


def test_any_mask_keeps_columns_as_positions() -> None:
    """Left padding and holes: transformers numbers columns, so the packed rows must carry these numbers."""
    ids = torch.arange(12).view(3, 4)
    mask = torch.tensor([[0, 0, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]])
    batch = PackedBatch.from_padded(ids, mask)
    assert batch.input_ids.tolist() == [2, 3, 4, 7]
    assert batch.position_ids.tolist() == [2, 3, 0, 3]
    assert batch.cu_seqlens.tolist() == [0, 2, 4, 4]
    assert batch.max_seqlen == 2
    assert batch.to_padded(pad=-1).tolist() == [[2, 3], [4, 7], [-1, -1]]


def test_any_mask_gives_the_hidden_states_of_transformers() -> None:
    """The embedding sum of the packed rows equals the masked positions of transformers' embedding layer."""
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertEmbeddings

    torch.manual_seed(0)
    layer = BertEmbeddings(BertConfig(vocab_size=50, hidden_size=8, max_position_embeddings=16)).eval()
    ids, types = torch.randint(0, 50, (4, 9)), torch.randint(0, 2, (4, 9))
    mask = torch.randint(0, 2, (4, 9))
    batch = PackedBatch.from_padded(ids, mask, types)
    packed = layer(
        batch.input_ids[None],
        token_type_ids=batch.token_type_ids[None],
        position_ids=batch.position_ids[None],
    )[0]
    expected = layer(ids, token_type_ids=types)[mask.bool()]
    assert torch.equal(packed, expected)


def test_empty_batch() -> None:
    batch = PackedBatch.from_lists([])
    assert (batch.batch_size, batch.num_tokens, batch.max_seqlen) == (0, 0, 0)
    assert batch.to_padded().shape == (0, 0)
    assert batch.to_padded(torch.zeros(0, 5)).shape == (0, 0, 5)


def test_to_padded_values_dtype_pad_and_gradient() -> None:
    batch = PackedBatch.from_lists([[1, 2], [], [3]])
    values = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    padded = batch.to_padded(values, pad=7.5)
    assert padded.shape == (3, 2, 2, 4)
    assert padded.dtype == torch.float64
    assert torch.equal(padded[0], values[:2])
    assert torch.equal(padded[2, 0], values[2])
    assert (padded[1] == 7.5).all()
    assert (padded[2, 1] == 7.5).all()
    (padded * 3).sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, torch.full_like(values, 3))


def test_to_same_device_is_free_and_repr_is_short() -> None:
    batch = PackedBatch.from_lists([[1, 2]])
    assert batch.to("cpu") is batch
    assert repr(batch) == "PackedBatch(batch_size=1, num_tokens=2, max_seqlen=2, device='cpu')"
    meta = batch.to("meta")
    assert meta.input_ids.device.type == "meta"
    assert meta.max_seqlen == 2


def test_is_frozen() -> None:
    batch: Any = PackedBatch.from_lists([[1]])
    with pytest.raises(FrozenInstanceError):
        batch.max_seqlen = 3


_T = torch.zeros(3, dtype=torch.int64)
_CU = torch.tensor([0, 2, 3], dtype=torch.int32)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"input_ids": [1, 2, 3]}, TypeError, "input_ids is a list, expected a torch.Tensor"),
        ({"input_ids": _T.int()}, TypeError, "input_ids has dtype torch.int32, expected torch.int64"),
        ({"cu_seqlens": _CU.long()}, TypeError, "cu_seqlens has dtype torch.int64, expected torch.int32"),
        ({"position_ids": _T[None]}, ValueError, "position_ids has shape (1, 3), expected one dimension"),
        (
            {"token_type_ids": _T[:2]},
            ValueError,
            "token_type_ids has 2 tokens, expected 3 to match input_ids",
        ),
        ({"position_ids": _T.to("meta")}, ValueError, "position_ids is on meta, expected cpu"),
        ({"cu_seqlens": _CU[:0]}, ValueError, "cu_seqlens has no element, expected B + 1"),
        ({"cu_seqlens": _CU[:2]}, ValueError, "cu_seqlens runs from 0 to 2, expected 0 to T = 3"),
        ({"cu_seqlens": _CU[1:]}, ValueError, "cu_seqlens runs from 2 to 3"),
        (
            {"cu_seqlens": torch.tensor([0, 3, 2, 3], dtype=torch.int32)},
            ValueError,
            "cu_seqlens falls from 3 to 2 at row 1",
        ),
        ({"max_seqlen": 1}, ValueError, "max_seqlen is 1, expected at least 2 (longest row)"),
        ({"max_seqlen": torch.tensor(2)}, TypeError, "max_seqlen is tensor(2), expected an int"),
    ],
)
def test_constructor_errors(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    good: dict[str, Any] = {
        "input_ids": _T,
        "token_type_ids": _T,
        "position_ids": _T,
        "cu_seqlens": _CU,
        "max_seqlen": 2,
    }
    PackedBatch(**good)
    with pytest.raises(error) as caught:
        PackedBatch(**{**good, **fields})
    assert message in str(caught.value)


_IDS, _MASK = torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((_IDS.float(), _MASK), TypeError, "input_ids has dtype torch.float32, expected an integer tensor"),
        (
            (_IDS, _MASK.float()),
            TypeError,
            "attention_mask has dtype torch.float32, expected a bool or integer",
        ),
        ((_IDS[0], _MASK[0]), ValueError, "input_ids has shape (3,), expected [B, S]"),
        ((_IDS, _MASK[:, :2]), ValueError, "attention_mask has shape (2, 2), expected (2, 3)"),
        ((_IDS, _MASK, _IDS[:1]), ValueError, "token_type_ids has shape (1, 3), expected (2, 3)"),
        ((_IDS, _MASK * 2), ValueError, "attention_mask holds 2, expected only 0 and 1"),
        ((_IDS, -_MASK), ValueError, "attention_mask holds -1, expected only 0 and 1"),
        ((_IDS, None), TypeError, "attention_mask is a NoneType, expected a torch.Tensor"),
    ],
)
def test_from_padded_errors(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        PackedBatch.from_padded(*arguments)
    assert message in str(caught.value)


def test_from_lists_and_to_padded_errors() -> None:
    with pytest.raises(ValueError, match=r"token_type_ids has rows of lengths \[1\], expected \[2\]"):
        PackedBatch.from_lists([[1, 2]], [[0]])
    with pytest.raises(ValueError, match=r"lengths \[1\], expected \[1, 1\]"):
        PackedBatch.from_lists([[1], [2]], [[0]])
    with pytest.raises(ValueError, match=r"values has shape \(3, 4\), expected \(2, ...\)"):
        PackedBatch.from_lists([[1, 2]]).to_padded(torch.zeros(3, 4))


@pytest.mark.parametrize("tokens", [0, 1, 31, 32, 33, 255, 256, 257, 1023, 1024, 1025, 1300])
def test_filled(tokens):
    """One inert row more, of zeros; the token count and the longest row rounded up, the examples as they were."""
    lengths = [tokens // 2, 0, tokens - tokens // 2]
    batch = PackedBatch.from_lists([[7] * length for length in lengths])
    filled = batch.filled()
    step = 32 if tokens < 256 else 64 if tokens < 1024 else 128
    assert filled.num_tokens % step == 0 and 0 <= filled.num_tokens - tokens < step
    assert filled.inert == 1 and filled.batch_size == 4 and filled.max_seqlen % 64 == 0
    assert filled.max_seqlen >= int(filled.lengths.max())
    assert filled.lengths[:3].tolist() == lengths
    for name in ("input_ids", "token_type_ids", "position_ids"):
        assert torch.equal(getattr(filled, name)[:tokens], getattr(batch, name))
        assert not getattr(filled, name)[tokens:].any()
    assert filled.to("cpu").inert == 1
    with pytest.raises(ValueError, match="filled up already"):
        filled.filled()
    with pytest.raises(ValueError, match="filled up with an inert row"):
        sentences_of_pairs(filled)
