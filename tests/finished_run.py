"""A finished run of `tally-rl` made of planted records, in milliseconds: nothing is decoded."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from howwhen.discover.categories import CategorySummary, SentenceExample
from howwhen.elicit.report import ElicitReport, ProbeScores, SeedTraining, TrainingSummary
from howwhen.formats.files import Json
from howwhen.measure.ladder import GradedTrace, measure_ladder
from howwhen.measure.marks import Rule
from howwhen.pipeline.files import STEPS, Key, StepName, grades_file
from howwhen.pipeline.plan import owner_of
from howwhen.pipeline.store import RunFolder, StepFolder
from howwhen.records import (
    LADDER,
    Annotation,
    Finish,
    Grade,
    HybridToken,
    HybridTrace,
    Problem,
    Rollout,
    RungName,
    SentenceSpan,
    Split,
)
from howwhen.settings import MeasureSettings
from howwhen.zoo.pairs import find_pair
from tests.factories import make_gate, make_taxonomy, make_vectors

PAIR = find_pair("tally-rl")
SENTENCES = ("Ann starts with 3 pens.", " So the answer is 3.")
TITLES = ("plus", "<b>minus</b>", "packs", "answer")
PROBLEMS = tuple(
    Problem(f"p{number}", f"Ann has {number} pens?", "3", split)
    for number, split in enumerate([Split.TRAIN, Split.TRAIN, Split.TEST, Split.TEST, Split.TEST])
)
SEEDS: dict[RungName, tuple[int, ...]] = {
    "hybrid": (0,), "base": (0,), "random-vectors": (0, 1), "takeover": (0,), "thinking": (0,),
}  # fmt: skip
"""The rungs that were decoded, in that order, with their seeds."""
RIGHT: dict[str, tuple[str, ...]] = {
    "hybrid": ("p2", "p3"),
    "base": (),
    "random-vectors": ("p2",),
    "takeover": ("p2", "p3", "p4"),
    "thinking": ("p2", "p3", "p4"),
}
"""The problems that each rung gets right."""


def make_run(root: Path, *steps: StepName) -> RunFolder:
    """Write a run, of these steps or of all but the last."""
    folder = RunFolder(root)
    folder.claim(owner_of(PAIR))
    writers = {
        "collect": _collect,
        "discover": _discover,
        "elicit": _elicit,
        "hybrid": _hybrid,
        "measure": _measure,
    }
    for name, write in writers.items():
        if steps and name not in steps:
            continue
        earlier = STEPS[: STEPS.index(name)]
        upstream = {other: folder.step(other).digest for other in earlier}
        step, key = folder.step(name), Key({"pair": PAIR.name}, {}, upstream)  # type: ignore[arg-type]
        step.begin(key)
        step.finish(key, write(step))
    return folder


def make_rollout(problem: Problem) -> Rollout:
    """An answer of two sentences."""
    ids: list[int] = []
    spans: list[SentenceSpan] = []
    text = ""
    for sentence in SENTENCES:
        fresh = PAIR.tokenizer.encode(sentence, add_special_tokens=False)
        end = len(text) + len(sentence), len(ids) + len(fresh)
        spans.append(SentenceSpan(len(text), end[0], len(ids), end[1]))
        ids += fresh
        text += sentence
    return Rollout(problem.id, tuple(ids), text, Finish.STOP, tuple(spans))


def make_trace(rung: RungName, problem: Problem, seed: int = 0) -> HybridTrace:
    """An answer whose second token was steered (or taken over) and differs from the base's."""
    rollout = make_rollout(problem)
    is_free = rung in ("base", "thinking")
    plain = None if rung == "base" else rollout.ids
    tokens = [
        HybridToken(id_, id_, None if plain is None else id_, None, None, 0, False, -0.5,
                    None if plain is None else -0.25)
        for id_ in rollout.ids
    ]  # fmt: skip
    if not is_free:
        category = None if rung == "takeover" else 1
        coefficient, window = (None, 0) if category is None else (2.5, 1)
        tokens[1] = tokens[1]._replace(
            base_id=tokens[0].id,
            category=category,
            coefficient=coefficient,
            window=window,
            is_decision=True,
        )
    return HybridTrace(problem.id, rung, seed, rollout.text, Finish.STOP, tuple(tokens))


