"""From graded traces to the measurement: every rung, with counts, intervals and cost."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from howwhen.errors import StoreError
from howwhen.measure.grade import Graded, Mode
from howwhen.measure.marks import Rule
from howwhen.measure.recovery import Bootstrap, Outcomes, find_flips, find_gains, pass_at_k
from howwhen.records import (
    Comparison,
    Finish,
    Grade,
    HybridTrace,
    KnockOut,
    Measurement,
    RungMeasurement,
    RungName,
)
from howwhen.settings import MeasureSettings


@dataclass(frozen=True)
class GradedTrace:
    """A trace reduced to what is measured."""

    problem_id: str
    seed: int
    sample: int
    category: int | None
    """The category of a knock-out; None elsewhere."""
    flexible: Grade
    strict: Grade
    answer: str | None
    """What the flexible mode read as the answer."""
    rule: Rule | None
    """How it was found."""
    finish: Finish
    tokens: int
    decisions: int
    changed: int
    steered_passes: int
    needs_thinking: bool
    ties: int = 0
    """Interventions at which a model's choice was a tie."""
    is_open: bool = False
    """Whether the text stops inside its thinking."""
    is_loop: bool = False
    """Whether it ends in the same words again and again."""

    def grade(self, mode: Mode) -> Grade:
        """The grade by one of the modes."""
        return self.flexible if mode == "flexible" else self.strict


@dataclass(frozen=True)
class Category:
    """A category of the taxonomy, and how often the hybrid steered with it."""

    number: int
    title: str
    decisions: int


def reduce_trace(trace: HybridTrace, flexible: Graded, strict: Graded) -> GradedTrace:
    """Reduce a trace to its grades and counts."""
    return GradedTrace(
        problem_id=trace.problem_id,
        seed=trace.seed,
        sample=trace.sample,
        category=trace.category,
        flexible=flexible.grade,
        strict=strict.grade,
        answer=flexible.answer.text if flexible.answer else None,
        rule=flexible.answer.rule if flexible.answer else None,
        finish=trace.finish,
        tokens=len(trace.tokens),
        decisions=trace.decisions,
        ties=trace.ties,
        changed=trace.changed,
        steered_passes=trace.steered_passes,
        needs_thinking=trace.needs_thinking,
        is_open=flexible.is_open,
        is_loop=flexible.is_loop,
    )


def measure_ladder(
    ladder: Mapping[RungName, Sequence[GradedTrace]],
    settings: MeasureSettings,
    knock_outs: Mapping[RungName, Sequence[GradedTrace]] | None = None,
    categories: Sequence[Category] = (),
) -> Measurement:
    """Put all rungs on one scale.

    Args:
        ladder: traces of every rung.
        settings: grading mode and bootstrap.
        knock_outs: traces of the hybrid without each category, and with each alone.
        categories: the ones that were knocked out.

    Raises:
        StoreError: rungs answered different problems, or one of the two ends is missing.
    """
    problems = sorted({trace.problem_id for trace in ladder.get("base", ())})
    outcomes = {
        rung: find_outcomes(rung, traces, problems, settings.mode)
        for rung, traces in ladder.items()
    }
    if not problems or "thinking" not in outcomes:
        raise StoreError("the ladder needs the rungs base and thinking; run `howwhen hybrid` again")
    bootstrap = Bootstrap.draw(len(problems), settings)
    base, thinking = outcomes["base"], outcomes["thinking"]
    gaps = bootstrap.means(thinking) - bootstrap.means(base)
    scale = _Scale(bootstrap, base, thinking, outcomes.get("hybrid"), settings.mode)
    return Measurement(
        n=len(problems),
        mode=settings.mode,
        gap=float(thinking.mean() - base.mean()),
        gap_ci=bootstrap.interval(gaps),
        rungs={rung: scale.rung(rung, ladder[rung], outcomes[rung]) for rung in ladder},
        knock_outs=tuple(
            scale.knock_out(category, knock_outs or {}, problems) for category in categories
        ),
    )


