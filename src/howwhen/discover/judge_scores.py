"""The paper's three scores of a taxonomy, with a language model as judge.

- consistency: can the judge tell a category's sentences from others by its name? (F1, mean over
  the categories)
- completeness: how well do the categories describe their sentences? (0 to 10, mean, over 10)
- independence: share of pairs of categories that the judge rates less than half similar

A reply that cannot be read, or does not answer for exactly the numbers it was asked about, is
counted and scored as the worst: no sentence found, nothing described, all pairs the same. A judge
without any usable reply therefore gives 0 everywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from howwhen.discover.judge_prompts import TOP, WORST, JudgePrompt, PromptSample
from howwhen.discover.titles import CategorisedSentences, Name
from howwhen.errors import InputError
from howwhen.judge.endpoint import Judge
from howwhen.judge.fencing import read_object
from howwhen.settings import DiscoverSettings


@dataclass(frozen=True)
class CategoryScores:
    """One category that has sentences; the scores are means over the repetitions."""

    category: int
    sentences: int
    """In all."""
    own: int
    """Of them in one sample of the consistency."""
    others: int
    """Sentences of other categories in the same sample."""
    precision: float
    """0 where the judge named no sentence."""
    recall: float
    f1: float
    fit: float | None
    """From 0 to 1; None where no sample of the completeness held a sentence of it."""


@dataclass(frozen=True)
class JudgedScores:
    """Scores of one taxonomy, each from 0 (bad) to 1 (good), means over the repetitions."""

    consistency: float
    """Mean F1 of the categories that have sentences."""
    completeness: float
    independence: float
    """0 where fewer than two categories have sentences: there is nothing to tell apart."""
    score: float
    """Mean of the three."""
    standard_error: float | None
    """Of `score`, over the repetitions; None for a single one."""
    replies: int
    """All replies of the judge."""
    unparsable: int
    """Those of them that were unusable and were scored as the worst."""
    sampled: int
    """Sentences in one sample of the completeness."""
    per_category: tuple[CategoryScores, ...]
    """The categories that have sentences, in order."""


def score_with_judge(
    assigned: CategorisedSentences, names: Sequence[Name], judge: Judge, settings: DiscoverSettings
) -> JudgedScores:
    """Score a taxonomy. All requests are sent together, so that they run concurrently.

    Args:
        assigned: the sentences and their categories.
        names: of all categories.
        judge: who is asked.
        settings: `judge_repeats` draws of samples of at most `judge_sentences`, from the first of
            `seeds`.

    Raises:
        InputError: names that do not match the categories, or no sentences.
        JudgeError: the judge gives no reply.
    """
    if len(names) != assigned.size or not assigned.texts:
        raise InputError(
            f"there are {len(names)} names, {assigned.size} categories and {len(assigned.texts)} "
            "sentences; expected a name for every category, and sentences to judge"
        )
    numbers = range(settings.judge_repeats)
    asked = [PromptSample(assigned, names, settings, number).prompts() for number in numbers]
    replies = iter(judge.ask_many([prompt.request for draw in asked for prompt in draw]))
    marked = [[_mark(prompt, next(replies)) for prompt in draw] for draw in asked]
    rounds = [_score_round(draw) for draw in marked]
    means = np.array([scores.means() for scores in rounds])
    consistency, completeness, independence = means.mean(0).tolist()
    return JudgedScores(
        consistency,
        completeness,
        independence,
        score=float(means.mean()),
        standard_error=_standard_error(means.mean(1)),
        replies=sum(map(len, marked)),
        unparsable=sum(not one.is_usable for draw in marked for one in draw),
        sampled=sum(len(one.keys) for one in asked[0] if one.kind == "fit"),
        per_category=_per_category(assigned, asked[0], rounds),
    )


def read_marks(prompt: JudgePrompt, reply: str) -> tuple[float, ...] | None:
    """The mark of every item in a judge's reply: named or not (1 or 0), or its rating.

    Returns:
        None for a reply that is not exactly one JSON object of the form that was asked for: with
        the numbers of items and no others, or with one rating from 0 to 10 for each item.
    """
    found = read_object(reply)
    if found is None:
        return None
    count = len(prompt.keys)
    return _read_named(found, count) if prompt.kind == "belong" else _read_ratings(found, count)


def _read_named(found: Mapping[str, Any], count: int) -> tuple[float, ...] | None:
    named = found.get("belong")
    if not isinstance(named, list) or any(type(n) is not int or not 1 <= n <= count for n in named):
        return None
    return tuple(float(number in named) for number in range(1, count + 1))


def _read_ratings(found: Mapping[str, Any], count: int) -> tuple[float, ...] | None:
    if set(found) != {str(number) for number in range(1, count + 1)}:
        return None
    ratings = [found[str(number)] for number in range(1, count + 1)]
    if any(type(one) not in (int, float) or not 0 <= one <= TOP for one in ratings):
        return None
    return tuple(map(float, ratings))


class _Marked(NamedTuple):
    prompt: JudgePrompt
    marks: tuple[float, ...]
    is_usable: bool


class _F1(NamedTuple):
    precision: float
    recall: float
    f1: float


class _Round(NamedTuple):
    """The scores of one repetition."""

    told: Mapping[int, _F1]
    """For each category how well the judge told its sentences from others."""
    fits: Mapping[int, Sequence[float]]
    """For each category in the sample the fits of its sentences, 0 to 1."""
    independence: float

    def means(self) -> tuple[float, float, float]:
        """Consistency, completeness and independence."""
        fits = [fit for own in self.fits.values() for fit in own]
        f1 = [one.f1 for one in self.told.values()]
        return float(np.mean(f1)), float(np.mean(fits)), self.independence


def _mark(prompt: JudgePrompt, reply: str) -> _Marked:
    marks = read_marks(prompt, reply)
    if marks is None:
        return _Marked(prompt, (float(WORST[prompt.kind]),) * len(prompt.keys), False)
    return _Marked(prompt, marks, True)


def _score_round(marked: Sequence[_Marked]) -> _Round:
    pairs: dict[int, list[tuple[int, float]]] = {}
    fits: dict[int, list[float]] = {}
    similar: list[float] = []
    for prompt, marks, _ in marked:
        if prompt.category is not None:
            pairs.setdefault(prompt.category, []).extend(zip(prompt.keys, marks, strict=True))
        elif prompt.kind == "fit":
            for category, mark in zip(prompt.keys, marks, strict=True):
                fits.setdefault(category, []).append(mark / TOP)
        else:
            similar += marks
    apart = sum(mark < TOP / 2 for mark in similar) / len(similar) if similar else 0.0
    return _Round({category: _f1(own) for category, own in pairs.items()}, fits, apart)


def _f1(pairs: Sequence[tuple[int, float]]) -> _F1:
    """Of pairs of truth and mark; 0 where nothing was named."""
    both = sum(truth * mark for truth, mark in pairs)
    named, own = sum(mark for _, mark in pairs), sum(truth for truth, _ in pairs)
    return _F1(both / named if named else 0.0, both / own, 2 * both / (named + own))


def _standard_error(scores: np.ndarray) -> float | None:
    return float(scores.std(ddof=1) / len(scores) ** 0.5) if len(scores) > 1 else None


def _per_category(
    assigned: CategorisedSentences, asked: Sequence[JudgePrompt], rounds: Sequence[_Round]
) -> tuple[CategoryScores, ...]:
    sizes = np.bincount(assigned.categories, minlength=assigned.size).tolist()
    rows = []
    for category in rounds[0].told:
        keys = [key for one in asked if one.category == category for key in one.keys]
        precision, recall, f1 = np.mean([one.told[category] for one in rounds], axis=0).tolist()
        fits = [fit for one in rounds for fit in one.fits.get(category, ())]
        fit = float(np.mean(fits)) if fits else None
        size, own = sizes[category], sum(keys)
        others = len(keys) - own
        rows.append(CategoryScores(category, size, own, others, precision, recall, f1, fit))
    return tuple(rows)
