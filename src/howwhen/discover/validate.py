"""How good is a taxonomy? Offline scores that need no judge, and scores against a known truth.

The paper's three scores ask a language model; these ask the same questions without one:

- consistency: can a sentence's category be told from its words? (cross-validated macro-F1 of a
  naive Bayes classifier over words)
- stability: does another initialisation find the same categories? (adjusted mutual information)
- independence: share of category pairs whose titles share less than half their words
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import (
    adjusted_mutual_info_score,
    f1_score,
    normalized_mutual_info_score,
)
from sklearn.metrics.cluster import contingency_matrix
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.naive_bayes import MultinomialNB

from howwhen.discover.names import characteristic_words

FOLDS = 5
MOST_SENTENCES = 1500
"""Sentences that the offline scores look at, at most."""


@dataclass(frozen=True)
class OfflineScores:
    """Scores of one cell of the grid, each from 0 (bad) to 1 (good)."""

    consistency: float
    stability: float
    independence: float
    score: float
    """Their mean."""
    standard_error: float
    """Of `score`, over five disjoint fifths of the sentences."""


@dataclass(frozen=True)
class TruthScores:
    """Agreement with known labels of the sentences."""

    nmi: float
    """Normalised mutual information (arithmetic mean)."""
    purity: float
    """Share of sentences whose label is the most frequent one of their category."""
    sentences: int
    """Sentences with a label; the others are left out."""


def score_offline(
    sentences: Sequence[str], categories: Sequence[int], twin: Sequence[int], size: int, seed: int
) -> OfflineScores:
    """Score an assignment of sentences to `size` categories.

    Args:
        sentences: their texts.
        categories: category of each.
        twin: category of each in a taxonomy trained from another seed.
        size: number of categories.
        seed: of the sample and the folds.
    """
    chosen = np.random.default_rng(seed).permutation(len(sentences))[:MOST_SENTENCES]
    texts = [sentences[index] for index in chosen]
    ours, other = np.asarray(categories)[chosen], np.asarray(twin)[chosen]
    folds = KFold(min(FOLDS, len(texts)), shuffle=True, random_state=seed)
    predicted = _predict_from_words(texts, ours, folds)
    parts = [rows for _, rows in folds.split(texts)]
    consistency = np.array([_macro_f1(ours[rows], predicted[rows]) for rows in parts])
    stability = np.array([adjusted_mutual_info_score(ours[rows], other[rows]) for rows in parts])
    independence = _independence(texts, ours, size)
    per_part = (consistency + stability + independence) / 3
    return OfflineScores(
        consistency=float(consistency.mean()),
        stability=float(stability.mean()),
        independence=independence,
        score=float(per_part.mean()),
        standard_error=float(per_part.std(ddof=1) / len(parts) ** 0.5),
    )


def score_against_truth(
    categories: Sequence[int], labels: Sequence[str | None]
) -> TruthScores | None:
    """Compare categories with labels; None where no sentence has a label."""
    known = [(c, label) for c, label in zip(categories, labels, strict=True) if label is not None]
    if not known:
        return None
    found, truth = zip(*known, strict=True)
    table = contingency_matrix(truth, found)
    return TruthScores(
        nmi=float(normalized_mutual_info_score(truth, found)),
        purity=float(table.max(axis=0).sum() / table.sum()),
        sentences=len(known),
    )


def _predict_from_words(texts: Sequence[str], categories: np.ndarray, folds: KFold) -> np.ndarray:
    words = CountVectorizer(token_pattern=r"(?u)\w+|[^\w\s]", binary=True).fit_transform(texts)
    predicted: np.ndarray = cross_val_predict(MultinomialNB(), words, categories, cv=folds)
    return predicted


def _macro_f1(truth: np.ndarray, predicted: np.ndarray) -> float:
    return float(f1_score(truth, predicted, average="macro", zero_division=0))


def _independence(texts: Sequence[str], categories: np.ndarray, size: int) -> float:
    words = [set(one) for one in characteristic_words(texts, categories.tolist(), size) if one]
    pairs = list(combinations(words, 2))
    apart = sum(len(a & b) < 0.5 * min(len(a), len(b)) for a, b in pairs)
    return apart / len(pairs) if pairs else 0.0