@dataclass(frozen=True)
class _Scale:
    """The two ends of the ladder, between which everything is measured."""

    bootstrap: Bootstrap
    base: Outcomes
    thinking: Outcomes
    hybrid: Outcomes | None
    mode: Mode

    def rung(
        self, name: RungName, traces: Sequence[GradedTrace], outcomes: Outcomes
    ) -> RungMeasurement:
        """One rung's numbers."""
        tokens = sum(trace.tokens for trace in traces)
        recovery = self.bootstrap.recovery(outcomes, self.base, self.thinking)
        grades = Counter(trace.grade(self.mode) for trace in traces)
        seeds = tuple(sorted({trace.seed for trace in traces}))
        samples = outcomes.shape[2]
        ks = [2**power for power in range(samples.bit_length())] if samples > 1 else []
        return RungMeasurement(
            accuracy=float(outcomes.mean()),
            accuracy_ci=self.bootstrap.accuracy_interval(outcomes),
            flexible_accuracy=_share_right(traces, "flexible"),
            strict_accuracy=_share_right(traces, "strict"),
            counts={grade.value: grades[grade] for grade in Grade},
            truncated_fraction=_mean(trace.finish is Finish.LENGTH for trace in traces),
            steered_fraction=sum(trace.decisions for trace in traces) / tokens,
            changed_fraction=sum(trace.changed for trace in traces) / tokens,
            gap_recovered=recovery.value if recovery else None,
            gap_recovered_ci=recovery.interval if recovery else None,
            gap_recovered_clamped=recovery.clamped if recovery else None,
            seeds=seeds,
            samples=samples,
            tokens_per_answer=tokens / len(traces),
            steered_passes_per_answer=_mean(trace.steered_passes for trace in traces),
            needs_thinking=any(trace.needs_thinking for trace in traces),
            pass_at_k={k: pass_at_k(outcomes[:, 0], k) for k in ks} if len(seeds) == 1 else {},
            against_hybrid=self._against_hybrid(name, outcomes),
            gains=find_gains(outcomes, self.base, self.thinking),
            flips=None if name == "base" else find_flips(outcomes, self.base),
            tie_fraction=sum(trace.ties for trace in traces) / tokens,
            read_by=dict(Counter(trace.rule.value for trace in traces if trace.rule)),
            open_fraction=_mean(trace.is_open for trace in traces),
            loop_fraction=_mean(trace.is_loop for trace in traces),
        )

    def _against_hybrid(self, name: RungName, outcomes: Outcomes) -> Comparison | None:
        if name == "hybrid" or self.hybrid is None:
            return None
        return self.bootstrap.compare(outcomes, self.hybrid)

    def knock_out(
        self,
        category: Category,
        traces: Mapping[RungName, Sequence[GradedTrace]],
        problems: Sequence[str],
    ) -> KnockOut:
        """What the hybrid recovers without one category, and with it alone."""
        if self.hybrid is None:
            raise StoreError("knock-outs need the rung hybrid; run `howwhen hybrid` again")
        without, alone = (
            find_outcomes(
                rung,
                [trace for trace in traces.get(rung, ()) if trace.category == category.number],
                problems,
                self.mode,
            )
            for rung in ("without-category", "one-category")
        )
        full = self.bootstrap.recovery(self.hybrid, self.base, self.thinking)
        less = self.bootstrap.recovery(without, self.base, self.thinking)
        only = self.bootstrap.recovery(alone, self.base, self.thinking)
        return KnockOut(
            category=category.number,
            title=category.title,
            decisions=category.decisions,
            without=less.value if less else None,
            without_ci=less.interval if less else None,
            drop=full.value - less.value if full and less else None,
            drop_ci=self.bootstrap.drop(self.hybrid, without, self.base, self.thinking),
            alone=only.value if only else None,
            alone_ci=only.interval if only else None,
        )


def find_outcomes(
    rung: str, traces: Sequence[GradedTrace], problems: Sequence[str], mode: Mode
) -> Outcomes:
    """Right and wrong, by problem, seed and sample.

    Raises:
        StoreError: a problem is not among `problems`, or was not answered as often as the others.
    """
    seeds, samples = {trace.seed for trace in traces}, {trace.sample for trace in traces}
    row = {problem: number for number, problem in enumerate(problems)}
    seed_index = {seed: number for number, seed in enumerate(sorted(seeds))}
    sample_index = {sample: number for number, sample in enumerate(sorted(samples))}
    right = np.full((len(problems), len(seeds), len(samples)), np.nan)
    for trace in traces:
        if trace.problem_id not in row:
            raise StoreError(
                f"rung {rung} answered problem {trace.problem_id}, which base did not; delete the "
                "hybrid step's folder and run `howwhen hybrid` again"
            )
        place = row[trace.problem_id], seed_index[trace.seed], sample_index[trace.sample]
        right[place] = trace.grade(mode) is Grade.CORRECT
    if np.isnan(right).any() or not right.size or len(traces) != right.size:
        raise StoreError(
            f"rung {rung} did not answer every problem equally often; delete the hybrid step's "
            "folder and run `howwhen hybrid` again"
        )
    return right


def _share_right(traces: Sequence[GradedTrace], mode: Mode) -> float:
    return _mean(trace.grade(mode) is Grade.CORRECT for trace in traces)


def _mean(values: Iterable[float]) -> float:
    """Mean of numbers, or share of truth values that are true."""
    values = list(values)
    return sum(values) / len(values)
