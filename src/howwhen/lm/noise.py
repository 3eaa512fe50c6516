"""Random numbers as a function of names and places: the same on every device, in every batch.

The function is arithmetic on integers (a counter-based generator), and there is no state.
"""

import hashlib

import torch
from jaxtyping import Float, Int
from torch import Tensor

MANTISSA_BITS = 52
"""Random bits of a uniform number. With 53, the largest one would round to 1."""


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
    keys = [number_of(f"gumbel-{seed}-{problem}-{position}") for problem, position in places]
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


def number_of(text: str) -> int:
    """A number below 2^63 for a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
