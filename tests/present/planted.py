"""Answers, a viewer, a measurement and a report with known contents."""

from dataclasses import replace
from typing import Any

import torch

from howwhen.discover.categories import Transitions
from howwhen.discover.page import PageInput
from howwhen.elicit.report import (
    ElicitReport,
    GateAgreement,
    ProbeScores,
    SeedTraining,
    TrainingSummary,
)
from howwhen.measure.ladder import Category, GradedTrace, measure_ladder
from howwhen.measure.marks import Rule
from howwhen.present.charts import draw_bits, draw_ladder, draw_losses
from howwhen.present.html import Charts, HtmlInput
from howwhen.present.report import ReportInput
from howwhen.present.viewer import GradedAnswer, Viewer, pack_viewer
from howwhen.records import (
    KNOCK_OUTS,
    Bits,
    Candidate,
    Finish,
    Grade,
    HybridToken,
    HybridTrace,
    Measurement,
    Problem,
    RungName,
    Work,
)
from howwhen.settings import MeasureSettings
from howwhen.vectors import VectorSet
from howwhen.zoo.tally.tokenizer import build_tokenizer
from tests.discover.pages import HOSTILE, cell, counts, summary
from tests.measure.planted import traces

TOKENIZER = build_tokenizer()
TEXT = "Ann starts with 7 pens. So the answer is 7."
IDS = TOKENIZER(TEXT, add_special_tokens=False)["input_ids"]
PROBLEMS = [Problem(f"p{n}", f"Ann has {n} pens?", str(n)) for n in range(30)]


def graded(problem: Problem, **changes: Any) -> GradedTrace:
    given: dict[str, Any] = {
        "problem_id": problem.id, "seed": 0, "sample": 0, "category": -1,
        "flexible": Grade.CORRECT, "strict": Grade.CORRECT, "answer": "7", "rule": Rule.STATED,
        "finish": Finish.STOP, "tokens": 12, "decisions": 1, "changed": 1,
        "steered_passes": 1, "needs_thinking": True,
    }  # fmt: skip
    return GradedTrace(**{**given, **changes})


def trace(problem: Problem) -> HybridTrace:
    plain = [HybridToken(i, i, i, None, None, 0, False, -0.125, -0.5) for i in IDS]
    tried = Candidate(0.5, 1, IDS[4], -3.0)
    plain[3] = HybridToken(IDS[3], IDS[4], None, 1, 1.5, 2, True, -2.0, -0.25, (tried,))
    end = TOKENIZER.eos_token_id
    tokens = (*plain, HybridToken(end, end, end, None, None, 0, False, 0.0, 0.0))
    return HybridTrace(problem.id, "hybrid", 0, TEXT, Finish.STOP, tokens)


def viewer() -> Viewer:
    answers = {problem.id: GradedAnswer(trace(problem), graded(problem)) for problem in PROBLEMS}
    return Viewer(
        PROBLEMS,
        {"base": answers, "shared-vector": answers, "hybrid": answers},
        ("recall", "check"),
    )


SETTINGS = MeasureSettings(bootstrap_samples=200)
SEEDS = TrainingSummary(0, (SeedTraining(0, 50, (1.5, 1.0), (2.0, 1.5, 1.0), 1.0),))
TRAINING = ElicitReport(
    vectors=SEEDS,
    shared=SEEDS,
    gate_sentence_agreement={
        "taxonomy": GateAgreement(0.25, 8),
        "probe": GateAgreement(None, 0, "there is none"),
    },
    self_gate=ProbeScores(0.5, 1.0, 0.75, decisions=8, positions=80),
    decisions_per_category=(4,),
)


def measurement(thinking: int = 40, has_knock_outs: bool = False) -> Measurement:
    ladder: dict[RungName, list[GradedTrace]] = {
        "base": traces(10, decisions=0, bits=Bits(0.0, 0.0, 0.0)),
        "guardrail-only": traces(35, bits=Bits(4.0, 0.0, 2.5)),
        "hybrid": traces(30, bits=Bits(4.0, 3.0, 0.0)),
        "thinking": [replace(trace, steered_passes=0) for trace in traces(thinking)],
    }
    knock_outs = {name: traces(20, category=1) for name in KNOCK_OUTS} if has_knock_outs else {}
    categories = [Category(1, "check | it", 7)] if has_knock_outs else []
    fitted = {"base": 0, "hybrid": 1234}
    return measure_ladder(ladder, SETTINGS, knock_outs, categories, fitted, base_parameters=100_000)


def given(thinking: int = 40, has_knock_outs: bool = False) -> HtmlInput:
    measured = measurement(thinking, has_knock_outs)
    summaries = [summary(0, "recall"), summary(1, HOSTILE)]
    rows = [cell(1, 5, 0.3), cell(1, 10, 0.5, chosen=True)]
    report = ReportInput(
        title="How much?", base="maker/base", thinking="maker/thinking", measurement=measured,
        work=Work(1000, 2000, 0.5), confidence=0.95, rows=rows, categories=summaries,
        training=TRAINING, decisions_per_category=[4, 2], examples=[],
        prompts={"base": HOSTILE, "thinking": None},
    )  # fmt: skip
    return HtmlInput(
        report=report,
        taxonomy=PageInput(
            "What?", "maker/thinking", "reader", counts(), rows, summaries,
            Transitions((3, 1), ((2, 2), (1, 0)), (1, 3)),
        ),
        vectors=VectorSet("maker/base", 2, torch.tensor([[3.0, 4.0], [-4.0, 3.0]])),
        titles=("recall", HOSTILE),
        charts=Charts(draw_ladder(measured), draw_bits(measured), draw_losses(TRAINING)),
        viewer=pack_viewer(viewer(), TOKENIZER),
        settings={"collect.limit": 60},
        version="0.1.0",
    )  # fmt: skip
