import gzip
import json

import pytest

from howwhen.measure.answers import stated_answer
from howwhen.measure.grade import as_number, open_grader
from howwhen.records import Finish, Grade
from tests.conftest import DATA, needs_data

STATED = [
    ("So the answer is 12.", "12"),
    ("Altogether, the answer is 1,250.", "1,250"),
    ("The final answer is: $\\frac{3}{4}$.", "\\frac{3}{4}"),
    ("Therefore \\boxed{\\frac{1}{2}} holds.", "\\frac{1}{2}"),
    ("\\boxed{3} no, \\boxed{5}", "5"),
    ("\\boxed{unclosed", None),
    ("#### 42", "42"),
    ("**Answer:** 7 apples", "7"),
    ("The answer is 3.5 miles. I think", "3.5"),
    ("The answer is -4", "-4"),
    ("the answer is <b>", "<b>"),
    ("I added 3 and 4.", None),
    ("the answer is 5 </think> it is \\boxed{6}", "6"),
    ("the answer is 5 </think> done", "5"),
    ("", None),
]


@pytest.mark.parametrize(("text", "answer"), STATED)
def test_stated_answers(text: str, answer: str | None) -> None:
    assert stated_answer(text) == answer


NUMBERS = [
    ("1,234", 1234),
    ("$7", 7),
    ("025", 25),
    ("-3.50", -3.5),
    ("3/4", 0.75),
    ("50%", 0.5),
    ("12.", 12),
    ("x", None),
    ("1/0", None),
    ("3 apples", None),
]


@pytest.mark.parametrize(("text", "value"), NUMBERS)
def test_plain_numbers(text: str, value: float | None) -> None:
    assert as_number(text) == value


GRADES = [
    ("So the answer is 12.", Finish.STOP, "12", Grade.CORRECT),
    ("So the answer is 13.", Finish.STOP, "12", Grade.WRONG),
    ("So the answer is 12. And on and on", Finish.LENGTH, "12", Grade.CORRECT),
    ("7 plus 5 is 12. Next,", Finish.LENGTH, "12", Grade.TRUNCATED),
    ("She has 12 left.", Finish.STOP, "12", Grade.CORRECT),
    ("Nobody knows.", Finish.STOP, "12", Grade.NO_ANSWER),
    ("", Finish.STOP, "12", Grade.NO_ANSWER),
    ("She has x left.", Finish.STOP, "\\frac{x}{2}", Grade.NO_ANSWER),
    ("\\boxed{0.5}", Finish.STOP, "\\frac{1}{2}", Grade.CORRECT),
    ("\\boxed{\\dfrac{1}{2}}", Finish.STOP, "\\frac{1}{2}", Grade.CORRECT),
    ("\\boxed{(3, \\pi/2)}", Finish.STOP, "\\left( 3, \\frac{\\pi}{2} \\right)", Grade.CORRECT),
    ("\\boxed{(3, \\pi/3)}", Finish.STOP, "\\left( 3, \\frac{\\pi}{2} \\right)", Grade.WRONG),
    ("\\boxed{2\\sqrt{2}}", Finish.STOP, "\\sqrt{8}", Grade.CORRECT),
    ("\\boxed{25}", Finish.STOP, "025", Grade.CORRECT),
]


def test_grades() -> None:
    with open_grader(20.0) as grader:
        found = [grader.grade(text, finish, gold) for text, finish, gold, _ in GRADES]
    assert found == [grade for *_, grade in GRADES]


def test_a_grader_past_its_deadline_says_so_and_goes_on() -> None:
    hard = "\\boxed{" + "^{".join(["9"] * 12) + "}" * 11 + "}"
    with open_grader(0.001) as grader:
        assert grader.grade(hard, Finish.STOP, "\\sqrt{8}") is Grade.TIMED_OUT
        grader.deadline_seconds = 20.0
        assert grader.grade("\\boxed{2\\sqrt{2}}", Finish.STOP, "\\sqrt{8}") is Grade.CORRECT


@needs_data
def test_real_boxed_answers_grade_like_the_numbers_in_them() -> None:
    """Real answers of a thinking model on GSM8K: what the last box says is what is graded."""
    path = DATA / "traces" / "qwen2.5-math-1.5b_gsm8k.jsonl.gz"
    rows = [json.loads(row) for row in gzip.decompress(path.read_bytes()).splitlines()]
    boxed = [r for r in rows if r["role"] == "thinking" and "\\boxed{" in r["text"]][:150]
    with open_grader(20.0) as grader:
        grades = [grader.grade(row["text"], Finish.STOP, row["gold"]) for row in boxed]
        inside = [row["text"].rsplit("\\boxed{", 1)[1].split("}")[0] for row in boxed]
    assert len(boxed) == 150
    assert set(grades) <= {Grade.CORRECT, Grade.WRONG}
    for row, grade, found in zip(boxed, grades, inside, strict=True):
        number = as_number(found)
        if number is not None and "%" not in found:
            assert (grade is Grade.CORRECT) == (number == as_number(row["gold"]))
