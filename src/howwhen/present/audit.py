"""An audit of grades as tables of text."""

from collections.abc import Mapping

from howwhen.measure.audit import Audit
from howwhen.present.tables import Table
from howwhen.records import RungMeasurement, RungName

AUDIT_TEXT = (
    "Every answer was read twice: by our rules, and by Math-Verify's own extraction, which shares "
    "none of them and does not know the question. Disputed answers are right by one of the two "
    "only. Lowest and highest: the accuracy if none or all of the disputed answers were right. "
    "Words, options and what took too long have no second reading (unread) and are not disputed."
)


def audit_table(audit: Audit) -> Table:
    """Per rung, what the two readers say."""
    columns = (
        "rung", "answers", "accuracy", "disputed", "right by the rules only",
        "right by the second reader only", "lowest", "highest", "unread",
    )  # fmt: skip
    is_judged = any(rung.judged_accuracy is not None for rung in audit.rungs.values())
    rows = [
        (
            name,
            str(rung.answers),
            f"{rung.accuracy:.1%}",
            f"{rung.disputed:.1%}",
            str(rung.rules_only),
            str(rung.second_only),
            f"{rung.lowest:.1%}",
            f"{rung.highest:.1%}",
            str(rung.unread),
            *([f"{rung.judged_accuracy:.1%}"] if rung.judged_accuracy is not None else []),
        )
        for name, rung in audit.rungs.items()
    ]
    return Table((*columns, *(["disputed by the judge"] if is_judged else [])), rows)


def disputed_table(audit: Audit) -> Table:
    """Some of the disputed answers, with the sentence that was read."""
    rows = [
        (one.right_by, one.rung, one.gold, one.read, one.rule, one.second, one.sentence)
        for one in audit.examples
    ]
    columns = ("right by", "rung", "gold", "rules read", "rule", "second reader", "sentence")
    return Table(columns, rows)


def golds_text(audit: Audit) -> str:
    """Whether every gold answer is right against itself."""
    wrong = audit.unequal_golds
    if not wrong:
        return f"All {audit.golds} different gold answers are graded as right against themselves."
    return (
        f"{len(wrong)} of {audit.golds} different gold answers are NOT graded as right against "
        f"themselves: {', '.join(wrong[:10])}."
    )


def reading_table(rungs: Mapping[RungName, RungMeasurement]) -> Table:
    """Per rung, the share of answers that each rule of the flexible mode read."""
    rules = list(dict.fromkeys(rule for rung in rungs.values() for rule in rung.read_by))
    rows = []
    for name, rung in rungs.items():
        n = sum(rung.counts.values())
        shares = [rung.read_by.get(rule, 0) / n for rule in rules]
        rest = 1 - sum(shares)
        others = (rest, rung.open_fraction, rung.loop_fraction)
        rows.append((name, *(f"{share:.1%}" for share in (*shares, *others))))
    return Table(("rung", *rules, "none", "stop inside the thinking", "loops"), rows)
