"""The paper's own ablations, where the ladder has them in another form or not at all.

First version: who picks among the candidates of a sweep, and random vectors of norm 1 on top of the
bias vector. Second version: other wrong categories than an evenly drawn one, random vectors under a
random category, and positions drawn at the hybrid's rate.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from howwhen.hybrid.choice import Steer
from howwhen.hybrid.context import DecisionContext
from howwhen.hybrid.controls import RandomCategory, RandomPositions, RandomVectors
from howwhen.probes import normalise
from howwhen.records import RungName
from howwhen.vectors import VectorSet

EXCLUDED = 3
"""Categories that the gate scores highest, left out by `random-category-not-top-3`."""


@dataclass(frozen=True)
class RandomGuardrail(Steer):
    """The hybrid's candidates, one of which is taken at random."""

    name: ClassVar[RungName] = "random-guardrail"
    is_random = True


@dataclass(frozen=True)
class BaseGuardrail(Steer):
    """The hybrid's candidates, of which the unsteered base takes the one it finds likeliest."""

    name: ClassVar[RungName] = "base-guardrail"


@dataclass(frozen=True)
class RandomUnitVectors(RandomVectors):
    """Random directions of norm 1, with the bias vector as it is."""

    name: ClassVar[RungName] = "random-unit-vectors"


@dataclass(frozen=True)
class RandomVectorsAndCategory(RandomCategory):
    """Random directions of the right norms, and a category drawn evenly ("MLP only")."""

    name: ClassVar[RungName] = "random-vectors-and-category"


@dataclass(frozen=True)
class RandomPositionsAtRate(RandomPositions):
    """The right categories wherever a coin says so, at the hybrid's rate per token."""

    name: ClassVar[RungName] = "random-positions-at-rate"


@dataclass(frozen=True)
class LeastSimilarCategory(Steer):
    """Of all categories the one whose vector has the lowest cosine with the right one's."""

    instead: tuple[int, ...] = ()
    """By the right one; of `least_similar`."""
    name: ClassVar[RungName] = "least-similar-category"

    def choose_category(
        self, context: DecisionContext, where: Bool[Tensor, " n"]
    ) -> Int[Tensor, " n"]:
        """The one that is least like what the gate reads."""
        named = super().choose_category(context, where)
        instead = torch.tensor(self.instead, device=named.device)
        return instead[named.clamp(min=0)].masked_fill(~where, -1)


def least_similar(vectors: VectorSet) -> tuple[int, ...]:
    """For every category the one whose vector points elsewhere most, among those that have one."""
    cosines = vectors.similarity()
    has_none = torch.ones(vectors.size, dtype=torch.bool, device=cosines.device)
    has_none[vectors.trained()] = False
    found: list[int] = cosines.masked_fill(has_none, torch.inf).argmin(1).tolist()
    return tuple(found)


@dataclass(frozen=True)
class RandomCategoryNotTop3(Steer):
    """A category drawn evenly among those that the gate does not score among its three highest."""

    name: ClassVar[RungName] = "random-category-not-top-3"
    is_random = True
    reads_host = True

    def choose_category(
        self, context: DecisionContext, where: Bool[Tensor, " n"]
    ) -> Int[Tensor, " n"]:
        """A uniform draw among the rest; fewer are left out where too few would remain."""
        residual = context.thinking.residual[self.gate.layer].float()
        scores = normalise(residual, self.gate.mean) @ self.gate.weights.T + self.gate.biases
        drawn = draw_outside(scores, self.vectors.trained(), context.uniforms[:, 0])
        return drawn.to(where.device).masked_fill(~where, -1)


def draw_outside(
    scores: Float[Tensor, "n category"],
    trained: Int[Tensor, " trained"],
    uniforms: Float[Tensor, " n"],
) -> Int[Tensor, " n"]:
    """For every row a category that has a vector and is not among the highest scores.

    Args:
        scores: of the gate.
        trained: categories that have a vector.
        uniforms: between 0 and 1, one for each row.
    """
    excluded = min(EXCLUDED, max(0, len(trained) - 1))
    is_allowed = torch.zeros_like(scores, dtype=torch.bool)
    is_allowed[:, trained.to(scores.device)] = True
    highest = scores.masked_fill(~is_allowed, -torch.inf).topk(excluded, dim=1).indices
    is_allowed.scatter_(1, highest, torch.zeros_like(highest, dtype=torch.bool))
    counts = is_allowed.sum(1)
    wanted = (uniforms.to(scores.device) * counts).long().clamp(max=counts - 1)
    is_drawn = is_allowed & (is_allowed.cumsum(1) == wanted[:, None] + 1)
    drawn: Tensor = is_drawn.long().argmax(1)
    return drawn


def with_unit_norm(vectors: VectorSet) -> VectorSet:
    """The same directions at norm 1; bias and coefficients stay."""
    return replace(vectors, vectors=functional.normalize(vectors.vectors, dim=1))
