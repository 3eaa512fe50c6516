"""Step 6: the report."""

from typing import TYPE_CHECKING

from howwhen.artifacts import Json
from howwhen.discover.portraits import Portrait
from howwhen.present.charts import can_draw, draw_knock_outs
from howwhen.present.report import ReportInput, make_report
from howwhen.records import HybridTrace, Measurement, Split
from howwhen.store import StepFolder

if TYPE_CHECKING:
    from howwhen.pipeline import Pipeline


def present(run: "Pipeline", step: StepFolder) -> Json:
    """Write the report."""
    question = {problem.id: problem.question for problem in run.problems(Split.TEST)}
    discovered, elicited = run.folder.step("discover"), run.folder.step("elicit")
    traces = run.folder.step("hybrid").read_records("traces/hybrid-0.jsonl", HybridTrace)
    shown = traces[: run.settings.present.examples]
    measurement = run.measurement()
    chart = _draw(run, step, measurement)
    decisions = elicited.read_json("provenance.json")["counts"]["decisions_per_category"]
    report = make_report(
        ReportInput(
            title=f"How much of {run.pair.name} is in its base, waiting for the moment?",
            base=run.pair.base_source,
            thinking=run.pair.thinking_source,
            measurement=measurement,
            confidence=run.settings.measure.confidence,
            cells=discovered.read_json("scores.json"),
            categories=discovered.read_records("categories.jsonl", Portrait),
            training=elicited.read_json("training.json"),
            decisions_per_category=decisions,
            examples=[(question[trace.problem_id], trace) for trace in shown],
            prompts={
                "base": run.pair.base_prompt,
                "base, step by step": run.pair.step_by_step_prompt,
                "thinking": run.pair.thinking_prompt,
            },
            chart=chart,
            judge=_read_judge(run),
        )
    )
    step.write_text("report.md", report)
    return {"examples": len(shown), "charts": int(chart is not None)}


def _read_judge(run: "Pipeline") -> Json | None:
    if run.settings.measure.judge_url is None:
        return None
    found: Json = run.folder.step("measure").read_json("judge.json")
    return found


def _draw(run: "Pipeline", step: StepFolder, measurement: Measurement) -> str | None:
    """Draw what each category carries; the name of the file, where there is anything to draw."""
    knock_outs = measurement.knock_outs
    if not knock_outs or any(one.drop is None for one in knock_outs):
        return None
    if not can_draw():
        run.reporter.say("  no chart of the knock-outs: type `pip install 'howwhen[report]'`")
        return None
    return step.write_text("knock-outs.svg", draw_knock_outs(knock_outs)).name
