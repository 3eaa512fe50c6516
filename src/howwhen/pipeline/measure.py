"""Step 5: every answer graded, every rung on one scale."""

from collections.abc import Mapping, Sequence
from typing import get_args

from pydantic import TypeAdapter

from howwhen.formats.safetensors import Json
from howwhen.judge.endpoint import Judge, open_endpoint
from howwhen.measure.grade import Grader, Item, Mode, open_grader
from howwhen.measure.judge import Judgement, agreement, judge_answers
from howwhen.measure.ladder import Category, GradedTrace, measure_ladder, reduce_trace
from howwhen.pipeline.context import Run
from howwhen.pipeline.store import StepFolder
from howwhen.records import KNOCK_OUTS, LADDER, HybridTrace, Measurement, Problem, RungName, Split


def measure(run: Run, step: StepFolder) -> Json:
    """Grade every trace and put all rungs on one scale."""
    judge = open_endpoint(run.settings.measure, run.folder.judge_cache, run.reporter.say)
    problems = {problem.id: problem for problem in run.problems(Split.TEST)}
    decoded = run.folder.step("hybrid")
    graded: dict[RungName, list[GradedTrace]] = {}
    items: dict[RungName, list[Item]] = {}
    with open_grader(run.settings.measure.deadline_seconds) as grader:
        for name in decoded.read_json("passes.json"):
            traces = decoded.read_records(name, HybridTrace)
            fresh = [_item(trace, problems[trace.problem_id]) for trace in traces]
            graded.setdefault(traces[0].rung, []).extend(_grade(grader, traces, fresh))
            items.setdefault(traces[0].rung, []).extend(fresh)
    ladder = {rung: graded[rung] for rung in LADDER if rung in graded}
    knock_outs = {rung: graded[rung] for rung in KNOCK_OUTS if rung in graded}
    categories = _categories(run) if knock_outs else []
    measurement = measure_ladder(ladder, run.settings.measure, knock_outs, categories)
    step.write_json(
        "measurement.json", TypeAdapter(Measurement).dump_python(measurement, mode="json")
    )
    for rung, reduced in graded.items():
        step.write_records(grades_file(rung), reduced)
    if judge is not None:
        _judge(run, step, judge, items, graded)
    return {"problems": measurement.n, "rungs": len(measurement.rungs)}


def grades_file(rung: str) -> str:
    """Where the graded answers of a rung are kept."""
    return f"grades/{rung}.jsonl"


def _item(trace: HybridTrace, problem: Problem) -> Item:
    return Item(trace.text, problem.answer, problem.dataset, trace.finish)


def _judge(
    run: Run,
    step: StepFolder,
    judge: Judge,
    items: Mapping[RungName, Sequence[Item]],
    graded: Mapping[RungName, Sequence[GradedTrace]],
) -> None:
    """Ask a judge about every answer, and note how far it agrees with either mode.

    `judged/RUNG.jsonl` has a line for each line of `grades/RUNG.jsonl`.
    """
    settings = run.settings.measure
    judged: list[Judgement] = []
    for rung, asked in items.items():
        fresh = judge_answers(asked, judge, settings.judge_repeats)
        step.write_records(f"judged/{rung}.jsonl", fresh)
        judged += fresh
    grades = [one for rung in items for one in graded[rung]]
    modes: tuple[Mode, ...] = get_args(Mode)
    found = {mode: agreement([one.grade(mode) for one in grades], judged) for mode in modes}
    step.write_json(
        "judge.json",
        {
            "model": judge.model,
            "repeats": settings.judge_repeats,
            "unparsable": sum(one.unparsable for one in judged),
            "agreement": {
                mode: {**vars(one), "compared": one.compared, "raw": one.raw}
                for mode, one in found.items()
            },
            "usage": judge.usage._asdict(),
        },
    )


def _grade(
    grader: Grader, traces: Sequence[HybridTrace], items: Sequence[Item]
) -> list[GradedTrace]:
    both = zip(traces, grader.grade(items), grader.grade(items, "strict"), strict=True)
    return [reduce_trace(trace, flexible, strict) for trace, flexible, strict in both]


def _categories(run: Run) -> list[Category]:
    titles = run.folder.step("elicit").read_gate("gate.safetensors").titles
    provenance = run.folder.step("hybrid").read_json("provenance.json")
    found = provenance["counts"]["decisions_per_category"]
    return [
        Category(number, title, count)
        for number, (title, count) in enumerate(zip(titles, found, strict=True))
        if count
    ]
