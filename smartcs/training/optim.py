"""AdamW with this project's defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from smartcs.ops import packed_weights
from smartcs.ops.adamw import (
    ANCHOR_DIFFERS,
    HAS_MOMENTS,
    AdamWSettings,
    AdamWTensors,
    adamw,
    check_max_grad_norm,
    fusable,
)
from smartcs.ops.backend import get_backend
from smartcs.ops.packed_weights import Seen
from smartcs.smart.bregman import BregmanAnchor

_STATE = ("step", "exp_avg", "exp_avg_sq")
_STILL = AdamWSettings(0.0, 0.0, 0.0, 0.0, 0.0)  # for what only has an anchor


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` (Loshchilov & Hutter 2019, bias-corrected), in one pass over memory on the fused backend.

    With the fused backend selected, a step is one call of `smartcs.ops.adamw` for the whole model, which also clips the
    gradients, moves an anchor and writes the packed weights of bf16 products. Otherwise torch's functions do the same.
    The state dict is torch's either way, and one loads into the other.

    Given a `schedule`, the fused step on a GPU never waits for it and can be captured in a CUDA graph: change what the
    schedule holds between replays. Sparse gradients are torch's there.

    Sparse gradients (`nn.Embedding.sparse`) give the values that dense ones give. Rows that never had one cost nothing;
    they are found by comparing, once and again after the table, its state or its anchor has been written by somebody
    else, as their version counters tell. Writing through ``.data`` does not count: use ``torch.no_grad()``.

    Args:
        params: parameters or groups of them, as for any torch optimizer.
        lr: learning rate; no default is right for every model.
        betas: decay of the two moments.
        eps: added to the root of the second moment. 1e-6 as in BERT's own optimizer, not torch's 1e-8.
        weight_decay: decoupled from the gradient; 0 as in the paper.
        max_grad_norm: gradients are scaled down to this norm, taken over all groups; math.inf only measures it.

    Attributes:
        grad_norm: the norm before clipping at the last step, 0-dim float64; None without `max_grad_norm`. If it is not
            finite, that step changed nothing: neither weights nor state nor the anchor. Fused on a GPU, where the host
            does not know that norm, the anchor still counts the step, and copies buffers that are due.
        written_packed: the parameters whose packed forms the last step wrote, see `smartcs.ops.packed_weights`.

    Raises:
        ValueError: a value out of range, or no parameters.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        max_grad_norm: float | None = None,
    ) -> None:
        check_max_grad_norm("AdamW", max_grad_norm)
        self._fused = get_backend() == "fused"
        self._prepare(max_grad_norm)
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=self._fused or None)
        self._step_supports_amp_scaling = False  # a GradScaler unscales the gradients itself

    def _prepare(self, max_grad_norm: float | None) -> None:
        self.max_grad_norm = max_grad_norm
        self.grad_norm: Tensor | None = None
        self.written_packed: set[Tensor] = set()
        self._rows: dict[Tensor, _TableRows] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "max_grad_norm": self.max_grad_norm, "_fused": self._fused}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "max_grad_norm" in state:  # a copy being made, not a state dict being loaded
            self._prepare(state["max_grad_norm"])
        super().__setstate__(state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but the implementation stays the one chosen here, not the one the state was saved by.

        Raises:
            ValueError: the state is of a variant that this optimizer is not.
        """
        for group in state_dict["param_groups"]:
            for variant in ("amsgrad", "maximize", "differentiable"):
                if group.get(variant):
                    raise ValueError(f"AdamW: the state was saved with {variant}=True, expected False")
        # Before torch loads, which places the step counts by what the groups say.
        own = {"fused": self._fused or None, "capturable": False, "foreach": None}
        groups = [{**group, **own} for group in state_dict["param_groups"]]
        super().load_state_dict({**state_dict, "param_groups": groups})

    def named_state(self, names: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """{"step", "exp_avg", "exp_avg_sq"} -> name -> tensor, of the parameters that have had a gradient.

        Args:
            names: name -> parameter.
        """
        present = {name: self.state[parameter] for name, parameter in names.items() if self.state.get(parameter)}
        return {kind: {name: state[kind] for name, state in present.items()} for kind in _STATE}

    @torch.no_grad()
    def load_named_state(self, state: Mapping[str, Mapping[str, Tensor]], names: Mapping[str, Tensor]) -> None:
        """Goes on from a `named_state`, whose tensors are copied.

        Raises:
            ValueError: it is of other parameters, or a tensor has another shape than its parameter.
        """
        if set(state) != set(_STATE) or len({frozenset(state[kind]) for kind in _STATE}) > 1:
            raise ValueError(f"AdamW: the state has {', '.join(sorted(state))}, expected {', '.join(_STATE)} of each")
        unknown = sorted(set(state["step"]) - set(names))
        if unknown:
            raise ValueError(f"AdamW: the state has {unknown[0]}, which is no parameter here")
        self.state.clear()
        for name in state["step"]:
            own = self._state(names[name])
            for kind in _STATE:
                if state[kind][name].shape != own[kind].shape:
                    raise ValueError(
                        f"AdamW: the state's {kind} of {name} has shape {tuple(state[kind][name].shape)}, "
                        f"expected {tuple(own[kind].shape)}"
                    )
                own[kind].copy_(state[kind][name])

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        anchor: BregmanAnchor | None = None,
        schedule: Tensor | None = None,
    ) -> Any:
        """One step on the present gradients.

        Args:
            closure: Computes the loss and its gradients anew.
            anchor: Moves in the same pass, instead of by its own `update`.
            schedule: (2,), float64, on the parameters' device: a factor of every group's lr, and the share of the way
                that the anchor moves in this step, see `BregmanAnchor.next_weight`. The host then knows nothing of the
                step's outcome: `BregmanAnchor.moved` is the caller's to call.

        Returns:
            What the closure returned.

        Raises:
            ValueError: the anchor does not fit its model, see `BregmanAnchor.update`; or a gradient is sparse in other
                ways than `nn.Embedding`'s; or the schedule is not as described.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._step(anchor, schedule)
        return loss

    def _step(self, anchor: BregmanAnchor | None, schedule: Tensor | None) -> None:
        self.written_packed = set()
        self._check_sparse()
        anchors: dict[Tensor, Tensor] = {}
        weight = 0.0
        if anchor is not None:
            anchors, weight = anchor.next_move() if schedule is None else (anchor.pairs(), 0.0)
        tensors = self._tensors(anchors)
        fused = fusable(tensors)
        waits = schedule is None and (not fused or tensors[0].parameter.device.type == "cpu")
        if not waits:  # nor learns whether anything has changed: the copies are right if they were
            packed_weights.renew(entry.parameter for entry in tensors)
        tensors = [self._with_copies(entry, fused) for entry in tensors]
        self.grad_norm = adamw(tensors, max_grad_norm=self.max_grad_norm, anchor_weight=weight, schedule=schedule)
        if waits and self.grad_norm is not None and not torch.isfinite(self.grad_norm):
            return
        for entry in tensors:
            if entry.packed is not None:
                packed_weights.written(entry.parameter)
                self.written_packed.add(entry.parameter)
            if entry.row_flags is not None:
                self._rows[entry.parameter].seen(entry)
        if anchor is not None and schedule is None:
            anchor.moved()

    def _check_sparse(self) -> None:
        for i, group in enumerate(self.param_groups):
            for j, parameter in enumerate(group["params"]):
                grad = parameter.grad
                if grad is not None and grad.is_sparse and (grad.dim() != 2 or grad.sparse_dim() != 1):
                    raise ValueError(
                        f"AdamW: the gradient of param_groups[{i}]['params'][{j}], of shape {tuple(grad.shape)}, is "
                        f"sparse in {grad.sparse_dim()} of {grad.dim()} dimensions, expected rows of a matrix"
                    )

    def _tensors(self, anchors: dict[Tensor, Tensor]) -> list[AdamWTensors]:
        """What takes part in a step: parameters with a gradient and parameters with an anchor."""
        tensors, rest = [], dict(anchors)
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            settings = AdamWSettings(float(group["lr"]), beta1, beta2, group["eps"], group["weight_decay"])
            for parameter in group["params"]:
                grad, anchor = parameter.grad, rest.pop(parameter, None)
                if grad is not None:
                    state = self._state(parameter)
                    moments = state["exp_avg"], state["exp_avg_sq"], state["step"]
                    tensors.append(AdamWTensors(parameter, grad, *moments, settings, anchor))
                elif anchor is not None:
                    tensors.append(AdamWTensors(parameter, None, None, None, None, _STILL, anchor))
        tensors += [AdamWTensors(p, None, None, None, None, _STILL, anchor) for p, anchor in rest.items()]
        return tensors

    def _state(self, parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            where = parameter.device if self._fused else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float32, device=where)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state

    def _with_copies(self, entry: AdamWTensors, fused: bool) -> AdamWTensors:
        """The entry with what depends on its values: row flags, or packed forms."""
        parameter = entry.parameter
        if entry.grad is not None and entry.grad.is_sparse:
            return entry._replace(row_flags=self._rows.setdefault(parameter, _TableRows(parameter)).flags(entry))
        if parameter in self._rows:
            if entry.grad is None and parameter.device.type == "cpu":
                return entry._replace(row_flags=self._rows[parameter].flags(entry))
            del self._rows[parameter]  # every row has a gradient now, or nothing reads the flags
        if not fused or parameter.dim() != 2 or parameter.dtype != torch.float32:
            return entry
        own = packed_weights.buffers(parameter) if entry.grad is not None else None
        return entry if own is None else entry._replace(packed=own[0], packed_t=own[1])


class _TableRows:
    """The row flags of one table, see `AdamWTensors`, kept for as long as nobody else writes."""

    def __init__(self, table: Tensor) -> None:
        self._flags = torch.zeros(len(table), dtype=torch.uint8, device=table.device)
        self._table: Seen | None = None
        self._moments: tuple[Seen, Seen] | None = None
        self._anchor: Seen | None = None

    def flags(self, entry: AdamWTensors) -> Tensor:
        """The flags before a step, made anew where something has changed since the last."""
        table, anchor = entry.parameter, entry.anchor
        if self._table is None or not self._table.still(table):
            self._anchor = None
        if entry.exp_avg is not None and entry.exp_avg_sq is not None:
            moments = entry.exp_avg, entry.exp_avg_sq
            if self._moments is None or not all(s.still(t) for s, t in zip(self._moments, moments, strict=True)):
                self._set(HAS_MOMENTS, moments[0].any(1) | moments[1].any(1))
        if anchor is not None and (self._anchor is None or not self._anchor.still(anchor)):
            self._set(ANCHOR_DIFFERS, (anchor != table).any(1))
        return self._flags

    def _set(self, bit: int, rows: Tensor) -> None:
        self._flags = (self._flags & ~bit & 3) | rows.to(torch.uint8) * bit

    def seen(self, entry: AdamWTensors) -> None:
        """Remembers the tensors as they are after a step."""
        self._table = Seen(entry.parameter)
        if entry.exp_avg is not None and entry.exp_avg_sq is not None:
            self._moments = Seen(entry.exp_avg), Seen(entry.exp_avg_sq)
        if entry.anchor is not None:
            self._anchor = Seen(entry.anchor)
