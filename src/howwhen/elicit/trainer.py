"""One seed of one set of vectors: its parameters, its optimiser, and how it has gone so far."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from random import Random
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from howwhen.elicit.examples import TrainingExample
from howwhen.elicit.objective import Drawn, batch_losses, counted, micro_batches
from howwhen.elicit.report import SeedTraining
from howwhen.elicit.states import PrefixCache
from howwhen.errors import SteeringError
from howwhen.settings import ElicitSettings
from howwhen.vectors import VectorSet


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
        self._rates: list[float] = [group["lr"] for group in self.optimizer.param_groups]
        self.order = Random(f"batches-{seed}")
        self.steps = 0
        self.best = self.frozen()
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
    def best_evaluation(self) -> int:
        """The first with the lowest loss."""
        return min(range(len(self._evaluations)), key=self._evaluations.__getitem__)

    @property
    def is_running(self) -> bool:
        """Whether it has improved in its last evaluations, by as much as counts."""
        lowest, improved = math.inf, 0
        for number, loss in enumerate(self._evaluations):
            if loss < lowest - self.settings.min_delta:
                lowest, improved = loss, number
        return len(self._evaluations) - 1 - improved < self.settings.patience

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

    def begin(self, examples: Sequence[TrainingExample]) -> None:
        """Begin a step on a batch."""
        random = Random(f"positions-{self.seed}-{self.steps}")
        count = self.settings.positions_per_answer
        self._drawn = [Drawn(example, example.draw(count, random)) for example in examples]
        size = len(self.start.vectors)
        self._counts = counted([drawn.part for drawn in self._drawn], size)
        self._loss = 0.0
        self.optimizer.zero_grad()

    def accumulate(self, among: Sequence[TrainingExample]) -> None:
        """Add the gradients of those of the batch that are among some examples."""
        there = {id(example) for example in among}
        drawn = [one for one in self._drawn if id(one.whole) in there]
        for part in micro_batches(drawn, self.settings.positions_per_pass):
            losses = batch_losses(self.states, part, self.live, self.settings)
            loss = losses.mean(self._counts)
            torch.autograd.backward(loss * self._scale)
            self._loss += float(loss.detach())

    @property
    def _scale(self) -> float:
        """What the loss is multiplied by before its gradients are computed, a power of two.

        A mean over thousands of positions has gradients per position that float16 rounds to zero;
        a sum over them has not.
        """
        if self.states.base.model.dtype != torch.float16:
            return 1.0
        return 2.0 ** max(1, int(self._counts.sum())).bit_length()

    def apply(self) -> None:
        """Finish the step.

        Raises:
            SteeringError: the loss or a gradient is not finite.
        """
        gradients = [tensor.grad for tensor in self.parameters.values() if tensor.grad is not None]
        for gradient in gradients:
            gradient /= self._scale
        size = float(sum(gradient.abs().sum() for gradient in gradients))
        self._check(self._loss + size, "the loss or its gradient")
        if self.settings.clip is not None:
            others = [one for name, one in self.parameters.items() if name != "vectors"]
            torch.nn.utils.clip_grad_norm_(others, self.settings.clip)
        if self.settings.schedule == "cosine":
            for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * (1 + math.cos(math.pi * self.steps / self.settings.steps)) / 2
        self.optimizer.step()
        self.steps += 1
        self._recent.append(self._loss)

    def add_evaluation(self, vectors: VectorSet, loss: float) -> None:
        """Take note of an evaluation of these vectors, which are the current ones.

        Raises:
            SteeringError: the loss is not finite.
        """
        self._check(loss, "the validation loss")
        if self._recent:
            self._losses.append(sum(self._recent) / len(self._recent))
            self._recent.clear()
        self._evaluations.append(loss)
        if self.best_evaluation == len(self._evaluations) - 1:
            self.best = vectors

    def _check(self, value: float, what: str) -> None:
        if math.isfinite(value):
            return
        numerics = self.states.base.numerics
        raise SteeringError(
            f"the training {self.key} failed after {self.steps} steps: {what} is {value}. The base "
            f"computes in {numerics['dtype']} on {numerics['device']} with {numerics['attention']} "
            "attention; try --dtype float32 or --attention eager, or lower rates "
            "(--elicit.vector-learning-rate)"
        )

    def select(self, loss: float) -> None:
        """Take note of the loss of the best vectors on the texts that select among seeds.

        Raises:
            SteeringError: the loss is not finite.
        """
        self._check(loss, "the selection loss")
        self.selection_loss = loss

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
        self.steps = notes["steps"]
        self._losses, self._evaluations = list(notes["losses"]), list(notes["evaluations"])
