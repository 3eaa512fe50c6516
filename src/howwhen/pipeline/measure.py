"""Step 5: every answer graded, every rung on one scale."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from random import Random
from typing import get_args

from howwhen.judge.endpoint import Judge, open_endpoint
from howwhen.measure.audit import Audit, Audited, audit_answers, unequal_reading
from howwhen.measure.bits import bits_of
from howwhen.measure.concentration import concentration_of
from howwhen.measure.grade import Graded, Item, Mode, open_grader
from howwhen.measure.judge import (
    JudgedAnswer,
    Judgement,
    JudgeReport,
    agreement,
    judge_answers,
)
from howwhen.measure.ladder import Budget, Category, GradedTrace, measure_ladder, reduce_trace
from howwhen.pipeline.budgets import BUDGETS_FILE
from howwhen.pipeline.context import Run
from howwhen.pipeline.files import grades_file
from howwhen.pipeline.grading import items_of
from howwhen.pipeline.store import StepFolder
from howwhen.records import (
    BUDGETS,
    KNOCK_OUTS,
    LADDER,
    PAPER_RUNGS,
    Concentration,
    HybridTrace,
    RungName,
    Split,
)

JUDGE_REPORT = "judge.json"
"""File with what a judge thinks of the grades, if one was asked."""


AUDIT = "audit.json"
"""File with what a second reader makes of the answers, if they were read twice."""
Read = list[tuple[Item, Graded]]
"""Answers with their grades in the flexible mode, in order."""


@dataclass(frozen=True)
class MeasureCounts:
    """What the step notes about its work."""

    problems: int
    rungs: int


def measure(run: Run, step: StepFolder) -> MeasureCounts:
    """Grade every trace and put all rungs on one scale."""
    settings = run.settings.measure
    judge = open_endpoint(settings, run.folder.judge_cache, run.reporter.say)
    problems = {problem.id: problem for problem in run.problems(Split.TEST)}
    decoded = run.folder.step("hybrid")
    graded: dict[str, list[GradedTrace]] = {}
    read: dict[str, Read] = {}
    concentration: Concentration | None = None
    with open_grader(settings.deadline_seconds) as grader:
        for name in decoded.read_json("passes.json"):
            traces = decoded.read_records(name, HybridTrace)
            rung = traces[0].rung
            items = items_of(run.pair, rung, traces, problems)
            flexible, strict = grader.grade(items), grader.grade(items, "strict")
            bits = bits_of(rung, traces) or repeat(None)
            graded.setdefault(rung, []).extend(map(reduce_trace, traces, flexible, strict, bits))
            if rung == "takeover":
                concentration = concentration or _concentration(run, traces)
            if rung not in BUDGETS:  # many passes that differ little
                read.setdefault(rung, []).extend(zip(items, flexible, strict=True))
        read = {rung: read[rung] for rung in (*LADDER, *PAPER_RUNGS, *KNOCK_OUTS) if rung in read}
        audited = audit_answers(read, grader) if settings.reads_twice else None
    ladder = {rung: graded[rung] for rung in (*LADDER, *PAPER_RUNGS) if rung in graded}
    knock_outs = {rung: graded[rung] for rung in KNOCK_OUTS if rung in graded}
    categories = _categories(run) if knock_outs else []
    summary = run.hybrid_summary()
    measurement = measure_ladder(
        ladder,
        settings,
        knock_outs,
        categories,
        summary.fitted,
        summary.base_parameters,
        _budgets(decoded, graded),
    )
    measurement = replace(measurement, concentration=concentration)
    step.write_record("measurement.json", measurement)
    for name, graded_traces in graded.items():
        step.write_records(grades_file(name), graded_traces)
    audit = audited.audit if audited else None
    if judge is not None and audited is not None and settings.judge_disputed:
        audit = _judge_disputed(run, step, judge, read, graded, audited)
    elif judge is not None:
        _judge(run, step, judge, read, graded)
    if audit is not None:
        step.write_record(AUDIT, audit)
    for line in unequal_reading(measurement, audit):
        run.reporter.say(f"  WARNING: read unequally: {line}")
    return MeasureCounts(problems=measurement.n, rungs=len(measurement.rungs))


def _concentration(run: Run, traces: Sequence[HybridTrace]) -> Concentration | None:
    """Of the divergence in the answers of one pass."""
    sentences = Counter(annotation.category for annotation in run.annotations())
    steered = run.hybrid_summary().decisions_per_category
    gate = run.folder.step("elicit").read_gate("gate.safetensors")
    counts = {
        f"{number}: {title}": (steered[number], sentences[number])
        for number, title in enumerate(gate.titles)
        if gate.kind != "clusters"  # whose categories are none of the sentences'
    }
    tokenizer = run.pair.tokenizer

    def word(number: int) -> str:
        return repr(str(tokenizer.decode([number])))

    return concentration_of("takeover", traces, word, counts)


def _budgets(decoded: StepFolder, graded: Mapping[str, Sequence[GradedTrace]]) -> list[Budget]:
    """What was decoded with smaller budgets."""
    if not any(rung in graded for rung in BUDGETS):
        return []
    thresholds: Mapping[RungName, Mapping[str, float]] = decoded.read_json(BUDGETS_FILE)
    return [
        Budget(
            full,
            float(budget),
            threshold,
            [trace for trace in graded[f"{full}-budget"] if trace.budget == float(budget)],
        )
        for full, by_budget in thresholds.items()
        for budget, threshold in by_budget.items()
    ]


def _judge(
    run: Run,
    step: StepFolder,
    judge: Judge,
    read: Mapping[str, Read],
    graded: Mapping[str, Sequence[GradedTrace]],
) -> None:
    """Ask a judge about every answer, and write how often it agrees with each mode.

    `judged/RUNG.jsonl` has a line for each line of `grades/RUNG.jsonl`.
    """
    repeats = run.settings.measure.judge_repeats
    judged: list[Judgement] = []
    for rung, pairs in read.items():
        judgements = judge_answers([item for item, _ in pairs], judge, repeats)
        step.write_records(f"judged/{rung}.jsonl", judgements)
        judged += judgements
    traces = [trace for rung in read for trace in graded[rung]]
    step.write_record(JUDGE_REPORT, _report(judge, repeats, traces, judged))


def _judge_disputed(
    run: Run,
    step: StepFolder,
    judge: Judge,
    read: Mapping[str, Read],
    graded: Mapping[str, Sequence[GradedTrace]],
    audited: Audited,
) -> Audit:
    """Ask a judge about disputed answers and a random sample of all, and write what it says.

    Returns:
        The audit in which the judge decides about disputed answers.
    """
    settings = run.settings.measure
    places = [(rung, index) for rung, pairs in read.items() for index in range(len(pairs))]
    disputed = [place for place in places if audited.is_disputed(*place)]
    drawn = Random(settings.seed).sample(places, min(settings.judge_sample, len(places)))
    asked = list(dict.fromkeys([*disputed, *drawn]))
    items = [read[rung][index][0] for rung, index in asked]
    judgements = judge_answers(items, judge, settings.judge_repeats)
    step.write_records(
        "judged.jsonl",
        [
            JudgedAnswer(*place, audited.is_disputed(*place), judgement)
            for place, judgement in zip(asked, judgements, strict=True)
        ],
    )
    judged = dict(zip(asked, judgements, strict=True))
    traces = [graded[rung][index] for rung, index in drawn]
    report = _report(judge, settings.judge_repeats, traces, [judged[place] for place in drawn])
    flexible = [graded[rung][index].flexible for rung, index in disputed]
    step.write_record(
        JUDGE_REPORT,
        replace(
            report,
            unparsable=sum(judgement.unparsable for judgement in judgements),
            sample=len(drawn),
            disputed=agreement(flexible, [judged[place] for place in disputed]),
        ),
    )
    return audited.settled(judged)


def _report(
    judge: Judge, repeats: int, traces: Sequence[GradedTrace], judged: Sequence[Judgement]
) -> JudgeReport:
    modes: tuple[Mode, ...] = get_args(Mode)
    return JudgeReport(
        model=judge.model,
        repeats=repeats,
        unparsable=sum(judgement.unparsable for judgement in judged),
        agreement={
            mode: agreement([trace.grade(mode) for trace in traces], judged) for mode in modes
        },
        usage=judge.usage,
    )


def _categories(run: Run) -> list[Category]:
    titles = run.folder.step("elicit").read_gate("gate.safetensors").titles
    decisions = run.hybrid_summary().decisions_per_category
    return [
        Category(number, title, count)
        for number, (title, count) in enumerate(zip(titles, decisions, strict=True))
        if count
    ]
