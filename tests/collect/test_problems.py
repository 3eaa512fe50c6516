import gzip
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from howwhen.collect.problems import read_problems, split_problems
from howwhen.errors import MissingExtraError, ProblemError
from howwhen.measure.grade import grade_answers
from howwhen.records import Problem, Split
from howwhen.settings import CollectSettings
from tests.conftest import DATA, needs_data

GOOD = '{"id": "a", "question": "What is 2 + 2?", "answer": "4"}\n'
BAD = [
    ("", "holds no problems"),
    ("\n\n", "holds no problems"),
    ("not json\n", "line 1 is not JSON"),
    (GOOD + '{"question": "Q?"}\n', "line 2 is a problem without 'answer'"),
    (GOOD + '{"question": "Q?", "answer": null}\n', "line 2 is a problem without 'answer'"),
    (GOOD + '{"question": "Q?", "answer": ""}\n', "line 2 is a problem without 'answer'"),
    ('{"question": "  ", "answer": 3}\n', "line 1 is a problem without 'question'"),
    ("[1, 2]\n", "line 1 is a problem without 'question'"),
    (GOOD + GOOD, "id 'a' twice"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_bad_files_are_refused_with_the_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(ProblemError, match=message):
        read_problems(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="cannot read problems"):
        read_problems(tmp_path / "none.jsonl")


def test_a_broken_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD.encode())[:-9])
    with pytest.raises(ProblemError, match="cannot read problems"):
        read_problems(path)


def test_numbers_and_missing_ids_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"question": "Q?", "answer": 3}\n\n{"question": "R?", "answer": 0.5}\n')
    assert read_problems(path) == [
        Problem("own-1", "Q?", "3", dataset="own"),
        Problem("own-3", "R?", "0.5", dataset="own"),
    ]


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_published_layouts_are_understood(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "p.jsonl",
        {"question": "Q?", "answer": "6 * 7 = 42\n#### 42"},
        {"problem": "P?", "solution": "So $\\boxed{\\frac{1}{2}}$."},
        {"Body": "Ann has 3.", "Question": "How many?", "Answer": "3"},
        {"question": "Which?", "options": ["x", "y"], "answer": "B"},
    )
    gsm8k, math, svamp, mmlu = read_problems(path)
    assert gsm8k.answer == "42"
    assert (math.question, math.answer) == ("P?", "\\frac{1}{2}")
    assert svamp.question == "Ann has 3. How many?"
    assert mmlu.question.startswith("Which?\nA. x\nB. y\n")
    assert mmlu.answer == "(B)"
    assert grade_answers([("The correct answer is (B) y.", mmlu.answer, "my_quiz")]) == ["correct"]


def test_what_asks_the_same_is_on_one_side_and_what_does_not_may_be_on_two() -> None:
    twins = ["Ann has 7 pens. How many?", "Ann has 7 pens .  how many ?"]
    others = ["What is 7 + 2?", "What is 7 - 2?", "What is 7.2?", "What is 72?"]
    fill = [Problem(f"f{n}", f"Is {n} odd?", "no") for n in range(20)]
    problems = [Problem(text, text, "7") for text in (*twins, *others)] + fill
    for seed in range(12):
        split = {p.id: p.split for p in split_problems(problems, CollectSettings(seed=seed))}
        assert split[twins[0]] == split[twins[1]]
    tested = [Problem("t", "what is 7 - 2", "5")]
    with pytest.raises(ProblemError, match="asks the same as training problem What is 7 - 2?"):
        split_problems(problems, CollectSettings(), tested)
    split_problems([p for p in problems if p.id != "What is 7 - 2?"], CollectSettings(), tested)


def test_ids_of_nothing_and_half_characters(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "p.jsonl", {"id": None, "question": "Q?", "answer": "1"})
    assert [problem.id for problem in read_problems(path)] == ["p-1"]
    path.write_text('{"question": "a\\ud800b?", "answer": "1"}\n')
    with pytest.raises(ProblemError, match="line 1 has half a character"):
        read_problems(path)


def test_options_that_are_no_options_are_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "p.jsonl", {"question": "Q?", "answer": "A", "options": [1]})
    with pytest.raises(ProblemError, match="line 1 has options"):
        read_problems(path)


def test_a_set_on_the_hub_needs_its_library_or_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProblemError, match="no set on the hub"):
        read_problems("hub:gsm8k")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match="pip install 'howwhen"):
        read_problems("gsm8k")


def test_a_set_on_the_hub_is_read_like_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def load_dataset(*names: object, split: str) -> list[dict[str, str]]:
        asked.append((*names, split))
        return [{"question": f"Q{n}?", "answer": f"#### {n}"} for n in range(3)]

    library = ModuleType("datasets")
    library.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    problems = read_problems("gsm8k", limit=2)
    assert asked == [("openai/gsm8k", "main", "test")]
    assert problems[1] == Problem("gsm8k-2", "Q1?", "1", dataset="gsm8k")
    assert read_problems("hub:me/mine")[0].id == "hub:me/mine-1"
    assert asked[1] == ("me/mine", None, "test")


