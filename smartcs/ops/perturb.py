"""perturb: SMART's noise, and one step of its search for the worst perturbation, on packed rows.

``perturb_noise`` draws v from a normal distribution: std * z, z from pairs of Philox words by Box and Muller,

    u1 = (floor(even / 2^8) + 1) / 2^24,  u2 = floor(odd / 2^8) / 2^24,  r = sqrt(-2 ln u1),
    z of the even word's column = r cos(2 pi u2),  z of the odd word's column = r sin(2 pi u2)

where even and odd are words 0 and 1, or words 2 and 3, of one counter (``smartcs.ops.random`` says which column a word
belongs to). u1 is never 0, and |z| <= 5.77.

``perturb`` moves v along the gradient g of the loss and back to a permitted size. Norms ||.||_p, p = inf, 2 or 1, are
over a group: a row (token level) or all rows of a sentence (sentence level).

    "mtdnn"      w = v + step_size g,              v' = w / (||w||_p + norm_eps); for p = 1, v' = sign(w)
    "projected"  w = v + step_size g / ||g||_inf,  v' = the point nearest to w with ||v'||_p <= radius
    "paper"      w = v + step_size g,              v' = w / ||g||_p

Where g = 0, "projected" takes v for w and "paper" keeps v. The nearest point is w clamped (inf), w scaled (2), or
sign(w) max(|w| - t, 0) with the t that makes the absolute values sum to radius (1).

Sources: "mtdnn" is the rule of the code published as mt-dnn (Liu et al. 2020), whose "l1" is a sign; "projected" is
algorithm 1 of Jiang et al. 2019 (SMART, arXiv 1911.03437), whose ascent divides by the largest |g| whatever p is, with
the l1 projection of Duchi et al. 2008; "paper" is figure 5 of the SMARTCS paper (Mabene, Khawaja and Clinton). Noise:
Box and Muller 1958.
"""

import math
from functools import partial
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from .backend import use_fused
from .checks import check_bounds, check_cu_seqlens, check_float, check_like, check_number, check_stream
from .random import compute_dtype, random_bits

Update = Literal["mtdnn", "projected", "paper"]
Norm = Literal["inf", "2", "1"]


def perturb_noise(like: Tensor, *, std: float, seed: int, stream: int, counter_offset: Tensor | None = None) -> Tensor:
    """Normal noise whose element (row, column) depends on seed, stream, row and column alone.

    Args:
        like: (N, C) with the wanted dtype and device; float32, float64 or bfloat16 (any floating dtype on the
            reference). Only its shape, dtype and device are used.
        std: The standard deviation, finite and >= 0.
        seed, stream, counter_offset: Name the noise, see ``smartcs.ops.random``.

    Returns:
        (N, C), dtype and device of like; without gradient.

    Raises:
        ValueError: like is not a matrix, or std, seed or stream is out of range.
        TypeError: like is not a floating-point tensor, or an option has the wrong type.
    """
    check_float("perturb_noise", "like", like)
    if like.dim() != 2:
        raise ValueError(f"perturb_noise: like has shape {tuple(like.shape)}, expected (N, C)")
    _check_finite("perturb_noise", "std", std, zero=True)
    check_stream("perturb_noise", seed, stream, counter_offset, like)
    if use_fused("perturb", like):
        return torch.ops.smartcs.perturb_noise(like.detach(), std, seed, stream, counter_offset)
    return perturb_noise_reference(like, std, seed, stream, counter_offset)


