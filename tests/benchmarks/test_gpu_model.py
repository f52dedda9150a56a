"""The modelled GPU step: what it consists of and what kernels move, counted by hand."""

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import gpu_model
import pytest
import torch
from gpu_eager import replaced
from gpu_kernels import ADAMW_TENSORS, PIECE, ROWS_PER_PARTIAL, WHOLE_KEYS, UnknownOperator, launches
from gpu_record import LENGTHS, Call, Spec, fake, filled_lengths, step_calls

from smartcs._extension import extension_status

pytestmark = pytest.mark.skipif(not extension_status()[0], reason="records the fused ops")

ROOT = Path(__file__).resolve().parents[2]
LAYERS, C, INNER, HEADS, WORDS = 6, 384, 1536, 12, 30522  # MiniLM's
ROWS = 160  # an SST batch, filled up


@cache
def calls(recipe: str, precision: str, task: str) -> list[Call]:
    return step_calls("minilm", recipe, precision, task)


def kernels(recipe: str, precision: str, task: str) -> Counter[str]:
    lengths = filled_lengths(task)
    return Counter(kernel.kernel for call in calls(recipe, precision, task) for kernel in launches(call, lengths))


def moved(call: Call) -> list[int]:
    return [kernel.bytes for kernel in launches(call, filled_lengths("sst"))]


def first(name: str, recipe: str = "smart-bregman", precision: str = "fp32", task: str = "sst") -> Call:
    return next(call for call in calls(recipe, precision, task) if call.name == f"smartcs::{name}")


