"""Training all seeds of some vectors in a run: kept after every evaluation, and resumed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from howwhen.elicit.report import SeedTraining, TrainingSummary
from howwhen.elicit.states import PrefixCache
from howwhen.elicit.trainer import Trainer, Training
from howwhen.elicit.training import (
    DataSplit,
    choose_training,
    in_steps,
    new_vectors,
    train_together,
    without_untrained,
)
from howwhen.pipeline.context import Run
from howwhen.pipeline.selecting import selection_gaps
from howwhen.pipeline.store import StepFolder
from howwhen.probes import Gate
from howwhen.settings import Form
from howwhen.vectors import VectorSet


@dataclass
class Fitting:
    """Trains all seeds, keeps how far they are after every evaluation, and goes on from there."""

    run: Run
    step: StepFolder
    states: PrefixCache
    gate: Gate
    summaries: dict[str, TrainingSummary] = field(default_factory=dict)
    """By name of the vectors."""

    def __call__(
        self,
        data: DataSplit,
        sizes: Mapping[str, int],
        /,
        bias: Tensor | None = None,
        form: Form | None = None,
    ) -> Mapping[str, VectorSet]:
        """As `howwhen.elicit.training.Fit`."""
        seeds = self.run.settings.elicit.seeds
        if not all(self._is_finished(name, seed) for name in sizes for seed in seeds):
            self._train(data, sizes, bias, form)
        chosen = {}
        for name in sizes:
            trainings = [self._load(name, seed) for seed in seeds]
            best, gaps = self._choose(name, trainings)
            self.step.write_vectors(f"{name}.safetensors", best.vectors)
            notes = tuple(training.notes for training in trainings)
            self.summaries[name] = TrainingSummary(best.seed, notes, gaps)
            chosen[name] = best.vectors
        return chosen

    def _choose(
        self, name: str, trainings: Sequence[Training]
    ) -> tuple[Training, tuple[float, ...]]:
        """The best seed, and what the hybrid of each recovers, where that decides."""
        if name != "vectors" or self.run.settings.elicit.choose_by == "loss":
            return choose_training(trainings), ()
        self.states.clear()
        candidates = {training.seed: training.vectors for training in trainings}
        gaps = selection_gaps(self.run, self.step, self.gate, candidates)
        best = max(trainings, key=lambda one: (gaps[one.seed], -one.selection_loss))
        return best, tuple(gaps[training.seed] for training in trainings)

    def _train(
        self, data: DataSplit, sizes: Mapping[str, int], bias: Tensor | None, form: Form | None
    ) -> None:
        settings = in_steps(self.run.settings.elicit, len(data.train))
        base, layer = self.run.pair.base, self.states.layer
        width = base.model.config.hidden_size
        trainers = []
        for name, size in sizes.items():
            for seed in settings.seeds:
                kind = form or settings.chosen_form
                start = new_vectors(base.name, layer, width, size, kind, settings, seed)
                start = without_untrained(start, data.train)
                start = replace(start, bias=bias)
                trainers.append(Trainer(name, start, seed, self.states, settings))
        names = " and ".join(sizes)
        unfinished = f"parts/unfinished-{'-'.join(sizes)}.safetensors"
        done = self._restore(unfinished, trainers)
        with self.run.reporter.task(f"training steps of {names}", settings.steps) as advance:
            train_together(
                trainers,
                data,
                self.states,
                settings,
                advance,
                lambda step: self._save(unfinished, trainers, step),
                done,
            )
        for trainer in trainers:
            self._finish(trainer.name, trainer.result())
        (self.step.path / unfinished).unlink(missing_ok=True)

    def _save(self, file: str, trainers: Sequence[Trainer], steps: int) -> None:
        """Write how far the trainings are."""
        tensors = {
            f"{trainer.key}/{name}": tensor
            for trainer in trainers
            for name, tensor in trainer.tensors().items()
        }
        notes = {"steps": steps, "trainers": {one.key: one.notes() for one in trainers}}
        self.step.write_tensors(file, tensors, notes)

    def _restore(self, file: str, trainers: Sequence[Trainer]) -> int:
        """Go on from where the trainings were; returns the steps taken."""
        if not (self.step.path / file).exists():
            return 0
        tensors, notes = self.step.read_tensors(file)
        for trainer in trainers:
            prefix = f"{trainer.key}/"
            own = {
                key.removeprefix(prefix): tensor
                for key, tensor in tensors.items()
                if key.startswith(prefix)
            }
            trainer.restore(own, notes["trainers"][trainer.key])
        return int(notes["steps"])

    def _is_finished(self, name: str, seed: int) -> bool:
        return (self.step.path / f"parts/{name}-{seed}.json").exists()

    def _load(self, name: str, seed: int) -> Training:
        part = f"parts/{name}-{seed}"
        notes = self.step.read_record(f"{part}.json", SeedTraining)
        return Training(**vars(notes), vectors=self.step.read_vectors(f"{part}.safetensors"))

    def _finish(self, name: str, training: Training) -> None:
        """Write a finished seed; the JSON file is written last and marks it as done."""
        losses = training.validation_losses
        self.run.reporter.say(
            f"  {name}-{training.seed}: {training.steps} steps, validation loss {losses[0]:.3f} -> "
            f"{min(losses):.3f} nats, selection loss {training.selection_loss:.3f}"
        )
        part = f"parts/{name}-{training.seed}"
        self.step.write_vectors(f"{part}.safetensors", training.vectors)
        self.step.write_record(f"{part}.json", training.notes)
