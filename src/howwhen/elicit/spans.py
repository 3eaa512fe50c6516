"""Examples of the first version: whole sentences of a category, and whole answers for the bias.

Of every category's sentences, the 4N with the highest activation are considered, and the N that the
base finds least likely are kept (paper, first version, section 4).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from howwhen.elicit.decisions import Decisions
from howwhen.elicit.examples import SteeredWindow, TrainingExample
from howwhen.elicit.training import DataSplit, Fit, split_examples
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
    read: Iterable[Decisions],
    scores: Float[Tensor, "sentence category"],
    per_category: int,
    min_words: int,
) -> list[TrainingExample]:
    """The chosen sentences of every rollout, one example per rollout.

    Args:
        rollouts: the collected answers.
        read: the same answers as the base reads them, gone through once.
        scores: activation of every category on every sentence, in order of rollouts and spans.
        per_category: most sentences kept of a category.
        min_words: shorter sentences are left out.
    """
    answers: list[_Answer] = []
    sentences: list[Sentence] = []
    first = 0
    for rollout, answer in zip(rollouts, read, strict=True):
        rows = scores[first : first + len(rollout.spans)]
        sentences += _sentences(len(answers), rollout, answer, rows, min_words)
        answers.append(_Answer(answer.ids, answer.prompt))
        first += len(rollout.spans)
    chosen: list[list[SteeredWindow]] = [[] for _ in rollouts]
    for category in range(scores.shape[1]):
        own = [sentence for sentence in sentences if sentence.window.category == category]
        for sentence in choose_sentences(own, per_category):
            chosen[sentence.rollout].append(sentence.window)
    return [
        _example(answer, sorted(windows)) for answer, windows in zip(answers, chosen, strict=True)
    ]


def choose_sentences(sentences: Sequence[Sentence], count: int) -> list[Sentence]:
    """The paper's choice: by activation first, then by what the base finds least likely."""
    typical = sorted(sentences, key=lambda s: -s.activation)[: CONSIDERED * count]
    return sorted(typical, key=lambda s: -s.base_loss)[:count]


def train_on_sentences(
    size: int,
    answers: AnswerParts,
    sentences: AnswerParts,
    settings: ElicitSettings,
    fit: Fit,
) -> DataSplit:
    """Train a bias vector on whole answers, then vectors on whole sentences on top of it.

    Args:
        size: number of categories.
        answers: whole answers, of `bias_example`, to train and to select on.
        sentences: the chosen sentences, of `span_examples`, likewise.
        settings: sizes of the parts.
        fit: trains, under the names `bias`, `vectors` and `shared`.

    Returns:
        What the vectors were trained on.
    """
    bias = fit(split_examples(*answers, settings), {"bias": 1}, form="linear")["bias"].vectors[0]
    data = split_examples(*sentences, settings)
    fit(data, {"vectors": size, "shared": 1}, bias)
    return data


def bias_example(answer: Decisions) -> TrainingExample:
    """An answer as one window of the single category 0; without a window if it has no token."""
    whole = SteeredWindow(answer.prompt - 1, len(answer.ids) - 1, 0)
    windows = [whole] if len(answer.ids) > answer.prompt else []
    return _example(_Answer(answer.ids, answer.prompt), windows)


class _Answer(NamedTuple):
    """An answer as the base reads it."""

    ids: tuple[int, ...]
    prompt: int


def _sentences(
    number: int,
    rollout: Rollout,
    answer: Decisions,
    scores: Float[Tensor, "sentence category"],
    min_words: int,
) -> list[Sentence]:
    """The sentences of one answer that are long enough."""
    best = scores.max(dim=1)
    losses: list[float] = answer.base_losses.tolist()
    sentences = []
    for row, (span, text) in enumerate(zip(rollout.spans, rollout.sentences(), strict=True)):
        own = losses[span.start_token : span.end_token]
        if len(text.split()) >= min_words:
            first = answer.prompt - 1
            window = SteeredWindow(
                first + span.start_token, first + span.end_token, int(best.indices[row])
            )
            loss = sum(own) / len(own)
            sentences.append(Sentence(number, window, float(best.values[row]), loss))
    return sentences


def _example(answer: _Answer, windows: Sequence[SteeredWindow]) -> TrainingExample:
    targets = tuple(answer.ids[p + 1] for w in windows for p in range(w.start, w.end))
    return TrainingExample(answer.ids, tuple(windows), targets, prompt=answer.prompt)
