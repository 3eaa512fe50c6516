"""Training decision vectors in the frozen base model (paper, second version)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from random import Random

import torch

from howwhen.elicit.examples import DecisionExample
from howwhen.elicit.objective import (
    CategoryLosses,
    UnsteeredCache,
    VectorNet,
    category_losses,
    make_batch,
    steered_logits,
)
from howwhen.errors import SteeringError
from howwhen.models import LanguageModel
from howwhen.records import VectorSet
from howwhen.settings import ElicitSettings

Report = Callable[[int], None]
"""Told the number of steps taken."""


@dataclass(frozen=True)
class Lesson:
    """What one training learns from, and with how many categories."""

    train: Sequence[DecisionExample]
    validation: Sequence[DecisionExample]
    selection: Sequence[DecisionExample]
    size: int
    """Number of categories; 1 trains a single shared vector on the same decisions."""


@dataclass(frozen=True)
class Training:
    """One seed's result."""

    seed: int
    vectors: VectorSet
    steps: int
    """Steps taken before the training stopped."""
    validation_losses: tuple[float, ...]
    """Loss in nats at every look, the first before any step."""
    selection_loss: float
    """Loss in nats on the selection set, at the best look."""


def split_lesson(
    train: Sequence[DecisionExample],
    selection: Sequence[DecisionExample],
    size: int,
    settings: ElicitSettings,
) -> Lesson:
    """Leave out rollouts without decisions and set some aside for validation.

    Raises:
        SteeringError: too few rollouts with a decision to train and validate on.
    """
    useful = [example for example in train if example.positions]
    held_out = max(1, round(len(useful) * settings.validation_fraction))
    if len(useful) - held_out < 1:
        raise SteeringError(
            f"only {len(useful)} of {len(train)} training rollouts hold a decision (a token where "
            "the base would have gone elsewhere); at least 2 are needed. Collect more problems "
            "(--collect.limit), or ask whether these two models differ at all"
        )
    Random(f"validation-{settings.seeds[0]}").shuffle(useful)
    chosen = [example for example in selection if example.positions]
    validation, rest = useful[:held_out], useful[held_out:]
    return Lesson(rest, validation, chosen or validation, size)


def train_vectors(
    base: LanguageModel,
    lesson: Lesson,
    layer: int,
    seed: int,
    settings: ElicitSettings,
    cache: UnsteeredCache,
    report: Report,
) -> Training:
    """Train one seed until its validation loss stops falling; the best look is kept."""
    net = VectorNet(lesson.size, base.model.config.hidden_size, settings.hidden, seed)
    optimizer = torch.optim.AdamW(
        [
            {"params": [net.vectors], "lr": settings.vector_learning_rate},
            {
                "params": [net.hidden, net.heads, net.heads_bias],
                "lr": settings.network_learning_rate,
            },
        ],
        weight_decay=settings.weight_decay,
    )
    course = _Course(base.name, layer, lesson, cache, settings)
    best = _frozen(net, base.name, layer)
    losses, best_look, step = [course.loss(best, lesson.validation)], 0, 0
    order = Random(f"batches-{seed}")
    for step in range(1, settings.steps + 1):
        course.step(net, optimizer, order)
        if step % settings.validate_every and step != settings.steps:
            continue
        current = _frozen(net, base.name, layer)
        losses.append(course.loss(current, lesson.validation))
        report(step)
        if losses[-1] < losses[best_look]:
            best, best_look = current, len(losses) - 1
        elif len(losses) - 1 - best_look >= settings.patience:
            break
    return Training(seed, best, step, tuple(losses), course.loss(best, lesson.selection))


def choose_training(trainings: Sequence[Training]) -> Training:
    """The seed with the lowest selection loss."""
    return min(trainings, key=lambda training: training.selection_loss)


@dataclass(frozen=True)
class _Course:
    """One training's fixed surroundings: step and loss."""

    model: str
    layer: int
    lesson: Lesson
    cache: UnsteeredCache
    settings: ElicitSettings

    def step(self, net: VectorNet, optimizer: torch.optim.Optimizer, order: Random) -> None:
        count = min(self.settings.batch_size, len(self.lesson.train))
        examples = order.sample(list(self.lesson.train), count)
        loss = self._losses(net.vector_set(self.model, self.layer), examples).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    @torch.no_grad()
    def loss(self, vectors: VectorSet, examples: Sequence[DecisionExample]) -> float:
        """Loss over all of `examples`: every category weighs the same, whatever the batches."""
        size = self.settings.batch_size
        batches = (examples[start : start + size] for start in range(0, len(examples), size))
        return float(reduce(add, (self._losses(vectors, rows) for rows in batches)).mean())

    def _losses(self, vectors: VectorSet, examples: Sequence[DecisionExample]) -> CategoryLosses:
        batch = make_batch(examples, self.lesson.size == 1)
        logits = steered_logits(self.cache, examples, batch, vectors)
        return category_losses(logits, batch, self.lesson.size)


def _frozen(net: VectorNet, model: str, layer: int) -> VectorSet:
    live = net.vector_set(model, layer)
    return replace(
        live,
        vectors=live.vectors.detach().clone(),
        hidden=live.hidden.detach().clone(),
        heads=live.heads.detach().clone(),
        heads_bias=live.heads_bias.detach().clone(),
    )
