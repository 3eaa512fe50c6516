"""The ladder's rungs: who writes the next token, and with what steering.

A `Rung` looks at both models at some positions and returns an `Action`: tokens to emit as they are,
and positions at which the base is to be steered first. The controls differ from the full hybrid in
one thing each; none is a flag. What happens at one position never depends on another, so the same
rung serves stepwise and block decoding.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from howwhen.errors import SettingsError
from howwhen.hybrid.strength import LEARNED, Strength
from howwhen.lm.alignment import ModelPair
from howwhen.probes import Gate, SelfGate
from howwhen.records import RungName
from howwhen.vectors import VectorSet


@dataclass(frozen=True)
class ModelView:
    """What one model says at n positions, of any streams."""

    scores: Float[Tensor, "n vocabulary"]
    """The model's token is the one with the highest score: its logits, under greedy decoding."""
    residual: Mapping[int, Float[Tensor, "n d_model"]] = field(default_factory=dict)
    """Of the layers that the rung asked for, each on the device of its block."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where rungs decide. Only what they need of the scores is moved there."""

    @cached_property
    def token(self) -> Int[Tensor, " n"]:
        """What the model would write."""
        return self.scores.argmax(1).to(self.device)

    def top(self, count: int) -> tuple[Float[Tensor, "n count"], Int[Tensor, "n count"]]:
        """The highest scores at every position, and their tokens."""
        values, ids = self.scores.topk(count, dim=1)
        return values.to(self.device), ids.to(self.device)

    def scores_of(self, ids: Int[Tensor, "n count"]) -> Float[Tensor, "n count"]:
        """Scores of some tokens at every position."""
        return self.scores.gather(1, ids.to(self.scores.device)).to(self.device)


