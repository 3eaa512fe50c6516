"""What is noted of a token beside what became of it; noting it changes no answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from howwhen.hybrid.context import Action, DecisionContext
from howwhen.probes import SelfGate


class Notes(NamedTuple):
    """Of one position; fields as in `HybridToken`."""

    choice_bits: float | None = None
    divergence: float | None = None
    probed: Sequence[float] = ()
    """What the probe says: log-odds of a disagreement, and scores of the categories."""


@dataclass(frozen=True)
class Watch:
    """What is to be noted."""

    probe: SelfGate | None = None
    """A probe on the base, which says of every token how likely a disagreement was."""
    divergence: bool = False
    """Whether to note how far the two models' distributions are apart, where both run."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Blocks of the base that it reads."""
        return () if self.probe is None else self.probe.layers

    def on(self, device: torch.device) -> "Watch":
        """The same on a device."""
        return self if self.probe is None else replace(self, probe=self.probe.to(device))

    def numbers(self, context: DecisionContext, action: Action) -> Float[Tensor, "n numbers"]:
        """What `notes` makes notes of, at every position."""
        parts = []
        if action.bits is not None:
            parts.append(action.bits[:, None])
        if self.divergence and context.thinking_view is not None:
            parts.append(context.divergence[:, None])
        if self.probe is not None:
            parts.append(self.probe.read_layers(context.base.residual, context.base.device))
        if not parts:
            return torch.zeros(len(action.token), 0, device=action.token.device)
        return torch.cat(parts, dim=1)

    def notes(self, numbers: Sequence[float], *, has_bits: bool, has_thinking: bool) -> Notes:
        """The notes of one position.

        Args:
            numbers: of it.
            has_bits: whether the rung said how many bits its choice took.
            has_thinking: whether the thinking model was run.
        """
        left = list(numbers)
        bits = left.pop(0) if has_bits else None
        divergence = left.pop(0) if self.divergence and has_thinking else None
        return Notes(bits, divergence, left)
