"""The share of the accuracy gap a rung recovers, with paired bootstrap intervals.

`gap recovered = (rung - base) / (thinking - base)`, signed. All rungs are resampled with the same
problems. Where the gap's own interval contains 0 there is no gap to speak of: undefined.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from howwhen.records import Interval
from howwhen.settings import MeasureSettings

Outcomes = Float[np.ndarray, " problem"]
"""Share of right answers per problem (over seeds), from 0 to 1."""


@dataclass(frozen=True)
class Recovery:
    """Share of the gap, its interval, and the share limited to 0..1 as the reference prints it."""

    value: float
    interval: Interval
    clamped: float


@dataclass(frozen=True)
class Bootstrap:
    """Resampled problem indices, the same for every rung."""

    rows: np.ndarray
    """(sample, problem)."""
    confidence: float

    @classmethod
    def draw(cls, problems: int, settings: MeasureSettings) -> "Bootstrap":
        """Draw the resamplings."""
        rng = np.random.default_rng(settings.seed)
        shape = (settings.bootstrap_samples, problems)
        return cls(rng.integers(problems, size=shape), settings.confidence)

    def means(self, outcomes: Outcomes) -> Float[np.ndarray, " sample"]:
        """Accuracy in every resampling."""
        means: np.ndarray = outcomes[self.rows].mean(1)
        return means

    def interval(self, values: Float[np.ndarray, " sample"]) -> Interval:
        """Central interval of resampled values."""
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(values, [tail, 1 - tail])
        return Interval(float(low), float(high))

    def recovery(self, rung: Outcomes, base: Outcomes, thinking: Outcomes) -> Recovery | None:
        """Share of the gap between `base` and `thinking` that `rung` recovers.

        None where the interval of the gap contains 0.
        """
        gaps = self.means(thinking) - self.means(base)
        low, high = self.interval(gaps)
        if low <= 0 <= high:
            return None
        gains = self.means(rung) - self.means(base)
        usable = gaps != 0
        value = float((rung.mean() - base.mean()) / (thinking.mean() - base.mean()))
        interval = self.interval(gains[usable] / gaps[usable])
        return Recovery(value, interval, min(1.0, max(0.0, value)))
