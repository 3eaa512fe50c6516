"""The report of a run in Markdown: the verdict, the ladder of controls, then the details."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from howwhen.discover.categories import CategorySummary
from howwhen.measure.audit import unequal_reading
from howwhen.present.audit import (
    AUDIT_TEXT,
    audit_table,
    disputed_table,
    golds_text,
    reading_table,
)
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
from howwhen.records import (
    Concentration,
    HybridTrace,
    Measurement,
    Work,
)

if TYPE_CHECKING:
    from howwhen.discover.report import GridRow
    from howwhen.elicit.report import ElicitReport, TrainingSummary
    from howwhen.measure.audit import Audit
    from howwhen.measure.judge import JudgeReport


@dataclass(frozen=True)
class ReportInput:
    """Everything a report shows."""

    title: str
    base: str
    thinking: str
    measurement: Measurement
    work: Work
    confidence: float
    rows: Sequence["GridRow"]
    """The grid of taxonomies."""
    categories: Sequence[CategorySummary]
    training: "ElicitReport"
    decisions_per_category: Sequence[int] | None
    """None where vectors were given, and it is not known."""
    examples: Sequence[tuple[str, HybridTrace]]
    """Questions with the hybrid's answers."""
    prompts: Mapping[str, str | None]
    """The prompt of each model, by role."""
    chart: str | None = None
    """File with the chart of the knock-outs."""
    judge: "JudgeReport | None" = None
    """What a judge thinks of the grades; None if none was asked."""
    audit: "Audit | None" = None
    """What a second reader makes of the answers; None if they were read once."""


def make_report(given: ReportInput) -> str:
    """The whole report."""
    parts = [
        f"# {given.title}",
        f"Base `{given.base}`, thinking model `{given.thinking}`.",
        verdict(given.measurement),
        "## The ladder of controls",
        _markdown(ladder_table(given.measurement, given.confidence)),
        LADDER_TEXT,
        rungs_text(given.measurement),
        *_bits_parts(given.measurement, given.confidence),
        *_budget_parts(given.measurement, given.confidence),
        *_concentration_parts(given.measurement.concentration),
        "## The cost of an answer",
        _markdown(cost_table(given.measurement, given.work)),
        COST_TEXT,
        "## As the paper reckons",
        _markdown(published_table(given.measurement)),
        PUBLISHED_TEXT,
        "## Grades",
        grading_text(given.measurement),
        _markdown(grade_table(given.measurement)),
        _markdown(mode_table(given.measurement)),
        READING_TEXT,
        _markdown(reading_table(given.measurement.rungs)),
        *unequal_lines(given),
        *_audit_parts(given.audit),
        *_judge_parts(given.judge),
        *_sample_parts(given.measurement),
        *_knock_out_parts(given),
        "## Prompts",
        _markdown(prompt_table(given.prompts)),
        "## Taxonomy",
        _taxonomy_text(given),
        _markdown(_category_table(given)),
        "## Vectors",
        "\n".join(f"- {line}" for line in training_lines(given.training)),
        *_example_parts(given.examples),
    ]
    return "\n\n".join(parts) + "\n"


def _bits_parts(measurement: Measurement, confidence: float) -> list[str]:
    table = bits_table(measurement, confidence)
    return (
        [] if table is None else ["## What the thinking model tells", _markdown(table), BITS_TEXT]
    )


def _budget_parts(measurement: Measurement, confidence: float) -> list[str]:
    table = budget_table(measurement, confidence)
    return [] if table is None else ["## Smaller budgets", _markdown(table), BUDGET_TEXT]


def _concentration_parts(concentration: Concentration | None) -> list[str]:
    if concentration is None:
        return []
    return [
        "## Where the two models differ",
        concentration_text(concentration),
        _markdown(concentration_table(concentration)),
        _markdown(enriched_table(concentration)),
    ]


def unequal_lines(given: ReportInput) -> list[str]:
    """Warnings where base, hybrid and thinking model are not read alike."""
    lines = unequal_reading(given.measurement, given.audit)
    return [f"Read unequally, which biases comparisons: {line}." for line in lines]


def _audit_parts(audit: "Audit | None") -> list[str]:
    if audit is None:
        return []
    return [
        AUDIT_TEXT,
        golds_text(audit),
        _markdown(audit_table(audit)),
        *([_markdown(disputed_table(audit))] if audit.examples else []),
    ]


def _judge_parts(judge: "JudgeReport | None") -> list[str]:
    return [] if judge is None else [judge_text(judge), _markdown(judge_table(judge))]


