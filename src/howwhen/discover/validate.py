"""How good is a taxonomy? Scores that need no judge, and scores against a known truth.

The paper's scores ask a language model (`judged`). These ask the sentences themselves:

- consistency: can a sentence's category be foretold by a linear probe that does not see the layer
  it was found in? (macro-F1, held out, from the other half of the layers)
- completeness: how much of what those layers hold does a category say of its sentences? (share of
  their variance that category means explain, held out); too few categories leave much unsaid
- stability: do other seeds, and other sentences, lead to the same categories? (adjusted Rand index)
- separation: is a sentence nearer to its own category than to the next one? (silhouette, cosine)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.metrics import (
    adjusted_rand_score,
    f1_score,
    normalized_mutual_info_score,
    silhouette_score,
)
from sklearn.metrics.cluster import contingency_matrix
from sklearn.model_selection import KFold

FOLDS = 5
MAX_SENTENCES = 4000
"""Sentences that the scores look at, at most."""
SILHOUETTE_SENTENCES = 500
"""Of them, sentences per fold whose distances to each other are looked at."""
TEXT_DIMENSIONS = 128
"""Width of the embedding of a sentence's words."""
RIDGE = 1e-4
"""The probe's penalty, per sentence."""
SHRINKAGE = 1e-3
"""Of the covariance of what the probe says, towards equal variances."""
_WORD = r"(?u)\w+|[^\w\s]"


@dataclass(frozen=True)
class OfflineScores:
    """Scores of one cell of the grid without a judge; 1 is best."""

    consistency: float
    """Held-out macro-F1 of a linear probe from the other half of the layers; from the words where
    only one layer is read."""
    consistency_of_words: float
    """The same from an embedding of the sentence's words (TF-IDF, reduced)."""
    completeness: float
    """Held-out share of variance, at the other half of the layers (or of the words' embedding,
    where only one layer is read), that the means of the categories explain."""
    stability_over_seeds: float
    """Mean adjusted Rand index with trainings from other seeds."""
    stability_over_halves: float
    """Adjusted Rand index of trainings on two disjoint halves of the sentences."""
    separation: float
    """Mean silhouette with cosine distance, from -1 to 1."""
    score: float
    """Mean of consistency, completeness, the mean of both stabilities, and separation."""
    standard_error: float
    """Of `score`, over five disjoint fifths of the sentences."""


@dataclass(frozen=True)
class TruthScores:
    """Agreement with known labels of the sentences."""

    nmi: float
    """Normalised mutual information (arithmetic mean)."""
    purity: float
    """Share of sentences whose label is the most frequent one of their category."""
    ari: float
    """Adjusted Rand index."""
    sentences: int
    """Sentences with a label; the others are left out."""


@dataclass(frozen=True)
class Partition:
    """One cell's categories of the looked-at sentences, from several trainings."""

    own: np.ndarray
    others: Sequence[np.ndarray]
    """From other seeds."""
    halves: tuple[np.ndarray, np.ndarray]
    """From each half of the sentences."""


class Validator:
    """Scores the cells of one layer; what they share is computed once."""

    def __init__(
        self, texts: Sequence[str], inputs: np.ndarray, others: np.ndarray | None, seed: int
    ) -> None:
        """Prepare folds and probes.

        Args:
            texts: the sentences looked at.
            inputs: their normalised activations at the layer, (sentence, d_model).
            others: their activations at the layers of the other half, (sentence, features).
            seed: of the folds.
        """
        self.inputs = inputs
        words = _embed_words(texts, seed)
        self.words, self.others = words, words if others is None else others
        count = min(FOLDS, len(texts))
        folds = KFold(count, shuffle=True, random_state=seed)
        self.folds = list(folds.split(np.arange(len(texts))))

    def score(self, partitions: Sequence[Partition]) -> list[OfflineScores]:
        """Score all cells of the layer."""
        found = [partition.own for partition in partitions]
        by_layers = _cross_val_predict(self.others, found, self.folds)
        by_words = (
            by_layers
            if self.others is self.words
            else _cross_val_predict(self.words, found, self.folds)
        )
        return [
            self._score(partition, one, other)
            for partition, one, other in zip(partitions, by_layers, by_words, strict=True)
        ]

    def _score(self, partition: Partition, layers: np.ndarray, words: np.ndarray) -> OfflineScores:
        rows = [held_out for _, held_out in self.folds]
        own = partition.own
        consistency = [_macro_f1(own[r], layers[r]) for r in rows]
        seeds = [fmean(adjusted_rand_score(own[r], o[r]) for o in partition.others) for r in rows]
        first, second = partition.halves
        halves = [adjusted_rand_score(first[r], second[r]) for r in rows]
        separation = [_silhouette(self.inputs, own, r) for r in rows]
        completeness = [_explained(self.others, own, fold) for fold in self.folds]
        parts = [
            fmean((c, e, (s + h) / 2, apart))
            for c, e, s, h, apart in zip(
                consistency, completeness, seeds, halves, separation, strict=True
            )
        ]
        return OfflineScores(
            consistency=fmean(consistency),
            consistency_of_words=fmean(_macro_f1(own[r], words[r]) for r in rows),
            completeness=fmean(completeness),
            stability_over_seeds=fmean(seeds),
            stability_over_halves=fmean(halves),
            separation=fmean(separation),
            score=fmean(parts),
            standard_error=float(np.std(parts, ddof=1) / len(parts) ** 0.5),
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
        ari=float(adjusted_rand_score(truth, found)),
        sentences=len(known),
    )


