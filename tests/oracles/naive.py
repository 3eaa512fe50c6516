"""The semantics of the hybrid and of its training, written for clarity and nothing else.

No cache, no batches, no padding: one full forward pass per model, token and candidate.
"""

import torch
from torch import Tensor

from howwhen.hybrid.decoder import HybridModels
from howwhen.models import LanguageModel
from howwhen.records import VectorSet
from howwhen.residual import adding, residuals


def next_logits(model: LanguageModel, ids: list[int]) -> Tensor:
    """Logits of the token after `ids`, (vocabulary,)."""
    logits: Tensor = model.model(input_ids=torch.tensor([ids])).logits[0, -1]
    return logits


def steered_next_logits(
    model: LanguageModel, ids: list[int], vectors: VectorSet, category: int
) -> Tensor:
    """Logits of the token after `ids` when only the last position is steered, (vocabulary,)."""

    def edit(residual: Tensor) -> Tensor:
        added = torch.zeros_like(residual)
        added[:, -1] = vectors.delta(residual[:, -1], torch.tensor([category]))
        return added

    with adding(model.model, vectors.layer, edit):
        return next_logits(model, ids)


def transient_hybrid(
    models: HybridModels, question: str, vectors: VectorSet, max_new_tokens: int
) -> tuple[list[int], list[int]]:
    """Greedy hybrid under the transient policy: emitted ids, and steered category (-1) of each."""
    base_ids = models.base.prompt_ids(question)
    thinking_ids = models.thinking.prompt_ids(question)
    emitted: list[int] = []
    categories: list[int] = []
    while len(emitted) < max_new_tokens and not set(emitted) & models.end_ids:
        token = int(next_logits(models.base, base_ids + emitted).argmax())
        wanted = int(next_logits(models.thinking, thinking_ids + emitted).argmax())
        category = -1
        if token != wanted and not {token, wanted} <= models.end_ids:
            layer = models.taxonomy.layer
            everything = torch.tensor([thinking_ids + emitted])
            residual = residuals(models.thinking.model, [layer], input_ids=everything)[layer]
            category = int(models.taxonomy.categorise(residual[0, -1:])[0])
            steered = steered_next_logits(models.base, base_ids + emitted, vectors, category)
            token = int(steered.argmax())
        emitted.append(token)
        categories.append(category)
    return emitted, categories
