"""The hybrid decoder: both models in step over shared token ids, every token explained.

State, step, loop: `_State` holds the caches and what was emitted, `_step` moves every stream by
one token, `decode` is the loop. Greedy, batched over problems. Where one model has more output
rows than the other (padding, tokens of its own), only the shared ids can be emitted. Under the
`transient` policy the base's cache keeps the unsteered states of a steered position, under
`persistent` the steered.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from howwhen.collect.rollouts import check_lengths
from howwhen.errors import SteeringError
from howwhen.hybrid.choice import Choice, Move, View
from howwhen.models import LanguageModel, Padded, pad
from howwhen.records import Finish, HybridToken, HybridTrace, Problem, Taxonomy, VectorSet
from howwhen.residual import adding, check_layer, reading
from howwhen.settings import HybridSettings


@dataclass(frozen=True)
class HybridModels:
    """The two models of a hybrid and the taxonomy that reads the thinking one."""

    base: LanguageModel
    thinking: LanguageModel
    taxonomy: Taxonomy

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens of either model that end an answer."""
        return self.base.end_ids | self.thinking.end_ids


@torch.no_grad()
def decode(
    models: HybridModels,
    problems: Sequence[Problem],
    choice: Choice,
    settings: HybridSettings,
    seed: int = 0,
) -> list[HybridTrace]:
    """Answer one batch of problems on one rung.

    Raises:
        SteeringError: vectors that do not fit the base model or the taxonomy.
        InputError: an empty prompt, or one too long for a model's context.
    """
    check_vectors(models, choice)
    state = _start(models, problems, choice, settings, seed)
    for _ in range(settings.max_new_tokens):
        _step(state)
        if state.is_done.all():
            break
        state.drop_finished()
        state.feed()
    return [state.trace(row, problem, seed) for row, problem in enumerate(problems)]


def check_vectors(models: HybridModels, choice: Choice) -> None:
    """Refuse vectors that would silently steer nothing, or the wrong thing.

    Raises:
        SteeringError: wrong width, layer, number of categories, or values that are not finite.
    """
    vectors = choice.vectors
    if vectors is None:
        return
    check_layer(models.base.model, vectors.layer)
    count, width = vectors.vectors.shape
    expected = models.base.model.config.hidden_size
    if width != expected:
        raise SteeringError(
            f"vectors of width {width} cannot steer {models.base.name}, whose residual has width "
            f"{expected}; train vectors in this base (howwhen elicit)"
        )
    if not all(torch.isfinite(t).all() for t in (vectors.vectors, vectors.hidden, vectors.heads)):
        raise SteeringError("a steering vector holds a value that is not finite; train it again")
    if choice.name != "shared-vector" and count != models.taxonomy.size:
        raise SteeringError(
            f"{count} vectors for a taxonomy of {models.taxonomy.size} categories; every category "
            "needs its vector (howwhen elicit makes one for each)"
        )


