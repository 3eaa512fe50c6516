"""The decision objective, exact for the transient cache policy.

A steered position is read by nobody but itself: it attends to the *unsteered* keys and values
before it. So each decision is passed through the base as one extra query over the cached keys and
values of its own rollout, all decisions of a batch in one pass, and no logits are computed
anywhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from howwhen.elicit.examples import DecisionExample
from howwhen.models import pad
from howwhen.records import VectorSet
from howwhen.residual import adding

KeyValues = list[tuple[Tensor, Tensor]]
"""Per layer, keys and values of one sequence: (head, position, d_head) each."""
CACHE_BYTES = 4 * 2**30
"""Most memory spent on keeping keys and values between steps."""


class VectorNet(nn.Module):
    """Trainable vectors (zero at the start) with their coefficient network."""

    def __init__(self, categories: int, width: int, hidden: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.vectors = nn.Parameter(torch.zeros(categories, width))
        self.hidden = nn.Parameter(torch.randn(hidden, width, generator=generator) / width**0.5)
        self.heads = nn.Parameter(
            torch.randn(categories, hidden, generator=generator) / hidden**0.5
        )
        self.heads_bias = nn.Parameter(torch.zeros(categories))

    def vector_set(self, model: str, layer: int) -> VectorSet:
        """The current values as a record that shares this module's gradients."""
        return VectorSet(model, layer, self.vectors, self.hidden, self.heads, self.heads_bias)


@dataclass(frozen=True)
class DecisionBatch:
    """Decisions of several rollouts, padded on the right; padding has category -1."""

    ids: Int[Tensor, "batch decision"]
    """Token at each steered position."""
    positions: Int[Tensor, "batch decision"]
    categories: Int[Tensor, "batch decision"]
    targets: Int[Tensor, "batch decision"]

    @property
    def is_real(self) -> Tensor:
        """Whether a cell holds a decision, (batch, decision)."""
        return self.categories >= 0


def make_batch(examples: Sequence[DecisionExample], is_shared: bool) -> DecisionBatch:
    """Stack the decisions of `examples`; `is_shared` maps every category to the single one, 0."""
    padded = pad([example.positions for example in examples])
    categories = pad([[0 if is_shared else c for c in one.categories] for one in examples])
    return DecisionBatch(
        ids=pad([[one.ids[p] for p in one.positions] for one in examples]).ids,
        positions=padded.ids,
        categories=categories.ids.masked_fill(padded.mask == 0, -1),
        targets=pad([one.targets for one in examples]).ids,
    )


class UnsteeredCache:
    """Keys and values of the base over each rollout, computed once and kept within a budget."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.kept: dict[tuple[int, ...], KeyValues] = {}
        self.bytes_left = CACHE_BYTES

    def get(self, examples: Sequence[DecisionExample]) -> tuple[DynamicCache, int]:
        """A fresh cache over the batch, padded on the right, and its width in positions."""
        missing = [one.ids for one in examples if one.ids not in self.kept]
        fresh = dict(zip(missing, self._compute(missing), strict=True)) if missing else {}
        rows = [self.kept.get(one.ids) or fresh[one.ids] for one in examples]
        self._keep(fresh)
        width = max(len(one.ids) for one in examples)
        cache = DynamicCache()
        for layer in range(len(rows[0])):
            keys, values = (
                torch.stack(
                    [
                        functional.pad(row[layer][i], (0, 0, 0, width - row[layer][i].shape[1]))
                        for row in rows
                    ]
                )
                for i in (0, 1)
            )
            cache.update(keys, values, layer)
        return cache, width

    @torch.no_grad()
    def _compute(self, sequences: Sequence[tuple[int, ...]]) -> list[KeyValues]:
        batch = pad(sequences)
        cache = DynamicCache()
        inputs = batch.to(self.model.device).inputs()
        self.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return [
            [
                (one.keys[row, :, :end].clone(), one.values[row, :, :end].clone())
                for one in cache.layers
            ]
            for row, end in enumerate(len(sequence) for sequence in sequences)
        ]

    def _keep(self, fresh: dict[tuple[int, ...], KeyValues]) -> None:
        for ids, layers in fresh.items():
            needed = sum(keys.nbytes + values.nbytes for keys, values in layers)
            if needed <= self.bytes_left:
                self.bytes_left -= needed
                self.kept[ids] = layers


def steered_logits(
    cache: UnsteeredCache,
    examples: Sequence[DecisionExample],
    batch: DecisionBatch,
    vectors: VectorSet,
) -> Float[Tensor, "batch decision vocabulary"]:
    """Logits at every decision with its steering in place, each blind to all other steering."""
    past, width = cache.get(examples)
    device = cache.model.device
    real, categories = batch.is_real.to(device), batch.categories.to(device)

    def edit(residual: Tensor) -> Tensor:
        chosen = residual[real].float()
        delta = vectors.delta(chosen, categories[real])
        return torch.zeros_like(residual, dtype=torch.float32).index_put((real,), delta)

    with adding(cache.model, vectors.layer, edit):
        output = cache.model(
            input_ids=batch.ids.to(device),
            position_ids=batch.positions.to(device),
            attention_mask=_mask(batch, width, cache.model.dtype).to(device),
            past_key_values=past,
            use_cache=True,
        )
    logits: Tensor = output.logits
    return logits


def _mask(
    batch: DecisionBatch, width: int, dtype: torch.dtype
) -> Float[Tensor, "batch 1 decision key"]:
    """Additive mask: a decision sees what lies before it in its rollout, and itself."""
    count = batch.positions.shape[1]
    before = torch.arange(width) < batch.positions[..., None]
    itself = torch.eye(count, dtype=torch.bool).expand(len(before), -1, -1)
    seen = torch.cat([before, itself], dim=2)
    blocked = torch.finfo(dtype).min
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, blocked)[:, None]


@dataclass(frozen=True)
class CategoryLosses:
    """Cross-entropy in nats, summed within each category, with the number of decisions summed."""

    sums: Float[Tensor, " category"]
    counts: Int[Tensor, " category"]

    def __add__(self, other: "CategoryLosses") -> "CategoryLosses":
        return CategoryLosses(self.sums + other.sums, self.counts + other.counts)

    def mean(self) -> Float[Tensor, ""]:
        """Mean within each category that has decisions, then over those categories."""
        present = self.counts > 0
        return (self.sums[present] / self.counts[present]).mean()


def category_losses(
    logits: Float[Tensor, "batch decision vocabulary"], batch: DecisionBatch, size: int
) -> CategoryLosses:
    """Cross-entropy on the tokens the thinking model wrote, by category."""
    real = batch.is_real.to(logits.device)
    losses = functional.cross_entropy(
        logits[real].float(), batch.targets.to(logits.device)[real], reduction="none"
    )
    categories = batch.categories.to(logits.device)[real]
    sums = losses.new_zeros(size).index_add(0, categories, losses)
    return CategoryLosses(sums, categories.bincount(minlength=size))