@dataclass(frozen=True)
class DecisionContext:
    """What a rung may look at: n positions, of any streams."""

    base: ModelView
    thinking_view: ModelView | None
    """None where the rung does not run the thinking model. As wide as the base's, unless the rung
    may write tokens that only one model knows."""
    ends: Int[Tensor, " end"]
    """Tokens of either model that end an answer."""
    draw_uniforms: Callable[[], Float[Tensor, "n 2"]]
    """Draws the numbers that `uniforms` returns."""

    @property
    def thinking(self) -> ModelView:
        """The thinking model.

        Raises:
            SettingsError: the rung says that it does not need the thinking model.
        """
        if self.thinking_view is None:
            raise SettingsError(
                "a rung with `needs_thinking = False` asked for the thinking model's opinion; "
                "set `needs_thinking = True` in its class"
            )
        return self.thinking_view

    @cached_property
    def uniforms(self) -> Float[Tensor, "n 2"]:
        """Uniform random numbers that depend on seed, problem and position only."""
        return self.draw_uniforms()

    @cached_property
    def is_decision(self) -> Bool[Tensor, " n"]:
        """Whether the two tokens differ; two end tokens mean the same."""
        ours, theirs = self.base.token, self.thinking.token
        differ = ours != theirs
        if _is_never(differ):
            return differ
        return differ & ~(torch.isin(ours, self.ends) & torch.isin(theirs, self.ends))

    def categories(self, gate: Gate, where: Bool[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Category that a gate reads in the thinking model, where asked; -1 elsewhere."""
        if _is_never(where):
            return torch.full_like(self.base.token, -1)
        read = gate.categorise(self.thinking.residual[gate.layer].float())
        return read.to(where.device).masked_fill(~where, -1)


def _is_never(where: Bool[Tensor, " n"]) -> bool:
    """Whether a mask is known to be empty. Only on a CPU does looking cost nothing."""
    return where.device.type == "cpu" and not where.any()


@dataclass(frozen=True)
class Action:
    """What to do at every position of a context."""

    token: Int[Tensor, " n"]
    """Token to emit where the base is not steered."""
    is_decision: Bool[Tensor, " n"]
    """Where the rung intervenes, by steering or by choosing the token itself."""
    category: Int[Tensor, " n"]
    """Category to steer the base with; -1 where it is not steered."""


@dataclass(frozen=True)
class Steering:
    """What a rung steers the base with."""

    vectors: VectorSet
    strength: Strength
    categories: int
    """How many vectors the rung chooses among."""


class Rung(ABC):
    """One rung of the ladder."""

    name: ClassVar[RungName]
    needs_thinking: ClassVar[bool] = True
    """Whether the thinking model must run."""
    allows_banned_tokens: ClassVar[bool] = False
    """Whether tokens that only one model knows may be written, whatever the policy."""

    @property
    def prompt(self) -> str | None:
        """Replaces the base's own prompt; None keeps it."""
        return None

    @property
    def base_layers(self) -> tuple[int, ...]:
        """Blocks of the base whose residuals the context must hold."""
        return ()

    @property
    def thinking_layers(self) -> tuple[int, ...]:
        """The same of the thinking model."""
        return ()

    @property
    def steering(self) -> Steering | None:
        """What it steers with; None where it never steers."""
        return None

    def on(self, _models: ModelPair) -> "Rung":
        """The same rung with its gate and vectors where the models' residuals are."""
        return self

    @abstractmethod
    def act(self, context: DecisionContext) -> Action:
        """Decide at every position of a context."""


def _emit(token: Tensor, is_decision: Tensor) -> Action:
    return Action(token, is_decision, torch.full_like(token, -1))


@dataclass(frozen=True)
class Base(Rung):
    """The base alone."""

    name: ClassVar[RungName] = "base"
    needs_thinking = False

    def act(self, context: DecisionContext) -> Action:
        """Emit the base's token."""
        return _emit(context.base.token, torch.zeros_like(context.base.token, dtype=torch.bool))


@dataclass(frozen=True)
class BaseStepByStep(Base):
    """The base alone, asked to reason step by step."""

    base_prompt: str
    name: ClassVar[RungName] = "base-step-by-step"

    @property
    def prompt(self) -> str:
        """Asks for steps."""
        return self.base_prompt


@dataclass(frozen=True)
class Thinking(Rung):
    """The thinking model alone."""

    name: ClassVar[RungName] = "thinking"
    allows_banned_tokens = True

    def act(self, context: DecisionContext) -> Action:
        """Emit the thinking model's token."""
        token = context.thinking.token
        return _emit(token, torch.zeros_like(token, dtype=torch.bool))


@dataclass(frozen=True)
class Takeover(Rung):
    """The ceiling: at a disagreement the thinking model's token is emitted."""

    name: ClassVar[RungName] = "takeover"

    def act(self, context: DecisionContext) -> Action:
        """Emit the base's token, or at a disagreement the thinking model's."""
        return _emit(
            torch.where(context.is_decision, context.thinking.token, context.base.token),
            context.is_decision,
        )


@dataclass(frozen=True)
class Guardrail(Rung):
    """No vectors: at a disagreement the thinking model picks among the base's top tokens."""

    top_k: int
    name: ClassVar[RungName] = "guardrail-only"

    def act(self, context: DecisionContext) -> Action:
        """Rerank the base's `top_k` tokens by the thinking model at a disagreement."""
        token, where = context.base.token, context.is_decision
        if _is_never(where):
            return _emit(token, where)
        scores, top = context.base.top(self.top_k)
        wanted = context.thinking.scores_of(top)
        is_outside = scores == -torch.inf  # the base's nucleus may hold fewer tokens
        best = wanted.masked_fill(is_outside, -torch.inf).argmax(1)
        return _emit(torch.where(where, top.gather(1, best[:, None])[:, 0], token), where)


@dataclass(frozen=True)
class Steer(Rung):
    """The full hybrid: at a disagreement, steer the base with the category that the gate reads."""

    gate: Gate
    vectors: VectorSet
    strength: Strength = LEARNED
    name: ClassVar[RungName] = "hybrid"

    @property
    def thinking_layers(self) -> tuple[int, ...]:
        """The gate's."""
        return (self.gate.layer,)

    @property
    def steering(self) -> Steering:
        """With a vector for every category of the gate."""
        return Steering(self.vectors, self.strength, self.gate.size)

    def on(self, models: ModelPair) -> "Steer":
        """The same rung with its gate and vectors where the models' residuals are."""
        return replace(
            self,
            gate=self.gate.to(models.thinking.layer_device(self.gate.layer)),
            vectors=self.vectors.to(models.base.layer_device(self.vectors.layer)),
        )

    def act(self, context: DecisionContext) -> Action:
        """Steer where the two tokens differ."""
        where = self.choose_where(context)
        return Action(context.base.token, where, self.choose_category(context, where))

    def choose_category(
        self, context: DecisionContext, where: Bool[Tensor, " n"]
    ) -> Int[Tensor, " n"]:
        """What the gate reads in the thinking model."""
        return context.categories(self.gate, where)

    def choose_where(self, context: DecisionContext) -> Bool[Tensor, " n"]:
        """The disagreements."""
        return context.is_decision


@dataclass(frozen=True)
class SharedVector(Steer):
    """One vector for all categories (K = 1), trained on the same disagreements."""

    name: ClassVar[RungName] = "shared-vector"

    @property
    def steering(self) -> Steering:
        """With the single vector."""
        return Steering(self.vectors, self.strength, 1)

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

    def choose_category(
        self, context: DecisionContext, where: Bool[Tensor, " n"]
    ) -> Int[Tensor, " n"]:
        """A uniform draw."""
        trained = self.vectors.trained().to(context.uniforms.device)
        drawn = trained[(context.uniforms[:, 0] * len(trained)).long()]
        return drawn.masked_fill(~where, -1)


@dataclass(frozen=True)
class RandomPositions(Steer):
    """The right categories at random moments, as often as the hybrid steers."""

    rate: float = 0.0
    """Share of tokens to steer."""
    name: ClassVar[RungName] = "random-positions"

    def choose_where(self, context: DecisionContext) -> Bool[Tensor, " n"]:
        """Each position with probability `rate`."""
        return context.uniforms[:, 1] < self.rate


@dataclass(frozen=True)
class RandomVectors(Steer):
    """The right moments and categories with random directions of the right norms."""

    name: ClassVar[RungName] = "random-vectors"


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


def _only_where(action: Action, is_wanted: Callable[[Tensor], Tensor]) -> Action:
    kept = action.is_decision & is_wanted(action.category)
    return Action(action.token, kept, action.category.masked_fill(~kept, -1))


@dataclass(frozen=True)
class SelfGated(Rung):
    """No thinking model at all: a probe on the base's own residual says when, and which."""

    probe: SelfGate
    vectors: VectorSet
    strength: Strength = LEARNED
    name: ClassVar[RungName] = "self-gate"
    needs_thinking = False

    @property
    def base_layers(self) -> tuple[int, ...]:
        """The probe's."""
        return self.probe.layers

    @property
    def steering(self) -> Steering:
        """With a vector for every output of the probe, apart from the one for the moment."""
        return Steering(self.vectors, self.strength, len(self.probe.outputs) - 1)

    def on(self, models: ModelPair) -> "SelfGated":
        """The same rung with its probe where rungs decide, and its vectors at their residual."""
        return replace(
            self,
            probe=self.probe.to(models.base.device),
            vectors=self.vectors.to(models.base.layer_device(self.vectors.layer)),
        )

    def act(self, context: DecisionContext) -> Action:
        """Steer where the probe's log-odds of a disagreement reach its threshold."""
        residual, device = context.base.residual, context.base.device
        features = [residual[layer].to(device) for layer in self.probe.layers]
        outputs = self.probe.read(torch.cat(features, dim=1).float())
        where = outputs[:, 0] >= self.probe.threshold
        category = outputs[:, 1:].argmax(1).masked_fill(~where, -1)
        return Action(context.base.token, where, category)


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
