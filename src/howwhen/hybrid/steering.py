"""Steering the base at its last position: candidates in one pass, the best of them taken."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from howwhen.errors import SteeringError
from howwhen.hybrid.choice import Rung
from howwhen.hybrid.streams import Branch, Streams
from howwhen.hybrid.strength import Strength, Window
from howwhen.lm.models import LanguageModel
from howwhen.lm.residual import check_layer
from howwhen.records import Candidate
from howwhen.vectors import VectorSet, all_finite

TokenPicker = Callable[[Tensor, int], Tensor]
"""Token of each candidate, from its logits (candidate, vocabulary) and its place among `rows`."""


class SteeringInfo(NamedTuple):
    """How one token was steered."""

    category: int
    strength: float
    window: int
    candidates: tuple[Candidate, ...]


UNSTEERED = SteeringInfo(-1, 0.0, 0, ())


@dataclass(frozen=True)
class SteeringResult:
    """What came of steering some streams."""

    token: Int[Tensor, " stream"]
    """Token of every stream, steered or not."""
    infos: dict[int, SteeringInfo]

    def info(self, stream: int) -> SteeringInfo:
        """How this stream was steered."""
        return self.infos.get(stream, UNSTEERED)


def check_vectors(base: LanguageModel, rung: Rung) -> None:
    """Refuse vectors that would silently steer nothing, or the wrong thing.

    Raises:
        SteeringError: wrong width, model, number of categories, or values that are not finite.
        ModelError: a layer that the base does not have.
    """
    vectors = rung.vectors
    if vectors is None:
        return
    check_layer(base.model, vectors.layer)
    width, expected = vectors.vectors.shape[1], base.model.config.hidden_size
    if width != expected:
        raise SteeringError(
            f"vectors of width {width} cannot steer {base.name}, whose residual has width "
            f"{expected}; train vectors in this base (howwhen elicit)"
        )
    if vectors.model != base.name:
        raise SteeringError(
            f"these vectors were trained in {vectors.model!r} and would steer {base.name!r}; train "
            "them in this base (howwhen elicit), or rename them with dataclasses.replace if the "
            "two are one model under two names"
        )
    if not all_finite(vectors.tensors().values()):
        raise SteeringError("a steering vector holds a value that is not finite; train it again")
    if rung.strength.is_sweep and not rung.needs_thinking:
        raise SteeringError(
            f"the rung {rung.name} runs no thinking model, which would have to choose among the "
            f"{len(rung.strength.candidates)} candidates of a sweep; give it one strength"
        )
    categories = rung.categories
    if categories is not None and categories != vectors.size:
        raise SteeringError(
            f"{vectors.size} vectors for the {categories} categories of the rung {rung.name}; "
            "every category needs its vector (howwhen elicit makes one for each)"
        )


def steer_last(
    base: Streams,
    vectors: VectorSet,
    strength: Strength,
    *,
    rows: Int[Tensor, " row"],
    category: Int[Tensor, " row"],
    answered: Int[Tensor, " row"],
    unsteered: Int[Tensor, " stream"],
    thinking: Float[Tensor, "row vocabulary"] | None,
    pick_tokens: TokenPicker,
    is_persistent: bool,
) -> SteeringResult:
    """Steer the last position of `rows` with every candidate and keep the best token of each.

    Args:
        base: the streams; their last tokens are the positions steered.
        vectors: what to add.
        strength: the candidates.
        rows: streams to steer.
        category: of each of them.
        answered: tokens that each has already been answered with.
        unsteered: token of every stream without steering.
        thinking: log-probabilities under the thinking model, to choose among several candidates.
        pick_tokens: makes tokens of logits.
        is_persistent: whether the cache keeps the steered states.
    """
    branches: list[tuple[Window, list[float], Branch]] = []
    for window, strengths in strength.by_window().items():
        reach = _reach(base, window, rows, answered)
        delta = _delta(base, vectors, rows, category, reach)
        scaled = delta[:, None] * torch.tensor(strengths)[:, None, None]
        branches.append((window, strengths, base.branch(rows, reach, scaled)))
    coefficient = vectors.coefficient(_last_residual(base, rows), category)
    token, infos = unsteered.clone(), {}
    for index, row in enumerate(rows.tolist()):
        tried, place = _score_candidates(branches, index, thinking, pick_tokens)
        best = max(range(len(tried)), key=lambda one: tried[one].thinking_log_prob)
        token[row] = tried[best].id
        used = round(tried[best].strength * float(coefficient[index]), 4)
        shown = tuple(tried) if len(tried) > 1 else ()
        infos[row] = SteeringInfo(int(category[index]), used, tried[best].window, shown)
        if is_persistent:
            base.commit(branches[place[best][0]][2], index, place[best][1])
    return SteeringResult(token, infos)


def _score_candidates(
    branches: list[tuple[Window, list[float], Branch]],
    index: int,
    thinking: Tensor | None,
    pick_tokens: TokenPicker,
) -> tuple[list[Candidate], list[tuple[int, int]]]:
    """Every candidate of one stream, and where it stands: (branch, candidate)."""
    tried, place = [], []
    for number, (_, strengths, branch) in enumerate(branches):
        size = int(branch.exists[index].sum())
        tokens = pick_tokens(branch.logits[index], index).tolist()
        for rank, (strength, one) in enumerate(zip(strengths, tokens, strict=True)):
            known = thinking is not None and one < thinking.shape[1]
            score = float(thinking[index, one]) if known and thinking is not None else 0.0
            tried.append(Candidate(strength, size, one, round(score, 4)))
            place.append((number, rank))
    return tried, place


def _reach(base: Streams, window: Window, rows: Tensor, answered: Tensor) -> Int[Tensor, " row"]:
    """Positions steered in each row: the last of the prompt predicts the answer's first token."""
    if window == "everything":
        return base.lengths[rows]
    return answered + 1 if window == "answer" else (answered + 1).clamp(max=window)


def _delta(
    base: Streams, vectors: VectorSet, rows: Tensor, category: Tensor, reach: Tensor
) -> Float[Tensor, "row window d_model"]:
    residual = base.recent(rows, reach)
    window = residual.shape[1]
    flat = residual.flatten(0, 1).float()
    return vectors.delta(flat, category.repeat_interleave(window)).view(residual.shape)


def _last_residual(base: Streams, rows: Tensor) -> Float[Tensor, "row d_model"]:
    return base.recent(rows, torch.ones_like(rows))[:, 0].float()
