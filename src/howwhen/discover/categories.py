"""What each category looks like: its sentences, where they occur, and what they lead to."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from howwhen.discover.titles import Name
from howwhen.records import Annotation, Rollout, split_by_rollout

SHOWN = 5
"""Typical and borderline sentences shown of each category."""
POSITIONS = 10
"""Parts that an answer is divided into."""


@dataclass(frozen=True)
class SentenceExample:
    """A sentence with its place."""

    text: str
    problem_id: str
    strength: float
    runner_up: int
    """Category with the second highest score."""
    margin: float
    """How far the runner-up is behind."""


@dataclass(frozen=True)
class CategorySummary:
    """One category of a taxonomy."""

    category: int
    title: str
    description: str
    named_by: str
    """`words`, or the name of a judge."""
    sentences: int
    share: float
    """Of all sentences."""
    typical: tuple[SentenceExample, ...]
    """The strongest sentences, each text once."""
    borderline: tuple[SentenceExample, ...]
    """Those nearest to another category, each text once."""
    positions: tuple[int, ...]
    """Sentences in each tenth of an answer's sentences."""


@dataclass(frozen=True)
class Transitions:
    """How often one category follows another within an answer."""

    first: tuple[int, ...]
    """Answers that start with each category."""
    follows: tuple[tuple[int, ...], ...]
    """Row: a category; column: the category of the next sentence."""
    last: tuple[int, ...]
    """Answers that end with each category."""


def summarize_categories(
    rollouts: Sequence[Rollout], annotations: Sequence[Annotation], names: Sequence[Name]
) -> list[CategorySummary]:
    """What every category looks like.

    Args:
        rollouts: the answers.
        annotations: of all their sentences, in order.
        names: of all categories.
    """
    texts = [text for rollout in rollouts for text in rollout.sentences()]
    places = [place for rollout in rollouts for place in _places(len(rollout.spans))]
    rows_of: list[list[int]] = [[] for _ in names]
    for number, annotation in enumerate(annotations):
        rows_of[annotation.category].append(number)
    return [
        CategorySummary(
            category,
            name.title,
            name.description,
            name.named_by,
            len(rows),
            len(rows) / max(1, len(annotations)),
            typical=_pick(sorted(rows, key=lambda n: -annotations[n].strength), texts, annotations),
            borderline=_pick(
                sorted(rows, key=lambda n: _margin(annotations[n])), texts, annotations
            ),
            positions=tuple(sum(places[n] == part for n in rows) for part in range(POSITIONS)),
        )
        for category, (name, rows) in enumerate(zip(names, rows_of, strict=True))
    ]


def count_transitions(
    rollouts: Sequence[Rollout], annotations: Sequence[Annotation], size: int
) -> Transitions:
    """Count which category follows which."""
    first, last = [0] * size, [0] * size
    follows = [[0] * size for _ in range(size)]
    for answer in split_by_rollout(rollouts, annotations):
        if answer:
            first[answer[0].category] += 1
            last[answer[-1].category] += 1
        for before, after in pairwise(answer):
            follows[before.category][after.category] += 1
    return Transitions(tuple(first), tuple(map(tuple, follows)), tuple(last))


def _places(count: int) -> list[int]:
    """The part of the answer that each of `count` sentences is in."""
    return [POSITIONS * number // count for number in range(count)]


def _margin(annotation: Annotation) -> float:
    return annotation.strength - annotation.runner_up_strength


def _pick(
    ranked: Sequence[int], texts: Sequence[str], annotations: Sequence[Annotation]
) -> tuple[SentenceExample, ...]:
    """The first few in this order, each text once."""
    picked: dict[str, SentenceExample] = {}
    for number in ranked:
        if len(picked) == SHOWN:
            break
        note = annotations[number]
        line = " ".join(texts[number].split())
        example = SentenceExample(
            line, note.problem_id, note.strength, note.runner_up, _margin(note)
        )
        picked.setdefault(line, example)
    return tuple(picked.values())
