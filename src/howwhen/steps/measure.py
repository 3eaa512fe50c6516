"""Step 5: every answer graded, every rung on one scale."""

from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from howwhen.measure.grade import open_grader
from howwhen.measure.ladder import GradedTrace, grade_trace, measure_ladder
from howwhen.records import LADDER, HybridTrace, Measurement, Rung, Split
from howwhen.store import Json, StepFolder

if TYPE_CHECKING:
    from howwhen.pipeline import Pipeline


def measure(run: "Pipeline", step: StepFolder) -> Json:
    """Grade every trace and put all rungs on one scale."""
    gold = {problem.id: problem.answer for problem in run.problems(Split.TEST)}
    graded: dict[Rung, list[GradedTrace]] = {}
    with open_grader(run.settings.measure.deadline_seconds) as grader:
        for file in sorted((run.folder.step("hybrid").path / "traces").glob("*.jsonl")):
            name = f"traces/{file.name}"
            for trace in run.folder.step("hybrid").read_records(name, HybridTrace):
                grade = grader.grade(trace.text, trace.finish, gold[trace.problem_id])
                graded.setdefault(trace.rung, []).append(grade_trace(trace, grade))
    traces_of = {rung: graded[rung] for rung in LADDER if rung in graded}
    measurement = measure_ladder(traces_of, run.settings.measure)
    step.write_json(
        "measurement.json", TypeAdapter(Measurement).dump_python(measurement, mode="json")
    )
    for rung, traces in traces_of.items():
        step.write_records(f"grades/{rung}.jsonl", traces)
    return {"problems": measurement.n, "rungs": len(measurement.rungs)}
