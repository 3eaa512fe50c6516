"""Picking tokens from logits: greedily, or at random with common random numbers.

Randomness is a Gumbel number per token of the vocabulary, drawn from seed, problem and position
alone. Both models share it at each position, so their draws differ only where the models do, and an
unsteered hybrid is the base's own sampled answer, token by token.
"""

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


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


def gumbel_noise(
    seed: int, problems: list[str], positions: list[int], size: int
) -> Float[Tensor, "n vocabulary"]:
    """Gumbel numbers for one position of each of several problems' answers."""
    generator = torch.Generator()
    rows = []
    for problem, position in zip(problems, positions, strict=True):
        generator.manual_seed(_number(f"gumbel-{seed}-{problem}-{position}"))
        rows.append(torch.empty(size).exponential_(generator=generator))
    return -torch.stack(rows).log()


def uniform_numbers(name: str, seed: int, problem: str, count: int) -> Float[Tensor, "count 2"]:
    """Two uniform numbers for every position of an answer, for the random rungs."""
    generator = torch.Generator().manual_seed(_number(f"{name}-{seed}-{problem}"))
    return torch.rand(count, 2, generator=generator)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
