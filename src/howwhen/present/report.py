"""The report of a run in Markdown: the verdict, the ladder of controls, then the details."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from howwhen.discover.categories import CategorySummary
from howwhen.judge.endpoint import usage_line
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
    interval_text,
    judge_table,
    knock_out_table,
    ladder_table,
    mode_table,
    sample_table,
)
from howwhen.present.verdict import explain
from howwhen.records import (
    LADDER,
    Concentration,
    Flips,
    Gains,
    HybridTrace,
    Measurement,
    RungMeasurement,
    RungName,
    Work,
)

if TYPE_CHECKING:
    from howwhen.discover.report import GridRow
    from howwhen.elicit.report import ElicitReport
    from howwhen.measure.audit import Audit
    from howwhen.measure.judge import JudgeReport

LADDER_TEXT = (
    "A rung is a condition: the hybrid, a control or a ceiling. Gap recovered (recovery) is "
    "(rung - base) / (thinking - base), signed; its intervals are paired bootstraps over problems. "
    "Steered (the budget): tokens at which the rung intervened. Changed: tokens that differ from "
    "the unsteered base's token at that position. Bits: what the thinking model tells per answer."
)
BITS_TEXT = (
    "What the thinking model tells the base, in bits per answer: the length of a code for when the "
    "rung intervenes, which category it steers with, and what token is written where the "
    "thinking model chooses it. The code is that of a coder who sees only the base (its next-token "
    "distribution, and its residual through the self-gate's probe), fitted on answers to other "
    "problems. It is an upper bound: a better coder needs fewer bits, and few answers to learn "
    "from cost more. Tokens are coded at interventions or all along, whichever is shorter. What "
    "random rungs and thresholds take from the hybrid's run (how many places) is not counted. "
    "Numbers fitted: vectors, coefficient network, gate and probe, and their share of the base's "
    "parameters."
)
BUDGET_TEXT = (
    "Rungs that intervene only where it matters most: hybrid and takeover at disagreements where "
    "the Jensen-Shannon divergence of the two next-token distributions reaches the threshold (in "
    "bits, 0 to 1), the self-gate where its log-odds do. The threshold is made for a share of the "
    "full rung's interventions; since the text changes, the share of the tokens that are steered "
    "in the end may be another."
)
COST_TEXT = (
    "The least number of tokens per answer that each model has to read, without the prompt. "
    "Drafted blocks that are rejected cost more tokens, but save forward passes. Work is "
    "parameters times tokens read; a steered pass only runs the blocks above the steered one."
)
RUNG_NOTES: Mapping[RungName, str] = {
    "base": "the base model alone",
    "base-step-by-step": "the base model alone, prompted to think step by step",
    "guardrail-only": "the base's top tokens (5 by default) reranked by the thinking model at each "
    "disagreement, no vectors",
    "logit-difference": "no vectors: a share (half by default) of the difference between the two "
    "models' logits is added to the base's at each disagreement",
    "bias-only": "one trained bias vector, without categories",
    "shared-vector": "one trained vector for all categories, K = 1",
    "magnitude-only": "the mean direction of the hybrid's vectors, at their norms and coefficients",
    "random-category": "the hybrid's vectors, category drawn at random",
    "random-positions": "the hybrid's vectors, at random positions: as many per answer as the "
    "hybrid steers, starts of sentences for starts of sentences",
    "random-positions-anywhere": "the same, at positions of any kind",
    "random-vectors": "random vectors with the hybrid's norms",
    "entropy-gate": "the hybrid's vectors where the base is unsure: its entropy is above a "
    "threshold that steers as often as the hybrid; the thinking model names the category",
    "early-only": "the hybrid at the first half of its disagreements in each answer",
    "hybrid": "the base, steered with the category's vector at each disagreement",
    "self-gate": "probe gate: a probe on the base's residual stream decides when and with which "
    "category to steer, without the thinking model",
    "reverse-takeover": "the thinking model, with the base's own token at its first disagreements, "
    "as many as the hybrid steers",
    "takeover": "one-token takeover: the thinking model's own token at each disagreement",
    "thinking": "the thinking model alone",
}
"""What each rung is, in the terms of the literature."""
READING_TEXT = (
    "What the flexible mode read, by rule: the share of each rung's answers. An answer loops if it "
    "ends in the same words four times and for 200 characters. Shares that differ much between "
    "base, hybrid and thinking model mean that their accuracies are not read alike."
)
KNOCK_OUT_TEXT = (
    "The gap recovered by the hybrid without one category, the loss against the full hybrid, and "
    "the gap recovered with that category alone."
)


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
    decisions_per_category: Sequence[int]
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


def verdict(measurement: Measurement) -> str:
    """The answer, what explains it as far as the controls can tell, and how problems change."""
    hybrid = measurement.rungs["hybrid"]
    if hybrid.gap_recovered is None:
        return (
            f"No gap to recover: thinking minus base is {measurement.gap:+.1%} with interval "
            f"{interval_text(measurement.gap_ci)}, which contains 0 (n = {measurement.n})."
        )
    comparisons = gains_text(hybrid.gains) + flips_text(hybrid.flips) + ties_text(hybrid)
    reasons = explain(measurement).text.replace("*", "")
    return (
        f"The hybrid recovers {hybrid.gap_recovered:.0%} of a gap of {measurement.gap:.1%} "
        f"(interval {interval_text(hybrid.gap_recovered_ci)}) with {hybrid.steered_fraction:.1%} "
        f"of tokens steered (n = {measurement.n}). {reasons}{comparisons}"
    )


def gains_text(gains: Gains | None) -> str:
    """Whether the hybrid is right where the thinking model is; empty where that is unknown."""
    if gains is None:
        return ""
    others = "" if gains.elsewhere is None else f", of the others {gains.elsewhere:.0%}"
    return (
        f" Of the {gains.problems} problems that the thinking model gets right and the base does "
        f"not, the hybrid gets {gains.shared:.0%}{others}."
    )


def flips_text(flips: Flips | None) -> str:
    """How the hybrid changes single problems of the base; empty where that is unknown."""
    if flips is None:
        return ""
    return (
        f" Against the base it turns {flips.gained} problems from wrong to right and {flips.lost} "
        "from right to wrong."
    )


def ties_text(rung: RungMeasurement) -> str:
    """How many disagreements may be none; empty if there is no such one."""
    if not rung.tie_fraction:
        return ""
    share = rung.tie_fraction / rung.steered_fraction
    return (
        f" At {share:.1%} of the steered tokens one of the models was undecided: its first two "
        "choices were closer than the rounding of its numbers (ties)."
    )


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


def rungs_text(measurement: Measurement) -> str:
    """What each rung of this run is."""
    notes = [f"`{name}`: {RUNG_NOTES[name]}" for name in measurement.rungs if name in RUNG_NOTES]
    return f"{'. '.join(notes)}. {left_out_text(measurement)}".rstrip()


def left_out_text(measurement: Measurement) -> str:
    """Which rungs were not run; empty if none was left out."""
    own = ("base-step-by-step", "bias-only")  # not every pair or method has them
    missing = [name for name in LADDER if name not in (*measurement.rungs, *own)]
    return f"Left out: {', '.join(missing)} (--rungs all)." if missing else ""


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


def concentration_text(concentration: Concentration) -> str:
    """How concentrated the models' difference is, and what the tables under it show."""
    return (
        f"Jensen-Shannon divergence of the two next-token distributions in the answers of "
        f"`{concentration.rung}`, per token: {concentration.mean:.3f} bits on average over "
        f"{concentration.tokens:,} tokens, Gini index {concentration.gini:.2f}. Words are the "
        "tokens that the thinking model wants at disagreements, against what it wants elsewhere. "
        "Categories are those that the hybrid steers with, against those of the thinking model's "
        "sentences."
    )


