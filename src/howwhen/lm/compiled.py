"""Arithmetic that is compiled into one graph per shape, and passes of models that are."""

import logging
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Any, cast
from weakref import WeakKeyDictionary, WeakSet

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel

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
"""Graphs of all models and shapes that one process may compile, and as many of decisions."""
_LOG = logging.getLogger(__name__)
_ALL: "WeakSet[Graphs]" = WeakSet()
_PASSES: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], "CompiledPass"]] = WeakKeyDictionary()
_UPPER: WeakKeyDictionary[nn.Module, dict[Compilation, "Graphs"]] = WeakKeyDictionary()


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


class Graphs:
    """A function of tensors with one graph for every shape; it makes no others."""

    def __init__(
        self, run: Callable[..., Any], how: Compilation, among: "WeakSet[Graphs] | None" = None
    ) -> None:
        """Of a function, counted among others up to `MAX_GRAPHS`; by default among all passes."""
        self._how, self._among = how, _ALL if among is None else among
        config: Any = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, 2 * MAX_GRAPHS)
        options: dict[Compilation, dict[str, Any]] = {
            "trace": {"backend": "eager"},
            "inductor": {},
            "graphs": {"mode": "reduce-overhead"},
        }
        self._compiled: Callable[..., Any] = torch.compile(
            run, fullgraph=True, dynamic=False, **options[how]
        )
        self._shapes: set[tuple[Hashable, ...]] = set()
        """Shapes that it has graphs for."""
        self._among.add(self)

    def has_graph(self, *shape: Hashable) -> bool:
        """Whether there is a graph for a shape, or one more may be made."""
        if shape not in self._shapes and sum(len(one._shapes) for one in self._among) >= MAX_GRAPHS:
            _say_full()
            return False
        self._shapes.add(shape)
        return True

    def __call__(self, *args: Any) -> Any:
        """What the function returns; its tensors are the caller's to keep."""
        if self._how != "graphs":
            return self._compiled(*args)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        # The next replay writes over what is returned.
        return tree_map_only(Tensor, Tensor.clone, self._compiled(*args))


class CompiledPass:
    """A model's pass over a few tokens of every text.

    Its hooks stay for as long as the model lives, since hooks that come and go would be compiled
    again. They do nothing in passes of others. It does not keep the model itself alive.
    """

    def __init__(self, model: LanguageModel, layers: Sequence[int], how: Compilation) -> None:
        self._layers = tuple(layers)
        self._read: dict[int, Tensor] = {}
        self._is_on = False
        blocks = find_blocks(model.model)
        for layer in layers:
            blocks[layer].register_forward_hook(self._hook(layer))
        self._graphs = Graphs(self._run, how)

    def _hook(self, layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if self._is_on:
                self._read[layer] = residual_of(output)

        return hook

    def has_graph(self, streams: int, tokens: int, columns: int) -> bool:
        """Whether there is a graph for a shape, or one more may be made."""
        return self._graphs.has_graph(streams, tokens, columns)

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
                logits, residuals = self._graphs(model.model, tokens, positions, mask, cache)
        finally:
            self._is_on = False
            self._read.clear()
        return cast("Tensor", logits), dict(zip(self._layers, residuals, strict=True))


def compiled_upper(upper: PreTrainedModel, how: Compilation) -> Graphs:
    """The pass of a model's upper blocks; the same one every time.

    Called with the upper blocks, steered residuals (stream, new, d_model), their mask and
    positions, and a cache whose board says where to write. Returns the logits.
    """
    known = _UPPER.setdefault(upper, {})
    if how not in known:
        known[how] = Graphs(_run_upper, how)
    return known[how]


def _run_upper(
    upper: PreTrainedModel, steered: Tensor, mask: Tensor, positions: Tensor, cache: SlotCache
) -> Tensor:
    output = upper(
        inputs_embeds=steered,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )
    return cast("Tensor", output.logits)
