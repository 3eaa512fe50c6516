import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from howwhen.pipeline.problems import draw_split
from howwhen.records import Split
from howwhen.settings import PRESETS, make_settings
from howwhen.zoo.pairs import find_pair
from howwhen.zoo.smol.corpus import (
    CAREFUL,
    HASTY,
    Mixture,
    Passage,
    Problems,
    base_solution,
    draw_problem,
    in_parts,
    slip,
    teacher_solution,
    worksheet,
)
from howwhen.zoo.smol.patterns import Pattern, patterns
from howwhen.zoo.smol.problems import gsm8k_train, smol_problems, smol_test_problems, svamp_train
from howwhen.zoo.smol.word_problems import (
    MAX_NUMBER,
    Calculation,
    WordProblem,
    compute,
    is_small,
    read_prose,
    read_steps,
    stories,
    vary,
)

EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
CARS = WordProblem(
    id="cars",
    question="Sam had 46 toy cars and 7 dolls. He lost 18 cars. How many cars does Sam have now?",
    answer=28,
    steps=(Calculation(46, "-", 18, 28),),
)


def wrong_equations(text: str) -> list[str]:
    return [
        " ".join(found)
        for found in EQUATION.findall(text)
        if (step := compute(int(found[0]), found[1], int(found[2]))) is None
        or step.result != int(found[3])
    ]


@pytest.mark.parametrize(
    ("equation", "said"),
    [
        ("( 8.0 + 5.0 )", ["8 + 5 = 13"]),
        ("( ( 632.0 + 465.0 ) - 410.0 )", ["632 + 465 = 1097", "1097 - 410 = 687"]),
        ("( 2.0 * ( 9.0 / 3.0 ) )", ["9 / 3 = 3", "2 * 3 = 6"]),
    ],
)
def test_an_equation_becomes_its_computations_innermost_first(
    equation: str, said: list[str]
) -> None:
    assert [step.equation() for step in read_steps(equation) or ()] == said


@pytest.mark.parametrize(
    "equation", ["( 3.0 - 8.0 )", "( 7.0 / 2.0 )", "( 1.0 / 0.0 )", "5.0", "1.5 + 2"]
)
def test_an_equation_that_leaves_the_whole_numbers_is_not_used(equation: str) -> None:
    assert read_steps(equation) is None


def test_prose_is_read_with_its_computations_and_without_its_marks() -> None:
    found = read_prose(
        "She sold 48/2 = <<48/2=24>>24 clips\nIn all 48+24 = <<48+24=72>>72.\n#### 72"
    )
    assert found is not None
    steps, text = found
    assert [step.equation() for step in steps] == ["48 / 2 = 24", "48 + 24 = 72"]
    assert text == "She sold 48/2 = 24 clips. In all 48+24 = 72."
    assert read_prose("It is <<0.5*3=1.5>>1.5.\n#### 1.5") is None
    assert read_prose("It is 3.\n#### 3") is None


def test_a_question_says_what_is_known_and_what_is_wanted() -> None:
    assert CARS.goal == "how many cars does Sam have now"
    assert CARS.facts == ["Sam had 46 toy cars and 7 dolls", "he lost 18 cars"]
    clause = "Bo has 9 pens. If he loses 4 pens, how many pens are left?"
    problem = WordProblem("pens", clause, 5, (Calculation(9, "-", 4, 5),))
    assert problem.goal == "how many pens are left"
    assert problem.facts == ["Bo has 9 pens", "he loses 4 pens"]


def test_a_varied_problem_is_the_same_story_with_another_right_answer() -> None:
    drawn = {vary(CARS, Random(seed)) for seed in range(30)}
    assert None not in drawn
    assert len(drawn) > 20
    for problem in drawn:
        assert problem is not None
        numbers = [int(text) for text in re.findall(r"\d+", problem.question)]
        assert problem.steps == (Calculation(numbers[0], "-", numbers[2], problem.answer),)
        assert numbers[0] - numbers[2] == problem.answer > 0
        assert stories([CARS.question, problem.question]) == [0, 0]


def test_stories_are_told_by_their_words() -> None:
    other = "There are 8 boats with 5 sailors each. How many sailors are there?"
    longer = CARS.question.replace("46", "91").replace("now", "now after that")
    assert stories([CARS.question, other, longer]) == [0, 1, 0]


