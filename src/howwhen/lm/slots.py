"""A key-value cache in which every text has a length of its own.

Text `i` has its states in columns 0 to `lengths[i] - 1` of its row, so that a column is a position.
Forgetting tokens is a shorter length: nothing is moved, masked or cropped. What lies behind a
text's length is never looked at and is written over.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

MIN_SPARE_COLUMNS = 32
"""Columns that a new buffer has on top of those needed at once."""


class Board:
    """Where the next states are written, the same for all layers of a cache."""

    def __init__(self) -> None:
        self.start = 0
        """Column of the first new state, where it is the same for every text."""
        self.columns: Int[Tensor, "text new"] | None = None
        """Columns of the new states of every text; None where they begin at `start`."""
        self.width = 0
        """Columns that are attended to, the new ones included."""
        self.rows: Int[Tensor, " row"] | None = None
        """Texts that new states belong to, where they are not all of them in order. Their old
        states are then copied and nothing is kept in the cache itself."""

    def put(self, start: int, count: int) -> None:
        """Write `count` states of every text from the same column on."""
        self.start, self.columns, self.width, self.rows = start, None, start + count, None

    def put_at(self, columns: Int[Tensor, "text new"], width: int) -> None:
        """Write the states of every text to columns of its own."""
        self.start, self.columns, self.width, self.rows = 0, columns, width, None

    def put_beside(self, rows: Int[Tensor, " row"], start: int, count: int) -> None:
        """Write states behind the first `start` columns of copies of some texts."""
        self.put(start, count)
        self.rows = rows


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]  # the library has no types
    """One layer's keys and values, (text, head, column, d_head) each."""

    is_croppable = True
    is_sliding = False

    def __init__(self, board: Board) -> None:
        super().__init__()
        self.board = board
        self.beside: tuple[Tensor, Tensor] | None = None
        """What `update` returned last for copies of texts."""
        self.fixed: Tensor | None = None
        """The keys for which graphs may rely on where they are."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make room for the first states."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            states.new_empty(*states.shape[:2], 0, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the states of new tokens, and return all columns that are attended to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        board = self.board
        if board.rows is not None:
            rows = board.rows.to(self.keys.device)
            self.beside = tuple(  # type: ignore[assignment]
                torch.cat([old[:, :, : board.start][rows], new], dim=2)
                for old, new in ((self.keys, key_states), (self.values, value_states))
            )
            return self.beside  # type: ignore[return-value]
        if board.width > self.keys.shape[2]:
            self.keys, self.values = (
                with_room(states, 2, board.width) for states in (self.keys, self.values)
            )
        for states, new in ((self.keys, key_states), (self.values, value_states)):
            if board.columns is None:
                states[:, :, board.start : board.width] = new
            else:
                where = board.columns.to(new.device)[:, None, :, None].expand_as(new)
                states.scatter_(2, where, new)
        return self.keys[:, :, : board.width], self.values[:, :, : board.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that a mask has, where the model makes its own."""
        return self.board.start + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens read before, where that is the same for every text."""
        return self.board.start

    def get_max_length(self) -> int:
        """Without a limit."""
        return -1

    def put(self, other: "SlotLayer", rows: Int[Tensor, " text"], count: int) -> None:
        """Take over another layer's texts in place of some, or as further ones.

        Args:
            other: a layer with one text for every row.
            rows: where each goes.
            count: how many texts there are then.
        """
        if not other.is_initialized and not self.is_initialized:
            return
        if not self.is_initialized:
            self.lazy_initialization(other.keys[:0], other.values[:0])
        self.keys, self.values = (
            placed(old, new, rows.to(old.device), count, 2)
            for old, new in (
                (self.keys, getattr(other, "keys", None)),
                (self.values, getattr(other, "values", None)),
            )
        )


def with_room(states: Tensor, dim: int, width: int) -> Tensor:
    """A copy of states with at least so many columns, and some to spare."""
    shape = list(states.shape)
    shape[dim] = width + max(MIN_SPARE_COLUMNS, width // 4)
    grown = states.new_zeros(shape)
    grown.narrow(dim, 0, states.shape[dim]).copy_(states)
    return grown


def placed(
    old: Tensor, new: Tensor | None, rows: Int[Tensor, " text"], count: int, dim: int
) -> Tensor:
    """States with those of other texts in place of some, or as further ones.

    Args:
        old: (text, ...); written to, unless there is no room.
        new: the same of other texts, with fewer or more columns; None where they have none.
        rows: where every text of `new` goes.
        count: how many texts there are then.
        dim: of the columns.
    """
    if new is not None and old.shape[dim] < new.shape[dim]:
        old = with_room(old, dim, new.shape[dim])
    if count > len(old):
        old = torch.cat([old, old.new_zeros(count - len(old), *old.shape[1:])])
    if new is not None:
        width = new.shape[dim]
        old.narrow(dim, 0, width)[rows] = new
        # Nothing looks there, but a state that is no number would spoil what is masked.
        old.narrow(dim, width, old.shape[dim] - width)[rows] = 0
    return old


def _fitted(states: Tensor, width: int) -> Tensor:
    fitted = states
    if states.shape[2] != width:
        fitted = states.new_zeros(*states.shape[:2], width, states.shape[3])
        kept = min(width, states.shape[2])
        fitted[:, :, :kept] = states[:, :, :kept]
    torch._dynamo.mark_static_address(fitted)
    return fitted


class SlotCache(Cache):  # type: ignore[misc]
    """The layers of a model, and where all of them write next."""

    def __init__(self, layers: int) -> None:
        self.board = Board()
        super().__init__(layers=[SlotLayer(self.board) for _ in range(layers)])

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        """Keep only these texts; an index that occurs several times makes as many copies."""
        for layer in self._filled():
            chosen = rows.to(layer.keys.device)
            layer.keys, layer.values = layer.keys[chosen], layer.values[chosen]

    def fit(self, width: int) -> None:
        """Give all buffers exactly so many columns, at addresses that graphs may rely on."""
        for layer in self._filled():
            if layer.keys.shape[2] != width or layer.fixed is not layer.keys:
                layer.keys, layer.values = (
                    _fitted(states, width) for states in (layer.keys, layer.values)
                )
                layer.fixed = layer.keys

    @property
    def fixed_columns(self) -> int:
        """Columns that `fit` made, if they are still as it made them; else 0."""
        first = next(iter(self._filled()), None)
        return 0 if first is None or first.fixed is not first.keys else first.keys.shape[2]

    def put(self, other: "SlotCache", rows: Int[Tensor, " text"], count: int) -> None:
        """Take over another cache's texts in place of some, or as further ones."""
        for own, layer in zip(self.layers, other.layers, strict=True):
            own.put(layer, rows, count)

    def copy(self) -> "SlotCache":
        """A cache with the same states that is written to independently."""
        copied = SlotCache(len(self.layers))
        for old, new in zip(self.layers, copied.layers, strict=True):
            if old.is_initialized:
                new.lazy_initialization(old.keys, old.values)
                new.keys, new.values = old.keys.clone(), old.values.clone()
        return copied

    @property
    def nbytes(self) -> int:
        """Memory that the states take."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self._filled())

    def _filled(self) -> Sequence[SlotLayer]:
        return [layer for layer in self.layers if layer.is_initialized]
