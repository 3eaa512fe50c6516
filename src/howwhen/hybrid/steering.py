"""Steering the base at some positions: candidates in one pass, the best of them taken."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from howwhen.errors import ModelError, SteeringError
from howwhen.hybrid.choice import Rung, Steering
from howwhen.hybrid.places import Branch, Places
from howwhen.hybrid.streams import Streams
from howwhen.hybrid.strength import Strength, Window, reach
from howwhen.lm.models import LanguageModel
from howwhen.lm.residual import add_to_residual, check_layer
from howwhen.records import Candidate
from howwhen.vectors import VectorSet, all_finite

MIN_PLACES = 32
"""Places that may be steered in one pass, however few streams there are."""
TokenPicker = Callable[[Tensor, slice], Tensor]
"""Token of every candidate of some places, (place, candidate), from their logits (place, candidate,
vocabulary), and which places these are."""
LogProbs = Callable[[Tensor, slice], Tensor]
"""Log-probabilities of tokens (place, candidate) under the base, unsteered, and under the thinking
model, (2, place, candidate)."""


class Steered(NamedTuple):
    """How one token was steered."""

    token: int
    category: int
    coefficient: float
    window: int
    candidates: tuple[Candidate, ...]
    base_log_prob: float
    """Of the token, unsteered."""
    thinking_log_prob: float
    """Minus infinity where the thinking model does not know it; nan where that was not run."""


@dataclass(frozen=True)
class SteeredPlaces:
    """Positions to be steered, and all that depends on them."""

    streams: list[int]
    """The stream of each."""
    columns: list[int]
    """Its position in the stream."""
    categories: list[int]
    answered: list[int]
    """Tokens of the answer that come before it."""
    draws: list[float]
    """A number between 0 and 1 for each, where candidates are picked at random; else none."""

    def __len__(self) -> int:
        return len(self.streams)

    def cut(self, rows: slice) -> "SteeredPlaces":
        """Some of them."""
        return SteeredPlaces(
            self.streams[rows],
            self.columns[rows],
            self.categories[rows],
            self.answered[rows],
            self.draws[rows],
        )

    def reaching(self, window: Window, device: torch.device) -> Places:
        """The same with the positions before them that a window holds."""
        pairs = zip(self.answered, self.columns, strict=True)
        reached = [reach(window, answered, column) for answered, column in pairs]
        return Places(self.streams, self.columns, reached, device)


def check_vectors(base: LanguageModel, rung: Rung) -> None:
    """Refuse vectors that would silently steer nothing, or the wrong thing.

    Raises:
        SteeringError: wrong width, model, number of categories, or values that are not finite.
        ModelError: a layer that the base does not have.
    """
    steering = rung.steering
    if steering is None:
        return
    vectors, strength = steering.vectors, steering.strength
    check_layer(base.model, vectors.layer)
    _check_width(vectors, base.name, base.model.config.hidden_size)
    if vectors.model != base.name:
        raise SteeringError(
            f"these vectors were trained in {vectors.model!r} and would steer {base.name!r}; train "
            "them in this base (howwhen elicit), or rename them with dataclasses.replace if the "
            "two are one model under two names"
        )
    if not all_finite(vectors.tensors().values()):
        raise SteeringError("a steering vector holds a value that is not finite; train it again")
    if strength.is_sweep and not rung.needs_thinking:
        raise SteeringError(
            f"the rung {rung.name} runs no thinking model, which would have to choose among the "
            f"{len(strength.candidates)} candidates of a sweep; give it one strength"
        )
    if steering.categories != vectors.size:
        raise SteeringError(
            f"{vectors.size} vectors for the {steering.categories} categories of the rung "
            f"{rung.name}; every category needs its vector (howwhen elicit makes one for each)"
        )


def _check_width(vectors: VectorSet, name: str, expected: int) -> None:
    width = vectors.vectors.shape[1]
    if width != expected:
        raise SteeringError(
            f"vectors of width {width} cannot steer {name}, whose residual has width "
            f"{expected}; train vectors in this base (howwhen elicit)"
        )


@contextmanager
def apply_vectors(
    model: PreTrainedModel | LanguageModel,
    vectors: VectorSet,
    category: int = 0,
    coefficient: float = 1.0,
    positions: slice | None = None,
) -> Iterator[None]:
    """While open, every forward pass of a model is steered with one category's vector.

    The vectors need not have been trained in this model. On leaving, the model is as it was before,
    even after an error.

    Args:
        model: any causal language model of transformers whose residual is as wide as the vectors.
        vectors: what to add, at the output of block `vectors.layer`.
        category: which of them.
        coefficient: multiple of what the set adds at strength 1.
        positions: which positions of every forward pass are steered, by default all.
            `slice(-1, None)` steers the last one only: in `generate`, the end of the prompt and
            every token written.

    Raises:
        SteeringError: the vectors do not fit the model, or hold no such category.
    """
    inner = model.model if isinstance(model, LanguageModel) else model
    name = model.name if isinstance(model, LanguageModel) else type(model).__name__
    try:
        check_layer(inner, vectors.layer)
    except ModelError as error:
        raise SteeringError(f"these vectors cannot steer {name}: {error}") from error
    _check_width(vectors, name, inner.config.get_text_config().hidden_size)
    if not 0 <= category < vectors.size:
        raise SteeringError(
            f"no category {category}: these vectors have the categories 0 to {vectors.size - 1}"
        )
    chosen = slice(None) if positions is None else positions

    def edit(residual: Tensor) -> Tensor:
        part = residual[:, chosen]
        flat = part.flatten(0, 1).float()
        on_device = vectors.to(residual.device)
        numbers = torch.full((len(flat),), category, device=residual.device)
        added = torch.zeros_like(residual, dtype=torch.float32)
        added[:, chosen] = coefficient * on_device.delta(flat, numbers).view(part.shape)
        return added

    with add_to_residual(inner, vectors.layer, edit):
        yield


def steer(
    base: Streams,
    steering: Steering,
    places: SteeredPlaces,
    pick_tokens: TokenPicker,
    log_probs: LogProbs,
    *,
    is_persistent: bool,
) -> list[Steered]:
    """Steer each place with every candidate, and keep the best token.

    The host waits once for all results; under the persistent policy, where the cache depends on
    which of several candidates was best, once for every pass.

    Args:
        base: the streams, which have read the places.
        steering: vectors and candidates.
        places: what to steer.
        pick_tokens: makes tokens of logits.
        log_probs: judges tokens.
        is_persistent: whether the cache keeps the steered states from here on.
    """
    size = max(MIN_PLACES, len(base.lengths))  # a pass copies the cache once for every place
    cuts = [slice(start, start + size) for start in range(0, len(places), size)]
    tried: list[_Tried] = []
    rows: list[list[float]] = []
    for cut in cuts:
        one = _try(base, steering, places.cut(cut), cut, pick_tokens, log_probs, is_persistent)
        tried.append(one)
        if is_persistent:
            rows += one.numbers.tolist()
            one.commit(base, rows[cut])
        base.forget_branches()
    if not is_persistent:
        rows = torch.cat([one.numbers for one in tried]).tolist()
    return [
        one.steered(index, category, rows[cut.start + index])
        for cut, one in zip(cuts, tried, strict=True)
        for index, category in enumerate(places.categories[cut])
    ]


class _One(NamedTuple):
    """A candidate at a place."""

    candidate: Candidate
    log_prob: float
    """Under the thinking model, not rounded."""
    base_log_prob: float
    """Under the unsteered base."""
    branch: int
    number: int
    """In its branch."""
    at: int
    """Where its token is among the numbers of the place."""
    size: int
    """Candidates of its branch."""

    def score(self, picked_by: str) -> float:
        """What the best one has most of."""
        found = self.base_log_prob if picked_by == "base" else self.log_prob
        return -math.inf if math.isnan(found) else found


@dataclass(frozen=True)
class _Tried:
    """Some places steered with every candidate."""

    branches: list[Branch]
    """Of every window."""
    strength: Strength
    """What was tried."""
    draws: list[float]
    """As those of the places."""
    numbers: Float[Tensor, "place number"]
    """The coefficient at strength 1, then for every window each candidate's tokens and their
    log-probabilities under base and thinking model."""

    def _candidates(self, index: int, row: list[float]) -> list[_One]:
        """Those of a place, in the order of the policy."""
        found: dict[tuple[float, Window], _One] = {}
        at = 1
        by_window = self.strength.by_window()
        for branch, (window, strengths) in enumerate(by_window.items()):
            count = len(strengths)
            reached = self.branches[branch].places.reach[index]
            for number, strength in enumerate(strengths):
                log_prob = row[at + 2 * count + number]
                one = Candidate(strength, reached, int(row[at + number]), rounded(log_prob))
                own = row[at + count + number]
                found[strength, window] = _One(
                    one, log_prob, own, branch, number, at + number, count
                )
            at += 3 * count
        return [found[candidate] for candidate in self.strength.candidates]

    def _best(self, index: int, row: list[float]) -> _One:
        candidates, picked_by = self._candidates(index, row), self.strength.picked_by
        if picked_by == "random":
            return candidates[int(self.draws[index] * len(candidates))]
        return max(candidates, key=lambda one: one.score(picked_by))

    def commit(self, base: Streams, rows: Sequence[list[float]]) -> None:
        """Let the cache hold the best candidates' states."""
        for index, row in enumerate(rows):
            best = self._best(index, row)
            base.commit(self.branches[best.branch], index, best.number)

    def steered(self, index: int, category: int, row: list[float]) -> Steered:
        """What came of one place."""
        best = self._best(index, row)
        chosen = best.candidate
        candidates = [one.candidate for one in self._candidates(index, row)]
        return Steered(
            chosen.id,
            category,
            round(chosen.strength * row[0], 4),
            chosen.window,
            tuple(candidates) if len(candidates) > 1 else (),
            row[best.at + best.size],
            row[best.at + 2 * best.size],
        )


