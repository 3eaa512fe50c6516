import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import f1_score

from howwhen.discover.validate import (
    SHRINKAGE,
    Partition,
    Validator,
    _cross_val_predict,
    _explained,
    _lda_predict,
    _macro_f1,
    confusion,
    score_against_truth,
)
from tests.discover.planted import planted

WORDS = ("Next, Ann gets more.", "So the answer is 7.", "Wait, let me redo that.")


def planted_validator(*, with_layers: bool) -> tuple[Validator, np.ndarray]:
    inputs, which = planted(300)
    texts = [WORDS[w] for w in which.tolist()]
    others = inputs.numpy() @ np.linalg.qr(np.random.default_rng(0).normal(size=(24, 24)))[0]
    return Validator(texts, inputs.numpy(), others if with_layers else None, 0), which.numpy()


@pytest.mark.parametrize("with_layers", [True, False])
def test_a_true_taxonomy_scores_high_and_a_random_one_low(with_layers: bool) -> None:
    validator, which = planted_validator(with_layers=with_layers)
    mixed = np.random.default_rng(1).permuted(which)
    swapped = (which + 1) % 3  # other numbers, the same categories
    good, bad = validator.score(
        [
            Partition(which, [swapped, which], (which, swapped)),
            Partition(mixed, [np.roll(mixed, 7)], (np.roll(mixed, 1), mixed)),
        ]
    )
    assert good.consistency > 0.97
    assert good.consistency_of_words == pytest.approx(1)
    assert good.stability_over_seeds == good.stability_over_halves == pytest.approx(1)
    assert good.separation > 0.3
    parts = (good.consistency, good.completeness, 1, good.separation)
    assert good.score == pytest.approx(sum(parts) / 4)
    assert good.completeness > 0.5
    assert -0.05 < bad.completeness < 0.05
    assert bad.consistency < 0.5
    assert abs(bad.stability_over_seeds) < 0.1
    assert bad.separation < 0.05
    assert bad.score < good.score - 0.5
    assert 0 < bad.standard_error < 0.1


def test_a_cells_scores_do_not_depend_on_the_other_cells() -> None:
    validator, which = planted_validator(with_layers=True)
    one = Partition(which, [which], (which, which))
    other = Partition(which % 2, [which], (which, which))
    assert validator.score([one])[0] == validator.score([other, one])[1]


@pytest.mark.filterwarnings("error")
def test_rare_categories_are_scored_without_a_warning() -> None:
    validator, which = planted_validator(with_layers=True)
    rare, single = which.copy(), np.zeros_like(which)
    rare[:2], rare[2] = 3, 4
    scores = validator.score([Partition(own, [own], (own, own)) for own in (rare, single)])
    assert 0.5 < scores[0].consistency < 0.95
    assert scores[1].consistency == 1  # the only category is always right, and says nothing:
    assert abs(scores[1].completeness) < 0.01


def test_a_category_between_two_others_is_not_masked() -> None:
    """Plain regression on categories never predicts the middle one of three on a line."""
    place = np.repeat([0, 1, 2], 100)
    features = place[:, None] + 0.05 * np.random.default_rng(0).normal(size=(300, 1))
    mixed = np.random.default_rng(1).permutation(300)
    (predicted,) = _cross_val_predict(features, [place], [(mixed[:200], mixed[200:])])
    assert (predicted[mixed[200:]] == place[mixed[200:]]).mean() > 0.98


@pytest.mark.parametrize("categories", [2, 3, 9])
def test_discriminants_and_f1_are_those_of_scikit_learn(categories: int) -> None:
    random = np.random.default_rng(categories)
    truth = random.integers(0, categories, 300)
    truth[:2] = categories + 1  # one number between is unused, and one category is rare
    values = np.eye(categories + 2)[truth] + 0.6 * random.normal(size=(300, categories + 2))
    train, held_out = np.arange(200), np.arange(200, 300)
    predicted = _lda_predict(values, truth, train, held_out)
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE)
    plain = lda.fit(values[train, :-1], truth[train]).predict(values[held_out, :-1])
    assert predicted.tolist() == plain.tolist()
    assert 0.3 < (predicted == truth[held_out]).mean() < 1
    expected = f1_score(truth[held_out], predicted, average="macro", zero_division=0)
    assert _macro_f1(truth[held_out], predicted) == expected


def test_merged_categories_are_less_complete_and_split_ones_hardly_more() -> None:
    validator, which = planted_validator(with_layers=True)
    halves = which + 3 * np.random.default_rng(2).integers(0, 2, len(which))
    whole, merged, split = validator.score(
        [Partition(own, [own], (own, own)) for own in (which, np.minimum(which, 1), halves)]
    )
    assert merged.completeness < whole.completeness - 0.1
    assert abs(split.completeness - whole.completeness) < 0.02
    assert whole.score > max(merged.score, split.score)


def test_completeness_is_the_held_out_share_of_the_variance() -> None:
    features = np.array([[0.0], [2.0], [10.0], [12.0]])
    fold = (np.array([0, 2]), np.array([1, 3]))
    # Means 0, 10 and 5 overall; the others, 3 off and 7 off it, are each 2 off their means.
    (share,) = _explained(features, [np.array([0, 0, 1, 1])], fold)
    assert share == pytest.approx(1 - (2**2 + 2**2) / (3**2 + 7**2))
    (alone,) = _explained(
        features, [np.array([0, 1, 0, 1])], fold
    )  # category 1 has no other sentence
    assert alone == 0


def test_truth_scores_by_hand() -> None:
    perfect = score_against_truth([0, 0, 1, 1], ["a", "a", "b", "b"])
    assert perfect is not None
    assert perfect.nmi == pytest.approx(1)
    assert perfect.ari == pytest.approx(1)
    assert perfect.purity == 1
    split = score_against_truth([0, 1, 2, 3], ["a", "a", "b", "b"])
    assert split is not None
    assert split.purity == 1
    assert split.nmi == pytest.approx(2 / 3)  # I = 1 bit, entropies 2 and 1, arithmetic mean
    useless = score_against_truth([0, 0, 0, 0], ["a", "a", "b", "b"])
    assert useless is not None
    assert useless.nmi == pytest.approx(0)
    assert useless.ari == pytest.approx(0)
    assert useless.purity == 0.5


def test_sentences_without_a_label_are_left_out_and_counted() -> None:
    scores = score_against_truth([0, 1, 1], ["a", "b", None])
    assert scores is not None
    assert (scores.sentences, scores.purity) == (2, 1)
    assert score_against_truth([0, 1], [None, None]) is None


def test_the_confusion_table_counts_every_sentence() -> None:
    table = confusion([0, 2, 2, 1], ["b", "a", "a", None], 3)
    assert table == {"a": [0, 0, 2], "b": [1, 0, 0], "no label": [0, 1, 0]}
