"""Ratios of two ways to do the same thing, timed in turn in one process.

Timings of one machine drift, so both sides are timed in pairs, and a figure is the median of the
ratios of the pairs with the lowest and the highest of them. A figure whose readings differ by more
than a fifth is called unsteady, whatever its median is.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Literal

Run = Callable[[], object]
Bound = Literal["at most", "at least"]
MAX_SPREAD = 1.2
"""Highest over lowest reading of a steady figure."""


@dataclass(frozen=True)
class Result:
    """One ratio and its target."""

    name: str
    ratio: float
    target: float
    ok: bool
    """Whether the target is met."""
    detail: str
    spread: tuple[float, float] | None = None
    """Lowest and highest reading; None for a figure that is counted, not timed."""

    @property
    def is_steady(self) -> bool:
        """Whether the readings agree to within a fifth."""
        return self.spread is None or self.spread[1] <= MAX_SPREAD * self.spread[0]

    @property
    def verdict(self) -> str:
        """What is printed in front of the figure."""
        if not self.is_steady:
            return "UNSTEADY"
        return "ok" if self.ok else "MISSED"


def timed(run: Run) -> float:
    """Seconds that one call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def compare(
    name: str,
    numerator: Run,
    denominator: Run,
    bound: Bound,
    target: float,
    what: str,
    repeats: int = 5,
) -> Result:
    """Time both sides in turn, after one warm-up each.

    Args:
        name: of the result.
        numerator: side whose time is above the line.
        denominator: the other side.
        bound: whether the target is a ceiling or a floor.
        target: of the ratio.
        what: the two sides in words.
        repeats: pairs of timings.
    """
    timed(numerator), timed(denominator)
    return compare_pairs(
        name, lambda: (timed(numerator), timed(denominator)), bound, target, what, repeats
    )


def compare_pairs(
    name: str,
    seconds: Callable[[], tuple[float, float]],
    bound: Bound,
    target: float,
    what: str,
    repeats: int = 5,
) -> Result:
    """The median of paired ratios.

    Args:
        name: of the result.
        seconds: times both sides once, one right after the other.
        bound: whether the target is a ceiling or a floor.
        target: of the ratio.
        what: the two sides in words.
        repeats: how often they are timed.
    """
    pairs = [seconds() for _ in range(repeats)]
    if any(below <= 0 for _, below in pairs):
        raise RuntimeError(
            f"{name}: a time to divide by is not above 0 (found {min(below for _, below in pairs)} "
            "s), so it is a difference of two timings that noise swallows; time more work"
        )
    ratios = sorted(above / below for above, below in pairs)
    ratio, spread = round(median(ratios), 2), (round(ratios[0], 2), round(ratios[-1], 2))
    above, below = (median(side) for side in zip(*pairs, strict=True))
    ok = ratio <= target if bound == "at most" else ratio >= target
    detail = (
        f"{bound} {target}; {what}: {above:.3f} s, {below:.3f} s; ratios from {spread[0]} to "
        f"{spread[1]} in {repeats} pairs"
    )
    return Result(name, ratio, target, ok, detail, spread)