@dataclass
class _Reader:
    """One model advancing over its own prompt and the shared answer."""

    model: LanguageModel
    mask: Tensor
    """1 on every token read so far, 0 on left padding: (stream, position)."""
    layers: tuple[int, ...]
    """Blocks whose residual at the last position is kept."""
    cache: DynamicCache = field(default_factory=DynamicCache)
    logits: Tensor = field(init=False)
    """Of the next token: (stream, vocabulary)."""
    residual: dict[int, Tensor] = field(init=False)
    """Of the last position, per layer: (stream, d_model)."""

    @classmethod
    def start(
        cls, model: LanguageModel, problems: Sequence[Problem], layers: tuple[int, ...]
    ) -> "_Reader":
        prompts = [model.prompt_ids(problem.question) for problem in problems]
        batch = pad(prompts, left=True).to(model.model.device)
        reader = cls(model, batch.mask, layers)
        reader._forward(batch)
        return reader

    def feed(self, tokens: Int[Tensor, " stream"]) -> None:
        """Read one more token of every stream."""
        one = torch.ones_like(self.mask[:, :1])
        self.mask = torch.cat([self.mask, one], dim=1)
        self._forward(Padded(tokens[:, None].to(self.mask.device), self.mask))

    def _forward(self, batch: Padded) -> None:
        with reading(self.model.model, self.layers) as seen:
            output = self.model.model(
                **batch.inputs(),
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self.logits = output.logits[:, -1].float()
        self.residual = {layer: seen[layer][:, -1].float() for layer in self.layers}

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Go on with these streams only."""
        self.cache.batch_select_indices(rows)
        self.mask = self.mask[rows]

    def steered(
        self,
        last: Int[Tensor, " stream"],
        vectors: VectorSet,
        category: Int[Tensor, " stream"],
        is_transient: bool,
    ) -> Float[Tensor, "stream vocabulary"]:
        """Logits of the last position once more, with its residual steered where category >= 0."""
        unsteered = [
            (layer.keys[:, :, -1:].clone(), layer.values[:, :, -1:].clone())
            for layer in self.cache.layers
        ]
        self.cache.crop(-1)
        where = category >= 0

        def edit(residual: Tensor) -> Tensor:
            added = torch.zeros_like(residual, dtype=torch.float32)
            added[where, -1] = vectors.delta(residual[where, -1].float(), category[where])
            return added

        with adding(self.model.model, vectors.layer, edit):
            output = self.model.model(
                **Padded(last[:, None], self.mask).inputs(),
                past_key_values=self.cache,
                use_cache=True,
            )
        if is_transient:
            for layer, (keys, values) in zip(self.cache.layers, unsteered, strict=True):
                layer.keys[:, :, -1:] = keys
                layer.values[:, :, -1:] = values
        logits: Tensor = output.logits[:, -1].float()
        return logits


@dataclass
class _State:
    """A batch of streams on the way."""

    models: HybridModels
    choice: Choice
    settings: HybridSettings
    base: _Reader
    thinking: _Reader | None
    last: Int[Tensor, " stream"]
    """Last token of every stream."""
    rows: list[int]
    """Which problem of the batch each stream answers."""
    draws: list[Random]
    ends: Int[Tensor, " end"]
    """Tokens that end an answer."""
    is_done: Bool[Tensor, " stream"]
    tokens: list[list[HybridToken]]
    """What each problem of the batch has been answered so far."""

    def feed(self) -> None:
        """Let every reader take in the last token."""
        self.base.feed(self.last)
        if self.thinking is not None:
            self.thinking.feed(self.last)

    def drop_finished(self) -> None:
        """Leave finished streams behind once they are half of the batch."""
        running = (~self.is_done).nonzero()[:, 0]
        if 2 * len(running) > len(self.rows):
            return
        self.base.keep(running)
        if self.thinking is not None:
            self.thinking.keep(running)
        self.rows = [self.rows[index] for index in running.tolist()]
        self.draws = [self.draws[index] for index in running.tolist()]
        self.last, self.is_done = self.last[running], self.is_done[running]

    def view(self) -> View:
        """What the choice sees at this position."""
        draws = torch.tensor([[rng.random(), rng.random()] for rng in self.draws])
        base, thinking = self.base.logits, self.thinking.logits if self.thinking else None
        if thinking is not None:
            shared = min(base.shape[1], thinking.shape[1])
            base, thinking = base[:, :shared], thinking[:, :shared]
        return View(
            base_logits=base,
            thinking_logits=thinking,
            thinking_residual=(
                self.thinking.residual[self.models.taxonomy.layer] if self.thinking else None
            ),
            draws=draws,
            ends=self.ends,
        )

    def trace(self, row: int, problem: Problem, seed: int) -> HybridTrace:
        """The record of one stream."""
        tokens = tuple(self.tokens[row])
        ids = [token.id for token in tokens]
        is_ended = ids[-1] in self.models.end_ids
        text = self.models.base.tokenizer.decode(ids[:-1] if is_ended else ids)
        finish = Finish.STOP if is_ended else Finish.LENGTH
        return HybridTrace(problem.id, self.choice.name, seed, str(text), finish, tokens)


def _start(
    models: HybridModels,
    problems: Sequence[Problem],
    choice: Choice,
    settings: HybridSettings,
    seed: int,
) -> _State:
    running = [models.base, models.thinking] if choice.needs_thinking else [models.base]
    for model in running:
        prompts = [model.prompt_ids(problem.question) for problem in problems]
        check_lengths(model, prompts, settings.max_new_tokens)
    base = _Reader.start(
        models.base, problems, (choice.vectors.layer,) if choice.vectors is not None else ()
    )
    thinking = (
        _Reader.start(models.thinking, problems, (models.taxonomy.layer,))
        if choice.needs_thinking
        else None
    )
    last = torch.tensor([models.base.prompt_ids(problem.question)[-1] for problem in problems])
    return _State(
        models,
        choice,
        settings,
        base,
        thinking,
        last,
        rows=list(range(len(problems))),
        draws=[Random(f"{choice.name}-{seed}-{problem.id}") for problem in problems],
        ends=torch.tensor(sorted(models.end_ids)),
        is_done=torch.zeros(len(problems), dtype=torch.bool),
        tokens=[[] for _ in problems],
    )


def _step(state: _State) -> None:
    """Emit one token on every stream that still runs."""
    view = state.view()
    move = state.choice.move(view)
    is_running = ~state.is_done
    move = replace(
        move,
        is_decision=move.is_decision & is_running,
        category=move.category.masked_fill(~is_running, -1),
    )
    token = _steer(state, view, move)
    _record(state, view, move, token)
    state.last = token
    state.is_done = state.is_done | torch.isin(token, state.ends)


def _steer(state: _State, view: View, move: Move) -> Int[Tensor, " stream"]:
    where = move.category >= 0
    vectors = state.choice.vectors
    if vectors is None or not where.any():
        return move.token
    is_transient = state.settings.cache_policy == "transient"
    logits = state.base.steered(state.last, vectors, move.category, is_transient)
    return torch.where(where, logits[:, : view.base_logits.shape[1]].argmax(1), move.token)


def _record(state: _State, view: View, move: Move, token: Int[Tensor, " stream"]) -> None:
    base_log_probs = functional.log_softmax(view.base_logits, 1).gather(1, token[:, None])[:, 0]
    if view.thinking_logits is None:
        thinking_ids = torch.full_like(token, -1)
        thinking_log_probs = torch.zeros_like(base_log_probs)
    else:
        thinking_ids = view.thinking_token
        log_probs = functional.log_softmax(view.thinking_logits, 1)
        thinking_log_probs = log_probs.gather(1, token[:, None])[:, 0]
    columns = (
        token.tolist(),
        view.base_token.tolist(),
        thinking_ids.tolist(),
        move.category.tolist(),
        _strengths(state, move),
        move.is_decision.tolist(),
        [round(value, 4) for value in base_log_probs.tolist()],
        [round(value, 4) for value in thinking_log_probs.tolist()],
    )
    rows = zip(*columns, strict=True)
    for stream, is_done, row in zip(state.rows, state.is_done.tolist(), rows, strict=True):
        if not is_done:
            state.tokens[stream].append(HybridToken(*row))


def _strengths(state: _State, move: Move) -> list[float]:
    where, vectors = move.category >= 0, state.choice.vectors
    strengths = torch.zeros(len(where))
    if vectors is not None and where.any():
        residual = state.base.residual[vectors.layer]
        strengths[where] = vectors.strength(residual[where], move.category[where])
    return [round(value, 4) for value in strengths.tolist()]
