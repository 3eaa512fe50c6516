"""How good is a taxonomy? Scores that need no judge, and scores against a known truth.

The paper's scores come from a language model (`judge_scores`). These need only the sentences:

- consistency: does a linear probe predict a sentence's category without seeing the layer it was
  found in? (macro-F1, held out, from the other half of the layers)
- completeness: how much of the variance of those layers do category means explain? (held out) Too
  few categories leave much of it unexplained.
- stability: do other seeds, and other sentences, lead to the same categories? (adjusted Rand index)
- separation: is a sentence nearer to its own category than to the next one? (silhouette, cosine)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean

import numpy as np
from scipy.linalg import lstsq
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.metrics import (
    adjusted_rand_score,
    normalized_mutual_info_score,
    silhouette_score,
)
from sklearn.metrics.cluster import contingency_matrix
from sklearn.metrics.pairwise import cosine_distances
from sklearn.model_selection import KFold

FOLDS = 5
MAX_SENTENCES = 4000
"""The scores look at no more sentences than this."""
SILHOUETTE_SENTENCES = 500
"""Of them, sentences per fold that the silhouette compares with each other."""
TEXT_DIMENSIONS = 128
"""Width of the embedding of a sentence's words."""
RIDGE = 1e-4
"""The probe's penalty, per sentence."""
SHRINKAGE = 1e-3
"""Of the covariance of the probe's decision values, towards equal variances."""
_WORD = r"(?u)\w+|[^\w\s]"


@dataclass(frozen=True)
class OfflineScores:
    """Scores of one cell of the grid without a judge; 1 is best."""

    consistency: float
    """Held-out macro-F1 of a linear probe from the other half of the layers, or from the words if
    only one layer is read."""
    consistency_of_words: float
    """The same from an embedding of the sentence's words (TF-IDF, reduced)."""
    completeness: float
    """Held-out share of variance that category means explain, at the other half of the layers (or
    in the words' embedding if only one layer is read)."""
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
    """One cell's categories of the sampled sentences, from several trainings."""

    kept: np.ndarray
    """From the training that the taxonomy keeps."""
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
            texts: the sampled sentences.
            inputs: their normalised activations at the layer, (sentence, d_model).
            others: their activations at the layers of the other half, (sentence, features).
            seed: of the folds.
        """
        words = _embed_words(tuple(texts), seed)
        self.words, self.others = words, words if others is None else others
        count = min(FOLDS, len(texts))
        folds = KFold(count, shuffle=True, random_state=seed)
        self.folds = list(folds.split(np.arange(len(texts))))
        samples = [held_out[:SILHOUETTE_SENTENCES] for _, held_out in self.folds]
        self.distances = [(sample, cosine_distances(inputs[sample])) for sample in samples]

    def score(self, partitions: Sequence[Partition]) -> list[OfflineScores]:
        """Score all cells of the layer."""
        kept = [partition.kept for partition in partitions]
        by_layers = _cross_val_predict(self.others, kept, self.folds)
        by_words = (
            by_layers
            if self.others is self.words
            else _cross_val_predict(self.words, kept, self.folds)
        )
        by_fold = [_explained(self.others, kept, fold) for fold in self.folds]
        completeness = zip(*by_fold, strict=True)
        return [
            self._score(*cell)
            for cell in zip(partitions, by_layers, by_words, completeness, strict=True)
        ]

    def _score(
        self,
        partition: Partition,
        from_layers: np.ndarray,
        from_words: np.ndarray,
        completeness: Sequence[float],
    ) -> OfflineScores:
        rows = [held_out for _, held_out in self.folds]
        kept = partition.kept
        consistency = [_macro_f1(kept[r], from_layers[r]) for r in rows]
        seeds = [fmean(adjusted_rand_score(kept[r], o[r]) for o in partition.others) for r in rows]
        first, second = partition.halves
        halves = [adjusted_rand_score(first[r], second[r]) for r in rows]
        separation = [_silhouette(kept[sample], between) for sample, between in self.distances]
        parts = [
            fmean((c, e, (s + h) / 2, apart))
            for c, e, s, h, apart in zip(
                consistency, completeness, seeds, halves, separation, strict=True
            )
        ]
        return OfflineScores(
            consistency=fmean(consistency),
            consistency_of_words=fmean(_macro_f1(kept[r], from_words[r]) for r in rows),
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
    """Compare categories with labels; None if no sentence has a label."""
    codes = {label: code for code, label in enumerate(sorted({*labels} - {None}, key=str))}
    if not codes:
        return None
    coded = np.array([-1 if label is None else codes[label] for label in labels])
    truth, known = coded[coded >= 0], np.asarray(categories)[coded >= 0]
    table = contingency_matrix(truth, known)
    return TruthScores(
        nmi=float(normalized_mutual_info_score(truth, known)),
        purity=float(table.max(axis=0).sum() / table.sum()),
        ari=float(adjusted_rand_score(truth, known)),
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


@lru_cache(maxsize=1)
def _embed_words(texts: tuple[str, ...], seed: int) -> np.ndarray:
    """Latent semantic analysis: TF-IDF of words and pairs of words, reduced.

    It is cached, since every layer samples the same sentences.
    """
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

    One ridge regression predicts the categories of all partitions. Linear discriminants of its
    decision values then separate the categories of each partition (Hastie, Buja and Tibshirani
    1995). The regression's highest value alone would mask categories that lie between others.
    """
    sizes = [int(partition.max()) + 1 for partition in partitions]
    targets = np.hstack([np.eye(n)[part] for n, part in zip(sizes, partitions, strict=True)])
    columns = np.split(np.arange(targets.shape[1]), np.cumsum(sizes)[:-1])
    predictions = [np.empty_like(partition) for partition in partitions]
    for train, held_out in folds:
        probe = Ridge(alpha=RIDGE * len(train)).fit(features[train], targets[train])
        values = probe.predict(features).reshape(len(features), -1)
        for predicted, partition, own in zip(predictions, partitions, columns, strict=True):
            predicted[held_out] = _lda_predict(values[:, own], partition, train, held_out)
    return predictions


