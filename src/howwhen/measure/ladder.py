"""From graded traces to the measurement: every rung, with counts, intervals and cost."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from howwhen.errors import StoreError
from howwhen.measure.recovery import Bootstrap, Outcomes
from howwhen.records import Grade, HybridTrace, Measurement, Rung, RungMeasurement
from howwhen.settings import MeasureSettings


@dataclass(frozen=True)
class GradedTrace:
    """A trace reduced to what is measured."""

    problem_id: str
    seed: int
    grade: Grade
    tokens: int
    decisions: int
    changed: int


def grade_trace(trace: HybridTrace, grade: Grade) -> GradedTrace:
    """Reduce a trace, with its grade, to its counts."""
    return GradedTrace(
        trace.problem_id, trace.seed, grade, len(trace.tokens), trace.decisions, trace.changed
    )


def measure_ladder(
    ladder: Mapping[Rung, Sequence[GradedTrace]], settings: MeasureSettings
) -> Measurement:
    """Put all rungs on one scale.

    Raises:
        StoreError: rungs that answered different problems, or a ladder without its two ends.
    """
    problems = sorted({trace.problem_id for trace in ladder.get("base", ())})
    outcomes = {rung: _outcomes(rung, traces, problems) for rung, traces in ladder.items()}
    if not problems or "thinking" not in outcomes:
        raise StoreError("the ladder needs the rungs base and thinking; run `howwhen hybrid` again")
    bootstrap = Bootstrap.draw(len(problems), settings)
    base, thinking = outcomes["base"], outcomes["thinking"]
    gaps = bootstrap.means(thinking) - bootstrap.means(base)
    return Measurement(
        n=len(problems),
        gap=float(thinking.mean() - base.mean()),
        gap_ci=bootstrap.interval(gaps),
        rungs={
            rung: _measure_rung(traces, outcomes[rung], base, thinking, bootstrap)
            for rung, traces in ladder.items()
        },
    )


def _measure_rung(
    traces: Sequence[GradedTrace],
    outcomes: Outcomes,
    base: Outcomes,
    thinking: Outcomes,
    bootstrap: Bootstrap,
) -> RungMeasurement:
    tokens = sum(trace.tokens for trace in traces)
    recovery = bootstrap.recovery(outcomes, base, thinking)
    found = Counter(trace.grade for trace in traces)
    return RungMeasurement(
        accuracy=float(outcomes.mean()),
        accuracy_ci=bootstrap.interval(bootstrap.means(outcomes)),
        counts={grade.value: found[grade] for grade in Grade},
        steered_fraction=sum(trace.decisions for trace in traces) / tokens,
        changed_fraction=sum(trace.changed for trace in traces) / tokens,
        gap_recovered=recovery.value if recovery else None,
        gap_recovered_ci=recovery.interval if recovery else None,
        gap_recovered_clamped=recovery.clamped if recovery else None,
        seeds=tuple(sorted({trace.seed for trace in traces})),
        tokens_per_answer=tokens / len(traces),
    )


def _outcomes(rung: Rung, traces: Sequence[GradedTrace], problems: Sequence[str]) -> Outcomes:
    """Share of right answers per problem, over the rung's seeds."""
    right: dict[str, list[bool]] = {problem: [] for problem in problems}
    for trace in traces:
        if trace.problem_id not in right:
            raise StoreError(
                f"rung {rung} answered problem {trace.problem_id}, which base did not; delete the "
                "hybrid step's folder and run `howwhen hybrid` again"
            )
        right[trace.problem_id].append(trace.grade is Grade.CORRECT)
    if len({len(answers) for answers in right.values()}) != 1:
        raise StoreError(
            f"rung {rung} did not answer every problem equally often; delete the hybrid step's "
            "folder and run `howwhen hybrid` again"
        )
    return np.array([np.mean(answers) for answers in right.values()])
