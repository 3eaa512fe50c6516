"""Ratios of two ways to do the same thing, timed in turn in one process."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Literal

Run = Callable[[], object]


@dataclass(frozen=True)
class Result:
    """One ratio with what it is held against."""

    name: str
    ratio: float
    target: float
    ok: bool
    detail: str


def timed(run: Run) -> float:
    """Seconds that one call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def compare(
    name: str,
    numerator: Run,
    denominator: Run,
    bound: Literal["at most", "at least"],
    target: float,
    what: str,
    repeats: int = 3,
) -> Result:
    """Time both sides in turn after one warm-up each; the ratio is that of the medians.

    Args:
        name: of the result.
        numerator: side whose time is above the line.
        denominator: the other side.
        bound: whether the target is a ceiling or a floor.
        target: of the ratio.
        what: the two sides in words.
        repeats: timings of each side.
    """
    timed(numerator), timed(denominator)
    pairs = [(timed(numerator), timed(denominator)) for _ in range(repeats)]
    above, below = (median(side) for side in zip(*pairs, strict=True))
    ratio = round(above / below, 2)
    ok = ratio <= target if bound == "at most" else ratio >= target
    return Result(
        name, ratio, target, ok, f"{bound} {target}; {what}: {above:.3f} s, {below:.3f} s"
    )
