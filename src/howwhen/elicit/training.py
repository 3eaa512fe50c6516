"""Training steering vectors in the frozen base model: one loop for every method and form.

All categories train in one batch. The loss is the mean within each category, then over categories.
Vectors start at zero, and those of the best evaluation on a validation set are kept. All seeds, and
the vectors per category together with the shared one, advance side by side, since they need the
same states of the base.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from random import Random
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from howwhen.elicit.examples import TrainingExample
from howwhen.elicit.objective import CategoryLosses, Drawn, batch_losses, micro_batches
from howwhen.elicit.states import Chapter, PrefixCache
from howwhen.elicit.trainer import Trainer, Training
from howwhen.errors import SteeringError
from howwhen.settings import ElicitSettings, Form
from howwhen.vectors import LinearCoefficient, LowRank, Network, VectorSet

NETWORK_BIAS = 0.5
"""Of every unit of a coefficient network, at the start."""
Report = Callable[[int], None]
"""Called with the number of steps taken."""


@dataclass(frozen=True)
class DataSplit:
    """What a training learns from."""

    train: Sequence[TrainingExample]
    validation: Sequence[TrainingExample]
    selection: Sequence[TrainingExample]


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
    """Leave out texts without windows and choose the questions that early stopping looks at.

    Where no selection text has a window, these select among the seeds too.

    Raises:
        SteeringError: too few texts with a window to train and validate on.
    """
    useful: dict[tuple[int, ...], list[TrainingExample]] = {}
    for example in train:
        if example.windows:
            useful.setdefault(example.ids[: example.prompt] or example.ids, []).append(example)
    chosen = [example for example in selection if example.windows]
    looked_at = max(1, round(len(useful) * settings.validation_fraction))
    looked_at = min(looked_at, settings.validation_answers)
    if settings.stop_by == "selection" and not chosen:
        raise SteeringError(
            "stop_by selection, but no answer to a selection problem holds anything to steer; "
            "collect more problems (--collect.limit) or use --elicit.stop-by held-out"
        )
    if len(useful) - (looked_at if settings.stop_by == "held-out" else 0) < 1:
        raise SteeringError(
            f"only {len(useful)} questions of {len(train)} training rollouts hold anything to "
            "steer (for `decision` a token where the base would have gone elsewhere, for `span` a "
            "sentence); at least 2 are needed. Collect more problems (--collect.limit), or ask "
            "whether these two models differ at all"
        )
    groups = list(useful.values())
    Random(f"validation-{settings.seeds[0]}").shuffle(groups)
    validation, rest, every = (
        [example for group in part for example in group]
        for part in (groups[:looked_at], groups[looked_at:], groups)
    )
    match settings.stop_by:
        case "held-out":
            return DataSplit(rest, validation, chosen or validation)
        case "train":
            return DataSplit(every, validation, chosen or validation)
        case "selection":
            return DataSplit(every, chosen, chosen)


def in_steps(settings: ElicitSettings, examples: int) -> ElicitSettings:
    """The settings with epochs turned into steps, for a training on so many rollouts."""
    epoch = max(1, math.ceil(examples / settings.batch_size))
    changed: dict[str, int] = {}
    if settings.epochs is not None:
        changed["steps"] = settings.epochs * epoch
    if settings.validate_every == "epoch":
        changed["validate_every"] = epoch
    return settings.model_copy(update=changed)


def new_vectors(
    model: str, layer: int, width: int, size: int, form: Form, settings: ElicitSettings, seed: int
) -> VectorSet:
    """Vectors of zero, or of norm 1, with the form's own parameters at their start.

    A coefficient network starts as the paper's does: weights uniform (Xavier), biases at 0.5.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(rows: int, columns: int, outputs: int) -> Tensor:
        bound = math.sqrt(6 / (columns + outputs))
        return (2 * torch.rand(rows, columns, generator=generator) - 1) * bound

    vectors = torch.zeros(size, width)
    if settings.vector_start == "unit":
        drawn = torch.Generator().manual_seed(seed)
        vectors = functional.normalize(torch.randn(size, width, generator=drawn), dim=1)
    match form:
        case "linear":
            return VectorSet(model, layer, vectors)
        case "network":
            hidden = settings.hidden
            made: Network | LinearCoefficient | LowRank = Network(
                uniform(hidden, width, hidden),
                torch.full((hidden,), NETWORK_BIAS),
                uniform(size, hidden, 1),  # every category has a head of its own
                torch.full((size,), NETWORK_BIAS),
            )
        case "gated":
            made = LinearCoefficient(torch.zeros(size, width), torch.zeros(size))
        case "low-rank":
            shape = (size, settings.rank, width)
            down = torch.randn(*shape, generator=generator) * width**-0.5
            made = LowRank(down, torch.zeros(shape))
    return VectorSet(model, layer, vectors, modulation=made)