def test_another_set_may_be_the_test_set_if_it_is_another() -> None:
    train, test = _problems(20), [Problem(f"t{n}", f"T{n}?", "1") for n in range(7)]
    split = split_problems(train, CollectSettings(), test)
    assert [problem.id for problem in split if problem.split is Split.TEST] == [
        problem.id for problem in test
    ]
    assert sum(problem.split is Split.SELECTION for problem in split) == 2
    assert sum(problem.split is Split.TRAIN for problem in split) == 18
    with pytest.raises(ProblemError, match="asks the same as training problem 3"):
        split_problems(train, CollectSettings(), [Problem("x", "q3", "1")])
    with pytest.raises(ProblemError, match="ids must differ"):
        split_problems(train, CollectSettings(), [Problem("3", "T?", "1")])


@needs_data
def test_gsm8k_is_trained_on_and_tested_on_apart() -> None:
    train = read_problems(DATA / "gsm8k_train.jsonl.gz")
    split = split_problems(train, CollectSettings(), read_problems(DATA / "gsm8k_test.jsonl"))
    assert sum(problem.split is Split.TEST for problem in split) == 1319


@needs_data
@pytest.mark.parametrize(
    ("file", "rows"),
    [
        ("gsm8k_test.jsonl", 1319),
        ("gsm8k_train.jsonl.gz", 7473),
        ("math500.jsonl", 500),
        ("mmlu_pro_test.jsonl.gz", 12032),
    ],
)
def test_published_files_are_read_whole(file: str, rows: int) -> None:
    assert len(read_problems(DATA / file)) == rows
    assert len(read_problems(DATA / file, limit=8)) == 8


def _problems(count: int) -> list[Problem]:
    return [Problem(str(number), f"Q{number}?", "1") for number in range(count)]


def test_splits_are_disjoint_and_lose_nothing() -> None:
    split = split_problems(_problems(100), CollectSettings())
    assert sorted(int(problem.id) for problem in split) == list(range(100))
    counts = {part: sum(problem.split is part for problem in split) for part in Split}
    assert counts == {Split.TEST: 40, Split.SELECTION: 10, Split.TRAIN: 50}


def test_the_split_depends_on_the_seed_only() -> None:
    first, again, other = (
        split_problems(_problems(50), CollectSettings(seed=seed)) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_too_few_problems_are_refused() -> None:
    with pytest.raises(ProblemError, match="3 problems cannot be split"):
        split_problems(_problems(3), CollectSettings())


def test_reading_and_cutting_import_nothing_heavy() -> None:
    """The command line checks files before it loads a model."""
    light = ("problems", "traces", "sentences", "segmenters")
    code = "import sys, " + ", ".join(f"howwhen.collect.{name}" for name in light)
    heavy = "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; {heavy}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_some_of_a_sources_problems(tmp_path: Path) -> None:
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(f'{{"question": "{n} + 1?", "answer": {n + 1}}}\n' for n in range(9)))

    def ids(source: str, limit: int | None = None) -> list[str]:
        return [problem.id for problem in read_problems(source, limit)]

    assert ids(f"{file}[:2]") == ["sums-1", "sums-2"]
    assert ids(f"{file}[6:8]") == ["sums-7", "sums-8"]
    assert ids(f"{file}[7:]", 5) == ["sums-8", "sums-9"]
    assert len(ids(f"{file}[2:8]", 1)) == 6  # who asks for them gets them
    for wrong in ("[5:2]", "[3:3]", "[-2:]", "[a:b]", "[4]"):
        with pytest.raises(ProblemError, match="expected the numbers of the first problem and"):
            ids(f"{file}{wrong}")
    with pytest.raises(ProblemError, match=r"sums\.jsonl holds no problems from number 9 on"):
        ids(f"{file}[9:12]")
    odd = tmp_path / "all[1:2]"  # a file of that name is a file
    odd.write_text(file.read_text())
    assert len(ids(str(odd))) == 9


def test_questions_are_asked_with_their_options_or_without(tmp_path: Path) -> None:
    file = tmp_path / "choices.jsonl"
    file.write_text('{"question": "Which?", "options": ["this", "that"], "answer": "B"}\n')
    [shown], [hidden] = (read_problems(file, options=options) for options in (True, False))
    assert shown.question == "Which?\nA. this\nB. that\nAnswer with the letter of the right option."
    assert hidden.question == "Which?"
    assert (shown.answer, hidden.answer) == ("(B)", "that")


@pytest.mark.parametrize(
    "row",
    ['{"question": "Q", "reference_answer": "4"}', '{"problem_text": "Q", "answer_number": 4}'],
)
def test_sets_of_the_papers_second_version_are_read(tmp_path: Path, row: str) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text(row)
    [problem] = read_problems(file)
    assert (problem.question, problem.answer) == ("Q", "4")
