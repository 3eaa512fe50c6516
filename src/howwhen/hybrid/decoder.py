"""The hybrid decoder: both models over shared token ids, every token explained.

State, round, loop. In a round the base drafts a block of tokens, the thinking model reads the whole
block in one pass, and the rung is asked about every position at once. Every stream keeps its draft
up to the first position at which the rung intervenes; there the base is steered (or the rung's own
token taken) and the rest is taken back. A block of one token is stepwise decoding; any other length
gives the same tokens, up to ties in the last bits of a sum.

Under the `transient` policy the base's cache keeps the unsteered states of a steered position,
under `persistent` the steered.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from howwhen.hybrid.block_size import BlockSizer
from howwhen.hybrid.choice import Action, DecisionContext, Rung
from howwhen.hybrid.sampling import Sampler, gumbel_noise, uniform_numbers
from howwhen.hybrid.steering import UNSTEERED, SteeringResult, check_vectors, steer_last
from howwhen.hybrid.streams import Streams, open_streams
from howwhen.lm.alignment import ModelPair
from howwhen.lm.generate import check_lengths
from howwhen.lm.models import LanguageModel
from howwhen.records import Finish, HybridToken, HybridTrace, Problem
from howwhen.settings import HybridSettings

MIN_LOG_PROB = -100.0
"""Stands for the log-probability of a token that a model cannot write."""
MAX_BUFFERED_LOGITS = 2**23
"""Logits held back, at most, before tokens are written down."""


def decode(
    models: ModelPair,
    problems: Sequence[Problem],
    rung: Rung,
    settings: HybridSettings,
    seed: int = 0,
) -> list[HybridTrace]:
    """Answer one batch of problems on one rung.

    Args:
        models: the pair.
        problems: answered side by side; no answer depends on the others.
        rung: the rung.
        settings: lengths, cache policy, sampling.
        seed: of random rungs.

    Raises:
        SteeringError: vectors that do not fit the base model or the gate.
        InputError: an empty prompt, or one too long for a model's context.
    """
    state = _new_state(models, problems, rung, settings, seed)
    with state.capturing():
        while state.rows:
            state.round()
            state.flush()
            state.compact()
        state.flush(is_due=True)
    return [state.trace(row, problem) for row, problem in enumerate(problems)]


def stream(
    models: ModelPair,
    problem: Problem,
    rung: Rung,
    settings: HybridSettings,
    seed: int = 0,
) -> Iterator[HybridToken]:
    """Answer one problem, yielding tokens as they are decided; errors are those of `decode`."""
    batch = LiveBatch(models, [problem], rung, settings, seed)
    while not batch.is_done:
        yield from batch.advance()[0]


class LiveBatch:
    """A batch of answers written a round at a time, beside other batches of the same models.

    The first block is a single token, so that whoever reads along sees it soon.

    Raises:
        SteeringError, InputError: as `decode`.
    """

    def __init__(
        self,
        models: ModelPair,
        problems: Sequence[Problem],
        rung: Rung,
        settings: HybridSettings,
        seed: int = 0,
    ) -> None:
        self._state = _new_state(models, problems, rung, settings, seed)
        self._told = [0] * len(problems)

    @property
    def is_done(self) -> bool:
        """Whether every answer has ended or was cancelled."""
        return not self._state.rows

    def advance(self) -> list[list[HybridToken]]:
        """Go on by a block, and return each answer's new tokens."""
        state = self._state
        with state.capturing():
            state.round(None if any(self._told) else 1)
        state.flush(is_due=True)
        fresh = [own[told:] for own, told in zip(state.tokens, self._told, strict=True)]
        self._told = [len(own) for own in state.tokens]
        state.compact()
        return fresh

    def cancel(self, row: int) -> None:
        """Write no more of one answer."""
        if row in self._state.rows:
            self._state.is_done[self._state.rows.index(row)] = True
            self._state.compact()


