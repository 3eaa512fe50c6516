import numpy as np
import pytest

from howwhen.errors import StoreError
from howwhen.measure.ladder import GradedTrace, measure_ladder
from howwhen.measure.recovery import Bootstrap
from howwhen.records import Grade
from howwhen.settings import MeasureSettings

SETTINGS = MeasureSettings(bootstrap_samples=2000)


def outcomes(right: int, n: int = 100) -> np.ndarray:
    return np.array([1.0] * right + [0.0] * (n - right))


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
    assert worse.clamped == 0
    same = bootstrap.recovery(thinking, base, thinking)
    assert same is not None
    assert same.value == same.interval.low == same.interval.high == 1


def test_without_a_gap_recovery_is_undefined() -> None:
    bootstrap = Bootstrap.draw(100, SETTINGS)
    shifted = np.roll(outcomes(51), 50)
    assert bootstrap.recovery(outcomes(50), outcomes(50), shifted) is None


def test_the_interval_matches_the_binomial_standard_error() -> None:
    bootstrap = Bootstrap.draw(400, MeasureSettings(bootstrap_samples=5000))
    low, high = bootstrap.interval(bootstrap.means(outcomes(120, 400)))
    error = 1.96 * (0.3 * 0.7 / 400) ** 0.5
    assert low == pytest.approx(0.3 - error, abs=0.01)
    assert high == pytest.approx(0.3 + error, abs=0.01)


def traces(right: int, n: int = 50, seed: int = 0, decisions: int = 2) -> list[GradedTrace]:
    grades = [Grade.CORRECT] * right + [Grade.WRONG] * (n - right)
    return [GradedTrace(str(i), seed, grade, 10, decisions, 1) for i, grade in enumerate(grades)]


def test_the_measurement_adds_up() -> None:
    ladder = {
        "base": traces(10, decisions=0),
        "random-vectors": traces(10) + traces(20, seed=1),
        "hybrid": traces(30),
        "thinking": traces(40),
    }
    measurement = measure_ladder(ladder, SETTINGS)  # type: ignore[arg-type]
    assert measurement.n == 50
    assert measurement.gap == pytest.approx(0.6)
    assert measurement.rungs["hybrid"].gap_recovered == pytest.approx(2 / 3)
    assert measurement.rungs["hybrid"].steered_fraction == pytest.approx(0.2)
    assert measurement.rungs["hybrid"].changed_fraction == pytest.approx(0.1)
    drawn = measurement.rungs["random-vectors"]
    assert drawn.seeds == (0, 1)
    assert drawn.accuracy == pytest.approx(0.3)
    for name, rung in measurement.rungs.items():
        assert set(rung.counts) == {grade.value for grade in Grade}
        assert sum(rung.counts.values()) == 50 * len(rung.seeds), name


def test_a_rung_with_other_problems_is_refused() -> None:
    ladder = {"base": traces(10), "thinking": traces(40, n=51)}
    with pytest.raises(StoreError, match="answered problem 50, which base did not"):
        measure_ladder(ladder, SETTINGS)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="did not answer every problem equally often"):
        measure_ladder({"base": traces(10), "thinking": traces(40)[:-1]}, SETTINGS)
    with pytest.raises(StoreError, match="needs the rungs base and thinking"):
        measure_ladder({"base": traces(10)}, SETTINGS)
