"""MultitaskBert: the heads of METHOD's section 1, text in, saving and loading."""

import gc
import json
import threading

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from small_models import small_multitask as model
from transformers import BertModel as TransformersBert

import smartcs
from smartcs import DropoutKey, HeadConfig, MultitaskBert
from smartcs.model.files import CheckpointError, ModelSourceError

SENTENCES = ["a fine film", "a dull, slow and endless film", "the soup was good"]
PAIRS = [("a fine film", "a good film"), ("the soup was cold", "the train was late")]


def batch_of(m: MultitaskBert, task: str, texts):
    return next(m._batches(task, texts, batch_tokens=2048))


def test_heads_compute_what_the_method_says():
    m = model()
    heads = m.heads.state_dict()

    def linear(name, x):
        return x @ heads[f"{name}.weight"].T + heads[f"{name}.bias"]

    single, pairs = batch_of(m, "sst", SENTENCES), batch_of(m, "qqp", PAIRS)
    pooled = m.bert(single).pooled
    torch.testing.assert_close(m.sentiment_logits(single), linear("sst_output", linear("sst_hidden", pooled).relu()))
    shared = linear("pair_shared", m.bert(pairs).pooled).relu()
    torch.testing.assert_close(m.paraphrase_logit(pairs), linear("qqp_output", shared)[:, 0])
    torch.testing.assert_close(m.similarity_score(pairs), linear("sts_output", shared)[:, 0])


def test_relu_logits_is_the_other_reading():
    m = model(sst_head="relu_logits")
    assert "sst_hidden" not in m.heads
    logits = m.sentiment_logits(batch_of(m, "sst", SENTENCES))
    assert logits.shape == (3, 5) and (logits >= 0).all() and (logits == 0).any()


def test_pairs_go_in_as_one_sequence_with_two_token_types():
    m = model()
    packed = batch_of(m, "sts", PAIRS[:1])
    ids = m.tokenizer.encode("a fine film", "a good film").ids
    assert packed.input_ids.tolist() == ids
    assert set(packed.token_type_ids.tolist()) == {0, 1}


@pytest.mark.parametrize("task", ["sst", "qqp", "sts"])
def test_head_dropout_is_keyed_and_only_in_training(task):
    plain, dropping = model(), model(dropout=0.5)
    texts = SENTENCES if task == "sst" else PAIRS
    packed = batch_of(plain, task, texts)
    torch.testing.assert_close(plain(task, packed), dropping(task, packed))
    for m in (plain, dropping):
        m.train()
    key = DropoutKey(1, 2)
    assert torch.equal(dropping(task, packed, key), dropping(task, packed, key))
    assert not torch.equal(dropping(task, packed, key), plain(task, packed, key))


def test_text_in_numbers_out():
    m = model()
    probabilities = m.sentiment(SENTENCES)
    assert probabilities.shape == (3, 5)
    torch.testing.assert_close(probabilities.sum(dim=-1), torch.ones(3))
    paraphrase = m.paraphrase(PAIRS)
    assert paraphrase.shape == (2,) and ((paraphrase > 0) & (paraphrase < 1)).all()
    assert m.similarity(PAIRS).shape == (2,)
    assert m.embed(SENTENCES).shape == (3, 32)
    torch.testing.assert_close(m.embed(SENTENCES), m.bert(batch_of(m, "sst", SENTENCES)).pooled)


def test_predictions_do_not_depend_on_the_batch_size_or_the_mode():
    m = model()
    expected = m.sentiment(SENTENCES)
    m.train()
    torch.testing.assert_close(m.sentiment(SENTENCES, batch_tokens=1), expected)
    assert m.training


def test_many_texts_are_read_in_chunks_and_come_back_in_order(monkeypatch):
    """Through chunks that end in the middle, texts of very different lengths and none too long: as one by one."""
    m, sizes = model(), []
    monkeypatch.setattr("smartcs.model.multitask._CHUNK", 7)
    texts = [" ".join(["a fine film"] * (1 + number % 9)) for number in range(40)]
    texts[11] = "rain " * 200  # cut to the model's 64 positions
    forward = m.bert.forward
    monkeypatch.setattr(m.bert, "forward", lambda batch, *a, **k: sizes.append(batch.num_tokens) or forward(batch))
    together = m.embed(texts, batch_tokens=40)
    assert len(sizes) > 6 and max(sizes) <= 40 + 64
    torch.testing.assert_close(together, torch.cat([m.embed([text]) for text in texts]))
    assert [thread.name for thread in threading.enumerate() if "prefetch" in thread.name] == []


