"""Positions of growing texts that are to be steered, and what came of steering them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Places:
    """Positions to be steered: each is the last one of a window in some stream."""

    streams: list[int]
    """The stream of each."""
    columns: list[int]
    """Its position in the stream."""
    reach: list[int]
    """How many positions are steered, this one and those before it."""
    device: torch.device
    """Where tokens are read."""

    def __post_init__(self) -> None:
        pairs = zip(self.reach, self.columns, strict=True)
        object.__setattr__(self, "reach", [min(reach, column + 1) for reach, column in pairs])

    @cached_property
    def longest(self) -> int:
        """The largest reach."""
        return max(self.reach)

    @cached_property
    def _table(self) -> Int[Tensor, "3 place"]:
        return torch.tensor([self.streams, self.columns, self.reach], device=self.device)

    @property
    def rows(self) -> Int[Tensor, " place"]:
        """The stream of each."""
        return self._table[0]

    @property
    def column(self) -> Int[Tensor, " place"]:
        """Its position in the stream."""
        return self._table[1]

    @property
    def exists(self) -> Bool[Tensor, "place window"]:
        """Which positions of each window are steered; the last ones."""
        offsets = torch.arange(self.longest - 1, -1, -1, device=self.device)
        return offsets < self._table[2][:, None]

    @property
    def window(self) -> Int[Tensor, "place window"]:
        """The positions of each window."""
        offsets = torch.arange(self.longest - 1, -1, -1, device=self.device)
        return (self._table[1][:, None] - offsets).clamp(min=0)

    def in_all(self, lengths: Sequence[int]) -> "Places":
        """Single positions, one in every stream of such lengths: its own, or else the last one."""
        own = dict(zip(self.streams, self.columns, strict=True))
        columns = [own.get(row, max(length - 1, 0)) for row, length in enumerate(lengths)]
        return Places(list(range(len(lengths))), columns, [1] * len(lengths), self.device)


@dataclass(frozen=True)
class Branch:
    """What came of steering some places."""

    places: Places
    logits: Float[Tensor, "place candidate vocabulary"]
    start: int
    """Column of the first steered state."""
    copies: list[tuple[Tensor, Tensor]] | None
    """Keys and values of the upper blocks, where the streams were copied; None where the steered
    states are behind the streams' own."""


def branch_view(places: Places, candidates: int, width: int) -> Bool[Tensor, "place query key"]:
    """What each steered position may look at: the unsteered columns before, its own candidate."""
    window, exists, device = places.longest, places.exists, places.device
    first = places.column - exists.sum(1) + 1
    past = torch.arange(width, device=device) < first[:, None]
    causal = torch.ones(window, window, device=device).tril()
    same = torch.kron(torch.eye(candidates, device=device), causal).bool()
    # What does not exist looks at itself: some kernels give no number where nothing may be seen.
    itself = torch.eye(candidates * window, device=device).bool()
    same = (same & exists.repeat(1, candidates)[:, None]) | itself
    return torch.cat([past[:, None].expand(-1, candidates * window, -1), same], dim=2)
