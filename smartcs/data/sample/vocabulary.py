"""A tokenizer for a BERT that starts from nothing on the sample."""

from __future__ import annotations

import string

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from smartcs.data.sample.build import sample_folder

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def sample_vocabulary() -> list[str]:
    """The word pieces, position = id: special tokens, characters, and the words of the training split.

    Every lowercase letter and digit is there as a piece of its own and as a continuation (``##a``), so any
    English word can be spelled; only other scripts become ``[UNK]``.
    """
    normalizer = BertNormalizer(lowercase=True)
    words: set[str] = set()
    for examples in sample_folder().train.values():
        for text in examples.texts:
            for sentence in (text,) if isinstance(text, str) else text:
                pieces = BertPreTokenizer().pre_tokenize_str(normalizer.normalize_str(sentence))
                words.update(piece for piece, _ in pieces)
    characters = string.ascii_lowercase + string.digits
    alphabet = [*string.punctuation, *characters, *(f"##{character}" for character in characters)]
    return [*SPECIAL_TOKENS, *alphabet, *sorted(words - set(alphabet))]


def sample_tokenizer() -> Tokenizer:
    """An uncased WordPiece tokenizer over `sample_vocabulary`, with BERT's rules.

    One sentence becomes ``[CLS] a [SEP]``, a pair ``[CLS] a [SEP] b [SEP]`` with token types 0 and 1.
    """
    vocabulary = {piece: number for number, piece in enumerate(sample_vocabulary())}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.decoder = WordPieceDecoder()
    return tokenizer
