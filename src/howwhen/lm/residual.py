"""Reading and adding to the residual stream of any decoder, with plain forward hooks.

Layer `l` is the output of the 0-based decoder block `l`, both for reading and for steering. Every
function restores the model. Nothing here depends on tokens or categories.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from howwhen.errors import ModelError

Residual = Float[Tensor, "batch position d_model"]
Edit = Callable[[Tensor], Tensor]
"""Maps a block's output to what is added to it, both (batch, position, d_model)."""

_BLOCKS: WeakKeyDictionary[nn.Module, nn.ModuleList] = WeakKeyDictionary()
"""Blocks by model, since finding them takes longer than a small model's forward pass."""


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a causal language model, in order.

    Raises:
        ModelError: no list, or more than one, has as many modules as the config has layers.
    """
    if model in _BLOCKS:
        return _BLOCKS[model]
    config = getattr(model, "config", None)
    count = getattr(config, "num_hidden_layers", None)
    modules = model.named_modules()
    lists = {name: module for name, module in modules if isinstance(module, nn.ModuleList)}
    candidates = [blocks for blocks in lists.values() if len(blocks) == count]
    if len(candidates) == 1:
        _BLOCKS[model] = candidates[0]
        return candidates[0]
    names = ", ".join(f"{name} ({len(blocks)})" for name, blocks in lists.items()) or "none"
    raise ModelError(
        f"cannot find the decoder blocks of {type(model).__name__}: expected exactly one list of "
        f"{count} modules (config.num_hidden_layers), found {names}; howwhen supports plain "
        "decoder-only models"
    )


def check_layer(model: nn.Module, layer: int) -> int:
    """Return `layer` if the model has it.

    Raises:
        ModelError: `layer` is not between 0 and the number of blocks minus one.
    """
    count = len(find_blocks(model))
    if not 0 <= layer < count:
        raise ModelError(
            f"layer {layer} is out of range: {type(model).__name__} has {count} blocks, "
            f"so layers 0 to {count - 1}"
        )
    return layer


@contextmanager
def capture_residuals(
    model: nn.Module, layers: Sequence[int], take: Callable[[Tensor], Tensor] = Tensor.detach
) -> Iterator[dict[int, Tensor]]:
    """Within the context, each forward pass stores the residuals of `layers` in the yielded dict.

    A residual is (batch, position, d_model) and detached. The next forward pass replaces it.

    Args:
        model: a causal language model.
        layers: 0-based blocks.
        take: called with each residual during the pass; its result is stored instead. Memory of
            the residual itself can then be freed.
    """
    blocks = find_blocks(model)
    captured: dict[int, Tensor] = {}

    def make_hook(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            captured[layer] = take(residual_of(output))

        return hook

    handles = [
        blocks[check_layer(model, layer)].register_forward_hook(make_hook(layer))
        for layer in layers
    ]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def add_to_residual(model: nn.Module, layer: int, edit: Edit) -> Iterator[None]:
    """Within the context, each forward pass adds `edit(residual)` to the output of `layer`."""

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = residual_of(output)
        steered = hidden + edit(hidden).to(hidden.dtype)
        return (steered, *output[1:]) if isinstance(output, tuple) else steered

    handle = find_blocks(model)[check_layer(model, layer)].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def resume_from_layer(model: nn.Module, layer: int, residual: Residual) -> Iterator[None]:
    """Within the context, a forward pass starts after block `layer`, with `residual` as its output.

    The pass still needs token ids of the same shape, whose embeddings are discarded. It also needs
    explicit position ids and an explicit mask, since lower layers of its cache may be empty.
    """
    blocks = list(find_blocks(model))[: check_layer(model, layer) + 1]
    is_tuple = _returns_tuples(model)

    def skip(hidden: Tensor, *_: Any, **__: Any) -> Any:
        return (hidden,) if is_tuple else hidden

    def resume(*_: Any, **__: Any) -> Any:
        return skip(residual)

    with replace_forwards([*[(block, skip) for block in blocks[:-1]], (blocks[-1], resume)]):
        yield


@contextmanager
def recompute_after_layer(model: nn.Module, layer: int) -> Iterator[None]:
    """Within the context, the blocks above `layer` keep only their input for a backward pass.

    They are computed again when their gradients are wanted. A cache must stay as it is when it is
    read, so that the second time gives the same.
    """
    blocks = list(find_blocks(model))[check_layer(model, layer) + 1 :]
    # Nothing random is in a frozen model, so the states of random numbers need not be kept.
    again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    with replace_forwards([(block, partial(again, block.forward)) for block in blocks]):
        yield


@contextmanager
def replace_forwards(forwards: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Within the context, modules have other forward functions."""
    originals = [vars(module).get("forward") for module, _ in forwards]
    for module, forward in forwards:
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for (module, _), original in zip(forwards, originals, strict=True):
            if original is None:
                del vars(module)["forward"]  # its class has it
            else:
                vars(module)["forward"] = original


