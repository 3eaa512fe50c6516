"""The ladder's rungs: who writes the next token, and with what steering.

A `Rung` looks at both models at some positions and returns an `Action`: tokens to emit as they are,
and positions at which the base is to be steered first. The controls differ from the full hybrid in
one thing each; none is a flag. What happens at a position depends on the text before it and on
nothing else, so the same rung serves stepwise and block decoding.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from howwhen.hybrid.context import Action, DecisionContext, emit, is_never
from howwhen.hybrid.strength import LEARNED, Strength
from howwhen.lm.alignment import ModelPair
from howwhen.probes import Gate, SelfGate, numbers_in
from howwhen.records import RungName
from howwhen.vectors import VectorSet


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
    reads_host: ClassVar[bool] = False
    """Whether it looks at `answers` or `uniforms` of a context, which no graph can hold."""
    is_random: ClassVar[bool] = False
    """Whether it is decoded once per seed."""
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

    @property
    def fitted(self) -> int:
        """Numbers that were fitted for the pair: vectors, coefficient network, gate, probe."""
        return 0

    def on(self, _models: ModelPair) -> "Rung":
        """The same rung with its gate and vectors where the models' residuals are."""
        return self

    @abstractmethod
    def act(self, context: DecisionContext) -> Action:
        """Decide at every position of a context."""


@dataclass(frozen=True)
class Base(Rung):
    """The base alone."""

    name: ClassVar[RungName] = "base"
    needs_thinking = False

    def act(self, context: DecisionContext) -> Action:
        """Emit the base's token."""
        return emit(context.base.token, torch.zeros_like(context.base.token, dtype=torch.bool))


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
        return emit(token, torch.zeros_like(token, dtype=torch.bool))


@dataclass(frozen=True)
class Takeover(Rung):
    """The ceiling: at a disagreement the thinking model's token is emitted."""

    name: ClassVar[RungName] = "takeover"

    def act(self, context: DecisionContext) -> Action:
        """Emit the base's token, or at a disagreement the thinking model's."""
        return emit(
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
        if is_never(where):
            return emit(token, where)
        scores, top = context.base.top(self.top_k)
        wanted = context.thinking.scores_of(top)
        is_outside = scores == -torch.inf  # the base's nucleus may hold fewer tokens
        best = wanted.masked_fill(is_outside, -torch.inf).argmax(1)
        chosen = torch.where(where, top.gather(1, best[:, None])[:, 0], token)
        logits = context.base.logits.gather(1, top.to(context.base.logits.device)).to(token.device)
        shares = logits.masked_fill(is_outside, -torch.inf).log_softmax(1)
        bits = -shares.gather(1, best[:, None])[:, 0] / math.log(2)
        return replace(emit(chosen, where), bits=bits)


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

    @property
    def fitted(self) -> int:
        """Those of the vectors and of the gate."""
        return self.vectors.numbers + numbers_in(self.gate)

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

    @property
    def fitted(self) -> int:
        """Those of the vectors and of the probe."""
        return self.vectors.numbers + numbers_in(self.probe)

    def on(self, models: ModelPair) -> "SelfGated":
        """The same rung with its probe where rungs decide, and its vectors at their residual."""
        return replace(
            self,
            probe=self.probe.to(models.base.device),
            vectors=self.vectors.to(models.base.layer_device(self.vectors.layer)),
        )

    def act(self, context: DecisionContext) -> Action:
        """Steer where the probe's log-odds of a disagreement reach its threshold."""
        outputs = self.probe.read_layers(context.base.residual, context.base.device)
        where = outputs[:, 0] >= self.probe.threshold
        category = outputs[:, 1:].argmax(1).masked_fill(~where, -1)
        return Action(context.base.token, where, category)
