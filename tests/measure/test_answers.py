"""Grading in a table of real kinds of answers (`grades.txt`), and the rules one by one."""

import subprocess
import sys
from pathlib import Path

import pytest

from howwhen.measure.answers import Kind, Rule, flexible_answer, looks_truncated, strict_answer
from howwhen.measure.grade import Item, grade_answers, kind_of
from howwhen.measure.numbers import as_number
from howwhen.records import Finish, Grade
from tests.conftest import DATA, needs_data, read_traces


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
    ("4 5 6", Kind.NUMBER, "4", Rule.CONCLUDED),
]


@pytest.mark.parametrize(("text", "kind", "answer", "rule"), READ)
def test_rules(text: str, kind: Kind, answer: str, rule: Rule) -> None:
    read = flexible_answer(text, kind, is_complete=True)
    assert read is not None
    assert (read.text, read.rule) == (answer, rule)


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
    read = flexible_answer(text, Kind.NUMBER, is_complete=False)
    assert (read.text if read else None) == answer
    if rule is not None and read is not None:
        assert read.rule is rule
    if read is None:
        graded = grade_answers([Item(text, "12", "", Finish.LENGTH)])
        assert graded == [Grade.TRUNCATED]


def test_strict_leaves_prose_alone() -> None:
    assert strict_answer("So John lost to 4 people.", Kind.NUMBER, True) is None
    assert strict_answer("Answer: Joey is winning by 5 points.", Kind.NUMBER, True) is None


def test_how_a_text_ends_tells_whether_it_was_cut() -> None:
    assert not looks_truncated("It is 5.")
    assert not looks_truncated("5")
    assert looks_truncated("word " * 500 + "and then the")
    assert looks_truncated("Wait, is it? Hmm, wait. Yes.")
    assert not looks_truncated("Wait, is it? Hmm, wait. Yes.</think>It is 5.")
    assert looks_truncated("Hmm, wait. Yes.</think>")


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
    assert kind_of(gold, dataset) is kind


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