def test_an_error_while_encoding_leaves_no_thread(monkeypatch):
    m = model()
    monkeypatch.setattr(m.bert, "forward", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        m.embed(["a fine film"] * 5000)
    gc.collect()
    assert [thread.name for thread in threading.enumerate() if "prefetch" in thread.name] == []


def test_no_texts_give_no_rows():
    m = model()
    assert m.sentiment([]).shape == (0, 5) and m.paraphrase([]).shape == (0,)
    assert m.embed([]).shape == (0, 32)


def test_a_single_string_is_not_a_list_of_letters():
    with pytest.raises(TypeError, match="got one string"):
        model().sentiment("a fine film")


def test_text_needs_a_tokenizer():
    m = MultitaskBert(model().bert)
    with pytest.raises(ValueError, match="tokenizer is None"):
        m.embed(SENTENCES)


def test_saved_models_come_back_the_same(tmp_path):
    m = model(sst_head="relu_logits", dropout=0.25)
    m.save_pretrained(tmp_path / "run")
    again = MultitaskBert.from_pretrained(tmp_path / "run")
    assert again.head_config == m.head_config and again.bert.config == m.bert.config
    assert not again.training
    assert torch.equal(again.sentiment(SENTENCES), m.sentiment(SENTENCES))
    assert torch.equal(again.similarity(PAIRS), m.similarity(PAIRS))
    # The encoder is an ordinary Hugging Face checkpoint.
    _, info = TransformersBert.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_an_encoder_without_heads_is_named_as_such(tmp_path):
    m = model()
    m.bert.save_pretrained(tmp_path, m.tokenizer)
    with pytest.raises(CheckpointError, match=f"an encoder without task heads; .* --model {tmp_path}"):
        MultitaskBert.from_pretrained(tmp_path)
    with pytest.raises(ModelSourceError):
        MultitaskBert.from_pretrained(tmp_path / "nothing")


def test_damaged_heads_are_refused(tmp_path):
    model().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "heads.safetensors")
    save_file({**tensors, "sst_output.bias": torch.zeros(4)}, tmp_path / "heads.safetensors")
    with pytest.raises(CheckpointError, match=r"sst_output.bias: got \(4,\), expected \(5,\)"):
        MultitaskBert.from_pretrained(tmp_path)
    save_file({k: v for k, v in tensors.items() if k != "pair_shared.bias"}, tmp_path / "heads.safetensors")
    with pytest.raises(CheckpointError, match="pair_shared.bias: got no such tensor"):
        MultitaskBert.from_pretrained(tmp_path)
    (tmp_path / "smartcs.json").write_text(json.dumps({"format": 1, "heads": {"droput": 0.1}}))
    with pytest.raises(CheckpointError, match="unknown keys droput"):
        MultitaskBert.from_pretrained(tmp_path)


@pytest.mark.parametrize(("field", "value"), [("sst_head", "tanh"), ("dropout", 1.0)])
def test_head_config_errors_name_the_field(field, value):
    with pytest.raises(ValueError, match=f"HeadConfig: {field} is"):
        HeadConfig(**{field: value})


def test_backends_agree_on_every_task_with_dropout():
    m = model(dropout=0.3).train().double()
    for task, texts in (("sst", SENTENCES), ("qqp", PAIRS), ("sts", PAIRS)):
        packed = batch_of(m, task, texts)
        outputs = []
        for name in ("reference", "fused"):
            with smartcs.backend(name):
                outputs.append(m(task, packed, DropoutKey(3, 4)))
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-11, atol=1e-11)


def test_embed_has_no_dropout_and_leaves_every_mode_as_it_was():
    m = model()
    expected = m.embed(SENTENCES)
    m.train()
    m.bert.eval()
    m.bert.layers[0].train()
    modes = [module.training for module in m.modules()]
    assert torch.equal(m.embed(SENTENCES), expected)
    with pytest.raises(TypeError):
        m.embed([1])
    assert [module.training for module in m.modules()] == modes


@pytest.mark.parametrize(
    ("call", "texts", "message"),
    [
        ("sentiment", ["a", 5], "text 1 is 5, expected a string"),
        ("embed", [("a", "b")], r"text 0 is \('a', 'b'\), expected a string"),
        ("paraphrase", [("a", "b"), "ab"], "text 1 is 'ab', expected a tuple or list of two strings"),
        ("similarity", [("a", "b", "c")], "text 0 is .* expected a tuple or list of two strings"),
        ("similarity", [("a", None)], "text 0 is .*None"),
    ],
)
def test_texts_of_another_kind_are_named(call, texts, message):
    with pytest.raises(TypeError, match=message):
        getattr(model(), call)(texts)


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_batch_tokens_are_checked(size):
    with pytest.raises(ValueError, match=f"batch_tokens is {size}, expected an integer of at least 1"):
        model().similarity([], batch_tokens=size)


def test_pairs_may_be_lists():
    m = model()
    assert torch.equal(m.similarity([list(pair) for pair in PAIRS]), m.similarity(PAIRS))


def test_a_save_that_fails_leaves_the_old_encoder_and_heads(tmp_path, monkeypatch):
    m = model()
    m.save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(tensors, path, **options):
        if "heads" in path.name:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save_file(tensors, path, **options)

    monkeypatch.setattr("smartcs.model.files.save_file", full)
    with torch.no_grad():
        m.bert.embeddings.norm.weight.add_(1)
    with pytest.raises(OSError, match="No space left"):
        m.save_pretrained(tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("values", "message"),
    [({"format": 2, "heads": {}}, "format is 2, expected 1"), ({"format": 1, "heads": {}, "head": 1}, "keys head,")],
)
def test_other_formats_are_refused(tmp_path, values, message):
    model().save_pretrained(tmp_path)
    (tmp_path / "smartcs.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message):
        MultitaskBert.from_pretrained(tmp_path)
