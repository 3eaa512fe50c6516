"""How much the thinking model tells on a rung, in bits: the length of a code for what it says.

The code belongs to a coder who sees the base only: its next-token distribution, and its residual
through the self-gate's probe. Three things are told:

- *when*: at every token, whether the rung intervened (`-log2 P(intervention or not)`);
- *which*: at every steered token, the category (`-log2 P(category)`);
- *what*: the token itself, where the thinking model chooses it (`-log2 p_base(token)`), or which of
  a few candidates.

Where tokens are chosen and nothing is steered, every token of the answer can be coded under the
base's distribution instead, without *when*; the shorter of the two codes counts.

The probabilities of *when* and *which* are logistic regressions, cross-fitted by problem: no answer
is coded by a fit that has seen an answer to the same problem. The probe has seen none of them.
Where the frequencies alone, or no knowledge at all, give a shorter code, that is used. The result
is an upper bound on what is told, since a better coder would need fewer bits. What is set once for
all answers, or taken over from the hybrid's run (how many places a random rung draws), is not
counted.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from howwhen.records import WRITTEN_BY_THINKING, Bits, HybridToken, HybridTrace, RungName

FOLDS = 5
SURPRISE = 1e-4
"""Share of a coder's belief that is spread evenly, so that nothing costs infinitely much."""
MAX_FITTED = 20_000
"""Tokens that a fit learns from; drawn at random where there are more."""
UNKNOWN_TOKEN_BITS = 24.0
"""For a token that the base cannot write: an escape, and its number in the vocabulary."""
Part = Literal["when", "which", "what"]
TELLS: dict[RungName, tuple[Part, ...]] = {
    "guardrail-only": ("when", "what"),
    "logit-difference": ("when", "what"),
    "bias-only": ("when",),
    "shared-vector": ("when",),
    "magnitude-only": ("when", "which"),
    "random-category": ("when",),
    "random-positions": ("which",),
    "random-positions-anywhere": ("which",),
    "random-vectors": ("when", "which"),
    "random-guardrail": ("when", "which"),
    "base-guardrail": ("when", "which"),
    "random-unit-vectors": ("when", "which"),
    "random-category-not-top-3": ("when", "which"),
    "least-similar-category": ("when", "which"),
    "random-vectors-and-category": ("when",),
    "random-positions-at-rate": ("which",),
    "entropy-gate": ("which",),
    "early-only": ("when", "which"),
    "hybrid": ("when", "which"),
    "takeover": ("when", "what"),
    "reverse-takeover": ("when", "what"),
    "thinking": ("when", "what"),
    "hybrid-budget": ("when", "which"),
    "takeover-budget": ("when", "what"),
    **dict.fromkeys(("base", "base-step-by-step", "self-gate", "self-gate-budget"), ()),
}
"""What the thinking model tells on each rung. Knock-outs are not reckoned."""
PICKED_WITHOUT_THINKING: tuple[RungName, ...] = ("random-guardrail", "base-guardrail")
"""Rungs on which the thinking model does not pick among the candidates of a sweep."""
READ_ALONG = frozenset(
    ["self-gate", *(rung for rung, parts in TELLS.items() if {"when", "which"} & {*parts})]
)
"""Rungs whose traces hold what the probe says."""


def bits_of(rung: RungName, traces: Sequence[HybridTrace]) -> list[Bits] | None:
    """What the thinking model tells in every answer of one pass over the problems.

    Args:
        rung: of all of them.
        traces: one for each problem.

    Returns:
        None where it cannot be known: of knock-outs, in traces of an earlier version, and where
        there is a single problem, so that nothing could be cross-fitted.
    """
    if rung not in TELLS:
        return None
    parts = TELLS[rung]
    zeros = [0.0] * len(traces)
    is_swept = rung not in PICKED_WITHOUT_THINKING and any(
        token.candidates for trace in traces for token in trace.tokens
    )
    told = told_differently if rung in WRITTEN_BY_THINKING else intervened
    what = [_what(trace, told) for trace in traces] if "what" in parts or is_swept else zeros
    if not {"when", "which"} & {*parts}:
        return [Bits(0.0, 0.0, bits) for bits in what]
    if len(traces) < 2 or any(token.log_odds is None for t in traces for token in t.tokens):
        return None
    when = _when(traces, told) if "when" in parts else zeros
    which = _which(traces) if "which" in parts else zeros
    if parts == ("when", "what"):
        every = [sum(map(_token_bits, trace.tokens)) for trace in traces]
        if sum(every) < sum(when) + sum(what):
            return [Bits(0.0, 0.0, bits) for bits in every]
    return [Bits(*each) for each in zip(when, which, what, strict=True)]


Told = Callable[[HybridToken], bool]
"""Whether something is told at a token."""


def intervened(token: HybridToken) -> bool:
    """Whether the rung intervened."""
    return token.is_decision


def told_differently(token: HybridToken) -> bool:
    """Whether the token is not the base's own."""
    return token.id != token.base_id


