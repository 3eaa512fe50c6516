"""What the models read next: tokens that may be written, from the cheapest source.

A draft is what is cheapest by the costs of passes: guesses, perhaps after one token that the base
writes, what a small draft model writes, or what the base writes token by token. Where an answer to
the same problem is known from another rung, and agrees with all that was written so far, its
continuation is the draft instead. The base reads known, guessed and foreign tokens in one pass.

Drafts decide only how fast an answer is written. Any draft gives the same tokens, up to ties in the
last bits of a sum.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from howwhen.hybrid.block_size import BlockSizer
from howwhen.hybrid.draft_model import DraftModel
from howwhen.hybrid.guesses import Guess, Guesser, Text
from howwhen.hybrid.scoring import Answer, Scoring
from howwhen.hybrid.streams import Streams
from howwhen.records import Problem
from howwhen.settings import HybridSettings

PASS_TOKENS = 2048
"""About how many tokens of known answers all streams read in one pass. More would be wasted on
streams whose answer is another or ends."""
MAX_DRAFT_LOGITS = 2**24
"""Logits of one model that such a pass may take, if it is longer than a block."""
NOTHING = -1
"""Drafted where no token is proposed: whatever is written there ends the stream's draft."""
Source = Literal["base", "draft model", "guesses", "known answers"]


@dataclass
class OpenAnswer:
    """An answer that is being written."""

    number: int
    """Of its problem, in the order in which they were asked."""
    problem: Problem
    text: Text
    known: list[Answer]
    """Answers to the problem that agree with all that was written so far, likeliest last."""
    uniforms: Float[Tensor, "position 2"] | None = None
    """Random numbers of every position, once a rung has asked for them."""
    written: int = 0
    """Tokens written so far."""
    interventions: int = 0
    """At how many of them the rung intervened."""
    is_done: bool = False

    @property
    def ids(self) -> list[int]:
        """Tokens written so far."""
        return self.text.tokens[len(self.text.tokens) - self.written :]

    def note(self, tokens: Sequence[int], interventions: int, *, is_done: bool) -> None:
        """Take in more tokens that were written, and at how many of them the rung intervened."""
        self.interventions += interventions
        start, self.written = self.written, self.written + len(tokens)
        self.known = [
            answer
            for answer in self.known
            if len(answer) > self.written and list(answer[start : self.written]) == list(tokens)
        ]
        self.text.extend(tokens)
        self.is_done = is_done


@dataclass(frozen=True)
class Draft:
    """Tokens that may be written next, and the base's opinion of them; g positions per stream."""

    token: Int[Tensor, "stream g"]
    logits: Float[Tensor, "stream g vocabulary"]
    scores: Float[Tensor, "stream g shared"]
    residual: dict[int, Float[Tensor, "stream g d_model"]]
    noise: list[Float[Tensor, "stream vocabulary"] | None]
    """Per position, what sampling adds to all models' scores; None under greedy decoding."""
    source: Source
    guesses: list[list[Guess]] = field(default_factory=list)
    """What was guessed, per stream, where it was."""
    written: int = 0
    """Tokens that the base wrote ahead of the guesses."""

    @property
    def length(self) -> int:
        """Positions per stream."""
        return self.token.shape[1]

    @property
    def is_read(self) -> bool:
        """Whether both models read it, rather than the base write it ahead."""
        return self.source != "base"


