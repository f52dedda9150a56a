"""The checkpoint's own WordPiece tokenizer, read from its files and written back.

The result is a plain `tokenizers.Tokenizer` whose ids equal those of `transformers.AutoTokenizer`.
It neither pads nor truncates: batches here are packed, and what is too long is the caller's choice.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from smartcs._reading import MIB, read_text
from smartcs.model.files import (
    CheckpointError,
    ModelSourceError,
    Writer,
    first_line,
    json_writer,
    read_json,
    text_writer,
    write_files,
)

_BYTES = 128 * MIB  # of tokenizer.json or vocab.txt; a vocabulary of a million words takes a third of it
_UNKNOWN = "\u4dc0"  # a hexagram of the I Ching
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "vocab.txt"}
# Classes whose vocab.txt means BERT's WordPiece; others (BertJapaneseTokenizer) split words elsewhere.
_WORDPIECE_CLASSES = (None, "BertTokenizer", "BertTokenizerFast")


def load_tokenizer(folder: str | os.PathLike[str], vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint folder, from tokenizer.json or else vocab.txt.

    Beside a vocab.txt, tokenizer_config.json may set do_lower_case (true), strip_accents (null:
    as do_lower_case) and tokenize_chinese_chars (true); in brackets what holds without it.

    Args:
        folder: a local folder, see `sources.resolve`.
        vocab_size: rows of the word embedding; every id must be below it.

    Raises:
        ModelSourceError: the folder has neither file.
        CheckpointError: a damaged file, a special token missing, an id outside `vocab_size`, or a
            template that is not `[CLS] a [SEP]` and `[CLS] a [SEP] b [SEP]` with token types 0/1.
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if path.is_file():
        with _refused(path):
            tokenizer = Tokenizer.from_str(read_text(path, _BYTES))
    else:
        path = folder / "vocab.txt"
        if not path.is_file():
            raise ModelSourceError(f"{folder}: no tokenizer; looked for tokenizer.json and vocab.txt")
        tokenizer = _from_vocab(path)
    with _refused(path):
        _check_special_tokens(tokenizer.get_vocab(), str(path))
        # Recognised inside text whichever file they come from, as AutoTokenizer does.
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        _check(tokenizer, str(path), vocab_size)
    return tokenizer


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Makes a CheckpointError of whatever a tokenizer's file raises."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # the Rust side raises bare Exception
        raise CheckpointError(f"{path}: not a tokenizer ({first_line(error)})") from None
    except BaseException as error:
        # A panic of the Rust side is no Exception, and its class cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{path}: not a tokenizer (the library gives up: {first_line(error)})") from None


def save_tokenizer(tokenizer: Tokenizer, folder: str | os.PathLike[str], model_max_length: int = 512) -> None:
    """Write tokenizer.json, tokenizer_config.json and, for BERT's WordPiece, vocab.txt.

    Args:
        folder: created if missing; each file appears whole or not at all.
        model_max_length: most tokens the model takes, which `AutoTokenizer` reports and truncates to.

    Raises:
        CheckpointError: a tokenizer that `load_tokenizer` would not accept; nothing is written then.
    """
    writers = tokenizer_writers(tokenizer, None, model_max_length)
    write_files(Path(folder), writers, remove=TOKENIZER_FILES - set(writers))


def tokenizer_writers(tokenizer: Tokenizer, vocab_size: int | None, model_max_length: int) -> dict[str, Writer]:
    """The files of a tokenizer for `files.write_files`, after the checks of `load_tokenizer`."""
    plain = Tokenizer.from_str(tokenizer.to_str())  # a copy: the caller's may pad and truncate
    plain.no_padding()
    plain.no_truncation()
    _check(plain, "tokenizer", vocab_size)
    state = json.loads(plain.to_str())
    config: dict[str, Any] = {
        "model_max_length": model_max_length,
        **{f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS},
    }
    vocab = state["model"].get("vocab")
    normalizer = state["normalizer"] or {}
    writers = {"tokenizer.json": text_writer(plain.to_str())}
    if state["model"]["type"] == "WordPiece" and normalizer.get("type") == "BertNormalizer":
        config["tokenizer_class"] = "BertTokenizer"
        config["do_lower_case"] = normalizer["lowercase"]
        config["strip_accents"] = normalizer["strip_accents"]
        config["tokenize_chinese_chars"] = normalizer["handle_chinese_chars"]
        words = sorted(vocab, key=vocab.__getitem__)
        if [vocab[word] for word in words] == list(range(len(words))):
            writers["vocab.txt"] = text_writer("".join(f"{word}\n" for word in words))
    else:
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    writers["tokenizer_config.json"] = json_writer(config)
    return writers


def _from_vocab(path: Path) -> Tokenizer:
    config_path = path.parent / "tokenizer_config.json"
    config = read_json(config_path) if config_path.is_file() else {}
    if config.get("tokenizer_class") not in _WORDPIECE_CLASSES:
        raise CheckpointError(
            f"{config_path}: tokenizer_class {config['tokenizer_class']!r} needs a tokenizer.json, "
            f"and {path.parent} has only vocab.txt"
        )
    flags: dict[str, bool | None] = {}
    for key, default in (("do_lower_case", True), ("tokenize_chinese_chars", True), ("strip_accents", None)):
        flags[key] = config.get(key, default)
        if not isinstance(flags[key], bool) and flags[key] is not default:
            raise CheckpointError(f"{config_path}: {key} is {flags[key]!r}, expected true or false")

    try:
        text = read_text(path, _BYTES)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    # As Python reads text: every line end is one.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
    vocab = {word: i for i, word in enumerate(lines)}
    _check_special_tokens(vocab, str(path))
    tokenizer = Tokenizer(WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(flags["tokenize_chinese_chars"]),
        strip_accents=flags["strip_accents"],
        lowercase=bool(flags["do_lower_case"]),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    return tokenizer


def _check_special_tokens(vocab: dict[str, int], source: str) -> None:
    missing = [token for token in SPECIAL_TOKENS if token not in vocab]
    if missing:
        raise CheckpointError(f"{source}: no {', '.join(missing)} among its {len(vocab)} tokens")


def _check(tokenizer: Tokenizer, source: str, vocab_size: int | None) -> None:
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    _check_special_tokens(vocab, source)
    largest = max(vocab.values())
    if vocab_size is not None and largest >= vocab_size:
        raise CheckpointError(f"{source}: token ids up to {largest}, but the model's vocab_size is {vocab_size}")
    try:
        tokenizer.encode(_UNKNOWN)
    except Exception as error:  # the Rust side raises bare Exception
        raise CheckpointError(f"{source}: cannot encode a word that it does not know ({first_line(error)})") from None
    # The template is tried, not read: it may be spelled in several ways.
    cls, sep, word = vocab["[CLS]"], vocab["[SEP]"], vocab["[MASK]"]
    for texts, ids, types in (
        (("[MASK]",), [cls, word, sep], [0, 0, 0]),
        (("[MASK]", "[MASK]"), [cls, word, sep, word, sep], [0, 0, 0, 1, 1]),
    ):
        encoding = tokenizer.encode(*texts)
        if encoding.ids != ids or encoding.type_ids != types:
            raise CheckpointError(
                f"{source}: encodes {' and '.join(texts)} as {encoding.tokens} with token types "
                f"{encoding.type_ids}, expected {[tokenizer.id_to_token(i) for i in ids]} with {types}"
            )
