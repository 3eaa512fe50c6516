"""The loss of smol's trainings, in the data type that the processor multiplies fastest."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from howwhen.zoo.documents import IGNORED, Document, pad_documents

LENGTH_MULTIPLE = 32
_SCORED_MULTIPLE = 256
"""Rounding shapes up makes them recur, which keeps memory from fragmenting."""


def product_type() -> torch.dtype:
    """Data type of matrix products: bfloat16, or float32 on processors without AVX-512.

    Without AVX-512, bfloat16 products are emulated and a hundred times slower than float32.
    """
    is_fast = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.bfloat16 if is_fast else torch.float32


def answer_loss(model: Any, documents: Sequence[Document]) -> Tensor:
    """Mean cross-entropy in nats over the scored tokens; matrix products in `product_type`.

    Logits are computed at scored positions only.
    """
    batch, targets = pad_documents(documents, multiple=LENGTH_MULTIPLE)
    targets = targets[:, 1:].flatten()
    scored = (targets != IGNORED).nonzero()[:, 0]
    scored = functional.pad(scored, (0, -len(scored) % _SCORED_MULTIPLE))  # position 0 is ignored
    inner = model.get_base_model()
    product = product_type()
    with torch.autocast("cpu", torch.bfloat16, enabled=product is torch.bfloat16):
        hidden = inner.model(**batch.inputs(), use_cache=False).last_hidden_state
        logits = inner.lm_head(hidden[:, :-1].flatten(0, 1)[scored])
    return functional.cross_entropy(logits.float(), targets[scored], ignore_index=IGNORED)
