"""Which tokens were written and how each came about, noted many rounds at a time.

Log-probabilities need a model's logits of every emitted token. The ledger holds a round's logits
back until there are enough of them: small tensor operations cost most.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from howwhen.hybrid.steering import Steered
from howwhen.records import HybridToken

MAX_BUFFERED_LOGITS = 2**23
"""Logits that are held back before tokens are noted."""
MAX_MARGIN = 1000.0
"""Noted where a model has no second choice."""


@dataclass(frozen=True)
class Opinion:
    """What one model said at the positions of a round."""

    token: Int[Tensor, "stream g"]
    """The token that it would have written."""
    logits: Float[Tensor, "stream g vocabulary"]
    margin: Float[Tensor, "stream g"]
    """Score of that token minus that of its second choice."""
    is_tie: Bool[Tensor, "stream g"]
    """Whether the margin is within the rounding of the model's numbers."""

    @classmethod
    def of(
        cls,
        scores: Float[Tensor, "stream g shared"],
        logits: Float[Tensor, "stream g vocabulary"],
        rounding: float,
    ) -> "Opinion":
        """From scores.

        Args:
            scores: what the written token is the argmax of.
            logits: those of the model.
            rounding: relative to the size of a logit, in units of the scores.
        """
        token = scores.argmax(2)
        first, second = scores.topk(2, dim=2).values.unbind(2)
        margin = (first - second).clamp(max=MAX_MARGIN)
        size = logits.gather(2, token[..., None])[..., 0].abs()
        return cls(token, logits, margin, margin <= rounding * size)


@dataclass(frozen=True)
class Round:
    """What a round decided."""

    rows: list[int]
    """Which problem each stream answers."""
    ids: list[list[int]]
    """Tokens that each stream emitted; none where it had ended."""
    is_decision: list[list[bool]]
    """Per stream and position, whether the rung intervened."""
    steered: dict[tuple[int, int], Steered]
    """By stream and position."""
    base: Opinion
    thinking: Opinion | None
    """None where the thinking model was not run."""

    @property
    def emitted(self) -> list[tuple[int, int]]:
        """Stream and position of every emitted token, in order."""
        return [(stream, n) for stream, ids in enumerate(self.ids) for n in range(len(ids))]


@dataclass
class Ledger:
    """The answers of a batch, token by token."""

    tokens: list[list[HybridToken]]
    """Per problem, the tokens noted so far."""
    pending: list[Round] = field(default_factory=list)
    buffered_logits: int = 0
    """How many logits the pending rounds hold."""

    def add(self, done: Round) -> None:
        """Take in a round. Its tokens are noted once enough logits are held back."""
        self.pending.append(done)
        self.buffered_logits += done.base.logits.numel()
        if self.buffered_logits >= MAX_BUFFERED_LOGITS:
            self.flush()

    def flush(self) -> None:
        """Note the tokens of all pending rounds."""
        if not self.pending:
            return
        ids = [token for done in self.pending for stream in done.ids for token in stream]
        base = _notes([done.base for done in self.pending], self.pending, ids)
        opinions = [done.thinking for done in self.pending if done.thinking is not None]
        unknown = [_Note(None, None, None, False)] * len(ids)
        thinking = _notes(opinions, self.pending, ids) if opinions else unknown
        places = [(done, *place) for done in self.pending for place in done.emitted]
        for place, token, ours, theirs in zip(places, ids, base, thinking, strict=True):
            done, stream, offset = place
            steered = done.steered.get((stream, offset))
            self.tokens[done.rows[stream]].append(
                HybridToken(
                    id=token,
                    base_id=ours.token,
                    thinking_id=theirs.token,
                    category=steered.category if steered else None,
                    coefficient=steered.coefficient if steered else None,
                    window=steered.window if steered else 0,
                    is_decision=done.is_decision[stream][offset],
                    base_log_prob=ours.log_prob,
                    thinking_log_prob=theirs.log_prob,
                    candidates=steered.candidates if steered else (),
                    base_margin=ours.margin,
                    thinking_margin=theirs.margin,
                    is_tie=ours.is_tie or theirs.is_tie,
                )
            )
        self.pending, self.buffered_logits = [], 0


class _Note(NamedTuple):
    """One model's own token at an emitted token, and what it thought of it."""

    token: Any
    log_prob: float | None
    """Of the emitted token."""
    margin: float | None
    is_tie: bool


def _notes(opinions: list[Opinion], rounds: list[Round], ids: list[int]) -> list[_Note]:
    """One model's notes on all emitted tokens."""
    own, rows, margins, ties = [], [], [], []
    for opinion, done in zip(opinions, rounds, strict=True):
        device = opinion.logits.device
        places = torch.tensor(done.emitted, dtype=torch.long, device=device).view(-1, 2)
        own.append(opinion.token[places[:, 0], places[:, 1]])
        rows.append(opinion.logits[places[:, 0], places[:, 1]])
        margins.append(opinion.margin[places[:, 0], places[:, 1]])
        ties.append(opinion.is_tie[places[:, 0], places[:, 1]])
    logits = torch.cat(rows)
    log_probs = _log_probs(logits, torch.tensor(ids, device=logits.device))
    return [
        _Note(token, log_prob, round(margin, 4), is_tie)
        for token, log_prob, margin, is_tie in zip(
            torch.cat(own).tolist(),
            log_probs,
            torch.cat(margins).tolist(),
            torch.cat(ties).tolist(),
            strict=True,
        )
    ]


def _log_probs(
    logits: Float[Tensor, "token vocabulary"], ids: Int[Tensor, " token"]
) -> list[float | None]:
    """Log-probability of each token under a model's own distribution, in nats; None outside it."""
    size = logits.shape[1]
    chosen = logits.gather(1, ids.clamp(max=size - 1)[:, None])[:, 0]
    log_probs = (chosen - logits.logsumexp(1)).masked_fill(ids >= size, -torch.inf)
    return [None if value == -torch.inf else round(value, 4) for value in log_probs.tolist()]
