"""Grading in a table of real kinds of answers (`grades.txt`), and the rules one by one."""

import json
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest

from howwhen.measure.answers import read_answer
from howwhen.measure.endings import looks_truncated
from howwhen.measure.grade import Item, Mode, find_answer, grade_answers, open_grader
from howwhen.measure.kinds import Kind, Wanted, wanted_of
from howwhen.measure.marks import Answer, Rule
from howwhen.measure.numbers import as_number
from howwhen.measure.parts import split_parts
from howwhen.measure.questions import Asked, read_question
from howwhen.measure.units import as_quantities, in_all_units
from howwhen.records import Finish, Grade
from tests.conftest import DATA, needs_data, read_traces


def read(text: str, kind: Kind, *, is_complete: bool = True, strict: bool = False) -> Answer | None:
    """The answer of a text, without a question."""
    return read_answer(split_parts(text), Wanted(kind), Asked(), is_complete, is_strict=strict)


def is_cut(text: str) -> bool:
    return looks_truncated(text, split_parts(text))


def read_cases() -> list[tuple[Grade, Grade, Item]]:
    """Flexible grade, strict grade and item of every line of the table."""
    cases = []
    for line in Path(__file__).with_name("grades.txt").read_text().split("\n"):
        if not line.strip() or line.startswith("#"):
            continue
        grades, gold, text = line.split(" | ", 2)
        flexible, _, strict = grades.partition("/")
        item = Item(text.replace("\\n", "\n") if r"\neq" not in text else text, gold, "math")
        cases.append(
            (Grade(flexible), Grade(strict or flexible), item._replace(finish=Finish.STOP))
        )
    return cases


def test_the_table_of_real_kinds_of_answers() -> None:
    cases = read_cases()
    items = [item for *_, item in cases]
    assert len(cases) >= 300
    for mode, column in (("flexible", 0), ("strict", 1)):
        grades = grade_answers(items, mode=mode, deadline_seconds=20.0)  # type: ignore[arg-type]
        wrong = [
            f"{mode}: {grade} rather than {case[column]}: {case[2].gold} | {case[2].text!r}"
            for case, grade in zip(cases, grades, strict=True)
            if grade is not case[column]
        ]
        assert not wrong, "\n".join(wrong)


READ = [
    ("\\boxed{3} no, \\boxed{5}", Kind.NUMBER, "5", Rule.BOXED),
    ("\\boxed{1} and \\boxed{2}", Kind.EXPRESSION, "1, 2", Rule.BOXED),
    ("#### 42", Kind.NUMBER, "42", Rule.MARKED),
    ("the answer is 12 apples", Kind.NUMBER, "12", Rule.STATED),
    ("the answer is x = 5.", Kind.EXPRESSION, "x = 5", Rule.STATED),
    ("Thus she has 12 left.", Kind.NUMBER, "12", Rule.CONCLUDED),
    ("Thus the point is (1, 2).", Kind.EXPRESSION, "(1, 2)", Rule.CONCLUDED),
    ("I pick B in the end.", Kind.LETTER, "B", Rule.CONCLUDED),
    ("the answer is (D), not (A)", Kind.LETTER, "D", Rule.STATED),
    ("4 5 6", Kind.NUMBER, "6", Rule.CONCLUDED),
]


@pytest.mark.parametrize(("text", "kind", "answer", "rule"), READ)
def test_rules(text: str, kind: Kind, answer: str, rule: Rule) -> None:
    found = read(text, kind)
    assert found is not None
    assert (found.text, found.rule) == (answer, rule)


CUT = [
    ("So she has 7 pens. She buys 5 more, so", "7", Rule.REPEATED),
    ("The answer is 12. The answer is 1", "12", Rule.STATED),
    ("Wait, 5 is odd. Hmm, so 6 then. Then", None, None),
    (
        "Wait. Hmm. The total is 9. Wait: so the total is 9. The answer might be 9. Is",
        "9",
        None,
    ),
    ("hmm wait \\boxed{50} </think> Lucy sells apples at", "50", Rule.BOXED),
    ("no sentence here", None, None),
]


