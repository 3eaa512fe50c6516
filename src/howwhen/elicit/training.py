"""Training steering vectors in the frozen base model: one loop for every method and form.

All categories train in one batch. The loss is the mean within each category, then over categories.
Vectors start at zero, and those of the best evaluation on a validation set are kept.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from functools import reduce
from operator import add
from random import Random
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from howwhen.elicit.examples import TrainingExample
from howwhen.elicit.objective import (
    CategoryLosses,
    PrefixCache,
    by_category,
    distribution_losses,
    make_batch,
    steered_logits,
    token_losses,
)
from howwhen.elicit.report import SeedTraining
from howwhen.errors import SteeringError
from howwhen.settings import ElicitSettings, Form
from howwhen.vectors import LinearCoefficient, LowRank, Network, VectorSet

Report = Callable[[int], None]
"""Called with the number of steps taken."""


@dataclass(frozen=True)
class DataSplit:
    """What one training learns from, and with how many categories."""

    train: Sequence[TrainingExample]
    validation: Sequence[TrainingExample]
    selection: Sequence[TrainingExample]
    size: int
    """Number of categories; 1 trains a single shared vector on the same positions."""


@dataclass(frozen=True)
class Training(SeedTraining):
    """One seed's result."""

    vectors: VectorSet
    """At the best evaluation."""

    @property
    def notes(self) -> SeedTraining:
        """How it went, without the vectors."""
        names = [field.name for field in fields(SeedTraining)]
        return SeedTraining(**{name: getattr(self, name) for name in names})


@runtime_checkable
class Fit(Protocol):
    """Trains every seed on some data, keeps all of them, and returns the best vectors."""

    def __call__(
        self,
        name: str,
        data: DataSplit,
        /,
        bias: Tensor | None = None,
        form: Form | None = None,
    ) -> VectorSet:
        """Train.

        Args:
            name: of the vectors.
            data: what they are trained on.
            bias: a vector that is always added, as it is.
            form: of the vectors; that of the settings by default.
        """


def split_examples(
    train: Sequence[TrainingExample],
    selection: Sequence[TrainingExample],
    size: int,
    settings: ElicitSettings,
) -> DataSplit:
    """Leave out texts without windows and set some questions aside for validation.

    Where no selection text has a window, validation selects.

    Raises:
        SteeringError: too few texts with a window to train and validate on.
    """
    useful: dict[tuple[int, ...], list[TrainingExample]] = {}
    for example in train:
        if example.windows:
            useful.setdefault(example.ids[: example.prompt] or example.ids, []).append(example)
    held_out = max(1, round(len(useful) * settings.validation_fraction))
    if len(useful) - held_out < 1:
        raise SteeringError(
            f"only {len(useful)} questions of {len(train)} training rollouts hold anything to "
            "steer (for `decision` a token where the base would have gone elsewhere, for `span` a "
            "sentence); at least 2 are needed. Collect more problems (--collect.limit), or ask "
            "whether these two models differ at all"
        )
    groups = list(useful.values())
    Random(f"validation-{settings.seeds[0]}").shuffle(groups)
    chosen = [example for example in selection if example.windows]
    validation, rest = (
        [example for group in part for example in group]
        for part in (groups[:held_out], groups[held_out:])
    )
    return DataSplit(rest, validation, chosen or validation, size)