@dataclass
class _Draft:
    """What the base wrote ahead, and both models' opinions of it; g positions per stream."""

    token: Int[Tensor, "stream g"]
    logits: Float[Tensor, "stream g vocabulary"]
    scores: Float[Tensor, "stream g shared"]
    residual: dict[int, Float[Tensor, "stream g d_model"]]
    low_confidence: list[list[bool]]
    """Where the base gives its own token less than an even chance: per stream and position."""
    noise: list[Float[Tensor, "stream vocabulary"] | None]
    thinking_logits: Float[Tensor, "stream g vocabulary"] | None = None
    thinking_scores: Float[Tensor, "stream g shared"] | None = None
    thinking_residual: Float[Tensor, "stream g d_model"] | None = None


@dataclass(frozen=True)
class _Round:
    """What a round decided, before it is written down as tokens."""

    draft: _Draft
    rows: list[int]
    """Which problem each stream answers."""
    ids: list[list[int]]
    """Tokens each stream emitted; none where it had ended."""
    is_decision: list[list[bool]]
    steered: SteeringResult | None

    def written(
        self, stream_: int, rest: Iterator[tuple[int, int, int, float, float]]
    ) -> list[HybridToken]:
        """One stream's tokens; `rest` yields ids, both wishes and both log-probabilities."""
        count, tokens = len(self.ids[stream_]), []
        for offset in range(count):
            is_steered = self.steered is not None and offset == count - 1
            how = self.steered.info(stream_) if self.steered and is_steered else UNSTEERED
            one, base_id, wanted, ours, theirs = next(rest)
            tokens.append(
                HybridToken(
                    id=one,
                    base_id=base_id,
                    thinking_id=wanted,
                    category=how.category,
                    strength=how.strength,
                    window=how.window,
                    is_decision=self.is_decision[stream_][offset],
                    base_log_prob=ours,
                    thinking_log_prob=theirs,
                    candidates=how.candidates,
                )
            )
        return tokens