@pytest.mark.parametrize(("text", "answer", "rule"), CUT)
def test_a_text_that_was_cut_off_counts_only_by_what_it_says_is_its_answer(
    text: str, answer: str | None, rule: Rule | None
) -> None:
    found = read(text, Kind.NUMBER, is_complete=False)
    assert (found.text if found else None) == answer
    if rule is not None and found is not None:
        assert found.rule is rule
    if found is None:
        graded = grade_answers([Item(text, "12", "", Finish.LENGTH)])
        assert graded == [Grade.TRUNCATED]


def test_strict_leaves_prose_alone() -> None:
    assert read("So John lost to 4 people.", Kind.NUMBER, strict=True) is None
    assert read("Answer: Joey is winning by 5 points.", Kind.NUMBER, strict=True) is None


def test_how_a_text_ends_tells_whether_it_was_cut() -> None:
    assert not is_cut("It is 5.")
    assert not is_cut("5")
    assert is_cut("word " * 500 + "and then the")
    assert is_cut("Wait, is it? Hmm, wait. Yes.")
    assert not is_cut("Wait, is it? Hmm, wait. Yes.</think>It is 5.")
    assert is_cut("Hmm, wait. Yes.</think>")


GOLD = [
    ("12", "", Kind.NUMBER),
    ("90^\\circ", "", Kind.NUMBER),
    ("\\frac{1}{2}", "", Kind.EXPRESSION),
    ("(3,4]", "", Kind.EXPRESSION),
    ("p - q", "", Kind.EXPRESSION),
    ("\\text{Evelyn}", "", Kind.WORDS),
    ("\\text{(C)}", "", Kind.LETTER),
    ("C", "mmlu_pro", Kind.LETTER),
    ("C", "", Kind.EXPRESSION),
]


@pytest.mark.parametrize(("gold", "dataset", "kind"), GOLD)
def test_the_kind_of_a_gold_answer(gold: str, dataset: str, kind: Kind) -> None:
    assert wanted_of(gold, dataset).kind is kind


NUMBERS = [
    ("1,234", 1234),
    ("$7", 7),
    ("\\$7.50", 7.5),
    ("025", 25),
    ("-3.50", -3.5),
    ("3/4", 0.75),
    ("\\frac{3}{4}", 0.75),
    ("-\\frac34", -0.75),
    ("1\\frac{1}{2}", 1.5),
    ("1 1/2", 1.5),
    ("50%", 0.5),
    ("50\\%", 0.5),
    ("12.", 12),
    ("3 apples", 3),
    ("5\\text{ cm}^2", 5),
    ("90^\\circ", 90),
    ("10{,}080", 10080),
    ("x", None),
    ("1/0", None),
    ("\\frac{1}{0}", None),
    ("2x", None),
    ("9" * 5000, None),
]


@pytest.mark.parametrize(("text", "value"), NUMBERS)
def test_exact_numbers(text: str, value: float | None) -> None:
    assert as_number(text) == value


def test_what_has_no_value_is_left_to_the_comparison_of_forms() -> None:
    pairs = [("1 + f(x)", "f(x) + 1"), ("2 + f(x)", "f(x) + 1")]
    with open_grader(20.0) as grader:
        assert grader.compare(pairs) == ["correct", "wrong"]


@needs_data
@pytest.mark.parametrize("mode", ["flexible", "strict"])
def test_single_cases_after_public_bug_reports(mode: Mode) -> None:
    cases = [case for case in read_traces(DATA / "grading" / "cases.jsonl") if case[mode]]
    items = [
        Item(
            case["text"],
            case["gold"],
            case["dataset"],
            Finish(case["finish"]) if case["finish"] else None,
            case.get("question"),
        )
        for case in cases
    ]
    assert len(cases) > 80
    with open_grader(20.0) as grader:
        graded = grader.grade(items, mode)
    assert [
        (case["id"], case["kind"], one.grade)
        for case, one in zip(cases, graded, strict=True)
        if one.grade != case[mode]
    ] == []


