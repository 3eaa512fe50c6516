"""Row 9 of the speed table: vector training with cached states, against full forward passes."""

from collections.abc import Iterator
from dataclasses import replace
from random import Random

import torch
from torch.nn import functional

from benchmarks.pairs import Bench
from benchmarks.timing import Result, compare
from howwhen.elicit.examples import SteeredWindow, TrainingExample
from howwhen.elicit.states import PrefixCache
from howwhen.elicit.training import DataSplit, new_vectors, train_vectors
from howwhen.lm.padding import pad
from howwhen.lm.residual import add_to_residual
from howwhen.settings import ElicitSettings
from howwhen.vectors import VectorSet


def results(bench: Bench, is_small: bool) -> Iterator[Result]:
    """One sentence-sized window per text, so that both sides compute the same loss."""
    length, count, steps = (120, 64, 20) if is_small else (200, 8, 4)
    examples = make_examples(bench, length, count)
    settings = ElicitSettings(
        steps=steps, validate_every=steps, batch_size=16 if is_small else 4, seeds=(0,)
    )
    data = DataSplit(examples, examples[:2], examples[:2])
    start = new_vectors(
        bench.models.base.name,
        bench.vectors.layer,
        bench.models.base.model.config.hidden_size,
        4,
        "linear",
        settings,
        0,
    )
    states = PrefixCache(bench.models.base, bench.vectors.layer)
    cached, full = [], []
    result = compare(
        f"{bench.name}: training with full forwards over cached states",
        lambda: full.append(train_in_full(bench, start, data, settings)),
        lambda: cached.append(
            train_vectors(start, data, states, settings, 0, lambda _: None).losses[-1]
        ),
        "at least",
        3.0,
        f"{steps} steps on texts of {length} tokens, steered in the last 20",
    )
    gap = abs(full[-1] - cached[-1]) / full[-1]
    detail = f"{result.detail}; mean loss {full[-1]:.4f} and {cached[-1]:.4f} nats"
    yield replace(result, ok=result.ok and gap < 1e-3, detail=detail)


def make_examples(bench: Bench, length: int, count: int) -> list[TrainingExample]:
    """Random texts whose last 20 tokens are a window."""
    rng, size = Random(0), bench.models.base.model.config.vocab_size
    texts = [tuple(rng.randrange(3, size) for _ in range(length)) for _ in range(count)]
    return [
        TrainingExample(
            ids, (SteeredWindow(length - 21, length - 1, number % 4),), ids[length - 20 :]
        )
        for number, ids in enumerate(texts)
    ]


def train_in_full(
    bench: Bench, start: VectorSet, data: DataSplit, settings: ElicitSettings
) -> float:
    """The same steps with a hook and whole forward passes; returns the mean loss in nats."""
    vectors = start.vectors.clone().requires_grad_()
    optimizer = torch.optim.AdamW(
        [vectors], lr=settings.vector_learning_rate, weight_decay=settings.weight_decay
    )
    order, losses = Random("batches-0"), []
    for _ in range(settings.steps):
        rows = order.sample(list(data.train), settings.batch_size)
        loss = _full_loss(bench, vectors, start.layer, rows)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    return sum(losses) / len(losses)


def _full_loss(
    bench: Bench, vectors: torch.Tensor, layer: int, rows: list[TrainingExample]
) -> torch.Tensor:
    batch, (start, end, _) = pad([example.ids for example in rows]), rows[0].windows[0]
    categories = torch.tensor([example.windows[0].category for example in rows])

    def edit(residual: torch.Tensor) -> torch.Tensor:
        added = torch.zeros_like(residual)
        added[:, start:end] = vectors[categories][:, None]
        return added

    with add_to_residual(bench.models.base.model, layer, edit):
        logits = bench.models.base.model(**batch.inputs()).logits[:, start:end]
    targets = torch.tensor([example.targets for example in rows])
    losses = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(1)
    per_category = [losses[categories == k].mean() for k in range(4) if (categories == k).any()]
    return torch.stack(per_category).mean()
