"""The unsteered states that steered windows attend to, within a budget of host memory.

They do not depend on the vectors, so all trainings share them. If those of all answers fit in the
budget, they are computed once. If not, training goes through the answers in chapters: the states of
some answers are computed, every training takes as many steps on them as there are batches in them,
and the next answers follow. If not even a batch fits, its states are computed in parts, and every
training draws from the same batch, with replacement, so that seeds differ.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from howwhen.elicit.examples import TrainingExample
from howwhen.lm.logits import split_forward
from howwhen.lm.models import LanguageModel
from howwhen.lm.padding import pad
from howwhen.lm.residual import capture_residuals


@dataclass(frozen=True)
class UnsteeredStates:
    """The unsteered states that one example needs, on the CPU, in the model's own precision."""

    residual: Float[Tensor, "query d_model"]
    """At the steer layer, of every steered position."""
    upper: dict[int, tuple[Tensor, Tensor]]
    """Keys and values of the blocks above, (head, position, d_head), up to the last window."""

    @property
    def nbytes(self) -> int:
        """Memory taken."""
        pairs = (tensor.nbytes for pair in self.upper.values() for tensor in pair)
        return self.residual.nbytes + sum(pairs)


@dataclass(frozen=True)
class Chapter:
    """Answers whose states are there at the same time, and how long training stays with them."""

    examples: Sequence[TrainingExample]
    steps: int | None
    """None for ever."""
    held: Sequence[TrainingExample]
    """Those whose states are kept meanwhile, evaluation included."""
    is_one_batch: bool = False
    """Whether it is a single batch, for all trainings, whose states come in parts."""


class PrefixCache:
    """Computes the unsteered states of examples, and keeps what its budget allows."""

    def __init__(self, base: LanguageModel, layer: int, gib: float = 4.0) -> None:
        """Keep nothing yet.

        Args:
            base: the frozen base.
            layer: block whose output is steered.
            gib: most memory for the states, in GiB.
        """
        self.base, self.layer, self.budget = base, layer, int(gib * 2**30)
        self.kept: dict[int, tuple[TrainingExample, UnsteeredStates]] = {}
        self._keeps_all = False
        self._rates: tuple[int, int] | None = None

    def get(self, example: TrainingExample) -> UnsteeredStates:
        """States of an example, computed unless they are kept."""
        if id(example) in self.kept:
            return self.kept[id(example)][1]
        states = self._compute(example)
        if self._keeps_all:
            self.kept[id(example)] = (example, states)
        return states

    def enter(self, chapter: Chapter) -> None:
        """Keep the states of a chapter, and no others."""
        wanted = {id(example) for example in chapter.held}
        self.kept = {key: value for key, value in self.kept.items() if key in wanted}
        self._keeps_all = chapter.steps is None
        if self._keeps_all:
            return  # each is computed when it is first drawn
        for example in chapter.held:
            if id(example) not in self.kept:
                self.kept[id(example)] = (example, self._compute(example))

    def clear(self) -> None:
        """Keep nothing any more."""
        self.kept, self._keeps_all = {}, False

    def size(self, examples: Sequence[TrainingExample]) -> int:
        """Bytes that the states of these examples take."""
        return sum(self._size(example) for example in examples)

    def groups(self, examples: Sequence[TrainingExample]) -> Iterator[Sequence[TrainingExample]]:
        """The examples in parts whose states fit in what is left of the budget, one at least.

        While a part is worked on, its states are kept; then they are dropped, unless they are those
        of the chapter.
        """
        if self._keeps_all:
            yield examples
            return
        held = dict(self.kept)
        left = self.budget - sum(states.nbytes for _, states in held.values())
        start = 0
        while start < len(examples):
            end, taken = start, 0
            while end < len(examples):
                needed = 0 if id(examples[end]) in held else self._size(examples[end])
                if end > start and taken + needed > left:
                    break
                taken += needed
                end += 1
            part = examples[start:end]
            self.kept = held | {id(one): (one, self.get(one)) for one in part}
            yield part
            self.kept = held
            start = end

    def chapters(
        self,
        train: Sequence[TrainingExample],
        others: Sequence[TrainingExample],
        batch_size: int,
        seed: int,
    ) -> Iterator[Chapter]:
        """The chapters of a training, without end.

        Args:
            train: what is trained on.
            others: what the loss is evaluated on: held throughout, if that takes at most half of
                the budget.
            batch_size: examples per step.
            seed: of the order of the answers.
        """
        if self.size([*train, *others]) <= self.budget:
            yield Chapter(train, None, [*others, *train])
            return
        always = list(others) if self.size(others) <= self.budget / 2 else []
        room = self.budget - self.size(always)
        random = Random(f"chapters-{seed}")
        while True:
            order = list(train)
            random.shuffle(order)
            while order:
                count = self._that_fit(order, room)
                if count < min(batch_size, len(order)):
                    chapter, order = order[:batch_size], order[batch_size:]
                    yield Chapter(chapter, 1, always, is_one_batch=True)
                    continue
                chapter, order = order[:count], order[count:]
                steps = max(1, round(count / batch_size))
                yield Chapter(chapter, steps, [*always, *chapter])

    def _that_fit(self, examples: Sequence[TrainingExample], room: int) -> int:
        for count, example in enumerate(examples):
            room -= self._size(example)
            if room < 0:
                return count
        return len(examples)

    def _size(self, example: TrainingExample) -> int:
        """Bytes of an example's states: so many a token up to its last window, and a position."""
        if self._rates is None:
            found = self._compute(example)
            if not example.last_start:
                return found.nbytes
            upper = found.nbytes - found.residual.nbytes
            positions = len(example.positions)
            self._rates = upper // example.last_start, found.residual.nbytes // positions
        per_token, per_position = self._rates
        return per_token * example.last_start + per_position * len(example.positions)

    @torch.no_grad()
    def _compute(self, example: TrainingExample) -> UnsteeredStates:
        """States of one example.

        Never of a batch: matrix products of different sizes round differently on some processors.
        The last bits would depend on the other examples, and resuming would change them.
        """
        cache = DynamicCache()
        with capture_residuals(self.base.model, [self.layer]) as captured:
            split_forward(
                self.base.model,
                **pad([example.ids], device=self.base.device).inputs(),
                past_key_values=cache,
                use_cache=True,
            )
        end = example.last_start
        upper = {
            number: (
                cache.layers[number].keys[0, :, :end].to("cpu", copy=True),
                cache.layers[number].values[0, :, :end].to("cpu", copy=True),
            )
            for number in range(self.layer + 1, self.base.layer_count)
        }
        return UnsteeredStates(captured[self.layer][0, list(example.positions)].cpu(), upper)