@needs_data
@pytest.mark.slow
def test_counts_on_real_answers_are_those_of_a_judge() -> None:
    """Within 1.5 points, cut answers aside: the judge credits what they state on their way."""
    counts = json.loads((DATA / "traces" / "judge_counts.json").read_text())
    compared = 0
    for name, judged in counts.items():
        rows = read_traces(DATA / "traces" / f"{name}.jsonl.gz")
        for role, right in judged["judged_correct"].items():
            own = [row for row in rows if row["role"] == role]
            items = [
                Item(row["text"], row["gold"], row["dataset"], None, row["question"]) for row in own
            ]
            grades = grade_answers(items, deadline_seconds=20.0)
            ours, cut = (grades.count(grade) for grade in (Grade.CORRECT, Grade.TRUNCATED))
            if len(own) < 50:  # one answer is more than 1.5 points
                continue
            margin = 0.015 * len(own)
            assert right - cut - margin <= ours <= right + margin, (name, role, ours, right, cut)
            compared += 1
    assert compared >= 15


ASKED = [
    ("How many mules are there?", "There are 64 mules and 116 horses.", "64"),
    ("How many horses are there?", "There are 64 mules and 116 horses.", "116"),
    ("How old is Sam?", "So, Sam is 6 years old, and Ruby is 36 years old.", "6 years"),
    ("How old is Ruby?", "So, Sam is 6 years old, and Ruby is 36 years old.", "36 years"),
    (
        "How many minutes does it take?",
        "It takes 2 hours, in other words 120 minutes.",
        "120 minutes",
    ),
    (
        "How much does she pay?",
        "She buys 3 pens for $4 each, so she pays $12 for the 3 pens.",
        "$12",
    ),
    ("How many eggs are left?", "He had 20 eggs and sold 12, leaving him with 8.", "8"),
    ("How many pens has Ann?", "If Bob has 3 pens and Cid 5, Ann has 9.", "9"),
    ("How many pens has Ann?", "Ann has 9 pens because Bob has 3 and Cid has 5.", "9"),
    (
        "How many hours does the job take?",
        "So the job takes 6.5 hours. That is almost 7 hours of hard work.",
        "6.5 hours",
    ),
    (
        "How many eggs did they find?",
        "They found 45 eggs. If the dog had stayed away, they would have found 60 eggs.",
        "45",
    ),
    ("How much money have they got?", "Ann has $30, and Bob $12 more, $72 in all.", "$72"),
    (
        "How many times must he knock?",
        "He must knock 4 times. Here is why. There are 12 doors in 3 rows, and 12 minus 4 is 8.",
        "4",
    ),
    (
        "In how many ways can they sit?",
        "There are 720 ways in which they can sit. (Without the rule there would be 7! = 5,040.)",
        "720",
    ),
    (
        "What is the least sum?",
        "The least sum is reached for $a = 6$ and $b = 3$, and it is 9.",
        "9",
    ),
    ("How many boxes are needed?", "He needs 15 boxes. (I can not say how heavy they are.)", "15"),
]

SETTLED = [
    ("It costs Ann $112 to fly.\n\nLet me verify this:\n- 50 + 60 = 110\n- 110 + 2 is", "$112"),
    ("She had 20 pens and lost 6. Ann has 14 pens left.\n\n" * 2 + "She had 20 pe", "14"),
    ("**Step 1:** Ann buys pens.\n\nSo, Ann buys 20 pens.\n\n**Step 2:** She gives", None),
]


@pytest.mark.parametrize(("text", "answer"), SETTLED)
def test_a_cut_text_that_checks_or_repeats_itself_has_settled(
    text: str, answer: str | None
) -> None:
    question = "How many pens does Ann have left?" if "pens" in text else "What does it cost Ann?"
    found = find_answer(Item(text, "1", "gsm8k", Finish.LENGTH, question), "flexible")
    assert (found.answer and found.answer.text) == answer


@pytest.mark.parametrize("empty", ["$ $", "$$ $$", "\\[ \\]", "$$$$$", "\\(\\)"])
def test_an_empty_formula_is_no_answer_and_no_error(empty: str) -> None:
    item = Item(f"The value is {empty}.", "x+1", "", Finish.STOP)
    assert find_answer(item, "flexible").answer is None


@pytest.mark.parametrize("sentence", ["It is 12. ", "It is 12.\n", "So it is 12 pens. "])
def test_a_text_that_takes_back_all_its_conclusions_has_none(sentence: str) -> None:
    text = sentence * 20 + sentence.replace("is", "is not").strip()
    assert find_answer(Item(text, "5", "gsm8k", Finish.STOP), "flexible").answer is None


