"""The training objective of both methods, exact for the positions at which vectors will be used.

A steered window sees the *unsteered* keys and values before it and its own steered positions, just
as under the `transient` cache policy. So all windows of a batch are passed as extra queries over
their texts' cached keys and values. Nothing below the steer layer depends on the vectors: its
residual is computed once, and only the blocks above run, forward and backward.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

from howwhen.elicit.examples import UNCOUNTED, SoftTargets, TrainingExample
from howwhen.elicit.states import PrefixCache, UnsteeredStates
from howwhen.lm.logits import Head, chunks, split_forward
from howwhen.lm.models import LanguageModel
from howwhen.lm.padding import FixedLayer, additive_mask, cache_of, fitting, pad
from howwhen.lm.residual import recompute_after_layer, resume_from_layer
from howwhen.settings import ElicitSettings
from howwhen.vectors import VectorSet


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
    """Token wanted after each; `UNCOUNTED` for none."""

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


@dataclass(frozen=True)
class Drawn:
    """An example, and the part of it whose losses count this time."""

    whole: TrainingExample
    """What states are computed of."""
    part: TrainingExample
    """Its windows are among those of the whole, or begin like them."""

    def states(self, cache: PrefixCache) -> UnsteeredStates:
        """Those of the part."""
        found = cache.get(self.whole)
        if self.part is self.whole:
            return found
        places = {position: row for row, position in enumerate(self.whole.positions)}
        rows = [places[position] for position in self.part.positions]
        upper = {
            number: (keys[:, : self.part.last_start], values[:, : self.part.last_start])
            for number, (keys, values) in found.upper.items()
        }
        return UnsteeredStates(found.residual[rows], upper)


def micro_batches(drawn: Sequence[Drawn], positions: int) -> Iterator[Sequence[Drawn]]:
    """Neighbouring examples that fit in one pass when padded, one at least."""
    sizes = [(one.part.last_start, len(one.part.targets)) for one in drawn]
    for rows in fitting(sizes, positions):
        yield drawn[rows]


def steered_hidden(
    cache: PrefixCache,
    drawn: Sequence[Drawn],
    batch: Batch,
    vectors: VectorSet,
    activations_gib: float = 2.0,
) -> tuple[Float[Tensor, "batch query d_model"], Head]:
    """Hidden states at every steered position, each window blind to all other steering.

    Args:
        cache: has the unsteered states.
        drawn: the examples.
        batch: their windows, stacked.
        vectors: what is added.
        activations_gib: blocks are computed again in the backward pass if they would keep more.

    Returns:
        What the output embedding reads, and the map from that to logits.
    """
    kept, real = [one.states(cache) for one in drawn], batch.is_real
    base, layer = cache.base, cache.layer
    unsteered = torch.cat([states.residual for states in kept]).to(base.layer_device(layer)).float()
    where = real.to(unsteered.device)
    residual = unsteered.new_zeros(*real.shape, unsteered.shape[1])
    residual[where] = unsteered
    delta = vectors.delta(unsteered, batch.categories[real].to(unsteered.device))
    steered = residual.index_put((where,), delta, accumulate=True)
    upper, width = _stack(base, kept)
    model = base.model
    needed = _activations(base, layer, real.shape, width)
    is_recomputed = torch.is_grad_enabled() and needed > activations_gib * 2**30
    with (
        resume_from_layer(model, layer, steered.to(model.dtype)),
        recompute_after_layer(model, layer) if is_recomputed else nullcontext(),
    ):
        hidden, head = split_forward(
            model,
            input_ids=torch.zeros_like(batch.positions),
            position_ids=batch.positions,
            attention_mask=additive_mask(batch.allowed(width), model.dtype),
            past_key_values=upper,
            use_cache=True,
        )
    return hidden, head


def _stack(base: LanguageModel, kept: Sequence[UnsteeredStates]) -> tuple[DynamicCache, int]:
    """A cache over the batch, padded on the right, and its width in positions."""
    lengths = [s.upper[min(s.upper)][0].shape[1] if s.upper else 0 for s in kept]
    width = max(lengths)

    def stacked(number: int, which: int) -> Tensor:
        device = base.layer_device(number)
        return torch.stack(
            [
                functional.pad(states.upper[number][which].to(device), (0, 0, 0, width - length))
                for states, length in zip(kept, lengths, strict=True)
            ]
        )

    layers = {number: (stacked(number, 0), stacked(number, 1)) for number in kept[0].upper}
    return cache_of(layers, FixedLayer), width


def training_bytes(
    base: LanguageModel, layer: int, settings: ElicitSettings, answer: int, prompt: int = 100
) -> int:
    """About how much memory a training step on whole answers takes beside the base's weights.

    Steps at single positions take less. An outline of the model suffices.

    Args:
        base: the model.
        layer: block that is steered.
        settings: the budgets.
        answer: tokens of an answer, all of them steered.
        prompt: tokens of its prompt.
    """
    config = base.model.config
    texts = max(1, settings.positions_per_pass // answer)
    positions, width = texts * answer, int(config.hidden_size)
    blocks, itemsize = base.layer_count - 1 - layer, base.model.dtype.itemsize
    blocks_kept = _activations(base, layer, (texts, answer), prompt + answer)
    if blocks_kept > settings.activations_gib * 2**30:
        blocks_kept = blocks * positions * width * itemsize + blocks_kept // max(1, blocks)
    head_width: int = getattr(config, "head_dim", None) or width // config.num_attention_heads
    heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    states: int = 2 * blocks * texts * (prompt + answer) * heads * head_width * itemsize
    residuals = 4 * positions * width * torch.float32.itemsize  # as read, steered, two gradients
    return blocks_kept + states + residuals + int(settings.logits_gib * 2**30)


def _activations(base: LanguageModel, layer: int, steered: Sequence[int], cached: int) -> int:
    """About how many bytes the blocks above a layer keep for a backward pass.

    Args:
        base: the model.
        layer: block that is steered.
        steered: shape of the batch of steered positions.
        cached: positions of each text that they attend to.
    """
    config = base.model.config
    (texts, length), width = steered, int(config.hidden_size)
    inner: int = getattr(config, "intermediate_size", None) or 4 * width
    heads = config.num_attention_heads
    head_width: int = getattr(config, "head_dim", None) or width // heads
    queries, keys = texts * length, texts * (cached + length)
    kept = queries * (8 * width + 3 * inner)
    kept += 2 * keys * heads * head_width  # keys and values, repeated for every head
    if config._attn_implementation == "eager":
        # Scores before and after softmax, which is computed in float32.
        copies = 2 + 4 / base.model.dtype.itemsize
        kept += int(copies * texts * heads * length * (cached + length))
    return int((base.layer_count - 1 - layer) * kept * base.model.dtype.itemsize)


@dataclass(frozen=True)
class CategoryLosses:
    """Loss in nats, summed within each category, with the number of positions summed."""

    sums: Float[Tensor, " category"]
    counts: Int[Tensor, " category"]

    def __add__(self, other: "CategoryLosses") -> "CategoryLosses":
        return CategoryLosses(self.sums + other.sums, self.counts + other.counts)

    def mean(self, counts: Int[Tensor, " category"] | None = None) -> Float[Tensor, ""]:
        """Mean within each category that has positions, then over those categories.

        Args:
            counts: of the whole batch, where this is a part of it; the parts' means add up.
        """
        of = self.counts if counts is None else counts.to(self.sums.device)
        present = of > 0
        return (self.sums[present] / of[present]).mean()


def counted(examples: Sequence[TrainingExample], size: int) -> Int[Tensor, " category"]:
    """Positions of each of `size` categories whose loss counts; with one category, all are its."""
    named = [
        0 if size == 1 else category
        for example in examples
        for category, target in zip(example.categories, example.targets, strict=True)
        if target != UNCOUNTED
    ]
    return torch.tensor(named, dtype=torch.long).bincount(minlength=size)


def batch_losses(
    cache: PrefixCache, drawn: Sequence[Drawn], vectors: VectorSet, settings: ElicitSettings
) -> CategoryLosses:
    """Losses of examples that fit in one pass, by category of the vectors."""
    size = len(vectors.vectors)
    batch = make_batch([one.part for one in drawn], size == 1, cache.base.device)
    hidden, head = steered_hidden(cache, drawn, batch, vectors, settings.activations_gib)
    is_counted = batch.is_real & (batch.targets != UNCOUNTED)
    wanted: Tensor | SoftTargets = batch.targets[is_counted]
    if settings.objective == "distribution":
        wanted = _join([one.part.soft for one in drawn if one.part.soft is not None])
    vocabulary = cache.base.vocabulary_size
    losses = position_losses(
        hidden.flatten(0, 1),
        head,
        is_counted.flatten(),
        wanted,
        vocabulary,
        settings.logits_gib,
        settings.logit_scale,
    )
    return by_category(losses, batch.categories[is_counted], size)


def _join(parts: Sequence[SoftTargets]) -> SoftTargets:
    ids, probs = [part.ids for part in parts], [part.probs for part in parts]
    return SoftTargets(torch.cat(ids), torch.cat(probs))


def position_losses(
    hidden: Float[Tensor, "position d_model"],
    head: Head,
    is_counted: Bool[Tensor, " position"],
    wanted: Int[Tensor, " counted"] | SoftTargets,
    vocabulary: int,
    logits_gib: float,
    logit_scale: float = 1.0,
) -> Float[Tensor, " counted"]:
    """Cross-entropy in nats on the tokens or distributions wanted, some positions at a time.

    Logits of padding are computed too: a product's last bits depend on how many rows it has.

    Args:
        hidden: what the output embedding reads.
        head: maps it to logits.
        is_counted: where the loss counts.
        wanted: after each of these positions.
        vocabulary: size of the logits of one position.
        logits_gib: most memory for logits, in GiB; where they need more, they are computed again
            in the backward pass.
        logit_scale: what logits are multiplied by.
    """
    firsts = is_counted.cumsum(0).tolist()

    def losses(hidden: Tensor, rows: slice) -> Tensor:
        logits = head(hidden)
        logits = logits[is_counted[rows].to(logits.device)]
        if logit_scale != 1:
            logits = logits * logit_scale
        own = slice(firsts[rows.start - 1] if rows.start else 0, firsts[rows.stop - 1])
        if isinstance(wanted, SoftTargets):
            return distribution_losses(logits, SoftTargets(wanted.ids[own], wanted.probs[own]))
        return functional.cross_entropy(logits, wanted[own].to(logits.device), reduction="none")

    parts = list(chunks(len(hidden), vocabulary, logits_gib))
    if len(parts) == 1:
        return losses(hidden, parts[0])
    found = [
        checkpoint(losses, hidden[rows], rows, use_reentrant=False, preserve_rng_state=False)
        for rows in parts
    ]
    return torch.cat(found)


def distribution_losses(
    logits: Float[Tensor, "steered vocabulary"], soft: SoftTargets
) -> Float[Tensor, " steered"]:
    """Cross-entropy on the thinking model's likeliest tokens, weighted by their probability."""
    ids, probs = soft.ids.to(logits.device), soft.probs.to(logits.device)
    return -(logits.log_softmax(1).gather(1, ids) * probs).sum(1)


def by_category(
    losses: Float[Tensor, " steered"], categories: Int[Tensor, " steered"], size: int
) -> CategoryLosses:
    """Losses summed within each of `size` categories."""
    categories = categories.to(losses.device)
    sums = losses.new_zeros(size).index_add(0, categories, losses)
    return CategoryLosses(sums, categories.bincount(minlength=size))
