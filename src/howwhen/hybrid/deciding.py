"""What a rung does with a draft, and what the host has to know of it: all between two passes.

It is arithmetic on tensors alone, so that it can be compiled into one graph per shape, unless the
rung looks at something that only the host has.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from howwhen.errors import SettingsError
from howwhen.hybrid.choice import Rung
from howwhen.hybrid.context import AnswerSoFar, DecisionContext, ModelView
from howwhen.hybrid.ledger import numbers_of
from howwhen.hybrid.notes import Watch
from howwhen.lm.alignment import Alignment
from howwhen.lm.compiled import Graphs, size_of
from howwhen.settings import Compilation


@dataclass(frozen=True)
class Reading:
    """What one model says of a draft."""

    logits: Float[Tensor, "stream g vocabulary"]
    scores: Float[Tensor, "stream g shared"]
    """What its token is the argmax of."""
    residual: dict[int, Float[Tensor, "stream g d_model"]]
    unsampled: Float[Tensor, "stream g shared"] | None = None
    """Logits that the scores were drawn from; None where the two are the same."""

    def padded(self, size: int) -> "Reading":
        """The same with zeros behind it, for `size` positions."""
        more = size - self.scores.shape[1]
        if not more:
            return self

        def fill(part: Tensor) -> Tensor:
            return functional.pad(part, (0, 0, 0, more))

        return Reading(
            fill(self.logits),
            fill(self.scores),
            {layer: fill(part) for layer, part in self.residual.items()},
            None if self.unsampled is None else fill(self.unsampled),
        )

    def view(self, device: torch.device) -> ModelView:
        """What a rung sees of it."""
        return ModelView(
            self.scores.flatten(0, 1),
            {layer: part.flatten(0, 1) for layer, part in self.residual.items()},
            device,
            None if self.unsampled is None else self.unsampled.flatten(0, 1),
        )


ABOUT_RUNG = 4
"""Numbers of a position that say what the rung does there."""
PER_MODEL = 6
"""Numbers of a position that say what one model thinks."""


class Decided(NamedTuple):
    """Of every position of a draft."""

    numbers: Float[Tensor, "stream g number"]
    """What the host reads, in this order: the drafted token, the one to emit, whether the rung
    intervenes, the category; the base's token and the numbers of its opinion; the same of the
    thinking model, where it runs; then what is noted."""
    has_bits: bool
    """Whether the rung says how many bits its choices took."""


@dataclass(frozen=True)
class Decider:
    """Asks a rung, with whatever stays the same from round to round."""

    rung: Rung
    watch: Watch
    ends: Int[Tensor, " end"]
    """Tokens of either model that end an answer."""
    alignment: Alignment
    device: torch.device
    """Where rungs decide."""
    compilation: Compilation | None = None

    def decide(
        self,
        drafted: Int[Tensor, "stream g"],
        base: Reading,
        thinking: Reading | None,
        draw_uniforms: Callable[[], Float[Tensor, "n 2"]],
        look_up_answers: Callable[[], Sequence[AnswerSoFar]],
    ) -> Decided:
        """What becomes of a draft.

        Args:
            drafted: its tokens.
            base: what the base says.
            thinking: what the thinking model says, where the rung needs it.
            draw_uniforms: makes the random numbers of every position.
            look_up_answers: makes what was written before, of every stream.
        """
        if (decided := self._with_graph(drafted, base, thinking)) is not None:
            return decided
        return _decide(self, drafted, base, thinking, draw_uniforms, look_up_answers)

    def _with_graph(
        self, drafted: Tensor, base: Reading, thinking: Reading | None
    ) -> Decided | None:
        """The same with a graph; None where there is none."""
        how, count = self.compilation, drafted.shape[1]
        size = size_of(count)
        if how is None or size is None or self.rung.reads_host:
            return None
        padded = (
            functional.pad(drafted, (0, size - count)),
            base.padded(size),
            None if thinking is None else thinking.padded(size),
        )
        graphs, outline = _graphs(how), _outline((self, *padded))
        try:
            hash(outline)
        except TypeError:  # a rung that holds what cannot be compared
            return None
        if not graphs.has_graph(outline):
            return None
        try:
            numbers, has_bits = graphs(self, *padded)
        except torch._dynamo.exc.Unsupported as error:
            raise SettingsError(
                f"the rung {self.rung.name} cannot be compiled ({str(error).splitlines()[0]}); set "
                "`reads_host = True` in its class, or leave out --hybrid.compile"
            ) from error
        return Decided(numbers[:, :count], has_bits)


def _outline(value: Any) -> Hashable:
    """All that a graph depends on: everything but the numbers in tensors."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype, value.device
    if is_dataclass(value):
        return type(value), *(_outline(part) for part in vars(value).values())
    if isinstance(value, dict):
        return tuple((key, _outline(part)) for key, part in value.items())
    return tuple(map(_outline, value)) if isinstance(value, tuple | list) else value


_DECISIONS: "WeakSet[Graphs]" = WeakSet()
"""Counted apart from passes of models, since every rung has its own."""


@cache
def _graphs(how: Compilation) -> Graphs:
    return Graphs(_decide, how, _DECISIONS)


def _on_host() -> None:
    raise RuntimeError("a rung that is compiled asked for what only the host has")


def _decide(
    decider: Decider,
    drafted: Tensor,
    base: Reading,
    thinking: Reading | None,
    draw_uniforms: Callable[[], Tensor] = _on_host,  # type: ignore[assignment]
    look_up_answers: Callable[[], Sequence[AnswerSoFar]] = _on_host,  # type: ignore[assignment]
) -> Decided:
    rung, watch, device = decider.rung, decider.watch, decider.device
    context = DecisionContext(
        base=base.view(device),
        thinking_view=None if thinking is None else thinking.view(device),
        ends=decider.ends,
        draw_uniforms=draw_uniforms,
        drafted=drafted,
        look_up_answers=look_up_answers,
        may_both_write=decider.alignment.may_write,
    )
    action = rung.act(context)
    shape = drafted.shape
    token = action.token.view(shape)

    def opinion(reading: Reading, view: ModelView) -> list[Tensor]:
        own = view.token.view(shape)
        may_be_unknown = rung.allows_banned_tokens
        numbers = numbers_of(
            reading.scores, reading.logits, own, token, may_be_unknown=may_be_unknown
        )
        return [own[..., None].float(), numbers.to(device)]

    whole = [drafted, token, action.is_decision.view(shape), action.category.view(shape)]
    parts = [torch.stack(whole, dim=2).float(), *opinion(base, context.base)]
    if thinking is not None:
        parts += opinion(thinking, context.thinking)
    parts.append(watch.numbers(context, action).view(*shape, -1))
    return Decided(torch.cat(parts, dim=2), action.bits is not None)