@pytest.mark.parametrize("indent", ["", " ", "\t"])
def test_options_are_read_once_however_they_are_indented(indent: str) -> None:
    asked = read_question(f"Which?\n{indent}(A) red\n{indent}(B) blue")
    assert dict(asked.options) == {"A": "red", "B": "blue"}
    assert len(asked.options) == 2


IN_WORDS = [
    ("one half", "1/2"),
    ("half", "1/2"),
    ("half of the cake", "1/2"),
    ("a third", "1/3"),
    ("three-fifths", "3/5"),
    ("minus three quarters", "-3/4"),
    ("two and three quarters", "11/4"),
    ("one and a half hours", "3/2"),
    ("a hundred and five", "105"),
    ("two hundred and a half", "401/2"),
    ("two dozen eggs", "24"),
    ("half a dozen", "6"),
    ("two and a half dozen", "30"),
    ("a dozen and a half", "18"),
    ("a quarter of a million", "250000"),
    ("one hundred twenty-five thousand", "125000"),
]


@pytest.mark.parametrize(("words", "value"), IN_WORDS)
def test_numbers_in_words(words: str, value: str) -> None:
    assert as_number(words) == Fraction(value)


@pytest.mark.parametrize("words", ["twenty-fifth", "a", "a cake", "an hour", "halfway", "thirds"])
def test_words_that_are_no_numbers(words: str) -> None:
    assert as_number(words) is None


OTHER_PROBLEMS = [
    " 12\n\nQuestion: Bob has 2 pens and buys 4. How many has he?\nAnswer: 6",
    " 12\n\nNext question: Bob has 2 pens and buys 4. How many has he?\n\nHe has 6.",
    "It is 12.\n\n### Task 2: Bob has 2 pens and buys 4. How many?\n\nHe has 6.",
    "12\n\nBob has 2 pens and buys 4 more of them. How many has he?\n\nHe has 6 pens.",
]


@pytest.mark.parametrize("text", OTHER_PROBLEMS)
def test_an_answer_ends_where_another_problem_begins(text: str) -> None:
    item = Item(text, "12", "gsm8k", Finish.STOP, "Ann has 5 pens and buys 7. How many has she?")
    assert grade_answers([item, item._replace(gold="6")]) == [Grade.CORRECT, Grade.WRONG]


TOM = "Tom has 12 apples and gets 5 more. How many apples has he?"
BOXES = "There are 5 boxes, then 3. 2 are sold. How many boxes remain?"
ONE_PROBLEM = [
    ("Problem 1:\n\nQuestion: What is 5 + 7?\nAnswer: 12", "12", "What is 5 + 7?"),
    ("**Solution**\n\nDoes he have more than 16 of 20?\n\n\\boxed{\\text{Yes}}", "Yes", "More?"),
    (f"1.\n\n{TOM}\n\nHe has 12 + 5 = \\boxed{{17}} apples.", "17", TOM),
    (f"12 + 5 = 17\n\nBut wait, did {TOM}\n\nYes. The answer is 14.", "14", TOM),
    ("Tom has 12 apples.\nQuestion: How many apples has he now?\nAnswer: 17", "17", TOM),
    ("We know that 5+3=8.\nTask: subtract the 2 boxes that are sold.\n8-2=6, so 6.", "6", BOXES),
    ("In all: 5+3=8.\n\nNext question: how many remain after 2 are sold?\n\n8-2=6.", "6", BOXES),
    ("**Solution:**\n\n**Problem:** Monday, in 100 days?\n\n**Answer:** Friday", "Friday", "?"),
]


@pytest.mark.parametrize(("text", "gold", "question"), ONE_PROBLEM)
def test_a_heading_or_a_question_on_the_way_is_not_another_problem(
    text: str, gold: str, question: str
) -> None:
    assert grade_answers([Item(text, gold, "", Finish.STOP, question)]) == [Grade.CORRECT]


TERSE = ["That leaves her with four.", "It's four, I think.", "Only four survive."]


