"""How many tokens are drafted before both models have read them.

A pass over several tokens costs little more than one over a single token, but what follows the
first rejected token is wasted. So the best length follows from what passes cost and from how often
drafts are accepted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from howwhen.hybrid.pass_costs import PassCosts

DECAY = 0.98
"""Weight that a token keeps with each token that follows."""
WORTHWHILE = 1.05
"""Gain over single steps, as the costs promise it, from which on a draft is tried."""


@dataclass
class Rate:
    """A running rate of events, in which older tokens weigh less."""

    rate: float
    """At first, the rate assumed before any token was seen."""
    tokens: float = 20.0
    """Number of tokens that the rate rests on."""

    def learn(self, events: Sequence[bool] | Sequence[float], streams: int = 1) -> None:
        """Take in more tokens, of so many streams."""
        fade: float = DECAY ** (len(events) / streams)
        total = self.tokens * fade + len(events)
        self.rate = (self.rate * self.tokens * fade + sum(events)) / total
        self.tokens = total


@dataclass
class BlockSizer:
    """Chooses how the next tokens are drafted, and how many."""

    most: int
    """Longest draft; 1 is stepwise decoding."""
    costs: PassCosts
    base_drafts: bool = True
    """Whether the base may draft, for the thinking model to read."""
    disagreements: Rate = field(default_factory=lambda: Rate(0.1))
    """Among all tokens that the base wrote ahead."""
    kept_after_step: Rate = field(default_factory=lambda: Rate(4.0, tokens=4.0))
    """Tokens kept, of those that were guessed after a token that the base wrote ahead."""
    accepted: Rate = field(default_factory=lambda: Rate(0.8, tokens=8.0))
    """How often a token of the draft model is the one that is written."""

    @property
    def step(self) -> float:
        """Seconds of a single step."""
        return self._seconds.both[1]

    @property
    def most_guesses(self) -> int:
        """How many guesses may pay, if all of them are right."""
        return self._seconds.most_guesses

    @property
    def _seconds(self) -> "_Seconds":
        return _seconds(self.costs, self.most)

    def block(self) -> tuple[int, float]:
        """The best number of tokens that the base writes ahead, and seconds per token kept."""
        rate, seconds = self.disagreements.rate, self._seconds
        best = 1, self.step
        for length in range(2, self.most + 1 if self.base_drafts else 2):
            kept = length if rate == 0 else (1 - (1 - rate) ** length) / rate
            cost = length * seconds.base[1] + seconds.thinking[length]
            if cost / kept < best[1] / (WORTHWHILE if best[0] == 1 else 1):
                best = length, cost / kept
        return best

    def guesses(self, chances: Sequence[Sequence[float]]) -> tuple[int, float]:
        """The best number of guesses to be read, and seconds per token kept.

        Args:
            chances: for every running stream, the probability that its first guess is right, that
                its first two are, and so on.
        """
        best, kept, both = (0, self.step), 1.0, self._seconds.both
        for count in range(1, min(self.most, max(map(len, chances), default=0) + 1)):
            kept += sum(own[count - 1] for own in chances if len(own) >= count) / len(chances)
            cost = both[count + 1] / kept
            if cost < best[1] / (WORTHWHILE if best[0] == 0 else 1):
                best = count, cost
        return best

    def step_and_guesses(self) -> float:
        """Seconds per token kept if the base writes one token ahead and the rest is guessed.

        How many guesses there will be is not known before.
        """
        if self.most < 3:
            return math.inf
        count = min(self.most, 8)
        seconds = self._seconds
        base = seconds.base[1] + seconds.base[count - 1]
        return (base + seconds.thinking[count]) / self.kept_after_step.rate

    def drafted(self, left: int) -> tuple[int, float]:
        """The best number of tokens that the draft model writes, and seconds per token kept.

        Args:
            left: the most that may be drafted; 0 without a draft model.
        """
        best, seconds = (0, math.inf), self._seconds
        rate, kept = self.accepted.rate, 1.0
        for count in range(1, min(self.most - 1, left) + 1):
            kept += rate**count
            # It catches up with the others by reading one or two tokens at once.
            drafting = seconds.draft[2] + (count - 1) * seconds.draft[1]
            cost = (drafting + seconds.both[count + 1]) / kept
            if cost < min(best[1], self.step / WORTHWHILE):
                best = count, cost
        return best

    def learn(self, is_decision: Sequence[Sequence[bool]], kept: Sequence[int]) -> None:
        """Count the disagreements in a block that the base wrote.

        Args:
            is_decision: whether the rung intervened, per stream and position.
            kept: tokens of the block that each stream emitted.
        """
        pairs = zip(is_decision, kept, strict=True)
        events = [decided for stream, count in pairs for decided in stream[:count]]
        self.disagreements.learn(events, max(1, sum(count > 0 for count in kept)))


@dataclass(frozen=True)
class _Seconds:
    """Costs of passes by number of tokens; the first is of none."""

    base: list[float]
    thinking: list[float]
    both: list[float]
    draft: list[float]
    most_guesses: int


@lru_cache(maxsize=64)
def _seconds(costs: PassCosts, most: int) -> _Seconds:
    sizes = range(max(3, most + 1))
    kinds = (costs.of_base, costs.of_thinking, costs.of_both, costs.of_draft)
    base, thinking, both, draft = ([0.0, *map(kind, sizes[1:])] for kind in kinds)
    paying = [n - 1 for n in range(2, most + 1) if n * both[1] > WORTHWHILE * both[n]]
    return _Seconds(base, thinking, both, draft, max(paying, default=0))
