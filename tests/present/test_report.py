from dataclasses import replace

import pytest

from howwhen.discover.categories import CategorySummary, SentenceExample
from howwhen.measure.ladder import GradedTrace, measure_ladder
from howwhen.present.charts import draw_bits, draw_budgets, draw_knock_outs
from howwhen.present.report import (
    ReportInput,
    _budget_parts,
    _concentration_parts,
    _knock_out_parts,
    _sample_parts,
    make_report,
)
from howwhen.present.tables import (
    MODE_COLUMNS,
    bits_table,
    budget_table,
    cost_table,
    ladder_table,
    mode_table,
)
from howwhen.present.texts import RUNG_NOTES, left_out_text, rungs_text
from howwhen.present.verdict import verdict
from howwhen.records import (
    LADDER,
    PAPER_RUNGS,
    BudgetPoint,
    Concentration,
    Enriched,
    Finish,
    HybridToken,
    HybridTrace,
    Interval,
    RungMeasurement,
    RungName,
    Work,
)
from tests.discover.pages import cell
from tests.measure.planted import traces
from tests.present.planted import SETTINGS, TRAINING, measurement


def test_the_verdict_reasons_from_the_controls() -> None:
    text = verdict(measurement())
    assert "recovers 67% of a gap of 60.0%" in text
    assert "No vector is needed if the thinking model says what" in text
    assert "likeliest tokens recovers 83%" in text
    assert "Of the 30 problems that the thinking model gets right and the base does not, " in text
    assert "the hybrid gets 67%, of the others 50%." in text


def test_gains_are_shown_only_if_they_were_counted() -> None:
    found = measurement()
    of_old = {name: replace(rung, gains=None) for name, rung in found.rungs.items()}
    old = replace(found, rungs=of_old)
    assert "the hybrid gets" not in verdict(old)
    columns = slice(MODE_COLUMNS.index("gains shared"), MODE_COLUMNS.index("right elsewhere") + 1)
    assert [tuple(row[columns]) for row in mode_table(old).rows] == [("", "")] * 4
    shown = [("0% of 30", "50%"), ("83% of 30", "50%"), ("67% of 30", "50%"), ("100% of 30", "50%")]
    assert [tuple(row[columns]) for row in mode_table(found).rows] == shown


def test_flips_against_the_base_are_shown_where_they_were_counted() -> None:
    found = measurement()
    columns = slice(MODE_COLUMNS.index("wrong to right"), MODE_COLUMNS.index("net") + 1)
    shown = [("", "", ""), ("25", "0", "+25"), ("20", "0", "+20"), ("30", "0", "+30")]
    assert [tuple(row[columns]) for row in mode_table(found).rows] == shown
    assert "turns 20 problems from wrong to right and 0 from right to wrong" in verdict(found)
    old = replace(found, rungs={n: replace(rung, flips=None) for n, rung in found.rungs.items()})
    assert [tuple(row[columns]) for row in mode_table(old).rows] == [("", "", "")] * 4
    assert "from wrong to right" not in verdict(old)


def test_without_controls_the_verdict_gives_no_reasons() -> None:
    found = measurement()
    ends = ("base", "hybrid", "thinking")
    kept: dict[RungName, RungMeasurement] = {n: r for n, r in found.rungs.items() if n in ends}
    text = verdict(replace(found, rungs=kept))
    assert "recovers" in text
    assert "likeliest tokens" not in text


def test_without_a_gap_the_verdict_says_so() -> None:
    text = verdict(measurement(thinking=10))
    assert text.startswith("No gap to recover")
    table = ladder_table(measurement(thinking=10), 0.95)
    assert all(row[3] == "undefined" for row in table.rows)


def test_bits_are_shown_where_they_are_known() -> None:
    table = bits_table(measurement(), 0.95)
    assert table is not None
    assert [row[0] for row in table.rows] == ["base", "guardrail-only", "hybrid"]
    assert table.rows[2] == (
        "hybrid", "7.0", "7.0 to 7.0", "4.0", "3.0", "0.0", "0.700", "2.00", "1,234", "1.23%",
    )  # fmt: skip
    assert table.rows[1][-2:] == ("", "")  # not counted
    found = measurement()
    old = replace(found, rungs={n: replace(rung, bits=None) for n, rung in found.rungs.items()})
    assert bits_table(old, 0.95) is None
    assert draw_bits(old) == ""
    column = ladder_table(found, 0.95).columns.index("bits")
    assert [row[column] for row in ladder_table(found, 0.95).rows] == ["0.0", "6.5", "7.0", ""]


def test_the_chart_of_bits_names_every_rung() -> None:
    chart = draw_bits(measurement())
    for name in ("base", "guardrail-only", "hybrid"):
        assert f">{name}</text>" in chart
    assert draw_bits(measurement(thinking=10)) == ""  # without a gap there is nothing to share


def test_budgets_and_where_models_differ_are_shown_if_they_were_measured() -> None:
    found = measurement()
    assert budget_table(found, 0.95) is None
    assert draw_budgets(found) == ""
    points = tuple(
        BudgetPoint(
            "hybrid", budget, 0.5, 0.01, 0.25, 0.4, Interval(0.3, 0.5), 0.2, Interval(0.1, 0.3)
        )
        for budget in (0.1, 1.0)
    )
    apart = Concentration(
        "takeover", 1234, 0.02, 0.95, ((0.01, 0.3), (0.02, 0.5)),
        (Enriched("Wait | so", 7, 1, 12.3),), (Enriched("0: recall", 3, 4, 0.5),),
    )  # fmt: skip
    measured = replace(found, budgets=points, concentration=apart)
    table = budget_table(measured, 0.95)
    assert table is not None
    assert table.rows[0] == (
        "hybrid", "10%", "100%", "0.5", "1.00%", "0.25", "40.0%", "20%", "10 to 30 %",
    )  # fmt: skip
    assert ">hybrid</text>" in draw_budgets(measured)
    text = "\n".join([*_budget_parts(measured, 0.95), *_concentration_parts(apart)])
    assert "| hybrid | 10% | 100% | 0.5 |" in text
    assert "0.020 bits on average over 1,234 tokens, Gini index 0.95" in text
    assert "| word | Wait \\| so | 7 | 1 | 12.3 |" in text
    assert "| share of all divergence | 30% | 50% |" in text
    assert _concentration_parts(None) == _budget_parts(found, 0.95) == []


