"""Step 4: the test problems on every rung of the ladder."""

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from howwhen.hybrid.choice import Base, Rung, Takeover
from howwhen.hybrid.decoder import decode
from howwhen.hybrid.guesses import Phrases
from howwhen.hybrid.notes import Watch
from howwhen.hybrid.prompt_cache import PromptCache
from howwhen.hybrid.scoring import Answer
from howwhen.lm.alignment import ModelPair
from howwhen.measure.bits import READ_ALONG
from howwhen.pipeline.budgets import BUDGETS_FILE, budget_thresholds
from howwhen.pipeline.collect import warn_if_greedy
from howwhen.pipeline.context import HYBRID_SUMMARY, Run
from howwhen.pipeline.entropy import (
    ENTROPY_GATE,
    MAX_PROBLEMS,
    TRIALS,
    EntropyThreshold,
    choose_threshold,
)
from howwhen.pipeline.matching import Matched, sentence_ends_of
from howwhen.pipeline.problems import check_test_problems
from howwhen.pipeline.rungs import RungPass, Rungs
from howwhen.pipeline.store import StepFolder
from howwhen.pipeline.traces import grow_traces
from howwhen.probes import SelfGate
from howwhen.progress import Advance
from howwhen.records import HybridSummary, HybridTrace, Problem, RungName, Split, Work
from howwhen.vectors import VectorSet

DIVERGENCE_NOTED = ("hybrid", "takeover")
"""Rungs whose traces say how far the two models' distributions are apart."""


@dataclass(frozen=True)
class HybridCounts:
    """What the step reports about its work."""

    problems: int
    steered_fraction: float
    """Steered tokens of the hybrid, per token."""
    decisions_without_vector: int
    """Disagreements of the hybrid whose category has no vector to steer with."""
    decisions_per_category: tuple[int, ...]
    answers: Mapping[RungName, int]
    """Per rung, over seeds and samples."""
    work: Work


def hybrid(run: Run, step: StepFolder) -> HybridCounts:
    """Decode the test problems on every rung of the ladder."""
    problems = run.problems(Split.TEST)
    check_test_problems(problems)
    if run.settings.hybrid.of_rung("thinking").temperature == 0:
        warn_if_greedy(run, run.pair.thinking_outline, "--hybrid.temperature with a number")
    rungs = Rungs.read(run.pair, run.folder.step("elicit"), run.settings)
    ladder = _Ladder(run, step, run.models(), problems, run.phrases(), rungs.probe)
    entropy = math.inf if _to_choose_on(run) else None
    rungs.controls([Matched(0.0, entropy=entropy)])  # refuses rungs before anything is decoded
    samples = [ladder.decode(rung_pass) for rung_pass in rungs.hybrids()]
    traces = [trace for sample in samples for trace in sample]
    per_category = _decisions_per_category(traces, rungs.gate.size)
    base_passes = [RungPass(Base(), sample=number) for number in range(len(samples))]
    base = [ladder.decode(base_pass) for base_pass in base_passes]
    others = rungs.controls(_match(run, ladder, rungs, samples, base))
    if run.settings.hybrid.knock_outs:
        others += rungs.knock_outs(n for n, count in enumerate(per_category) if count)
    if run.settings.hybrid.budgets:
        others += _budgets(ladder, rungs, others)
    answers: Counter[RungName] = Counter({"hybrid": len(traces), "base": sum(map(len, base))})
    for rung_pass in others:
        if rung_pass in base_passes:
            continue
        answers[rung_pass.rung.name] += len(ladder.decode(rung_pass))
    passes = [*rungs.hybrids(), *others]
    step.write_json("passes.json", [rung_pass.file for rung_pass in passes])
    summary = HybridSummary(
        _steered_fraction(traces),
        per_category,
        _work(ladder.models, rungs.vectors.layer),
        {rung_pass.rung.name: rung_pass.rung.fitted for rung_pass in passes},
        run.pair.base_outline.model.num_parameters(),
        sum(trace.decisions for trace in traces) / len(traces),
    )
    step.write_record(HYBRID_SUMMARY, summary)
    idle = _idle_decisions(traces, rungs.vectors)
    _warn(run, summary.steered_fraction, idle)
    return HybridCounts(
        problems=len(problems),
        steered_fraction=summary.steered_fraction,
        decisions_without_vector=idle,
        decisions_per_category=per_category,
        answers=answers,
        work=summary.work,
    )


def _budgets(ladder: "_Ladder", rungs: Rungs, others: Sequence[RungPass]) -> list[RungPass]:
    """Passes with smaller budgets, and the full ones that these need and that are not there yet."""
    full = [
        RungPass(rung, sample=sample)
        for rung in (rungs.full, rungs.self_gate, Takeover())
        if rung is not None
        for sample in range(rungs.settings.samples)
    ]
    traces: dict[str, list[HybridTrace]] = defaultdict(list)
    for one in full:
        traces[one.rung.name] += ladder.decode(one)
    thresholds = {name: budget_thresholds(found) for name, found in traces.items()}
    ladder.step.write_json(BUDGETS_FILE, thresholds)
    files = {one.file for one in (*rungs.hybrids(), *others)}
    return [*(one for one in full if one.file not in files), *rungs.budgets(thresholds)]


