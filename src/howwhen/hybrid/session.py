"""A batch of answers being written: drafts, verifies, steers and stops, a round at a time.

In a round tokens are drafted, the thinking model reads the whole draft in one pass, and the rung is
asked about every position at once. Every stream keeps its draft up to the first position at which
another token is written. There the base is steered, or the rung's own token taken, and the rest is
rolled back. A stream goes on past a steered position whose token is the drafted one.

A stream whose answer has ended is a slot that is free for another problem.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from howwhen.hybrid.choice import Rung
from howwhen.hybrid.context import AnswerSoFar
from howwhen.hybrid.deciding import ABOUT_RUNG, PER_MODEL, Decider, Reading
from howwhen.hybrid.drafting import Draft, Drafter, OpenAnswer
from howwhen.hybrid.ledger import Opinion, Round, log_probs_of
from howwhen.hybrid.notes import Notes, Watch
from howwhen.hybrid.sampling import uniform_numbers
from howwhen.hybrid.scoring import Scoring
from howwhen.hybrid.steering import Steered, SteeredPlaces, steer
from howwhen.hybrid.streams import Streams
from howwhen.lm.alignment import ModelPair
from howwhen.lm.models import LanguageModel
from howwhen.settings import HybridSettings

MAX_RUNNING_SHARE = 0.5
"""Share of the streams that may still be running when the others are dropped."""


@dataclass(frozen=True)
class _Plan:
    """A draft and what the rung does about it: per stream and position."""

    drafted: list[list[int]]
    token: list[list[int]]
    is_decision: list[list[bool]]
    category: list[list[int]]
    base: list[list[Opinion]]
    thinking: list[list[Opinion]] | None
    notes: Callable[[int, int], Notes]
    steered_places: float
    """How many positions of a stream may be steered before it stops. After one the base's own draft
    is seldom right, and under the `persistent` policy any draft was read with other states, so that
    it stops there. What was guessed may go on to the next one, and a known answer to its end."""


def _opinions(rows: list[list[list[float]]], own: int, rounding: float) -> list[list[Opinion]]:
    """One model's opinions, from where its token is, with its numbers behind it."""
    return [
        [Opinion.of(row[own], row[own + 1 : own + PER_MODEL], rounding) for row in stream]
        for stream in rows
    ]


