"""The rungs of one run, made of what elicit left."""

from collections.abc import Iterator
from dataclasses import dataclass

from howwhen.hybrid.choice import (
    Base,
    BaseStepByStep,
    BiasOnly,
    Choice,
    Guardrail,
    RandomCategory,
    RandomPositions,
    RandomVectors,
    SelfGated,
    SharedVector,
    Steer,
    Takeover,
    Thinking,
    bias_alone,
    randomise,
)
from howwhen.hybrid.strength import LEARNED, Strength, fixed, sweep
from howwhen.records import Gate, Rung, SelfGate, VectorSet
from howwhen.settings import HybridSettings, RunSettings
from howwhen.store import StepFolder
from howwhen.zoo.pairs import Pair


@dataclass(frozen=True)
class Rungs:
    """The rungs of one run, made of what elicit left."""

    pair: Pair
    gate: Gate
    vectors: VectorSet
    shared: VectorSet
    probe: SelfGate
    strength: Strength
    settings: HybridSettings

    @classmethod
    def read(cls, pair: Pair, elicited: StepFolder, settings: RunSettings) -> "Rungs":
        """From a finished elicit step."""
        return cls(
            pair,
            elicited.read_gate("gate.safetensors"),
            elicited.read_vectors("vectors.safetensors"),
            elicited.read_vectors("shared.safetensors"),
            elicited.read_self_gate("self_gate.safetensors"),
            chosen_strength(settings),
            settings.hybrid,
        )

    @property
    def full(self) -> Steer:
        """The full hybrid."""
        return Steer(self.gate, self.vectors, self.strength)

    def controls(self, rate: float) -> Iterator[tuple[Choice, int]]:
        """Every rung but the hybrid; random ones once per seed."""
        gate, vectors, strength = self.gate, self.vectors, self.strength
        yield Base(), 0
        if self.pair.step_by_step_prompt is not None:
            yield BaseStepByStep(self.pair.step_by_step_prompt), 0
        yield Guardrail(self.settings.guardrail_top_k), 0
        if vectors.bias is not None:
            yield BiasOnly(gate, bias_alone(vectors), strength), 0
        yield SharedVector(gate, self.shared, strength), 0
        for seed in self.settings.random_seeds:
            yield RandomCategory(gate, vectors, strength), seed
            yield RandomPositions(gate, vectors, strength, rate=rate), seed
            yield RandomVectors(gate, randomise(vectors, seed), strength), seed
        yield SelfGated(self.probe, vectors, LEARNED if strength.is_sweep else strength), 0
        yield Takeover(), 0
        yield Thinking(), 0


def chosen_strength(settings: RunSettings) -> Strength:
    """The strength policy of a run: the one asked for, or the method's own."""
    hybrid_settings = settings.hybrid
    own = "learned" if settings.elicit.method == "decision" else "sweep"
    match hybrid_settings.strength or own:
        case "learned":
            return LEARNED
        case "fixed":
            return fixed(hybrid_settings.strengths[0], hybrid_settings.windows[0])
        case _:
            return sweep(hybrid_settings.strengths, hybrid_settings.windows)


def trace_file(rung: Rung, seed: int) -> str:
    """Where the traces of a rung and seed are kept."""
    return f"traces/{rung}-{seed}.jsonl"