def matrix(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Spec:
    return Spec((rows, columns), (columns, 1), dtype)


def product(m: int, k: int, n: int) -> Call:
    arguments = {"self": matrix(m, k), "mat2": matrix(k, n)}
    return Call("aten::mm", arguments, [matrix(m, n)], False, ())


@pytest.mark.skipif(
    json.loads(gpu_model.PATH.read_text())["torch"] != gpu_model.torch_version(), reason="made with another torch"
)
def test_the_committed_rows_are_the_models():
    """All of MiniLM's and one step of BERT-base's; gpu_model.py --check compares the rest."""
    committed = json.loads(gpu_model.PATH.read_text())
    fresh = json.loads(gpu_model.text(gpu_model.model(["minilm"])))
    for part in ("steps", "kernels"):
        assert [row for row in committed[part] if row["shape"] == "minilm"] == fresh[part]
    assert {name: committed[name] for name in fresh if name not in ("steps", "kernels")} == {
        name: fresh[name] for name in fresh if name not in ("steps", "kernels")
    }
    found = [
        k for call in step_calls("base", "smart-bregman", "bf16", "sst") for k in launches(call, filled_lengths("sst"))
    ]
    names = ("base", "bf16", "smart-bregman", "sst")
    rows = [r for r in committed["steps"] if (r["shape"], r["precision"], r["recipe"], r["task"]) == names]
    assert len(rows) == 1 and json.loads(json.dumps(gpu_model.step(found))).items() <= rows[0].items()


def test_batches_are_the_papers_and_filled_up():
    assert {task: sum(lengths) for task, lengths in LENGTHS.items()} == {"sst": 150, "qqp": 1220, "sts": 113}
    assert {task: len(lengths) for task, lengths in LENGTHS.items()} == {"sst": 6, "qqp": 40, "sts": 4}
    assert [sum(filled_lengths(task)) for task in LENGTHS] == [160, 1280, 128]
    assert filled_lengths("sst") == (*LENGTHS["sst"], 10)


@pytest.mark.parametrize("task", LENGTHS)
def test_a_baseline_step_is_one_pass_and_its_gradient(task):
    found = kernels("baseline", "fp32", task)
    assert found["attention_fwd"] == LAYERS
    assert found["attention_bwd queries"] == found["attention_bwd keys"] == LAYERS
    assert found["add_layer_norm_fwd"] == found["add_layer_norm_bwd"] == 2 * LAYERS
    assert found["bias_gelu_fwd"] == found["bias_gelu_bwd"] == LAYERS
    # Of both LayerNorms and of GELU, per layer, and the embedding's.
    assert found["sum_partials"] == 3 * LAYERS + 1
    # Layers, head (2), and the means of sentences, by a product; the pooler, which mean pooling does not use, forward.
    assert found["product"] == 3 * (4 * LAYERS + 2) + 2 + 1
    assert found["adamw begin"] == found["adamw update"] == 1
    assert "perturb_step" not in found and "symmetric_kl_fwd" not in found and "pack_weight" not in found


def test_smart_and_bregman_are_three_more_passes_and_in_bf16_four():
    """Clean, noise, adversarial and the anchor's; bf16's noise pass needs a float32 clean one to compare with."""
    found = kernels("smart-bregman", "fp32", "sst")
    assert found["attention_fwd"] == 4 * LAYERS and found["attention_bwd keys"] == 3 * LAYERS
    assert found["symmetric_kl_fwd"] == found["symmetric_kl_bwd"] == 3  # inner, outer, the anchor's
    assert found["perturb_noise"] == found["perturb_step"] == 1
    # The noise pass wants no weight's gradient: products of layers, head and means, forward, back to inputs, weights.
    linears = 4 * LAYERS + 2
    assert found["product"] == (4 + 3 + 2) * linears + 4 + 4 + 3
    assert found["sum_partials"] == 2 * (3 * LAYERS + 1)
    low = kernels("smart-bregman", "bf16", "sst")
    assert low["attention_fwd"] == 5 * LAYERS
    assert low["attention_bwd keys"] == 3 * LAYERS and low["attention_bwd queries"] == LAYERS  # whole but in float32
    assert low["pack_weight"] == linears + 1  # the anchor's, and its pooler's; AdamW writes the model's
    assert low["linear_bf16 product"] == 3 * (linears + 1) + 2 * 2 * linears
    assert low["adamw update"] == 1


def test_qqp_in_bf16_has_sentences_beyond_a_block_of_keys():
    assert kernels("baseline", "bf16", "qqp")["attention_bwd queries"] == LAYERS


def test_other_tasks_of_smart_bregman_are_the_baselines_but_for_the_anchor():
    """SMART and the Bregman term are on SST alone; the anchor follows every step."""
    assert kernels("smart-bregman", "fp32", "sts") == kernels("baseline", "fp32", "sts")
    with_anchor, without = (first("adamw_step", r, task="sts") for r in ("smart-bregman", "baseline"))
    more = [a - b for a, b in zip(moved(with_anchor), moved(without), strict=True)]
    assert more[0] == 0 and more[1] > 8 * WORDS * C


def check_product() -> None:
    (kernel,) = launches(product(150, 768, 3072), ())
    assert (kernel.bytes, kernel.operations, kernel.rate) == (11_741_184, 707_788_800, "fp32")
    (kernel,) = launches(product(150, 768, 3072)._replace(arguments={
        "self": matrix(150, 768, torch.bfloat16), "mat2": matrix(768, 3072, torch.bfloat16)}), ())  # fmt: skip
    assert (kernel.bytes, kernel.rate) == (6_792_192, "bf16")


def check_kernels() -> None:
    table, statistics = ROWS * C * 4, 2 * ROWS * 4
    forward = first("add_layer_norm_fwd")
    assert moved(forward) == [4 * table + 3 * C * 4 + statistics + 16] == [988_944]
    full = next(c for c in calls("baseline", "fp32", "sst") if c.name == "smartcs::add_layer_norm_bwd")
    partial = 3 * 20 * C * 4
    assert moved(full) == [4 * table + statistics + C * 4 + 16 + partial, partial + 3 * C * 4] == [1_078_032, 96_768]
    (attention,) = launches(first("attention_fwd"), filled_lengths("sst"))
    squares = sum(n * n for n in (34, 21, 17, 39, 12, 27, 10))
    assert attention.bytes == 4 * table + ROWS * HEADS * 4 + 8 * 4 + 16 == 990_768
    assert attention.operations == 4 * C * squares == 6_727_680
    layer = 3 * C * (C + 1) + C * (C + 1) + INNER * (C + 1) + C * (INNER + 1) + 4 * C
    parameters = (WORDS + 512 + 2) * C + 2 * C + LAYERS * layer + C * (C + 1) + C + 1
    begin, update = moved(first("adamw_step", "baseline", task="sts"))
    assert (begin, update) == (4 * parameters, 28 * parameters)


def test_bytes_and_operations_are_those_counted_by_hand():
    check_product()
    check_kernels()


def test_a_tensor_counted_twice_is_noticed(monkeypatch):
    real = Spec.bytes.fget
    assert real is not None
    monkeypatch.setattr(Spec, "bytes", property(lambda spec: real(spec) * (2 if spec.shape == (150, 3072) else 1)))
    with pytest.raises(AssertionError):
        check_product()
    monkeypatch.setattr(Spec, "bytes", property(lambda spec: real(spec) * (2 if spec.shape == (ROWS, C) else 1)))
    with pytest.raises(AssertionError):
        check_kernels()


def test_expanded_tensors_count_once():
    assert Spec((4, 8), (0, 1), torch.float32).bytes == 32
    assert Spec((4, 0), (0, 1), torch.float32).bytes == 0


def test_an_operator_without_a_formula_is_an_error():
    unknown = Call("aten::fft_fft", {"self": matrix(3, 4)}, [matrix(3, 4)], False, ())
    with pytest.raises(UnknownOperator, match=r"aten::fft_fft\(\(3, 4\),\)"):
        launches(unknown, ())


def test_eager_calls_are_counted_alike():
    """LayerNorm of a sum with dropout: dropout (in, out, mask), add (2 in, out), norm (in, out, statistics)."""
    table = ROWS * C * 4
    with fake():
        found = {kernel.kernel: kernel.bytes for kernel in replaced(first("add_layer_norm_fwd"), LENGTHS["sst"])}
        sdpa = replaced(first("attention_fwd"), LENGTHS["sst"])
        optimizer = replaced(first("adamw_step"), LENGTHS["sst"])
    assert found == {
        "native_dropout": 2 * table + ROWS * C,
        "add": 3 * table,
        "native_layer_norm": 2 * table + 2 * C * 4 + 2 * ROWS * 4,
    }
    padded = 6 * 39 * C * 4
    assert [kernel.bytes for kernel in sdpa] == [4 * padded + 6 * HEADS * 39 * 4 + 6 * 39 * 4]
    # norm 1, clip 2, lerp 3, mul 2, addcmul 3 (the gradient is two of its arguments: 4), sqrt, div and add 2 each,
    # addcdiv 4: in units of a gradient; and 3 of an anchor.
    call = first("adamw_step")
    grads, anchors = (sum(s.bytes for s in call.specs(name)) for name in ("grads", "anchors"))
    assert sum(kernel.bytes for kernel in optimizer) == pytest.approx(22 * grads + 3 * anchors, rel=1e-3)


def test_launch_share():
    assert gpu_model.launch_share(1e-3, 100, 5) == 0  # 0.5 ms of launches behind 1 ms of kernels
    assert gpu_model.launch_share(1e-3, 800, 5) == pytest.approx(0.75)
    card = gpu_model.Card("card", 1e12, 100e12, 10e12)
    (kernel,) = launches(product(1000, 1000, 1000), ())
    assert gpu_model.device_seconds(card, [kernel]) == pytest.approx(2e9 / 10e12)
    assert gpu_model.device_seconds(card, [kernel._replace(bytes=10, operations=0)]) == gpu_model.FLOOR


def test_constants_are_the_kernels():
    def constant(path: str, pattern: str) -> int:
        found = re.search(pattern, (ROOT / path).read_text())
        assert found is not None, (path, pattern)
        return int(found.group(1))

    assert constant("kernels/rows.py", r"ROWS_PER_PARTIAL = (\d+)") == ROWS_PER_PARTIAL
    assert constant("kernels/row_sums.py", r"PIECE = (\d+)") == PIECE
    assert constant("csrc/cuda/adamw.cuh", r"kAdamWTensors = (\d+)") == ADAMW_TENSORS
    assert constant("kernels/attention.py", r"key_blocks <= 1 and tile.BLOCK_K >= (\d+)") == WHOLE_KEYS
    assert constant("kernels/tiles.py", r"2: \{.*64: Blocks\(\d+, (\d+), \d+\), 128") == WHOLE_KEYS
