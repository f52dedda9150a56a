"""Means over the steps of a run that cost no wait for the device until somebody asks."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class RunningMeans:
    """Sums of named numbers over the steps where they were finite, kept on the device that computed them.

    Args:
        owner: Whose they are, for messages.
        names: What is averaged.

    Attributes:
        steps: Steps added, also those that did not count.
    """

    def __init__(self, owner: str, names: tuple[str, ...]) -> None:
        self._owner, self._names = owner, names
        self.steps = 0
        self._sums: Tensor = torch.zeros(1 + len(names), dtype=torch.float64)  # [0]: the steps that count

    def add(self, values: tuple[Tensor, ...], counts: Tensor) -> None:
        """One step's 0-dim tensors, in the order of the names; left out where the 0-dim bool ``counts`` is False."""
        row = torch.stack([counts, *(value.detach() for value in values)]).to(torch.float64)
        if self._sums.device != row.device:
            self._sums = self._sums.to(row.device)
        self._sums += torch.where(counts, row, torch.zeros_like(row))
        self.steps += 1

    def add_numbers(self, values: Sequence[float | None], counts: bool) -> None:
        """The same of Python's numbers, None for what a step that does not count has not."""
        if counts:
            self._sums += torch.tensor([1.0, *values], dtype=torch.float64, device=self._sums.device)
        self.steps += 1

    def mark(self) -> tuple[int, Tensor]:
        """What `back_to` goes back to."""
        return self.steps, self._sums.clone()

    def back_to(self, mark: tuple[int, Tensor]) -> None:
        """Forgets what was added since the `mark`."""
        self.steps = mark[0]
        # Where the sums are now: had they to come back from the host, the next step would wait for them.
        self._sums.copy_(mark[1])

    def means(self) -> tuple[int, dict[str, float]]:
        """The number of steps that counted, and their means: 0 where none did. Waits for the device."""
        counted, *sums = self._sums.tolist()
        return int(counted), {name: value / max(counted, 1) for name, value in zip(self._names, sums, strict=True)}

    def state_dict(self) -> dict[str, float]:
        """All of it as numbers that JSON holds. Waits for the device."""
        return {"steps": self.steps, **dict(zip(("counted", *self._names), self._sums.tolist(), strict=True))}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continues from a `state_dict`. Raises ValueError naming missing and unknown keys."""
        expected = ("steps", "counted", *self._names)
        if set(state) != set(expected):
            raise ValueError(
                f"{self._owner}: the state has the keys {', '.join(sorted(state)) or 'none'}, "
                f"expected {', '.join(sorted(expected))}"
            )
        self.steps = int(state["steps"])
        self._sums = torch.tensor([state[name] for name in expected[1:]], dtype=torch.float64)