@pytest.mark.parametrize(
    ("step", "parts"),
    [
        (Calculation(46, "-", 18, 28), ["46 - 10 = 36", "36 - 8 = 28"]),
        (Calculation(46, "+", 118, 164), ["46 + 100 = 146", "146 + 10 = 156", "156 + 8 = 164"]),
        (Calculation(47, "*", 3, 141), ["40 * 3 = 120", "7 * 3 = 21", "120 + 21 = 141"]),
        (Calculation(46, "-", 8, 38), []),
        (Calculation(24, "/", 8, 3), []),
    ],
)
def test_a_computation_in_parts_leads_to_the_same_result(
    step: Calculation, parts: list[str]
) -> None:
    assert [part.equation() for part in in_parts(step)] == parts


def test_every_kind_of_document_occurs_and_ends_with_the_right_conclusion() -> None:
    documents = [told(base_solution(CARS, Random(seed), HASTY)) for seed in range(300)]
    assert all(document.endswith("The answer is 28.") for document in documents)
    at_once = sum(document == "The answer is 28." for document in documents)
    shortly = sum(document == "46 - 18 = 28. The answer is 28." for document in documents)
    assert at_once / 300 == pytest.approx(HASTY.at_once, abs=0.08)
    assert shortly / 300 == pytest.approx(HASTY.shortly, abs=0.08)
    for mechanism in ("We need", "We know", "so we subtract", "In parts", "Check", "again"):
        assert any(mechanism in document for document in documents), mechanism


def test_a_hasty_writer_concludes_without_the_computation() -> None:
    hasty = replace(HASTY, at_once=0.0, shortly=0.0, hurry=1.0, choose_operation=1.0)
    document = told(base_solution(CARS, Random(0), hasty))
    assert not EQUATION.findall(document)
    assert document.endswith("so we subtract. The answer is 28.")


def test_what_is_wrong_is_shown_but_not_learnt() -> None:
    careful = replace(CAREFUL, shortly=0.0, check=1.0, wrong_before_check=0.5)
    slips = 0
    for seed in range(100):
        for passage in base_solution(CARS, Random(seed), careful):
            wrong = wrong_equations(passage.text)
            assert bool(wrong) is not passage.is_learnt
            slips += bool(wrong)
        assert told(base_solution(CARS, Random(seed), careful)).endswith("The answer is 28.")
    assert 35 < slips < 65


def test_worksheets_are_right_and_only_what_follows_from_the_task_is_learnt() -> None:
    operators: Counter[str] = Counter()
    for seed in range(100):
        passages = worksheet(Random(seed))
        equations = EQUATION.findall(told(passages))
        assert len(equations) >= 7
        assert not wrong_equations(told(passages))
        operators.update(one for _, one, _, _ in equations)
        for passage in passages:
            assert passage.is_learnt is ("=" in passage.text)
            numbers = [int(text) for text in re.findall(r"\d+", passage.text)]
            assert max(numbers) <= MAX_NUMBER
    assert set(operators) == {*"+-*/"}


def test_a_mixture_holds_what_it_says() -> None:
    gone = Pattern(
        "gone", "{A} had 6 {x} and lost 4. How many are left?", (Calculation(6, "-", 4, 2),)
    )
    clips = WordProblem("clips", "How many is 148 / 2?", 74, (Calculation(148, "/", 2, 74),))
    mixture, rng = Mixture(svamp=0.4, patterns=0.2, gsm8k=0.3, varied=0.5), Random(1)
    problems = Problems([CARS], [gone], [clips])
    drawn = [draw_problem(problems, rng, mixture) for _ in range(600)]
    share = {
        one: count / 600
        for one, count in Counter(problem and problem.id for problem in drawn).items()
    }
    assert share == {
        "cars": pytest.approx(0.4, abs=0.06),
        "gone": pytest.approx(0.2, abs=0.06),
        "clips": pytest.approx(0.3, abs=0.06),
        None: pytest.approx(0.1, abs=0.06),
    }
    assert sum(one == CARS for one in drawn) / 600 == pytest.approx(0.2, abs=0.06)
    assert all(is_small(one) for one in drawn if one is not None)
    assert is_small(CARS)
    assert not is_small(clips)


def test_patterns_are_problems_of_many_wordings_that_can_be_varied() -> None:
    found = patterns()
    assert len(found) > 80
    assert {step.operator for one in found for step in one.steps} == {*"+-*/"}
    for seed, pattern in enumerate(found):
        problem = pattern.fill(Random(seed))
        assert "{" not in problem.question
        told = {int(text) for text in re.findall(r"\d+", problem.question)}
        results = {step.result for step in problem.steps[:-1]}
        used = {number for step in problem.steps for number in (step.left, step.right)}
        assert used <= told | results
        assert vary(problem, Random(seed)) is not None
        filled = {pattern.fill(Random(other)).question for other in range(9)}
        assert len(filled) > 1 or "{" not in pattern.text


