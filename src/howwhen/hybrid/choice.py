"""The ladder's rungs: who writes the next token, and with what steering.

A `Rung` looks at both models at some positions and returns an `Action`: tokens to emit as they are,
and positions at which the base is to be steered first. The controls differ from the full hybrid in
one thing each; none is a flag. What happens at a position depends on the text before it and on
nothing else, so the same rung serves stepwise and block decoding.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from howwhen.errors import SettingsError
from howwhen.hybrid.strength import LEARNED, Strength
from howwhen.lm.alignment import ModelPair
from howwhen.probes import Gate, SelfGate, numbers_in
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
    unsampled: Callable[[], Float[Tensor, "n vocabulary"]] | None = None
    """Makes the logits that `scores` were drawn from; None where the two are the same."""

    @cached_property
    def logits(self) -> Float[Tensor, "n vocabulary"]:
        """Logits of the tokens that may be written, without the random numbers of sampling."""
        return self.scores if self.unsampled is None else self.unsampled()

    @cached_property
    def entropy(self) -> Float[Tensor, " n"]:
        """Entropy of the model's next-token distribution, in nats."""
        return entropy(self.logits.softmax(1)).to(self.device)

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


ROWS_AT_A_TIME = 16
"""Positions whose distributions are compared at a time, since each is as wide as a vocabulary."""


def _divergence(
    ours: Float[Tensor, "n vocabulary"], theirs: Float[Tensor, "n vocabulary"]
) -> Float[Tensor, " n"]:
    """Jensen-Shannon divergence of the distributions of two models' logits, in bits."""
    first, second = ours.softmax(1), theirs.to(ours.device).softmax(1)
    nats = entropy((first + second) / 2) - (entropy(first) + entropy(second)) / 2
    return (nats / math.log(2)).clamp(0, 1)


def entropy(shares: Float[Tensor, "n vocabulary"]) -> Float[Tensor, " n"]:
    """Entropy of distributions, in nats."""
    found: Tensor = torch.special.entr(shares).sum(1)
    return found


@dataclass(frozen=True)
class AnswerSoFar:
    """What has been written of an answer before the positions that a rung is asked about."""

    problem_id: str
    ids: Sequence[int]
    interventions: int
    """At how many of these tokens the rung intervened."""


@dataclass(frozen=True)
class DecisionContext:
    """What a rung may look at: n positions, g of each stream in turn."""

    base: ModelView
    thinking_view: ModelView | None
    """None where the rung does not run the thinking model. As wide as the base's, unless the rung
    may write tokens that only one model knows."""
    ends: Int[Tensor, " end"]
    """Tokens of either model that end an answer."""
    draw_uniforms: Callable[[], Float[Tensor, "n 2"]]
    """Draws the numbers that `uniforms` returns."""
    drafted: Int[Tensor, "stream g"]
    """The token drafted at every position. What a rung does at a position counts only if the text
    goes on as drafted up to there."""
    look_up_answers: Callable[[], Sequence[AnswerSoFar]]
    """Makes what `answers` returns."""
    may_both_write: Callable[[Int[Tensor, " n"]], Bool[Tensor, " n"]]
    """Which tokens are known to both models, so that either can go on after them."""

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
    def answers(self) -> Sequence[AnswerSoFar]:
        """What every stream has written before its first position."""
        return self.look_up_answers()

    @cached_property
    def is_decision(self) -> Bool[Tensor, " n"]:
        """Whether the two tokens differ; two end tokens mean the same."""
        ours, theirs = self.base.token, self.thinking.token
        differ = ours != theirs
        if is_never(differ):
            return differ
        return differ & ~(torch.isin(ours, self.ends) & torch.isin(theirs, self.ends))

    @cached_property
    def divergence(self) -> Float[Tensor, " n"]:
        """Jensen-Shannon divergence of the two next-token distributions, in bits: 0 to 1.

        It is symmetric, and finite where only one of the models gives a token any chance.
        """
        ours, theirs = self.base.logits, self.thinking.logits
        parts = zip(
            torch.split(ours, ROWS_AT_A_TIME), torch.split(theirs, ROWS_AT_A_TIME), strict=True
        )
        return torch.cat([_divergence(*part) for part in parts]).to(self.base.device)

    def categories(self, gate: Gate, where: Bool[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Category that a gate reads in the thinking model, where asked; -1 elsewhere."""
        if is_never(where):
            return torch.full_like(self.base.token, -1)
        read = gate.categorise(self.thinking.residual[gate.layer].float())
        return read.to(where.device).masked_fill(~where, -1)


def is_never(where: Bool[Tensor, " n"]) -> bool:
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
    bits: Float[Tensor, " n"] | None = None
    """Bits that name the token among those it was chosen from, for who knows the base; None where
    it was chosen from all."""


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


def emit(token: Tensor, is_decision: Tensor) -> Action:
    """Write tokens as they are; nothing is steered."""
    return Action(token, is_decision, torch.full_like(token, -1))


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
