"""Graded traces and ladders with known results."""

from howwhen.measure.ladder import GradedTrace
from howwhen.records import Bits, Finish, Grade, RungName
from howwhen.settings import MeasureSettings

SETTINGS = MeasureSettings(bootstrap_samples=2000)


def traces(
    right: int,
    n: int = 50,
    seed: int = 0,
    decisions: int = 2,
    sample: int = 0,
    category: int | None = None,
    strict: int | None = None,
    bits: Bits | None = None,
) -> list[GradedTrace]:
    """Answers to n problems, the first `right` of them right, `strict` also by the strict mode."""

    def grade(index: int, count: int) -> Grade:
        return Grade.CORRECT if index < count else Grade.WRONG

    return [
        GradedTrace(
            problem_id=f"{index:03}",
            seed=seed,
            sample=sample,
            category=category,
            flexible=grade(index, right),
            strict=grade(index, right if strict is None else strict),
            answer="1",
            rule=None,
            finish=Finish.LENGTH if index == n - 1 else Finish.STOP,
            tokens=10,
            decisions=decisions,
            changed=1,
            steered_passes=3 * decisions,
            needs_thinking=decisions > 0,
            bits=bits,
        )
        for index in range(n)
    ]


def ladder() -> dict[RungName, list[GradedTrace]]:
    return {
        "base": traces(10, decisions=0),
        "random-vectors": traces(10) + traces(20, seed=1),
        "hybrid": traces(30, strict=25),
        "thinking": traces(40),
    }
