"""How far grades can be trusted: gold answers against themselves, and every answer read twice.

The second reader is Math-Verify's own extraction, which shares no rule with ours and knows nothing
of the question. An answer is disputed where one of the two counts it as right and the other does
not. The share of disputed answers indicates what misreading can do to an accuracy. What both
misread alike does not show, nor do words and options, which are read once.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from howwhen.measure.grade import Graded, Grader, Item, Second
from howwhen.measure.judge import Judgement
from howwhen.records import Grade, Measurement

SHOWN = 10
"""Disputed answers of each kind that are shown."""
RightBy = Literal["rules only", "second reader only"]
"""Who counts a disputed answer as right."""


@dataclass(frozen=True)
class RungAudit:
    """The answers of one rung, read twice."""

    answers: int
    correct: int
    """By our rules."""
    rules_only: int
    """Right by our rules only."""
    second_only: int
    """Right by the second reader only."""
    unread: int
    """Answers without an opinion of the second reader: words, options, and what took too long."""
    judged_accuracy: float | None = None
    """Accuracy where a judge decides about disputed answers; None if none was asked."""

    @property
    def disputed(self) -> float:
        """Share of the answers that are disputed."""
        return (self.rules_only + self.second_only) / self.answers

    @property
    def accuracy(self) -> float:
        """By our rules."""
        return self.correct / self.answers

    @property
    def lowest(self) -> float:
        """Accuracy if no disputed answer were right."""
        return (self.correct - self.rules_only) / self.answers

    @property
    def highest(self) -> float:
        """Accuracy if all disputed answers were right."""
        return (self.correct + self.second_only) / self.answers


@dataclass(frozen=True)
class Disputed:
    """One disputed answer."""

    rung: str
    right_by: RightBy
    question: str
    gold: str
    read: str
    """By our rules; empty if they read nothing."""
    rule: str
    """Which of our rules read it."""
    sentence: str
    """Where our rules read it, or the end of the text."""
    second: str
    """What the second reader read; empty if nothing."""


@dataclass(frozen=True)
class Audit:
    """What the two readers say of a run's answers."""

    golds: int
    """Different gold answers."""
    unequal_golds: tuple[str, ...]
    """Gold answers that are not graded as right against themselves; there must be none."""
    rungs: Mapping[str, RungAudit]
    examples: tuple[Disputed, ...]
    """Up to ten of each kind."""


@dataclass(frozen=True)
class Audited:
    """An audit, and which answers are disputed."""

    audit: Audit
    kinds: Mapping[str, Sequence[RightBy | None]]
    """By rung, who counts each answer as right if only one reader does, in order."""

    def is_disputed(self, rung: str, index: int) -> bool:
        """Whether an answer is disputed."""
        return self.kinds[rung][index] is not None

    def settled(self, judged: Mapping[tuple[str, int], Judgement]) -> Audit:
        """The audit with what a judge says of disputed answers.

        Args:
            judged: by rung and place, at least the disputed answers. Without a majority of verdicts
                our rules decide.
        """
        rungs = {}
        for rung, audited in self.audit.rungs.items():
            right = audited.correct
            for index, kind in enumerate(self.kinds[rung]):
                verdict = judged[rung, index].verdict if kind else None
                if verdict is not None:
                    right += (verdict is Grade.CORRECT) - (kind == "rules only")
            rungs[rung] = replace(audited, judged_accuracy=right / audited.answers)
        return replace(self.audit, rungs=rungs)


def audit_answers(answers: Mapping[str, Sequence[tuple[Item, Graded]]], grader: Grader) -> Audited:
    """Read every answer a second time.

    Args:
        answers: by rung, the answers and their grades in the flexible mode.
        grader: compares.
    """
    items = [item for pairs in answers.values() for item, _ in pairs]
    golds = list(dict.fromkeys((item.gold, item.dataset) for item in items))
    second = {
        rung: grader.read_again([item for item, _ in pairs]) for rung, pairs in answers.items()
    }
    rungs: dict[str, RungAudit] = {}
    kinds: dict[str, list[RightBy | None]] = {}
    examples: list[Disputed] = []
    for rung, pairs in answers.items():
        kinds[rung] = [
            right_by(graded.grade, other)
            for (_, graded), other in zip(pairs, second[rung], strict=True)
        ]
        rungs[rung] = RungAudit(
            answers=len(pairs),
            correct=sum(graded.grade is Grade.CORRECT for _, graded in pairs),
            rules_only=kinds[rung].count("rules only"),
            second_only=kinds[rung].count("second reader only"),
            unread=sum(other is None or other.grade is Grade.TIMED_OUT for other in second[rung]),
        )
        examples += [
            _show(rung, kind, *pair, other)
            for kind, pair, other in zip(kinds[rung], pairs, second[rung], strict=True)
            if kind is not None and other is not None
        ]
    shown = [
        example
        for kind in ("rules only", "second reader only")
        for example in _spread([one for one in examples if one.right_by == kind])
    ]
    audit = Audit(len(golds), tuple(unequal_golds(golds, grader)), rungs, tuple(shown))
    return Audited(audit, kinds)


