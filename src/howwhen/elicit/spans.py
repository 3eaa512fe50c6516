"""Examples of the first version: whole sentences of a category, and whole answers for the bias.

Of every category's sentences, the 4N with the highest activation are looked at, and the N that the
base finds least likely are kept (paper, first version, section 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from howwhen.elicit.examples import Decisions, SteeredWindow, TrainingExample
from howwhen.records import Rollout

LOOKED_AT = 4
"""Sentences looked at for every one kept."""


@dataclass(frozen=True)
class Sentence:
    """One sentence of one rollout, as a candidate for training."""

    rollout: int
    window: SteeredWindow
    activation: float
    """Score of its category."""
    base_loss: float
    """Mean loss of its tokens under the unsteered base, in nats; log of its perplexity."""


def span_examples(
    rollouts: Sequence[Rollout],
    read: Sequence[Decisions],
    scores: Float[Tensor, "sentence category"],
    per_category: int,
    min_words: int,
) -> list[TrainingExample]:
    """The chosen sentences of every rollout, one example per rollout.

    Args:
        rollouts: the collected answers.
        read: the same answers as the base reads them.
        scores: activation of every category on every sentence, in order of rollouts and spans.
        per_category: most sentences kept of a category.
        min_words: shorter sentences are left out.
    """
    sentences = _sentences(rollouts, read, scores, min_words)
    kept = [
        one
        for category in range(scores.shape[1])
        for one in choose_sentences(
            [s for s in sentences if s.window.category == category], per_category
        )
    ]
    return [
        _example(read[number], sorted(s.window for s in kept if s.rollout == number))
        for number in range(len(rollouts))
    ]


def choose_sentences(sentences: Sequence[Sentence], count: int) -> list[Sentence]:
    """The paper's choice: by activation first, then by what the base finds least likely."""
    typical = sorted(sentences, key=lambda one: -one.activation)[: LOOKED_AT * count]
    return sorted(typical, key=lambda one: -one.base_loss)[:count]


def bias_examples(read: Sequence[Decisions]) -> list[TrainingExample]:
    """Every answer as one window of the single category 0."""
    return [
        _example(one, [SteeredWindow(one.prompt - 1, len(one.ids) - 1, 0)])
        for one in read
        if len(one.ids) > one.prompt
    ]


def _sentences(
    rollouts: Sequence[Rollout],
    read: Sequence[Decisions],
    scores: Float[Tensor, "sentence category"],
    min_words: int,
) -> list[Sentence]:
    best = scores.max(dim=1)
    found, number = [], 0
    for index, (rollout, one) in enumerate(zip(rollouts, read, strict=True)):
        for span, text in zip(rollout.spans, rollout.sentences(), strict=True):
            losses = one.base_losses[span.start_token : span.end_token]
            if len(text.split()) >= min_words:
                first = one.prompt - 1
                window = SteeredWindow(
                    first + span.start_token, first + span.end_token, int(best.indices[number])
                )
                loss = sum(losses) / len(losses)
                found.append(Sentence(index, window, float(best.values[number]), loss))
            number += 1
    return found


def _example(read: Decisions, windows: Sequence[SteeredWindow]) -> TrainingExample:
    targets = tuple(read.ids[p + 1] for w in windows for p in range(w.start, w.end))
    return TrainingExample(read.ids, tuple(windows), targets, prompt=read.prompt)
