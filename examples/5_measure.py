"""Step 5: grades, the share of the gap that is recovered, and the test between two rungs."""

import numpy as np

from howwhen import Grade
from howwhen.hybrid.choice import Base, Guardrail, Rung, Takeover, Thinking
from howwhen.hybrid.decoder import decode
from howwhen.measure.grade import Item, grade_answers
from howwhen.measure.recovery import Bootstrap, Outcomes
from howwhen.settings import HybridSettings, MeasureSettings
from howwhen.zoo.pairs import find_pair
from howwhen.zoo.tally import tally_problems


def main() -> None:
    """Compare rungs that need no vectors on a hundred problems."""
    models, problems = find_pair("tally-rl").models(), tally_problems(100, seed=123)

    def answer(rung: Rung) -> Outcomes:
        """1 for each right answer, for one seed and one sample."""
        traces = decode(models, problems, rung, HybridSettings(max_new_tokens=160))
        items = [
            Item(trace.text, problem.answer, problem.dataset, trace.finish)
            for trace, problem in zip(traces, problems, strict=True)
        ]
        grades = grade_answers(items)
        print(f"{rung.name}: {', '.join(f'{grades.count(g)} {g}' for g in dict.fromkeys(grades))}")
        return np.array([grade is Grade.CORRECT for grade in grades], float).reshape(-1, 1, 1)

    base, thinking = answer(Base()), answer(Thinking())
    takeover, guardrail = answer(Takeover()), answer(Guardrail(top_k=2))
    bootstrap = Bootstrap.draw(len(problems), MeasureSettings())
    print()
    for name, outcomes in {"takeover": takeover, "guardrail, top 2": guardrail}.items():
        recovery = bootstrap.recovery(outcomes, base, thinking)
        if recovery is None:
            raise SystemExit("there is no gap between these two models")
        low, high = recovery.interval
        print(f"{name} recovers {recovery.value:.0%} of the gap ({low:.0%} to {high:.0%})")
    test = bootstrap.compare(takeover, guardrail)
    print(f"only takeover right {test.only_first}, only guardrail {test.only_second}", end=", ")
    print(f"McNemar's exact p = {test.p_value:.1g}")


if __name__ == "__main__":
    main()
