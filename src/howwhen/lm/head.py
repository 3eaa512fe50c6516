"""The output embedding in float32, where a model computes in half precision.

Logits near 20 are 0.125 apart in bfloat16, so that the first two choices often tie exactly, and a
tie broken differently by two models would look like a disagreement. The factors are half precision,
but their sums need not be.
"""

from types import MethodType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel


def multiply_in_float32(model: PreTrainedModel) -> None:
    """Give a model of half precision logits in float32. A quantised head is left as it is."""
    head: Any = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.weight.dtype == torch.float32:
        return
    # accelerate calls the original forward under this name, after moving what it gets.
    name = "_old_forward" if hasattr(head, "_hf_hook") else "forward"
    setattr(head, name, MethodType(_multiply, head))


def _multiply(head: nn.Linear, hidden: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n rows"]:
    if hidden.device.type == "cuda":
        product: Tensor = _WideProduct.apply(hidden, head.weight)  # type: ignore[no-untyped-call]
    else:
        product = hidden.float() @ _widened(head).T
    return product if head.bias is None else product + head.bias.float()


def _widened(head: Any) -> Float[Tensor, "rows d_model"]:
    """The weight in float32, kept: on a CPU it takes longer to convert it than to multiply."""
    state = head.weight.data_ptr(), head.weight._version
    if getattr(head, "_wide_state", None) != state:
        head._wide_weight, head._wide_state = head.weight.detach().float(), state
    wide: Tensor = head._wide_weight
    return wide


class _WideProduct(torch.autograd.Function):
    """Products of half precision with float32 sums; the library's kernel has no gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        """Multiply by the transposed weight."""
        ctx.save_for_backward(weight)
        flat = hidden.reshape(-1, hidden.shape[-1])
        wide: Tensor = torch.mm(flat, weight.T, out_dtype=torch.float32)
        return wide.view(*hidden.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient of the hidden states; the weight is frozen."""
        (weight,) = ctx.saved_tensors
        return gradient.to(weight.dtype) @ weight, None
