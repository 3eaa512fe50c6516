"""Steering the base at some positions: candidates in one pass, the best of them taken."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from howwhen.errors import ModelError, SteeringError
from howwhen.hybrid.choice import Rung, Steering
from howwhen.hybrid.streams import Branch, Places, Streams
from howwhen.hybrid.strength import Window
from howwhen.lm.models import LanguageModel
from howwhen.lm.residual import add_to_residual, check_layer
from howwhen.records import Candidate
from howwhen.vectors import VectorSet, all_finite

MIN_PLACES = 32
"""Places that may be steered in one pass, however few streams there are."""
TokenPicker = Callable[[Tensor, int], Tensor]
"""Token of every candidate of some places, (place, candidate), from their logits (place, candidate,
vocabulary) and the index of the first place."""


class Steered(NamedTuple):
    """How one token was steered."""

    token: int
    category: int
    coefficient: float
    window: int
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class SteeredPlaces:
    """Positions to be steered, and all that depends on them."""

    rows: Int[Tensor, " place"]
    """The stream of each."""
    back: Int[Tensor, " place"]
    """How many tokens the stream has read after it."""
    category: Int[Tensor, " place"]
    answered: Int[Tensor, " place"]
    """Tokens of the answer that come before it."""
    thinking: Float[Tensor, "place vocabulary"] | None
    """Log-probabilities under the thinking model, to choose among several candidates."""

    def __len__(self) -> int:
        return len(self.rows)

    def cut(self, rows: slice) -> "SteeredPlaces":
        """Some of them."""
        return SteeredPlaces(
            rows=self.rows[rows],
            back=self.back[rows],
            category=self.category[rows],
            answered=self.answered[rows],
            thinking=None if self.thinking is None else self.thinking[rows],
        )

    def reaching(self, window: Window, base: Streams) -> Places:
        """The same with the positions before them that a window holds.

        The last position of the prompt predicts the answer's first token.
        """
        reach = self.answered + 1
        if window == "everything":
            reach = base.lengths[self.rows] - self.back
        elif window != "answer":
            reach = reach.clamp(max=window)
        return Places(self.rows, self.back, reach)


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
    *,
    is_persistent: bool,
) -> list[Steered]:
    """Steer each place with every candidate, and keep the best token.

    Args:
        base: the streams, which have read the places.
        steering: vectors and candidates.
        places: what to steer.
        pick_tokens: makes tokens of logits.
        is_persistent: whether the cache keeps the steered states from here on.
    """
    size = max(MIN_PLACES, len(base.valid))  # a pass copies the cache once for every place
    steered: list[Steered] = []
    for start in range(0, len(places), size):
        cut = places.cut(slice(start, start + size))

        def pick(logits: Tensor, first: int = start) -> Tensor:
            return pick_tokens(logits, first)

        steered += _steer(base, steering, cut, pick, is_persistent)
    return steered


@dataclass(frozen=True)
class _Tried:
    """One window's candidates at every place, and what came of them."""

    branch: Branch
    strengths: Sequence[float]
    tokens: list[list[int]]
    """By place and candidate."""
    log_probs: list[list[float]] | None
    """Under the thinking model, of the same; None if it was not asked."""
    windows: list[int]
    """Positions steered, by place."""

    def candidates(self, place: int) -> list[Candidate]:
        """Those of one place."""
        known = [None] * len(self.strengths) if self.log_probs is None else self.log_probs[place]
        return [
            Candidate(strength, self.windows[place], token, _rounded(log_prob))
            for strength, token, log_prob in zip(
                self.strengths, self.tokens[place], known, strict=True
            )
        ]


def _rounded(log_prob: float | None) -> float | None:
    return None if log_prob is None or log_prob == -torch.inf else round(log_prob, 4)


def _steer(
    base: Streams,
    steering: Steering,
    places: SteeredPlaces,
    pick_tokens: Callable[[Tensor], Tensor],
    is_persistent: bool,
) -> list[Steered]:
    vectors = steering.vectors
    tried: list[_Tried] = []
    for window, strengths in steering.strength.by_window().items():
        reaching = places.reaching(window, base)
        delta = _delta(base, vectors, reaching, places.category)
        scaled = delta[:, None] * torch.tensor(strengths, device=delta.device)[:, None, None]
        branch = base.branch(reaching, scaled)
        tokens = pick_tokens(branch.logits)
        log_probs = _log_probs_of(tokens, places.thinking)
        windows = branch.exists.sum(1).tolist()
        tried.append(_Tried(branch, strengths, tokens.tolist(), log_probs, windows))
    alone = Places(places.rows, places.back, torch.ones_like(places.rows))
    residual = base.residuals_at(alone)[:, 0].float()
    category = places.category.to(residual.device)
    coefficients = vectors.coefficient(residual, category).tolist()
    steered = []
    for index, named in enumerate(places.category.tolist()):
        candidates = [
            (one, part, n) for part in tried for n, one in enumerate(part.candidates(index))
        ]
        chosen, part, number = max(candidates, key=lambda candidate: _score(candidate[0]))
        coefficient = round(chosen.strength * coefficients[index], 4)
        shown = tuple(one for one, _, _ in candidates) if len(candidates) > 1 else ()
        steered.append(Steered(chosen.id, named, coefficient, chosen.window, shown))
        if is_persistent:
            base.commit(part.branch, index, number)
    return steered


def _score(candidate: Candidate) -> float:
    log_prob = candidate.thinking_log_prob
    return -torch.inf if log_prob is None else log_prob


def _log_probs_of(
    tokens: Int[Tensor, "place candidate"], thinking: Float[Tensor, "place vocabulary"] | None
) -> list[list[float]] | None:
    """The thinking model's log-probabilities; minus infinity where it does not know a token."""
    if thinking is None:
        return None
    ids, size = tokens.to(thinking.device), thinking.shape[1]
    known = thinking.gather(1, ids.clamp(max=size - 1))
    log_probs: list[list[float]] = known.masked_fill(ids >= size, -torch.inf).tolist()
    return log_probs


def _delta(
    base: Streams, vectors: VectorSet, places: Places, category: Tensor
) -> Float[Tensor, "place window d_model"]:
    residual = base.residuals_at(places)
    flat = residual.flatten(0, 1).float()
    repeated = category.to(flat.device).repeat_interleave(residual.shape[1])
    return vectors.delta(flat, repeated).view(residual.shape)