@pytest.mark.parametrize("text", TERSE)
def test_terse_answers_are_read(text: str) -> None:
    question = "Anna had 9 cookies. She ate 5. How many cookies are there?"
    assert grade_answers([Item(text, "4", "", Finish.STOP, question)]) == [Grade.CORRECT]


UNSETTLED = ["x = -3 or x = 3.", "So x = -3 or x = 3", "It is either -3 or 3.", "$x=-3$ or $x=3$."]


@pytest.mark.parametrize("text", UNSETTLED)
def test_two_values_between_which_a_text_does_not_decide_are_not_one_of_them(text: str) -> None:
    items = [Item(text, gold, "math500", Finish.STOP) for gold in ("3", "-3", "-3, 3")]
    assert grade_answers(items, deadline_seconds=20.0) == ["wrong", "wrong", "correct"]
    for decided in (
        "x = -3 or x = 3, but x is positive, so x = 3.",
        "The solutions are x = -3 or x = 3, but only 3 is valid.",
    ):
        assert grade_answers([Item(decided, "3", "", Finish.STOP)]) == ["correct"]


WITHOUT_RESULT = [
    "Bob sold 4 boxes. How many pens has Ann?",
    "Ann has 20 pens. Bob sold 4 boxes. How many pens has Ann?",
    "```python\npens = 20 - 4\nprint(pens)\n```",
]


@pytest.mark.parametrize("text", WITHOUT_RESULT)
def test_code_and_what_the_question_says_itself_are_no_results(text: str) -> None:
    question = "Ann has 20 pens. Bob sold 4 boxes. How many pens has Ann?"
    item = Item(text, "16", "gsm8k", Finish.STOP, question)
    assert find_answer(item, "flexible").answer is None
    code = "```python\nprint(20 - 4)"
    for shown in (
        f"{code}\n```\n```output\n16\n```\nAnn has 16 pens.",
        f"{code}\n```\nRunning it gives\n```python\n16\n```",
        f"{code}  # 16\n```",
        f"{code}\n# Output: 16\n```",
        f"{code}\n\nAnn has 16 pens.",
    ):
        assert grade_answers([item._replace(text=shown)]) == ["correct"]


BLANK = [
    "\n", "\n ", " ", " \n", "\t", "\n\n- ", "answer ", "#### ", "(", "1", "7 ", "```python\n",
    "What is 12 + 345? It is 357. ", "\nTask: ",
]  # fmt: skip


@pytest.mark.parametrize("finish", [None, *Finish])
@pytest.mark.parametrize("piece", BLANK)
def test_a_text_is_read_in_linear_time(piece: str, finish: Finish | None) -> None:
    started = time.process_time()
    find_answer(Item("It costs 5." + piece * 20_000, "5", "gsm8k", finish), "flexible")
    assert time.process_time() - started < 2