def rounded(log_prob: float) -> float | None:
    """A log-probability as it is noted; None where there is none."""
    return None if log_prob == -math.inf or math.isnan(log_prob) else round(log_prob, 4)


def _try(
    base: Streams,
    steering: Steering,
    places: SteeredPlaces,
    cut: slice,
    pick_tokens: TokenPicker,
    log_probs: LogProbs,
    is_persistent: bool,
) -> _Tried:
    vectors, device = steering.vectors, base.device
    by_window = steering.strength.by_window()
    branches: list[Branch] = []
    parts: list[Tensor] = []
    taken = 0
    for window, strengths in by_window.items():
        reaching = places.reaching(window, device)
        residual = base.residuals_at(reaching)
        flat = residual.flatten(0, 1).float()
        category = torch.tensor(places.categories, device=flat.device)
        if not parts:
            own = residual[:, -1].float()
            parts.append(vectors.coefficient(own, category).to(device)[:, None])
        repeated = category.repeat_interleave(residual.shape[1])
        delta = vectors.delta(flat, repeated).view(residual.shape)
        scaled = delta[:, None] * torch.tensor(strengths, device=delta.device)[:, None, None]
        branch = base.branch(reaching, scaled, taken)
        if is_persistent:  # until one of them is kept
            taken += len(strengths) * reaching.longest
        tokens = pick_tokens(branch.logits, cut)
        parts += [tokens.float(), *log_probs(tokens, cut).unbind()]
        branches.append(branch)
    numbers = torch.cat([part.to(device) for part in parts], dim=1)
    if not is_persistent:
        branches = [replace(branch, copies=None) for branch in branches]
    return _Tried(branches, steering.strength, places.draws, numbers)
