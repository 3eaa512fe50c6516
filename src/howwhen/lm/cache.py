"""A key-value cache that grows in place.

The library's own cache copies all of its states for every token. On a CPU that takes longer than
the rest of a small model.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

MIN_SPARE_COLUMNS = 32
"""Columns that a new buffer has on top of those needed at once."""


class Columns:
    """A tensor (..., column, width) that columns are appended to, with room for more."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def append(self, before: Tensor | None, new: Tensor) -> Tensor:
        """The columns of `before`, then those of `new`.

        Args:
            before: what `append` returned last, or any columns cut or selected from it; None at
                first.
            new: columns to add.
        """
        start = 0 if before is None else before.shape[-2]
        end = start + new.shape[-2]
        buffer = self._buffer
        if buffer is None or before is None or not _begins(buffer, before, end):
            spare = max(MIN_SPARE_COLUMNS, end // 4)
            buffer = new.new_empty(*new.shape[:-2], end + spare, new.shape[-1])
            if before is not None:
                buffer[..., :start, :] = before
            self._buffer = buffer
        buffer[..., start:end, :] = new
        return buffer[..., :end, :]


def _begins(buffer: Tensor, columns: Tensor, end: int) -> bool:
    """Whether `columns` are the buffer's own first ones, and `end` of them fit into it."""
    is_own = columns.data_ptr() == buffer.data_ptr() and len(columns) == len(buffer)
    return is_own and end <= buffer.shape[-2]


class GrowingLayer(DynamicLayer):  # type: ignore[misc]  # the library has no types
    """One layer's keys and values, with room for those of more tokens."""

    keys: Tensor
    values: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._key_columns, self._value_columns = Columns(), Columns()

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the states of new tokens, and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        is_empty = self.get_seq_length() == 0
        self.keys = self._key_columns.append(None if is_empty else self.keys, key_states)
        self.values = self._value_columns.append(None if is_empty else self.values, value_states)
        return self.keys, self.values


def growing_cache(states: Sequence[tuple[Tensor, Tensor]] = ()) -> Cache:
    """A cache whose layers hold these keys and values, (batch, head, position, d_head) each.

    The tensors given are never written to.
    """
    cache = Cache(layer_class_to_replicate=GrowingLayer)
    for keys, values in states:
        layer = GrowingLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache
