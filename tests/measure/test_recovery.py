"""Intervals, tests and the share of the gap, against scipy and by simulation."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from howwhen.errors import StoreError
from howwhen.measure.ladder import Category, GradedTrace, measure_ladder
from howwhen.measure.recovery import (
    Bootstrap,
    Outcomes,
    find_flips,
    find_gains,
    mcnemar,
    pass_at_k,
    published_share,
    wilson,
)
from howwhen.records import Bits, Flips, Gains, Grade, RungName
from howwhen.settings import MeasureSettings
from tests.measure.planted import SETTINGS, ladder, traces


def outcomes(right: int, n: int = 100) -> Outcomes:
    return np.array([[[1.0]]] * right + [[[0.0]]] * (n - right))


def test_recovery_is_signed_and_paired() -> None:
    bootstrap = Bootstrap.draw(100, SETTINGS)
    base, thinking = outcomes(20), outcomes(80)
    half = bootstrap.recovery(outcomes(50), base, thinking)
    assert half is not None
    assert half.value == pytest.approx(0.5)
    assert half.interval.low < 0.5 < half.interval.high
    worse = bootstrap.recovery(outcomes(5), base, thinking)
    assert worse is not None
    assert worse.value == pytest.approx(-0.25)
    same = bootstrap.recovery(thinking, base, thinking)
    assert same is not None
    assert same.value == same.interval.low == same.interval.high == 1


@pytest.mark.parametrize(
    ("hybrid", "base", "thinking", "share"),
    [  # of the paper's result files, in per cent
        (70, 83.8, 70, 0),
        (39.2, 28.83, 38.49, 1.0735),
        (36.20, 27.27, 36.64, 0.953),
        (73.54, 74.05, 90.82, 0),
        (80.8, 83.8, 80.8, 0),  # base above thinking: reckoned from the thinking model
        (62.3, 39.4, 83.8, 0.5158),
        (5, 5, 5, None),
    ],
)
def test_the_papers_formula(
    hybrid: float, base: float, thinking: float, share: float | None
) -> None:
    found = published_share(float(hybrid), float(base), float(thinking))
    assert found == (None if share is None else pytest.approx(share, abs=2e-3))


def test_without_a_gap_recovery_is_undefined() -> None:
    bootstrap = Bootstrap.draw(100, SETTINGS)
    shifted = np.roll(outcomes(51), 50, axis=0)
    assert bootstrap.recovery(outcomes(50), outcomes(50), shifted) is None
    assert bootstrap.drop(outcomes(50), outcomes(50), outcomes(50), shifted) is None


@pytest.mark.parametrize("seed", range(3))
def test_the_bootstrap_agrees_with_scipy_on_random_tables(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rung, base, thinking = (
        (rng.random((300, 1, 1)) < share).astype(float) for share in (0.5, 0.2, 0.8)
    )
    bootstrap = Bootstrap.draw(300, MeasureSettings(bootstrap_samples=5000))
    ours = bootstrap.recovery(rung, base, thinking)

    def share(r: np.ndarray, b: np.ndarray, t: np.ndarray, axis: int = -1) -> np.ndarray:
        shares: np.ndarray = (r.mean(axis) - b.mean(axis)) / (t.mean(axis) - b.mean(axis))
        return shares

    columns = (rung[:, 0, 0], base[:, 0, 0], thinking[:, 0, 0])
    theirs = stats.bootstrap(
        columns, share, paired=True, vectorized=True, n_resamples=5000, method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    assert ours is not None
    assert ours.value == pytest.approx(float(share(*columns)))
    assert ours.interval.low == pytest.approx(theirs.low, abs=0.015)
    assert ours.interval.high == pytest.approx(theirs.high, abs=0.015)


@pytest.mark.parametrize("seed", range(5))
def test_mcnemar_is_the_exact_binomial_test(seed: int) -> None:
    first, second = (int(n) for n in np.random.default_rng(seed).integers(0, 40, size=2))
    n, low = first + second, min(first, second)
    expected = min(1.0, 2 * sum(stats.binom.pmf(k, n, 0.5) for k in range(low + 1)))
    assert mcnemar(first, second) == pytest.approx(expected, abs=1e-9)
    assert mcnemar(first, second) == mcnemar(second, first)


def test_mcnemar_on_a_textbook_table_and_on_nothing() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 6) == pytest.approx(2 / 2**6)


def test_wilson_stays_inside_and_has_width_at_the_ends() -> None:
    low, high = wilson(0, 50, 0.95)
    assert low == pytest.approx(0, abs=1e-9)
    assert 0.05 < high < 0.09  # z^2 / (n + z^2)
    assert wilson(20, 50, 0.95).low < 0.4 < wilson(20, 50, 0.95).high


def test_the_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """400 simulated ladders of 200 problems each: coverage within 93 to 97 %."""
    rng = np.random.default_rng(0)
    settings = MeasureSettings(bootstrap_samples=1000)
    bootstrap = Bootstrap.draw(200, settings)
    shares = {"base": 0.2, "rung": 0.5, "thinking": 0.8}
    truth = (shares["rung"] - shares["base"]) / (shares["thinking"] - shares["base"])
    hits = {"recovery": 0, "wilson": 0}
    for _ in range(400):
        hard = rng.random((200, 1, 1))  # a hard problem is hard for all three
        drawn = {
            name: (0.5 * hard + 0.5 * rng.random((200, 1, 1)) < _quantile(share)).astype(float)
            for name, share in shares.items()
        }
        recovery = bootstrap.recovery(drawn["rung"], drawn["base"], drawn["thinking"])
        assert recovery is not None
        hits["recovery"] += recovery.interval.low <= truth <= recovery.interval.high
        low, high = bootstrap.accuracy_interval(drawn["rung"])
        hits["wilson"] += low <= shares["rung"] <= high
    for name, count in hits.items():
        assert 0.93 <= count / 400 <= 0.97, name


def _quantile(share: float) -> float:
    """Below which the mean of two uniform numbers lies with probability `share`."""
    return float(np.sqrt(share / 2) if share < 0.5 else 1 - np.sqrt((1 - share) / 2))


def test_answers_of_several_seeds_widen_the_interval_by_their_disagreement() -> None:
    rng = np.random.default_rng(0)
    problems = (rng.random((200, 1, 1)) < 0.5).astype(float)
    bootstrap = Bootstrap.draw(200, SETTINGS)
    agreeing = np.repeat(problems, 3, axis=1)
    split = np.concatenate([np.ones_like(problems), np.zeros_like(problems), problems], axis=1)

    def width(answers: Outcomes) -> float:
        low, high = bootstrap.accuracy_interval(answers)
        return high - low

    assert width(agreeing) == pytest.approx(width(problems), abs=0.02)
    assert width(split) > 2 * width(agreeing)
    assert width(np.repeat(split, 8, axis=2)) == pytest.approx(width(split), abs=0.03)


@pytest.mark.parametrize(("seeds", "samples", "least"), [(3, 1, 0.7), (3, 8, 0.7), (12, 4, 0.88)])
def test_samples_of_a_seed_are_not_taken_for_seeds(seeds: int, samples: int, least: float) -> None:
    """200 simulated rungs whose seeds differ (standard deviation 0.15): is 0.5 covered?"""
    rng = np.random.default_rng(0)
    bootstrap = Bootstrap.draw(100, MeasureSettings(bootstrap_samples=500))
    hits = 0
    for _ in range(200):
        shares = rng.normal(0.5, 0.15, (1, seeds, 1))
        drawn = (rng.random((100, seeds, samples)) < shares).astype(float)
        low, high = bootstrap.accuracy_interval(drawn)
        hits += low <= 0.5 <= high
    assert least <= hits / 200 <= 0.97


def test_pass_at_k_counts_every_choice_of_k_samples() -> None:
    answers = np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    assert pass_at_k(answers, 1) == pytest.approx(answers.mean())
    assert pass_at_k(answers, 2) == pytest.approx(((1 - 3 / 6) + (1 - 1 / 6)) / 2)
    assert pass_at_k(answers, 4) == 1
    with pytest.raises(ValueError, match="pass@5 needs at least 5 samples, found 4"):
        pass_at_k(answers, 5)


def test_the_measurement_adds_up() -> None:
    measurement = measure_ladder(ladder(), SETTINGS)
    assert measurement.n == 50
    assert measurement.gap == pytest.approx(0.6)
    hybrid = measurement.rungs["hybrid"]
    assert hybrid.gap_recovered == pytest.approx(2 / 3)
    assert hybrid.steered_fraction == pytest.approx(0.2)
    assert hybrid.changed_fraction == pytest.approx(0.1)
    assert hybrid.steered_passes_per_answer == pytest.approx(6)
    assert (hybrid.needs_thinking, measurement.rungs["base"].needs_thinking) == (True, False)
    assert hybrid.truncated_fraction == pytest.approx(1 / 50)
    assert (hybrid.flexible_accuracy, hybrid.strict_accuracy) == (0.6, 0.5)
    assert hybrid.against_hybrid is None
    assert hybrid.gains == Gains(30, 20 / 30, 0.5)
    assert hybrid.flips == Flips(gained=20, lost=0, net=20)
    assert measurement.rungs["base"].flips is None
    drawn = measurement.rungs["random-vectors"]
    assert drawn.seeds == (0, 1)
    assert drawn.accuracy == pytest.approx(0.3)
    for name, rung in measurement.rungs.items():
        assert set(rung.counts) == {grade.value for grade in Grade}
        assert sum(rung.counts.values()) == 50 * len(rung.seeds), name


def test_bits_are_averaged_and_resampled_with_the_problems() -> None:
    rungs = ladder()
    rungs["hybrid"] = [
        replace(trace, bits=Bits(float(number), 2.0, 0.0))
        for number, trace in enumerate(rungs["hybrid"])
    ]
    rungs["random-vectors"][3] = replace(rungs["random-vectors"][3], bits=Bits(1.0, 0.0, 0.0))
    measured = measure_ladder(rungs, SETTINGS, fitted={"hybrid": 7}, base_parameters=100)
    hybrid, drawn = measured.rungs["hybrid"], measured.rungs["random-vectors"]
    assert hybrid.bits == Bits(24.5, 2.0, 0.0)
    assert hybrid.bits.total == 26.5
    assert hybrid.bits_ci is not None
    spread = 1.96 * np.arange(50.0).std() / 50**0.5
    assert hybrid.bits_ci == pytest.approx((26.5 - spread, 26.5 + spread), abs=0.3)
    assert (hybrid.fitted, measured.base_parameters) == (7, 100)
    assert hybrid.interventions_per_answer == 2
    # Where a single answer's bits are unknown, those of the rung are.
    assert (drawn.bits, drawn.bits_ci, drawn.fitted) == (None, None, None)


def test_the_strict_mode_measures_with_strict_grades() -> None:
    settings = MeasureSettings(bootstrap_samples=200, mode="strict")
    measurement = measure_ladder(ladder(), settings)
    assert measurement.mode == "strict"
    assert measurement.rungs["hybrid"].accuracy == 0.5
    assert measurement.rungs["hybrid"].gap_recovered == pytest.approx(0.5)


def test_as_many_right_need_not_be_the_same_problems() -> None:
    base, thinking = np.zeros((6, 1, 1)), np.array([1, 1, 1, 0, 0, 0.0]).reshape(6, 1, 1)
    base[2] = base[5] = 1.0
    others = np.array([1, 0, 0, 1, 1, 0.0]).reshape(6, 1, 1)
    assert others.sum() == thinking.sum()
    assert find_gains(others, base, thinking) == Gains(2, 0.5, 0.5)
    assert find_gains(thinking, base, thinking) == Gains(2, 1.0, 0.25)
    assert find_gains(base, base, thinking) == Gains(2, 0.0, 0.5)
    assert find_gains(thinking, thinking, thinking) is None


def test_gains_are_those_of_most_answers_and_shared_by_each_answer() -> None:
    base, thinking = np.zeros((3, 1, 3)), np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0.0]])[:, None, :]
    seeds = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1.0]])[:, :, None]
    gains = find_gains(seeds, base, thinking)
    assert gains is not None
    assert (gains.problems, gains.shared) == (2, 0.5)
    assert gains.elsewhere == pytest.approx(1 / 3)
    assert find_gains(seeds[:2], base[:2], thinking[:2]) == Gains(2, 0.5, None)


def test_flips_count_problems_by_the_majority_of_their_answers() -> None:
    base = np.array([0, 0, 1, 1, 1.0]).reshape(5, 1, 1)
    answers = [[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0.0]]
    rung = np.array(answers)[:, :, None]
    assert find_flips(rung, base) == Flips(gained=1, lost=2, net=-1)
    assert find_flips(base, rung) == Flips(gained=2, lost=1, net=1)
    assert find_flips(base, base) == Flips(0, 0, 0)


def test_flips_differ_by_the_change_of_accuracy() -> None:
    rng = np.random.default_rng(0)
    base, rung = ((rng.random((500, 1, 1)) < share).astype(float) for share in (0.4, 0.6))
    flips = find_flips(rung, base)
    assert min(flips.gained, flips.lost) > 0
    assert flips.gained - flips.lost == rung.sum() - base.sum()


def test_rungs_are_held_against_the_hybrid() -> None:
    against = measure_ladder(ladder(), SETTINGS).rungs["thinking"].against_hybrid
    assert against is not None
    assert (against.only_first, against.only_second) == (10, 0)
    assert against.p_value == pytest.approx(2 / 2**10)
    assert against.difference == pytest.approx(0.2)
    assert against.difference_ci.low > 0


def test_samples_give_pass_at_k() -> None:
    several: dict[RungName, list[GradedTrace]] = {
        name: traces(10, sample=0) + traces(30, sample=1) for name in ("base", "thinking")
    }
    several["thinking"] = traces(40) + traces(45, sample=1)
    rungs = measure_ladder(several, SETTINGS).rungs
    assert rungs["base"].samples == 2
    assert rungs["base"].pass_at_k == pytest.approx({1: 0.4, 2: 0.6})
    assert rungs["base"].accuracy == pytest.approx(0.4)


def test_knock_outs_say_what_a_category_carries() -> None:
    knock_outs: dict[RungName, list[GradedTrace]] = {
        "without-category": traces(15, category=0) + traces(30, category=2),
        "one-category": traces(25, category=0) + traces(10, category=2),
    }
    categories = [Category(0, "recall", 9), Category(2, "check", 1)]
    first, second = measure_ladder(ladder(), SETTINGS, knock_outs, categories).knock_outs
    assert (first.title, first.decisions) == ("recall", 9)
    assert first.without == pytest.approx(1 / 6)
    assert first.drop == pytest.approx(1 / 2)
    assert first.alone == pytest.approx(1 / 2)
    assert first.drop_ci is not None
    assert first.drop_ci.low > 0
    assert second.drop == pytest.approx(0)
    assert second.drop_ci == (0, 0)


def test_a_rung_with_other_problems_is_refused() -> None:
    with pytest.raises(StoreError, match="answered problem 050, which base did not"):
        measure_ladder({"base": traces(10), "thinking": traces(40, n=51)}, SETTINGS)
    with pytest.raises(StoreError, match="did not answer every problem equally often"):
        measure_ladder({"base": traces(10), "thinking": traces(40)[:-1]}, SETTINGS)
    with pytest.raises(StoreError, match="needs the rungs base and thinking"):
        measure_ladder({"base": traces(10)}, SETTINGS)
