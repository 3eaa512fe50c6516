"""The controls of the ladder that change one thing of the hybrid each."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional

from howwhen.hybrid.choice import Rung, SelfGated, Steer, Steering, Takeover
from howwhen.hybrid.context import Action, AnswerSoFar, DecisionContext, emit, is_never
from howwhen.records import RungName
from howwhen.vectors import LowRank, VectorSet


@dataclass(frozen=True)
class SharedVector(Steer):
    """One vector for all categories (K = 1), trained on the same disagreements."""

    name: ClassVar[RungName] = "shared-vector"

    @property
    def steering(self) -> Steering:
        """With the single vector."""
        return Steering(self.vectors, self.strength, 1)

    @property
    def fitted(self) -> int:
        """Those of the vector; the gate is not asked."""
        return self.vectors.numbers

    def choose_category(
        self, context: DecisionContext, where: Bool[Tensor, " n"]
    ) -> Int[Tensor, " n"]:
        """Always the single category."""
        return where.long() - 1


@dataclass(frozen=True)
class BiasOnly(SharedVector):
    """The bias vector of the first version alone; it has no categories."""

    name: ClassVar[RungName] = "bias-only"

    @property
    def fitted(self) -> int:
        """Those of the bias vector."""
        return 0 if self.vectors.bias is None else self.vectors.bias.numel()


@dataclass(frozen=True)
class RandomCategory(Steer):
    """The right moments with a category drawn evenly among those that have a vector."""

    name: ClassVar[RungName] = "random-category"
    is_random = True
    reads_host = True

    @property
    def fitted(self) -> int:
        """Those of the vectors; the gate is not asked."""
        return self.vectors.numbers

    def choose_category(
        self, context: DecisionContext, where: Bool[Tensor, " n"]
    ) -> Int[Tensor, " n"]:
        """A uniform draw."""
        trained = self.vectors.trained().to(context.uniforms.device)
        drawn = trained[(context.uniforms[:, 0] * len(trained)).long()]
        return drawn.masked_fill(~where, -1)


class Places(NamedTuple):
    """Where an answer is steered, counted apart at the starts of sentences and elsewhere."""

    starts: frozenset[int]
    """Which of its starts of sentences, in order from 0."""
    others: frozenset[int]
    """Which of all other tokens."""


@dataclass(frozen=True)
class RandomPositions(Steer):
    """The right categories at random moments: as many per answer and kind as the hybrid steers.

    A token starts a sentence if it is the first of an answer, or follows one that ends a sentence.
    """

    places: Mapping[str, Places] = field(default_factory=dict)
    """By problem."""
    sentence_ends: frozenset[int] = frozenset()
    """Tokens that end a sentence; none if all places are of one kind."""
    rate: float = 0.0
    """Share of tokens to steer in answers to other problems."""
    name: ClassVar[RungName] = "random-positions"
    is_random = True
    reads_host = True

    def choose_where(self, context: DecisionContext) -> Bool[Tensor, " n"]:
        """The places drawn for each problem; at the rate where none were drawn for it."""
        where = context.uniforms[:, 1] < self.rate
        if not self.places:
            return where
        rows = where.view(context.drafted.shape)
        for row, answer, drafted in zip(
            rows, context.answers, context.drafted.tolist(), strict=True
        ):
            if (places := self.places.get(answer.problem_id)) is not None:
                row.copy_(torch.tensor(self._chosen(answer, drafted, places)))
        return where

    def _chosen(self, answer: AnswerSoFar, drafted: list[int], places: Places) -> list[bool]:
        """Whether each position was drawn."""
        starts, others = count_places(answer.ids, self.sentence_ends)
        last = answer.ids[-1] if answer.ids else None
        found = []
        for token in drafted:
            if starts_sentence(last, self.sentence_ends):
                found.append(starts in places.starts)
                starts += 1
            else:
                found.append(others in places.others)
                others += 1
            last = token
        return found


def starts_sentence(last: int | None, sentence_ends: frozenset[int]) -> bool:
    """Whether a token starts a sentence, by the one before it; None before the first."""
    return bool(sentence_ends) and (last is None or last in sentence_ends)


def count_places(ids: Sequence[int], sentence_ends: frozenset[int]) -> tuple[int, int]:
    """How many tokens start a sentence, and how many do not."""
    if not sentence_ends or not ids:
        return 0, len(ids)
    starts = 1 + sum(token in sentence_ends for token in ids[:-1])
    return starts, len(ids) - starts


@dataclass(frozen=True)
class RandomPositionsAnywhere(RandomPositions):
    """The right categories at random moments of any kind: as many per answer as the hybrid."""

    name: ClassVar[RungName] = "random-positions-anywhere"


@dataclass(frozen=True)
class RandomVectors(Steer):
    """The right moments and categories with random directions of the right norms."""

    name: ClassVar[RungName] = "random-vectors"
    is_random = True

    @property
    def fitted(self) -> int:
        """Those of gate and coefficients, and the norms."""
        return super().fitted - _in_directions(self.vectors)


@dataclass(frozen=True)
class MagnitudeOnly(Steer):
    """The mean direction for all categories, at the magnitude of each category's vector."""

    name: ClassVar[RungName] = "magnitude-only"

    @property
    def fitted(self) -> int:
        """Those of gate and coefficients, the norms, and one direction."""
        return super().fitted - _in_directions(self.vectors) + self.vectors.vectors.shape[1]