@dataclass
class _State:
    """A batch of streams on the way."""

    models: ModelPair
    rung: Rung
    settings: HybridSettings
    seed: int
    problems: list[str]
    base: Streams
    thinking: Streams | None
    base_next: Int[Tensor, " stream"]
    """Token that the base reads next; at first the last one of its prompt."""
    thinking_next: Int[Tensor, " stream"]
    rows: list[int]
    """Which problem of the batch each stream answers."""
    uniforms: Float[Tensor, "problem position 2"] | None
    ends: Int[Tensor, " end"]
    sampler: Sampler
    block_sizer: BlockSizer
    is_done: list[bool]
    """Whether each stream has ended."""
    emitted: list[int]
    """How many tokens each problem of the batch has been answered with."""
    tokens: list[list[HybridToken]]
    """The tokens written down so far."""
    pending: list[_Round] = field(default_factory=list)
    buffered_logits: int = 0
    """Logits that the unwritten rounds hold."""

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Let both models keep what is read in them, with one set of hooks all along."""
        with ExitStack() as opened:
            for streams in (self.base, self.thinking):
                if streams is not None:
                    opened.enter_context(streams.capturing())
            yield

    @torch.no_grad()
    def round(self, length: int | None = None) -> None:
        """Draft a block of this or the best length, let the rung look, keep what stands."""
        draft = self._draft(min(length or self.block_sizer.length(), self._tokens_left()))
        self._verify(draft)
        length = draft.token.shape[1]
        action = self.rung.act(self._context(draft))
        drafted, decided = draft.token.tolist(), action.is_decision.view(-1, length).tolist()
        last = self._first_stops(drafted, decided, action.token.view(-1, length).tolist())
        counts = [
            length if done else length - 1 - n for n, done in zip(last, self.is_done, strict=True)
        ]
        for streams in (self.base, self.thinking):
            if streams is not None and any(counts):
                streams.rollback(torch.tensor(counts))
        at_last = torch.tensor([row * length + n for row, n in enumerate(last)])
        steered = self._steer(draft, action, at_last)
        token = steered.token if steered else action.token[at_last]
        ids = [
            [] if done else [*own[:n], one]
            for own, n, one, done in zip(drafted, last, token.tolist(), self.is_done, strict=True)
        ]
        self.block_sizer.learn(draft.low_confidence, decided, [len(own) for own in ids])
        self.pending.append(_Round(draft, self.rows, ids, decided, steered))
        self.buffered_logits += draft.logits.numel()
        self.base_next = self.thinking_next = token
        self._count(ids)

    def _tokens_left(self) -> int:
        """Most tokens that any stream may still write."""
        running = (row for row, done in zip(self.rows, self.is_done, strict=True) if not done)
        return self.settings.max_new_tokens - min(self.emitted[row] for row in running)

    def _count(self, ids: list[list[int]]) -> None:
        """Note how long each answer is, and which have ended."""
        ends, limit = self.models.end_ids, self.settings.max_new_tokens
        for stream_, (row, own) in enumerate(zip(self.rows, ids, strict=True)):
            self.emitted[row] += len(own)
            if own and (own[-1] in ends or self.emitted[row] >= limit):
                self.is_done[stream_] = True

    def compact(self) -> None:
        """Leave finished streams behind once they are half of the batch."""
        running = [stream_ for stream_, done in enumerate(self.is_done) if not done]
        if 2 * len(running) > len(self.rows):
            return
        self.rows = [self.rows[stream_] for stream_ in running]
        if not self.rows:
            return
        kept = torch.tensor(running)
        self.base.select(kept)
        if self.thinking is not None:
            self.thinking.select(kept)
        self.base_next, self.thinking_next = self.base_next[kept], self.thinking_next[kept]
        self.is_done = [False] * len(running)

    def trace(self, row: int, problem: Problem) -> HybridTrace:
        """The record of one stream."""
        tokens = tuple(self.tokens[row])
        ids = [token.id for token in tokens]
        is_ended = ids[-1] in self.models.end_ids
        writer = self.models.thinking if self.rung.allows_banned_tokens else self.models.base
        text = writer.tokenizer.decode(ids[:-1] if is_ended else ids)
        finish = Finish.STOP if is_ended else Finish.LENGTH
        return HybridTrace(problem.id, self.rung.name, self.seed, str(text), finish, tokens)

    def _draft(self, length: int) -> _Draft:
        token, logits, scores, low_confidence, noise = [self.base_next], [], [], [], []
        residual: dict[int, list[Tensor]] = {layer: [] for layer in self.base.layers}
        for offset in range(length):
            self.base.extend(self._readable(token[-1], self.base)[:, None])
            logits.append(self.base.logits[:, -1])
            noise.append(self._noise(offset))
            scores.append(self._scores(logits[-1], noise[-1]))
            token.append(scores[-1].argmax(1))
            for layer, parts in residual.items():
                parts.append(self.base.residual[layer][:, -1])
            low_confidence.append(self._low_confidence(logits[-1], token[-1]))
            if self.block_sizer.ends_at_low_confidence and self._most_are(low_confidence[-1]):
                break
        return _Draft(
            _stacked(token[1:]),
            _stacked(logits),
            _stacked(scores),
            {layer: _stacked(parts) for layer, parts in residual.items()},
            [list(own) for own in zip(*low_confidence, strict=True)],
            noise,
        )

    def _low_confidence(self, logits: Tensor, token: Tensor) -> list[bool]:
        if not self.block_sizer.is_adaptive:
            return [False] * len(self.rows)
        own = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(1)
        low_confidence: list[bool] = (own < self.block_sizer.confident_above).tolist()
        return low_confidence

    def _most_are(self, low_confidence: list[bool]) -> bool:
        """Whether at least half of the running streams are unsure."""
        running = [own for own, done in zip(low_confidence, self.is_done, strict=True) if not done]
        return 2 * sum(running) >= len(running)

    def _verify(self, draft: _Draft) -> None:
        """Let the thinking model read the drafted block."""
        if self.thinking is None:
            return
        read = torch.cat([self.thinking_next[:, None], draft.token[:, :-1]], dim=1)
        self.thinking.extend(self._readable(read, self.thinking))
        draft.thinking_logits = self.thinking.logits
        draft.thinking_scores = _stacked(
            [
                self._scores(draft.thinking_logits[:, offset], noise)
                for offset, noise in enumerate(draft.noise)
            ]
        )
        if self.rung.gate is not None:
            draft.thinking_residual = self.thinking.residual[self.rung.gate.layer]

    def _readable(self, tokens: Tensor, streams: Streams) -> Tensor:
        """Tokens as a model can read them: an id without an embedding is read as an end token.

        Only the thinking model's own rung writes such ids, and there the base's opinion counts for
        nothing.
        """
        if not self.rung.allows_banned_tokens:
            return tokens
        rows = streams.model.model.get_input_embeddings().weight.shape[0]
        return torch.where(tokens < rows, tokens, min(streams.model.end_ids, default=0))

    def _scores(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        if not self.rung.allows_banned_tokens:
            logits = self.models.alignment.allowed(logits)
        if noise is None:
            return logits
        return self.sampler.scores(logits, noise[:, : logits.shape[1]])

    def _noise(self, offset: int) -> Tensor | None:
        if self.sampler.is_greedy:
            return None
        names = [self.problems[row] for row in self.rows]
        positions = [self.emitted[row] + offset for row in self.rows]
        size = max(
            model.model.get_output_embeddings().weight.shape[0]
            for model in (self.models.base, self.models.thinking)
        )
        return gumbel_noise(self.settings.seed, names, positions, size)

    def _context(self, draft: _Draft) -> DecisionContext:
        def flat(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.flatten(0, 1)

        return DecisionContext(
            base_scores=draft.scores.flatten(0, 1),
            thinking_scores=flat(draft.thinking_scores),
            base_residual={key: value.flatten(0, 1) for key, value in draft.residual.items()},
            thinking_residual=flat(draft.thinking_residual),
            uniforms=self._uniforms(draft.token.shape[1]),
            ends=self.ends,
        )

    def _uniforms(self, length: int) -> Tensor | None:
        if self.uniforms is None:
            return None
        starts = torch.tensor([self.emitted[row] for row in self.rows])
        positions = (starts[:, None] + torch.arange(length)).clamp(max=self.uniforms.shape[1] - 1)
        return self.uniforms[torch.tensor(self.rows)[:, None], positions].flatten(0, 1)

    def _first_stops(
        self, drafted: list[list[int]], decided: list[list[bool]], moved: list[list[int]]
    ) -> list[int]:
        """The position of each stream's block at which it stops: it intervenes, ends or is full."""
        ends, limit = self.models.end_ids, self.settings.max_new_tokens
        stops = []
        for row, tokens, flags, moves in zip(self.rows, drafted, decided, moved, strict=True):
            last = min(len(tokens), limit - self.emitted[row]) - 1
            found = (
                n
                for n, (own, is_decision, token) in enumerate(
                    zip(tokens, flags, moves, strict=True)
                )
                if is_decision or token != own or own in ends or n >= last
            )
            stops.append(next(found))
        return stops

    def _steer(self, draft: _Draft, action: Action, at_last: Tensor) -> SteeringResult | None:
        if self.rung.vectors is None:
            return None
        every = action.category[at_last].tolist()
        streams = [n for n, one in enumerate(every) if one >= 0 and not self.is_done[n]]
        if not streams:
            return None
        rows = torch.tensor(streams)
        last = (at_last[rows] % draft.token.shape[1]).tolist()

        def pick(logits: Tensor, index: int) -> Tensor:
            own = draft.noise[last[index]]
            shared = None if own is None else own[streams[index]].expand(len(logits), -1)
            return self._scores(logits, shared).argmax(1)

        thinking = None
        if draft.thinking_logits is not None and self.rung.strength.is_sweep:
            thinking = draft.thinking_logits.flatten(0, 1)[at_last[rows]].log_softmax(1)
        before = [self.emitted[self.rows[stream_]] for stream_ in streams]
        return steer_last(
            self.base,
            self.rung.vectors,
            self.rung.strength,
            rows=rows,
            category=torch.tensor([every[stream_] for stream_ in streams]),
            answered=torch.tensor(before) + torch.tensor(last),
            unsteered=action.token[at_last],
            thinking=thinking,
            pick_tokens=pick,
            is_persistent=self.settings.cache_policy == "persistent",
        )

    def flush(self, is_due: bool = False) -> None:
        """Turn finished rounds into tokens, many at a time: small tensor operations cost most."""
        if not self.pending or (self.buffered_logits < MAX_BUFFERED_LOGITS and not is_due):
            return
        ids = [token for one in self.pending for own in one.ids for token in own]
        drafts = [one.draft for one in self.pending]
        own = self._kept([draft.token for draft in drafts]).tolist()
        ours = self._log_probs([draft.logits for draft in drafts], ids)
        wanted, theirs = [-1] * len(ids), [0.0] * len(ids)
        if self.thinking is not None:
            scores = [one.thinking_scores for one in drafts if one.thinking_scores is not None]
            logits = [one.thinking_logits for one in drafts if one.thinking_logits is not None]
            wanted = self._kept([one.argmax(2) for one in scores]).tolist()
            theirs = self._log_probs(logits, ids)
        rest = zip(ids, own, wanted, ours, theirs, strict=True)
        for one in self.pending:
            for stream_, row in enumerate(one.rows):
                self.tokens[row] += one.written(stream_, rest)
        self.pending, self.buffered_logits = [], 0

    def _kept(self, tensors: list[Tensor]) -> Tensor:
        """Of (stream, g, ...) tensors, one per round, the rows of emitted tokens, in order."""
        return torch.cat(
            [
                tensor[stream_, : len(own)]
                for tensor, one in zip(tensors, self.pending, strict=True)
                for stream_, own in enumerate(one.ids)
                if own
            ]
        )

    def _log_probs(self, logits: list[Tensor], ids: list[int]) -> list[float]:
        """Log-probability of each emitted token under a model's own distribution, in nats."""
        rows, tokens = self._kept(logits), torch.tensor(ids)
        inside = tokens < rows.shape[1]
        own = rows.gather(1, tokens.clamp(max=rows.shape[1] - 1)[:, None])[:, 0]
        found = (own - rows.logsumexp(1)).clamp(min=MIN_LOG_PROB)
        return [round(one, 4) for one in torch.where(inside, found, MIN_LOG_PROB).tolist()]