def _sample_parts(measurement: Measurement) -> list[str]:
    table = sample_table(measurement)
    return [] if table is None else [sample_text(measurement), _markdown(table)]


def _knock_out_parts(given: ReportInput) -> list[str]:
    knock_outs = given.measurement.knock_outs
    if not knock_outs:
        return []
    picture = [f"![What each category contributes]({given.chart})"] if given.chart else []
    table = knock_out_table(knock_outs, given.confidence)
    return ["## What each category contributes", KNOCK_OUT_TEXT, _markdown(table), *picture]


def _taxonomy_text(given: ReportInput) -> str:
    if not given.rows:
        return "Given, so no other was tried."
    cell = next(row.scores for row in given.rows if row.is_chosen)
    offline = cell.offline
    parts = [
        f"Chosen among {len(given.rows)} cells: {cell.method} at layer {cell.layer}, "
        f"{cell.size} categories, k = {cell.k}; score {offline.score:.2f} (consistency "
        f"{offline.consistency:.2f}, completeness {offline.completeness:.2f}, stability "
        f"{offline.stability_over_seeds:.2f} over seeds and "
        f"{offline.stability_over_halves:.2f} over halves, separation {offline.separation:.2f})."
    ]
    if cell.metrics is not None:
        metrics = cell.metrics
        parts.append(f"Variance unexplained {metrics.fvu:.2f}, dead latents {metrics.dead}.")
    for level, truth in (cell.truth or {}).items():
        parts.append(
            f"Against the known truth ({level}): purity {truth.purity:.2f}, NMI {truth.nmi:.2f}."
        )
    return " ".join(parts)


def prompt_table(prompts: Mapping[str, str | None]) -> Table:
    """The prompt of each model."""
    return Table(("model", "prompt"), [(role, prompt or "") for role, prompt in prompts.items()])


def _category_table(given: ReportInput) -> Table:
    counts = given.decisions_per_category
    shown = [""] * len(given.categories) if counts is None else [str(count) for count in counts]
    rows = [
        (
            str(row.category),
            row.title,
            f"{row.sentences} ({row.share:.0%})",
            decisions,
            row.typical[0].text if row.typical else "",
        )
        for row, decisions in zip(given.categories, shown, strict=True)
    ]
    return Table(("category", "title", "sentences", "disagreements", "example"), rows)


def training_lines(training: "ElicitReport") -> list[str]:
    """Losses of the vectors, and how well the gates predict."""
    lines: list[str] = []
    if training.given is not None:
        known = " The rest of this list is of the training there." if training.trainings else ""
        lines.append(f"taken as they are from {training.given}.{known}")
    for name, summary in training.trainings.items():
        losses = ", ".join(
            f"seed {notes.seed}: {notes.selection_loss:.3f}" for notes in summary.seeds
        )
        lines.append(
            f"{name}: selection loss in nats per seed: {losses}; kept seed {summary.chosen_seed}"
            f"{_gaps_text(summary)}"
        )
    for kind, agreement in training.gate_sentence_agreement.items():
        if agreement.share is not None:
            lines.append(
                f"gate {kind}: its category equals that of the sentence that follows in "
                f"{agreement.share:.0%} of {agreement.decisions} held-out disagreements"
            )
    if (probe := training.self_gate) is not None:
        lines.append(
            "self-gate (probe gate), on the answers that its threshold was chosen on: precision "
            f"{probe.precision:.0%}, recall {probe.recall:.0%}, right category in "
            f"{probe.category_accuracy:.0%} of {probe.decisions} disagreements"
        )
    return lines


def _gaps_text(summary: "TrainingSummary") -> str:
    """What the hybrid of every seed recovers, where that chose among them."""
    if not summary.gaps:
        return ""
    pairs = zip(summary.seeds, summary.gaps, strict=True)
    shares = ", ".join(f"seed {notes.seed}: {gap:.0%}" for notes, gap in pairs)
    return f", by the gap that its hybrid recovers on the selection problems ({shares})"


def _example_parts(examples: Sequence[tuple[str, HybridTrace]]) -> list[str]:
    if not examples:
        return []
    parts = ["## Examples", "Answers of the hybrid, with the number of steered tokens in brackets."]
    for question, trace in examples:
        quoted = "\n> ".join(trace.text.strip().splitlines()) or "(empty)"
        parts.append(f"**{question.strip()}** ({trace.decisions} of {len(trace.tokens)})")
        parts.append(f"> {quoted}")
    return parts


def _markdown(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
