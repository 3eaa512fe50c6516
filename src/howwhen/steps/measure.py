"""Step 5: every answer graded, every rung on one scale."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from howwhen.measure.grade import Grader, Item, open_grader
from howwhen.measure.ladder import Category, GradedTrace, measure_ladder, reduce_trace
from howwhen.records import KNOCK_OUTS, LADDER, HybridTrace, Measurement, Problem, Rung, Split
from howwhen.store import Json, StepFolder

if TYPE_CHECKING:
    from howwhen.pipeline import Pipeline


def measure(run: "Pipeline", step: StepFolder) -> Json:
    """Grade every trace and put all rungs on one scale."""
    problems = {problem.id: problem for problem in run.problems(Split.TEST)}
    decoded = run.folder.step("hybrid")
    graded: dict[Rung, list[GradedTrace]] = {}
    with open_grader(run.settings.measure.deadline_seconds) as grader:
        for name in decoded.read_json("passes.json"):
            traces = decoded.read_records(name, HybridTrace)
            graded.setdefault(traces[0].rung, []).extend(_grade(grader, traces, problems))
    ladder = {rung: graded[rung] for rung in LADDER if rung in graded}
    knock_outs = {rung: graded[rung] for rung in KNOCK_OUTS if rung in graded}
    categories = _categories(run) if knock_outs else []
    measurement = measure_ladder(ladder, run.settings.measure, knock_outs, categories)
    step.write_json(
        "measurement.json", TypeAdapter(Measurement).dump_python(measurement, mode="json")
    )
    for rung, reduced in graded.items():
        step.write_records(grades_file(rung), reduced)
    return {"problems": measurement.n, "rungs": len(measurement.rungs)}


def grades_file(rung: str) -> str:
    """Where the graded answers of a rung are kept."""
    return f"grades/{rung}.jsonl"


def _grade(
    grader: Grader, traces: Sequence[HybridTrace], problems: dict[str, Problem]
) -> list[GradedTrace]:
    items = [
        Item(trace.text, problem.answer, problem.dataset, trace.finish)
        for trace in traces
        for problem in [problems[trace.problem_id]]
    ]
    both = zip(traces, grader.grade(items), grader.grade(items, "strict"), strict=True)
    return [reduce_trace(trace, flexible, strict) for trace, flexible, strict in both]


def _categories(run: "Pipeline") -> list[Category]:
    titles = run.folder.step("elicit").read_gate("gate.safetensors").titles
    provenance = run.folder.step("hybrid").read_json("provenance.json")
    found = provenance["counts"]["decisions_per_category"]
    return [
        Category(number, title, count)
        for number, (title, count) in enumerate(zip(titles, found, strict=True))
        if count
    ]
