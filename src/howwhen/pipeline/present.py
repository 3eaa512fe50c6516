"""Step 6: the report."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from howwhen.discover.categories import CategorySummary
from howwhen.formats.files import Json
from howwhen.lm.models import LanguageModel
from howwhen.measure.audit import Audit
from howwhen.measure.judge import JudgeReport
from howwhen.measure.ladder import GradedTrace
from howwhen.pipeline.context import REPORT, Run
from howwhen.pipeline.discover import read_counts, read_grid, taxonomy_page
from howwhen.pipeline.files import grades_file
from howwhen.pipeline.measure import AUDIT, JUDGE_REPORT
from howwhen.pipeline.store import StepFolder
from howwhen.present.charts import (
    can_draw,
    draw_bits,
    draw_budgets,
    draw_knock_outs,
    draw_ladder,
    draw_losses,
)
from howwhen.present.html import Charts, HtmlInput, make_html
from howwhen.present.report import ReportInput, make_report
from howwhen.present.viewer import GradedAnswer, PackedViewer, Viewer, pack_viewer
from howwhen.records import HybridTrace, Measurement, RungName, Split


def present(run: Run, step: StepFolder) -> Json:
    """Write the report as an HTML page and as Markdown."""
    charts = _draw(run)
    knock_outs = None
    if charts.knock_outs:
        knock_outs = step.write_text("knock-outs.svg", charts.knock_outs).name
    report = _report(run, knock_outs)
    step.write_text("report.md", make_report(report))
    discovered, elicited = run.folder.step("discover"), run.folder.step("elicit")
    titles = elicited.read_gate("gate.safetensors").titles
    viewer = _viewer(run, titles)
    page = make_html(
        HtmlInput(
            report=report,
            taxonomy=taxonomy_page(
                run,
                discovered,
                read_counts(discovered),
                read_grid(discovered),
            ),
            vectors=elicited.read_vectors("vectors.safetensors"),
            titles=titles,
            charts=charts,
            viewer=viewer,
            settings=_flat(run.settings.model_dump(mode="json", exclude_defaults=True)),
            version=version("howwhen"),
        )
    )
    step.write_text(REPORT, page)
    return {
        "examples": len(report.examples),
        "problems_in_viewer": viewer.problems,
        "charts": sum(bool(chart) for chart in vars(charts).values()),
        "page_bytes": len(page.encode()),
    }


def _report(run: Run, chart: str | None) -> ReportInput:
    question = {problem.id: problem.question for problem in run.problems(Split.TEST)}
    discovered = run.folder.step("discover")
    traces = run.folder.step("hybrid").read_records("traces/hybrid-0.jsonl", HybridTrace)
    shown = traces[: run.settings.present.examples]
    return ReportInput(
        title=f"How much of {run.pair.title} can its base model do when steered?",
        base=run.pair.base_source,
        thinking=run.pair.thinking_source,
        measurement=run.measurement(),
        work=run.hybrid_summary().work,
        confidence=run.settings.measure.confidence,
        rows=read_grid(discovered),
        categories=discovered.read_records("categories.jsonl", CategorySummary),
        training=run.elicit_report(),
        decisions_per_category=run.elicit_report().decisions_per_category,
        examples=[(question[trace.problem_id], trace) for trace in shown],
        prompts={
            "base": _how_asked(run.pair.base_prompt, run.pair.base_outline),
            "base, step by step": run.pair.step_by_step_prompt,
            "thinking": _how_asked(run.pair.thinking_prompt, run.pair.thinking_outline),
        },
        chart=chart,
        judge=_read_judge(run),
        audit=_read_audit(run),
    )


def _how_asked(prompt: str, outline: LanguageModel) -> str:
    """A prompt, its template arguments, and whether answers begin inside the thinking."""
    arguments = f" with {json.dumps(dict(outline.template))}" if outline.template else ""
    inside = f"; it ends in {outline.think_tags[0]}" if outline.starts_in_thinking else ""
    return f"{prompt}{arguments}{inside}"


def _read_judge(run: Run) -> JudgeReport | None:
    measured = run.folder.step("measure")
    return measured.read_record(JUDGE_REPORT, JudgeReport) if measured.holds(JUDGE_REPORT) else None


def _read_audit(run: Run) -> Audit | None:
    measured = run.folder.step("measure")
    return measured.read_record(AUDIT, Audit) if measured.holds(AUDIT) else None


def _viewer(run: Run, titles: tuple[str, ...]) -> PackedViewer:
    """Every rung's first answer to every test problem."""
    decoded, measured = run.folder.step("hybrid"), run.folder.step("measure")
    answers: dict[RungName, dict[str, GradedAnswer]] = {}
    for rung in run.measurement().rungs:
        graded = {
            (grade.problem_id, grade.seed, grade.sample): grade
            for grade in measured.read_records(grades_file(rung), GradedTrace)
        }
        for name in decoded.read_json("passes.json"):
            if not name.startswith(f"traces/{rung}-"):
                continue
            for trace in decoded.read_records(name, HybridTrace):
                if trace.rung == rung and trace.problem_id not in answers.get(rung, {}):
                    grade = graded[trace.problem_id, trace.seed, trace.sample]
                    answers.setdefault(rung, {})[trace.problem_id] = GradedAnswer(trace, grade)
    problems = [problem for problem in run.problems(Split.TEST) if problem.id in answers["hybrid"]]
    viewer = Viewer(problems, answers, titles, run.measurement().mode)
    return pack_viewer(viewer, run.pair.tokenizer)


def _draw(run: Run) -> Charts:
    """The charts of the run; none without matplotlib, and none without data for them."""
    measurement = run.measurement()
    if not can_draw():
        run.reporter.say("  no charts: type `pip install 'howwhen[report]'`")
        return Charts()
    return Charts(
        ladder=draw_ladder(measurement),
        bits=draw_bits(measurement),
        budgets=draw_budgets(measurement),
        losses=draw_losses(run.elicit_report()),
        knock_outs=_draw_knock_outs(measurement),
    )


def _draw_knock_outs(measurement: Measurement) -> str:
    knock_outs = measurement.knock_outs
    if not knock_outs or any(knock_out.drop is None for knock_out in knock_outs):
        return ""
    return draw_knock_outs(knock_outs)


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings by the full names that are typed for them."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        full = f"{above}{name}"
        flat |= _flat(value, f"{full}.") if isinstance(value, Mapping) else {full: value}
    return flat
