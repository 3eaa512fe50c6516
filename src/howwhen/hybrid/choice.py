"""The ladder's rungs: who writes the next token, and with what steering.

A `Rung` looks at both models at some positions and returns a `Action`: tokens to emit as they are,
and positions at which the base is to be steered first. The controls differ from the full hybrid in
one thing each; none is a flag. What happens at one position never depends on another, so the same
rung serves stepwise and block decoding.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from howwhen.hybrid.strength import LEARNED, Strength
from howwhen.probes import Gate, SelfGate
from howwhen.records import RungName
from howwhen.vectors import VectorSet


@dataclass(frozen=True)
class DecisionContext:
    """What a choice may look at: n positions, of any streams."""

    base_scores: Float[Tensor, "n vocabulary"]
    """The base writes the token with the highest score: its logits, under greedy decoding."""
    thinking_scores: Float[Tensor, "n thinking_vocabulary"] | None
    """None where the rung does not run the thinking model; as wide as the base's unless the rung is
    free."""
    base_residual: Mapping[int, Float[Tensor, "n d_model"]]
    """Of the layers that the choice asked for."""
    thinking_residual: Float[Tensor, "n d_model"] | None
    """At the gate's layer."""
    uniforms: Float[Tensor, "n 2"] | None
    """Uniform random numbers that depend on seed, problem and position only; None where the rung
    needs none."""
    ends: Int[Tensor, " end"]
    """Tokens of either model that end an answer."""

    @cached_property
    def base_token(self) -> Int[Tensor, " n"]:
        """What the unsteered base writes."""
        return self.base_scores.argmax(1)

    @cached_property
    def thinking_token(self) -> Int[Tensor, " n"]:
        """What the thinking model would write."""
        if self.thinking_scores is None:
            raise RuntimeError("this rung looks at the thinking model but does not run it")
        return self.thinking_scores.argmax(1)

    @cached_property
    def is_decision(self) -> Bool[Tensor, " n"]:
        """Whether the two tokens differ; two end tokens mean the same."""
        differ = self.base_token != self.thinking_token
        if not differ.any():
            return differ
        both_end = torch.isin(self.base_token, self.ends) & torch.isin(
            self.thinking_token, self.ends
        )
        return differ & ~both_end

    def categories(self, gate: Gate, where: Bool[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Category of the thinking model's residual, read where asked; -1 elsewhere."""
        if self.thinking_residual is None:
            raise RuntimeError("this rung reads a category but does not run the thinking model")
        category = torch.full_like(self.base_token, -1)
        if where.any():
            category[where] = gate.categorise(self.thinking_residual[where].float())
        return category


@dataclass(frozen=True)
class Action:
    """What to do at every position of a view."""

    token: Int[Tensor, " n"]
    """Token to emit where the base is not steered."""
    is_decision: Bool[Tensor, " n"]
    """Where the rung intervenes, by steering or by choosing the token itself."""
    category: Int[Tensor, " n"]
    """Category to steer the base with; -1 where it is not steered."""


class Rung(ABC):
    """One rung of the ladder."""

    name: ClassVar[RungName]
    needs_thinking: ClassVar[bool] = True
    """Whether the thinking model must run."""
    needs_uniforms: ClassVar[bool] = False
    """Whether it looks at random numbers."""
    allows_banned_tokens: ClassVar[bool] = False
    """Whether tokens that only one model knows may be written whatever the policy."""
    strength: Strength = LEARNED
    vectors: VectorSet | None = None
    gate: Gate | None = None
    base_prompt: str | None = None
    """Asks the base otherwise than its own prompt does."""

    @property
    def base_layers(self) -> tuple[int, ...]:
        """Blocks of the base whose residuals the view must show."""
        return ()

    @property
    def categories(self) -> int | None:
        """How many vectors it chooses among; None where it does not steer."""
        return None if self.gate is None else self.gate.size

    @abstractmethod
    def act(self, context: DecisionContext) -> Action:
        """Decide at every position of a view."""


def _emit(token: Tensor, is_decision: Tensor) -> Action:
    return Action(token, is_decision, torch.full_like(token, -1))


@dataclass(frozen=True)
class Base(Rung):
    """The base alone."""

    name: ClassVar[RungName] = "base"
    needs_thinking = False

    def act(self, context: DecisionContext) -> Action:
        """Emit the base's token."""
        return _emit(context.base_token, torch.zeros_like(context.base_token, dtype=torch.bool))


@dataclass(frozen=True)
class BaseStepByStep(Base):
    """The base alone, asked to reason step by step."""

    base_prompt: str | None = None
    name: ClassVar[RungName] = "base-step-by-step"


@dataclass(frozen=True)
class Thinking(Rung):
    """The thinking model alone."""

    name: ClassVar[RungName] = "thinking"
    allows_banned_tokens = True

    def act(self, context: DecisionContext) -> Action:
        """Emit the thinking model's token."""
        return _emit(context.thinking_token, torch.zeros_like(context.is_decision))


@dataclass(frozen=True)
class Takeover(Rung):
    """The ceiling: at a decision the thinking model's token is emitted."""

    name: ClassVar[RungName] = "takeover"

    def act(self, context: DecisionContext) -> Action:
        """Emit the base's token, or at a decision the thinking model's."""
        return _emit(
            torch.where(context.is_decision, context.thinking_token, context.base_token),
            context.is_decision,
        )


@dataclass(frozen=True)
class Guardrail(Rung):
    """No vectors: at a decision the thinking model picks among the base's own top tokens."""

    top_k: int
    name: ClassVar[RungName] = "guardrail-only"

    def act(self, context: DecisionContext) -> Action:
        """Rerank the base's `top_k` tokens by the thinking model at a decision."""
        token = context.base_token.clone()
        where = context.is_decision
        if where.any() and context.thinking_scores is not None:
            scores, own = context.base_scores[where].topk(self.top_k, dim=1)
            theirs = context.thinking_scores[where].gather(1, own)
            is_outside = scores == -torch.inf  # the base's nucleus may hold fewer tokens
            best = theirs.masked_fill(is_outside, -torch.inf).argmax(1)
            token[where] = own.gather(1, best[:, None])[:, 0]
        return _emit(token, where)


@dataclass(frozen=True)
class Steer(Rung):
    """The full hybrid: at a decision, steer the base with the category that the gate reads."""

    gate: Gate | None
    vectors: VectorSet | None
    strength: Strength = LEARNED
    name: ClassVar[RungName] = "hybrid"

    def act(self, context: DecisionContext) -> Action:
        """Steer where the two tokens differ."""
        where = self.choose_where(context)
        return Action(context.base_token, where, self.choose_category(context, where))

    def choose_category(
        self, context: DecisionContext, where: Bool[Tensor, " n"]
    ) -> Int[Tensor, " n"]:
        """What the gate reads in the thinking model."""
        if self.gate is None:
            raise RuntimeError(f"the rung {self.name} needs a gate")
        return context.categories(self.gate, where)

    def choose_where(self, context: DecisionContext) -> Bool[Tensor, " n"]:
        """The decisions."""
        return context.is_decision


@dataclass(frozen=True)
class SharedVector(Steer):
    """One vector for all categories, trained on the same decisions."""

    name: ClassVar[RungName] = "shared-vector"

    @property
    def categories(self) -> int:
        """The single one."""
        return 1

    def choose_category(
        self, context: DecisionContext, where: Bool[Tensor, " n"]
    ) -> Int[Tensor, " n"]:
        """Always the single category."""
        return where.long() - 1


@dataclass(frozen=True)
class BiasOnly(SharedVector):
    """The bias vector of the first version alone; it has no categories."""

    name: ClassVar[RungName] = "bias-only"


@dataclass(frozen=True)
class RandomCategory(Steer):
    """The right moments with a category drawn evenly among those that have a vector."""

    name: ClassVar[RungName] = "random-category"
    needs_uniforms: ClassVar[bool] = True

    def choose_category(
        self, context: DecisionContext, where: Bool[Tensor, " n"]
    ) -> Int[Tensor, " n"]:
        """A uniform draw."""
        if self.vectors is None or context.uniforms is None:
            raise RuntimeError(f"the rung {self.name} needs vectors and draws")
        trained = self.vectors.trained()
        drawn = trained[(context.uniforms[:, 0] * len(trained)).long()]
        return drawn.masked_fill(~where, -1)


@dataclass(frozen=True)
class RandomPositions(Steer):
    """The right categories at random moments, as often as the hybrid steers."""

    rate: float = 0.0
    """Share of tokens to steer."""
    name: ClassVar[RungName] = "random-positions"
    needs_uniforms: ClassVar[bool] = True

    def choose_where(self, context: DecisionContext) -> Bool[Tensor, " n"]:
        """Each position with probability `rate`."""
        if context.uniforms is None:
            raise RuntimeError(f"the rung {self.name} needs draws")
        return context.uniforms[:, 1] < self.rate


@dataclass(frozen=True)
class RandomVectors(Steer):
    """The right moments and categories with random directions of the right norms."""

    name: ClassVar[RungName] = "random-vectors"


@dataclass(frozen=True)
class WithoutCategory(Steer):
    """The full hybrid but for one category: at its decisions the base goes on unsteered."""

    category: int = 0
    name: ClassVar[RungName] = "without-category"

    def act(self, context: DecisionContext) -> Action:
        """Steer at the decisions of every other category."""
        return _only_where(super().act(context), lambda found: found != self.category)


@dataclass(frozen=True)
class OneCategory(Steer):
    """The full hybrid with one category alone."""

    category: int = 0
    name: ClassVar[RungName] = "one-category"

    def act(self, context: DecisionContext) -> Action:
        """Steer at the decisions of this category."""
        return _only_where(super().act(context), lambda found: found == self.category)


def _only_where(act: Action, wanted: Callable[[Tensor], Tensor]) -> Action:
    kept = act.is_decision & wanted(act.category)
    return Action(act.token, kept, act.category.masked_fill(~kept, -1))


@dataclass(frozen=True)
class SelfGated(Rung):
    """No thinking model at all: a probe on the base's own residual says when, and which."""

    probe: SelfGate
    vectors: VectorSet | None
    strength: Strength = LEARNED
    name: ClassVar[RungName] = "self-gate"
    needs_thinking = False

    @property
    def base_layers(self) -> tuple[int, ...]:
        """The probe's."""
        return self.probe.layers

    @property
    def categories(self) -> int:
        """The probe's: all its outputs but the one for the moment."""
        return len(self.probe.outputs) - 1

    def act(self, context: DecisionContext) -> Action:
        """Steer where the probe's log-odds of a decision reach its threshold."""
        features = torch.cat([context.base_residual[layer] for layer in self.probe.layers], dim=1)
        read = self.probe.read(features.float())
        where = read[:, 0] >= self.probe.threshold
        category = read[:, 1:].argmax(1).masked_fill(~where, -1)
        return Action(context.base_token, where, category)


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
