"""embedding: against torch's embedding and layer_norm, within the error budget, with repeated and unused rows."""

import pytest
import torch
import torch.nn.functional as F
from error_budget import check
from op_harness import (
    DTYPES,
    Calls,
    Problem,
    check_budget,
    check_compiled,
    check_gradients,
    check_instruction_sets,
    check_mutant,
    check_raw,
    check_strided,
    check_threads,
    evaluate,
    integers,
    normal,
)

from smartcs.ops import embedding
from smartcs.ops.random import keep_factors

DROPOUT = {"dropout_p": 0.1, "seed": 2**40 + 1, "stream": 2**33 + 2}
KINDS = {
    "y": "forward",
    "word": "summed gradient",
    "token_type": "summed gradient",
    "position": "summed gradient",
    "weight": "summed gradient",
    "bias": "summed gradient",
}
PERTURBED = KINDS | {"perturbation": "activation gradient"}
# tokens, channels, rows of the word table, settings, whether there is a perturbation
CASES = [
    (5, 7, 30, {}),
    (33, 77, 4, DROPOUT),
    (40, 77, 30, DROPOUT, True),
    (70, 100, 500, {"eps": 0.1}),
    (150, 384, 60, DROPOUT),
    (31, 768, 31, {"dropout_p": 0.5, "seed": 3}),
    (1, 3, 1, DROPOUT),
    (300, 16, 2, {}),
    (0, 16, 5, DROPOUT),
    (0, 16, 5, {}, True),
]


def problem(tokens, columns, words=30, settings=None, perturbed=False) -> Problem:
    tensors = {
        "input_ids": integers(words, tokens, seed=1),
        "token_type_ids": integers(2, tokens, seed=2),
        "position_ids": integers(12, tokens, seed=3),
        "word": normal(words, columns, seed=4),
        "token_type": 0.5 * normal(2, columns, seed=5),
        "position": 0.5 * normal(12, columns, seed=6),
        "weight": normal(columns, seed=7) + 1,
        "bias": normal(columns, seed=8),
        "perturbation": normal(tokens, columns, seed=10),
        "grad_y": normal(tokens, columns, seed=9),
    }
    if not perturbed:
        del tensors["perturbation"]
    return Problem(embedding, tensors, dict(PERTURBED if perturbed else KINDS), settings or {})


def formula(
    input_ids,
    token_type_ids,
    position_ids,
    word,
    token_type,
    position,
    weight,
    bias,
    grad_y,
    perturbation=None,
    eps=1e-12,
    dropout_p=0.0,
    seed=0,
    stream=0,
    mutation="",
):
    """The module's formulas; ``mutation`` names the mistake to make."""
    tables = {
        "word": (word, input_ids),
        "token_type": (token_type, token_type_ids),
        "position": (position, position_ids),
    }
    if mutation == "positions as token types":
        tables["token_type"], tables["position"] = (token_type, position_ids % 2), (position, token_type_ids)
    h = sum(table[ids] for table, ids in tables.values())
    if perturbation is not None and mutation != "perturbation missing":
        h = h + perturbation
    m = torch.ones_like(h)
    if dropout_p > 0 and mutation != "dropout missing":
        shift = int(mutation == "dropout mask shifted")
        rows = torch.arange(len(h))
        m = keep_factors(rows, h.shape[1] + shift, dropout_p, seed=seed, stream=stream, dtype=h.dtype)[:, shift:]
    if mutation == "dropout before the normalisation":
        h = m * h
    centred = h - h.mean(1, keepdim=True)
    squares = centred.square().sum(1, keepdim=True)
    rstd = 1 / (squares / (h.shape[1] - (mutation == "unbiased variance")) + eps).sqrt()
    xhat = centred * rstd
    y = xhat * weight + bias
    dy = grad_y if mutation == "dropout missing from dy" else m * grad_y
    g = dy * weight
    mean_gx = 0 if mutation == "dh without its projection" else (g * xhat).mean(1, keepdim=True)
    dh = rstd * (g - g.mean(1, keepdim=True) - xhat * mean_gx)
    results = {
        "y": y if mutation == "dropout before the normalisation" else m * y,
        "weight": (dy * xhat).sum(0),
        "bias": (dy[:-1] if mutation == "dbias misses a row" else dy).sum(0),
    }
    if perturbation is not None:
        results["perturbation"] = dy if mutation == "perturbation's gradient before LayerNorm's" else dh
    for name, (table, ids) in tables.items():
        grad = torch.zeros_like(table)
        results[name] = grad.index_copy(0, ids, dh) if mutation == "last token wins" else grad.index_add(0, ids, dh)
    return results


