"""Accuracies with intervals, the share of the gap a rung recovers, and tests between rungs.

`gap recovered = (rung - base) / (thinking - base)`, signed (recovery, Rec. %). It is undefined if
the interval of the gap itself contains 0.

All rungs are resampled with the same problems. If a rung answered several times, its answers are
resampled too: first seeds, each of which has its own random vectors or positions, then samples
within each drawn seed. Rungs that answered equally often get the same draws. Three seeds say little
about the spread over seeds, so an interval over them is too narrow (a simulated one of 95 % covers
about 80 %).
"""

from dataclasses import dataclass
from math import comb

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from howwhen.records import Comparison, Flips, Gains, Interval
from howwhen.settings import MeasureSettings

Outcomes = Float[np.ndarray, "problem _ _"]
"""1 for a right answer, 0 for any other, or another number; by problem, seed and sample."""
Resampled = Float[np.ndarray, " resampling"]
CHUNK = 500
"""Resamplings handled at a time."""


@dataclass(frozen=True)
class Recovery:
    """Share of the gap that is recovered."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Bootstrap:
    """Resamplings of the problems, the same for every rung."""

    counts: UInt8[np.ndarray, "resampling problem"]
    """How often each problem was drawn."""
    seed: int
    confidence: float

    @classmethod
    def draw(cls, problems: int, settings: MeasureSettings) -> "Bootstrap":
        """Draw the resamplings."""
        rng = np.random.default_rng(settings.seed)
        counts = _draw_counts(rng, settings.bootstrap_samples, problems)
        return cls(counts, settings.seed, settings.confidence)

    def means(self, outcomes: Outcomes) -> Resampled:
        """Accuracy in every resampling."""
        resamplings, problems = self.counts.shape
        runs = outcomes[0].size
        flat = outcomes.reshape(problems, runs)
        by_run = np.concatenate(
            [
                self.counts[start : start + CHUNK].astype(float) @ flat
                for start in range(0, resamplings, CHUNK)
            ]
        )
        drawn = self._draw_runs(*outcomes.shape[1:]).reshape(resamplings, runs)
        means: Resampled = (by_run * drawn).sum(1) / (problems * runs)
        return means

    def _draw_runs(self, seeds: int, samples: int) -> Int[np.ndarray, "resampling _ _"]:
        """How often each run is drawn: seeds with replacement, then samples of each drawn seed."""
        resamplings = len(self.counts)
        rng = np.random.default_rng([self.seed, seeds * samples])
        drawn = _draw_counts(rng, resamplings, seeds).astype(int)
        return rng.multinomial(drawn * samples, np.full(samples, 1 / samples))

    def interval(self, values: Resampled) -> Interval:
        """Central interval of resampled values."""
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(values, [tail, 1 - tail])
        return Interval(float(low), float(high))

    def accuracy_interval(self, outcomes: Outcomes) -> Interval:
        """Wilson's interval if every problem was answered once, else a bootstrap."""
        if outcomes[0].size == 1:
            return wilson(int(outcomes.sum()), len(outcomes), self.confidence)
        return self.interval(self.means(outcomes))

    def has_gap(self, base: Outcomes, thinking: Outcomes) -> bool:
        """Whether the interval of the gap excludes 0."""
        low, high = self.interval(self.means(thinking) - self.means(base))
        return not low <= 0 <= high

    def recovery(self, rung: Outcomes, base: Outcomes, thinking: Outcomes) -> Recovery | None:
        """Share of the gap between `base` and `thinking` that `rung` recovers.

        None if the interval of the gap contains 0.
        """
        if not self.has_gap(base, thinking):
            return None
        shares, usable = self._shares(rung, base, thinking)
        value = float((rung.mean() - base.mean()) / (thinking.mean() - base.mean()))
        return Recovery(value, self.interval(shares[usable]))

    def drop(
        self, full: Outcomes, rung: Outcomes, base: Outcomes, thinking: Outcomes
    ) -> Interval | None:
        """Interval of how much more of the gap `full` recovers than `rung`; None without a gap."""
        if not self.has_gap(base, thinking):
            return None
        ours, usable = self._shares(full, base, thinking)
        theirs, _ = self._shares(rung, base, thinking)
        return self.interval((ours - theirs)[usable])

    def _shares(
        self, rung: Outcomes, base: Outcomes, thinking: Outcomes
    ) -> tuple[Resampled, np.ndarray]:
        """Share recovered in every resampling, and which resamplings have a gap."""
        base_means = self.means(base)
        gaps = self.means(thinking) - base_means
        usable = gaps != 0
        return (self.means(rung) - base_means) / np.where(usable, gaps, 1.0), usable

    def compare(self, first: Outcomes, second: Outcomes) -> Comparison:
        """Compare two rungs on the same problems."""
        ours, theirs = is_right(first), is_right(second)
        only_first, only_second = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
        return Comparison(
            only_first,
            only_second,
            mcnemar(only_first, only_second),
            float(first.mean() - second.mean()),
            self.interval(self.means(first) - self.means(second)),
        )