def test_rungs_that_were_left_out_are_named() -> None:
    found = measurement()
    assert left_out_text(found).startswith("Left out: logit-difference, shared-vector, ")
    assert "(--rungs all)" in rungs_text(found)
    every = dict.fromkeys(LADDER, found.rungs["hybrid"])
    assert left_out_text(replace(found, rungs=every)) == ""
    assert "Left out" not in rungs_text(replace(found, rungs=every))


def test_the_header_states_the_confidence() -> None:
    assert ladder_table(measurement(), 0.9).columns[2] == "90 % interval"


def test_an_answers_cost_counts_what_each_model_has_to_read() -> None:
    table = cost_table(measurement(), Work(base=1000, thinking=2000, steered=0.25))
    rows = {row[0]: tuple(row[1:]) for row in table.rows}
    assert rows["base"] == ("10.0", "0.0", "0.0", "0.50")
    assert rows["hybrid"] == ("10.0", "6.0", "10.0", "1.57")  # (11.5 * 1000 + 20000) / 20000
    assert rows["thinking"] == ("0.0", "0.0", "10.0", "1.00")


def test_a_report_keeps_tables_whole_whatever_the_text() -> None:
    token = HybridToken(5, 6, 5, 0, 1.0, 1, True, -1.0, -0.1)
    trace = HybridTrace("1", "hybrid", 0, "two\nlines | pipe", Finish.STOP, (token,))
    example = SentenceExample("x y", "1", 1.0, 1, 0.5)
    category = CategorySummary(0, "a | b", "", "words", 3, 1.0, (example,), (), (3,) + (0,) * 9)
    given = ReportInput(
        title="T",
        base="b",
        thinking="t",
        measurement=measurement(),
        work=Work(1000, 2000, 0.5),
        confidence=0.95,
        rows=[cell(1, 1, 0.5, chosen=True)],
        categories=[category],
        training=TRAINING,
        decisions_per_category=[4],
        examples=[("Q?", trace)],
        prompts={"base": "{question}", "base, step by step": None, "thinking": "chat"},
    )
    report = make_report(given)
    assert "| 0 | a \\| b | 3 (100%) | 4 | x y |" in report
    assert "> two\n> lines | pipe" in report
    assert "gate taxonomy: its category equals that of the sentence that follows in 25%" in report
    assert "gate probe" not in report
    assert "precision 50%, recall 100%" in report
    hybrid = "60.0% | 60.0% | 2.0% | 10.0 | 67% of 30 | 50% | 20 | 0 | +20 |  |  | "
    assert f"| hybrid | {hybrid} |" in report
    guardrail = "70.0% | 70.0% | 2.0% | 10.0 | 83% of 30 | 50% | 25 | 0 | +25 | 5 | 0 | 0.062"
    assert f"| guardrail-only | {guardrail} |" in report
    assert "| base | {question} |" in report
    assert "carries" not in report
    assert "## Examples" not in make_report(replace(given, examples=[]))


def test_knock_outs_become_a_table_and_a_chart() -> None:
    found = measurement(has_knock_outs=True)
    given = ReportInput(
        title="T", base="b", thinking="t", measurement=found, work=Work(1, 1, 0.5),
        confidence=0.9, rows=[], categories=[], training=TRAINING, decisions_per_category=[],
        examples=[], prompts={},
        chart="knock-outs.svg",
    )  # fmt: skip
    text = "\n".join(_knock_out_parts(given))
    assert "| category | disagreements | without it | 90 % interval | lost |" in text
    assert "| 1: check \\| it | 7 | 33% |" in text
    assert "![What each category contributes](knock-outs.svg)" in text
    chart = draw_knock_outs(found.knock_outs)
    assert chart == draw_knock_outs(found.knock_outs)
    assert "1: check | it" in chart
    price = replace(found.knock_outs[0], title=r"costs $5, $10 or $\begin{cases}$")
    assert r"costs $5, $10 or $\begin{cases}$" in draw_knock_outs([price])
    with pytest.raises(ValueError, match="cannot be drawn"):
        draw_knock_outs(measurement(thinking=10, has_knock_outs=True).knock_outs)


def test_samples_become_pass_at_k() -> None:
    ladder: dict[RungName, list[GradedTrace]] = {
        "base": traces(10) + traces(20, sample=1),
        "hybrid": traces(30) + traces(40, sample=1),
        "thinking": traces(40) + traces(50, sample=1),
    }
    text = "\n".join(_sample_parts(measure_ladder(ladder, SETTINGS)))
    assert "accuracy is mean@2" in text
    assert "| hybrid | 70.0% | 80.0% |" in text
    assert _sample_parts(measurement()) == []


def test_every_rung_of_the_ladder_is_explained() -> None:
    assert set(RUNG_NOTES) == {*LADDER, *PAPER_RUNGS}
    text = rungs_text(measurement())
    assert text.startswith("`base`: the base model alone. `guardrail-only`: the base's top tokens")
    assert "`self-gate`" not in text
