"""The rungs of one run, made of the files of the step elicit."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from howwhen.errors import SettingsError
from howwhen.hybrid.choice import (
    Base,
    BaseStepByStep,
    BiasOnly,
    Guardrail,
    OneCategory,
    RandomCategory,
    RandomPositions,
    RandomVectors,
    Rung,
    SelfGated,
    SharedVector,
    Steer,
    Takeover,
    Thinking,
    WithoutCategory,
    bias_only,
    randomise,
)
from howwhen.hybrid.strength import LEARNED, Strength, fixed, sweep
from howwhen.pipeline.store import StepFolder
from howwhen.probes import Gate, SelfGate
from howwhen.records import LADDER
from howwhen.settings import HybridSettings, RunSettings
from howwhen.vectors import VectorSet
from howwhen.zoo.pairs import Pair


@dataclass(frozen=True)
class RungPass:
    """One pass of a rung over the test problems."""

    rung: Rung
    seed: int = 0
    """Of a random rung."""
    sample: int = 0
    category: int | None = None
    """Of a knock-out."""

    @property
    def file(self) -> str:
        """Where its traces are kept."""
        sample = f"-sample{self.sample}" if self.sample else ""
        category = "" if self.category is None else f"-category{self.category}"
        return f"traces/{self.rung.name}-{self.seed}{sample}{category}.jsonl"

    @property
    def label(self) -> str:
        """What progress is reported under."""
        is_random = isinstance(self.rung, RandomCategory | RandomPositions | RandomVectors)
        parts = [
            self.rung.name,
            f"seed {self.seed}" if is_random else "",
            f"sample {self.sample}" if self.sample else "",
            "" if self.category is None else f"category {self.category}",
        ]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Rungs:
    """The rungs of one run, made of the files of the step elicit."""

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

    def hybrids(self) -> list[RungPass]:
        """The full hybrid, once per sample."""
        return [RungPass(self.full, sample=sample) for sample in range(self.settings.samples)]

    def controls(self, rate: float) -> list[RungPass]:
        """Every other rung asked for, once per sample, random ones also once per seed.

        Args:
            rate: share of tokens that the hybrid steers.

        Raises:
            SettingsError: a rung that this run does not have.
        """
        controls = list(self._controls(rate))
        asked = LADDER if self.settings.rungs is None else self.settings.rungs
        wanted = {"base", "thinking", "hybrid", *asked}
        missing = wanted - {"hybrid", *(rung.name for rung, _ in controls)}
        if self.settings.rungs is not None and missing:
            raise SettingsError(
                f"this run has no rung {', '.join(sorted(missing))}; expected some of "
                f"{', '.join(dict.fromkeys(rung.name for rung, _ in controls))}"
            )
        return [
            RungPass(rung, seed, sample)
            for rung, seed in controls
            if rung.name in wanted
            for sample in range(self.settings.samples)
        ]

    def knock_outs(self, categories: Iterable[int]) -> list[RungPass]:
        """The hybrid without each of these categories, and with each alone."""
        gate, vectors, strength = self.gate, self.vectors, self.strength
        return [
            RungPass(rung, sample=sample, category=category)
            for category in categories
            for rung in (
                WithoutCategory(gate, vectors, strength, category),
                OneCategory(gate, vectors, strength, category),
            )
            for sample in range(self.settings.samples)
        ]

    def _controls(self, rate: float) -> Iterator[tuple[Rung, int]]:
        gate, vectors, strength = self.gate, self.vectors, self.strength
        yield Base(), 0
        if self.pair.step_by_step_prompt is not None:
            yield BaseStepByStep(self.pair.step_by_step_prompt), 0
        yield Guardrail(self.settings.guardrail_top_k), 0
        if vectors.bias is not None:
            yield BiasOnly(gate, bias_only(vectors), strength), 0
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
    usual = "learned" if settings.elicit.method == "decision" else "sweep"
    match hybrid_settings.strength or usual:
        case "learned":
            return LEARNED
        case "fixed":
            return fixed(hybrid_settings.strengths[0], hybrid_settings.windows[0])
        case _:
            return sweep(hybrid_settings.strengths, hybrid_settings.windows)