_TUPLES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _returns_tuples(model: nn.Module) -> bool:
    """Whether the model's blocks return tuples, tested with one dummy pass per model."""
    if model not in _TUPLES:
        is_tuple: list[bool] = []
        handle = find_blocks(model)[0].register_forward_hook(
            lambda _module, _inputs, output: is_tuple.append(isinstance(output, tuple))
        )
        try:
            with torch.no_grad():
                model(input_ids=torch.ones(1, 1, dtype=torch.long, device=input_device(model)))
        finally:
            handle.remove()
        _TUPLES[model] = is_tuple[0]
    return _TUPLES[model]


def input_device(model: Any) -> torch.device:
    """Where a causal language model reads token ids: the device of its input embedding."""
    device: torch.device = model.get_input_embeddings().weight.device
    return device


class _StopForward(Exception):  # noqa: N818 - control flow, not an error
    """Ends a forward pass after the deepest layer that is read."""


@torch.no_grad()
def residuals(
    model: nn.Module,
    layers: Sequence[int],
    take: Callable[[Tensor], Tensor] = Tensor.detach,
    /,
    **inputs: Any,
) -> dict[int, Tensor]:
    """Residuals of `layers` for one batch. The forward pass stops after the deepest layer.

    Args:
        model: a causal language model.
        layers: 0-based blocks.
        take: called with each residual during the pass; its result is returned instead.
        inputs: arguments of the model's forward (`input_ids`, `attention_mask`, ...).

    Returns:
        For each layer a (batch, position, d_model) tensor, or the result of `take`.
    """
    deepest = find_blocks(model)[check_layer(model, max(layers))]

    def stop(*_: Any) -> None:
        raise _StopForward

    with capture_residuals(model, layers, take) as captured:
        handle = deepest.register_forward_hook(stop)
        try:
            model(**inputs, use_cache=False)
        except _StopForward:
            pass
        finally:
            handle.remove()
    return captured


def check_steerable(model: nn.Module, layer: int) -> None:
    """Check on a dummy prompt that steering changes the logits and that removing it restores them.

    Raises:
        ModelError: steering has no effect, or the logits differ after it is removed.
    """
    ids = torch.arange(1, 5, device=input_device(model))[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with add_to_residual(model, layer, _ramp):
            during = model(input_ids=ids).logits
        after = model(input_ids=ids).logits
    if not torch.equal(before, after):
        raise ModelError(f"{type(model).__name__} does not reproduce its logits on one prompt")
    if torch.equal(before, during):
        raise ModelError(
            f"adding to the output of block {layer} of {type(model).__name__} changes no logits"
        )


def _ramp(hidden: Tensor) -> Tensor:
    """A direction that varies along d_model, since LayerNorm cancels a constant one."""
    return torch.linspace(-1, 1, hidden.shape[-1], device=hidden.device).expand_as(hidden)


def residual_of(output: Any) -> Residual:
    """The residual in what a decoder block returned.

    Raises:
        ModelError: there is none.
    """
    hidden = output[0] if isinstance(output, tuple) else output
    if not isinstance(hidden, Tensor) or hidden.ndim != 3:
        raise ModelError(
            f"a decoder block returned {type(hidden).__name__}; expected a tensor of shape "
            "(batch, position, d_model)"
        )
    return hidden
