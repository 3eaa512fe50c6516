"""The numbers of a measurement as tables of text, for every kind of report."""

from collections.abc import Sequence
from typing import NamedTuple

from howwhen.measure.judge import JudgeReport
from howwhen.records import (
    Bits,
    Concentration,
    Flips,
    Gains,
    Interval,
    KnockOut,
    Measurement,
    RungMeasurement,
    Work,
)

MODE_COLUMNS = (
    "rung",
    "flexible",
    "strict",
    "cut off",
    "tokens per answer",
    "gains shared",
    "right elsewhere",
    "wrong to right",
    "right to wrong",
    "net",
    "only it right",
    "only the hybrid right",
    "McNemar p",
)


class Table(NamedTuple):
    """Columns and rows; the first cell of a row names it."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def ladder_table(measurement: Measurement, confidence: float) -> Table:
    """What every rung achieved, in the order of the rungs."""
    interval = interval_column(confidence)
    columns = (
        "rung", "accuracy", interval, "gap recovered", interval, "bits", "steered", "changed",
    )  # fmt: skip
    return Table(columns, [_ladder_row(name, rung) for name, rung in measurement.rungs.items()])


def grade_table(measurement: Measurement) -> Table:
    """Answers per grade."""
    grades = next(iter(measurement.rungs.values())).counts
    rows = [
        (name, *(str(count) for count in rung.counts.values()), ", ".join(map(str, rung.seeds)))
        for name, rung in measurement.rungs.items()
    ]
    return Table(("rung", *grades, "seeds"), rows)


def mode_table(measurement: Measurement) -> Table:
    """Both grading modes, and every rung held against the hybrid."""
    rows: list[tuple[str, ...]] = []
    for name, rung in measurement.rungs.items():
        against = rung.against_hybrid
        tests = ("", "", "")
        if against is not None:
            tests = (str(against.only_first), str(against.only_second), f"{against.p_value:.2g}")
        rows.append(
            (
                name,
                f"{rung.flexible_accuracy:.1%}",
                f"{rung.strict_accuracy:.1%}",
                f"{rung.truncated_fraction:.1%}",
                f"{rung.tokens_per_answer:.1f}",
                *_gains(rung.gains),
                *_flips(rung.flips),
                *tests,
            )
        )
    return Table(MODE_COLUMNS, rows)


def _gains(gains: Gains | None) -> tuple[str, str]:
    if gains is None:
        return "", ""
    elsewhere = "" if gains.elsewhere is None else f"{gains.elsewhere:.0%}"
    return f"{gains.shared:.0%} of {gains.problems}", elsewhere


def _flips(flips: Flips | None) -> tuple[str, str, str]:
    if flips is None:
        return "", "", ""
    return str(flips.gained), str(flips.lost), f"{flips.net:+}"


def bits_table(measurement: Measurement, confidence: float) -> Table | None:
    """What the thinking model tells on every rung; None where it was not reckoned."""
    rungs = {name: rung for name, rung in measurement.rungs.items() if rung.bits is not None}
    if not rungs:
        return None
    rows = [_bits_row(name, rung, measurement.base_parameters) for name, rung in rungs.items()]
    columns = (
        "rung", "bits per answer", interval_column(confidence), "when", "which", "what",
        "bits per token", "steered per answer", "numbers fitted", "of the base's",
    )  # fmt: skip
    return Table(columns, rows)


def _bits_row(name: str, rung: RungMeasurement, parameters: int | None) -> tuple[str, ...]:
    bits = rung.bits or Bits(0.0, 0.0, 0.0)
    interval = rung.bits_ci
    fitted = rung.fitted
    return (
        name,
        f"{bits.total:.1f}",
        "" if interval is None else f"{interval.low:.1f} to {interval.high:.1f}",
        *(f"{part:.1f}" for part in bits),
        f"{bits.total / rung.tokens_per_answer:.3f}",
        "" if rung.interventions_per_answer is None else f"{rung.interventions_per_answer:.2f}",
        "" if fitted is None else f"{fitted:,}",
        "" if fitted is None or not parameters else f"{fitted / parameters:.2%}",
    )


def budget_table(measurement: Measurement, confidence: float) -> Table | None:
    """The budget curves; None where they were not asked for."""
    ends = (one for one in measurement.budgets if one.budget == 1)
    full = {one.rung: one.interventions_per_answer for one in ends}
    rows = [
        (
            point.rung,
            f"{point.budget:.0%}",
            _of(point.interventions_per_answer, full.get(point.rung)),
            "" if point.threshold is None else f"{point.threshold:.3g}",
            f"{point.steered_fraction:.2%}",
            f"{point.interventions_per_answer:.2f}",
            f"{point.accuracy:.1%}",
            *_share(point.gap_recovered, point.gap_recovered_ci),
        )
        for point in measurement.budgets
    ]
    columns = (
        "rung", "threshold made for", "interventions, of the full rung's", "threshold",
        "steered", "steered per answer", "accuracy", "gap recovered", interval_column(confidence),
    )  # fmt: skip
    return Table(columns, rows) if rows else None


def _of(part: float, whole: float | None) -> str:
    return f"{part / whole:.0%}" if whole else ""


def concentration_table(concentration: Concentration) -> Table:
    """Which share of the divergence the tokens with most of it hold."""
    shares = [f"{share:.0%}" for share, _ in concentration.top]
    held = [f"{held:.0%}" for _, held in concentration.top]
    return Table(
        ("tokens with the largest divergence", *shares), [("share of all divergence", *held)]
    )


def enriched_table(concentration: Concentration) -> Table:
    """Words and categories that are more common at disagreements than elsewhere."""
    kinds = (("word", concentration.words), ("category", concentration.categories))
    rows = [
        (kind, one.name, str(one.at_disagreements), str(one.elsewhere), f"{one.ratio:,.1f}")
        for kind, found in kinds
        for one in found
    ]
    return Table(("", "name", "at disagreements", "elsewhere", "ratio of shares"), rows)


def cost_table(measurement: Measurement, work: Work) -> Table:
    """The cost of an answer on every rung, relative to the thinking model's answer."""
    thinking = measurement.rungs["thinking"].tokens_per_answer * work.thinking
    rows = []
    for name, rung in measurement.rungs.items():
        tokens, passes = rung.tokens_per_answer, rung.steered_passes_per_answer
        by_base = 0.0 if name == "thinking" else tokens
        by_thinking = tokens if rung.needs_thinking else 0.0
        products = (by_base + work.steered * passes) * work.base + by_thinking * work.thinking
        reads = (f"{count:.1f}" for count in (by_base, passes, by_thinking))
        rows.append((name, *reads, f"{products / thinking:.2f}"))
    columns = ("rung", "read by the base", "once more, steered", "read by the thinking model")
    return Table((*columns, "work, thinking = 1"), rows)


