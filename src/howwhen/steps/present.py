"""Step 6: the report."""

from typing import TYPE_CHECKING

from howwhen.present.report import ReportInput, make_report
from howwhen.records import HybridTrace, Split
from howwhen.steps.rungs import trace_file
from howwhen.store import Json, StepFolder

if TYPE_CHECKING:
    from howwhen.pipeline import Pipeline


def present(run: "Pipeline", step: StepFolder) -> Json:
    """Write the report."""
    question = {problem.id: problem.question for problem in run.problems(Split.TEST)}
    discovered, elicited = run.folder.step("discover"), run.folder.step("elicit")
    traces = run.folder.step("hybrid").read_records(trace_file("hybrid", 0), HybridTrace)
    shown = traces[: run.settings.present.examples]
    decisions = elicited.read_json("provenance.json")["counts"]["decisions_per_category"]
    report = make_report(
        ReportInput(
            title=f"How much of {run.pair.name} is in its base, waiting for the moment?",
            base=run.pair.base_source,
            thinking=run.pair.thinking_source,
            measurement=run.measurement(),
            confidence=run.settings.measure.confidence,
            cells=discovered.read_json("scores.json"),
            categories=discovered.read_json("categories.json"),
            training=elicited.read_json("training.json"),
            decisions_per_category=decisions,
            examples=[(question[trace.problem_id], trace) for trace in shown],
        )
    )
    step.write_text("report.md", report)
    return {"examples": len(shown)}
