"""What the tests of SmartRegularizer share: a small network, and SMART's formulas written out in plain float64."""

import torch
import torch.nn.functional as F
from op_harness import normal, offsets
from torch import Tensor, nn

LENGTHS = [3, 1, 0, 4]  # an empty sentence among them
CHANNELS, HIDDEN, CLASSES = 5, 6, 3
UPDATES, NORMS, LEVELS = ("mtdnn", "projected", "paper"), ("inf", "2", "1"), ("token", "sentence")
LOSSES = ("categorical", "bernoulli", "squared")
# Large enough steps that every rule's every term matters, and the ball is left.
SETTINGS = {"step_size": 0.5, "radius": 0.05, "norm_eps": 1e-2}


class Network(nn.Module):
    """A per-token layer, the sum over each sentence, and an output layer: (T, C) to (B, K), or (B,) for one output."""

    def __init__(self, outputs: int, lengths=LENGTHS, dtype=torch.float64) -> None:
        super().__init__()
        self.first = nn.Linear(CHANNELS, HIDDEN, dtype=dtype)
        self.last = nn.Linear(HIDDEN, outputs, dtype=dtype)
        for seed, parameter in enumerate(self.parameters()):
            parameter.data.copy_(normal(*parameter.shape, seed=10 + seed))
        self.sentence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        self.sentences = len(lengths)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        pooled = hidden.new_zeros(self.sentences, HIDDEN).index_add(0, self.sentence, hidden)
        output = self.last(pooled)
        return output if output.shape[1] > 1 else output[:, 0]


def network_for(loss: str) -> Network:
    return Network(CLASSES if loss == "categorical" else 1)


def groups(level: str) -> list[slice]:
    bounds = offsets(LENGTHS).tolist()
    if level == "token":
        return [slice(t, t + 1) for t in range(sum(LENGTHS))]
    return [slice(begin, end) for begin, end in zip(bounds, bounds[1:], strict=False) if begin < end]


def plain_losses(a: Tensor, b: Tensor, loss: str, detach_targets: bool = False) -> Tensor:
    """l_s of each example, by logarithms of probabilities."""
    if loss == "squared":
        return (a - b) ** 2
    if loss == "bernoulli":
        a, b = (torch.stack([t, torch.zeros_like(t)], dim=-1) for t in (a, b))
    log_p, log_q = F.log_softmax(a, dim=-1), F.log_softmax(b, dim=-1)
    p, q = log_p.exp(), log_q.exp()
    if not detach_targets:
        return ((p - q) * (log_p - log_q)).sum(-1)
    p, q = p.detach(), q.detach()
    return (q * (q.log() - log_p)).sum(-1) + (p * (p.log() - log_q)).sum(-1)


def length(x: Tensor, norm: str) -> float:
    flat = x.abs().flatten()
    return {"inf": flat.max(), "2": flat.square().sum().sqrt(), "1": flat.sum()}[norm].item()


def nearest_in_l1_ball(w: Tensor, radius: float) -> Tensor:
    low, high = 0.0, w.abs().max().item()
    for _ in range(200):  # bisection of the threshold
        middle = (low + high) / 2
        low, high = (middle, high) if (w.abs() - middle).clamp(min=0).sum() > radius else (low, middle)
    return w.sign() * (w.abs() - high).clamp(min=0)


def plain_update(v: Tensor, g: Tensor, update: str, norm: str) -> Tensor:
    """The rule on one group."""
    step, radius = SETTINGS["step_size"], SETTINGS["radius"]
    if update == "mtdnn":
        w = v + step * g
        return w.sign() if norm == "1" else w / (length(w, norm) + SETTINGS["norm_eps"])
    if update == "paper":
        return (v + step * g) / length(g, norm) if length(g, norm) > 0 else v
    w = v + step * g / length(g, "inf")
    if length(w, norm) <= radius:
        return w
    if norm == "inf":
        return w.clamp(-radius, radius)
    return w * radius / length(w, "2") if norm == "2" else nearest_in_l1_ball(w, radius)


def written_out(network, x, v, *, update, norm, level, loss, steps=1, detach_targets=False, detach_clean=False):
    """The regulariser's formulas; also the mean cosine of v and g and the mean norm of v."""
    clean = network(x)
    cosines = sizes = [0.0]
    for _ in range(steps):
        leaf = v.clone().requires_grad_()
        inner = plain_losses(network(x + leaf), clean.detach(), loss, detach_targets).sum()
        (g,) = torch.autograd.grad(inner, leaf)
        v = torch.empty_like(v)
        for rows in groups(level):
            v[rows] = plain_update(leaf.detach()[rows], g[rows], update, norm)
        pairs = [(v[rows].flatten(), g[rows].flatten()) for rows in groups(level)]
        cosines = [torch.dot(a, b) / (a.norm() * b.norm()).clamp(min=1e-300) for a, b in pairs]
        sizes = [length(v[rows], norm) for rows in groups(level)]
    target = clean.detach() if detach_clean else clean
    value = plain_losses(network(x + v), target, loss, detach_targets).mean()
    return value, torch.tensor(cosines).mean(), torch.tensor(sizes).mean()


def problem(loss: str) -> tuple[Network, Tensor, Tensor]:
    """A network, embeddings that require grad, and a first v."""
    tokens = sum(LENGTHS)
    x = normal(tokens, CHANNELS, seed=1).requires_grad_()
    return network_for(loss), x, 0.02 * normal(tokens, CHANNELS, seed=2)