def _match(
    run: Run,
    ladder: "_Ladder",
    rungs: Rungs,
    hybrid: Sequence[Sequence[HybridTrace]],
    base: Sequence[Sequence[HybridTrace]],
) -> list[Matched]:
    """What the controls of every sample are matched to: the same sample of hybrid and base."""
    ends = sentence_ends_of(ladder.models.base)
    matched = [Matched.of(*pair, ends) for pair in zip(hybrid, base, strict=True)]
    if "entropy-gate" not in rungs.wanted or not _to_choose_on(run):
        return matched
    if not (ladder.step.path / ENTROPY_GATE).exists():  # as in a step that is being resumed
        ladder.step.write_record(ENTROPY_GATE, _entropy_threshold(run, ladder, rungs))
    chosen = ladder.step.read_record(ENTROPY_GATE, EntropyThreshold)
    return [replace(one, entropy=chosen.threshold) for one in matched]


def _to_choose_on(run: Run) -> list[Problem]:
    """The problems that a threshold is chosen on; none in a run that trains nothing."""
    problems = run.problems(Split.SELECTION) or run.problems(Split.TRAIN)
    return problems[:MAX_PROBLEMS]


def _entropy_threshold(run: Run, ladder: "_Ladder", rungs: Rungs) -> EntropyThreshold:
    """Chosen on the selection problems; where none were set aside, on problems of the training."""
    problems = _to_choose_on(run)
    settings, prompts = run.settings.hybrid, PromptCache()

    with run.reporter.task("threshold of entropy-gate", 1 + TRIALS) as advance:
        done = 0

        def answer(rung: Rung) -> list[HybridTrace]:
            nonlocal done
            traces = decode(
                ladder.models,
                problems,
                rung,
                settings,
                prompts=prompts,
                phrases=ladder.phrases,
                slots=settings.batch_size,
            )
            done += 1
            advance(done)
            return traces

        return choose_threshold(rungs, ladder.models.alignment.shared, answer)


@dataclass
class _Ladder:
    """The passes over the test problems, and what a later pass can take from earlier ones."""

    run: Run
    step: StepFolder
    models: ModelPair
    problems: Sequence[Problem]
    phrases: Phrases
    probe: SelfGate | None
    """Reads along on rungs that the thinking model tells something."""
    prompts: PromptCache = field(default_factory=PromptCache)
    known: dict[tuple[int, str], list[Answer]] = field(default_factory=lambda: defaultdict(list))
    """By sample and problem, the answers of earlier rungs."""

    def decode(self, rung_pass: RungPass) -> list[HybridTrace]:
        """The traces of a pass. Only those that are missing from its file are decoded."""
        name, sample = rung_pass.rung.name, rung_pass.sample
        settings = self.run.settings.hybrid.of_rung(name)
        seeded = settings.model_copy(update={"seed": settings.seed + sample})
        watch = Watch(self.probe if name in READ_ALONG else None, name in DIVERGENCE_NOTED)

        with self.run.reporter.task(rung_pass.label, len(self.problems)) as advance:

            def decode_some(some: Sequence[Problem], ended: Advance) -> list[HybridTrace]:
                traces = decode(
                    self.models,
                    some,
                    rung_pass.rung,
                    seeded,
                    rung_pass.seed,
                    known=[self.known[sample, problem.id] for problem in some],
                    prompts=self.prompts,
                    phrases=self.phrases,
                    slots=settings.batch_size,
                    ended=ended,
                    watch=watch,
                )
                category, budget = rung_pass.category, rung_pass.budget
                return [
                    replace(trace, sample=sample, category=category, budget=budget)
                    for trace in traces
                ]

            traces = grow_traces(
                self.step,
                rung_pass.file,
                self.problems,
                settings.batch_size,
                decode_some,
                advance,
            )
        for trace in traces:
            self.known[sample, trace.problem_id].append(array("i", trace.ids))
        return traces


def _work(models: ModelPair, layer: int) -> Work:
    blocks = models.base.layer_count
    return Work(
        models.base.matmul_params, models.thinking.matmul_params, (blocks - 1 - layer) / blocks
    )


def _warn(run: Run, rate: float, idle: int) -> None:
    if rate == 0:
        run.reporter.say("  WARNING: the hybrid never steered: the two models never disagreed")
    if idle:
        plural = "" if idle == 1 else "s"
        run.reporter.say(
            f"  WARNING: at {idle} disagreement{plural} the hybrid could not steer: the vector of "
            "the category is zero"
        )


def _steered_fraction(traces: Sequence[HybridTrace]) -> float:
    return sum(trace.decisions for trace in traces) / sum(len(trace.tokens) for trace in traces)


def _decisions_per_category(traces: Sequence[HybridTrace], size: int) -> tuple[int, ...]:
    counts = Counter(token.category for trace in traces for token in trace.tokens)
    return tuple(counts[category] for category in range(size))


def _idle_decisions(traces: Sequence[HybridTrace], vectors: VectorSet) -> int:
    """Disagreements at which steering could do nothing: no vector, and no bias vector either."""
    if vectors.bias is not None:
        return 0
    nonzero_categories = set(vectors.nonzero_categories().tolist())
    return sum(
        token.is_decision and token.category not in nonzero_categories
        for trace in traces
        for token in trace.tokens
    )
