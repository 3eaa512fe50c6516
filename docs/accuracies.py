"""Measure the greedy accuracies of smol's four models: `python docs/accuracies.py [FILE ...]`.

Prints a Markdown table for SVAMP's test problems, then for the problems of each JSONL file whose
answer is a whole number (the first N with `--limit N`). Columns: accuracy by strict and by flexible
answer extraction, the latter with its 95 % Wilson interval, tokens per answer, and wrong equations
among those written. With `--begin TEXT`, every answer is made to begin with that text.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from howwhen.collect.problems import read_problems
from howwhen.lm.models import LanguageModel, load_model
from howwhen.lm.prompts import PLAIN
from howwhen.measure.grade import Item, grade_answers
from howwhen.measure.recovery import wilson
from howwhen.present.tables import interval_text
from howwhen.records import Finish, Grade, Problem
from howwhen.zoo.smol.problems import smol_test_problems
from howwhen.zoo.smol.sampling import sample
from howwhen.zoo.smol.weights import LAYERS, smol_folder
from howwhen.zoo.smol.word_problems import Operator, compute

EQUATION = re.compile(
    r"(?<![-+*/=.,\d])(?<![-+*/=x] )(\d+) ?([-+*/]) ?(\d+) ?= ?(\d+)(?! ?[-+*/]|,?\d|\.\d)"
)
"""Two whole numbers and a whole result, not part of a longer equation."""


def with_whole_answers(problems: Sequence[Problem]) -> list[Problem]:
    """The problems whose answer is a whole number."""
    answers = {problem: problem.answer.replace(",", "") for problem in problems}
    return [problem for problem, answer in answers.items() if re.fullmatch(r"-?\d+(\.0*)?", answer)]


def is_wrong(left: str, operator: Operator, right: str, result: str) -> bool:
    """Whether an equation of whole numbers is wrong."""
    step = compute(int(left), operator, int(right))
    return step is None or step.result != int(result)


def row(name: str, model: LanguageModel, problems: Sequence[Problem], begin: str) -> str:
    """The table row of one model on one problem set."""
    by_length = sorted(problems, key=lambda problem: len(problem.question))
    prefix = model.tokenizer.encode(begin, add_special_tokens=False)
    prompts = [[*model.prompt_ids(problem.question), *prefix] for problem in by_length]
    answers = [(*prefix, *answer) for answer in sample(model, prompts, 0.0, seed=0)]
    texts = [model.tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
    items = [
        Item(
            text=text,
            gold=problem.answer,
            dataset=problem.dataset,
            finish=Finish.STOP if ids[-1] in model.end_ids else Finish.LENGTH,
        )
        for ids, text, problem in zip(answers, texts, by_length, strict=True)
    ]
    strict, flexible = (
        sum(grade is Grade.CORRECT for grade in grade_answers(items, mode=mode))
        for mode in ("strict", "flexible")
    )
    interval = interval_text(wilson(flexible, len(items), confidence=0.95))
    tokens = sum(map(len, answers)) / len(answers)
    equations = [groups for text in texts for groups in EQUATION.findall(text)]
    wrong = sum(is_wrong(*equation) for equation in equations)
    return (
        f"| {name} | {len(items)} | {model.name} | {strict / len(items):.1%} | "
        f"{flexible / len(items):.1%} ({interval}) | {tokens:.0f} | {wrong} of {len(equations)} |"
    )


def main(files: Sequence[Path], begin: str, limit: int | None) -> None:
    """Print the table."""
    sets = {"SVAMP, test": smol_test_problems(1000, 0)}
    sets |= {
        file.name.split(".")[0]: with_whole_answers(read_problems(file))[:limit] for file in files
    }
    models = [load_model(smol_folder(name), prompt=PLAIN, name=f"smol/{name}") for name in LAYERS]
    print("| set | problems | model | strict | flexible (95 %) | tokens | wrong equations |")
    print("|---|---|---|---|---|---|---|")
    for name, problems in sets.items():
        for model in models:
            print(row(name, model, problems, begin), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--begin", default="", help="text that every answer begins with")
    parser.add_argument("--limit", type=int, help="maximum number of problems per file")
    parser.add_argument("files", nargs="*", type=Path)
    arguments = parser.parse_args()
    main(arguments.files, arguments.begin, arguments.limit)
