"""Step 4: the test problems on every rung of the ladder."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from howwhen.formats.safetensors import Json
from howwhen.hybrid.decoder import decode
from howwhen.lm.alignment import ModelPair
from howwhen.pipeline.context import Run
from howwhen.pipeline.problems import check_test_problems
from howwhen.pipeline.rungs import RungPass, Rungs
from howwhen.pipeline.store import StepFolder
from howwhen.records import HybridTrace, Problem, RungName, Split, Work
from howwhen.vectors import VectorSet


def hybrid(run: Run, step: StepFolder) -> Json:
    """Decode the test problems on every rung of the ladder."""
    problems = run.problems(Split.TEST)
    check_test_problems(problems)
    models = run.models()
    rungs = Rungs.read(run.pair, run.folder.step("elicit"), run.settings)
    rungs.controls(0.0)  # refuses unknown rungs before anything is decoded
    samples = [_decode(run, step, models, problems, one) for one in rungs.hybrids()]
    traces = [trace for sample in samples for trace in sample]
    found = _decisions_per_category(traces, rungs.gate.size)
    others = rungs.controls(_steered_fraction(samples[0]))  # the same whatever the extent
    if run.settings.hybrid.knock_outs:
        others += rungs.knock_outs(n for n, count in enumerate(found) if count)
    answers: Counter[RungName] = Counter({"hybrid": len(traces)})
    for one in others:
        answers[one.rung.name] += len(_decode(run, step, models, problems, one))
    step.write_json("passes.json", [one.file for one in (*rungs.hybrids(), *others)])
    rate = _steered_fraction(traces)
    _warn(run, rate, idle := _idle_decisions(traces, rungs.vectors))
    return {
        "problems": len(problems),
        "steered_fraction": rate,
        "decisions_without_vector": idle,
        "decisions_per_category": found,
        "answers": answers,
        "work": _work(models, rungs.vectors.layer)._asdict(),
    }


def _work(models: ModelPair, layer: int) -> Work:
    blocks = models.base.layer_count
    return Work(
        models.base.matmul_params, models.thinking.matmul_params, (blocks - 1 - layer) / blocks
    )


def _warn(run: Run, rate: float, idle: int) -> None:
    if rate == 0:
        run.reporter.say("  WARNING: the hybrid never steered; base and thinking never differ")
    if idle:
        run.reporter.say(
            f"  WARNING: {idle} decisions of the hybrid met a category whose vector is zero"
        )


def _decode(
    run: Run, step: StepFolder, models: ModelPair, problems: Sequence[Problem], one: RungPass
) -> list[HybridTrace]:
    settings = run.settings.hybrid
    drawn = settings.model_copy(update={"seed": settings.seed + one.sample})

    def answer(batch: Sequence[Problem]) -> list[HybridTrace]:
        traces = decode(models, batch, one.rung, drawn, one.seed)
        return [replace(trace, sample=one.sample, category=one.category) for trace in traces]

    with run.reporter.task(one.label, len(problems)) as advance:
        return step.grow_records(
            one.file, HybridTrace, problems, settings.batch_size, answer, advance
        )


def _steered_fraction(traces: Sequence[HybridTrace]) -> float:
    return sum(trace.decisions for trace in traces) / sum(len(trace.tokens) for trace in traces)


def _decisions_per_category(traces: Sequence[HybridTrace], size: int) -> list[int]:
    found = Counter(token.category for trace in traces for token in trace.tokens)
    return [found[category] for category in range(size)]


def _idle_decisions(traces: Sequence[HybridTrace], vectors: VectorSet) -> int:
    """Decisions at which steering could do nothing: no vector, and no bias vector either."""
    if vectors.bias is not None:
        return 0
    nonzero_categories = set(vectors.nonzero_categories().tolist())
    return sum(
        token.is_decision and token.category not in nonzero_categories
        for trace in traces
        for token in trace.tokens
    )