def _token_bits(token: HybridToken) -> float:
    """Bits of a token under the base's own distribution."""
    if token.base_log_prob is None:
        return UNKNOWN_TOKEN_BITS
    return -token.base_log_prob / math.log(2)


def _what(trace: HybridTrace, told: Told) -> float:
    """Bits of the tokens that the thinking model chose, at interventions."""
    total = 0.0
    for token in trace.tokens:
        if token.candidates:
            total += math.log2(len({candidate.id for candidate in token.candidates}))
        elif told(token) and token.category is None:
            total += _token_bits(token) if token.choice_bits is None else token.choice_bits
    return total


def _when(traces: Sequence[HybridTrace], told: Told) -> list[float]:
    tokens = [(row, token) for row, trace in enumerate(traces) for token in trace.tokens]
    margins = np.array([token.base_margin or 0.0 for _, token in tokens]).clip(max=20.0)
    odds = np.array([token.log_odds or 0.0 for _, token in tokens])
    features = np.stack([odds, margins, np.log1p(margins)], 1)
    events = np.array([int(told(token)) for _, token in tokens])
    return _sums(len(traces), tokens, code_lengths(features, events, _folds(traces, tokens), 2))


def _which(traces: Sequence[HybridTrace]) -> list[float]:
    tokens = [
        (row, token)
        for row, trace in enumerate(traces)
        for token in trace.tokens
        if token.category is not None
    ]
    size = max((len(token.category_scores) for _, token in tokens), default=0)
    if size < 2:  # there is but one category
        return [0.0] * len(traces)
    scores = np.array([token.category_scores for _, token in tokens])
    told = np.array([token.category for _, token in tokens])
    return _sums(len(traces), tokens, code_lengths(scores, told, _folds(traces, tokens), size))


Place = tuple[int, HybridToken]
"""The number of a trace, and one of its tokens."""


def _folds(traces: Sequence[HybridTrace], tokens: Sequence[Place]) -> Int[np.ndarray, " n"]:
    """The fold of every token: that of its answer."""
    order = np.random.default_rng(0).permutation(len(traces)) % FOLDS
    return np.array([order[row] for row, _ in tokens])


def _sums(answers: int, tokens: Sequence[Place], lengths: Float[np.ndarray, " n"]) -> list[float]:
    rows = np.array([row for row, _ in tokens], dtype=int)
    return [float(total) for total in np.bincount(rows, lengths, minlength=answers)]


def code_lengths(
    features: Float[np.ndarray, "n features"],
    told: Int[np.ndarray, " n"],
    folds: Int[np.ndarray, " n"],
    size: int,
) -> Float[np.ndarray, " n"]:
    """Bits that tell one of `size` things at every place, to a coder who sees the features.

    The coder of a fold has learned from all other folds. Of what it learned with the features, the
    frequencies alone, and nothing at all, the shortest code of all places together counts.

    Args:
        features: what the coder sees.
        told: from 0.
        folds: of every place.
        size: how many things there are to tell.
    """
    by_features, by_shares = np.zeros(len(told)), np.zeros(len(told))
    for fold in np.unique(folds):
        own = folds == fold
        coder = _Coder.fit(features[~own], told[~own], size)
        chances = coder.probabilities(features[own])[np.arange(own.sum()), told[own]]
        by_features[own] = -np.log2(chances)
        by_shares[own] = -np.log2(coder.shares[told[own]])
    nothing = np.full(len(told), math.log2(size))
    found: Float[np.ndarray, " n"] = min(
        (by_features, by_shares, nothing), key=lambda lengths: float(lengths.sum())
    )
    return found


@dataclass(frozen=True)
class _Coder:
    """A logistic regression; where only one thing was ever told, how often each was."""

    shares: Float[np.ndarray, " size"]
    """How often each was told, and once more."""
    model: Any
    """None where there was nothing to tell apart."""

    @classmethod
    def fit(
        cls, features: Float[np.ndarray, "n features"], told: Int[np.ndarray, " n"], size: int
    ) -> "_Coder":
        """Learn from places at which something was told."""
        from sklearn.linear_model import LogisticRegression  # takes a second to import
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if len(told) > MAX_FITTED:
            rows = np.random.default_rng(0).choice(len(told), MAX_FITTED, replace=False)
            features, told = features[rows], told[rows]
        counts = np.bincount(told, minlength=size)
        shares = (counts + 1) / (counts + 1).sum()
        if (counts > 0).sum() < 2:
            return cls(shares, None)
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        return cls(shares, model.fit(features, told))

    def probabilities(
        self, features: Float[np.ndarray, "n features"]
    ) -> Float[np.ndarray, "n size"]:
        """What it expects to be told; never nothing of anything."""
        found = np.tile(self.shares, (len(features), 1))
        if self.model is not None:
            found[:] = 0
            found[:, self.model.classes_] = self.model.predict_proba(features)
        return (1 - SURPRISE) * found + SURPRISE * self.shares