def perturb(
    v: Tensor,
    g: Tensor,
    *,
    update: Update = "mtdnn",
    norm: Norm = "inf",
    cu_seqlens: Tensor | None = None,
    step_size: float = 1e-3,
    radius: float = 1e-5,
    norm_eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """One adversarial step: v moved along g and brought back to size; the module docstring has the rules.

    A group whose v, g or result is not all finite gets v' = 0: no perturbation instead of a broken one.

    Args:
        v: (N, C), the perturbation so far; float32, float64 or bfloat16 (any floating dtype on the reference).
        g: Shape, dtype and device of v: the gradient of the loss to increase.
        update: The rule.
        norm: p, the norm of the rule and of the statistics.
        cu_seqlens: (B + 1,) int32; sentence b owns rows cu_seqlens[b] to cu_seqlens[b + 1] - 1 and is one group.
            Starts at 0, ends at N, never decreases; empty sentences are allowed. None: every row is a group.
        step_size: How far to move, >= 0.
        radius: Size of the "projected" ball, > 0.
        norm_eps: Added to the norm of "mtdnn", > 0.

    Returns:
        v': (N, C), dtype of v, without gradient.
        statistics: (G, 3) for the G groups, float64 for float64 v, else float32: the cosine of v' and g (0 where
        either is 0), ||v'||_p, and 1 where v, g and v' were all finite, else 0.

    Raises:
        ValueError: a shape or device is wrong, an option is unknown or out of range, cu_seqlens is not as described.
        TypeError: a tensor is not floating point or not of v's dtype, or cu_seqlens not int32.
    """
    check_float("perturb", "v", v)
    if v.dim() != 2 or v.shape[1] == 0:
        raise ValueError(f"perturb: v has shape {tuple(v.shape)}, expected (N, C) with C > 0")
    check_like("perturb", "g", g, v.shape, v, "v")
    for name, got, known in (("update", update, get_args(Update)), ("norm", norm, get_args(Norm))):
        if got not in known:
            raise ValueError(f"perturb: {name} is {got!r}, expected one of {', '.join(known)}")
    if cu_seqlens is not None:
        check_cu_seqlens("perturb", cu_seqlens, v, "v")
    _check_finite("perturb", "step_size", step_size, zero=True)
    _check_finite("perturb", "radius", radius)
    _check_finite("perturb", "norm_eps", norm_eps)
    v, g = v.detach(), g.detach()
    if not use_fused("perturb", v):
        return perturb_reference(v, g, cu_seqlens, update, norm, step_size, radius, norm_eps)
    offsets = None if cu_seqlens is None else cu_seqlens.contiguous()
    rule = update, norm, step_size, radius, norm_eps
    return torch.ops.smartcs.perturb_step(v.contiguous(), g.contiguous(), offsets, *rule)


def _check_finite(op: str, name: str, value: float, zero: bool = False) -> None:
    check_number(op, name, value)
    if not (0 < value < math.inf or (zero and value == 0)):
        raise ValueError(f"{op}: {name} is {value}, expected a finite number {'>=' if zero else '>'} 0")


def perturb_noise_reference(
    like: Tensor, std: float, seed: int, stream: int, counter_offset: Tensor | None = None
) -> Tensor:
    """The formulas in float64, rounded once."""
    rows, columns = like.shape
    blocks = (columns + 63) // 64
    row_numbers = torch.arange(rows, dtype=torch.int64, device=like.device)
    bits = random_bits(row_numbers, blocks * 64, seed=seed, stream=stream, counter_offset=counter_offset)
    # In a block of 64 columns: two pairs of words, each word with its 16 columns.
    even, odd = (bits >> 8).double().reshape(rows, blocks, 2, 2, 16).unbind(3)
    r = (-2.0 * ((even + 1) * 2.0**-24).log()).sqrt()
    angle = odd * (2.0 * math.pi * 2.0**-24)
    z = torch.stack([r * angle.cos(), r * angle.sin()], dim=3).reshape(rows, blocks * 64)
    return (std * z[:, :columns]).to(like.dtype)


def perturb_reference(
    v: Tensor,
    g: Tensor,
    cu_seqlens: Tensor | None,
    update: Update,
    norm: Norm,
    step_size: float,
    radius: float,
    norm_eps: float,
) -> tuple[Tensor, Tensor]:
    """The rules in plain PyTorch; norms and cosines are summed in float64, where no square vanishes."""
    rule = partial(_step, update=update, norm=norm, step_size=step_size, radius=radius, norm_eps=norm_eps)
    if cu_seqlens is None:
        return rule(v, g)
    bounds = cu_seqlens.tolist()
    check_bounds("perturb", bounds, v.shape[0], "v")
    moved = torch.empty_like(v)
    statistics = v.new_tensor([0.0, 0.0, 1.0], dtype=compute_dtype(v)).repeat(len(bounds) - 1, 1)
    for b, (begin, end) in enumerate(pairwise(bounds)):
        if begin < end:
            result, statistics[b : b + 1] = rule(v[begin:end].reshape(1, -1), g[begin:end].reshape(1, -1))
            moved[begin:end] = result.reshape(end - begin, -1)
    return moved, statistics


def _step(
    v: Tensor, g: Tensor, update: Update, norm: Norm, step_size: float, radius: float, norm_eps: float
) -> tuple[Tensor, Tensor]:
    """One step where every row is a group."""
    dtype = compute_dtype(v)
    x, d = v.to(dtype), g.to(dtype)
    if update == "mtdnn":
        w = x + step_size * d
        moved = w.sign() if norm == "1" else w / (_length(w, norm) + norm_eps).to(dtype)
    elif update == "projected":
        peak = _length(d, "inf")
        w = x + step_size * torch.where(peak > 0, d / peak.to(dtype), 0.0)
        moved = _project(w, norm, radius)
    else:
        length = _length(d, norm)
        moved = torch.where(length > 0, (x + step_size * d) / length.to(dtype), x)
    moved = moved.to(v.dtype)
    finite = (x.isfinite() & d.isfinite() & moved.isfinite()).all(dim=-1, keepdim=True)
    moved = torch.where(finite, moved, torch.zeros_like(moved))
    product = (moved.double() * d.double()).sum(dim=-1, keepdim=True)
    lengths = _length(moved, "2") * _length(d, "2")
    cosine = torch.where(finite & (lengths > 0), product / lengths, 0.0)
    statistics = torch.cat([cosine, _length(moved, norm), finite.double()], dim=-1)
    return moved, statistics.to(dtype)


def _length(x: Tensor, norm: Norm) -> Tensor:
    return torch.linalg.vector_norm(x.double(), float(norm), dim=-1, keepdim=True)


def _project(w: Tensor, norm: Norm, radius: float) -> Tensor:
    """The nearest point of the ball of this radius, per row."""
    if norm == "inf":
        return w.clamp(-radius, radius)
    length = _length(w, norm)
    if norm == "2":
        return torch.where(length > radius, w * (radius / length).to(w.dtype), w)
    size = w.double().abs()
    largest = size.sort(dim=-1, descending=True).values
    # The k largest remain positive for the largest k with k-th largest > t_k, and t_k is what makes them sum to radius.
    count = torch.arange(1, w.shape[-1] + 1, dtype=torch.float64, device=w.device)
    thresholds = (largest.cumsum(dim=-1) - radius) / count
    kept = (largest > thresholds).sum(dim=-1, keepdim=True).clamp(min=1)
    inside = (size - thresholds.gather(-1, kept - 1)).clamp(min=0).to(w.dtype).copysign(w)
    return torch.where(length > radius, inside, w)


def register_fakes() -> None:
    """Shapes and dtypes of the raw ops' results, for torch.compile and opcheck."""

    @torch.library.register_fake("smartcs::perturb_noise")
    def _(like, std, seed, stream, counter_offset=None):  # type: ignore[no-untyped-def]
        return like.new_empty(like.shape)

    @torch.library.register_fake("smartcs::perturb_step")
    def _(v, g, cu_seqlens, update, norm, step_size, radius, norm_eps):  # type: ignore[no-untyped-def]
        groups = v.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        return torch.empty_like(v), v.new_empty((groups, 3), dtype=compute_dtype(v))
