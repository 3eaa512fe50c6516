"""Picking tokens from logits: greedily, or at random with common random numbers.

Randomness is a Gumbel number per token of the vocabulary, a function of seed, problem, position and
token alone. Both models share it at each position, so their draws differ only where the models do,
and an unsteered hybrid is the base's own sampled answer, token by token. The function is arithmetic
on integers (a counter-based generator), so it gives the same numbers on every device.
"""

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

MANTISSA_BITS = 52
"""Random bits of a uniform number. With 53, the largest one would round to 1."""


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
    seed: int,
    problems: list[str],
    positions: list[int],
    size: int,
    device: torch.device | None = None,
) -> Float[Tensor, "n vocabulary"]:
    """Gumbel numbers for one position of each of several problems' answers.

    Logarithms are taken in float64, so that devices agree after rounding to float32.
    """
    places = zip(problems, positions, strict=True)
    keys = [_number(f"gumbel-{seed}-{problem}-{position}") for problem, position in places]
    uniform = _uniform(torch.tensor(keys, device=device)[:, None], size)
    return uniform.log_().neg_().log_().neg_().float()


def _uniform(keys: Int[Tensor, "n 1"], size: int) -> Float[Tensor, "n size"]:
    """Numbers in (0, 1) by SplitMix64 (Steele, Lea and Flood 2014), whose state is key + counter.

    Integer products wrap around, on every device.
    """
    state = keys + torch.arange(size, device=keys.device) * _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ _shifted(state, shift)) * _signed(factor)
    bits = _shifted(state ^ _shifted(state, 31), 64 - MANTISSA_BITS)
    return bits.double().add_(0.5).mul_(2.0**-MANTISSA_BITS)


def _shifted(numbers: Int[Tensor, "n size"], bits: int) -> Int[Tensor, "n size"]:
    """Shift right without copies of the sign."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    """The 64-bit integer with the bits of an unsigned one."""
    return number - (1 << 64) if number >> 63 else number


def uniform_numbers(name: str, seed: int, problem: str, count: int) -> Float[Tensor, "count 2"]:
    """Two uniform numbers for every position of an answer, for the random rungs."""
    generator = torch.Generator().manual_seed(_number(f"{name}-{seed}-{problem}"))
    return torch.rand(count, 2, generator=generator)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