def _in_directions(vectors: VectorSet) -> int:
    """Numbers of the vectors beside their norms."""
    rows, width = vectors.vectors.shape
    return rows * width - rows


@dataclass(frozen=True)
class EarlyOnly(Steer):
    """The hybrid at the first disagreements of an answer alone."""

    limits: Mapping[str, int] = field(default_factory=dict)
    """How many, by problem."""
    limit: int = 1
    """How many in answers to other problems."""
    name: ClassVar[RungName] = "early-only"
    reads_host = True

    def choose_where(self, context: DecisionContext) -> Bool[Tensor, " n"]:
        """The disagreements up to the limit."""
        return _first(context, context.is_decision, self.limits, self.limit)


def _first(
    context: DecisionContext,
    where: Bool[Tensor, " n"],
    limits: Mapping[str, int],
    otherwise: int,
) -> Bool[Tensor, " n"]:
    """The first of some places of every answer, if the rung intervened at all those before them.

    Args:
        context: the positions.
        where: the places.
        limits: how many, by problem.
        otherwise: how many in answers to other problems.
    """
    if is_never(where):
        return where
    left = [limits.get(one.problem_id, otherwise) - one.interventions for one in context.answers]
    number = where.view(context.drafted.shape).long().cumsum(1)
    return where & (number <= torch.tensor(left, device=number.device)[:, None]).flatten()


@dataclass(frozen=True)
class EntropyGate(Steer):
    """The base's own uncertainty says when, and the thinking model which category."""

    threshold: float = math.inf
    """Entropy of the base's next token at and above which it is steered, in nats."""
    name: ClassVar[RungName] = "entropy-gate"

    def choose_where(self, context: DecisionContext) -> Bool[Tensor, " n"]:
        """Where the base is unsure."""
        return context.base.entropy >= self.threshold


@dataclass(frozen=True)
class LogitDifference(Rung):
    """No vectors: at a disagreement part of the difference between the models' logits is added."""

    alpha: float
    """Which part: between 0, the base alone, and 1, the thinking model."""
    name: ClassVar[RungName] = "logit-difference"

    def act(self, context: DecisionContext) -> Action:
        """The likeliest token of `base + alpha (thinking - base)` at a disagreement."""
        token, where = context.base.token, context.is_decision
        if is_never(where):
            return emit(token, where)
        ours = context.base.scores
        mixed = ours.lerp(context.thinking.scores.to(ours.device), self.alpha)
        mixed = mixed.nan_to_num(-torch.inf, neginf=-torch.inf)  # outside the base's nucleus
        best = mixed.max(1)
        # Two nuclei may have no token in common.
        is_any = (best.values > -torch.inf).to(token.device)
        return emit(torch.where(where & is_any, best.indices.to(token.device), token), where)


