"""What vectors are trained on: where to steer the base, and the tokens wanted there.

Both methods give the same kind of example. A `decision` (second version) is a window of one
position: a disagreement, at which the base would not have written the thinking model's token. A
`span` (first version) is the window of a whole sentence.
"""

from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from howwhen.records import Rollout

UNCOUNTED = -100
"""Target of a position that is steered but not drawn: its loss does not count."""


class SteeredWindow(NamedTuple):
    """Half-open range of positions to steer; position t predicts token t + 1."""

    start: int
    end: int
    category: int


@dataclass(frozen=True)
class SoftTargets:
    """What the thinking model would write at some positions: its likeliest tokens."""

    ids: Int[Tensor, "position top"]
    probs: Float[Tensor, "position top"]
    """They add up to 1 over the tokens kept."""


@dataclass(frozen=True, eq=False)
class TrainingExample:
    """One text as the base reads it, and where to steer it."""

    ids: tuple[int, ...]
    """The base's prompt, then (part of) an answer."""
    windows: tuple[SteeredWindow, ...]
    """Disjoint, in order."""
    targets: tuple[int, ...]
    """Token wanted after each steered position, window by window; `UNCOUNTED` for none."""
    soft: SoftTargets | None = None
    """The same as distributions, where known, for every target but those that are `UNCOUNTED`."""
    prompt: int = 0
    """Tokens of the base's prompt: texts that share them answer the same question."""

    @property
    def positions(self) -> tuple[int, ...]:
        """Every steered position, window by window."""
        return tuple(p for window in self.windows for p in range(window.start, window.end))

    @property
    def categories(self) -> tuple[int, ...]:
        """Category of every steered position."""
        return tuple(w.category for w in self.windows for _ in range(w.start, w.end))

    @property
    def last_start(self) -> int:
        """Where the last window starts: no window attends to unsteered positions from there on."""
        return max(window.start for window in self.windows)

    def within(self, first: int, last: int) -> "TrainingExample":
        """Only what leads to the tokens `first` to `last - 1` of the answer."""
        start, end = self.prompt - 1 + first, self.prompt - 1 + last
        kept = [row for row, place in enumerate(self.positions) if start <= place < end]
        cut = (
            window._replace(start=max(window.start, start), end=min(window.end, end))
            for window in self.windows
        )
        return replace(
            self,
            windows=tuple(window for window in cut if window.start < window.end),
            targets=tuple(self.targets[row] for row in kept),
            soft=self.soft and SoftTargets(self.soft.ids[kept], self.soft.probs[kept]),
        )

    def capped(self, count: int, random: Random) -> "TrainingExample":
        """The same with at most `count` windows of each category, drawn at random."""
        by_category: dict[int, list[SteeredWindow]] = {}
        for window in self.windows:
            by_category.setdefault(window.category, []).append(window)
        kept = {
            window
            for windows in by_category.values()
            for window in random.sample(windows, min(count, len(windows)))
        }
        ends = list(accumulate((window.end - window.start for window in self.windows), initial=0))
        rows = [
            row
            for number, window in enumerate(self.windows)
            if window in kept
            for row in range(ends[number], ends[number + 1])
        ]
        return replace(
            self,
            windows=tuple(window for window in self.windows if window in kept),
            targets=tuple(self.targets[row] for row in rows),
            soft=self.soft and SoftTargets(self.soft.ids[rows], self.soft.probs[rows]),
        )

    def draw(self, count: int, random: Random) -> "TrainingExample":
        """The same with the losses of `count` steered positions, or of all if there are no more.

        A window that no position is drawn from is left out, and so is the rest of a window after
        the last one drawn: nothing that counts depends on them.
        """
        total = len(self.targets)
        if total <= count:
            return self
        drawn = set(random.sample(range(total), count))
        windows: list[SteeredWindow] = []
        kept: list[int] = []
        first = 0
        for window in self.windows:
            length = window.end - window.start
            inside = [row for row in range(first, first + length) if row in drawn]
            if inside:
                windows.append(window._replace(end=window.start + inside[-1] - first + 1))
                kept += range(first, inside[-1] + 1)
            first += length
        counted = sorted(drawn)
        return TrainingExample(
            ids=self.ids,
            windows=tuple(windows),
            targets=tuple(self.targets[row] if row in drawn else UNCOUNTED for row in kept),
            soft=self.soft and SoftTargets(self.soft.ids[counted], self.soft.probs[counted]),
            prompt=self.prompt,
        )


def thinking_of(rollout: Rollout, example: TrainingExample) -> TrainingExample:
    """An example of a rollout, with only what leads to tokens of its thinking part."""
    spans = rollout.spans  # they tile it
    return example.within(*((spans[0].start_token, spans[-1].end_token) if spans else (0, 0)))
