"""embedding on its Triton kernels, interpreted: the C++ kernels' error budget, and sums over runs of every kind."""

from importlib import import_module
from unittest.mock import patch

import pytest
import torch
from op_harness import Problem, check_budget, check_equal, check_gradients, check_raw, evaluate
from ops.test_embedding import DROPOUT, PERTURBED, problem
from ops.test_embedding_sparse import problem as sparse_problem

from smartcs.ops.random import keep_factors

OP = "embedding"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# tokens, channels, words, settings, whether there is a perturbation: tokens around a partial sum's 8 and a span's 32,
# channels around blocks of 64 and 256.
CASES = [
    (7, 63, 30, {}),
    (8, 64, 30, DROPOUT, True),
    (9, 65, 4, {"eps": 0.1}),
    (32, 16, 2, DROPOUT),
    (33, 16, 1, DROPOUT),
    (3, 257, 2, {"dropout_p": 0.5, "seed": 3}),
    (2, 384, 5, DROPOUT),
    (1, 1, 1, {}),
    (0, 16, 5, DROPOUT),
    (0, 16, 5, {}, True),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_budget(triton_op, case, dtype):
    check_budget(problem(*case), dtype)


@pytest.mark.parametrize("settings", [DROPOUT, {"eps": 0.3}], ids=["dropout", "plain"])
def test_gradcheck(triton_op, settings):
    p = problem(2, 3, 2, settings, True)
    p.tensors["position"], p.tensors["position_ids"] = p.tensors["position"][:2], torch.tensor([1, 1])
    check_gradients(p)
    check_budget(p, torch.float64)


# Lengths of runs of equal keys in spans of 4 rows: within a span, up to its end, across one cut and many, and so many
# spans that a run's pieces are added in several rounds of 8.
RUNS = [[1], [4], [5], [3, 1, 4], [2, 5, 1], [1, 8, 3], [3, 37, 2, 1], [72], [2, 70]]


def check_runs(lengths):
    """`sum_by_key` against index_add, in whole numbers, whose float32 sums are exact; other rows stay as they are."""
    row_sums = import_module("smartcs.kernels.row_sums")  # the package's attribute is not a mutant
    columns, rows = 5, sum(lengths)
    keys = torch.arange(1, 2 * len(lengths) + 1, 2).repeat_interleave(torch.tensor(lengths))
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    x = torch.randint(-9, 10, (rows, columns), generator=torch.Generator().manual_seed(1)).float()
    expected, table = torch.zeros(2 * len(lengths) + 1, columns), torch.full((2 * len(lengths) + 1, columns), 0.5)
    expected.index_add_(0, keys, x[order])
    with patch.object(row_sums, "PIECE", 4):
        row_sums.sum_by_key([table], keys[None], order[None], x)
    assert torch.equal(table[1::2], expected[1::2]), f"runs of {lengths}"
    assert (table[::2] == 0.5).all()


@pytest.mark.parametrize("lengths", RUNS, ids=str)
def test_sums_of_runs(triton_op, lengths):
    check_runs(lengths)


MUTANTS = [
    ("first += ROWS", "first += 2 * ROWS"),
    ("total = tl.load(pieces_ptr + (span * 2 + 1)", "total = tl.load(pieces_ptr + (span * 2)"),
    ("step < length)[:, None]", "step < length - 1)[:, None]"),
    ("begins & (goes_on == 0)", "goes_on == 0"),
    ("begins | (position % PIECE == 0)", "begins"),
]


@pytest.mark.mistake
@pytest.mark.parametrize(("right", "wrong"), MUTANTS, ids=[wrong for _, wrong in MUTANTS])
def test_sums_of_runs_have_teeth(interpreter, right, wrong):
    from interpreted import mutant

    with mutant(OP, "row_sums", right, wrong), pytest.raises(AssertionError):
        for lengths in RUNS:
            check_runs(lengths)


MUTANTS = [
    ("layer_norm_row", "sum_bias += tl.sum(dy, axis=0)", "sum_bias += tl.sum(dh, axis=0)"),
    (OP, "if PERTURBED:", "if False:"),
    ("layer_norm_row", "(w1 >= threshold)", "(w0 >= threshold)"),
]


@pytest.mark.mistake
@pytest.mark.parametrize("mistake", MUTANTS, ids=[wrong for *_, wrong in MUTANTS])
def test_budget_rejects(interpreter, mistake):
    from interpreted import mutant

    with mutant(OP, *mistake), pytest.raises(AssertionError, match="error budget"):
        check_budget(problem(5, 70, 4, DROPOUT, True), torch.float32)


def test_mask(triton_op):
    """Bit-equal to the reference's, in the forward pass and in the backward pass."""
    p = problem(5, 200, 30, DROPOUT | {"stream": 2**63 - 1}, True)
    values = p.rounded(torch.float32)
    dropout = p.settings["dropout_p"], p.settings["seed"], p.settings["stream"]
    rows = torch.arange(5)
    kept = keep_factors(rows, 200, dropout[0], seed=dropout[1], stream=dropout[2], dtype=torch.float32) > 0
    arguments = [value for name, value in values.items() if name not in ("grad_y", "perturbation")]
    y, h, mean, rstd = torch.ops.smartcs.embedding_fwd(*arguments, None, 1e-12, *dropout)
    assert torch.equal(y != 0, kept)
    flags = False, False, False, True, False
    statistics = h, torch.zeros(5), torch.ones(5), torch.ones(200)
    (*_, sums, _) = torch.ops.smartcs.embedding_bwd(
        kept * 1.0, *arguments[:3], *statistics, 30, 2, 12, *dropout, *flags
    )
    torch.testing.assert_close(sums, kept.sum(0) / (1 - dropout[0]))


def test_deterministic(triton_op):
    p = problem(20, 20, 3, DROPOUT, True)
    values = p.rounded(torch.float32)
    check_equal(evaluate(p, values, "fused"), evaluate(p, values, "fused"), "a second run differs")


def test_unused_rows_have_no_gradient(triton_op):
    p = problem(20, 8, 50)
    gradient = evaluate(p, p.rounded(torch.float32), "fused")["word"]
    used = torch.zeros(50, dtype=torch.bool).index_fill(0, p.tensors["input_ids"], True)
    assert not gradient[~used].any() and gradient[used].any(1).all()


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("case", [(5, 7, 30), (34, 9, 2), (0, 16, 5)], ids=str)
def test_sparse_gradient_equals_dense(triton_op, case, dtype):
    """To the last bit, and nothing else changes."""
    p = sparse_problem(*case)
    values = p.rounded(dtype)
    dense = evaluate(p, values, "fused")
    sparse = evaluate(Problem(p.op, p.tensors, p.kinds, p.settings | {"sparse": True}), values, "fused")
    assert sparse["word"].is_sparse and torch.equal(sparse["word"]._indices()[0], p.tensors["input_ids"].unique())
    check_equal(dense, sparse | {"word": sparse["word"].to_dense()}, "sparse and dense differ")


@pytest.mark.parametrize("name", ["input_ids", "token_type_ids", "position_ids"])
@pytest.mark.parametrize("outside", [-1, 2**40, "size"])
def test_ids_outside_of_their_table(triton_op, name, outside):
    """The token is NaN and has no part in that table's gradient; nothing is read or written beyond the table."""
    table = name.removesuffix("_ids").replace("input", "word")
    p = problem(6, 5, 7)
    ids = p.tensors[name].clone()
    ids[2] = p.tensors[table].shape[0] if outside == "size" else outside
    result = evaluate(p, p.rounded(torch.float32) | {name: ids}, "fused")
    assert torch.equal(result["y"].isnan().any(1), torch.arange(6) == 2)
    assert result[table].isfinite().all()


WANTED = [
    (("word",), (True, False, False, False, False)),
    (("token_type", "position"), (False, True, True, False, False)),
    (("word", "weight"), (True, False, False, True, False)),
    (("perturbation",), (False, False, False, False, True)),
]


@pytest.mark.parametrize(("wanted", "flags"), WANTED, ids=str)
def test_only_what_is_asked_for(triton_op, wanted, flags):
    p = problem(9, 12, 30, DROPOUT, "perturbation" in wanted)
    check_budget(
        Problem(p.op, p.tensors, {name: PERTURBED[name] for name in ("y", *wanted)}, p.settings), torch.float32
    )


def raw_arguments(tokens, columns, dtype, perturbed=True):
    values = problem(tokens, columns, 30, None, perturbed).rounded(dtype)
    return [value for name, value in values.items() if name != "grad_y"]


@pytest.mark.parametrize(("tokens", "flags"), [(4, (True, False, True, True, True)), (0, (True,) * 5)])
def test_raw_ops(triton_op, tokens, flags):
    arguments = raw_arguments(tokens, 12, torch.float32)
    y, h, mean, rstd = check_raw("embedding_fwd", *arguments, 1e-12, 0.1, 2**40, 3)
    sizes = 30, 2, 12
    check_raw("embedding_bwd", y, *arguments[:3], h, mean, rstd, arguments[6], *sizes, 0.1, 2**40, 3, *flags)


def test_raw_rows(triton_op):
    used, sums = check_raw("embedding_rows", torch.ones(4, 3), torch.tensor([5, 2, 5, 0]), 6)
    assert used.tolist() == [0, 2, 5] and torch.equal(sums[:, 0], torch.tensor([1.0, 1, 2]))
    for outside in (-1, 6):
        with pytest.raises(IndexError, match=f"ids contain {outside}, but their table has 6 rows"):
            torch.ops.smartcs.embedding_rows(torch.ones(2, 3), torch.tensor([5, outside]), 6)


IDS, TABLE, ROW = torch.tensor([0, 2, 1]), torch.zeros(4, 6), torch.zeros(6)
BAD = [
    ({"word": torch.zeros(6, 4).T}, "word has strides"),
    ({"word": torch.zeros(1, 4097)}, r"word has shape \(1, 4097\), expected \(N, C\) with 0 < C <= 4096 on Triton"),
    ({"input_ids": IDS.int()}, "input_ids has dtype torch.int32, expected torch.int64"),
    ({"position_ids": IDS[:2]}, r"position_ids has shape \(2,\), expected \(3,\)"),
    ({"token_type_ids": torch.stack([IDS, IDS], 1)[:, 0]}, "token_type_ids has strides"),
    ({"token_type": ROW}, r"token_type has shape \(6,\), expected \(6, 6\)"),
    ({"position": TABLE.double()}, "position has dtype torch.float64, expected torch.float32 like word"),
    ({"bias": TABLE}, r"bias has shape \(4, 6\), expected \(6,\)"),
    ({"perturbation": TABLE}, r"perturbation has shape \(4, 6\), expected \(3, 6\)"),
    ({"dropout_p": 1.0}, "dropout_p is 1.0"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[row[1] for row in BAD])
def test_raw_forward_errors(triton_op, change, message):
    good = dict.fromkeys(("input_ids", "token_type_ids", "position_ids"), IDS) | {"weight": ROW, "bias": ROW}
    good |= dict.fromkeys(("word", "token_type", "position"), TABLE)
    good |= {"perturbation": None, "eps": 1e-12, "dropout_p": 0.1, "seed": 1, "stream": 1}
    with pytest.raises((ValueError, TypeError), match=message):
        torch.ops.smartcs.embedding_fwd(**(good | change))