MUTATIONS = [
    "positions as token types",
    "dropout missing",
    "dropout mask shifted",
    "dropout before the normalisation",
    "dropout missing from dy",
    "unbiased variance",
    "dh without its projection",
    "dbias misses a row",
    "last token wins",
    "perturbation missing",
    "perturbation's gradient before LayerNorm's",
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_budget(fused, case, dtype):
    check_budget(problem(*case), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_budget_rejects(dtype, mutation):
    check_mutant(problem(14, 9, 10, DROPOUT | {"eps": 0.1}, True), dtype, formula, mutation)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference_equals_torch(reference, case):
    """torch's embedding and layer_norm in float64; with dropout, the formulas written out."""
    p = problem(*case)
    result, expected = evaluate(p, p.tensors, "reference"), formula(**p.tensors, **p.settings)
    if not p.settings.get("dropout_p"):
        leaves = {name: p.tensors[name].clone().requires_grad_() for name in p.kinds if name != "y"}
        h = F.embedding(p.tensors["input_ids"], leaves["word"])
        h = h + F.embedding(p.tensors["token_type_ids"], leaves["token_type"])
        h = h + F.embedding(p.tensors["position_ids"], leaves["position"]) + leaves.get("perturbation", 0)
        y = F.layer_norm(h, h.shape[-1:], leaves["weight"], leaves["bias"], p.settings.get("eps", 1e-12))
        grads = torch.autograd.grad(y, list(leaves.values()), p.tensors["grad_y"])
        expected = {"y": y, **dict(zip(leaves, grads, strict=True))}
    for name, kind in p.kinds.items():
        check(result[name], expected[name], result[name], kind, name=name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics(fused, dtype):
    """The saved mean and 1 / standard deviation are those of the saved h, in float32 or float64."""
    values = problem(40, 100).rounded(dtype)
    arguments = [value for name, value in values.items() if name != "grad_y"]
    _, h, mean, rstd = torch.ops.smartcs.embedding_fwd(*arguments, None, 1e-12, 0.1, 1, 2)
    wide, compute = h.double(), h.to(mean.dtype)
    check(mean, wide.mean(1), compute.mean(1), "statistic")
    check(rstd, wide.var(1, correction=0).rsqrt(), compute.var(1, correction=0).rsqrt(), "statistic")


def test_unused_rows_have_no_gradient(either):
    p = problem(20, 8, 50)
    gradient = evaluate(p, p.rounded(torch.float32), either)["word"]
    used = torch.zeros(50, dtype=torch.bool).index_fill(0, p.tensors["input_ids"], True)
    assert not gradient[~used].any() and gradient[used].any(1).all()


@pytest.mark.parametrize("settings", [DROPOUT, {"eps": 0.3}], ids=["dropout", "plain"])
def test_gradcheck(fused, settings):
    check_gradients(problem(6, 5, 4, settings, True))


def test_threads(fused):
    check_threads(problem(300, 384, 40, DROPOUT, True))


def test_instruction_sets(fused):
    check_instruction_sets(problem(37, 101, 9, DROPOUT, True))


def test_strided(fused):
    check_strided(problem(9, 12, 30, DROPOUT, True))


@pytest.mark.parametrize(
    ("wanted", "flags"),
    [
        (("word",), (True, False, False, False, False)),
        (("token_type", "position"), (False, True, True, False, False)),
        (("bias",), (False, False, False, True, False)),
        (("word", "weight"), (True, False, False, True, False)),
        (("perturbation",), (False, False, False, False, True)),
    ],
    ids=str,
)
def test_only_what_is_asked_for(fused, wanted, flags):
    p = problem(9, 12, 30, DROPOUT, "perturbation" in wanted)
    asked = Problem(p.op, p.tensors, {name: PERTURBED[name] for name in ("y", *wanted)}, p.settings)
    with Calls() as calls:
        check_budget(asked, torch.float32)
    assert calls.arguments("embedding_bwd")[-5:] == flags


def test_compiled(fused):
    check_compiled(
        [
            problem(5 + 3 * i, 12, 30, {"dropout_p": 0.1, "seed": 2**40 + 7 * i, "stream": i * 2**16 + 3}, True)
            for i in range(6)
        ]
    )


IDS, TABLE, ROW = torch.tensor([0, 2, 1]), torch.zeros(4, 6), torch.zeros(6)
BAD = [
    ({"word": None}, TypeError, "embedding: word is NoneType, expected a torch.Tensor"),
    ({"word": TABLE.int()}, TypeError, "word has dtype torch.int32, expected a floating-point dtype"),
    ({"word": ROW}, ValueError, r"word has shape \(6,\), expected \(rows, C\) with C > 0"),
    ({"word": TABLE[:, :0]}, ValueError, r"word has shape \(4, 0\)"),
    ({"input_ids": [0, 2, 1]}, TypeError, "input_ids is list"),
    ({"input_ids": IDS.int()}, TypeError, "input_ids has dtype torch.int32, expected torch.int64"),
    ({"input_ids": IDS[None]}, ValueError, r"input_ids has shape \(1, 3\), expected \(3,\) to match the packed tokens"),
    ({"input_ids": IDS.to("meta")}, ValueError, "input_ids is on meta, expected cpu like word"),
    ({"token_type_ids": IDS[:2]}, ValueError, r"token_type_ids has shape \(2,\), expected \(3,\) to match input_ids"),
    ({"token_type_ids": IDS.to("meta")}, ValueError, "token_type_ids is on meta, expected cpu like word"),
    ({"position_ids": IDS.float()}, TypeError, "position_ids has dtype torch.float32, expected torch.int64"),
    ({"token_type": TABLE[:, :5]}, ValueError, r"token_type has shape \(4, 5\), expected \(rows, 6\) to match word"),
    ({"token_type": TABLE.double()}, TypeError, "token_type has dtype torch.float64, expected torch.float32 like word"),
    ({"position": ROW}, ValueError, r"position has shape \(6,\), expected \(rows, 6\) to match word"),
    ({"position": torch.tensor(1.0)}, ValueError, r"position has shape \(\), expected \(rows, 6\) to match word"),
    ({"position": TABLE.to("meta")}, ValueError, "position is on meta, expected cpu like word"),
    ({"weight": TABLE}, ValueError, r"weight has shape \(4, 6\), expected \(6,\) to match word"),
    ({"bias": ROW.half()}, TypeError, "bias has dtype torch.float16"),
    ({"perturbation": TABLE}, ValueError, r"perturbation has shape \(4, 6\), expected \(3, 6\) to match the packed"),
    ({"perturbation": TABLE[:3].double()}, TypeError, "perturbation has dtype torch.float64, expected torch.float32"),
    ({"eps": -1.0}, ValueError, "eps is -1.0, expected eps >= 0"),
    ({"dropout_p": 2.0}, ValueError, "dropout_p is 2.0"),
    ({"dropout_p": 0.5, "seed": -1}, ValueError, "seed is -1"),
    ({"input_ids": IDS + 2}, IndexError, r"embedding: input_ids\[1\] is 4, but its table has 4 rows"),
    ({"input_ids": IDS - 1}, IndexError, r"input_ids\[0\] is -1, but its table has 4 rows"),
    ({"token_type_ids": IDS * 2**40}, IndexError, rf"token_type_ids\[1\] is {2**41}, but its table has 4 rows"),
    ({"position_ids": IDS - 2**62}, IndexError, rf"position_ids\[0\] is {-(2**62)}, but its table has 4 rows"),
    ({"word": TABLE[:0]}, IndexError, r"input_ids\[0\] is 0, but its table has 0 rows"),
]
GOOD = {
    "input_ids": IDS,
    "token_type_ids": IDS,
    "position_ids": IDS,
    "word": TABLE,
    "token_type": TABLE,
    "position": TABLE,
    "weight": ROW,
    "bias": ROW,
}


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[row[2] for row in BAD])
def test_errors(either, change, error, message):
    with pytest.raises(error, match=message):
        embedding(**(GOOD | change))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "dropout_p", "flags"),
    [
        (5, 0.1, (True, True, True, False, False)),
        (4, 0.1, (False, True, False, False, True)),
        (3, 0.0, (False, False, False, True, False)),
        (0, 0.1, (True, True, True, True, True)),
    ],
)
def test_raw_ops(fused, tokens, dropout_p, flags, dtype):
    values = problem(tokens, 12, perturbed=flags[-1]).rounded(dtype)
    arguments = [*(value for name, value in values.items() if name != "grad_y"), *(() if flags[-1] else (None,))]
    dropout = dropout_p, 2**40, 3
    y, h, mean, rstd = check_raw("embedding_fwd", *arguments, 1e-12, *dropout)
    check_raw("embedding_bwd", y, *arguments[:3], h, mean, rstd, values["weight"], 30, 2, 12, *dropout, *flags)


