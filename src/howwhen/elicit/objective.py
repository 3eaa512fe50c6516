"""The training objective of both methods, exact for the positions at which vectors will be used.

A steered window sees the *unsteered* keys and values before it and its own steered positions, just
as under the `transient` cache policy. So all windows of a batch are passed as extra queries over
their texts' cached keys and values. Nothing below the steer layer depends on the vectors: its
residual is computed once, and only the blocks above run, forward and backward.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from howwhen.elicit.examples import TrainingExample
from howwhen.lm.models import LanguageModel
from howwhen.lm.padding import additive_mask, cache_of, pad
from howwhen.lm.residual import capture_residuals, resume_from_layer
from howwhen.vectors import VectorSet

CACHE_BYTES = 4 * 2**30
"""Most memory spent on keeping states between steps."""


@dataclass(frozen=True)
class CachedStates:
    """The unsteered states that one example needs."""

    residual: Float[Tensor, "query d_model"]
    """At the steer layer, of every steered position."""
    upper: dict[int, tuple[Tensor, Tensor]]
    """Keys and values of the blocks above, (head, position, d_head), up to the last window."""

    @property
    def nbytes(self) -> int:
        """Memory taken."""
        pairs = (tensor.nbytes for pair in self.upper.values() for tensor in pair)
        return self.residual.nbytes + sum(pairs)


class PrefixCache:
    """Computes the unsteered states of every example, and keeps them within a memory budget."""

    def __init__(self, base: LanguageModel, layer: int, max_bytes: int = CACHE_BYTES) -> None:
        self.base, self.layer = base, layer
        self.kept: dict[int, tuple[TrainingExample, CachedStates]] = {}
        self.bytes_left = max_bytes

    def get(self, examples: Sequence[TrainingExample]) -> list[CachedStates]:
        """States of each example."""
        missing = [example for example in examples if id(example) not in self.kept]
        fresh = {id(example): self._compute(example) for example in missing}
        states = [fresh.get(id(example)) or self.kept[id(example)][1] for example in examples]
        for example in missing:
            needed = fresh[id(example)].nbytes
            if needed <= self.bytes_left and id(example) not in self.kept:
                self.bytes_left -= needed
                self.kept[id(example)] = (example, fresh[id(example)])
        return states

    @torch.no_grad()
    def _compute(self, example: TrainingExample) -> CachedStates:
        """States of one example.

        Never of a batch: matrix products of different sizes round differently on some processors.
        The last bits would depend on the other examples, and resuming would change them.
        """
        cache = DynamicCache()
        with capture_residuals(self.base.model, [self.layer]) as captured:
            self.base.model(
                **pad([example.ids], device=self.base.device).inputs(),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        end = max(window.start for window in example.windows)
        upper = {
            number: (
                cache.layers[number].keys[0, :, :end].clone(),
                cache.layers[number].values[0, :, :end].clone(),
            )
            for number in range(self.layer + 1, self.base.layer_count)
        }
        return CachedStates(captured[self.layer][0, list(example.positions)].float(), upper)


@dataclass(frozen=True)
class Batch:
    """Steered positions of several examples, padded on the right; padding has category -1."""

    positions: Int[Tensor, "batch query"]
    windows: Int[Tensor, "batch query"]
    """Which window of its example a query belongs to."""
    starts: Int[Tensor, "batch query"]
    """First position of that window."""
    categories: Int[Tensor, "batch query"]
    targets: Int[Tensor, "batch query"]

    @property
    def is_real(self) -> Bool[Tensor, "batch query"]:
        """Whether a cell holds a steered position."""
        return self.categories >= 0

    def allowed(self, width: int) -> Bool[Tensor, "batch query key"]:
        """What each query sees: `width` cached columns before its window, then its own window."""
        device = self.starts.device
        past = torch.arange(width, device=device) < self.starts[..., None]
        same = self.windows[:, :, None] == self.windows[:, None, :]
        causal = torch.ones(same.shape[1:], dtype=torch.bool, device=device).tril()
        real = self.is_real[:, None, :] | torch.eye(same.shape[1], dtype=torch.bool, device=device)
        return torch.cat([past, same & causal & real], dim=2)


def make_batch(
    examples: Sequence[TrainingExample], is_shared: bool, device: torch.device | None = None
) -> Batch:
    """Stack the windows of `examples`; `is_shared` maps every category to the single one, 0."""
    positions = pad([example.positions for example in examples], device=device)
    named = [[0 if is_shared else c for c in example.categories] for example in examples]
    categories = pad(named, device=device)
    windows, starts = [], []
    for example in examples:
        steered = [(n, w) for n, w in enumerate(example.windows) for _ in range(w.start, w.end)]
        windows.append([number for number, _ in steered])
        starts.append([window.start for _, window in steered])
    return Batch(
        positions=positions.ids,
        windows=pad(windows, device=device).ids,
        starts=pad(starts, device=device).ids,
        categories=categories.ids.masked_fill(positions.mask == 0, -1),
        targets=pad([example.targets for example in examples], device=device).ids,
    )


def steered_logits(
    states: PrefixCache, examples: Sequence[TrainingExample], batch: Batch, vectors: VectorSet
) -> Float[Tensor, "steered vocabulary"]:
    """Logits at every steered position, row by row, each window blind to all other steering."""
    kept, real = states.get(examples), batch.is_real
    unsteered = torch.cat([states.residual for states in kept])
    where = real.to(unsteered.device)
    residual = unsteered.new_zeros(*real.shape, unsteered.shape[1])
    residual[where] = unsteered
    delta = vectors.delta(unsteered, batch.categories[real].to(unsteered.device))
    steered = residual.index_put((where,), delta, accumulate=True)
    cache, width = _stack(kept)
    model = states.base.model
    with resume_from_layer(model, states.layer, steered.to(model.dtype)):
        output = model(
            input_ids=torch.zeros_like(batch.positions),
            position_ids=batch.positions,
            attention_mask=additive_mask(batch.allowed(width), model.dtype),
            past_key_values=cache,
            use_cache=True,
        )
    logits: Tensor = output.logits[real.to(output.logits.device)]
    return logits.float()


def _stack(kept: Sequence[CachedStates]) -> tuple[DynamicCache, int]:
    """A cache over the batch, padded on the right, and its width in positions."""
    lengths = [s.upper[min(s.upper)][0].shape[1] if s.upper else 0 for s in kept]
    width = max(lengths)

    def stacked(number: int, which: int) -> Tensor:
        return torch.stack(
            [
                functional.pad(states.upper[number][which], (0, 0, 0, width - length))
                for states, length in zip(kept, lengths, strict=True)
            ]
        )

    return cache_of({i: (stacked(i, 0), stacked(i, 1)) for i in kept[0].upper}), width


@dataclass(frozen=True)
class CategoryLosses:
    """Loss in nats, summed within each category, with the number of positions summed."""

    sums: Float[Tensor, " category"]
    counts: Int[Tensor, " category"]

    def __add__(self, other: "CategoryLosses") -> "CategoryLosses":
        return CategoryLosses(self.sums + other.sums, self.counts + other.counts)

    def mean(self) -> Float[Tensor, ""]:
        """Mean within each category that has positions, then over those categories."""
        present = self.counts > 0
        return (self.sums[present] / self.counts[present]).mean()


def token_losses(
    logits: Float[Tensor, "steered vocabulary"], batch: Batch
) -> Float[Tensor, " steered"]:
    """Cross-entropy on the tokens the thinking model wrote."""
    targets = batch.targets[batch.is_real].to(logits.device)
    return functional.cross_entropy(logits, targets, reduction="none")


def distribution_losses(
    logits: Float[Tensor, "steered vocabulary"], examples: Sequence[TrainingExample]
) -> Float[Tensor, " steered"]:
    """Cross-entropy on the thinking model's likeliest tokens, weighted by their probability."""
    soft = [example.soft for example in examples if example.soft is not None]
    ids = torch.cat([targets.ids for targets in soft]).to(logits.device)
    probs = torch.cat([targets.probs for targets in soft]).to(logits.device)
    return -(logits.log_softmax(1).gather(1, ids) * probs).sum(1)


def by_category(losses: Float[Tensor, " steered"], batch: Batch, size: int) -> CategoryLosses:
    """Losses summed within each of `size` categories."""
    categories = batch.categories[batch.is_real].to(losses.device)
    sums = losses.new_zeros(size).index_add(0, categories, losses)
    return CategoryLosses(sums, categories.bincount(minlength=size))
