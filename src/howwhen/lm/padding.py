"""Batches of token sequences: padding, attention masks, and caches made of given states."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


@dataclass(frozen=True)
class Padded:
    """A batch of token sequences, padded on one side. It may hold their last tokens only."""

    ids: Int[Tensor, "batch position"]
    mask: Int[Tensor, "batch key"]
    """1 on tokens, 0 on padding; wider than `ids` if earlier tokens are in a cache."""

    @property
    def positions(self) -> Int[Tensor, "batch position"]:
        """Position of each token in its own sequence (0 on left padding)."""
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        return positions[:, -self.ids.shape[1] :]

    def to(self, device: torch.device) -> "Padded":
        """The same batch on another device."""
        return Padded(self.ids.to(device), self.mask.to(device))

    def inputs(self) -> dict[str, Tensor]:
        """Arguments of a model's forward."""
        return {
            "input_ids": self.ids,
            "attention_mask": self.mask,
            "position_ids": self.positions,
        }


def pad(
    sequences: Sequence[Sequence[int]],
    *,
    left: bool = False,
    multiple: int = 1,
    device: torch.device | None = None,
) -> Padded:
    """Pad token sequences with masked zeros.

    Args:
        sequences: token ids.
        left: pad on the left instead of the right.
        multiple: the padded length is the longest sequence's, rounded up to a multiple of this.
        device: of the batch; the CPU by default.
    """
    longest = max(len(sequence) for sequence in sequences)
    longest += -longest % multiple
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        cells = slice(longest - len(sequence), longest) if left else slice(0, len(sequence))
        ids[row, cells] = torch.tensor(sequence, dtype=torch.long)
        mask[row, cells] = 1
    padded = Padded(ids, mask)
    return padded if device is None else padded.to(device)


def fitting(
    sizes: Sequence[Sequence[int]], positions: int, rows: int | None = None
) -> Iterator[slice]:
    """Neighbouring texts that fit in one pass when padded, one at least.

    Args:
        sizes: lengths of the parts of every text that are padded apart.
        positions: most cells of a pass, padding included.
        rows: most texts of a pass.
    """
    start = 0
    while start < len(sizes):
        end, longest = start, [0] * len(sizes[start])
        while end < len(sizes) and (rows is None or end - start < rows):
            longest = [max(pair) for pair in zip(longest, sizes[end], strict=True)]
            if end > start and sum(longest) * (end - start + 1) > positions:
                break
            end += 1
        yield slice(start, end)
        start = end


def additive_mask(
    allowed: Bool[Tensor, "batch query key"], dtype: torch.dtype
) -> Float[Tensor, "batch 1 query key"]:
    """What attention adds to its scores: 0 for allowed keys, the lowest number for others."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]


class FixedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one block that attention sees in addition to its own, and never grows.

    So a block can be computed twice with the same result, as recomputation in a backward pass does.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """What is attended to; nothing is kept."""
        keys = torch.cat([self.keys, key_states], dim=-2)
        return keys, torch.cat([self.values, value_states], dim=-2)


def cache_of(
    layers: Mapping[int, tuple[Tensor, Tensor]], kind: type[DynamicLayer] = DynamicLayer
) -> DynamicCache:
    """A cache of the given keys and values, (batch, head, position, d_head) each, by layer."""
    cache = DynamicCache()
    cache.layers = [kind() for _ in range(max(layers) + 1)] if layers else []
    for number, (keys, values) in layers.items():
        cache.layers[number].lazy_initialization(keys, values)
        cache.layers[number].keys, cache.layers[number].values = keys, values
    return cache
