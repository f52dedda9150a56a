"""How far a kernel's result may lie from the truth: the only tolerances of the op tests.

R is the reference in float64 on the inputs as rounded to the tested dtype, B the reference computed in that dtype, K
the kernel's result, u the spacing of the dtype above 1 and s = max |R|. K passes when

    max |K - R| <= m max |B - R| + c u s    and    ||K - R|| <= m ||B - R|| + c u ||R||    (2-norms)

so the allowance follows shape, scale and dtype by itself: a kernel may be a few times worse than plain PyTorch in the
same dtype, plus a few roundings (B can be exact by luck). In float64 both norms must agree to 1e-10: B equals R there,
and gradients are held to it beside their gradcheck, which alone sees only errors above 1e-5.

The method is flash-attention's (tests/test_flash_attn.py), with float64 as the truth so that float32 is tested too.
"""

from dataclasses import dataclass
from typing import Literal

import evidence
import torch
from torch import Tensor

Kind = Literal["forward", "activation gradient", "summed gradient", "statistic"]

# (m, c) per kind. Beside each the largest share of its budget that any case of the suite uses, in float32 and in
# bfloat16, over all three instruction sets; every test run prints its own.
MULTIPLIERS: dict[Kind, tuple[float, float]] = {
    "forward": (2, 2),  # 75 %, 26 %
    "activation gradient": (3, 4),  # 54 %, 9 %
    "summed gradient": (3, 8),  # summed over rows: 59 %, 12 %
    "statistic": (2, 2),  # mean, rstd, log-sum-exp, scalar loss; float32 for bfloat16 data as well: 67 %
}
FLOAT64_TOLERANCE = 1e-10
# symmetric_kl at logit differences of 1e-6, value and gradients, per row: what the naive forms miss by far.
NEAR_EQUAL_TOLERANCE = 1e-3
# perturb_noise against the formula in float64 rounded once, per element, in units of its size times the dtype's spacing
# above 1: among 10^8 elements at most 2.9 in float32, 2.8 in float64, 1 in bfloat16. Where the cosine of a quarter turn
# is 0, the formula's is 6e-17.
NOISE_TOLERANCE = 4
NOISE_ZERO = 1e-15


@dataclass(frozen=True)
class Norm:
    """One of the two comparisons of a check."""

    name: str
    error: float
    allowed: float

    @property
    def used(self) -> float:
        """The share of the allowance used: at most 1 to pass."""
        return self.error / self.allowed if self.allowed > 0 else (float("inf") if self.error > 0 else 0.0)


class BudgetExceeded(AssertionError):
    """A result lies further from the truth than its budget allows."""


# Largest share used so far, by (kind, dtype): printed at the end of a test run.
observed: dict[tuple[str, str], float] = {}


def check(kernel: Tensor, reference64: Tensor, fallback: Tensor, kind: Kind, name: str = "result") -> float:
    """Holds ``kernel`` (K) to the budget given by ``reference64`` (R) and ``fallback`` (B).

    Returns:
        The larger of the two shares of the budget used.

    Raises:
        BudgetExceeded: an error is over its budget, or K is not finite exactly where R is.
    """
    used, message = _measure(kernel, reference64, fallback, kind, name)
    if message:
        raise BudgetExceeded(message)
    key = (kind, str(kernel.dtype).removeprefix("torch."))
    observed[key] = max(observed.get(key, 0.0), used)
    evidence.note(name, kernel.dtype, used)
    return used


def _measure(kernel: Tensor, reference64: Tensor, fallback: Tensor, kind: Kind, name: str) -> tuple[float, str]:
    assert reference64.dtype == torch.float64, f"{name}: the reference is {reference64.dtype}, not float64"
    assert kernel.dtype == fallback.dtype, f"{name}: kernel {kernel.dtype} against fallback {fallback.dtype}"
    if kind == "statistic":
        assert kernel.dtype in (torch.float32, torch.float64), f"{name}: a statistic in {kernel.dtype}"
    if not kernel.shape == reference64.shape == fallback.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (kernel, reference64, fallback))
        return float("inf"), f"{name}: shapes differ (kernel, reference, fallback): {shapes}"
    k, r, b = (x.detach().double() for x in (kernel, reference64, fallback))
    finite = r.isfinite()
    if not torch.equal(k[~finite].nan_to_num(nan=0.5), r[~finite].nan_to_num(nan=0.5)):
        return float("inf"), f"{name}: differs from the reference where that is not finite"
    if not k[finite].isfinite().all():
        return float("inf"), f"{name}: {int((~k[finite].isfinite()).sum())} elements are not finite, the reference is"
    k, r, b = k[finite], r[finite], b[finite]
    if k.numel() == 0:
        return 0.0, ""
    norms = [_norm("max error", torch.inf, k, r, b, kernel.dtype, kind)]
    norms.append(_norm("L2 error", 2, k, r, b, kernel.dtype, kind))
    used = max(norm.used for norm in norms)
    if used <= 1:
        return used, ""
    details = "; ".join(f"{n.name} {n.error:.3e}, allowed {n.allowed:.3e} ({n.used:.0%})" for n in norms)
    worst = int((k - r).abs().argmax())
    return used, (
        f"{name}: {kind} in {kernel.dtype} uses {used:.0%} of its error budget: {details}; "
        f"largest at element {worst} of the finite ones: got {k[worst]:.9g}, expected {r[worst]:.9g}"
    )


def _norm(name: str, order: float, k: Tensor, r: Tensor, b: Tensor, dtype: torch.dtype, kind: Kind) -> Norm:
    size = float(torch.linalg.vector_norm(r, order))
    error = float(torch.linalg.vector_norm(k - r, order))
    if dtype == torch.float64:
        return Norm(name, error, FLOAT64_TOLERANCE * size)
    m, c = MULTIPLIERS[kind]
    fallback_error = float(torch.linalg.vector_norm(b - r, order))
    return Norm(name, error, m * fallback_error + c * torch.finfo(dtype).eps * size)