def _lda_predict(
    decision_values: np.ndarray, categories: np.ndarray, train: np.ndarray, held_out: np.ndarray
) -> np.ndarray:
    """Categories of the held-out rows by the linear discriminants of the others.

    Scikit-learn's `LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE)`, whose loop over
    categories takes ten times as long. A category with fewer than two training rows is never
    predicted.
    """
    counts = np.bincount(categories[train])
    used = np.flatnonzero(counts > 1)
    if len(used) < 2:
        return np.full(len(held_out), counts.argmax())
    rows = train[counts[categories[train]] > 1]
    # The columns add up to 1, so the last one adds nothing.
    values, members = decision_values[:, :-1], categories[rows][:, None] == used
    centroids = members.T.astype(values.dtype) @ values[rows] / counts[used, None]
    centered = values[rows] - centroids[members.argmax(1)]
    covariance = (1 - SHRINKAGE) * centered.T @ centered / len(rows)
    spread = np.square(centered).sum() / centered.size
    covariance += SHRINKAGE * spread * np.eye(len(covariance))
    weights = lstsq(covariance, centroids.T)[0]
    biases = np.log(counts[used] / len(rows)) - 0.5 * (centroids.T * weights).sum(0)
    predicted: np.ndarray = used[(values[held_out] @ weights + biases).argmax(1)]
    return predicted


def _explained(
    features: np.ndarray,
    partitions: Sequence[np.ndarray],
    fold: tuple[np.ndarray, np.ndarray],
) -> list[float]:
    """For each partition the share of held-out variance that category means of the rest explain.

    A category without a training sentence has the mean of all of them.
    """
    train, held_out = fold
    overall = features[train].mean(0)
    trained, centered = features[train] - overall, features[held_out] - overall
    total = max(float(np.square(centered).sum()), 1e-12)
    trained = trained.astype(float)
    shares = []
    for categories in partitions:
        members = np.eye(int(categories.max()) + 1)[categories[train]]
        means = members.T @ trained / np.maximum(members.sum(0), 1)[:, None]
        left = np.square(centered - means[categories[held_out]]).sum()
        shares.append(1 - float(left) / total)
    return shares


def _macro_f1(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Mean F1 of the categories that occur in either (scikit-learn spends most time on checks)."""
    size = int(max(truth.max(), predicted.max())) + 1
    right = np.bincount(truth[truth == predicted], minlength=size)
    either = np.bincount(truth, minlength=size) + np.bincount(predicted, minlength=size)
    occurring = either > 0
    return float((2 * right[occurring] / either[occurring]).mean())


def _silhouette(categories: np.ndarray, distances: np.ndarray) -> float:
    """Mean silhouette of sentences with these distances; 0 if they are all of one category."""
    occurring = len(np.unique(categories))
    if not 1 < occurring < len(categories):
        return 0.0
    return float(silhouette_score(distances, categories, metric="precomputed"))
