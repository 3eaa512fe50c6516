"""How concentrated the difference between two models is: over tokens, words and categories."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from howwhen.records import Concentration, Enriched, HybridTrace

TOP_SHARES = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
"""Shares of the tokens whose part in the divergence is told."""
FEWEST = 3
"""Disagreements at which a word has to be wanted."""
WORDS = 12
"""The most words that are told."""


def concentration_of(
    rung: str,
    traces: Sequence[HybridTrace],
    word: Callable[[int], str],
    categories: Mapping[str, tuple[int, int]],
) -> Concentration | None:
    """How concentrated the divergence of the two models is in some answers.

    Args:
        rung: that wrote them.
        traces: the answers.
        word: the text of a token.
        categories: by title, how often the hybrid steered with it, and how many sentences of the
            thinking model it has.

    Returns:
        None where no divergence was noted.
    """
    tokens = [token for trace in traces for token in trace.tokens]
    noted = np.array([token.divergence for token in tokens if token.divergence is not None])
    if len(noted) < len(tokens) or not noted.sum():
        return None
    ranked = np.sort(noted)[::-1]
    held = ranked.cumsum() / ranked.sum()
    at, elsewhere = (
        Counter(
            word(token.thinking_id)
            for token in tokens
            if token.is_decision == is_decision and token.thinking_id is not None
        )
        for is_decision in (True, False)
    )
    counts = {text: (count, elsewhere[text]) for text, count in at.items()}
    words = _enriched(counts, elsewhere.total())
    return Concentration(
        rung=rung,
        tokens=len(tokens),
        mean=float(noted.mean()),
        gini=gini(noted),
        top=tuple(
            (share, float(held[max(0, math.ceil(share * len(ranked)) - 1)])) for share in TOP_SHARES
        ),
        words=tuple(one for one in words if one.at_disagreements >= FEWEST)[:WORDS],
        categories=tuple(_enriched(categories, sum(n for _, n in categories.values()))),
    )


def gini(values: Float[np.ndarray, " n"]) -> float:
    """Gini index: 0 where all values are equal, near 1 where one of many holds everything."""
    ranked = np.sort(values)
    count = len(ranked)
    weights = 2 * np.arange(1, count + 1) - count - 1
    return float((weights * ranked).sum() / (count * ranked.sum()))


def _enriched(counts: Mapping[str, tuple[int, int]], elsewhere: int) -> list[Enriched]:
    """How much more common each thing is at disagreements than elsewhere, the most first."""
    at = sum(count for count, _ in counts.values())
    found = []
    for name, (here, there) in counts.items():
        ratio = ((here + 0.5) / (at + 1)) / ((there + 0.5) / (elsewhere + 1))
        found.append(Enriched(name, here, there, ratio))
    return sorted(found, key=lambda one: (-one.ratio, one.name))