@dataclass(frozen=True)
class ReverseTakeover(Rung):
    """The thinking model writes; at its first disagreements the base's token is written.

    Not where only the base knows that token, since the thinking model could not go on after it.
    """

    limits: Mapping[str, int] = field(default_factory=dict)
    """How many, by problem."""
    limit: int = 1
    """How many in answers to other problems."""
    name: ClassVar[RungName] = "reverse-takeover"
    reads_host = True
    allows_banned_tokens = True

    def act(self, context: DecisionContext) -> Action:
        """Emit the thinking model's token, or at the first disagreements the base's."""
        token = context.base.token
        where = context.is_decision & context.may_both_write(token)
        where = _first(context, where, self.limits, self.limit)
        return emit(torch.where(where, token, context.thinking.token), where)


@dataclass(frozen=True)
class WithoutCategory(Steer):
    """The full hybrid without one category: at its disagreements the base goes on unsteered."""

    category: int = 0
    name: ClassVar[RungName] = "without-category"

    def act(self, context: DecisionContext) -> Action:
        """Steer at the disagreements of every other category."""
        return _only_where(super().act(context), lambda category: category != self.category)


@dataclass(frozen=True)
class OneCategory(Steer):
    """The full hybrid with one category alone."""

    category: int = 0
    name: ClassVar[RungName] = "one-category"

    def act(self, context: DecisionContext) -> Action:
        """Steer at the disagreements of this category."""
        return _only_where(super().act(context), lambda category: category == self.category)


@dataclass(frozen=True)
class TakeoverBudget(Takeover):
    """The ceiling at the disagreements that matter most, by the two models' divergence."""

    threshold: float = 0.0
    """Divergence at and above which it intervenes, in bits."""
    name: ClassVar[RungName] = "takeover-budget"

    def act(self, context: DecisionContext) -> Action:
        """Emit the base's token, or at such a disagreement the thinking model's."""
        where = _weightiest(context, self.threshold)
        return emit(torch.where(where, context.thinking.token, context.base.token), where)


@dataclass(frozen=True)
class HybridBudget(Steer):
    """The hybrid at the disagreements that matter most, by the two models' divergence."""

    threshold: float = 0.0
    """Divergence at and above which it steers, in bits."""
    name: ClassVar[RungName] = "hybrid-budget"

    def choose_where(self, context: DecisionContext) -> Bool[Tensor, " n"]:
        """Such disagreements."""
        return _weightiest(context, self.threshold)


def _weightiest(context: DecisionContext, threshold: float) -> Bool[Tensor, " n"]:
    """Disagreements at which the two models' divergence reaches a threshold, in bits."""
    where = context.is_decision
    return where if is_never(where) else where & (context.divergence >= threshold)


@dataclass(frozen=True)
class SelfGateBudget(SelfGated):
    """The self-gate where it is surest; its threshold is the probe's own."""

    name: ClassVar[RungName] = "self-gate-budget"


def _only_where(action: Action, is_wanted: Callable[[Tensor], Tensor]) -> Action:
    kept = action.is_decision & is_wanted(action.category)
    return Action(action.token, kept, action.category.masked_fill(~kept, -1))


def randomise(vectors: VectorSet, seed: int) -> VectorSet:
    """Replace every vector by a random direction of the same norm; bias and coefficients stay."""
    generator = torch.Generator().manual_seed(seed)
    tensors = vectors.tensors()
    for name in ("vectors", "up"):
        if name in tensors:
            tensors[name] = _random_like(tensors[name], generator)
    return vectors.with_tensors(tensors)


def _random_like(rows: Tensor, generator: torch.Generator) -> Tensor:
    noise = functional.normalize(torch.randn(rows.shape, generator=generator), dim=-1)
    norms: Tensor = rows.norm(dim=-1, keepdim=True)
    return noise * norms


def bias_only(vectors: VectorSet) -> VectorSet:
    """The bias vector as a set of one category without anything else."""
    return replace(vectors, vectors=torch.zeros_like(vectors.vectors[:1]), modulation=None)


def mean_direction(vectors: VectorSet) -> VectorSet:
    """Every vector turned into the direction of their mean, at its own norm.

    The maps of the `low-rank` form have no direction of their own and are left out.
    """
    rows = vectors.vectors
    mean = functional.normalize(functional.normalize(rows, dim=1).mean(0), dim=0)
    modulation = None if isinstance(vectors.modulation, LowRank) else vectors.modulation
    return replace(vectors, vectors=rows.norm(dim=1, keepdim=True) * mean, modulation=modulation)