@dataclass
class Drafter:
    """Drafts for the streams of a session, and learns which drafts are worth their passes."""

    base: Streams
    scoring: Scoring
    settings: HybridSettings
    block_sizer: BlockSizer
    guesser: Guesser
    draft_model: DraftModel | None = None

    def draft(
        self, answers: Sequence[OpenAnswer], first: Int[Tensor, " stream"], length: int | None
    ) -> Draft:
        """What is read next.

        Args:
            answers: of every stream.
            first: token that the base reads first.
            length: tokens that the base writes ahead; by default whatever is cheapest.
        """
        running = [answer for answer in answers if not answer.is_done]
        left = self.settings.max_new_tokens - min(answer.written for answer in running)
        if length is not None:
            return self._write_ahead(answers, first, min(length, left))
        if proposals := _proposals(answers):
            return self._read_known(answers, first, proposals, left)
        sizer = self.block_sizer
        block, cost = sizer.block()
        guesses, chances = self._guess(answers, left - 1)
        count, cost_of_guesses = sizer.guesses(chances)
        cost_of_both = sizer.step_and_guesses() if left > 2 else math.inf
        room = 0 if self.draft_model is None else self.draft_model.room
        drafted, cost_of_drafts = sizer.drafted(min(left - 1, room))
        best = min(cost, cost_of_guesses, cost_of_both, cost_of_drafts)
        if drafted and best == cost_of_drafts:
            return self._read_drafted(answers, first, drafted)
        if best == cost_of_both:
            return self._step_and_guess(answers, first, left)
        if count and best == cost_of_guesses:
            return self._read_guesses(answers, first, [own[:count] for own in guesses], count)
        return self._write_ahead(answers, first, min(block, left))

    def learn(
        self,
        draft: Draft,
        answers: Sequence[OpenAnswer],
        ids: Sequence[Sequence[int]],
        is_decision: Sequence[Sequence[bool]],
        drafted: Sequence[Sequence[int]],
    ) -> None:
        """Note how a draft fared, for the next ones.

        Args:
            draft: what was read.
            answers: of every stream, before these tokens were noted.
            ids: tokens that came of it; none for a stream that had ended.
            is_decision: whether the rung intervened, per stream and position.
            drafted: tokens of the draft.
        """
        kept = [len(own) for own in ids]
        running = [n for n, answer in enumerate(answers) if not answer.is_done]
        if draft.written:
            guessed = sum(kept) / len(running) if draft.is_read else 1.0
            self.block_sizer.kept_after_step.learn([guessed])
        if not draft.is_read:
            self.block_sizer.learn(is_decision, kept)
        for stream in running if draft.guesses else ():
            if kept[stream] > draft.written:
                self.guesser.learn(draft.guesses[stream], ids[stream][draft.written :])
        if self.draft_model is None:
            return
        agreed = [_agreement(own, wrote) for own, wrote in zip(ids, drafted, strict=True)]
        if draft.source == "draft model":
            tried = range(draft.length - 1)  # nothing is drafted at the last position
            events = [n < agreed[one] for one in running for n in tried[: kept[one]]]
            self.block_sizer.accepted.learn(events, len(running))
        self.draft_model.note(ids, agreed)

    def _write_ahead(
        self,
        answers: Sequence[OpenAnswer],
        first: Tensor,
        length: int,
        begun: Draft | None = None,
    ) -> Draft:
        """A draft that the base writes token by token, its first token perhaps already."""
        token, logits, scores, noise = [first], [], [], []
        residual: dict[int, list[Tensor]] = {layer: [] for layer in self.base.layers}
        if begun is not None:
            token.append(begun.token[:, 0])
            logits, scores, noise = [begun.logits], [begun.scores], list(begun.noise)
            residual = {layer: [part] for layer, part in begun.residual.items()}
        for offset in range(len(logits), length):
            self.base.extend(self.scoring.readable(token[-1], self.base)[:, None])
            logits.append(self.base.logits)
            noise.append(self._noise(answers, offset))
            scores.append(self._scores(logits[-1], noise[-1:]))
            token.append(scores[-1][:, 0].argmax(1).to(self.base.device))
            for layer, parts in residual.items():
                parts.append(self.base.residual[layer])
        return Draft(
            torch.stack(token[1:], 1),
            _joined(logits),
            _joined(scores),
            {layer: _joined(parts) for layer, parts in residual.items()},
            noise,
            "base",
        )

    def _read_known(
        self, answers: Sequence[OpenAnswer], first: Tensor, proposals: list[Answer], left: int
    ) -> Draft:
        vocabulary = self.base.model.model.get_output_embeddings().weight.shape[0]
        tokens = min(PASS_TOKENS, MAX_DRAFT_LOGITS // vocabulary)
        most = max(self.settings.block_tokens, tokens // len(answers))
        length = min(max(len(proposal) for proposal in proposals) + 1, left, most)
        noise = [self._noise(answers, offset) for offset in range(length)]
        return self._read(first, self._padded(proposals, length), noise, "known answers")

    def _read_guesses(
        self,
        answers: Sequence[OpenAnswer],
        first: Tensor,
        guesses: list[list[Guess]],
        count: int,
        written: int = 0,
    ) -> Draft:
        """Up to `count` guesses and the token after them."""
        proposals = [[one.token for one in own] for own in guesses]
        noise = [self._noise(answers, written + offset) for offset in range(count + 1)]
        draft = self._read(first, self._padded(proposals, count + 1), noise, "guesses")
        return replace(draft, guesses=guesses)

    def _read_drafted(self, answers: Sequence[OpenAnswer], first: Tensor, count: int) -> Draft:
        """What the draft model writes, and the token after it."""
        if self.draft_model is None:
            raise RuntimeError("there is no draft model")
        noise = [self._noise(answers, offset) for offset in range(count + 1)]
        token = self.draft_model.write(count, self.scoring, noise).to(self.base.device)
        nothing = torch.full_like(token[:, :1], NOTHING)
        return self._read(first, torch.cat([token, nothing], 1), noise, "draft model")

    def _step_and_guess(self, answers: Sequence[OpenAnswer], first: Tensor, left: int) -> Draft:
        """A draft of one token that the base writes, and guesses after it.

        The host reads that token in between, to look it up.
        """
        ahead = self._write_ahead(answers, first, 1)
        guesses, chances = self._guess(answers, left - 2, ahead.token.tolist())
        count, _ = self.block_sizer.guesses(chances)
        if not count:
            block, _ = self.block_sizer.block()
            if block > 1:
                ahead = self._write_ahead(answers, first, min(block, left), ahead)
            return replace(ahead, written=1)
        taken = [own[:count] for own in guesses]
        rest = self._read_guesses(answers, ahead.token[:, -1], taken, count, 1)
        return Draft(
            torch.cat([ahead.token, rest.token], 1),
            _joined([ahead.logits, rest.logits]),
            _joined([ahead.scores, rest.scores]),
            {
                layer: _joined([part, rest.residual[layer]])
                for layer, part in ahead.residual.items()
            },
            [*ahead.noise, *rest.noise],
            "guesses",
            taken,
            written=1,
        )

    def _guess(
        self,
        answers: Sequence[OpenAnswer],
        left: int,
        ahead: Sequence[Sequence[int]] | None = None,
    ) -> tuple[list[list[Guess]], list[list[float]]]:
        """Guesses for every stream, and for those that run the chances that they are right."""
        most = min(self.block_sizer.most_guesses, left)
        before = [()] * len(answers) if ahead is None else ahead
        guesses = [
            [] if answer.is_done or most < 1 else self.guesser.guess(answer.text, most, first)
            for answer, first in zip(answers, before, strict=True)
        ]
        pairs = zip(guesses, answers, strict=True)
        return guesses, [self.guesser.chances(own) for own, answer in pairs if not answer.is_done]

    def _padded(self, proposals: Sequence[Answer], length: int) -> Int[Tensor, "stream g"]:
        """Proposals of one length; where a stream has no more, nothing is proposed."""
        parts = [self.scoring.readable_part(proposal[:length]) for proposal in proposals]
        rows = [[*own, *[NOTHING] * (length - len(own))] for own in parts]
        return torch.tensor(rows, device=self.base.device)

    def _read(
        self,
        first: Tensor,
        token: Int[Tensor, "stream g"],
        noise: list[Tensor | None],
        source: Source,
    ) -> Draft:
        """Proposed tokens that the base reads in one pass, after a first token.

        Args:
            first: read before them.
            token: what is proposed.
            noise: of every position.
            source: where the proposals come from.
        """
        read = torch.cat([first[:, None], token[:, :-1].clamp(min=0)], dim=1)
        self.base.extend(self.scoring.readable(read, self.base))
        scores = self._scores(self.base.logits, noise)
        return Draft(token, self.base.logits, scores, self.base.residual, noise, source)

    def _scores(self, logits: Tensor, noise: Sequence[Tensor | None]) -> Tensor:
        return self.scoring.scores(self.scoring.models.base, logits, noise)

    def _noise(self, answers: Sequence[OpenAnswer], offset: int) -> Tensor | None:
        names = [answer.problem.id for answer in answers]
        return self.scoring.noise(names, [answer.written + offset for answer in answers])


def _proposals(answers: Sequence[OpenAnswer]) -> list[Answer] | None:
    """How a known answer goes on, for every stream; None where too few streams have one."""
    proposals: list[Answer] = [
        [] if one.is_done or not one.known else one.known[-1][one.written :] for one in answers
    ]
    count = sum(len(proposal) > 0 for proposal in proposals)
    running = sum(not one.is_done for one in answers)
    return proposals if count and 2 * count >= running else None


def _agreement(ids: Sequence[int], drafted: Sequence[int]) -> int:
    """How many of the first tokens are the same."""
    pairs = zip(ids, drafted, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(ids), len(drafted)))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """One tensor (stream, g, ...) of g tensors (stream, 1, ...)."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), 1)
