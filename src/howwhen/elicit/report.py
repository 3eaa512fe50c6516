"""What the step notes about gates and trainings (`3-elicit/training.json`)."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SeedTraining:
    """How one seed's training went."""

    seed: int
    steps: int
    """Steps taken before the training stopped."""
    losses: tuple[float, ...]
    """Loss in nats of the training batches, averaged between two evaluations."""
    validation_losses: tuple[float, ...]
    """Loss in nats at every evaluation, the first before any step."""
    selection_loss: float
    """Loss in nats on the selection set, at the best evaluation."""


@dataclass(frozen=True)
class TrainingSummary:
    """All seeds of one training."""

    chosen_seed: int
    seeds: tuple[SeedTraining, ...]
    gaps: tuple[float, ...] = ()
    """Share of the gap that the hybrid of every seed recovers on the selection problems, signed,
    where that chose among the seeds."""


@dataclass(frozen=True)
class GateAgreement:
    """How often a gate's category equals that of the sentence that follows, on answers held out."""

    share: float | None
    """None where no disagreement leads into a sentence, or there is no such gate."""
    decisions: int
    """Disagreements that lead into a sentence."""
    why: str | None = None
    """Why there is no such gate."""


@dataclass(frozen=True)
class ProbeScores:
    """How well a probe predicts the disagreements of answers it was not trained on."""

    precision: float
    """Share of the positions it names that are disagreements."""
    recall: float
    """Share of the disagreements that it names."""
    category_accuracy: float
    """Share of the disagreements whose category it gets right."""
    decisions: int
    positions: int


@dataclass(frozen=True)
class ElicitReport:
    """Everything that later steps show of this one."""

    vectors: TrainingSummary | None
    """None where they were given, and nothing is known of their training."""
    shared: TrainingSummary | None
    """Of the single vector for all categories."""
    gate_sentence_agreement: Mapping[str, GateAgreement]
    """By kind of gate."""
    self_gate: ProbeScores | None
    """None where vectors were given without a probe."""
    decisions_per_category: tuple[int, ...] | None
    """Disagreements of all rollouts, as the gate names them; None where that is not known."""
    bias: TrainingSummary | None = None
    """Of the first version's bias vector; None for the second version."""
    given: str | None = None
    """Where the vectors were taken from; None where this run trained them."""

    @property
    def trainings(self) -> dict[str, TrainingSummary]:
        """Every training by name, in the order in which they ran."""
        every = {"bias": self.bias, "vectors": self.vectors, "shared": self.shared}
        return {name: training for name, training in every.items() if training is not None}