def make_graded(trace: HybridTrace) -> GradedTrace:
    """The grade of an answer, by `RIGHT`."""
    grade = Grade.CORRECT if trace.problem_id in RIGHT[trace.rung] else Grade.NO_ANSWER
    return GradedTrace(
        problem_id=trace.problem_id,
        seed=trace.seed,
        sample=0,
        category=None,
        flexible=grade,
        strict=grade,
        answer="3" if grade is Grade.CORRECT else None,
        rule=Rule.STATED if grade is Grade.CORRECT else None,
        finish=trace.finish,
        tokens=len(trace.tokens),
        decisions=trace.decisions,
        changed=trace.changed,
        steered_passes=trace.steered_passes,
        needs_thinking=trace.needs_thinking,
    )


def traces_of(rung: RungName) -> list[HybridTrace]:
    """All answers of a rung to the test problems."""
    asked = [problem for problem in PROBLEMS if problem.split is Split.TEST]
    return [make_trace(rung, problem, seed) for seed in SEEDS[rung] for problem in asked]


def _collect(step: StepFolder) -> Json:
    trained = [problem for problem in PROBLEMS if problem.split is Split.TRAIN]
    step.write_records("problems.jsonl", PROBLEMS)
    step.write_records("rollouts.jsonl", [make_rollout(problem) for problem in trained])
    return {}


def _discover(step: StepFolder) -> Json:
    step.write_taxonomy(replace(make_taxonomy(), titles=TITLES))
    rollouts = [make_rollout(problem) for problem in PROBLEMS if problem.split is Split.TRAIN]
    notes = [
        Annotation(rollout.problem_id, span, number, 0.75, 3 - number, 0.5)
        for rollout in rollouts
        for number, span in enumerate(rollout.spans)
    ]
    step.write_records("annotations.jsonl", notes)
    step.write_records("categories.jsonl", [_summary(number) for number in range(len(TITLES))])
    return {}


def _summary(number: int) -> CategorySummary:
    examples: Sequence[SentenceExample] = [
        SentenceExample(f"{TITLES[number]} & sentence {rank}", "p0", 0.75, 0, 0.25)
        for rank in range(5)
    ]
    counts = (number,) * 10
    return CategorySummary(
        number, TITLES[number], "", "words", 10 * number, number / 6, tuple(examples), (), counts
    )


def _elicit(step: StepFolder) -> Json:
    step.write_gate("gate.safetensors", replace(make_gate(), titles=TITLES))
    step.write_vectors("vectors.safetensors", make_vectors())
    training = TrainingSummary(0, (SeedTraining(0, 1, (1.0,), (1.0,), 1.0),))
    scores = ProbeScores(0.5, 0.5, 0.5, 15, 90)
    step.write_record("training.json", ElicitReport(training, training, {}, scores, (7, 5, 0, 3)))
    return {}


def _hybrid(step: StepFolder) -> Json:
    passes = []
    for rung, seeds in SEEDS.items():
        for seed in seeds:
            passes.append(f"traces/{rung}-{seed}.jsonl")
            traces = [trace for trace in traces_of(rung) if trace.seed == seed]
            step.write_records(passes[-1], traces)
    step.write_json("passes.json", passes)
    return {}


def _measure(step: StepFolder) -> Json:
    graded = {rung: [make_graded(trace) for trace in traces_of(rung)] for rung in SEEDS}
    ladder = {rung: graded[rung] for rung in LADDER if rung in graded}
    step.write_record(
        "measurement.json", measure_ladder(ladder, MeasureSettings(bootstrap_samples=200))
    )
    for rung, rows in graded.items():
        step.write_records(grades_file(rung), rows)
    return {}
