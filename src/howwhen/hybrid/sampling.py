"""Picking tokens from logits: greedily, or at random with common random numbers.

Randomness is a Gumbel number per token of the vocabulary, a function of seed, problem, position and
token alone. Both models share it at each position, so their draws differ only where the models do,
and an unsteered hybrid is the base's own sampled answer, token by token.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from howwhen.lm.noise import number_of


@dataclass(frozen=True)
class Sampler:
    """Temperature and nucleus; temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0

    def scores(
        self, logits: Float[Tensor, "n vocabulary"], noise: Float[Tensor, "n vocabulary"] | None
    ) -> Float[Tensor, "n vocabulary"]:
        """What the picked token is the argmax of (Gumbel-max)."""
        if self.is_greedy or noise is None:
            return logits
        scaled = (logits - logits.amax(1, keepdim=True)) / self.temperature
        if self.top_p < 1:
            ranked = scaled.sort(dim=1, descending=True)
            before = ranked.values.softmax(1).cumsum(1) - ranked.values.softmax(1)
            outside = torch.zeros_like(before, dtype=torch.bool).scatter(
                1, ranked.indices, before >= self.top_p
            )
            scaled = scaled.masked_fill(outside, -torch.inf)
        return scaled + noise


def uniform_numbers(name: str, seed: int, problem: str, count: int) -> Float[Tensor, "count 2"]:
    """Two uniform numbers for every position of an answer, for the random rungs."""
    generator = torch.Generator().manual_seed(number_of(f"{name}-{seed}-{problem}"))
    return torch.rand(count, 2, generator=generator)
