"""What a rung sees at some positions, and what it does there."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from howwhen.errors import SettingsError
from howwhen.probes import Gate

_Value = TypeVar("_Value")
ROWS_AT_A_TIME = 16
"""Positions whose distributions are compared at a time, since each is as wide as a vocabulary."""


class once(Generic[_Value]):  # noqa: N801  # it is written as a decorator
    """A property that is made when first asked for, without the lock that no graph can hold."""

    def __init__(self, make: Callable[[Any], _Value]) -> None:
        self.make, self.__doc__ = make, make.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> "once[_Value]": ...

    @overload
    def __get__(self, instance: object, owner: type) -> _Value: ...

    def __get__(self, instance: object | None, owner: type) -> "once[_Value] | _Value":
        if instance is None:
            return self
        value = self.make(instance)
        instance.__dict__[self.make.__name__] = value  # and is found there from now on
        return value


@dataclass(frozen=True)
class ModelView:
    """What one model says at n positions, of any streams."""

    scores: Float[Tensor, "n vocabulary"]
    """The model's token is the one with the highest score: its logits, under greedy decoding."""
    residual: Mapping[int, Float[Tensor, "n d_model"]] = field(default_factory=dict)
    """Of the layers that the rung asked for, each on the device of its block."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where rungs decide. Only what they need of the scores is moved there."""
    unsampled: Float[Tensor, "n vocabulary"] | None = None
    """The logits that `scores` were drawn from; None where the two are the same."""

    @once
    def logits(self) -> Float[Tensor, "n vocabulary"]:
        """Logits of the tokens that may be written, without the random numbers of sampling."""
        return self.scores if self.unsampled is None else self.unsampled

    @once
    def entropy(self) -> Float[Tensor, " n"]:
        """Entropy of the model's next-token distribution, in nats."""
        return entropy(self.logits.softmax(1)).to(self.device)

    @once
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

    @once
    def uniforms(self) -> Float[Tensor, "n 2"]:
        """Uniform random numbers that depend on seed, problem and position only."""
        return self.draw_uniforms()

    @once
    def answers(self) -> Sequence[AnswerSoFar]:
        """What every stream has written before its first position."""
        return self.look_up_answers()

    @once
    def is_decision(self) -> Bool[Tensor, " n"]:
        """Whether the two tokens differ; two end tokens mean the same."""
        ours, theirs = self.base.token, self.thinking.token
        differ = ours != theirs
        if is_never(differ):
            return differ
        return differ & ~(torch.isin(ours, self.ends) & torch.isin(theirs, self.ends))

    @once
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


def emit(token: Tensor, is_decision: Tensor) -> Action:
    """Write tokens as they are; nothing is steered."""
    return Action(token, is_decision, torch.full_like(token, -1))


def is_never(where: Bool[Tensor, " n"]) -> bool:
    """Whether a mask is known to be empty. Only on a CPU, outside graphs, looking costs nothing."""
    return not torch.compiler.is_compiling() and where.device.type == "cpu" and not where.any()


def entropy(shares: Float[Tensor, "n vocabulary"]) -> Float[Tensor, " n"]:
    """Entropy of distributions, in nats."""
    found: Tensor = torch.special.entr(shares).sum(1)
    return found


def _divergence(
    ours: Float[Tensor, "n vocabulary"], theirs: Float[Tensor, "n vocabulary"]
) -> Float[Tensor, " n"]:
    """Jensen-Shannon divergence of the distributions of two models' logits, in bits."""
    first, second = ours.softmax(1), theirs.to(ours.device).softmax(1)
    nats = entropy((first + second) / 2) - (entropy(first) + entropy(second)) / 2
    return (nats / math.log(2)).clamp(0, 1)
