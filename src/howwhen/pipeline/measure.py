"""Step 5: every answer graded, every rung on one scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from howwhen.judge.endpoint import Judge, open_endpoint
from howwhen.lm.prompts import ThinkTags
from howwhen.measure.grade import Grader, Item, Mode, open_grader
from howwhen.measure.judge import Judgement, JudgeReport, agreement, judge_answers
from howwhen.measure.ladder import Category, GradedTrace, measure_ladder, reduce_trace
from howwhen.pipeline.context import Run
from howwhen.pipeline.files import grades_file
from howwhen.pipeline.store import StepFolder
from howwhen.records import KNOCK_OUTS, LADDER, HybridTrace, Problem, RungName, Split
from howwhen.zoo.pairs import Pair

JUDGE_REPORT = "judge.json"
"""File with what a judge thinks of the grades, if one was asked."""


@dataclass(frozen=True)
class MeasureCounts:
    """What the step notes about its work."""

    problems: int
    rungs: int


def measure(run: Run, step: StepFolder) -> MeasureCounts:
    """Grade every trace and put all rungs on one scale."""
    judge = open_endpoint(run.settings.measure, run.folder.judge_cache, run.reporter.say)
    problems = {problem.id: problem for problem in run.problems(Split.TEST)}
    decoded = run.folder.step("hybrid")
    graded: dict[RungName, list[GradedTrace]] = {}
    items: dict[RungName, list[Item]] = {}
    with open_grader(run.settings.measure.deadline_seconds) as grader:
        for name in decoded.read_json("passes.json"):
            traces = decoded.read_records(name, HybridTrace)
            rung = traces[0].rung
            tags, is_begun = run.pair.think_tags, _starts_in_thinking(run.pair, rung)
            rung_items = [
                _item(trace, problems[trace.problem_id], tags, is_begun) for trace in traces
            ]
            graded.setdefault(rung, []).extend(_grade(grader, traces, rung_items))
            items.setdefault(rung, []).extend(rung_items)
    ladder = {rung: graded[rung] for rung in LADDER if rung in graded}
    knock_outs = {rung: graded[rung] for rung in KNOCK_OUTS if rung in graded}
    categories = _categories(run) if knock_outs else []
    measurement = measure_ladder(ladder, run.settings.measure, knock_outs, categories)
    step.write_record("measurement.json", measurement)
    for rung, graded_traces in graded.items():
        step.write_records(grades_file(rung), graded_traces)
    if judge is not None:
        _judge(run, step, judge, items, graded)
    return MeasureCounts(problems=measurement.n, rungs=len(measurement.rungs))


def _starts_in_thinking(pair: Pair, rung: RungName) -> bool:
    """Whether the prompt of the model that writes a rung's answers ends in the opening tag."""
    if rung == "base-step-by-step":
        return False  # its prompt ends in a request
    writer = pair.thinking_outline if rung == "thinking" else pair.base_outline
    return writer.prompt_ends_in(pair.think_tags[0])


def _item(
    trace: HybridTrace, problem: Problem, think_tags: ThinkTags, starts_in_thinking: bool
) -> Item:
    return Item(
        trace.text,
        problem.answer,
        problem.dataset,
        trace.finish,
        question=problem.question,
        think_tags=think_tags,
        starts_in_thinking=starts_in_thinking,
    )


def _judge(
    run: Run,
    step: StepFolder,
    judge: Judge,
    items: Mapping[RungName, Sequence[Item]],
    graded: Mapping[RungName, Sequence[GradedTrace]],
) -> None:
    """Ask a judge about every answer, and write how often it agrees with each mode.

    `judged/RUNG.jsonl` has a line for each line of `grades/RUNG.jsonl`.
    """
    settings = run.settings.measure
    judged: list[Judgement] = []
    for rung, rung_items in items.items():
        judgements = judge_answers(rung_items, judge, settings.judge_repeats)
        step.write_records(f"judged/{rung}.jsonl", judgements)
        judged += judgements
    traces = [trace for rung in items for trace in graded[rung]]
    modes: tuple[Mode, ...] = get_args(Mode)
    report = JudgeReport(
        model=judge.model,
        repeats=settings.judge_repeats,
        unparsable=sum(judgement.unparsable for judgement in judged),
        agreement={
            mode: agreement([trace.grade(mode) for trace in traces], judged) for mode in modes
        },
        usage=judge.usage,
    )
    step.write_record(JUDGE_REPORT, report)


def _grade(
    grader: Grader, traces: Sequence[HybridTrace], items: Sequence[Item]
) -> list[GradedTrace]:
    grades = zip(traces, grader.grade(items), grader.grade(items, "strict"), strict=True)
    return [reduce_trace(trace, flexible, strict) for trace, flexible, strict in grades]


def _categories(run: Run) -> list[Category]:
    titles = run.folder.step("elicit").read_gate("gate.safetensors").titles
    decisions = run.hybrid_summary().decisions_per_category
    return [
        Category(number, title, count)
        for number, (title, count) in enumerate(zip(titles, decisions, strict=True))
        if count
    ]