def new_vectors(
    model: str, layer: int, width: int, size: int, form: Form, settings: ElicitSettings, seed: int
) -> VectorSet:
    """Vectors of zero with the form's own parameters at their start."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        scale: float = shape[-1] ** -0.5
        return torch.randn(*shape, generator=generator) * scale

    vectors = VectorSet(model, layer, torch.zeros(size, width))
    tensors = vectors.tensors()
    match form:
        case "linear":
            return vectors
        case "network":
            made: Network | LinearCoefficient | LowRank = Network(
                noise(settings.hidden, width), noise(size, settings.hidden), torch.zeros(size)
            )
        case "gated":
            made = LinearCoefficient(torch.zeros(size, width), torch.zeros(size))
        case "low-rank":
            shape = (size, settings.rank, width)
            made = LowRank(noise(*shape), torch.zeros(shape))
    return VectorSet(model, layer, tensors["vectors"], modulation=made)


def train_vectors(
    start: VectorSet,
    data: DataSplit,
    states: PrefixCache,
    settings: ElicitSettings,
    seed: int,
    report: Report,
) -> Training:
    """Train one seed until its validation loss stops falling; the best evaluation is kept.

    Args:
        start: where to start from; its bias vector, if any, stays as it is.
        data: examples.
        states: the frozen base, at the layer of `start`.
        settings: rates, sizes, patience.
        seed: of the order of batches.
        report: called with the steps taken.
    """
    trainer = _Trainer(start, data, states, settings)
    optimizer = trainer.optimizer()
    best, best_evaluation = trainer.frozen(), 0
    evaluations, losses, recent = [trainer.loss(best, data.validation)], [], []
    order, step = Random(f"batches-{seed}"), 0
    for step in range(1, settings.steps + 1):
        recent.append(trainer.step(optimizer, order))
        if step % settings.validate_every and step != settings.steps:
            continue
        losses.append(sum(recent) / len(recent))
        recent.clear()
        current = trainer.frozen()
        evaluations.append(trainer.loss(current, data.validation))
        report(step)
        if evaluations[-1] < evaluations[best_evaluation]:
            best, best_evaluation = current, len(evaluations) - 1
        elif len(evaluations) - 1 - best_evaluation >= settings.patience:
            break
    selection = trainer.loss(best, data.selection)
    vectors = best.to(torch.device("cpu"))
    return Training(seed, step, tuple(losses), tuple(evaluations), selection, vectors)


def train_seeds(
    start: Callable[[int], VectorSet],
    data: DataSplit,
    states: PrefixCache,
    settings: ElicitSettings,
    *,
    load: Callable[[int], Training | None],
    save: Callable[[Training], None],
    progress: Callable[[int], AbstractContextManager[Report]],
) -> list[Training]:
    """Train with every seed.

    Args:
        start: where a seed starts from.
        data: examples.
        states: the frozen base, at the layer of the vectors.
        settings: seeds, rates, sizes, patience.
        load: returns a seed that was finished before, or None.
        save: called with every seed that was trained now.
        progress: opened around a seed's training; what it yields is called with the steps taken.
    """
    trainings = []
    for seed in settings.seeds:
        training = load(seed)
        if training is None:
            with progress(seed) as report:
                training = train_vectors(start(seed), data, states, settings, seed, report)
            save(training)
        trainings.append(training)
    return trainings


def choose_training(trainings: Sequence[Training]) -> Training:
    """The seed with the lowest selection loss."""
    return min(trainings, key=lambda training: training.selection_loss)


class _Trainer:
    """One training's parameters and fixed surroundings: step and loss."""

    def __init__(
        self,
        start: VectorSet,
        data: DataSplit,
        states: PrefixCache,
        settings: ElicitSettings,
    ) -> None:
        self.data, self.states, self.settings = data, states, settings
        self.start = start.to(states.base.layer_device(states.layer))
        self.parameters = {
            name: tensor.clone().requires_grad_()
            for name, tensor in self.start.tensors().items()
            if name != "bias"
        }

    @property
    def live(self) -> VectorSet:
        """The current values, with gradients."""
        return self.start.with_tensors({**self.start.tensors(), **self.parameters})

    def frozen(self) -> VectorSet:
        """A copy of the current values."""
        copies = {name: tensor.detach().clone() for name, tensor in self.parameters.items()}
        return self.start.with_tensors({**self.start.tensors(), **copies})

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW, with a separate rate for the vectors."""
        others = [tensor for name, tensor in self.parameters.items() if name != "vectors"]
        groups = [
            {"params": [self.parameters["vectors"]], "lr": self.settings.vector_learning_rate},
            {"params": others, "lr": self.settings.network_learning_rate},
        ]
        used = [group for group in groups if group["params"]]
        return torch.optim.AdamW(used, weight_decay=self.settings.weight_decay)

    def step(self, optimizer: torch.optim.Optimizer, order: Random) -> float:
        """One batch; returns its loss in nats."""
        count = min(self.settings.batch_size, len(self.data.train))
        loss = self._losses(self.live, order.sample(list(self.data.train), count)).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def loss(self, vectors: VectorSet, examples: Sequence[TrainingExample]) -> float:
        """Loss over all of `examples`: every category weighs the same, whatever the batches."""
        size = self.settings.batch_size
        batches = (examples[start : start + size] for start in range(0, len(examples), size))
        return float(reduce(add, (self._losses(vectors, rows) for rows in batches)).mean())

    def _losses(self, vectors: VectorSet, examples: Sequence[TrainingExample]) -> CategoryLosses:
        batch = make_batch(examples, self.data.size == 1, self.states.base.device)
        logits = steered_logits(self.states, examples, batch, vectors)
        if self.settings.objective == "distribution":
            losses = distribution_losses(logits, examples)
        else:
            losses = token_losses(logits, batch)
        return by_category(losses, batch, self.data.size)
