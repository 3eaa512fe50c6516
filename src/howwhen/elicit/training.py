"""Training steering vectors in the frozen base model: one loop for every method and form.

All categories train in one batch. The loss is the mean within each category, then over categories.
Vectors start at zero, and those of the best evaluation on a validation set are kept. All seeds, and
the vectors per category together with the shared one, advance side by side, since they need the
same states of the base.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from random import Random
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from howwhen.elicit.examples import TrainingExample
from howwhen.elicit.objective import (
    CategoryLosses,
    Drawn,
    batch_losses,
    counted,
    micro_batches,
)
from howwhen.elicit.report import SeedTraining
from howwhen.elicit.states import Chapter, PrefixCache
from howwhen.errors import SteeringError
from howwhen.settings import ElicitSettings, Form
from howwhen.vectors import LinearCoefficient, LowRank, Network, VectorSet

Report = Callable[[int], None]
"""Called with the number of steps taken."""


@dataclass(frozen=True)
class DataSplit:
    """What a training learns from."""

    train: Sequence[TrainingExample]
    validation: Sequence[TrainingExample]
    selection: Sequence[TrainingExample]


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
    """Trains vectors on some data with every seed, keeps all of them, and returns the best."""

    def __call__(
        self,
        data: DataSplit,
        sizes: Mapping[str, int],
        /,
        bias: Tensor | None = None,
        form: Form | None = None,
    ) -> Mapping[str, VectorSet]:
        """Train.

        Args:
            data: what they are trained on.
            sizes: number of categories of each set of vectors, by its name; a single category
                means one vector for all positions.
            bias: a vector that is always added, as it is.
            form: of the vectors; that of the settings by default.
        """


def split_examples(
    train: Sequence[TrainingExample],
    selection: Sequence[TrainingExample],
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
    held_out = min(held_out, settings.validation_answers)
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
    return DataSplit(rest, validation, chosen or validation)


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
    trainer = Trainer("vectors", start, seed, states, settings)
    train_together([trainer], data, states, settings, report)
    return trainer.result()


def train_together(
    trainers: Sequence["Trainer"],
    data: DataSplit,
    states: PrefixCache,
    settings: ElicitSettings,
    report: Report,
    save: Callable[[int], None] = lambda step: None,
    done: int = 0,
) -> None:
    """Let all trainers take their steps, until each has stopped improving.

    Args:
        trainers: new, or as they were when `save` was called.
        data: what all of them learn from.
        states: the frozen base, at the layer of the vectors.
        settings: rates, sizes, patience.
        report: called with the steps taken.
        save: called with the steps taken after every evaluation.
        done: steps taken already.
    """
    others = [*data.validation, *data.selection]
    chapters = states.chapters(data.train, others, settings.batch_size, settings.seeds[0])
    entered: Chapter | None = None
    for chapter, start, end in _stretches(chapters, settings):
        running = [trainer for trainer in trainers if trainer.is_running]
        if not running:
            break
        if end <= done:
            continue
        if chapter is not entered:
            states.enter(chapter)
            entered = chapter
        if not start:
            _look(running, data.validation, states, settings)
        _advance(running, chapter, end - start, states)
        if end % settings.validate_every and end != settings.steps:
            continue
        _look(running, data.validation, states, settings)
        save(end)
        report(end)
    best = [trainer.best for trainer in trainers]
    for trainer, loss in zip(
        trainers, _evaluate(best, data.selection, states, settings), strict=True
    ):
        trainer.selection_loss = loss


def _stretches(
    chapters: Iterable[Chapter], settings: ElicitSettings
) -> Iterator[tuple[Chapter, int, int]]:
    """Steps between two evaluations in the same chapter: half-open, from 0."""
    step = 0
    for chapter in chapters:
        last = settings.steps if chapter.steps is None else step + chapter.steps
        while step < min(last, settings.steps):
            look = step - step % settings.validate_every + settings.validate_every
            end = min(last, look, settings.steps)
            yield chapter, step, end
            step = end
        if step == settings.steps:
            return


def _advance(
    trainers: Sequence["Trainer"], chapter: Chapter, steps: int, states: PrefixCache
) -> None:
    """Let every trainer take some steps in a chapter."""
    if not chapter.is_one_batch:
        for trainer in trainers:
            for _ in range(steps):
                trainer.begin(trainer.pick(chapter.examples))
                trainer.accumulate(range(trainer.batch_count))
                trainer.apply()
        return
    for trainer in trainers:
        trainer.begin(chapter.examples)
    first = 0
    for part in states.groups(chapter.examples):
        for trainer in trainers:
            trainer.accumulate(range(first, first + len(part)))
        first += len(part)
    for trainer in trainers:
        trainer.apply()


def _look(
    trainers: Sequence["Trainer"],
    validation: Sequence[TrainingExample],
    states: PrefixCache,
    settings: ElicitSettings,
) -> None:
    """Evaluate every trainer as it is now."""
    current = [trainer.frozen() for trainer in trainers]
    losses = _evaluate(current, validation, states, settings)
    for trainer, vectors, loss in zip(trainers, current, losses, strict=True):
        trainer.note(vectors, loss)


@torch.no_grad()
def _evaluate(
    candidates: Sequence[VectorSet],
    examples: Sequence[TrainingExample],
    states: PrefixCache,
    settings: ElicitSettings,
) -> list[float]:
    """Loss over all examples: every category weighs the same, whatever the batches."""
    sums: list[CategoryLosses | None] = [None] * len(candidates)
    for start in range(0, len(examples), settings.batch_size):
        for part in states.groups(examples[start : start + settings.batch_size]):
            whole = [Drawn(example, example) for example in part]
            for rows in micro_batches(whole, settings.positions_per_pass):
                for number, vectors in enumerate(candidates):
                    found, before = batch_losses(states, rows, vectors, settings), sums[number]
                    sums[number] = found if before is None else before + found
    return [float(one.mean()) for one in sums if one is not None]


def choose_training(trainings: Sequence[Training]) -> Training:
    """The seed with the lowest selection loss."""
    return min(trainings, key=lambda training: training.selection_loss)


class Trainer:
    """One seed of one set of vectors: its parameters and optimiser, and how it has gone so far."""

    def __init__(
        self,
        name: str,
        start: VectorSet,
        seed: int,
        states: PrefixCache,
        settings: ElicitSettings,
    ) -> None:
        """Start a training.

        Args:
            name: of the vectors.
            start: where to start from; its bias vector, if any, stays as it is.
            seed: of the order of batches.
            states: the frozen base, at the layer of `start`.
            settings: rates, sizes, patience.
        """
        self.name, self.seed, self.states, self.settings = name, seed, states, settings
        self.start = start.to(states.base.layer_device(states.layer))
        self.parameters = {
            name: tensor.clone().requires_grad_()
            for name, tensor in self.start.tensors().items()
            if name != "bias"
        }
        self.optimizer = self._optimizer()
        self.order = Random(f"batches-{seed}")
        self.steps = 0
        self.is_running = True
        self.best = self.frozen()
        self.best_evaluation = 0
        self.selection_loss: float | None = None
        self._losses: list[float] = []
        self._recent: list[float] = []
        self._evaluations: list[float] = []
        self._drawn: Sequence[Drawn] = ()
        self._counts: Int[Tensor, " category"] = torch.zeros(0, dtype=torch.long)
        self._loss = 0.0

    @property
    def key(self) -> str:
        """Its name among all trainings."""
        return f"{self.name}-{self.seed}"

    @property
    def live(self) -> VectorSet:
        """The current values, with gradients."""
        return self.start.with_tensors({**self.start.tensors(), **self.parameters})

    def frozen(self) -> VectorSet:
        """A copy of the current values."""
        copies = {name: tensor.detach().clone() for name, tensor in self.parameters.items()}
        return self.start.with_tensors({**self.start.tensors(), **copies})

    def _optimizer(self) -> torch.optim.Optimizer:
        """AdamW, with a separate rate for the vectors."""
        others = [tensor for name, tensor in self.parameters.items() if name != "vectors"]
        groups = [
            {"params": [self.parameters["vectors"]], "lr": self.settings.vector_learning_rate},
            {"params": others, "lr": self.settings.network_learning_rate},
        ]
        used = [group for group in groups if group["params"]]
        return torch.optim.AdamW(used, weight_decay=self.settings.weight_decay)

    def pick(self, examples: Sequence[TrainingExample]) -> list[TrainingExample]:
        """A batch, drawn at random."""
        return self.order.sample(list(examples), min(self.settings.batch_size, len(examples)))

    @property
    def batch_count(self) -> int:
        """Examples of the step that has begun."""
        return len(self._drawn)

    def begin(self, examples: Sequence[TrainingExample]) -> None:
        """Begin a step on a batch."""
        random = Random(f"positions-{self.seed}-{self.steps}")
        count = self.settings.positions_per_answer
        self._drawn = [Drawn(example, example.draw(count, random)) for example in examples]
        size = len(self.start.vectors)
        self._counts = counted([drawn.part for drawn in self._drawn], size)
        self._loss = 0.0
        self.optimizer.zero_grad()

    def accumulate(self, rows: range) -> None:
        """Add the gradients of some examples of the batch, a pass at a time."""
        drawn = self._drawn[rows.start : rows.stop]
        for part in micro_batches(drawn, self.settings.positions_per_pass):
            losses = batch_losses(self.states, part, self.live, self.settings)
            loss = losses.mean(self._counts)
            torch.autograd.backward(loss)
            self._loss += float(loss.detach())

    def apply(self) -> None:
        """Finish the step."""
        self.optimizer.step()
        self.steps += 1
        self._recent.append(self._loss)

    def note(self, vectors: VectorSet, loss: float) -> None:
        """Take note of an evaluation, and stop after too many without improvement."""
        if self._recent:
            self._losses.append(sum(self._recent) / len(self._recent))
            self._recent.clear()
        self._evaluations.append(loss)
        latest = len(self._evaluations) - 1
        if loss < self._evaluations[self.best_evaluation]:
            self.best, self.best_evaluation = vectors, latest
        elif latest - self.best_evaluation >= self.settings.patience:
            self.is_running = False

    def result(self) -> Training:
        """How it went, with the vectors of the best evaluation.

        Raises:
            ValueError: it is not finished.
        """
        if self.selection_loss is None:
            raise ValueError(f"the training {self.key} is not finished; call train_together first")
        return Training(
            self.seed,
            self.steps,
            tuple(self._losses),
            tuple(self._evaluations),
            self.selection_loss,
            self.best.to(torch.device("cpu")),
        )

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that the next step depends on, and those of the best evaluation."""
        entries = self.optimizer.state_dict()["state"]
        return {
            **{f"now.{name}": tensor.detach() for name, tensor in self.parameters.items()},
            **{f"best.{name}": tensor for name, tensor in self.best.tensors().items()},
            **{
                f"optimizer.{number}.{name}": value
                for number, entry in entries.items()
                for name, value in entry.items()
            },
        }

    def notes(self) -> dict[str, Any]:
        """Everything else that the next step depends on, as JSON."""
        return {
            "order": self.order.getstate(),
            "steps": self.steps,
            "is_running": self.is_running,
            "best_evaluation": self.best_evaluation,
            "losses": self._losses,
            "evaluations": self._evaluations,
        }

    def restore(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `tensors` and `notes` gave after an evaluation."""
        entries: dict[int, dict[str, Tensor]] = {}
        best = dict(self.best.tensors())
        for key, value in tensors.items():
            kind, _, name = key.partition(".")
            if kind == "now":
                self.parameters[name].data.copy_(value)
            elif kind == "best":
                best[name] = value.to(best[name].device)
            else:
                number, _, entry = name.partition(".")
                entries.setdefault(int(number), {})[entry] = value
        self.best = self.best.with_tensors(best)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": entries, "param_groups": groups})
        kind, words, rest = notes["order"]
        self.order.setstate((kind, tuple(words), rest))
        self.steps, self.is_running = notes["steps"], notes["is_running"]
        self.best_evaluation = notes["best_evaluation"]
        self._losses, self._evaluations = list(notes["losses"]), list(notes["evaluations"])
