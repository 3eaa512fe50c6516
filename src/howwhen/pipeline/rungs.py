"""The rungs of one run, made of the files of the step elicit."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

from howwhen.errors import SettingsError
from howwhen.hybrid.ablations import (
    BaseGuardrail,
    LeastSimilarCategory,
    RandomCategoryNotTop3,
    RandomGuardrail,
    RandomPositionsAtRate,
    RandomUnitVectors,
    RandomVectorsAndCategory,
    least_similar,
    with_unit_norm,
)
from howwhen.hybrid.choice import (
    Base,
    BaseStepByStep,
    Guardrail,
    Rung,
    SelfGated,
    Steer,
    Takeover,
    Thinking,
)
from howwhen.hybrid.controls import (
    BiasOnly,
    EarlyOnly,
    EntropyGate,
    HybridBudget,
    LogitDifference,
    MagnitudeOnly,
    OneCategory,
    RandomCategory,
    RandomPositions,
    RandomPositionsAnywhere,
    RandomVectors,
    ReverseTakeover,
    SelfGateBudget,
    SharedVector,
    TakeoverBudget,
    WithoutCategory,
    bias_only,
    mean_direction,
    randomise,
)
from howwhen.hybrid.strength import LEARNED, Strength, Window, fixed, sweep
from howwhen.pipeline.given import GATE, SELF_GATE, SHARED, VECTORS
from howwhen.pipeline.matching import Matched
from howwhen.pipeline.store import StepFolder
from howwhen.probes import Gate, SelfGate
from howwhen.records import LADDER, OPTIONAL_RUNGS, PAPER_ABLATIONS
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
    budget: float | None = None
    """Of a rung with one."""

    @property
    def file(self) -> str:
        """Where its traces are kept."""
        sample = f"-sample{self.sample}" if self.sample else ""
        category = "" if self.category is None else f"-category{self.category}"
        budget = "" if self.budget is None else f"-budget{self.budget:g}"
        return f"traces/{self.rung.name}-{self.seed}{sample}{category}{budget}.jsonl"

    @property
    def label(self) -> str:
        """What progress is reported under."""
        parts = [
            self.rung.name,
            f"seed {self.seed}" if self.rung.is_random else "",
            f"sample {self.sample}" if self.sample else "",
            "" if self.category is None else f"category {self.category}",
            "" if self.budget is None else f"{self.budget:.0%}",
        ]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Rungs:
    """The rungs of one run, made of the files of the step elicit."""

    pair: Pair
    gate: Gate
    vectors: VectorSet
    shared: VectorSet | None
    """The single vector for all categories; None where vectors were given without it."""
    probe: SelfGate | None
    """The same of the self-gate's probe."""
    strength: Strength
    settings: HybridSettings

    @classmethod
    def read(cls, pair: Pair, elicited: StepFolder, settings: RunSettings) -> "Rungs":
        """From a finished elicit step."""
        return cls(
            pair,
            elicited.read_gate(GATE),
            elicited.read_vectors(VECTORS),
            elicited.read_vectors(SHARED) if elicited.holds(SHARED) else None,
            elicited.read_self_gate(SELF_GATE) if elicited.holds(SELF_GATE) else None,
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

    def controls(self, matched: Sequence[Matched]) -> list[RungPass]:
        """Every other rung asked for, once per sample, random ones also once per seed.

        Args:
            matched: what the controls of every sample are matched to.

        Raises:
            SettingsError: a rung that this run does not have.
        """
        by_sample = [list(self._controls(one, sample)) for sample, one in enumerate(matched)]
        controls, wanted = by_sample[0], self.wanted
        named = set(self.settings.rungs or ()) - {"all", "paper"}
        missing = named - {"hybrid", *(rung.name for rung, _ in controls)}
        if missing:
            raise SettingsError(
                f"this run has no rung {', '.join(sorted(missing))}; expected some of "
                f"{', '.join(dict.fromkeys(rung.name for rung, _ in controls))}"
            )
        passes = [
            RungPass(rung, seed, sample)
            for same in zip(*by_sample, strict=True)
            for sample, (rung, seed) in enumerate(same)
            if rung.name in wanted and rung.name != "thinking"
        ]
        thinking = range(self.settings.samples_of("thinking"))
        return [*passes, *(RungPass(Thinking(), sample=sample) for sample in thinking)]

    def budgets(self, thresholds: Mapping[str, Mapping[float, float]]) -> list[RungPass]:
        """Rungs that intervene only where it matters most, once per budget.

        Args:
            thresholds: of every full rung, by budget.
        """
        gate, vectors, strength = self.gate, self.vectors, self.strength
        make: dict[str, Callable[[float], Rung]] = {
            "hybrid": lambda threshold: HybridBudget(gate, vectors, strength, threshold),
            "takeover": TakeoverBudget,
        }
        if (own := self.self_gate) is not None:
            make["self-gate"] = lambda threshold: SelfGateBudget(
                replace(own.probe, threshold=threshold), own.vectors, own.strength
            )
        return [
            RungPass(make[name](threshold), sample=sample, budget=budget)
            for name, by_budget in thresholds.items()
            for budget, threshold in by_budget.items()
            for sample in range(self.settings.samples)
        ]

    @property
    def self_gate(self) -> SelfGated | None:
        """The hybrid without the thinking model; None where there is no probe."""
        if self.probe is None:
            return None
        strength = LEARNED if self.strength.is_sweep else self.strength
        return SelfGated(self.probe, self.vectors, strength)

    @property
    def wanted(self) -> set[str]:
        """Names of the rungs asked for; this run may not have all of them."""
        if self.settings.rungs is None:
            asked: list[str] = [name for name in LADDER if name not in OPTIONAL_RUNGS]
        else:
            groups: dict[str, Sequence[str]] = {"all": LADDER, "paper": PAPER_ABLATIONS}
            asked = [one for name in self.settings.rungs for one in groups.get(name, [name])]
        return {"base", "thinking", "hybrid", *asked}

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

    def entropy_gate(self, threshold: float) -> EntropyGate:
        """The rung whose moments the base's entropy chooses."""
        return EntropyGate(self.gate, self.vectors, self.strength, threshold)

    def _controls(self, matched: Matched, sample: int) -> Iterator[tuple[Rung, int]]:
        gate, vectors, strength = self.gate, self.vectors, self.strength
        yield Base(), 0
        if self.pair.step_by_step_prompt is not None:
            yield BaseStepByStep(self.pair.step_by_step_prompt), 0
        yield Guardrail(self.settings.guardrail_top_k), 0
        yield LogitDifference(self.settings.logit_alpha), 0
        if vectors.bias is not None:
            yield BiasOnly(gate, bias_only(vectors), strength), 0
        if self.shared is not None:
            yield SharedVector(gate, self.shared, strength), 0
        yield MagnitudeOnly(gate, mean_direction(vectors), strength), 0
        for seed in self.settings.random_seeds:
            yield RandomCategory(gate, vectors, strength), seed
            for kind, by_kind in ((RandomPositions, True), (RandomPositionsAnywhere, False)):
                name = f"{seed}-{sample}" if sample else seed
                places = matched.draw(name, by_kind=by_kind)
                ends = matched.sentence_ends if by_kind else frozenset()
                yield kind(gate, vectors, strength, places, ends, matched.rate), seed
            yield RandomVectors(gate, randomise(vectors, seed), strength), seed
            yield from self._random_ablations(matched, seed)
        if strength.is_sweep:
            yield BaseGuardrail(gate, vectors, replace(strength, picked_by="base")), 0
        yield LeastSimilarCategory(gate, vectors, strength, least_similar(vectors)), 0
        if matched.entropy is not None:
            yield self.entropy_gate(matched.entropy), 0
        halves = matched.limits(0.5)
        yield EarlyOnly(gate, vectors, strength, halves, ceil(matched.limit / 2)), 0
        if self.self_gate is not None:
            yield self.self_gate, 0
        yield ReverseTakeover(matched.limits(1.0), matched.limit), 0
        yield Takeover(), 0
        yield Thinking(), 0

    def _random_ablations(self, matched: Matched, seed: int) -> Iterator[tuple[Rung, int]]:
        """Those of the paper that are random, and no rung of the ladder, with one seed."""
        gate, vectors, strength = self.gate, self.vectors, self.strength
        randomised = randomise(vectors, seed)
        if strength.is_sweep:
            yield RandomGuardrail(gate, vectors, replace(strength, picked_by="random")), seed
        if vectors.bias is not None:
            yield RandomUnitVectors(gate, with_unit_norm(randomised), strength), seed
        yield RandomCategoryNotTop3(gate, vectors, strength), seed
        yield RandomVectorsAndCategory(gate, randomised, strength), seed
        yield RandomPositionsAtRate(gate, vectors, strength, rate=matched.rate), seed


def chosen_strength(settings: RunSettings) -> Strength:
    """The strength policy of a run: the one asked for, or the method's own."""
    asked = settings.hybrid
    is_span = settings.elicit.method == "span"
    windows: Sequence[Window] = asked.windows or (("everything",) if is_span else (1,))
    match asked.strength or ("sweep" if is_span else "learned"):
        case "learned":
            return LEARNED
        case "fixed":
            return fixed(asked.strengths[0], windows[0])
        case _:
            return sweep(asked.strengths, windows)