def confusion(
    categories: Sequence[int], labels: Sequence[str | None], size: int
) -> dict[str, list[int]]:
    """For every label the number of its sentences in each of `size` categories."""
    table: dict[str, list[int]] = {}
    for category, label in zip(categories, labels, strict=True):
        table.setdefault(label or "no label", [0] * size)[category] += 1
    return dict(sorted(table.items()))


def _embed_words(texts: Sequence[str], seed: int) -> np.ndarray:
    """Latent semantic analysis: TF-IDF of words and pairs of words, reduced."""
    counts = TfidfVectorizer(token_pattern=_WORD, ngram_range=(1, 2), sublinear_tf=True)
    weights = counts.fit_transform(texts)
    width = min(TEXT_DIMENSIONS, weights.shape[1] - 1)
    if width < 1:
        return np.zeros((len(texts), 1))
    reduced: np.ndarray = TruncatedSVD(width, random_state=seed).fit_transform(weights)
    return reduced


def _cross_val_predict(
    features: np.ndarray,
    partitions: Sequence[np.ndarray],
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
) -> list[np.ndarray]:
    """Held-out predictions of all partitions at once, by penalised discriminant analysis.

    One ridge regression on the categories of all partitions, then each partition's linear
    discriminants of what that regression says (Hastie, Buja and Tibshirani 1995). The regression's
    highest value alone would mask categories that lie between others.
    """
    widths = [int(one.max()) + 1 for one in partitions]
    targets = np.hstack([np.eye(n)[one] for n, one in zip(widths, partitions, strict=True)])
    columns = np.split(np.arange(targets.shape[1]), np.cumsum(widths)[:-1])
    predicted = [np.empty_like(one) for one in partitions]
    for train, held_out in folds:
        probe = Ridge(alpha=RIDGE * len(train)).fit(features[train], targets[train])
        said = probe.predict(features).reshape(len(features), -1)
        for one, found, own in zip(predicted, partitions, columns, strict=True):
            one[held_out] = _lda_predict(said[:, own], found, train, held_out)
    return predicted


def _lda_predict(
    said: np.ndarray, categories: np.ndarray, train: np.ndarray, held_out: np.ndarray
) -> np.ndarray:
    """Categories of the held-out rows by the linear discriminants of the others.

    A category with fewer than two other sentences is never foretold.
    """
    counts = np.bincount(categories[train])
    rows = train[counts[categories[train]] > 1]
    if len(np.unique(categories[rows])) < 2:
        return np.full(len(held_out), counts.argmax())
    # The columns add up to 1, so the last one says nothing new.
    discriminants = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE)
    discriminants.fit(said[rows, :-1], categories[rows])
    found: np.ndarray = discriminants.predict(said[held_out, :-1])
    return found


def _explained(
    features: np.ndarray, categories: np.ndarray, fold: tuple[np.ndarray, np.ndarray]
) -> float:
    """Share of the held-out variance that the other sentences' category means explain.

    A category without any other sentence has the mean of all of them.
    """
    train, held_out = fold
    members = np.eye(int(categories.max()) + 1)[categories]
    overall = features[train].mean(0)
    sums = members[train].T @ (features[train] - overall)
    means = sums / np.maximum(members[train].sum(0), 1)[:, None]
    away = features[held_out] - overall
    left = np.square(away - means[categories[held_out]]).sum()
    return 1 - float(left) / max(float(np.square(away).sum()), 1e-12)


def _macro_f1(truth: np.ndarray, predicted: np.ndarray) -> float:
    return float(f1_score(truth, predicted, average="macro", zero_division=0))


def _silhouette(inputs: np.ndarray, categories: np.ndarray, rows: np.ndarray) -> float:
    """Mean silhouette of some of the rows; 0 where they are all of one category."""
    some = rows[:SILHOUETTE_SENTENCES]
    kinds = len(np.unique(categories[some]))
    if not 1 < kinds < len(some):
        return 0.0
    return float(silhouette_score(inputs[some], categories[some], metric="cosine"))
