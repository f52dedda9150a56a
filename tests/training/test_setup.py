"""From a configuration to data and a model."""

import warnings

import pytest
import torch

from smartcs import BertModel, DropoutKey
from smartcs.data.examples import DataError
from smartcs.data.formats import load_folder
from smartcs.data.sample import sample_folder
from smartcs.model.weights import load_checkpoint
from smartcs.training.setup import build_model, describe_model, encode_split, load_data


def test_data_is_the_sample_or_a_folder(data_folder):
    assert load_data("sample") is sample_folder()
    assert load_data(str(data_folder)).train["sst"].texts == load_folder(data_folder).train["sst"].texts


def test_encoder_weights_are_the_checkpoints(config, encoder_folder):
    model = build_model(config(encoder_dropout=0.3))
    expected = load_checkpoint(encoder_folder).state_dict
    for name, value in model.bert.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert model.training and model.bert.config.hidden_dropout_prob == 0.3
    unchanged = build_model(config()).bert.config
    assert unchanged == BertModel.from_pretrained(encoder_folder).config


def test_heads_follow_from_the_seed(config):
    first, same, other = (build_model(config(seed=seed)).heads.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["sst_output.weight"], other["sst_output.weight"])


def test_encoder_dropout_reaches_every_layer(config):
    model = build_model(config(encoder_dropout=0.0))
    data = encode_split(model, load_data(config().data).train, 64)
    batch, _ = data["qqp"].batch(range(8))
    outputs = [model.paraphrase_logit(batch, DropoutKey(0, step)) for step in (0, 1)]
    assert torch.equal(*outputs)
    model = build_model(config(encoder_dropout=0.1))
    assert not torch.equal(*(model.paraphrase_logit(batch, DropoutKey(0, step)) for step in (0, 1)))


def test_auto_means_the_package_whatever_the_current_directory_holds(config, encoder_folder, tmp_path, monkeypatch):
    for module in ("setup", "recipes"):
        monkeypatch.setattr(f"smartcs.training.{module}.bundled_minilm", lambda: encoder_folder)
    monkeypatch.chdir(tmp_path)
    build_model(config(model="small")).save_pretrained(tmp_path / "minilm")
    assert build_model(config(model="auto")).bert.config.hidden_size == 32
    assert build_model(config(model="minilm")).bert.config.hidden_size == 128, "a name that is typed is a path first"


@pytest.mark.parametrize("pooling", ["auto", "cls"])
def test_small_model(config, pooling):
    model = build_model(config(model="small", pooling=pooling))
    assert model.bert.config.pooling == {"auto": "mean", "cls": "cls"}[pooling]
    assert describe_model(model, "small").startswith("small: 2 layers, hidden size 128, 0.")


def test_small_model_starts_with_words_that_match(config):
    """Shared words must show in the first layer's attention: twice as much as chance between two words."""
    bert = build_model(config(model="small")).bert.eval()
    query, key, _ = bert.layers[0].qkv.weight.chunk(3)
    assert torch.equal(query, key)
    embedded = torch.nn.functional.layer_norm(bert.embeddings.word.weight[200:232], (128,))
    scores = (embedded @ query.T) @ (embedded @ key.T).T
    own, others = scores.diagonal(), scores[~torch.eye(32, dtype=torch.bool)]
    assert own.min() > others.abs().max()


def test_length_is_limited_by_the_positions(config, encoder_folder, tmp_path):
    model = build_model(config())
    data = load_data(config().data)
    assert encode_split(model, data.train, 512)["qqp"].truncated == ()
    model.bert.config = type(model.bert.config)(**{**vars(model.bert.config), "max_position_embeddings": 12})
    encoded = encode_split(model, data.train, 512)
    assert encoded["qqp"].lengths.max() == 12 and len(encoded["qqp"].truncated) == 48
    with pytest.raises(DataError, match="over 12 word pieces"):
        encode_split(model, data.train, 512, strict=True)
    assert list(encoded) == ["sst", "qqp", "sts"]
    assert list(encode_split(model, {"sts": data.dev["sts"]}, 512)) == ["sts"]


def test_building_is_silent(config):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_model(config())
