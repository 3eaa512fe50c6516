"""The report of a run, in Markdown: the ladder first, then what stands behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from howwhen.discover.portraits import Portrait
from howwhen.records import HybridTrace, Interval, Measurement, RungMeasurement


@dataclass(frozen=True)
class ReportInput:
    """Everything a report shows."""

    title: str
    base: str
    thinking: str
    measurement: Measurement
    confidence: float
    cells: Sequence[Mapping[str, Any]]
    categories: Sequence[Portrait]
    training: Mapping[str, Any]
    decisions_per_category: Sequence[int]
    examples: Sequence[tuple[str, HybridTrace]]
    """Questions with the hybrid's answers."""
    prompts: Mapping[str, str | None]
    """How each model was asked, by role."""
    chart: str | None = None
    """File with the chart of the knock-outs."""
    judge: Mapping[str, Any] | None = None
    """What a judge thought of the grades, where one was asked."""


def header(confidence: float) -> tuple[str, ...]:
    """The ladder's columns."""
    interval = f"{confidence * 100:g} % interval"
    return ("rung", "accuracy", interval, "gap recovered", interval, "steered", "changed")


def ladder_rows(measurement: Measurement) -> list[tuple[str, ...]]:
    """The ladder as text cells, in the order of the rungs."""
    return [_ladder_row(name, rung) for name, rung in measurement.rungs.items()]


def verdict(measurement: Measurement) -> str:
    """The answer in a sentence or two, controls included."""
    hybrid = measurement.rungs["hybrid"]
    if hybrid.gap_recovered is None:
        return (
            f"No gap to recover: thinking minus base is {measurement.gap:+.1%} with interval "
            f"{_interval(measurement.gap_ci)}, which contains 0 (n = {measurement.n})."
        )
    controls = [
        f"{name} {rung.gap_recovered:.0%}"
        for name, rung in measurement.rungs.items()
        if rung.gap_recovered is not None and name not in ("base", "thinking", "takeover", "hybrid")
    ]
    return (
        f"The hybrid recovers {hybrid.gap_recovered:.0%} of a gap of {measurement.gap:.1%} "
        f"(interval {_interval(hybrid.gap_recovered_ci)}) with {hybrid.steered_fraction:.1%} of "
        f"tokens steered (n = {measurement.n}). Controls: {', '.join(controls)}."
    )


def make_report(given: ReportInput) -> str:
    """The whole report."""
    parts = [
        f"# {given.title}",
        f"Base `{given.base}`, thinking model `{given.thinking}`.",
        verdict(given.measurement),
        "## The ladder of controls",
        _table(header(given.confidence), ladder_rows(given.measurement)),
        "Gap recovered is (rung - base) / (thinking - base), signed; intervals are paired "
        "bootstraps over problems. Steered: tokens at which the rung intervened. Changed: tokens "
        "that differ from what the unsteered base would have emitted there.",
        "## Grades",
        _grading_text(given.measurement),
        _table(("rung", *_grades(given.measurement), "seeds"), _grade_rows(given.measurement)),
        _table(MODE_COLUMNS, _mode_rows(given.measurement)),
        *_judge_parts(given.judge),
        *_sample_parts(given.measurement),
        *_knock_out_parts(given),
        "## Prompts",
        _table(("model", "asked with"), [(role, how or "") for role, how in given.prompts.items()]),
        "## Taxonomy",
        _taxonomy_text(given),
        _table(("category", "title", "sentences", "decisions", "example"), _category_rows(given)),
        "## Vectors",
        _training_text(given.training),
        *_example_parts(given.examples),
    ]
    return "\n\n".join(parts) + "\n"


def _ladder_row(name: str, rung: RungMeasurement) -> tuple[str, ...]:
    recovered = "undefined" if rung.gap_recovered is None else f"{rung.gap_recovered:.0%}"
    return (
        name,
        f"{rung.accuracy:.1%}",
        _interval(rung.accuracy_ci),
        recovered,
        _interval(rung.gap_recovered_ci),
        f"{rung.steered_fraction:.1%}",
        f"{rung.changed_fraction:.1%}",
    )


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.low * 100:.0f} to {interval.high * 100:.0f} %"


def _grades(measurement: Measurement) -> tuple[str, ...]:
    return tuple(next(iter(measurement.rungs.values())).counts)


def _grade_rows(measurement: Measurement) -> list[tuple[str, ...]]:
    return [
        (name, *(str(count) for count in rung.counts.values()), ", ".join(map(str, rung.seeds)))
        for name, rung in measurement.rungs.items()
    ]


MODE_COLUMNS = (
    "rung",
    "flexible",
    "strict",
    "cut off",
    "tokens per answer",
    "only it right",
    "only the hybrid right",
    "McNemar p",
)


def _grading_text(measurement: Measurement) -> str:
    return (
        f"Accuracies above are by the {measurement.mode} mode. `strict` takes only an answer that "
        "is marked as one (boxed, after `####`, or a short `the answer is`); `flexible` also reads "
        "the sentence that concludes. Neither counts as wrong what could not be read. Each rung is "
        "held against the hybrid on the same problems (McNemar's exact test)."
    )


def _mode_rows(measurement: Measurement) -> list[tuple[str, ...]]:
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
                *tests,
            )
        )
    return rows


