"""Activations that are known to lie around a few directions."""

import torch
from torch.nn import functional


def planted(count: int = 900, noise: float = 0.15) -> tuple[torch.Tensor, torch.Tensor]:
    """Sentences around three planted directions in 24 dimensions, and which one each is near."""
    generator = torch.Generator().manual_seed(1)
    directions = functional.normalize(torch.randn(3, 24, generator=generator), dim=1)
    which = torch.arange(count) % 3
    inputs = directions[which] + noise * torch.randn(count, 24, generator=generator)
    return functional.normalize(inputs, dim=1), which