def _stacked(parts: list[Tensor]) -> Tensor:
    """One tensor (stream, g, ...) of g tensors (stream, ...)."""
    return parts[0][:, None] if len(parts) == 1 else torch.stack(parts, 1)


def asked_models(models: ModelPair, rung: Rung) -> list[LanguageModel]:
    """The models that run on a rung, as they are asked there: the base first."""
    base = models.base
    if rung.base_prompt is not None:
        base = replace(base, prompt=rung.base_prompt)
    return [base, models.thinking] if rung.needs_thinking else [base]


def _new_state(
    models: ModelPair,
    problems: Sequence[Problem],
    rung: Rung,
    settings: HybridSettings,
    seed: int,
) -> _State:
    """Both models with the prompts read."""
    check_vectors(models.base, rung)
    questions = [problem.question for problem in problems]
    every = asked_models(models, rung)
    base_prompts, *other_prompts = (_prompts(model, questions, settings) for model in every)
    gate_layer = () if rung.gate is None else (rung.gate.layer,)
    steer_layer = None if rung.vectors is None else rung.vectors.layer
    thinking_prompts = next(iter(other_prompts), base_prompts)
    uniforms = [
        uniform_numbers(rung.name, seed, one.id, settings.max_new_tokens) for one in problems
    ]
    can_draft = rung.needs_thinking and not rung.allows_banned_tokens
    return _State(
        models=models,
        rung=rung,
        settings=settings,
        seed=seed,
        problems=[problem.id for problem in problems],
        base=open_streams(models.base, base_prompts, rung.base_layers, steer_layer),
        thinking=(
            open_streams(models.thinking, thinking_prompts, gate_layer)
            if rung.needs_thinking
            else None
        ),
        base_next=torch.tensor([prompt[-1] for prompt in base_prompts]),
        thinking_next=torch.tensor([prompt[-1] for prompt in thinking_prompts]),
        rows=list(range(len(problems))),
        uniforms=torch.stack(uniforms) if rung.needs_uniforms else None,
        ends=torch.tensor(sorted(models.end_ids)),
        sampler=Sampler(settings.temperature, settings.top_p),
        block_sizer=BlockSizer(settings.block_tokens if can_draft else 1),
        is_done=[False] * len(problems),
        emitted=[0] * len(problems),
        tokens=[[] for _ in problems],
    )


def _prompts(
    model: LanguageModel, questions: Sequence[str], settings: HybridSettings
) -> list[list[int]]:
    prompts = [model.prompt_ids(question) for question in questions]
    check_lengths(model, prompts, settings.max_new_tokens)
    return prompts
