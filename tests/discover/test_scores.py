import pytest

from howwhen.discover.names import make_titles
from howwhen.discover.validate import score_against_truth, score_offline

TEXTS = ["Next, Ann gets more.", "So the answer is 7.", "Wait, let me redo that."] * 40
GOOD = [0, 1, 2] * 40


def test_a_perfect_taxonomy_scores_high_and_a_random_one_low() -> None:
    good = score_offline(TEXTS, GOOD, GOOD, 3, seed=0)
    assert good.consistency == pytest.approx(1)
    assert good.stability == pytest.approx(1)
    assert good.independence == 1
    mixed = [(index * 7 // 5) % 3 for index in range(120)]
    bad = score_offline(TEXTS, mixed, GOOD, 3, seed=0)
    assert bad.score < good.score - 0.4


def test_truth_scores_by_hand() -> None:
    perfect = score_against_truth([0, 0, 1, 1], ["a", "a", "b", "b"])
    assert perfect is not None
    assert perfect.nmi == pytest.approx(1)
    assert perfect.purity == 1
    split = score_against_truth([0, 1, 2, 3], ["a", "a", "b", "b"])
    assert split is not None
    assert split.purity == 1
    assert split.nmi == pytest.approx(2 / 3)  # I = 1 bit, entropies 2 and 1, arithmetic mean
    useless = score_against_truth([0, 0, 0, 0], ["a", "a", "b", "b"])
    assert useless is not None
    assert useless.nmi == pytest.approx(0)
    assert useless.purity == 0.5


def test_sentences_without_a_label_are_left_out_and_counted() -> None:
    scores = score_against_truth([0, 1, 1], ["a", "b", None])
    assert scores is not None
    assert (scores.sentences, scores.purity) == (2, 1)
    assert score_against_truth([0, 1], [None, None]) is None


def test_titles_are_words_that_set_a_category_apart() -> None:
    titles = make_titles(TEXTS, GOOD, 4)
    assert "Next" in titles[0]
    assert "answer" in titles[1]
    assert "redo" in titles[2] or "Wait" in titles[2] or "let" in titles[2]
    assert titles[3] == "unused"


def test_sentences_without_words_get_a_title_that_says_so() -> None:
    assert make_titles(["1 2 3", "4 5 6"], [0, 0], 1) == ("no words",)