RAW_BAD = [
    ({"input_ids": IDS + 2}, r"input_ids\[1\] is 4, but its table has 4 rows"),
    ({"token_type_ids": IDS - 1}, r"token_type_ids\[0\] is -1"),
    ({"position_ids": IDS * 2**40}, r"position_ids\[1\] is 2199023255552"),
    ({"input_ids": IDS.int()}, "input_ids has dtype Int, expected Long"),
    ({"position_ids": IDS[:2]}, r"position_ids has shape \[2\], expected \[3\]"),
    ({"token_type_ids": torch.stack([IDS, IDS], 1)[:, 0]}, "token_type_ids must be contiguous"),
    ({"weight": ROW[:5]}, r"weight has shape \[5\], expected \[6\]"),
    ({"dropout_p": 1.0}, "dropout_p is 1"),
]
RAW_FORWARD_BAD = [
    ({"word": TABLE.half()}, "dtype Half has no CPU kernel"),
    ({"word": ROW}, r"word has shape \[6\], expected \(rows, C\)"),
    ({"input_ids": IDS[None]}, r"expected input_ids of shape \(T,\)"),
    ({"token_type": ROW}, r"tables of shape \(rows, C\)"),
    ({"token_type": TABLE[:, :5]}, r"token_type must be contiguous"),
    ({"position": TABLE.double()}, "position has dtype Double, expected Float"),
    ({"bias": TABLE}, r"bias has shape \[4, 6\], expected \[6\]"),
    ({"perturbation": TABLE}, r"perturbation has shape \[4, 6\], expected \[3, 6\]"),
]
RAW_BACKWARD_BAD = [
    ({"grad_y": TABLE}, r"grad_y has shape \[4, 6\], expected \[3, 6\]"),
    ({"h": ROW}, r"h has shape \[6\], expected \(T, C\) with C > 0"),
    ({"mean": torch.zeros(2)}, r"mean has shape \[2\], expected \[3\]"),
    ({"rstd": torch.zeros(3).double()}, "rstd has dtype Double, expected Float"),
    ({"words": 2}, r"input_ids\[1\] is 2, but its table has 2 rows"),
    ({"positions": 0}, r"position_ids\[0\] is 0, but its table has 0 rows"),
    ({"positions": -1}, "tables have 4, 4 and -1 rows, expected no negative number"),
]


@pytest.mark.parametrize(("change", "message"), RAW_BAD + RAW_FORWARD_BAD, ids=str)
def test_raw_forward_errors(fused, change, message):
    good = GOOD | {"perturbation": None, "eps": 1e-12, "dropout_p": 0.1, "seed": 1, "stream": 1}
    with pytest.raises((RuntimeError, IndexError), match=message):
        torch.ops.smartcs.embedding_fwd(**(good | change))


@pytest.mark.parametrize(("change", "message"), RAW_BAD + RAW_BACKWARD_BAD, ids=str)
def test_raw_backward_errors(fused, change, message):
    needs = ("need_word", "need_token_type", "need_position", "parameter_grads", "need_perturbation")
    good = {name: GOOD[name] for name in ("input_ids", "token_type_ids", "position_ids", "weight")}
    good |= {"grad_y": TABLE[:3], "h": TABLE[:3], "mean": torch.zeros(3), "rstd": torch.zeros(3)}
    good |= {"words": 4, "token_types": 4, "positions": 4, "dropout_p": 0.1, "seed": 1, "stream": 1}
    with pytest.raises((RuntimeError, IndexError), match=message):
        torch.ops.smartcs.embedding_bwd(**(good | change), **dict.fromkeys(needs, True))
