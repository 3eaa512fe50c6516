"""How many tokens the base drafts before the thinking model looks.

A longer block saves passes of the thinking model and wastes passes of the base after a decision.
The best length follows from the rate of decisions seen so far. A block also ends where the base is
unsure of its own token, since decisions gather there.
"""

import math
from dataclasses import dataclass, field

CHECK_COST = 1.5
"""Cost of the thinking model's pass over a block, in single-token passes of the base."""
PRIOR_TOKENS, PRIOR_RATE = 20.0, 0.05
"""What the rate of decisions is taken to be before any was seen, and how firmly."""
MEMORY = 0.98
"""How much a token counts for after the next one."""


@dataclass
class Pace:
    """Adapts the block length to the running rate of decisions."""

    longest: int
    """Longest block; 1 is stepwise decoding."""
    unsure_below: float = math.log(0.5)
    """Log-probability of its own token below which the base is unsure."""
    _tokens: float = field(default=PRIOR_TOKENS, init=False)
    _decisions: float = field(default=PRIOR_TOKENS * PRIOR_RATE, init=False)

    @property
    def is_adaptive(self) -> bool:
        """Whether there is anything to adapt."""
        return self.longest > 1

    def length(self) -> int:
        """Block length with the most tokens kept per unit of cost."""
        if self.longest == 1:
            return 1
        rate = self._decisions / self._tokens
        return max(range(1, self.longest + 1), key=lambda length: _worth(length, rate))

    def learn(
        self, unsure: list[list[bool]], is_decision: list[list[bool]], kept: list[int]
    ) -> None:
        """Count the decisions among the tokens of which the base was sure.

        Args:
            unsure: per stream and position of a block.
            is_decision: the same, whether the rung intervened.
            kept: tokens of the block that each stream emitted.
        """
        if not self.is_adaptive:
            return
        sure = [
            decided
            for own, said, count in zip(unsure, is_decision, kept, strict=True)
            for is_unsure, decided in zip(own[:count], said[:count], strict=True)
            if not is_unsure
        ]
        running = max(1, sum(count > 0 for count in kept))
        fade: float = MEMORY ** (len(sure) / running)
        self._tokens = self._tokens * fade + len(sure)
        self._decisions = self._decisions * fade + sum(sure)


def _worth(length: int, rate: float) -> float:
    """Expected tokens kept by a block, over its cost."""
    kept = length if rate == 0 else (1 - (1 - rate) ** length) / rate
    return kept / (length + CHECK_COST)