def _judge_parts(judge: Mapping[str, Any] | None) -> list[str]:
    if judge is None:
        return []
    rows = [
        (
            mode,
            *(str(found[name]) for name in JUDGE_COUNTS),
            "undefined" if found["kappa"] is None else f"{found['kappa']:.2f}",
        )
        for mode, found in judge["agreement"].items()
    ]
    text = (
        f"Judge {judge['model']}, majority of {judge['repeats']}: {judge['unparsable']} replies "
        "could not be read. Rules and judge on which answers are correct:"
    )
    columns = ("mode", "both", "rules only", "judge only", "neither", "no verdict", "kappa")
    return [text, _table(columns, rows)]


JUDGE_COUNTS = ("both_correct", "rules_only", "judge_only", "neither_correct", "left_out")


def _sample_parts(measurement: Measurement) -> list[str]:
    """pass@k of sampled runs."""
    sampled = {name: rung for name, rung in measurement.rungs.items() if rung.pass_at_k}
    if not sampled:
        return []
    ks = sorted({k for rung in sampled.values() for k in rung.pass_at_k})
    rows = [(name, *(f"{rung.pass_at_k[k]:.1%}" for k in ks)) for name, rung in sampled.items()]
    samples = next(iter(sampled.values())).samples
    return [
        f"{samples} samples per problem; accuracy is mean@{samples}, and pass@k the chance that "
        "one of k is right:",
        _table(("rung", *(f"pass@{k}" for k in ks)), rows),
    ]


def _knock_out_parts(given: ReportInput) -> list[str]:
    knock_outs = given.measurement.knock_outs
    if not knock_outs:
        return []
    rows = [
        (
            f"{one.category}: {one.title}",
            str(one.decisions),
            *_share(one.without, one.without_ci),
            *_share(one.drop, one.drop_ci),
            *_share(one.alone, one.alone_ci),
        )
        for one in knock_outs
    ]
    interval = f"{given.confidence * 100:g} % interval"
    columns = ("category", "decisions", "without it", interval, "lost", interval, "alone", interval)
    picture = [f"![What each category carries]({given.chart})"] if given.chart else []
    return [
        "## What each category carries",
        "Gap recovered by the hybrid steered with every category but one, what is lost by that, "
        "and the gap recovered with one category alone.",
        _table(columns, rows),
        *picture,
    ]


def _share(value: float | None, interval: Interval | None) -> tuple[str, str]:
    return "undefined" if value is None else f"{value:.0%}", _interval(interval)


def _taxonomy_text(given: ReportInput) -> str:
    cell = next(cell for cell in given.cells if cell["chosen"])
    parts = [
        f"Chosen among {len(given.cells)} cells: {cell['method']} at layer {cell['layer']}, "
        f"{cell['size']} categories, k = {cell['k']}; score {cell['score']:.2f} (consistency "
        f"{cell['consistency']:.2f}, completeness {cell['completeness']:.2f}, stability "
        f"{cell['stability_over_seeds']:.2f} over seeds and "
        f"{cell['stability_over_halves']:.2f} over halves, separation {cell['separation']:.2f})."
    ]
    if "fvu" in cell:
        parts.append(f"Variance unexplained {cell['fvu']:.2f}, dead latents {cell['dead']}.")
    for level in [key.removeprefix("nmi_") for key in cell if key.startswith("nmi_")]:
        parts.append(
            f"Against the known truth ({level}): purity {cell[f'purity_{level}']:.2f}, NMI "
            f"{cell[f'nmi_{level}']:.2f}."
        )
    return " ".join(parts)


def _category_rows(given: ReportInput) -> list[tuple[str, ...]]:
    return [
        (
            str(row.category),
            row.title,
            f"{row.sentences} ({row.share:.0%})",
            str(decisions),
            row.typical[0].text if row.typical else "",
        )
        for row, decisions in zip(given.categories, given.decisions_per_category, strict=True)
    ]


def _training_text(training: Mapping[str, Any]) -> str:
    lines = []
    for name in ("bias", "vectors", "shared"):
        if name not in training:
            continue
        summary = training[name]
        losses = ", ".join(
            f"seed {one['seed']}: {one['selection_loss']:.3f}" for one in summary["seeds"]
        )
        lines.append(
            f"- {name}: selection loss in nats per seed: {losses}; kept seed "
            f"{summary['chosen_seed']}"
        )
    for kind, agreement in training["gate_sentence_agreement"].items():
        if agreement["share"] is not None:
            lines.append(
                f"- gate {kind}: its category equals that of the sentence that follows in "
                f"{agreement['share']:.0%} of {agreement['decisions']} decisions held out"
            )
    probe = training["self_gate"]
    lines.append(
        f"- self-gate, on answers held out: precision {probe['precision']:.0%}, recall "
        f"{probe['recall']:.0%}, category right in {probe['category_accuracy']:.0%} of "
        f"{probe['decisions']} decisions"
    )
    return "\n".join(lines)


def _example_parts(examples: Sequence[tuple[str, HybridTrace]]) -> list[str]:
    if not examples:
        return []
    parts = ["## Examples", "Hybrid answers; how many tokens were steered is given in brackets."]
    for question, trace in examples:
        quoted = "\n> ".join(trace.text.strip().splitlines()) or "(empty)"
        parts.append(f"**{question.strip()}** ({trace.decisions} of {len(trace.tokens)})")
        parts.append(f"> {quoted}")
    return parts


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
