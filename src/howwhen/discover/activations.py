"""Sentence activations: the mean residual over a sentence's tokens, several layers at once."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from howwhen.models import LanguageModel, pad
from howwhen.records import Rollout, stack_rows
from howwhen.residual import residuals

Means = dict[int, Float[Tensor, "sentence d_model"]]


@torch.no_grad()
def sentence_means(
    reader: LanguageModel,
    rollouts: Sequence[Rollout],
    prompts: Sequence[Sequence[int]],
    layers: Sequence[int],
    batch_size: int,
) -> Means:
    """Read every rollout once and average the residuals within its sentences.

    Args:
        reader: the model whose residuals are read; by default the thinking model itself.
        rollouts: answers whose spans are averaged over.
        prompts: token ids of each rollout's prompt.
        layers: 0-based blocks.
        batch_size: rollouts read at a time.

    Returns:
        For each layer the raw (not normalised) means, in order of rollouts and their spans.
    """
    rows: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    pairs = list(zip(rollouts, prompts, strict=True))
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        tokens = pad([[*prompt, *rollout.ids] for rollout, prompt in batch])
        seen = residuals(reader.model, layers, **tokens.to(reader.model.device).inputs())
        owner = _owners(batch, tokens.ids.shape[1])
        for layer in layers:
            rows[layer].append(_means(seen[layer], owner))
    return {layer: stack_rows(parts) for layer, parts in rows.items()}


def _owners(
    batch: Sequence[tuple[Rollout, Sequence[int]]], width: int
) -> Int[Tensor, "batch position"]:
    """Number of the sentence each position belongs to, counted over the batch; -1 for none."""
    owner = torch.full((len(batch), width), -1)
    number = 0
    for row, (rollout, prompt) in enumerate(batch):
        for span in rollout.spans:
            owner[row, len(prompt) + span.start_token : len(prompt) + span.end_token] = number
            number += 1
    return owner


def _means(
    residual: Float[Tensor, "batch position d_model"], owner: Int[Tensor, "batch position"]
) -> Float[Tensor, "sentence d_model"]:
    inside = (owner >= 0).to(residual.device)
    numbers = owner.to(residual.device)[inside]
    count = int(owner.max()) + 1
    sums = residual.new_zeros(count, residual.shape[-1]).index_add(0, numbers, residual[inside])
    return sums / numbers.bincount(minlength=count)[:, None]
