"""A model's pass over a few tokens of every text, compiled into one graph per shape."""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast
from weakref import WeakKeyDictionary, WeakSet

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from howwhen.lm.attention import attention_of
from howwhen.lm.models import LanguageModel
from howwhen.lm.residual import find_blocks, residual_of
from howwhen.lm.slots import SlotCache
from howwhen.settings import Compilation

SIZES = (1, 4, 16)
"""Numbers of tokens that there are graphs for; few, since each takes a while to be made."""
MIN_COLUMNS = 512
"""Fewest columns of a cache that there is a graph for; then four times as many, and so on."""
MAX_GRAPHS = 128
"""Graphs of all models and shapes that one process may compile."""
_LOG = logging.getLogger(__name__)
_ALL: "WeakSet[CompiledPass]" = WeakSet()
_PASSES: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], "CompiledPass"]] = WeakKeyDictionary()


def size_of(count: int) -> int | None:
    """The smallest number of tokens that there is a graph for; None where there is none."""
    return next((size for size in SIZES if size >= count), None)


def columns_of(count: int) -> int:
    """The smallest number of columns that there is a graph for."""
    columns = MIN_COLUMNS
    while columns < count:
        columns *= 4
    return columns


def compiled_pass(model: LanguageModel, layers: Sequence[int], how: Compilation) -> "CompiledPass":
    """The pass of a model that keeps the residuals of some layers; the same one every time."""
    known = _PASSES.setdefault(model.model, {})
    key = (tuple(layers), how)
    if key not in known:
        known[key] = CompiledPass(model, layers, how)
    return known[key]


@cache
def _say_full() -> None:
    _LOG.warning("%d graphs were compiled; other shapes are read without", MAX_GRAPHS)


class CompiledPass:
    """Reads tokens with one graph for every shape; no shape changes from step to step.

    Its hooks stay for as long as the model lives, since hooks that come and go would be compiled
    again. They do nothing in passes of others. It does not keep the model itself alive.
    """

    def __init__(self, model: LanguageModel, layers: Sequence[int], how: Compilation) -> None:
        self._layers, self._how = tuple(layers), how
        self._read: dict[int, Tensor] = {}
        self._is_on = False
        blocks = find_blocks(model.model)
        for layer in layers:
            blocks[layer].register_forward_hook(self._hook(layer))
        config: Any = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, 2 * MAX_GRAPHS)
        options: dict[Compilation, dict[str, Any]] = {
            "trace": {"backend": "eager"},
            "inductor": {},
            "graphs": {"mode": "reduce-overhead"},
        }
        self._compiled: Callable[..., Any] = torch.compile(
            self._run, fullgraph=True, dynamic=False, **options[how]
        )
        self._shapes: set[tuple[int, int, int]] = set()
        """Shapes that it has graphs for."""
        _ALL.add(self)

    def _hook(self, layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if self._is_on:
                self._read[layer] = residual_of(output)

        return hook

    def has_graph(self, streams: int, tokens: int, columns: int) -> bool:
        """Whether there is a graph for a shape, or one more may be made."""
        shape = (streams, tokens, columns)
        if shape not in self._shapes and sum(len(one._shapes) for one in _ALL) >= MAX_GRAPHS:
            _say_full()
            return False
        self._shapes.add(shape)
        return True

    def _run(
        self, model: nn.Module, tokens: Tensor, positions: Tensor, mask: Tensor, cache: SlotCache
    ) -> tuple[Tensor, list[Tensor]]:
        output = model(
            tokens,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        )
        return output.logits.float(), [self._read[layer] for layer in self._layers]

    def __call__(
        self,
        model: LanguageModel,
        tokens: Int[Tensor, "stream new"],
        positions: Int[Tensor, "stream new"],
        mask: Tensor,
        cache: SlotCache,
    ) -> tuple[Float[Tensor, "stream new vocabulary"], dict[int, Tensor]]:
        """The logits, and the residual of every layer, (stream, new, d_model) each.

        Args:
            model: the one whose pass it is.
            tokens: to be read, as many as one of `SIZES`.
            positions: of each.
            mask: as `fitted_mask` makes it, over all columns of the cache.
            cache: has been told by its board where to write.
        """
        self._is_on = True
        try:
            with attention_of(model):
                if self._how == "graphs":
                    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
                logits, residuals = self._compiled(model.model, tokens, positions, mask, cache)
        finally:
            self._is_on = False
            self._read.clear()
        if self._how == "graphs":  # the next replay writes over these
            logits, residuals = logits.clone(), [part.clone() for part in residuals]
        return cast("Tensor", logits), dict(zip(self._layers, residuals, strict=True))