def test_a_slip_is_near_and_wrong() -> None:
    step = Calculation(9, "-", 8, 1)
    results = {slip(step, Random(seed)).result for seed in range(50)}
    assert results == {2, 3, 11}


def told(passages: list[Passage]) -> str:
    return " ".join(passage.text for passage in passages)


def test_the_teacher_repeats_a_persons_words() -> None:
    problem = WordProblem(
        "clips", "How many?", 24, (Calculation(48, "/", 2, 24),), "48/2 = 24 clips."
    )
    assert told(teacher_solution(problem)) == "48/2 = 24 clips. The answer is 24."
    with pytest.raises(ValueError, match="no worked prose"):
        teacher_solution(CARS)


def test_no_test_question_has_four_fifths_of_its_words_from_one_trained_on() -> None:
    trained, tested = smol_problems(5000, 0), smol_test_problems(5000, 0)
    assert len(trained) > 650
    assert 300 <= len(tested) < 330
    questions = [problem.question for problem in (*trained, *tested)]
    story = stories(questions)
    assert not set(story[: len(trained)]) & set(story[len(trained) :])
    words = [set("".join(c if c.isalpha() else " " for c in q.lower()).split()) for q in questions]
    overlaps = (
        len(one & other) / min(len(one), len(other))
        for one in words[: len(trained)]
        for other in words[len(trained) :]
    )
    assert max(overlaps) < 0.8
    ids = {problem.id.removesuffix("-redrawn") for problem in (*trained, *tested)}
    assert len(ids) == len(trained) + len(tested)


def test_problems_with_large_numbers_are_asked_with_small_ones() -> None:
    problems = smol_test_problems(5000, 0)
    redrawn = [problem for problem in problems if problem.id.endswith("-redrawn")]
    assert 80 < len(redrawn) < 140
    for problem in problems:
        numbers = [float(text) for text in re.findall(r"\d+(?:\.\d+)?", problem.question)]
        assert max(*numbers, float(problem.answer)) <= MAX_NUMBER


def test_problems_are_drawn_by_seed_and_up_to_a_count() -> None:
    assert smol_problems(20, 1) == smol_problems(20, 1)
    assert smol_problems(20, 1) != smol_problems(20, 2)
    assert smol_problems(20, 1) == smol_problems(30, 1)[:20]
    assert len(smol_test_problems(7, 0)) == 7


def test_every_problem_that_is_written_about_leads_to_its_gold_answer() -> None:
    gold = {problem.id: problem.answer for problem in smol_problems(5000, 0)}
    svamp = svamp_train()
    assert len(svamp) > 600
    assert all(str(problem.answer) == gold[problem.id] for problem in svamp)
    assert all(problem.steps[-1].result == problem.answer for problem in svamp)
    short = gsm8k_train()
    assert len(short) > 1500
    assert all(problem.prose and len(problem.steps) in (1, 2) for problem in short)
    assert all(problem.steps[-1].result == problem.answer for problem in short)


@pytest.mark.parametrize("name", ["smol", "smol-sft"])
def test_the_pair_is_tested_on_stories_of_its_own(name: str) -> None:
    pair = find_pair(name)
    limits = {"collect": {"limit": 100}}
    settings = make_settings(PRESETS["smoke"], pair.overrides, limits)
    split = Counter(problem.split for problem in draw_split(pair, settings))
    assert split == {Split.TEST: 40, Split.SELECTION: 6, Split.TRAIN: 54}
    trained = {problem.id for problem in smol_problems(5000, 0)}
    for problem in draw_split(pair, settings):
        assert (problem.id in trained) is (problem.split is not Split.TEST)


def test_a_file_of_ones_own_takes_the_place_of_the_pairs_problems(tmp_path: Path) -> None:
    rows = [{"question": f"What is {n} + 1?", "answer": n + 1} for n in range(20)]
    file = tmp_path / "sums.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    pair = find_pair("smol")
    own = make_settings({"collect": {"problems": str(file)}})
    assert all(problem.dataset == "sums" for problem in draw_split(pair, own))
    tested = make_settings({"collect": {"test_problems": str(file), "limit": 50}})
    problems = draw_split(pair, tested)
    assert sum(problem.split is Split.TEST for problem in problems) == 20
    assert sum(problem.dataset == "svamp" for problem in problems) == 50
