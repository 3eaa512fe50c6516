"""The ladder's rungs: who writes the next token, and with what steering.

A `Choice` looks at both models' next-token logits for a batch of streams and returns a `Move`:
tokens to emit as they are, and streams whose base is to be steered at this position first. The
controls differ from the full hybrid in one thing each; none is a flag.
"""

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from howwhen.records import Rung, Taxonomy, VectorSet


@dataclass(frozen=True)
class View:
    """What a choice may look at: one position of every running stream."""

    base_logits: Float[Tensor, "stream vocabulary"]
    thinking_logits: Float[Tensor, "stream vocabulary"] | None
    """None where the rung does not run the thinking model."""
    thinking_residual: Float[Tensor, "stream d_model"] | None
    """At the taxonomy's layer."""
    draws: Float[Tensor, "stream 2"]
    """Uniform random numbers; they depend on seed, problem and position only."""
    ends: Int[Tensor, " end"]
    """Tokens of either model that end an answer."""

    @property
    def base_token(self) -> Int[Tensor, " stream"]:
        """The base's greedy token."""
        return self.base_logits.argmax(1)

    @property
    def thinking_token(self) -> Int[Tensor, " stream"]:
        """The thinking model's greedy token."""
        if self.thinking_logits is None:
            raise RuntimeError("this rung looks at the thinking model but does not run it")
        return self.thinking_logits.argmax(1)

    @property
    def is_decision(self) -> Bool[Tensor, " stream"]:
        """Whether the two greedy tokens differ; two end tokens mean the same."""
        base, thinking = self.base_token, self.thinking_token
        both_end = torch.isin(base, self.ends) & torch.isin(thinking, self.ends)
        return (base != thinking) & ~both_end

    def categories(self, taxonomy: Taxonomy) -> Int[Tensor, " stream"]:
        """Category of the thinking model's residual here."""
        if self.thinking_residual is None:
            raise RuntimeError("this rung reads a category but does not run the thinking model")
        return taxonomy.categorise(self.thinking_residual)


@dataclass(frozen=True)
class Move:
    """What to do at one position of every stream."""

    token: Int[Tensor, " stream"]
    """Token to emit where the base is not steered."""
    is_decision: Bool[Tensor, " stream"]
    """Where the rung intervenes, by steering or by choosing the token itself."""
    category: Int[Tensor, " stream"]
    """Category to steer the base with; -1 where it is not steered."""


@runtime_checkable
class Choice(Protocol):
    """One rung of the ladder."""

    @property
    def name(self) -> Rung:
        """Its name on the ladder."""
        ...

    @property
    def vectors(self) -> VectorSet | None:
        """What it steers with, if it steers."""
        ...

    @property
    def needs_thinking(self) -> bool:
        """Whether the thinking model must run."""
        ...

    def move(self, view: View) -> Move:
        """Decide at one position of every stream."""
        ...


def _emit(token: Tensor, is_decision: Tensor) -> Move:
    return Move(token, is_decision, torch.full_like(token, -1))


@dataclass(frozen=True)
class Base:
    """The base alone."""

    name: Rung = "base"
    vectors: None = None
    needs_thinking: bool = False

    def move(self, view: View) -> Move:
        """Emit the base's greedy token."""
        return _emit(view.base_token, torch.zeros_like(view.base_token, dtype=torch.bool))


@dataclass(frozen=True)
class Thinking:
    """The thinking model alone."""

    name: Rung = "thinking"
    vectors: None = None
    needs_thinking: bool = True

    def move(self, view: View) -> Move:
        """Emit the thinking model's greedy token."""
        return _emit(view.thinking_token, torch.zeros_like(view.is_decision))


@dataclass(frozen=True)
class Takeover:
    """The ceiling: at a decision the thinking model's token is emitted."""

    name: Rung = "takeover"
    vectors: None = None
    needs_thinking: bool = True

    def move(self, view: View) -> Move:
        """Emit the base's token, or at a decision the thinking model's."""
        return _emit(
            torch.where(view.is_decision, view.thinking_token, view.base_token), view.is_decision
        )


@dataclass(frozen=True)
class Guardrail:
    """No vectors: at a decision the thinking model picks among the base's own top tokens."""

    top_k: int
    name: Rung = "guardrail-only"
    vectors: None = None
    needs_thinking: bool = True

    def move(self, view: View) -> Move:
        """Rerank the base's `top_k` tokens by the thinking model at a decision."""
        if view.thinking_logits is None:
            raise RuntimeError("the guardrail needs the thinking model's logits")
        own = view.base_logits.topk(self.top_k, dim=1).indices
        best = view.thinking_logits.gather(1, own).argmax(1)
        picked = own.gather(1, best[:, None])[:, 0]
        return _emit(torch.where(view.is_decision, picked, view.base_token), view.is_decision)


@dataclass(frozen=True)
class Steer:
    """The full hybrid: at a decision, steer the base with the category of the thinking model."""

    taxonomy: Taxonomy
    vectors: VectorSet
    name: Rung = "hybrid"
    needs_thinking: bool = True

    def move(self, view: View) -> Move:
        """Steer where the greedy tokens differ."""
        category = self.choose_category(view)
        where = self.choose_where(view)
        return Move(view.base_token, where, category.masked_fill(~where, -1))

    def choose_category(self, view: View) -> Int[Tensor, " stream"]:
        """The taxonomy's category of the thinking model's residual."""
        return view.categories(self.taxonomy)

    def choose_where(self, view: View) -> Bool[Tensor, " stream"]:
        """The decisions."""
        return view.is_decision


@dataclass(frozen=True)
class SharedVector(Steer):
    """One vector for all categories, trained on the same decisions."""

    name: Rung = "shared-vector"

    def choose_category(self, view: View) -> Int[Tensor, " stream"]:
        """Always the single category."""
        return torch.zeros_like(view.base_token)


@dataclass(frozen=True)
class RandomCategory(Steer):
    """The right moments with a category drawn evenly."""

    name: Rung = "random-category"

    def choose_category(self, view: View) -> Int[Tensor, " stream"]:
        """A uniform draw."""
        return (view.draws[:, 0] * self.taxonomy.size).long()


@dataclass(frozen=True)
class RandomPositions(Steer):
    """The right categories at random moments, as often as the hybrid steers."""

    rate: float = 0.0
    """Share of tokens to steer."""
    name: Rung = "random-positions"

    def choose_where(self, view: View) -> Bool[Tensor, " stream"]:
        """Each position with probability `rate`."""
        return view.draws[:, 1] < self.rate


@dataclass(frozen=True)
class RandomVectors(Steer):
    """The right moments and categories with random directions of the right norms."""

    name: Rung = "random-vectors"


def randomise(vectors: VectorSet, seed: int) -> VectorSet:
    """Replace every vector by a random direction of the same norm; coefficients stay."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(vectors.vectors.shape, generator=generator)
    norms = vectors.vectors.norm(dim=1, keepdim=True)
    return replace(vectors, vectors=noise / noise.norm(dim=1, keepdim=True) * norms)
