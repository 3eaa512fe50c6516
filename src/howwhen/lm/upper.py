"""The upper blocks of a model as a model of its own, entered with residuals.

Nothing is copied but the list of blocks: weights, norms and the output embedding are the model's
own, and so is a cache that is given, since every block knows its number.
"""

import copy
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from howwhen.lm.residual import capture_residuals, check_layer, find_blocks, input_device

_UPPER: WeakKeyDictionary[nn.Module, dict[int, PreTrainedModel | None]] = WeakKeyDictionary()


def upper_blocks(model: PreTrainedModel, layer: int) -> PreTrainedModel | None:
    """A model that goes from the output of block `layer` (as `inputs_embeds`) to the logits.

    It is None where a model does more with its embeddings or blocks than pass them on, such as
    scaling, so that its logits would differ. Each model is tried once, on a dummy prompt.
    """
    known = _UPPER.setdefault(model, {})
    if layer not in known:
        known[layer] = _try(model, check_layer(model, layer))
    return known[layer]


@torch.no_grad()
def _try(model: PreTrainedModel, layer: int) -> PreTrainedModel | None:
    upper = _make(model, layer)
    if upper is None:
        return None
    ids = torch.arange(1, 6, device=input_device(model))[None]
    with capture_residuals(model, [layer]) as read:
        expected: Tensor = model(input_ids=ids, use_cache=False).logits
    try:
        found: Tensor = upper(inputs_embeds=read[layer], use_cache=False).logits
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return None  # it cannot do without its embeddings
    return upper if torch.equal(found.to(expected.device), expected) else None


def _make(model: PreTrainedModel, layer: int) -> PreTrainedModel | None:
    """A shallow copy of every module around the blocks, with the lower blocks left out."""
    blocks = find_blocks(model)
    path = next(name for name, module in model.named_modules() if module is blocks).split(".")
    modules: list[nn.Module] = [model]
    for name in path[:-1]:
        modules.append(getattr(modules[-1], name))
    if any("forward" in vars(module) for module in modules):
        return None  # a forward function that is bound to the original
    kept: nn.Module = nn.ModuleList(list(blocks)[layer + 1 :])
    for module, name in zip(reversed(modules), reversed(path), strict=True):
        twin = copy.copy(module)
        twin._modules = {**module._modules, name: kept}
        kept = twin
    return kept