def judge_table(judge: JudgeReport) -> Table:
    """How often rules and judge agree, by grading mode."""
    rows = [
        (
            mode,
            str(agreement.both_correct),
            str(agreement.rules_only),
            str(agreement.judge_only),
            str(agreement.neither_correct),
            str(agreement.left_out),
            "undefined" if agreement.kappa is None else f"{agreement.kappa:.2f}",
        )
        for mode, agreement in judge.agreement.items()
    ]
    columns = ("mode", "both", "rules only", "judge only", "neither", "no verdict", "kappa")
    return Table(columns, rows)


def sample_table(measurement: Measurement) -> Table | None:
    """pass@k of sampled runs; None where every problem was answered once."""
    sampled = {name: rung for name, rung in measurement.rungs.items() if rung.pass_at_k}
    if not sampled:
        return None
    ks = sorted({k for rung in sampled.values() for k in rung.pass_at_k})
    rows = [(name, *(f"{rung.pass_at_k[k]:.1%}" for k in ks)) for name, rung in sampled.items()]
    return Table(("rung", *(f"pass@{k}" for k in ks)), rows)


def knock_out_table(knock_outs: Sequence[KnockOut], confidence: float) -> Table:
    """What each category contributes."""
    rows = [
        (
            f"{knock_out.category}: {knock_out.title}",
            str(knock_out.decisions),
            *_share(knock_out.without, knock_out.without_ci),
            *_share(knock_out.drop, knock_out.drop_ci),
            *_share(knock_out.alone, knock_out.alone_ci),
        )
        for knock_out in knock_outs
    ]
    interval = interval_column(confidence)
    columns = (
        "category",
        "disagreements",
        "without it",
        interval,
        "lost",
        interval,
        "alone",
        interval,
    )
    return Table(columns, rows)


def interval_column(confidence: float) -> str:
    """The name of a column of intervals."""
    return f"{confidence * 100:g} % interval"


def interval_text(interval: Interval | None) -> str:
    """An interval of shares in per cent."""
    if interval is None:
        return ""
    return f"{round(interval.low * 100)} to {round(interval.high * 100)} %"


def _ladder_row(name: str, rung: RungMeasurement) -> tuple[str, ...]:
    recovered = "undefined" if rung.gap_recovered is None else f"{rung.gap_recovered:.0%}"
    return (
        name,
        f"{rung.accuracy:.1%}",
        interval_text(rung.accuracy_ci),
        recovered,
        interval_text(rung.gap_recovered_ci),
        "" if rung.bits is None else f"{rung.bits.total:.1f}",
        f"{rung.steered_fraction:.1%}",
        f"{rung.changed_fraction:.1%}",
    )


def published_table(measurement: Measurement) -> Table:
    """Every rung as the paper's code reckons it."""
    rows = [
        (
            name,
            f"{rung.accuracy:.1%}",
            _percent(rung.gap_recovered),
            _percent(rung.gap_recovered_clamped),
            f"{rung.steered_fraction:.1%}",
            "" if rung.steered_per_problem is None else f"{rung.steered_per_problem:.1%}",
        )
        for name, rung in measurement.rungs.items()
    ]
    columns = (
        "rung", "accuracy", "gap recovered", "by the paper's formula", "steered",
        "steered, mean over answers",
    )  # fmt: skip
    return Table(columns, rows)


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.0%}"


def _share(value: float | None, interval: Interval | None) -> tuple[str, str]:
    return "undefined" if value is None else f"{value:.0%}", interval_text(interval)
