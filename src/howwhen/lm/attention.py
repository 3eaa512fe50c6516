"""Attention over a cache with a mask, without copies of keys and values.

Where several query heads share a key head, the library copies keys and values once per query head
as soon as there is a mask and more than one new token. Here the heads of a group are further rows
of the query instead.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from howwhen.lm.models import LanguageModel
from howwhen.lm.padding import additive_mask

GROUPED = "howwhen_grouped"
"""Name of this attention in the library."""


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention with the signature that the library calls.

    Args:
        module: the caller.
        query: (batch, head, query, d_head).
        key: (batch, key head, column, d_head).
        value: of the same shape.
        attention_mask: (batch, 1, group * query, column), as `fitted_mask` makes it, or without
            the groups, as models make it. Without one, a single query looks at everything and
            several are a whole text.
        dropout: of a model in training, which there is none here.
        scaling: of the scores.
        kwargs: whatever else the model passes on.
    """
    batch, heads, count, width = query.shape
    if attention_mask is None and count > 1:
        attended: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, None, dropout, scaling, **kwargs
        )
        return attended
    grouped = query.reshape(batch, key.shape[1], -1, width)
    if attention_mask is not None and attention_mask.shape[2] != grouped.shape[2]:
        attention_mask = attention_mask.repeat(1, 1, grouped.shape[2] // count, 1)  # the model's
    output = functional.scaled_dot_product_attention(
        grouped, key, value, attn_mask=attention_mask, scale=scaling
    )
    return output.view(batch, heads, count, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


_CONFIGS: WeakKeyDictionary[torch.nn.Module, Any] = WeakKeyDictionary()
"""By model, since looking one up takes longer than some operations."""


def _config(model: LanguageModel) -> Any:
    if model.model not in _CONFIGS:
        _CONFIGS[model.model] = model.model.config.get_text_config()
    return _CONFIGS[model.model]


def _is_grouped(model: LanguageModel) -> bool:
    return _config(model)._attn_implementation in ("sdpa", GROUPED)


@contextmanager
def attention_of(model: LanguageModel) -> Iterator[None]:
    """Within the context, a model that uses `sdpa` attends in groups; any other does as always."""
    names = vars(_config(model))
    if names["_attn_implementation_internal"] != "sdpa":
        yield
        return
    names["_attn_implementation_internal"] = GROUPED
    try:
        yield
    finally:
        names["_attn_implementation_internal"] = "sdpa"


def fitted_mask(allowed: Bool[Tensor, "batch query key"], model: LanguageModel) -> Tensor:
    """A mask in the form that a model's attention takes within `attention_of`.

    Args:
        allowed: what each query may look at, itself at least.
        model: the model.
    """
    if not _is_grouped(model):
        return additive_mask(allowed, model.model.dtype)
    config = _config(model)
    heads = config.num_attention_heads
    groups = heads // (getattr(config, "num_key_value_heads", None) or heads)
    return allowed.repeat(1, groups, 1)[:, None]