def unequal_golds(golds: Iterable[tuple[str, str]], grader: Grader) -> list[str]:
    """Gold answers that are not graded as right against themselves, in a box, in either mode.

    Args:
        golds: gold answers with the names of their data sets.
        grader: compares.
    """
    items = [Item(f"\\boxed{{{gold}}}", gold, dataset) for gold, dataset in golds]
    flexible, strict = grader.grade(items), grader.grade(items, "strict")
    return [
        item.gold
        for item, *both in zip(items, flexible, strict, strict=True)
        if any(graded.grade is not Grade.CORRECT for graded in both)
    ]


def right_by(grade: Grade, second: Second | None) -> RightBy | None:
    """Who counts an answer as right, if only one of the two readers does; None otherwise."""
    if second is None or second.grade is Grade.TIMED_OUT:
        return None
    ours, theirs = grade is Grade.CORRECT, second.grade is Grade.CORRECT
    if ours == theirs:
        return None
    return "rules only" if ours else "second reader only"


def _spread(examples: Sequence[Disputed]) -> list[Disputed]:
    """Evenly spaced ones, so that every rung is shown."""
    step = max(1.0, len(examples) / SHOWN)
    return [examples[int(place * step)] for place in range(min(SHOWN, len(examples)))]


def _show(rung: str, kind: RightBy, item: Item, graded: Graded, second: Second) -> Disputed:
    answer = graded.answer
    return Disputed(
        rung=rung,
        right_by=kind,
        question=item.question or "",
        gold=item.gold,
        read=answer.text if answer else "",
        rule=answer.rule.value if answer else graded.grade.value,
        sentence=sentence_with(item.text, answer.text if answer else ""),
        second=second.answer,
    )


def sentence_with(text: str, answer: str) -> str:
    """The last sentence of a text that holds an answer as it was written; else the last one."""
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s)|\n", text)]
    place = text.rfind(answer) if answer else -1
    place = place if place >= 0 else len(text.rstrip()) - 1
    start = max((end for end in ends if end <= place), default=0)
    stop = min((end for end in ends if end > place + len(answer)), default=len(text))
    return " ".join(text[start:stop].split())[-300:]


NOTABLE = 0.05
"""Smallest difference of two shares that is worth a warning."""
CHANCE = 0.01
"""Largest probability of such a difference, if there were none (Fisher's exact test)."""
ARMS = ("base", "hybrid", "thinking")


def unequal_reading(measurement: Measurement, audit: Audit | None = None) -> list[str]:
    """Where base, hybrid and thinking model are not read alike, in words.

    Named are shares that are five points apart, more than chance explains.
    """
    from scipy.stats import fisher_exact  # takes half a second to import

    found = []
    for what, counts in _counts(measurement, audit).items():
        for first, second in combinations([arm for arm in ARMS if arm in counts], 2):
            (a, n), (b, m) = counts[first], counts[second]
            if abs(a / n - b / m) < NOTABLE:
                continue
            if fisher_exact([[a, n - a], [b, m - b]]).pvalue < CHANCE:
                shares = f"{a / n:.1%} of the answers of {first}, {b / m:.1%} of {second}"
                found.append(f"{what}: {shares}")
    return found


def _counts(measurement: Measurement, audit: Audit | None) -> dict[str, dict[str, tuple[int, int]]]:
    """By what can go wrong, how many of each rung's answers."""
    counts: dict[str, dict[str, tuple[int, int]]] = {}
    for name, rung in measurement.rungs.items():
        n = sum(rung.counts.values())
        for what, count in (
            ("no answer found", rung.counts["no_answer"]),
            ("cut off before an answer", rung.counts["truncated"]),
            ("stop inside the thinking", round(rung.open_fraction * n)),
            ("repeat themselves to the end", round(rung.loop_fraction * n)),
        ):
            counts.setdefault(what, {})[name] = count, n
    if audit is not None:
        counts["disputed"] = {
            name: (rung.rules_only + rung.second_only, rung.answers)
            for name, rung in audit.rungs.items()
        }
    return counts
