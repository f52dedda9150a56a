"""Siamese comparison: encode every sentence once with `MultitaskBert.embed`, then compare all with all."""

from torch import Tensor
from torch.nn import functional


def cosine_similarity(a: Tensor, b: Tensor) -> Tensor:
    """The cosines of all pairs of rows: one matrix product instead of one pass through BERT per pair.

    Source: Reimers & Gurevych 2019 (Sentence-BERT).

    Args:
        a: (N, C) embeddings, floating point.
        b: (M, C), dtype and device of a.

    Returns:
        (N, M) cosines in -1..1; 0 where a row is zero.

    Raises:
        ValueError: a or b is not a matrix, or they differ in C.
    """
    if a.dim() != 2:
        raise ValueError(f"cosine_similarity: a has shape {tuple(a.shape)}, expected (N, C)")
    if b.dim() != 2 or b.shape[1] != a.shape[1]:
        raise ValueError(f"cosine_similarity: b has shape {tuple(b.shape)}, expected (M, {a.shape[1]})")
    return functional.normalize(a, dim=1) @ functional.normalize(b, dim=1).T