UNITS = [
    ("The answer is 1234567 cents.", "12345.67", "How many dollars is it?", Grade.CORRECT),
    ("The answer is 1234567 cents.", "12345.7", "How many dollars is it?", Grade.WRONG),
    ("The answer is 75 cents.", "75", "How many dollars are left?", Grade.WRONG),
    ("The answer is 75 cents.", "0.75", "How many dollars are left?", Grade.CORRECT),
    ("The answer is 75 cents.", "75", "How many cents are left?", Grade.CORRECT),
    ("The answer is 2 dozen.", "24", "How many eggs are left?", Grade.CORRECT),
    ("The answer is 2 dozen.", "2", "How many eggs are left?", Grade.WRONG),
    ("The answer is 2 dozen.", "2", "How many dozen eggs are left?", Grade.CORRECT),
    ("\\boxed{1.5\\text{ million}}", "1.5", "How many people live there?", Grade.WRONG),
    ("\\boxed{1.5\\text{ million}}", "1500000", "How many people live there?", Grade.CORRECT),
    ("\\boxed{6\\text{ km}}", "6\\text{ m}", None, Grade.WRONG),
    ("\\boxed{6\\text{ km}}", "6000\\text{ m}", None, Grade.CORRECT),
    ("\\boxed{23 = n}", "23", None, Grade.CORRECT),
    ("\\boxed{4 \\pmod{9}}", "4", None, Grade.CORRECT),
    ("The answer is three quarters.", "\\frac{3}{4}", None, Grade.CORRECT),
    ("He is 5 years old.", "60", "How old is he, in years?", Grade.WRONG),
    ("He is 5 years old.", "60", "How many months old is he?", Grade.CORRECT),
    ("He is 5 years old.", "5", "How many months old is he?", Grade.WRONG),
    ("He is 5 years old.", "60", None, Grade.CORRECT),
    ("The answer is 48 in total.", "48", "How many square feet are needed?", Grade.CORRECT),
    ("So he drives 240 in a week.", "240", "How many miles does he drive?", Grade.CORRECT),
    ("It is 48 in.", "4", "How many feet is it?", Grade.CORRECT),
    ("He has one quarter left.", "1", "How many quarters does he have left?", Grade.CORRECT),
    ("He has three quarters left.", "3", "How many quarters does he have left?", Grade.CORRECT),
    ("He saves 50 cents, a discount of 25%.", "25", "What percent does he get?", Grade.CORRECT),
    ("The answer is two and a half hours.", "150", "How many minutes is it?", Grade.CORRECT),
    ("The answer is 2 1/2 hours.", "150", "How many minutes is it?", Grade.CORRECT),
    ("The answer is thirty minutes.", "0.5", "How many hours is it?", Grade.CORRECT),
    ("The answer is twenty-five cents.", "0.25", "How many dollars?", Grade.CORRECT),
    ("Thus w = -8 or w = 6, and since widths are positive the width is 6 meters.", "6",
     "What is the width?", Grade.CORRECT),
    ("So the width is 6 meters, as w = -8 or w = 6.", "6", "What is the width?", Grade.CORRECT),
    ("The answer is 2 days.", "48", "How many hours does it take?", Grade.CORRECT),
    ("The answer is 2 days.", "2", "How many hours does it take?", Grade.WRONG),
    ("\\boxed{24 \\text{ months}}", "2", "How many years does it take?", Grade.CORRECT),
    ("It takes 3 days.", "4320", "How many minutes does it take?", Grade.CORRECT),
    ("It is 1 hour and 35 minutes.", "95", "How many minutes is it?", Grade.CORRECT),
    ("It is 1 hour and 35 minutes.", "1.5", "How many hours is it?", Grade.WRONG),
    ("It costs $340.", "340", "How many cents does it cost?", Grade.WRONG),
    ("It costs $3.40.", "340", "How many cents does it cost?", Grade.CORRECT),
    ("There are $60 million left.", "60", "How many millions of dollars?", Grade.CORRECT),
    ("The answer is 2 mL.", "2", "How many liters is it?", Grade.WRONG),
    ("He reads 14 hours.", "14", "How much time a week does he read?", Grade.CORRECT),
    ("He ran 24 meters per hour.", "24", "How fast did he run?", Grade.CORRECT),
    ("So 12 of the 30 are left, which means 40 percent.", "40", "What percent is left?",
     Grade.CORRECT),
    ("The answer is 45.", "C", "How many? (A) 41 (B) 42 (C) 45", Grade.CORRECT),
    ("The correct option is not C.", "C", "How many? (A) 41 (B) 42 (C) 45", Grade.NO_ANSWER),
]  # fmt: skip


@pytest.mark.parametrize(("text", "gold", "question", "grade"), UNITS)
def test_units_scales_and_options_are_taken_as_the_question_means_them(
    text: str, gold: str, question: str | None, grade: Grade
) -> None:
    dataset = "mmlu_pro" if gold == "C" else "math500"
    item = Item(text, gold, dataset, Finish.STOP, question)
    assert grade_answers([item], deadline_seconds=20.0) == [grade]


@pytest.mark.parametrize(("question", "text", "answer"), ASKED)
def test_the_question_decides_among_several_results(question: str, text: str, answer: str) -> None:
    found = find_answer(Item(text, "1", "gsm8k", Finish.STOP, question), "flexible")
    assert found.answer is not None
    assert found.answer.text == answer


