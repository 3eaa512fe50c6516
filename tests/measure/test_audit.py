"""Answers read twice, gold answers against themselves, and arms that are read unequally."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from howwhen.errors import ProblemError
from howwhen.measure.audit import (
    Audit,
    RungAudit,
    audit_answers,
    sentence_with,
    unequal_golds,
    unequal_reading,
)
from howwhen.measure.grade import Item, Second, open_grader
from howwhen.measure.judge import Judgement
from howwhen.measure.parts import is_loop
from howwhen.pipeline.audit import audit_files
from howwhen.records import Finish, Grade, Interval, Measurement, RungMeasurement, RungName
from tests.conftest import DATA, needs_data

STOP = Finish.STOP
ITEMS = [
    Item("So she has 12 apples.", "12", "gsm8k", STOP),
    # the second reader takes the last number
    Item("So she has 12 apples. This is 5 more than Tom has.", "12", "gsm8k", STOP,
         question="How many apples does she have?"),
    # only the last number is right, and it is what the question asked by
    Item("Ann has 7 pens, because Bob has 9.", "9", "gsm8k", STOP,
         question="How many pens does Ann have?"),
    Item("No idea.", "12", "gsm8k", STOP),
    Item("The answer is (B).", "B", "mmlu_pro", STOP),
]  # fmt: skip


def audited(items: Sequence[Item]) -> Audit:
    with open_grader() as grader:
        pairs = list(zip(items, grader.grade(items), strict=True))
        return audit_answers({"base": pairs}, grader).audit


def test_an_answer_is_disputed_if_only_one_reader_counts_it() -> None:
    with open_grader() as grader:
        pairs = list(zip(ITEMS, grader.grade(ITEMS), strict=True))
        found = audit_answers({"base": pairs}, grader)
        assert [found.is_disputed("base", index) for index in range(5)] == [
            False, True, True, False, False,
        ]  # fmt: skip
        assert grader.read_again(ITEMS)[3:] == [Second(Grade.NO_ANSWER, ""), None]
    rung = found.audit.rungs["base"]
    assert (rung.answers, rung.correct, rung.rules_only, rung.second_only) == (5, 3, 1, 1)
    assert rung.unread == 1  # the option
    assert (rung.lowest, rung.accuracy, rung.highest) == (2 / 5, 3 / 5, 4 / 5)
    assert rung.disputed == 2 / 5
    first, second = found.audit.examples
    assert (first.right_by, first.read, first.second) == ("rules only", "12", "5")
    assert first.sentence == "So she has 12 apples."
    assert (second.right_by, second.read, second.second) == ("second reader only", "7", "9")


def test_a_judge_settles_what_is_disputed() -> None:
    with open_grader() as grader:
        pairs = list(zip(ITEMS, grader.grade(ITEMS), strict=True))
        found = audit_answers({"base": pairs}, grader)
    right, wrong = (Judgement(grade, (grade,), 0, "") for grade in (Grade.CORRECT, Grade.WRONG))
    unsure = replace(wrong, verdict=None)

    def accuracy(first: Judgement, second: Judgement) -> float | None:
        settled = found.settled({("base", 1): first, ("base", 2): second})
        return settled.rungs["base"].judged_accuracy

    assert accuracy(right, right) == 4 / 5
    assert accuracy(right, wrong) == 3 / 5
    assert accuracy(wrong, wrong) == 2 / 5
    assert accuracy(unsure, unsure) == 3 / 5


def test_golds_that_are_not_right_against_themselves_are_named() -> None:
    golds = [("12", ""), (r"\frac{1}{2}", ""), ("B", "mmlu_pro"), ("x^2 +", "")]
    with open_grader() as grader:
        assert unequal_golds(golds[:3], grader) == []
        assert unequal_golds([("", ""), *golds[:3]], grader) == [""]


@needs_data
def test_gold_answers_of_real_sets_are_right_against_themselves() -> None:
    paths = [DATA / "math500.jsonl", DATA / "aime24.jsonl", DATA / "asdiv.jsonl",
             DATA / "mmlu_pro_test.jsonl.gz"]  # fmt: skip
    files, audit = audit_files(paths, 5.0)
    assert [file.unequal for file in files] == [()] * 4
    assert [file.golds for file in files] == [301, 29, 397, 10]
    assert audit.rungs == {}


def test_files_of_answers_are_audited_by_file_and_role(tmp_path: Path) -> None:
    rows = [
        {"text": "The answer is 4.", "gold": "4", "role": "base", "finish": "stop"},
        {"text": "The answer is 5.", "answer": 4, "role": "hybrid"},
    ]
    file = tmp_path / "answers.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    [found], audit = audit_files([file], 5.0)
    assert (found.name, found.golds, found.unequal) == ("answers.jsonl.gz", 1, ())
    accuracies = {name: rung.accuracy for name, rung in audit.rungs.items()}
    assert accuracies == {"answers base": 1.0, "answers hybrid": 0.0}
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / file.name
    other.write_bytes(file.read_bytes())
    _, audit = audit_files([file, other], 5.0)
    assert {rung.answers for rung in audit.rungs.values()} == {2}  # one of each file
    for wrong in (
        '{"text": "4"}', '{"gold": ["4"]}', '{"text": 4, "gold": "4"}',
        '{"gold": "4", "finish": "eos"}', '{"gold": "4", "question": 4}', '"4"',
    ):  # fmt: skip
        (tmp_path / "wrong.jsonl").write_text(wrong)
        with pytest.raises(ProblemError, match=r"wrong.jsonl, line 1 (is a problem without|has a)"):
            audit_files([tmp_path / "wrong.jsonl"], 5.0)


def test_golds_of_published_rows_are_read_as_problems_are(tmp_path: Path) -> None:
    rows = [
        {"question": "?", "answer": "It is 5 + 7 = <<5+7=12>>12.\n#### 12"},
        {"problem": "?", "solution": "It is $\\boxed{12}$."},
        {"question": "?", "options": ["4", "5"], "answer": "B"},
        {"question": "?", "answer": "B", "options": ["4", "5"], "text": "So (B)."},
        {"text": "It is 12.", "answer": "So 12 \n#### 12"},
        {"text": "It is 12.", "answer": "It is 12.", "gold": 12},
        {"question": "?", "gold": None, "answer": "12"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    [found], audit = audit_files([file], 20.0)
    assert (found.golds, found.unequal) == (2, ())
    assert audit.rungs["rows"].accuracy == 1.0


def test_a_number_in_thinking_that_was_cut_off_is_not_disputed() -> None:
    texts = ["<think>So it is 12.", "So it is 12."]
    items = [Item(text, "12", "", Finish.LENGTH, starts_in_thinking=True) for text in texts]
    assert audited(items).rungs["base"].highest == 0.0
    ended = [item._replace(finish=STOP) for item in items]
    assert audited(ended).rungs["base"].accuracy == 1.0


SENTENCES = [
    ("Tom has 3. Ann has 12. Done.", "12", "Ann has 12."),
    ("He pays $3.50 a day.\nSo $7.", "$3.50", "He pays $3.50 a day."),
    ("One. Two.", "9", "Two."),
    ("", "", ""),
]


@pytest.mark.parametrize(("text", "answer", "sentence"), SENTENCES)
def test_the_sentence_that_was_read_is_shown(text: str, answer: str, sentence: str) -> None:
    assert sentence_with(text, answer) == sentence


def measured(loops: float = 0.0, n: int = 200, **counts: int) -> RungMeasurement:
    grades = dict.fromkeys([grade.value for grade in Grade], 0) | counts
    grades["correct"] = n - sum(counts.values())
    half = Interval(0.0, 1.0)
    return RungMeasurement(
        accuracy=0.5, accuracy_ci=half, flexible_accuracy=0.5, strict_accuracy=0.5, counts=grades,
        truncated_fraction=0.0, steered_fraction=0.0, changed_fraction=0.0, gap_recovered=None,
        gap_recovered_ci=None, gap_recovered_clamped=None, seeds=(0,), samples=1,
        tokens_per_answer=1.0, steered_passes_per_answer=0.0, needs_thinking=False, pass_at_k={},
        against_hybrid=None, loop_fraction=loops,
    )  # fmt: skip


def test_arms_that_are_read_unequally_are_named() -> None:
    def warned(audit: Audit | None = None, **rungs: RungMeasurement) -> list[str]:
        names: tuple[RungName, ...] = ("base", "hybrid", "thinking", "takeover")
        arms = {name: rungs.get(name, measured()) for name in names}
        return unequal_reading(Measurement(200, "flexible", 0.1, Interval(0, 1), arms), audit)

    assert warned() == []
    assert warned(hybrid=measured(no_answer=8)) == []  # four points
    assert warned(takeover=measured(no_answer=100)) == []  # a control that nobody compares with
    assert warned(hybrid=measured(no_answer=30)) == [
        "no answer found: 0.0% of the answers of base, 15.0% of hybrid",
        "no answer found: 15.0% of the answers of hybrid, 0.0% of thinking",
    ]
    assert len(warned(thinking=measured(loops=0.2))) == 2
    assert warned(thinking=measured(n=10, truncated=1)) == []  # ten points, but of one answer
    quiet, loud = RungAudit(100, 50, 0, 0, 0), RungAudit(100, 50, 20, 5, 0)
    audit = Audit(1, (), {"base": quiet, "hybrid": loud}, ())
    assert warned(audit) == ["disputed: 0.0% of the answers of base, 25.0% of hybrid"]


LOOP = "The cat sat on the mat and then it sat again. "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LOOP * 6, True),
        ("Once upon a time. " + LOOP * 5 + LOOP[:17], True),
        (LOOP * 3, False),
        (LOOP * 6 + "So the answer is 12, which nobody had expected at all here.", False),
        ("1 + 1 = 2. " * 40, True),
        ("a" * 300, True),
        ("12, " * 9, False),
        ("", False),
    ],
)
def test_a_text_that_ends_in_the_same_words_again_and_again_is_a_loop(
    text: str, expected: bool
) -> None:
    assert is_loop(text) is expected
