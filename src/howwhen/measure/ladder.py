"""From graded traces to the measurement: every rung, with counts, intervals and cost."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from howwhen.errors import StoreError
from howwhen.measure.grade import Graded, Mode
from howwhen.measure.marks import Rule
from howwhen.measure.recovery import (
    Bootstrap,
    Outcomes,
    find_flips,
    find_gains,
    pass_at_k,
    published_share,
)
from howwhen.records import (
    Bits,
    BudgetPoint,
    Comparison,
    Finish,
    Grade,
    HybridTrace,
    Interval,
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
    bits: Bits | None = None
    """What the thinking model told; None where it is unknown."""
    budget: float | None = None
    """Of a rung with a budget; None elsewhere."""

    def grade(self, mode: Mode) -> Grade:
        """The grade by one of the modes."""
        return self.flexible if mode == "flexible" else self.strict


@dataclass(frozen=True)
class Category:
    """A category of the taxonomy, and how often the hybrid steered with it."""

    number: int
    title: str
    decisions: int


@dataclass(frozen=True)
class Budget:
    """A rung that intervened only where it matters most."""

    rung: RungName
    """The full rung."""
    budget: float
    """Share of its interventions that the threshold is made for."""
    threshold: float | None
    traces: Sequence[GradedTrace]


def reduce_trace(
    trace: HybridTrace, flexible: Graded, strict: Graded, bits: Bits | None = None
) -> GradedTrace:
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
        bits=bits,
        budget=trace.budget,
    )


def measure_ladder(
    ladder: Mapping[RungName, Sequence[GradedTrace]],
    settings: MeasureSettings,
    knock_outs: Mapping[RungName, Sequence[GradedTrace]] | None = None,
    categories: Sequence[Category] = (),
    fitted: Mapping[str, int] | None = None,
    base_parameters: int | None = None,
    budgets: Sequence[Budget] = (),
) -> Measurement:
    """Put all rungs on one scale.

    Args:
        ladder: traces of every rung.
        settings: grading mode and bootstrap.
        knock_outs: traces of the hybrid without each category, and with each alone.
        categories: the ones that were knocked out.
        fitted: numbers that were fitted for each rung.
        base_parameters: all parameters of the base.
        budgets: traces of rungs with smaller budgets.

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
    scale = _Scale(bootstrap, base, thinking, outcomes.get("hybrid"), settings.mode, fitted or {})
    return Measurement(
        n=len(problems),
        mode=settings.mode,
        gap=float(thinking.mean() - base.mean()),
        gap_ci=bootstrap.interval(gaps),
        rungs={rung: scale.rung(rung, ladder[rung], outcomes[rung]) for rung in ladder},
        knock_outs=tuple(
            scale.knock_out(category, knock_outs or {}, problems) for category in categories
        ),
        base_parameters=base_parameters,
        budgets=tuple(_budget_points(scale, ladder, budgets, problems)),
    )


def _budget_points(
    scale: "_Scale",
    ladder: Mapping[RungName, Sequence[GradedTrace]],
    budgets: Sequence[Budget],
    problems: Sequence[str],
) -> Iterator[BudgetPoint]:
    """The points of every curve by budget; the last one of each is the full rung."""
    for rung in sorted({budget.rung for budget in budgets}):
        own = [budget for budget in budgets if budget.rung == rung]
        for budget in sorted(own, key=lambda one: one.budget):
            yield scale.budget_point(budget, problems)
        if rung in ladder:
            yield scale.budget_point(Budget(rung, 1.0, None, ladder[rung]), problems)


@dataclass(frozen=True)
class _Scale:
    """The two ends of the ladder, between which everything is measured."""

    bootstrap: Bootstrap
    base: Outcomes
    thinking: Outcomes
    hybrid: Outcomes | None
    mode: Mode
    fitted: Mapping[str, int]

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
        bits, bits_ci = self._bits(name, traces)
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
            gap_recovered_clamped=published_share(
                float(outcomes.mean()), float(self.base.mean()), float(self.thinking.mean())
            ),
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
            interventions_per_answer=_mean(trace.decisions for trace in traces),
            steered_per_problem=_mean(trace.decisions / max(1, trace.tokens) for trace in traces),
            bits=bits,
            bits_ci=bits_ci,
            fitted=self.fitted.get(name),
        )

    def _bits(
        self, name: RungName, traces: Sequence[GradedTrace]
    ) -> tuple[Bits | None, Interval | None]:
        """What is told per answer, and the interval of the sum."""
        known = [trace.bits for trace in traces if trace.bits is not None]
        if len(known) < len(traces):
            return None, None
        problems = sorted({trace.problem_id for trace in traces})
        totals = _arrange(name, traces, problems, lambda trace: sum(trace.bits or (0.0,)))
        bits = Bits(*(_mean(part) for part in zip(*known, strict=True)))
        return bits, self.bootstrap.interval(self.bootstrap.means(totals))

    def _against_hybrid(self, name: RungName, outcomes: Outcomes) -> Comparison | None:
        if name == "hybrid" or self.hybrid is None:
            return None
        return self.bootstrap.compare(outcomes, self.hybrid)

    def budget_point(self, budget: Budget, problems: Sequence[str]) -> BudgetPoint:
        """What a rung with a budget recovers."""
        outcomes = find_outcomes(budget.rung, budget.traces, problems, self.mode)
        recovery = self.bootstrap.recovery(outcomes, self.base, self.thinking)
        tokens = sum(trace.tokens for trace in budget.traces)
        return BudgetPoint(
            rung=budget.rung,
            budget=budget.budget,
            threshold=budget.threshold,
            steered_fraction=sum(trace.decisions for trace in budget.traces) / tokens,
            interventions_per_answer=_mean(trace.decisions for trace in budget.traces),
            accuracy=float(outcomes.mean()),
            accuracy_ci=self.bootstrap.accuracy_interval(outcomes),
            gap_recovered=recovery.value if recovery else None,
            gap_recovered_ci=recovery.interval if recovery else None,
        )

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
    return _arrange(rung, traces, problems, lambda trace: float(trace.grade(mode) is Grade.CORRECT))


def _arrange(
    rung: str,
    traces: Sequence[GradedTrace],
    problems: Sequence[str],
    value: Callable[[GradedTrace], float],
) -> Outcomes:
    """A number of every answer, by problem, seed and sample; errors are those of above."""
    seeds, samples = {trace.seed for trace in traces}, {trace.sample for trace in traces}
    row = {problem: number for number, problem in enumerate(problems)}
    seed_index = {seed: number for number, seed in enumerate(sorted(seeds))}
    sample_index = {sample: number for number, sample in enumerate(sorted(samples))}
    found = np.full((len(problems), len(seeds), len(samples)), np.nan)
    for trace in traces:
        if trace.problem_id not in row:
            raise StoreError(
                f"rung {rung} answered problem {trace.problem_id}, which base did not; delete the "
                "hybrid step's folder and run `howwhen hybrid` again"
            )
        place = row[trace.problem_id], seed_index[trace.seed], sample_index[trace.sample]
        found[place] = value(trace)
    if np.isnan(found).any() or not found.size or len(traces) != found.size:
        raise StoreError(
            f"rung {rung} did not answer every problem equally often; delete the hybrid step's "
            "folder and run `howwhen hybrid` again"
        )
    return found


def _share_right(traces: Sequence[GradedTrace], mode: Mode) -> float:
    return _mean(trace.grade(mode) is Grade.CORRECT for trace in traces)


def _mean(values: Iterable[float]) -> float:
    """Mean of numbers, or share of truth values that are true."""
    values = list(values)
    return sum(values) / len(values)