def grading_text(measurement: Measurement) -> str:
    """What the grading modes and the columns mean."""
    return (
        f"Accuracies above are by the {measurement.mode} mode. `strict` takes only an answer that "
        "is marked as one (boxed, after `####`, or a short `the answer is`); `flexible` also reads "
        "the concluding sentence. Answers that cannot be read are counted separately, not as "
        "wrong. Gains shared: a rung's accuracy on the problems that the thinking model gets right "
        "and the base does not. Right elsewhere: its accuracy on all others, as a rung can get as "
        "many right without getting the same ones. Wrong to right and right to wrong (flips) count "
        "the problems on which it differs from the base, net the first minus the second. The last "
        "three columns compare each rung with the hybrid on the same problems (McNemar's exact "
        "test)."
    )


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


def judge_text(judge: "JudgeReport") -> str:
    """Who judged, and how many replies could not be read."""
    used = usage_line(judge.model, judge.usage)
    where = ""
    if judge.disputed is not None:
        raw = judge.disputed.raw
        share = "" if raw is None else f" (on {raw:.0%} of the disputed ones)"
        where = f", on a random sample of {judge.sample}{share}"
    return (
        f"Majority of {judge.repeats} verdicts of the {used}; {judge.unparsable} "
        "replies could not be parsed. Agreement of the grading rules and the judge on correct "
        f"answers{where}:"
    )


def _sample_parts(measurement: Measurement) -> list[str]:
    table = sample_table(measurement)
    return [] if table is None else [sample_text(measurement), _markdown(table)]


def sample_text(measurement: Measurement) -> str:
    """What accuracy means if answers are sampled."""
    samples = next(rung.samples for rung in measurement.rungs.values() if rung.pass_at_k)
    return (
        f"{samples} samples per problem. The accuracy is mean@{samples}; pass@k is the probability "
        "that at least one of k samples is right:"
    )


def _knock_out_parts(given: ReportInput) -> list[str]:
    knock_outs = given.measurement.knock_outs
    if not knock_outs:
        return []
    picture = [f"![What each category contributes]({given.chart})"] if given.chart else []
    table = knock_out_table(knock_outs, given.confidence)
    return ["## What each category contributes", KNOCK_OUT_TEXT, _markdown(table), *picture]


def _taxonomy_text(given: ReportInput) -> str:
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
    rows = [
        (
            str(row.category),
            row.title,
            f"{row.sentences} ({row.share:.0%})",
            str(decisions),
            row.typical[0].text if row.typical else "",
        )
        for row, decisions in zip(given.categories, given.decisions_per_category, strict=True)
    ]
    return Table(("category", "title", "sentences", "disagreements", "example"), rows)


def training_lines(training: "ElicitReport") -> list[str]:
    """Losses of the vectors, and how well the gates predict."""
    lines: list[str] = []
    for name, summary in training.trainings.items():
        losses = ", ".join(
            f"seed {notes.seed}: {notes.selection_loss:.3f}" for notes in summary.seeds
        )
        lines.append(
            f"{name}: selection loss in nats per seed: {losses}; kept seed {summary.chosen_seed}"
        )
    for kind, agreement in training.gate_sentence_agreement.items():
        if agreement.share is not None:
            lines.append(
                f"gate {kind}: its category equals that of the sentence that follows in "
                f"{agreement.share:.0%} of {agreement.decisions} held-out disagreements"
            )
    probe = training.self_gate
    lines.append(
        "self-gate (probe gate), on the answers that its threshold was chosen on: precision "
        f"{probe.precision:.0%}, recall {probe.recall:.0%}, right category in "
        f"{probe.category_accuracy:.0%} of {probe.decisions} disagreements"
    )
    return lines


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
