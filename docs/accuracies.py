"""Greedy accuracies of smol's three models: `python docs/accuracies.py FILE.jsonl ...`.

Prints a table in Markdown: the held-out stories of SVAMP, then the problems of each file whose
answer is a whole number; right answers by the strict and the flexible reading, with Wilson's 95 %
interval of the latter, and tokens per answer.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from scipy.stats import binomtest

from howwhen.collect.problems import read_problems
from howwhen.measure.grade import Item, grade_answers
from howwhen.models import LanguageModel
from howwhen.records import Finish, Grade, Problem
from howwhen.zoo.pairs import find_pair
from howwhen.zoo.smol.problems import smol_test_problems
from howwhen.zoo.smol.sampling import sample


def whole(problems: Sequence[Problem]) -> list[Problem]:
    """Those whose answer is a whole number."""
    return [problem for problem in problems if float(problem.answer).is_integer()]


def row(name: str, model: LanguageModel, problems: Sequence[Problem]) -> str:
    """One model on one set."""
    by_length = sorted(problems, key=lambda problem: len(problem.question))
    answers = sample(model, [model.prompt_ids(one.question) for one in by_length], 0.0, seed=0)
    items = [
        Item(
            text=model.tokenizer.decode(ids, skip_special_tokens=True),
            gold=problem.answer,
            dataset=problem.dataset,
            finish=Finish.STOP if ids[-1] in model.end_ids else Finish.LENGTH,
        )
        for ids, problem in zip(answers, by_length, strict=True)
    ]
    strict, flexible = (
        sum(grade is Grade.CORRECT for grade in grade_answers(items, mode=mode))
        for mode in ("strict", "flexible")
    )
    interval = binomtest(flexible, len(items)).proportion_ci(method="wilson")
    tokens = sum(map(len, answers)) / len(answers)
    return (
        f"| {name} | {len(items)} | {model.name} | {strict / len(items):.1%} | "
        f"{flexible / len(items):.1%} ({100 * interval.low:.0f} to {100 * interval.high:.0f}) | "
        f"{tokens:.0f} |"
    )


def main(files: Sequence[Path]) -> None:
    """Print the table."""
    sets = {"SVAMP, held-out stories": smol_test_problems(1000, 0)}
    sets |= {file.name.split(".")[0]: whole(read_problems(file)) for file in files}
    pairs = find_pair("smol"), find_pair("smol-sft")
    models = [pairs[0].base, pairs[0].thinking, pairs[1].thinking]
    print("| set | problems | model | strict | flexible (95 %) | tokens |")
    print("|---|---|---|---|---|---|")
    for name, problems in sets.items():
        for model in models:
            print(row(name, model, problems), flush=True)


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
