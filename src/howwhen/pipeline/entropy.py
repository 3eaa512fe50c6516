"""The threshold of the rung `entropy-gate`: as many steered tokens per answer as the hybrid has."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from howwhen.hybrid.choice import Rung
from howwhen.pipeline.rungs import Rungs
from howwhen.records import HybridTrace, one_line

ENTROPY_GATE = "entropy_gate.json"
"""File with the threshold of the rung `entropy-gate`, if it was asked for."""
MAX_PROBLEMS = 64
"""Problems that a threshold is tried on."""
TRIALS = 10
LOWEST = 1e-4
"""Lowest threshold, in nats."""
Answer = Callable[[Rung], Sequence[HybridTrace]]
"""Answers the problems that a threshold is chosen on."""


@dataclass(frozen=True)
class EntropyThreshold:
    """A threshold, and how often it steers on the problems that it was chosen on."""

    threshold: float
    """In nats."""
    per_answer: float
    """Tokens of an answer that are steered at this threshold."""
    hybrid_per_answer: float
    """Tokens of an answer that the hybrid steers."""

    __repr__ = one_line


def choose_threshold(rungs: Rungs, vocabulary: int, answer: Answer) -> EntropyThreshold:
    """The threshold that steers as often per answer as the hybrid does, by bisection.

    Args:
        rungs: those of the run.
        vocabulary: number of tokens, which bounds the entropy.
        answer: answers the problems that it is chosen on.
    """
    wanted = _per_answer(answer(rungs.full))
    low, high = LOWEST, math.log(vocabulary)
    tried: list[EntropyThreshold] = []
    for _ in range(TRIALS):
        threshold = math.sqrt(low * high)
        per_answer = _per_answer(answer(rungs.entropy_gate(threshold)))
        tried.append(EntropyThreshold(threshold, per_answer, wanted))
        if per_answer > wanted:
            low = threshold
        else:
            high = threshold
    return min(tried, key=lambda one: abs(one.per_answer - wanted))


def _per_answer(traces: Sequence[HybridTrace]) -> float:
    return sum(trace.decisions for trace in traces) / len(traces)
