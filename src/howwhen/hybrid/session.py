"""A batch of answers being written: drafts, verifies, steers and stops, a round at a time.

In a round tokens are drafted, the thinking model reads the whole draft in one pass, and the rung is
asked about every position at once. Every stream keeps its draft up to the first position at which
another token is written. There the base is steered, or the rung's own token taken, and the rest is
rolled back.

A draft is what is cheapest by the costs of passes: guesses, perhaps after one token that the base
writes, or what the base writes token by token. Where an answer to the same problem is known from
another rung, and agrees with all that was written so far, its continuation is the draft instead.
The base reads known and guessed tokens in one pass, and a stream goes on past a steered position
whose token is the drafted one.

Drafts decide only how fast an answer is written. Any draft gives the same tokens, up to ties in the
last bits of a sum.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from howwhen.hybrid.block_size import BlockSizer
from howwhen.hybrid.choice import DecisionContext, ModelView, Rung
from howwhen.hybrid.guesses import Guess, Guesser
from howwhen.hybrid.ledger import Opinion, Round, log_probs_of, numbers_of
from howwhen.hybrid.sampling import Sampler, uniform_numbers
from howwhen.hybrid.steering import Steered, SteeredPlaces, steer
from howwhen.hybrid.streams import Streams
from howwhen.lm.alignment import ModelPair
from howwhen.lm.models import LanguageModel
from howwhen.lm.noise import gumbel_noise
from howwhen.records import Problem
from howwhen.settings import HybridSettings

PASS_TOKENS = 2048
"""About how many tokens of known answers all streams read in one pass. More would be wasted on
streams whose answer is another or ends."""
MAX_DRAFT_LOGITS = 2**24
"""Logits of one model that such a pass may take, if it is longer than a block."""
MAX_RUNNING_SHARE = 0.5
"""Share of the streams that may still be running when the others are dropped."""
NOTHING = -1
"""Drafted where no token is proposed: whatever is written there ends the stream's draft."""
Answer = Sequence[int]
"""Token ids of an answer."""


@dataclass(frozen=True)
class Draft:
    """Tokens that may be written next, and the base's opinion of them; g positions per stream."""

    token: Int[Tensor, "stream g"]
    logits: Float[Tensor, "stream g vocabulary"]
    scores: Float[Tensor, "stream g shared"]
    residual: dict[int, Float[Tensor, "stream g d_model"]]
    noise: list[Float[Tensor, "stream vocabulary"] | None]
    """Per position, what sampling adds to both models' scores; None under greedy decoding."""
    is_read: bool
    """Whether both models read it, rather than the base write it ahead."""
    guesses: list[list[Guess]] | None = None
    """What was guessed, per stream, where it was."""
    written: int = 0
    """Tokens that the base wrote ahead of the guesses."""

    @property
    def length(self) -> int:
        """Positions per stream."""
        return self.token.shape[1]


@dataclass(frozen=True)
class Verdict:
    """The thinking model's opinion of a draft."""

    logits: Float[Tensor, "stream g vocabulary"]
    scores: Float[Tensor, "stream g shared"]
    residual: dict[int, Float[Tensor, "stream g d_model"]]


@dataclass(frozen=True)
class _Plan:
    """A draft and what the rung does about it, as lists: per stream and position."""

    drafted: list[list[int]]
    token: list[list[int]]
    is_decision: list[list[bool]]
    category: list[list[int]]
    base: list[list[Opinion]]
    thinking: list[list[Opinion]] | None
    steered_places: float
    """How many positions of a stream may be steered before it stops. After one the base's own draft
    is seldom right, and under the `persistent` policy any draft was read with other states, so that
    it stops there. What was guessed may go on to the next one, and a known answer to its end."""


def _opinions(rows: list[list[list[float]]], own: int, rounding: float) -> list[list[Opinion]]:
    """One model's opinions, from where its token is, with its numbers behind it."""
    return [
        [Opinion.of(row[own], row[own + 1 : own + 6], rounding) for row in stream]
        for stream in rows
    ]