@dataclass
class Session:
    """The streams of a batch, and all that decides how they go on. Made by an `Opener`."""

    models: ModelPair
    rung: Rung
    settings: HybridSettings
    seed: int
    answers: list[OpenAnswer]
    """What is written in every stream."""
    base: Streams
    thinking: Streams | None
    base_next: Int[Tensor, " stream"]
    """Token that the base reads next; at first the last one of its prompt, if it has not yet."""
    thinking_next: Int[Tensor, " stream"]
    scoring: Scoring
    drafter: Drafter
    watch: Watch = field(default_factory=Watch)
    """What else is noted of every token."""
    device: torch.device = field(init=False)
    """Where rungs decide, and tokens are passed between the models."""

    def __post_init__(self) -> None:
        self.device = self.base.device
        self.decider = Decider(
            self.rung,
            self.watch,
            torch.tensor(sorted(self.models.end_ids), device=self.device),
            self.models.alignment,
            self.device,
            self.settings.compile,
        )
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

    @property
    def running(self) -> list[int]:
        """Streams whose answer has not ended."""
        return [stream for stream, answer in enumerate(self.answers) if not answer.is_done]

    @torch.no_grad()
    def round(self, length: int | None = None) -> Round:
        """Write the next tokens of every running stream.

        Args:
            length: tokens that the base drafts; by default whatever is cheapest.
        """
        draft = self.drafter.draft(self.answers, self.base_next, length)
        verdict = self._verify(draft)
        plan = self._plan(draft, verdict)
        steered = self._steer(draft, verdict, plan)
        ids = [
            [] if answer.is_done else list(self._tokens(stream, plan, steered))
            for stream, answer in enumerate(self.answers)
        ]
        self.drafter.learn(draft, self.answers, ids, plan.is_decision, plan.drafted)
        numbers = [answer.number for answer in self.answers]
        self._note(draft.length, ids, plan)
        steering = self.rung.steering
        return Round(
            numbers,
            ids,
            plan.is_decision,
            steered,
            plan.base,
            plan.thinking,
            plan.notes,
            names_categories=steering is not None and steering.categories > 1,
        )

    def put(self, opened: "Session") -> None:
        """Go on with the answers of another session of the same kind, which has just been opened.

        They take the slots of answers that have ended, and further ones behind the others.
        """
        free = [stream for stream, answer in enumerate(self.answers) if answer.is_done]
        more = range(len(self.answers), len(self.answers) + len(opened.answers))
        rows = [*free, *more][: len(opened.answers)]
        for streams, new in zip(self._both(), opened._both(), strict=True):
            streams.put(new, rows)
        self.base_next = _placed(self.base_next, opened.base_next, rows)
        self.thinking_next = _placed(self.thinking_next, opened.thinking_next, rows)
        for row, answer in zip(rows, opened.answers, strict=True):
            self.answers[row : row + 1] = [answer]
        if self.drafter.draft_model is not None and opened.drafter.draft_model is not None:
            self.drafter.draft_model.put(opened.drafter.draft_model, rows)

    def compact(self) -> bool:
        """Drop finished streams if there are enough of them to be worth a copy of the caches."""
        running = self.running
        is_fixed = self.settings.compile is not None  # or graphs for other shapes would be made
        if running and (is_fixed or len(running) > MAX_RUNNING_SHARE * len(self.answers)):
            return False
        self.answers = [self.answers[stream] for stream in running]
        if not self.answers:
            return False
        for streams in self._both():
            streams.select(running)
        if self.drafter.draft_model is not None:
            self.drafter.draft_model.select(running)
        kept = torch.tensor(running, device=self.device)
        self.base_next, self.thinking_next = self.base_next[kept], self.thinking_next[kept]
        return True

    def _plan(self, draft: Draft, verdict: Reading | None) -> _Plan:
        """What the rung does, and what the models thought: all that the host reads at once."""
        decided = self.decider.decide(
            draft.token,
            self._reading(self.models.base, draft.logits, draft.scores, draft.residual),
            verdict,
            draw_uniforms=lambda: self._uniforms(draft.length),
            look_up_answers=self._so_far,
        )
        rows: list[list[list[float]]] = decided.numbers.tolist()
        other = ABOUT_RUNG + PER_MODEL
        noted = other if verdict is None else other + PER_MODEL
        return _Plan(
            drafted=[[int(row[0]) for row in stream] for stream in rows],
            token=[[int(row[1]) for row in stream] for stream in rows],
            is_decision=[[bool(row[2]) for row in stream] for stream in rows],
            category=[[int(row[3]) for row in stream] for stream in rows],
            base=_opinions(rows, ABOUT_RUNG, self.base_rounding),
            thinking=None if verdict is None else _opinions(rows, other, self.thinking_rounding),
            notes=lambda stream, place: self.watch.notes(
                rows[stream][place][noted:],
                has_bits=decided.has_bits,
                has_thinking=verdict is not None,
            ),
            steered_places=self._steered_places(draft),
        )

    def _steered_places(self, draft: Draft) -> float:
        if not draft.is_read or self.settings.cache_policy == "persistent":
            return 0.0
        return math.inf if draft.source == "known answers" else 1.0

    def _verify(self, draft: Draft) -> Reading | None:
        """Let the thinking model read the draft."""
        if self.thinking is None:
            return None
        read = torch.cat([self.thinking_next[:, None], draft.token[:, :-1].clamp(min=0)], dim=1)
        self.thinking.extend(self.scoring.readable(read, self.thinking))
        logits = self.thinking.logits
        scores = self.scoring.scores(self.models.thinking, logits, draft.noise)
        return self._reading(self.models.thinking, logits, scores, self.thinking.residual)

    def _reading(
        self, model: LanguageModel, logits: Tensor, scores: Tensor, residual: dict[int, Tensor]
    ) -> Reading:
        is_greedy = self.scoring.sampler.is_greedy
        unsampled = None if is_greedy else self.scoring.allowed(model, logits)
        return Reading(logits, scores, residual, unsampled)

    def _so_far(self) -> list[AnswerSoFar]:
        return [
            AnswerSoFar(answer.problem.id, answer.ids, answer.interventions)
            for answer in self.answers
        ]

    def _uniforms(self, length: int) -> Float[Tensor, "n 2"]:
        """Numbers of every position of a draft; drawn for whole answers when first needed."""
        parts = []
        for answer in self.answers:
            if answer.uniforms is None:
                count, name = self.settings.max_new_tokens, self.rung.name
                answer.uniforms = uniform_numbers(name, self.seed, answer.problem.id, count)
            positions = (answer.written + torch.arange(length)).clamp(max=len(answer.uniforms) - 1)
            parts.append(answer.uniforms[positions])
        return torch.cat(parts).to(self.device)

    def _steer(
        self, draft: Draft, verdict: Reading | None, plan: _Plan
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
            answered=[self.answers[stream].written + n for stream, n in places],
            draws=self._draws(draft, places) if steering.strength.picked_by == "random" else [],
        )

        def pick(logits: Tensor, cut: slice) -> Tensor:
            noises = [(draft.noise[n], stream) for stream, n in places[cut]]
            numbers = [noise[stream] for noise, stream in noises if noise is not None]
            shared = torch.stack(numbers) if numbers else None
            scores = self.scoring.scores(self.models.base, logits, [shared] * logits.shape[1])
            return scores.argmax(2)

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

    def _draws(self, draft: Draft, places: Sequence[tuple[int, int]]) -> list[float]:
        """A number between 0 and 1 for each place, that depends on seed, problem and position."""
        numbers = self._uniforms(draft.length)[:, 0].tolist()
        return [numbers[stream * draft.length + n] for stream, n in places]

    def _log_probs(
        self,
        draft: Draft,
        verdict: Reading | None,
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
        for stream in self.running:
            for offset in self._reachable(stream, plan):
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
        return min(length, self.settings.max_new_tokens - self.answers[stream].written)

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

    def _note(self, length: int, ids: list[list[int]], plan: _Plan) -> None:
        """Take in what was written; both models forget what was drafted and not written."""
        for answer, new, decided in zip(self.answers, ids, plan.is_decision, strict=True):
            if not answer.is_done:
                is_full = answer.written + len(new) >= self.settings.max_new_tokens
                is_done = is_full or self._is_end(new[-1])
                answer.note(new, sum(decided[: len(new)]), is_done=is_done)
        ended = [stream for stream, answer in enumerate(self.answers) if answer.is_done]
        for streams in self._both():
            streams.rollback([length - len(new) for new in ids])
            streams.shorten(ended)
        last = [new[-1] if new else 0 for new in ids]
        self.base_next = self.thinking_next = torch.tensor(last, device=self.device)


def _placed(old: Tensor, new: Tensor, rows: Sequence[int]) -> Tensor:
    """One number of every stream, with new ones in place of some or behind the others."""
    placed = torch.cat([old, old.new_zeros(max(0, max(rows) + 1 - len(old)))])
    placed[torch.tensor(rows, device=old.device)] = new
    return placed
