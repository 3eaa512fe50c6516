"""The sentences of all answers: as each layer of the reader sees them, and as a namer does."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from howwhen.discover.taxonomy import LayerSentences, heldout_layers, scoring_sample
from howwhen.discover.titles import CategorisedSentences
from howwhen.probes import Taxonomy, normalise, normalise_in_place
from howwhen.records import Rollout

MAX_TRACES = 3
"""Whole answers that a judge sees together with the sentences."""
Item = TypeVar("Item")


@runtime_checkable
class SentenceActivations(Protocol):
    """Means of the residuals of all sentences, in order of rollouts and their spans."""

    def mean(self, layer: int) -> Float[Tensor, " d_model"]:
        """Corpus mean over the sentences that are trained on."""

    def rows(
        self, layer: int, wanted: Sequence[int] | None = None
    ) -> Float[Tensor, "sentence d_model"]:
        """Raw means of all sentences, or of the wanted ones, which ascend."""

    def parts(
        self, layer: int, wanted: Sequence[int] | None = None
    ) -> Iterator[Float[Tensor, "part d_model"]]:
        """The same, some at a time."""


@dataclass(frozen=True)
class Corpus:
    """All sentences, and which of them are trained on."""

    rollouts: Sequence[Rollout]
    labels: Mapping[str, Sequence[str | None]]
    """For each level of the truth a label per sentence; empty if no truth is known."""
    min_words: int
    """Shorter sentences are categorised but not trained on."""

    @cached_property
    def texts(self) -> list[str]:
        """Every sentence, in order of rollouts and their spans."""
        return [text for rollout in self.rollouts for text in rollout.sentences()]

    @cached_property
    def is_trained(self) -> list[bool]:
        """Whether each sentence is long enough to be trained on."""
        return [len(text.split()) >= self.min_words for text in self.texts]

    @cached_property
    def trained(self) -> list[int]:
        """Numbers of the sentences that are trained on."""
        return [number for number, is_trained in enumerate(self.is_trained) if is_trained]

    @cached_property
    def trained_labels(self) -> dict[str, list[str | None]]:
        """The labels of the sentences that are trained on."""
        return {level: self.select_trained(column) for level, column in self.labels.items()}

    def select_trained(self, column: Sequence[Item]) -> list[Item]:
        """The values of the sentences that are trained on."""
        return [column[number] for number in self.trained]

    def layer_sentences(
        self, activations: SentenceActivations, layer: int, layers: Sequence[int], seed: int
    ) -> LayerSentences:
        """The training sentences as one layer sees them.

        Args:
            activations: of all sentences.
            layer: the layer.
            layers: all layers that were read.
            seed: of the sample that the offline scores use.
        """
        sample_rows = scoring_sample(len(self.trained), seed)
        sampled = [self.trained[number] for number in sample_rows]
        others = [
            normalise(activations.rows(other, sampled), activations.mean(other)).numpy()
            for other in heldout_layers(layers, layer)
        ]
        mean = activations.mean(layer)
        return LayerSentences(
            layer=layer,
            mean=mean,
            inputs=normalise_in_place(activations.rows(layer, self.trained), mean),
            texts=self.select_trained(self.texts),
            labels=self.trained_labels,
            sample_rows=sample_rows,
            others=np.hstack(others) if others else None,
        )

    def categorise(
        self, activations: SentenceActivations, taxonomy: Taxonomy
    ) -> CategorisedSentences:
        """The training sentences with their categories, as a namer sees them."""
        strengths, categories = score_all(activations, taxonomy, self.trained).max(1)
        return CategorisedSentences(
            texts=self.select_trained(self.texts),
            categories=categories.tolist(),
            strengths=strengths.tolist(),
            size=taxonomy.size,
            traces=[rollout.text for rollout in self.rollouts[:MAX_TRACES]],
        )


def score_all(
    activations: SentenceActivations, taxonomy: Taxonomy, wanted: Sequence[int] | None = None
) -> Float[Tensor, "sentence category"]:
    """A taxonomy's scores of all sentences, or of the wanted ones, which ascend."""
    parts = activations.parts(taxonomy.layer, wanted)
    return torch.cat([taxonomy.scores(part) for part in parts])


def count_per_category(categories: Sequence[int], size: int) -> tuple[int, ...]:
    """Number of sentences in each of `size` categories."""
    counts = Counter(categories)
    return tuple(counts[category] for category in range(size))
