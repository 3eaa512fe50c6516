"""What both models thought of every position of a round, and the tokens that came of it.

All of it is made where the models are, and read by the host at once. No logits are kept.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from howwhen.hybrid.notes import Notes
from howwhen.hybrid.steering import Steered, rounded
from howwhen.records import HybridToken

MAX_MARGIN = 1000.0
"""Noted where a model has no second choice."""


class Opinion(NamedTuple):
    """What one model said at a position."""

    token: int
    """The token that it would have written."""
    margin: float
    """Score of that token minus that of its second choice."""
    is_tie: bool
    """Whether the margin is within the rounding of the model's numbers."""
    log_prob: float
    """Of the token that the rung chose, in nats; minus infinity for one the model does not know."""

    @classmethod
    def of(cls, token: float, numbers: Sequence[float], rounding: float) -> "Opinion":
        """From what `numbers_of` returns.

        Args:
            token: the model's own.
            numbers: at this position.
            rounding: of the model's logits relative to their size, in units of its scores.
        """
        first, second, own, chosen, total = numbers
        margin = min(first - second, MAX_MARGIN)
        is_tie = margin <= rounding * abs(own)
        return cls(int(token), margin, is_tie, chosen - total)


def numbers_of(
    scores: Float[Tensor, "stream g shared"],
    logits: Float[Tensor, "stream g vocabulary"],
    own: Int[Tensor, "stream g"],
    chosen: Int[Tensor, "stream g"],
    *,
    may_be_unknown: bool,
) -> Float[Tensor, "stream g 5"]:
    """What an `Opinion` is made of, at every position.

    Args:
        scores: what the written token is the argmax of.
        logits: those of the model.
        own: the token that the model would have written.
        chosen: by the rung.
        may_be_unknown: whether the chosen token may be none of the model's.

    Returns:
        The two highest scores, the logits of both tokens, and the logarithm of the sum of their
        exponentials.
    """
    both = torch.stack([own.to(logits.device), chosen.to(logits.device)], dim=2)
    found = logits.gather(2, both.clamp(max=logits.shape[2] - 1) if may_be_unknown else both)
    if may_be_unknown:
        found = found.masked_fill(both >= logits.shape[2], -math.inf)
    return torch.cat([scores.topk(2, dim=2).values, found, logits.logsumexp(2, True)], dim=2)


def log_probs_of(
    logits: Float[Tensor, "n vocabulary"], tokens: Int[Tensor, "n count"]
) -> Float[Tensor, "n count"]:
    """Log-probabilities of tokens, in nats; minus infinity for those that a model does not know."""
    size = logits.shape[1]
    ids = tokens.to(logits.device)
    chosen = logits.gather(1, ids.clamp(max=size - 1)) - logits.logsumexp(1, keepdim=True)
    return chosen.masked_fill(ids >= size, -math.inf)


@dataclass(frozen=True)
class Round:
    """What a round decided."""

    numbers: list[int]
    """Of the answer in each stream."""
    ids: list[list[int]]
    """Tokens that each stream emitted; none where it had ended."""
    is_decision: list[list[bool]]
    """Per stream and position, whether the rung intervened."""
    steered: dict[tuple[int, int], Steered]
    """By stream and position."""
    base: list[list[Opinion]]
    """Per stream and position."""
    thinking: list[list[Opinion]] | None
    """None where the thinking model was not run."""
    notes: Callable[[int, int], Notes]
    """Of a stream and position."""
    names_categories: bool
    """Whether steering chooses among several categories."""

    def tokens(self, stream: int) -> list[HybridToken]:
        """The tokens that a stream emitted, each explained."""
        return [self._token(stream, place, id_) for place, id_ in enumerate(self.ids[stream])]

    def _token(self, stream: int, place: int, id_: int) -> HybridToken:
        ours = self.base[stream][place]
        theirs = None if self.thinking is None else self.thinking[stream][place]
        steered = self.steered.get((stream, place))
        is_decision = self.is_decision[stream][place]
        base_log_prob, thinking_log_prob = ours.log_prob, theirs.log_prob if theirs else math.nan
        bits, divergence, probed = self.notes(stream, place)
        odds = _floored(probed[0], 3) if probed else None
        scores = tuple(round(score, 3) for score in probed[1:])
        if steered is not None:
            base_log_prob, thinking_log_prob = steered.base_log_prob, steered.thinking_log_prob
        return HybridToken(
            id=id_,
            base_id=ours.token,
            thinking_id=theirs.token if theirs else None,
            category=steered.category if steered else None,
            coefficient=steered.coefficient if steered else None,
            window=steered.window if steered else 0,
            is_decision=is_decision,
            base_log_prob=rounded(base_log_prob),
            thinking_log_prob=rounded(thinking_log_prob),
            candidates=steered.candidates if steered else (),
            base_margin=round(ours.margin, 4),
            thinking_margin=round(theirs.margin, 4) if theirs else None,
            is_tie=ours.is_tie or (theirs is not None and theirs.is_tie),
            choice_bits=None if bits is None or not is_decision else round(bits, 4),
            log_odds=odds,
            divergence=None if divergence is None else _floored(divergence, 4),
            category_scores=scores if steered and self.names_categories else (),
        )


def _floored(value: float, digits: int) -> float:
    """A number with few digits that is no larger, so that the number reaches it as a threshold."""
    scale = 10.0**digits
    return math.floor(value * scale) / scale
