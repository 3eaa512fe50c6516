"""Step 4: the test problems on every rung of the ladder."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from howwhen.alignment import ModelPair
from howwhen.hybrid.choice import Choice, RandomCategory, RandomPositions, RandomVectors
from howwhen.hybrid.decoder import decode
from howwhen.records import HybridTrace, Problem, Rung, Split, VectorSet
from howwhen.steps.rungs import Rungs, trace_file
from howwhen.store import Json, StepFolder

if TYPE_CHECKING:
    from howwhen.pipeline import Pipeline


def hybrid(run: "Pipeline", step: StepFolder) -> Json:
    """Decode the test problems on every rung of the ladder."""
    problems, models = run.problems(Split.TEST), run.models()
    rungs = Rungs.read(run.pair, run.folder.step("elicit"), run.settings)
    traces = _decode(run, step, models, problems, rungs.full, 0)
    rate = _steered_fraction(traces)
    answers: Counter[Rung] = Counter({"hybrid": len(traces)})
    for choice, seed in rungs.controls(rate):
        answers[choice.name] += len(_decode(run, step, models, problems, choice, seed))
    if rate == 0:
        run.reporter.say("  WARNING: the hybrid never steered; base and thinking never differ")
    idle = _idle_decisions(traces, rungs.vectors)
    if idle:
        run.reporter.say(
            f"  WARNING: {idle} decisions of the hybrid met a category whose vector is zero"
        )
    return {
        "problems": len(problems),
        "steered_fraction": rate,
        "decisions_without_vector": idle,
        "answers": answers,
    }


def _decode(
    run: "Pipeline",
    step: StepFolder,
    models: ModelPair,
    problems: Sequence[Problem],
    choice: Choice,
    seed: int,
) -> list[HybridTrace]:
    settings = run.settings.hybrid
    is_random = isinstance(choice, RandomCategory | RandomPositions | RandomVectors)
    label = f"{choice.name}, seed {seed}" if is_random else choice.name
    with run.reporter.task(label, len(problems)) as advance:
        return step.grow_records(
            trace_file(choice.name, seed),
            HybridTrace,
            problems,
            settings.batch_size,
            lambda batch: decode(models, batch, choice, settings, seed),
            advance,
        )


def _steered_fraction(traces: Sequence[HybridTrace]) -> float:
    return sum(trace.decisions for trace in traces) / sum(len(trace.tokens) for trace in traces)


def _idle_decisions(traces: Sequence[HybridTrace], vectors: VectorSet) -> int:
    """Decisions at which steering could do nothing: no vector, and no bias vector either."""
    if vectors.bias is not None:
        return 0
    trained = set(vectors.trained().tolist())
    return sum(
        token.is_decision and token.category not in trained
        for trace in traces
        for token in trace.tokens
    )
