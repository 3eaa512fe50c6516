"""The report of a run as one HTML file that needs no network: the answer, the ladder, every token.

The page is assembled from `page/` and from the discover step's own page about the taxonomy. It may
load nothing (its content security policy says so), works from disk, and hides nothing without
JavaScript but the viewer of answers.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from howwhen.discover.page import (
    STRONGEST_SHADE,
    PageInput,
    Shaded,
    page_context,
    template_environment,
)
from howwhen.present.audit import (
    AUDIT_TEXT,
    audit_table,
    disputed_table,
    golds_text,
    reading_table,
)
from howwhen.present.report import ReportInput, prompt_table, training_lines, unequal_lines
from howwhen.present.tables import (
    Table,
    bits_table,
    budget_table,
    concentration_table,
    cost_table,
    enriched_table,
    grade_table,
    judge_table,
    knock_out_table,
    ladder_table,
    mode_table,
    published_table,
    sample_table,
)
from howwhen.present.texts import (
    BITS_TEXT,
    BUDGET_TEXT,
    COST_TEXT,
    KNOCK_OUT_TEXT,
    LADDER_TEXT,
    PUBLISHED_TEXT,
    READING_TEXT,
    concentration_text,
    grading_text,
    judge_text,
    rungs_text,
    sample_text,
)
from howwhen.present.verdict import verdict
from howwhen.present.viewer import PackedViewer
from howwhen.records import Measurement

if TYPE_CHECKING:
    from howwhen.vectors import VectorSet


@dataclass(frozen=True)
class Charts:
    """SVGs; empty if there is nothing to draw or matplotlib is not installed."""

    ladder: str = ""
    bits: str = ""
    budgets: str = ""
    losses: str = ""
    knock_outs: str = ""


@dataclass(frozen=True)
class HtmlInput:
    """The report, and what only the page shows."""

    report: ReportInput
    taxonomy: PageInput
    vectors: "VectorSet"
    titles: Sequence[str]
    """Of the categories that are steered with."""
    charts: Charts
    viewer: PackedViewer
    settings: Mapping[str, Any]
    """Settings that differ from the defaults, by their full names."""
    version: str


@dataclass(frozen=True)
class VectorRow:
    """One steering vector."""

    title: str
    decisions: int | None
    """Disagreements that it was trained on; None where that is not known."""
    norm: float
    cosines: Sequence[Shaded]
    """With every vector, in hundredths."""


def page_environment() -> Environment:
    """Templates of `page/` and of the discover step's page, which they include."""
    environment = template_environment(
        PackageLoader("howwhen.present", "page"), PackageLoader("howwhen.discover", ".")
    )
    environment.filters["ticked"] = _ticked
    return environment


def _ticked(text: str) -> Markup:
    """Text of this package as HTML, with backticks turned into code elements."""
    parts = enumerate(text.split("`"))
    code = Markup("<code>{}</code>")
    return Markup("").join(code.format(part) if number % 2 else part for number, part in parts)


def make_html(given: HtmlInput) -> str:
    """The whole page."""
    report, measurement = given.report, given.report.measurement
    knock_outs, audit = measurement.knock_outs, report.audit
    samples, apart = sample_table(measurement), measurement.concentration
    rows = [(name, str(value)) for name, value in given.settings.items()]
    return (
        page_environment()
        .get_template("report.html")
        .render(
            **page_context(given.taxonomy),
            report=report,
            headline=headline(measurement),
            verdict=verdict(measurement),
            charts={name: _for_page(name, svg) for name, svg in vars(given.charts).items()},
            has_gap=measurement.rungs["hybrid"].gap_recovered is not None,
            viewer=given.viewer,
            ladder=ladder_table(measurement, report.confidence),
            ladder_text=LADDER_TEXT,
            rungs_text=rungs_text(measurement),
            bits=bits_table(measurement, report.confidence),
            bits_text=BITS_TEXT,
            budgets=budget_table(measurement, report.confidence),
            budget_text=BUDGET_TEXT,
            concentration=None if apart is None else concentration_table(apart),
            concentration_text="" if apart is None else concentration_text(apart),
            enriched=None if apart is None else enriched_table(apart),
            cost=cost_table(measurement, report.work),
            cost_text=COST_TEXT,
            published=published_table(measurement),
            published_text=PUBLISHED_TEXT.replace("*", ""),
            knock_outs=knock_out_table(knock_outs, report.confidence) if knock_outs else None,
            knock_out_text=KNOCK_OUT_TEXT,
            vectors={"layer": given.vectors.layer, "rows": vector_rows(given)},
            training=training_lines(report.training),
            grading_text=grading_text(measurement),
            grades=grade_table(measurement),
            modes=mode_table(measurement),
            reading_text=READING_TEXT,
            reading=reading_table(measurement.rungs),
            unequal=unequal_lines(report),
            audit=None if audit is None else audit_table(audit),
            audit_text=AUDIT_TEXT,
            golds_text="" if audit is None else golds_text(audit),
            disputed=disputed_table(audit) if audit is not None and audit.examples else None,
            judge=judge_table(report.judge) if report.judge else None,
            judge_text=judge_text(report.judge) if report.judge else "",
            samples=samples,
            sample_text=sample_text(measurement) if samples else "",
            prompts=prompt_table(report.prompts),
            settings=Table(("setting", "value"), rows),
            version=given.version,
        )
    )


def headline(measurement: Measurement) -> str:
    """The answer as one number."""
    recovered = measurement.rungs["hybrid"].gap_recovered
    return "no gap" if recovered is None else f"{recovered:.0%}"


def vector_rows(given: HtmlInput) -> list[VectorRow]:
    """Norm of every vector, and its cosines with all of them."""
    cosines = given.vectors.similarity().tolist()
    norms = given.vectors.vectors.norm(dim=1).tolist()
    counts: Sequence[int | None] = given.report.decisions_per_category or [None] * len(norms)
    return [
        VectorRow(title, decisions, norm, [_cosine(cosine) for cosine in row])
        for title, decisions, norm, row in zip(given.titles, counts, norms, cosines, strict=True)
    ]


def _cosine(value: float) -> Shaded:
    return Shaded(f"{100 * value:.0f}", round(STRONGEST_SHADE * max(0.0, min(1.0, value))))


def _for_page(name: str, svg: str) -> str:
    """A chart as an element of the page, in the page's colours and with unique ids."""
    if not svg:
        return ""
    unique = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg[svg.find("<svg") :])
    return unique.replace("#000000", "currentColor")