def test_the_question_is_read_once_for_noun_unit_and_givens() -> None:
    asked = read_question(
        "Ann has 1,200 red pens. How many blue pens does she buy, if Bob has 3.50?"
    )
    assert asked.nouns == {"blue", "pen"}
    assert asked.givens == {"1200", "3.5"}
    assert read_question("How much does he pay?").is_money
    assert not read_question("How much water is left?").is_money
    assert read_question("").is_empty


PARTS = [
    ("a</think>b", "b", False),
    ("<think>a", "", True),
    ("[THINK]a[/THINK]b", "b", False),
    ("◁think▷a◁/think▷b", "b", False),
    (
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b",
        "b",
        False,
    ),
    ("<|channel|>analysis<|message|>a", "", True),
    ("b<|im_end|>\n<|im_start|>user\nc", "b", False),
    ("b", "b", False),
]


@pytest.mark.parametrize(("text", "final", "is_open"), PARTS)
def test_the_final_part_is_what_follows_the_thinking_and_precedes_the_next_turn(
    text: str, final: str, is_open: bool
) -> None:
    parts = split_parts(text)
    assert (parts.final, parts.is_open) == (final, is_open)


def test_a_prompt_may_open_the_thinking_and_a_model_may_have_marks_of_its_own() -> None:
    assert split_parts("So 12.", starts_in_thinking=True).is_open
    assert split_parts("a <end> b", ("<go>", "<end>")).final == " b"
    item = Item("So \\boxed{12}.", "12", "", Finish.STOP, starts_in_thinking=True)
    assert grade_answers([item]) == ["correct"]
    assert grade_answers([item], mode="strict") == ["no_answer"]


def test_quantities_in_other_units() -> None:
    assert as_quantities("1 hour and 35 minutes") == {"minute": 95, "hour": Fraction(19, 12)}
    assert as_quantities("5 dollars and 30 cents") == {"cent": 530, "dollar": Fraction(53, 10)}
    three_quarters = Fraction(3, 4)
    in_others = {"cent": 75, "dollar": three_quarters, "euro": three_quarters}
    assert as_quantities("75 cents") == in_others
    assert as_quantities("6 ft") == {"foot": 6, "inch": 72, "yard": 2, "mile": Fraction(6, 5280)}
    assert as_quantities("12 apples") == {}
    assert as_quantities("3 cats and 2 dogs") == {}
    assert in_all_units("2 weeks")["minute"] == 20_160
    assert in_all_units("$2.50")["cent"] == 250
    assert in_all_units("12") == {}


@needs_data
def test_every_gold_answer_of_the_real_sets_is_right() -> None:
    """Boxed and stated, every gold answer of GSM8K, MATH-500, AIME and MMLU-Pro grades itself."""
    for name in ("gsm8k_test", "math500", "aime24", "aime25", "mmlu_pro_test"):
        rows = read_traces(next(DATA.glob(f"{name}.jsonl*")))[:600]
        for wrap in ("So \\boxed{{{}}}.", "The answer is ${}$."):
            items = [(wrap.format(row["answer"]), row["answer"], name) for row in rows]
            grades = grade_answers(items, deadline_seconds=20.0)
            odd = [item for item, grade in zip(items, grades, strict=True) if grade != "correct"]
            assert not odd


@needs_data
def test_real_answers_in_boxes_grade_as_the_numbers_in_them() -> None:
    rows = read_traces(DATA / "traces" / "qwen2.5-math-1.5b_gsm8k.jsonl.gz")
    boxed = [row for row in rows if row["role"] == "thinking" and "\\boxed{" in row["text"]]
    grades = grade_answers([(row["text"], row["gold"], row["dataset"]) for row in boxed])
    assert len(boxed) > 400
    for row, grade in zip(boxed, grades, strict=True):
        inside = row["text"].rsplit("\\boxed{", 1)[1].split("}")[0]
        if "%" not in inside and as_number(inside) is not None:
            assert (grade is Grade.CORRECT) == (as_number(inside) == as_number(row["gold"]))


def test_grading_and_measuring_import_nothing_heavy() -> None:
    modules = ", ".join(f"howwhen.measure.{name}" for name in ("grade", "judge", "ladder"))
    heavy = "print(sorted({'torch', 'transformers', 'sklearn', 'scipy.stats'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {modules}; {heavy}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
