"""Examples of the first version: whole sentences of a category, and whole answers for the bias.

Of every category's sentences, the 4N with the highest activation are considered, and the N that the
base finds least likely are kept (paper, first version, section 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from howwhen.elicit.examples import Decisions, SteeredWindow, TrainingExample
from howwhen.elicit.training import DataSplit, Fit, split_examples
from howwhen.probes import Gate
from howwhen.records import Rollout
from howwhen.settings import ElicitSettings

AnswerParts = tuple[Sequence[TrainingExample], Sequence[TrainingExample]]
"""Examples to train on, and others to select among the seeds."""

CONSIDERED = 4
"""Sentences considered for every one kept."""


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
        sentence
        for category in range(scores.shape[1])
        for sentence in choose_sentences(
            [s for s in sentences if s.window.category == category], per_category
        )
    ]
    return [
        _example(read[number], sorted(s.window for s in kept if s.rollout == number))
        for number in range(len(rollouts))
    ]


def choose_sentences(sentences: Sequence[Sentence], count: int) -> list[Sentence]:
    """The paper's choice: by activation first, then by what the base finds least likely."""
    typical = sorted(sentences, key=lambda s: -s.activation)[: CONSIDERED * count]
    return sorted(typical, key=lambda s: -s.base_loss)[:count]


def train_on_sentences(
    gate: Gate,
    answers: AnswerParts,
    sentences: AnswerParts,
    settings: ElicitSettings,
    fit: Fit,
) -> DataSplit:
    """Train a bias vector on whole answers, then vectors on whole sentences on top of it.

    Args:
        gate: has the categories.
        answers: whole answers, of `bias_examples`, to train and to select on.
        sentences: the chosen sentences, of `span_examples`, likewise.
        settings: sizes of the parts.
        fit: trains, under the names `bias`, `vectors` and `shared`.

    Returns:
        What the vectors were trained on.
    """
    bias = fit("bias", split_examples(*answers, 1, settings), form="linear").vectors[0]
    data = split_examples(*sentences, gate.size, settings)
    shared = split_examples(*sentences, 1, settings)
    fit("vectors", data, bias)
    fit("shared", shared, bias)
    return data


def bias_examples(read: Sequence[Decisions]) -> list[TrainingExample]:
    """Every answer as one window of the single category 0."""
    return [
        _example(answer, [SteeredWindow(answer.prompt - 1, len(answer.ids) - 1, 0)])
        for answer in read
        if len(answer.ids) > answer.prompt
    ]


def _sentences(
    rollouts: Sequence[Rollout],
    read: Sequence[Decisions],
    scores: Float[Tensor, "sentence category"],
    min_words: int,
) -> list[Sentence]:
    best = scores.max(dim=1)
    sentences, number = [], 0
    for index, (rollout, answer) in enumerate(zip(rollouts, read, strict=True)):
        for span, text in zip(rollout.spans, rollout.sentences(), strict=True):
            losses = answer.base_losses[span.start_token : span.end_token]
            if len(text.split()) >= min_words:
                first = answer.prompt - 1
                window = SteeredWindow(
                    first + span.start_token, first + span.end_token, int(best.indices[number])
                )
                loss = sum(losses) / len(losses)
                sentences.append(Sentence(index, window, float(best.values[number]), loss))
            number += 1
    return sentences


def _example(read: Decisions, windows: Sequence[SteeredWindow]) -> TrainingExample:
    targets = tuple(read.ids[p + 1] for w in windows for p in range(w.start, w.end))
    return TrainingExample(read.ids, tuple(windows), targets, prompt=read.prompt)
