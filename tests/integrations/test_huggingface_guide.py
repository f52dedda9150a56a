"""The code in docs/huggingface.md runs as it stands, but for the weights, which are tiny and random."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast, RobertaConfig

from smartcs.data.sample import sample_tokenizer
from smartcs.integrations.transformers import SmartArguments

GUIDE = (Path(__file__).parents[2] / "docs" / "huggingface.md").read_text(encoding="utf-8")
PARTS = {f"## {part.splitlines()[0]}": part for part in GUIDE.split("\n## ")[1:]}


@pytest.fixture
def without_download(monkeypatch, encoder, tmp_path):
    """`from_pretrained` gives a tiny RoBERTa and the tokenizer of the sample data; files land in a new folder."""
    fast = sample_tokenizer()
    ids = {name: fast.token_to_id(token) for name, token in (("pad", "[PAD]"), ("bos", "[CLS]"), ("eos", "[SEP]"))}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{name}_token": fast.id_to_token(value) for name, value in ids.items()},
    )

    def tiny(name, **settings):
        assert name == "roberta-base"
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        special = {f"{name}_token_id": value for name, value in ids.items()}
        config = RobertaConfig(vocab_size=fast.get_vocab_size(), **shape, **special, **settings)
        return AutoModelForSequenceClassification.from_config(config)

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", tiny)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda name: tokenizer)
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning")
@pytest.mark.usefixtures("without_download")
def test_every_snippet_runs(tmp_path, capsys):
    snippets = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    assert len(snippets) == 4
    names = {}
    for snippet in snippets:
        exec(compile(snippet, "docs/huggingface.md", "exec"), names)
    assert set(torch.load(tmp_path / "checkpoint.pt")) == {"model", "smart"}
    assert names["smart"].statistics()["smart"]["steps"] == 4
    logs = [log for log in names["trainer"].state.log_history if "loss" in log]
    assert len(logs) == 4
    documented = set(re.findall(r"`((?:smart|bregman)_\w+)`", PARTS["## With the Trainer"]))
    assert documented == {name for name in logs[0] if name.startswith(("smart_", "bregman_"))}
    size, alignment = map(float, capsys.readouterr().out.splitlines()[-1].split())
    assert size == pytest.approx(1e-2, rel=1e-3)
    assert alignment > 0.9


def test_the_table_of_settings_is_complete():
    rows = re.findall(r"^\| (`[^|]*`) \| ([^|]*) \|", PARTS["## Settings"], re.MULTILINE)
    documented = {}
    for names, defaults in rows:
        names = re.findall(r"`(\w+)`", names)
        values = defaults.split(", ") if ", " in defaults else [defaults] * len(names)
        documented |= dict(zip(names, values, strict=True))
    actual = {name: getattr(SmartArguments(), name) for name in SmartArguments.__dataclass_fields__}
    assert documented.pop("problem_type").startswith("from the config") and actual.pop("problem_type") is None
    assert {name: eval(value) for name, value in documented.items()} == actual