@dataclass
class Session:
    """The streams of a batch, and all that decides how they go on. Made by `open_session`."""

    models: ModelPair
    rung: Rung
    settings: HybridSettings
    seed: int
    problems: Sequence[Problem]
    base: Streams
    thinking: Streams | None
    base_next: Int[Tensor, " stream"]
    """Token that the base reads next; at first the last one of its prompt."""
    thinking_next: Int[Tensor, " stream"]
    known: list[list[Answer]]
    """Answers to each problem that agree with all that was written of it so far, likeliest last."""
    block_sizer: BlockSizer
    guesser: Guesser
    uniforms: Float[Tensor, "problem position 2"] | None = None
    """Random numbers of every position, once a rung has asked for them."""
    rows: list[int] = field(init=False)
    """Which problem of the batch each stream answers."""
    is_done: list[bool] = field(init=False)
    """Whether each stream has ended."""
    written: list[int] = field(init=False)
    """How many tokens each problem of the batch has been answered with."""
    device: torch.device = field(init=False)
    """Where rungs decide, and tokens are passed between the models."""

    def __post_init__(self) -> None:
        self.rows = list(range(len(self.problems)))
        self.is_done = [False] * len(self.rows)
        self.written = [0] * len(self.rows)
        self.sampler = Sampler(self.settings.temperature, self.settings.top_p)
        self.device = self.base.device
        self.ends = torch.tensor(sorted(self.models.end_ids), device=self.device)
        # In units of scores.
        scale = self.settings.temperature or 1.0
        self.base_rounding = self.models.base.rounding / scale
        self.thinking_rounding = self.models.thinking.rounding / scale

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Let both models keep what they read, with one set of hooks for many rounds."""
        with ExitStack() as opened:
            for streams in self._both():
                opened.enter_context(streams.capturing())
            yield

    def _both(self) -> list[Streams]:
        return [self.base] if self.thinking is None else [self.base, self.thinking]

    @torch.no_grad()
    def round(self, length: int | None = None) -> Round:
        """Write the next tokens of every running stream.

        Args:
            length: tokens that the base drafts; by default the best number, or as many as known
                answers propose.
        """
        draft = self._draft(length)
        verdict = self._verify(draft)
        plan = self._plan(draft, verdict)
        steered = self._steer(draft, verdict, plan)
        ids = [
            [] if is_done else list(self._tokens(stream, plan, steered))
            for stream, is_done in enumerate(self.is_done)
        ]
        self._learn(draft, plan, ids)
        rows = self.rows
        self._roll_back(draft.length, ids)
        self._note(ids)
        return Round(rows, ids, plan.is_decision, steered, plan.base, plan.thinking)

    def _plan(self, draft: Draft, verdict: Verdict | None) -> _Plan:
        """What the rung does, and what the models thought: all that the host reads at once."""
        context = self._context(draft, verdict)
        action = self.rung.act(context)
        shape = draft.token.shape
        token = action.token.view(shape)
        own = context.base.token.view(shape)
        whole = [draft.token, token, action.is_decision.view(shape), action.category.view(shape)]
        parts = [torch.stack([*whole, own], dim=2).float(), self._numbers(draft, own, token)]
        if verdict is not None:
            other = context.thinking.token.view(shape)
            parts += [other[..., None].float(), self._numbers(verdict, other, token)]
        rows: list[list[list[float]]] = torch.cat(parts, dim=2).tolist()
        return _Plan(
            drafted=[[int(row[0]) for row in stream] for stream in rows],
            token=[[int(row[1]) for row in stream] for stream in rows],
            is_decision=[[bool(row[2]) for row in stream] for stream in rows],
            category=[[int(row[3]) for row in stream] for stream in rows],
            base=_opinions(rows, 4, self.base_rounding),
            thinking=None if verdict is None else _opinions(rows, 10, self.thinking_rounding),
            steered_places=self._steered_places(draft),
        )

    def _steered_places(self, draft: Draft) -> float:
        if not draft.is_read or self.settings.cache_policy == "persistent":
            return 0.0
        return math.inf if draft.guesses is None else 1.0

    def _numbers(self, opinion: Draft | Verdict, own: Tensor, token: Tensor) -> Tensor:
        numbers = numbers_of(
            opinion.scores,
            opinion.logits,
            own,
            token,
            may_be_unknown=self.rung.allows_banned_tokens,
        )
        return numbers.to(self.device)

    def _learn(self, draft: Draft, plan: _Plan, ids: list[list[int]]) -> None:
        """Note how a draft fared, for the next ones."""
        kept = [len(stream) for stream in ids]
        if draft.written:
            running = max(1, sum(count > 0 for count in kept))
            guessed = sum(kept) / running if draft.is_read else 1.0
            self.block_sizer.kept_after_step.learn([guessed])
        if not draft.is_read:
            self.block_sizer.learn(plan.is_decision, kept)
        for stream, row in enumerate(self.rows):
            if draft.guesses is not None and len(ids[stream]) > draft.written:
                self.guesser.learn(draft.guesses[stream], ids[stream][draft.written :])
            self.guesser.extend(row, ids[stream])

    def compact(self) -> None:
        """Drop finished streams once there are enough of them to be worth a copy of the caches."""
        running = [stream for stream, is_done in enumerate(self.is_done) if not is_done]
        if len(running) > MAX_RUNNING_SHARE * len(self.rows):
            return
        self.rows = [self.rows[stream] for stream in running]
        if not self.rows:
            return
        for streams in self._both():
            streams.select(running)
        kept = torch.tensor(running, device=self.device)
        self.base_next, self.thinking_next = self.base_next[kept], self.thinking_next[kept]
        self.is_done = [False] * len(running)

    def _draft(self, length: int | None) -> Draft:
        left = self.settings.max_new_tokens - min(self.written[row] for row in self._running())
        if length is not None:
            return self._write_ahead(min(length, left))
        if proposals := self._proposals():
            return self._propose(proposals, left)
        block, cost = self.block_sizer.block()
        guesses, chances = self._guess(left - 1)
        count, cost_of_guesses = self.block_sizer.guesses(chances)
        cost_of_both = self.block_sizer.step_and_guesses() if left > 2 else math.inf
        if min(cost_of_both, cost_of_guesses, cost) == cost_of_both:
            return self._step_and_guess(left)
        if count and cost_of_guesses < cost:
            taken = [own[:count] for own in guesses]
            draft = self._propose([[one.token for one in own] for own in taken], left, count + 1)
            return replace(draft, guesses=taken)
        return self._write_ahead(min(block, left))

    def _step_and_guess(self, left: int) -> Draft:
        """A draft of one token that the base writes, and guesses after it.

        The host reads that token in between, to look it up.
        """
        ahead = self._write_ahead(1)
        guesses, chances = self._guess(left - 2, ahead.token.tolist())
        count, _ = self.block_sizer.guesses(chances)
        if not count:
            block, _ = self.block_sizer.block()
            whole = self._write_ahead(min(block, left), ahead) if block > 1 else ahead
            return replace(whole, guesses=[[] for _ in guesses], written=1)
        taken = [own[:count] for own in guesses]
        rest = self._read(
            ahead.token[:, -1], [[one.token for one in own] for own in taken], count + 1, 1
        )
        return Draft(
            torch.cat([ahead.token, rest.token], 1),
            _joined([ahead.logits, rest.logits]),
            _joined([ahead.scores, rest.scores]),
            {
                layer: _joined([part, rest.residual[layer]])
                for layer, part in ahead.residual.items()
            },
            [*ahead.noise, *rest.noise],
            is_read=True,
            guesses=taken,
            written=1,
        )

    def _guess(
        self, left: int, ahead: Sequence[Sequence[int]] | None = None
    ) -> tuple[list[list[Guess]], list[list[float]]]:
        """Guesses for every stream, and for those that run the chances that they are right."""
        most = min(self.block_sizer.most_guesses(), left)
        before = [()] * len(self.rows) if ahead is None else ahead
        guesses = [
            [] if is_done or most < 1 else self.guesser.guess(row, most, first)
            for row, is_done, first in zip(self.rows, self.is_done, before, strict=True)
        ]
        pairs = zip(guesses, self.is_done, strict=True)
        return guesses, [self.guesser.chances(own) for own, is_done in pairs if not is_done]

    def _running(self) -> list[int]:
        """Problems that are being answered."""
        return [row for row, is_done in zip(self.rows, self.is_done, strict=True) if not is_done]

    def _proposals(self) -> list[Answer] | None:
        """How a known answer goes on, for every stream; None where too few streams have one."""
        proposals: list[Answer] = [
            [] if is_done or not self.known[row] else self.known[row][-1][self.written[row] :]
            for row, is_done in zip(self.rows, self.is_done, strict=True)
        ]
        count = sum(len(proposal) > 0 for proposal in proposals)
        return proposals if count and 2 * count >= len(self._running()) else None

    def _propose(self, proposals: Sequence[Answer], left: int, limit: int | None = None) -> Draft:
        """A draft of known or guessed tokens, which the base reads in one pass."""
        vocabulary = self.base.model.model.get_output_embeddings().weight.shape[0]
        tokens = min(PASS_TOKENS, MAX_DRAFT_LOGITS // vocabulary)
        most = max(self.settings.block_tokens, tokens // len(self.rows))
        most = most if limit is None else limit
        length = min(max(len(proposal) for proposal in proposals) + 1, left, most)
        return self._read(self.base_next, proposals, length)

    def _read(
        self, first: Tensor, proposals: Sequence[Answer], length: int, written: int = 0
    ) -> Draft:
        """Proposed tokens that the base has read in one pass, after a first token.

        Args:
            first: read before them.
            proposals: of every stream.
            length: positions; where a stream has no more proposals, nothing is proposed.
            written: tokens of the draft that come before.
        """
        proposals = [self._readable_part(proposal[:length]) for proposal in proposals]
        padded = [[*own, *[NOTHING] * (length - len(own))] for own in proposals]
        token = torch.tensor(padded, device=self.device)
        read = torch.cat([first[:, None], token[:, :-1].clamp(min=0)], dim=1)
        self.base.extend(self._readable(read, self.base))
        noise = [self._noise(written + offset) for offset in range(length)]
        scores = self._scores(self.models.base, self.base.logits, noise)
        return Draft(token, self.base.logits, scores, self.base.residual, noise, is_read=True)

    def _write_ahead(self, length: int, begun: Draft | None = None) -> Draft:
        """A draft that the base writes token by token, its first token perhaps already."""
        token, logits, scores, noise = [self.base_next], [], [], []
        residual: dict[int, list[Tensor]] = {layer: [] for layer in self.base.layers}
        if begun is not None:
            token.append(begun.token[:, 0])
            logits, scores, noise = [begun.logits], [begun.scores], list(begun.noise)
            residual = {layer: [part] for layer, part in begun.residual.items()}
        for offset in range(len(logits), length):
            self.base.extend(self._readable(token[-1], self.base)[:, None])
            logits.append(self.base.logits)
            noise.append(self._noise(offset))
            scores.append(self._scores(self.models.base, logits[-1], noise[-1:]))
            token.append(scores[-1][:, 0].argmax(1).to(self.device))
            for layer, parts in residual.items():
                parts.append(self.base.residual[layer])
        return Draft(
            torch.stack(token[1:], 1),
            _joined(logits),
            _joined(scores),
            {layer: _joined(parts) for layer, parts in residual.items()},
            noise,
            is_read=False,
        )

    def _readable_part(self, proposal: Answer) -> Answer:
        """A proposal up to the first token that only one of the models knows."""
        shared = self.models.alignment.shared
        if self.rung.allows_banned_tokens or all(token < shared for token in proposal):
            return proposal
        return proposal[: next(n for n, token in enumerate(proposal) if token >= shared)]

    def _verify(self, draft: Draft) -> Verdict | None:
        """Let the thinking model read the draft."""
        if self.thinking is None:
            return None
        read = torch.cat([self.thinking_next[:, None], draft.token[:, :-1].clamp(min=0)], dim=1)
        self.thinking.extend(self._readable(read, self.thinking))
        logits = self.thinking.logits
        scores = self._scores(self.models.thinking, logits, draft.noise)
        return Verdict(logits, scores, self.thinking.residual)

    def _readable(self, tokens: Tensor, streams: Streams) -> Tensor:
        """Tokens as a model can read them: an id without an embedding is read as an end token.

        Only the thinking model's own rung writes such ids, and there the base's opinion is of no
        consequence.
        """
        tokens = tokens.to(streams.device)
        if not self.rung.allows_banned_tokens:
            return tokens
        rows = streams.model.model.get_input_embeddings().weight.shape[0]
        return torch.where(tokens < rows, tokens, min(streams.model.end_ids, default=0))

    def _scores(
        self,
        model: LanguageModel,
        logits: Float[Tensor, "n g vocabulary"],
        noise: Sequence[Tensor | None],
    ) -> Float[Tensor, "n g shared"]:
        """What each written token is the argmax of."""
        if self.rung.allows_banned_tokens:
            logits = model.without_padding(logits)
        else:
            allowed = self.models.alignment.allowed(logits.flatten(0, 1))
            logits = allowed.view(*logits.shape[:2], -1)
        columns = [
            self.sampler.scores(logits[:, offset], numbers[:, : logits.shape[2]].to(logits.device))
            for offset, numbers in enumerate(noise)
            if numbers is not None
        ]
        return torch.stack(columns, 1) if columns else logits

    def _noise(self, offset: int) -> Tensor | None:
        if self.sampler.is_greedy:
            return None
        names = [self.problems[row].id for row in self.rows]
        positions = [self.written[row] + offset for row in self.rows]
        size = max(
            model.model.get_output_embeddings().weight.shape[0]
            for model in (self.models.base, self.models.thinking)
        )
        return gumbel_noise(self.settings.seed, names, positions, size, self.device)

    def _context(self, draft: Draft, verdict: Verdict | None) -> DecisionContext:
        def view(opinion: Draft | Verdict) -> ModelView:
            residual = {layer: part.flatten(0, 1) for layer, part in opinion.residual.items()}
            return ModelView(opinion.scores.flatten(0, 1), residual, self.device)

        return DecisionContext(
            base=view(draft),
            thinking_view=None if verdict is None else view(verdict),
            ends=self.ends,
            draw_uniforms=lambda: self._uniforms(draft.length),
        )

    def _uniforms(self, length: int) -> Float[Tensor, "n 2"]:
        """Numbers of every position of a draft; drawn for whole answers when first needed."""
        if self.uniforms is None:
            name, count = self.rung.name, self.settings.max_new_tokens
            numbers = [uniform_numbers(name, self.seed, one.id, count) for one in self.problems]
            self.uniforms = torch.stack(numbers)
        rows = torch.tensor(self.rows)
        starts = torch.tensor([self.written[row] for row in self.rows])
        positions = (starts[:, None] + torch.arange(length)).clamp(max=self.uniforms.shape[1] - 1)
        return self.uniforms[rows[:, None], positions].flatten(0, 1).to(self.device)

    def _steer(
        self, draft: Draft, verdict: Verdict | None, plan: _Plan
    ) -> dict[tuple[int, int], Steered]:
        """Steer the base at every position that its stream may come to, by stream and position."""
        steering = self.rung.steering
        places = [] if steering is None else list(self._places(plan))
        if steering is None or not places:
            return {}
        read = [length - draft.length for length in self.base.lengths]
        steered = SteeredPlaces(
            streams=[stream for stream, _ in places],
            columns=[read[stream] + n for stream, n in places],
            categories=[plan.category[stream][n] for stream, n in places],
            answered=[self.written[self.rows[stream]] + n for stream, n in places],
        )

        def pick(logits: Tensor, cut: slice) -> Tensor:
            noises = [(draft.noise[n], stream) for stream, n in places[cut]]
            numbers = [noise[stream] for noise, stream in noises if noise is not None]
            shared = torch.stack(numbers) if numbers else None
            return self._scores(self.models.base, logits, [shared] * logits.shape[1]).argmax(2)

        def log_probs(tokens: Tensor, cut: slice) -> Tensor:
            return self._log_probs(draft, verdict, tokens, places[cut])

        found = steer(
            self.base,
            steering,
            steered,
            pick,
            log_probs,
            is_persistent=self.settings.cache_policy == "persistent",
        )
        return dict(zip(places, found, strict=True))

    def _log_probs(
        self,
        draft: Draft,
        verdict: Verdict | None,
        tokens: Int[Tensor, "place candidate"],
        places: Sequence[tuple[int, int]],
    ) -> Float[Tensor, "2 place candidate"]:
        """Of tokens at some places, under the base and under the thinking model."""
        rows, offsets = torch.tensor(places, device=self.device).T
        both = []
        for opinion in (draft, verdict):
            if opinion is None:
                both.append(torch.full_like(tokens, math.nan, dtype=torch.float32))
                continue
            device = opinion.logits.device
            logits = opinion.logits[rows.to(device), offsets.to(device)]
            both.append(log_probs_of(logits, tokens).to(self.device))
        return torch.stack(both)

    def _places(self, plan: _Plan) -> Iterator[tuple[int, int]]:
        """Stream and position of all that is steered."""
        for stream, is_done in enumerate(self.is_done):
            for offset in self._reachable(stream, plan) if not is_done else ():
                if plan.category[stream][offset] >= 0:
                    yield stream, offset

    def _reachable(self, stream: int, plan: _Plan) -> Iterator[int]:
        """Positions that a stream comes to if every steered token is the drafted one."""
        drafted, token, category = (
            part[stream] for part in (plan.drafted, plan.token, plan.category)
        )
        steered = 0
        for offset in range(self._limit(stream, len(drafted))):
            is_steered = category[offset] >= 0
            if is_steered and 0 < plan.steered_places == steered:
                return  # the next round begins with it
            yield offset
            steered += is_steered
            goes_on = plan.steered_places > 0 if is_steered else token[offset] == drafted[offset]
            if not goes_on or self._is_end(drafted[offset]):
                return

    def _limit(self, stream: int, length: int) -> int:
        return min(length, self.settings.max_new_tokens - self.written[self.rows[stream]])

    def _is_end(self, token: int) -> bool:
        return token in self.models.end_ids

    def _tokens(
        self, stream: int, plan: _Plan, steered: dict[tuple[int, int], Steered]
    ) -> Iterator[int]:
        """What a stream emits: its draft, up to and including the first other token."""
        for offset in self._reachable(stream, plan):
            place = steered.get((stream, offset))
            token = plan.token[stream][offset] if place is None else place.token
            yield token
            if token != plan.drafted[stream][offset]:
                return

    def _roll_back(self, length: int, ids: list[list[int]]) -> None:
        """Let both models forget what was drafted and not written."""
        counts = [length - len(stream) for stream in ids]
        for streams in self._both():
            streams.rollback(counts)

    def _note(self, ids: list[list[int]]) -> None:
        """Note how long each answer is, what is read next, and which have ended."""
        last = [stream[-1] if stream else 0 for stream in ids]
        self.base_next = self.thinking_next = torch.tensor(last, device=self.device)
        for stream, (row, new) in enumerate(zip(self.rows, ids, strict=True)):
            start = self.written[row]
            self.written[row] += len(new)
            end = self.written[row]
            self.known[row] = [
                answer
                for answer in self.known[row]
                if len(answer) > end and list(answer[start:end]) == new
            ]
            if new and (self._is_end(new[-1]) or end >= self.settings.max_new_tokens):
                self.is_done[stream] = True


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """One tensor (stream, g, ...) of g tensors (stream, 1, ...)."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), 1)