def without_untrained(start: VectorSet, train: Sequence[TrainingExample]) -> VectorSet:
    """The same with vectors of zero for categories that nothing is trained on."""
    if start.size == 1:
        return start
    trained = {category for example in train for category in example.categories}
    silent = [category for category in range(start.size) if category not in trained]
    vectors = start.vectors.clone()
    vectors[silent] = 0.0
    return replace(start, vectors=vectors)


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
    settings = in_steps(settings, len(data.train))
    trainer = Trainer("vectors", start, seed, states, settings)
    train_together([trainer], data, states, settings, report)
    return trainer.result()


def train_together(
    trainers: Sequence[Trainer],
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
    is_both = data.selection is data.validation
    others = data.validation if is_both else [*data.validation, *data.selection]
    chapters = states.chapters(data.train, others, settings.batch_size, settings.seeds[0])
    first = next(chapters)
    entered: Chapter | None = None
    for chapter, start, end in _stretches(chain([first], chapters), settings):
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
        if end % _interval(settings) and end != settings.steps:
            continue
        _look(running, data.validation, states, settings)
        save(end)
        report(end)
    # What is held decides in which parts the answers are evaluated, also after resuming here.
    states.enter(first if first.steps is None else replace(first, examples=(), held=()))
    best = [trainer.best for trainer in trainers]
    for trainer, loss in zip(
        trainers, _evaluate(best, data.selection, states, settings), strict=True
    ):
        trainer.select(loss)


def _stretches(
    chapters: Iterable[Chapter], settings: ElicitSettings
) -> Iterator[tuple[Chapter, int, int]]:
    """Steps between two evaluations in the same chapter: half-open, from 0."""
    step, interval = 0, _interval(settings)
    for chapter in chapters:
        last = settings.steps if chapter.steps is None else step + chapter.steps
        while step < min(last, settings.steps):
            look = step - step % interval + interval
            end = min(last, look, settings.steps)
            yield chapter, step, end
            step = end
        if step == settings.steps:
            return


def _interval(settings: ElicitSettings) -> int:
    """Steps between two evaluations."""
    if settings.validate_every == "epoch":
        raise ValueError("epochs are not turned into steps; call in_steps first")
    return settings.validate_every


def _advance(
    trainers: Sequence[Trainer], chapter: Chapter, steps: int, states: PrefixCache
) -> None:
    """Let every trainer take some steps in a chapter."""
    if not chapter.is_one_batch:
        for trainer in trainers:
            for _ in range(steps):
                batch = trainer.pick(chapter.examples)
                trainer.begin(batch)
                trainer.accumulate(batch)
                trainer.apply()
        return
    for trainer in trainers:
        trainer.begin(trainer.order.choices(chapter.examples, k=len(chapter.examples)))
    for part in states.groups(chapter.examples):
        for trainer in trainers:
            trainer.accumulate(part)
    for trainer in trainers:
        trainer.apply()


def _look(
    trainers: Sequence[Trainer],
    validation: Sequence[TrainingExample],
    states: PrefixCache,
    settings: ElicitSettings,
) -> None:
    """Evaluate every trainer as it is now."""
    current = [trainer.frozen() for trainer in trainers]
    losses = _evaluate(current, validation, states, settings)
    for trainer, vectors, loss in zip(trainers, current, losses, strict=True):
        trainer.add_evaluation(vectors, loss)


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
