"""Seeds chosen by what the hybrid achieves on the selection problems (paper, second version)."""

from collections.abc import Mapping

from howwhen.hybrid.choice import Base, Rung, Steer, Thinking
from howwhen.hybrid.decoder import decode
from howwhen.measure.grade import open_grader
from howwhen.pipeline.context import Run
from howwhen.pipeline.grading import items_of
from howwhen.pipeline.rungs import chosen_strength
from howwhen.pipeline.store import StepFolder
from howwhen.probes import Gate
from howwhen.records import Grade, Split
from howwhen.vectors import VectorSet

SELECTION = "selection.json"
"""Accuracy on the selection problems, of base, thinking model and the hybrid of every seed."""


def selection_gaps(
    run: Run, step: StepFolder, gate: Gate, candidates: Mapping[int, VectorSet]
) -> dict[int, float]:
    """What the hybrid of every seed gains over the base, as a share of the gap's size, signed.

    More is better even where the thinking model is the weaker one on these problems. Without a gap
    it is the difference from the base. What was decoded before is not decoded again.

    Args:
        run: whose selection problems are answered.
        step: where the accuracies are kept, one by one.
        gate: of the hybrid.
        candidates: vectors by seed.
    """
    strength = chosen_strength(run.settings)
    rungs: dict[str, Rung] = {"base": Base(), "thinking": Thinking()}
    rungs |= {str(seed): Steer(gate, one, strength) for seed, one in candidates.items()}
    found: dict[str, float] = {}
    if (step.path / SELECTION).exists():
        found = step.read_object(SELECTION)
    with run.reporter.task("selection problems answered, rungs", len(rungs)) as advance:
        for number, (name, rung) in enumerate(rungs.items(), start=1):
            if name not in found:
                found[name] = _accuracy(run, rung)
                step.write_json(SELECTION, found)
            advance(number)
    base, gap = found["base"], abs(found["thinking"] - found["base"])
    return {seed: (found[str(seed)] - base) / (gap or 1.0) for seed in candidates}


def _accuracy(run: Run, rung: Rung) -> float:
    """Share of the selection problems that a rung answers right."""
    problems = run.problems(Split.SELECTION)
    settings = run.settings.hybrid.of_rung(rung.name)
    traces = decode(run.models(), problems, rung, settings, slots=settings.batch_size)
    named = {problem.id: problem for problem in problems}
    with open_grader(run.settings.measure.deadline_seconds) as grader:
        grades = grader.grade(items_of(run.pair, rung.name, traces, named))
    return sum(one.grade is Grade.CORRECT for one in grades) / len(grades)
