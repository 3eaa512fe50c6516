"""What controls are matched to: how often, and where, the hybrid steered."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

from howwhen.hybrid.controls import Places, count_places, starts_sentence
from howwhen.lm.models import LanguageModel
from howwhen.records import HybridTrace

SENTENCE_ENDS = (".", "!", "?", ";", "\n")
"""A token that ends in one of these ends a sentence."""
Counts = tuple[int, int]
"""Of an answer: at the starts of sentences, and elsewhere."""


@dataclass(frozen=True)
class Matched:
    """How often the hybrid steered in one answer to every problem, and among how many places.

    Controls with places of their own find them among those of the base's answer, since a control
    mostly writes what the base writes.
    """

    rate: float
    """Share of tokens that the hybrid steers."""
    steered: Mapping[str, Counts] = field(default_factory=dict)
    """By problem, tokens that the hybrid steered."""
    places: Mapping[str, Counts] = field(default_factory=dict)
    """By problem, tokens of the base's answer."""
    sentence_ends: frozenset[int] = frozenset()
    """Tokens that end a sentence."""
    entropy: float | None = None
    """Threshold of the rung `entropy-gate`; None where none was chosen."""
    mean: float | None = None
    """Tokens of an answer that the hybrid steers, on average, where it is known from elsewhere."""

    @classmethod
    def of(
        cls, hybrid: Sequence[HybridTrace], base: Sequence[HybridTrace], ends: frozenset[int]
    ) -> "Matched":
        """From one answer of hybrid and base to every problem.

        Args:
            hybrid: its traces.
            base: the base's, to the same problems.
            ends: tokens that end a sentence.
        """
        tokens = sum(len(trace.tokens) for trace in hybrid)
        return cls(
            rate=sum(trace.decisions for trace in hybrid) / tokens,
            steered={trace.problem_id: _steered(trace, ends) for trace in hybrid},
            places={trace.problem_id: count_places(trace.ids, ends) for trace in base},
            sentence_ends=ends,
        )

    @property
    def per_answer(self) -> float:
        """Tokens of an answer that the hybrid steers, on average."""
        if self.mean is not None:
            return self.mean
        return sum(map(sum, self.steered.values())) / max(1, len(self.steered))

    def limits(self, share: float) -> dict[str, int]:
        """For every problem a share of the tokens that the hybrid steered, rounded up."""
        return {problem: ceil(share * sum(counts)) for problem, counts in self.steered.items()}

    @property
    def limit(self) -> int:
        """The same for problems that the hybrid did not answer: its mean, rounded, at least 1."""
        return max(1, round(self.per_answer))

    def draw(self, seed: int | str, *, by_kind: bool) -> dict[str, Places]:
        """Places at random, as many in every answer as the hybrid steered.

        Args:
            seed: of the draw.
            by_kind: whether starts of sentences stand for starts of sentences.
        """
        return {
            problem: _draw(random.Random(f"{seed}-{problem}"), steered, self.places[problem])
            if by_kind
            else _draw(
                random.Random(f"{seed}-{problem}"),
                (0, sum(steered)),
                (0, sum(self.places[problem])),
            )
            for problem, steered in self.steered.items()
        }


def _draw(rng: random.Random, steered: Counts, places: Counts) -> Places:
    """So many of so many places; the first ones, where there are not enough."""
    drawn = (rng.sample(range(max(n, count)), n) for n, count in zip(steered, places, strict=True))
    return Places(*map(frozenset, drawn))


def _steered(trace: HybridTrace, ends: frozenset[int]) -> Counts:
    starts = sum(_starts_of_decisions(trace, ends))
    return starts, trace.decisions - starts


def _starts_of_decisions(trace: HybridTrace, ends: frozenset[int]) -> Iterator[bool]:
    """Whether each steered token starts a sentence."""
    last: int | None = None
    for token in trace.tokens:
        if token.is_decision:
            yield starts_sentence(last, ends)
        last = token.id


def sentence_ends_of(model: LanguageModel) -> frozenset[int]:
    """Tokens of a vocabulary after which a sentence starts."""
    tokenizer = model.tokenizer
    ids = sorted(tokenizer.get_vocab().values())
    texts = tokenizer.batch_decode([[number] for number in ids])
    pairs = zip(ids, texts, strict=True)
    return frozenset(number for number, text in pairs if text.rstrip(" ").endswith(SENTENCE_ENDS))
