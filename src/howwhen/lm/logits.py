"""Logits of chosen positions, some at a time, so that those of whole texts never exist.

With a vocabulary of 152,000 tokens, the logits of one text of 2,000 tokens take 1.2 GB in float32.
A forward pass is therefore split: first the backbone, then the output embedding for the positions
that matter. Whatever the model's own forward does with logits (scaling, soft caps) is done too.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from howwhen.errors import ModelError
from howwhen.lm.residual import input_device, replace_forwards

Head = Callable[[Tensor], Tensor]
"""From hidden states after the last norm, (position, d_model), to logits, (position, vocabulary),
in float32."""
_COPIES = 4
"""Copies of a chunk of logits that exist at a time: raw, allowed, log-probabilities, gradients."""


def split_forward(
    model: PreTrainedModel, **inputs: Any
) -> tuple[Float[Tensor, "batch position d_model"], Head]:
    """One forward pass up to the output embedding, and the rest of it as a function.

    Args:
        model: a causal language model.
        inputs: arguments of its forward.

    Raises:
        ModelError: the model has no backbone of its own.
    """
    backbone = model.get_decoder()
    if backbone is model:
        raise ModelError(
            f"{type(model).__name__} has no backbone apart from its output embedding; howwhen "
            "supports plain decoder-only models"
        )
    output = backbone(**inputs)
    kind = type(output)

    def head(hidden: Float[Tensor, "position d_model"]) -> Float[Tensor, "position vocabulary"]:
        def replay(*_: Any, **__: Any) -> Any:
            return kind(last_hidden_state=hidden[None])

        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        with replace_forwards([(backbone, replay)]):
            logits: Tensor = model(input_ids=ids).logits[0].float()
        return logits

    return output.last_hidden_state, head


def chunks(positions: int, vocabulary: int, gib: float) -> Iterator[slice]:
    """Parts of so many positions whose logits, with what is computed of them, fit in `gib` GiB.

    A part has one position at least.
    """
    size = max(1, int(gib * 2**30 / (_COPIES * 4 * vocabulary)))
    for start in range(0, positions, size):
        yield slice(start, min(start + size, positions))


@torch.no_grad()
def check_split_forward(model: PreTrainedModel) -> None:
    """Check on a dummy prompt that a forward pass in two parts gives the model's own logits.

    Raises:
        ModelError: it does not.
    """
    ids = torch.arange(1, 5, device=input_device(model))[None]
    whole = model(input_ids=ids).logits[0].float()
    hidden, head = split_forward(model, input_ids=ids)
    # A model that is spread over devices brings its logits back to the first one.
    if not torch.allclose(head(hidden[0, 2:]).to(whole.device), whole[2:], rtol=1e-2, atol=1e-2):
        raise ModelError(
            f"the logits of {type(model).__name__} are not a function of what its backbone returns "
            "at the same position; howwhen supports plain decoder-only models"
        )
