"""The organism in which the category is needed: its problems, documents and truth."""

import re
from collections import Counter
from itertools import pairwise
from random import Random

import pytest

from howwhen.hybrid.choice import Base, Rung, Thinking
from howwhen.hybrid.decoder import decode
from howwhen.measure.grade import grade_answers
from howwhen.records import Grade
from howwhen.settings import HybridSettings
from howwhen.zoo.pairs import find_pair
from howwhen.zoo.tally.tokenizer import build_tokenizer
from howwhen.zoo.tally.which import (
    PLAY,
    Card,
    CardProblem,
    base_solution,
    card_problems,
    card_truth,
    card_vocabulary,
    draw_card_document,
    draw_card_problem,
)

PROBLEMS = [draw_card_problem(Random(f"test-{n}")) for n in range(400)]


def sentences_of(text: str) -> list[str]:
    return re.findall(r"[^.]+\.", text)


@pytest.mark.parametrize(
    ("card", "result"), [(Card.RED, 20), (Card.BLUE, 15), (Card.GREEN, 7), (Card.WHITE, 10)]
)
def test_a_card_does_what_its_colour_says(card: Card, result: int) -> None:
    assert card.play(10) == result
    problem = CardProblem("Ann", "pens", 10, card, (None,))
    assert problem.answer == result
    assert problem.question == (
        f"Ann has 10 pens and a {card} card. Ann plays it. How many pens does Ann have?"
    )


def test_the_first_words_of_the_four_behaviours_differ() -> None:
    first = [card.sentences(10).split()[0] for card in Card]
    assert first == ["Twice", "Remember,", "10", "Nothing"]


def test_colours_are_even_and_named_nowhere_but_in_the_question() -> None:
    counts = Counter(problem.card for problem in PROBLEMS)
    assert min(counts.values()) > 60
    for number in range(200):
        _, solution = draw_card_document(Random(f"doc-{number}"))
        assert not any(card in solution for card in Card)


def test_the_bases_writer_plays_every_card_alike() -> None:
    """What he does says nothing of the colour."""
    played: dict[Card, Counter[str]] = {card: Counter() for card in Card}
    for number, problem in enumerate(PROBLEMS * 5):
        sentences = sentences_of(base_solution(problem, Random(number)))
        for sentence, following in pairwise(sentences):
            if sentence.strip().endswith(f"{PLAY}."):
                word = following.split()[0]
                played[problem.card]["number" if word.lstrip("-").isdigit() else word] += 1
    for counts in played.values():
        assert len(counts) == 4
        assert max(counts.values()) < 1.4 * min(counts.values())


def test_with_luck_the_writer_is_right() -> None:
    problem = CardProblem("Ann", "pens", 10, Card.WHITE, (None,))
    answers = {base_solution(problem, Random(n)).split()[-1] for n in range(100)}
    assert answers == {"20.", "15.", "7.", "10."}


def test_problems_are_different_and_the_same_every_time() -> None:
    first, again, other = card_problems(50, 3), card_problems(50, 3), card_problems(50, 4)
    assert first == again
    assert len({problem.question for problem in first}) == 50
    assert {problem.question for problem in first} != {problem.question for problem in other}
    assert all(2 <= int(problem.answer) <= 60 for problem in first)


def test_every_document_is_written_in_its_own_tokens() -> None:
    tokenizer = build_tokenizer(card_vocabulary())
    for number in range(100):
        for text in draw_card_document(Random(number)):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text


def test_every_sentence_has_a_true_label() -> None:
    for number in range(200):
        _, solution = draw_card_document(Random(number))
        labels = card_truth(sentences_of(solution))
        assert None not in labels["behaviour"]
        assert None not in labels["card"]
    labels = card_truth(
        ["Ann starts with 9 pens.", " Next, Ann plays it.", " Twice 9 is 18.",
         " Next, Ann loses 2.", " 18 minus 2 is 16.", " So the answer is 16.", "Hm."]
    )  # fmt: skip
    assert labels["behaviour"] == [
        "restate", "focus", "double", "focus", "take away", "conclude", None,
    ]  # fmt: skip
    assert labels["card"] == [
        "restate", "focus/card", "double/card", "focus", "take away", "conclude", None,
    ]  # fmt: skip


def test_the_pair_reads_categories_where_the_thinking_model_knows_them() -> None:
    pair = find_pair("tally-which")
    assert pair.overrides["elicit"] == {"gate": "probe"}
    assert pair.chosen_taxonomy_layers == (2, 3)
    assert pair.draw_problems is card_problems


@pytest.mark.slow
@pytest.mark.parametrize(("rung", "low", "high"), [(Base(), 0.1, 0.4), (Thinking(), 0.9, 1.0)])
def test_the_shipped_models_are_as_good_as_claimed(rung: Rung, low: float, high: float) -> None:
    """On 120 fresh problems; LOG.md has the figures on 400."""
    pair, problems = find_pair("tally-which"), card_problems(120, 77)
    settings = HybridSettings(max_new_tokens=120, block_tokens=1)
    traces = decode(pair.models(), problems, rung, settings)
    answers = [(t.text, p.answer, p.dataset) for t, p in zip(traces, problems, strict=True)]
    right = sum(grade is Grade.CORRECT for grade in grade_answers(answers))
    assert low <= right / len(problems) <= high
