"""How many tokens the base drafts before the thinking model verifies them.

A longer block saves passes of the thinking model and wastes passes of the base after a
disagreement. The best length follows from the rate of disagreements so far. If most of them come at
tokens to which the base gives a low probability, a block also ends at such a token.
"""

import math
from dataclasses import dataclass, field

CHECK_COST = 1.3
"""Cost of the thinking model's pass over a block, in single-token passes of the base."""
MIN_RATE_TO_STOP = 0.25
"""Rate of disagreements among low-confidence tokens from which on a block ends at one."""
DECAY = 0.98
"""Weight that a token keeps with each token that follows."""


@dataclass
class Rate:
    """A running rate of disagreements, in which older tokens weigh less."""

    rate: float
    """At first, the rate assumed before any token was seen."""
    tokens: float = 20.0
    """Number of tokens that the rate rests on."""

    def learn(self, decisions: list[bool], streams: int) -> None:
        """Take in more tokens, of so many streams."""
        fade: float = DECAY ** (len(decisions) / streams)
        total = self.tokens * fade + len(decisions)
        self.rate = (self.rate * self.tokens * fade + sum(decisions)) / total
        self.tokens = total


@dataclass
class BlockSizer:
    """Adapts the block length to the running rate of decisions."""

    max_length: int
    """Longest block; 1 is stepwise decoding."""
    confident_above: float = math.log(0.5)
    """Log-probability of its own token, in nats, below which the base has low confidence."""
    overall: Rate = field(default_factory=lambda: Rate(0.1))
    """Among all tokens."""
    confident: Rate = field(default_factory=lambda: Rate(0.05))
    """Among tokens that the base is confident of."""
    low_confidence: Rate = field(default_factory=lambda: Rate(0.5, 1.0))
    """Among the others."""

    @property
    def is_adaptive(self) -> bool:
        """Whether there is anything to adapt."""
        return self.max_length > 1

    @property
    def ends_at_low_confidence(self) -> bool:
        """Whether a block ends at a token of low confidence."""
        return self.is_adaptive and self.low_confidence.rate >= MIN_RATE_TO_STOP

    def length(self) -> int:
        """Block length with the most tokens kept per unit of cost."""
        rate = self.confident.rate if self.ends_at_low_confidence else self.overall.rate
        return max(range(1, self.max_length + 1), key=lambda length: _tokens_per_cost(length, rate))

    def learn(
        self, low_confidence: list[list[bool]], is_decision: list[list[bool]], kept: list[int]
    ) -> None:
        """Count the disagreements among tokens of either kind, and among all.

        Args:
            low_confidence: whether the base had low confidence, per stream and position of a block.
            is_decision: whether the rung intervened, likewise.
            kept: tokens of the block that each stream emitted.
        """
        if not self.is_adaptive:
            return
        pairs = [
            pair
            for is_low, decided, count in zip(low_confidence, is_decision, kept, strict=True)
            for pair in zip(is_low[:count], decided[:count], strict=True)
        ]
        streams = max(1, sum(count > 0 for count in kept))
        self.overall.learn([decided for _, decided in pairs], streams)
        for rate, kind in ((self.confident, False), (self.low_confidence, True)):
            rate.learn([decided for is_low, decided in pairs if is_low is kind], streams)


def _tokens_per_cost(length: int, rate: float) -> float:
    """Expected tokens kept by a block, over its cost."""
    kept = length if rate == 0 else (1 - (1 - rate) ** length) / rate
    return kept / (length + CHECK_COST)