def published_share(rung: float, base: float, thinking: float) -> float | None:
    """The share of the gap by the formula of the paper's code, from three accuracies.

    `max(0, (rung - min(base, thinking)) / |thinking - base|)`: never negative, not limited above,
    and reckoned from the weaker of the two models, whichever that is. None without any gap.
    """
    if thinking == base:
        return None
    return max(0.0, (rung - min(base, thinking)) / abs(thinking - base))


def find_gains(rung: Outcomes, base: Outcomes, thinking: Outcomes) -> Gains | None:
    """How often a rung is right where the thinking model gains over the base, and elsewhere.

    The share of the gap does not show this: a rung may get as many problems right, but different
    ones. None if the thinking model gains no problem.
    """
    gained = is_right(thinking) & ~is_right(base)
    if not gained.any():
        return None
    elsewhere = None if gained.all() else float(rung[~gained].mean())
    return Gains(int(gained.sum()), float(rung[gained].mean()), elsewhere)


def find_flips(rung: Outcomes, base: Outcomes) -> Flips:
    """How many problems a rung turns from wrong to right, and from right to wrong.

    Both counts go by the majority of the answers to a problem.
    """
    rung_right, base_right = is_right(rung), is_right(base)
    gained, lost = int((rung_right & ~base_right).sum()), int((base_right & ~rung_right).sum())
    return Flips(gained, lost, gained - lost)


def is_right(outcomes: Outcomes) -> Bool[np.ndarray, " problem"]:
    """Which problems were answered right in more than half of the answers."""
    right: Bool[np.ndarray, " problem"] = outcomes.mean((1, 2)) > 0.5
    return right


def wilson(right: int, n: int, confidence: float) -> Interval:
    """Wilson's score interval of a share."""
    from scipy.stats import binomtest  # takes half a second to import

    interval = binomtest(right, n).proportion_ci(confidence, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test: discordant problems as coin tosses."""
    from scipy.stats import binomtest  # takes half a second to import

    discordant = only_first + only_second
    return float(binomtest(only_first, discordant).pvalue) if discordant else 1.0


def pass_at_k(outcomes: Float[np.ndarray, "problem sample"], k: int) -> float:
    """Chance that at least one of k samples is right, unbiased (Chen et al. 2021, section 2.1).

    Args:
        outcomes: of one seed.
        k: how many samples.

    Raises:
        ValueError: `k` is larger than the number of samples.
    """
    n = outcomes.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples, found {n}")
    missed = [comb(n - int(right), k) / comb(n, k) for right in outcomes.sum(1)]
    return 1 - float(np.mean(missed))


def _draw_counts(rng: np.random.Generator, samples: int, items: int) -> np.ndarray:
    """How often each of `items` is drawn in `samples` resamplings with replacement."""
    chunks = []
    for start in range(0, samples, CHUNK):
        size = min(CHUNK, samples - start)
        rows = rng.integers(items, size=(size, items)) + items * np.arange(size)[:, None]
        drawn = np.bincount(rows.ravel(), minlength=size * items).reshape(size, items)
        chunks.append(drawn.clip(max=255).astype(np.uint8))
    return np.concatenate(chunks)
