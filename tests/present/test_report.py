from dataclasses import replace

from howwhen.measure.ladder import measure_ladder
from howwhen.present.report import ReportInput, header, ladder_rows, make_report, verdict
from howwhen.records import Finish, HybridToken, HybridTrace, Measurement
from howwhen.settings import MeasureSettings
from tests.measure.test_recovery import traces

SETTINGS = MeasureSettings(bootstrap_samples=200)


def measurement(thinking: int = 40) -> Measurement:
    ladder = {
        "base": traces(10, decisions=0),
        "guardrail-only": traces(35),
        "hybrid": traces(30),
        "thinking": traces(thinking),
    }
    return measure_ladder(ladder, SETTINGS)  # type: ignore[arg-type]


def test_the_verdict_names_the_controls() -> None:
    text = verdict(measurement())
    assert "recovers 67% of a gap of 60.0%" in text
    assert "guardrail-only 83%" in text


def test_without_a_gap_the_verdict_says_so() -> None:
    text = verdict(measurement(thinking=10))
    assert text.startswith("No gap to recover")
    rows = ladder_rows(measurement(thinking=10))
    assert all(row[3] == "undefined" for row in rows)


def test_the_header_states_the_confidence() -> None:
    assert header(0.9)[2] == "90 % interval"


def test_a_report_keeps_tables_whole_whatever_the_text() -> None:
    token = HybridToken(5, 6, 5, 0, 1.0, 1, True, -1.0, -0.1)
    trace = HybridTrace("1", "hybrid", 0, "two\nlines | pipe", Finish.STOP, (token,))
    category = {"title": "a | b", "sentences": 3, "share": 1.0, "examples": ["x\ny"], "category": 0}
    cell = {"layer": 1, "size": 1, "k": 1, "chosen": True, "fvu": 0.5}
    scores = dict.fromkeys(("score", "consistency", "stability", "independence"), 0.5)
    seeds = {"chosen_seed": 0, "seeds": [{"seed": 0, "selection_loss": 1.0}]}
    given = ReportInput(
        title="T",
        base="b",
        thinking="t",
        measurement=measurement(),
        confidence=0.95,
        cells=[{**cell, **scores}],
        categories=[category],
        training={
            "vectors": seeds,
            "shared": seeds,
            "gate_sentence_agreement": {
                "taxonomy": {"share": 0.25, "decisions": 8},
                "probe": {"share": None, "decisions": 0},
            },
            "self_gate": {
                "precision": 0.5,
                "recall": 1.0,
                "category_accuracy": 0.75,
                "decisions": 8,
            },
        },
        decisions_per_category=[4],
        examples=[("Q?", trace)],
    )
    report = make_report(given)
    assert "| 0 | a \\| b | 3 (100%) | 4 | x y |" in report
    assert "> two\n> lines | pipe" in report
    assert "gate taxonomy: its category equals that of the sentence that follows in 25%" in report
    assert "gate probe" not in report
    assert "precision 50%, recall 100%" in report
    assert "## Examples" not in make_report(replace(given, examples=[]))
