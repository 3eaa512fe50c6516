"""Figures from a clock that is told what to show."""

from collections.abc import Iterator

import pytest

from benchmarks.timing import Bound, Result, compare, compare_pairs


class Clock:
    """Seconds pass only while a side runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)

    def side(self, *seconds: float) -> "Side":
        return Side(self, iter([*seconds, *[seconds[-1]] * 20]))


class Side:
    def __init__(self, clock: Clock, seconds: Iterator[float]) -> None:
        self.clock, self.seconds, self.calls = clock, seconds, 0

    def __call__(self) -> None:
        self.calls += 1
        self.clock.now += next(self.seconds)


@pytest.mark.parametrize(("bound", "ok"), [("at most", False), ("at least", True)])
def test_the_figure_is_the_median_of_paired_ratios(
    monkeypatch: pytest.MonkeyPatch, bound: Bound, ok: bool
) -> None:
    """The machine gets twice as slow halfway: the ratio of each pair stays what it is."""
    clock = Clock(monkeypatch)
    slow, fast = clock.side(9, 3, 3, 6, 6, 6.3), clock.side(9, 1, 1, 2, 2, 2)
    result = compare("x", slow, fast, bound, 2.5, "slow, fast")
    assert (result.ratio, result.spread, result.ok) == (3.0, (3.0, 3.15), ok)
    assert result.verdict == ("ok" if ok else "MISSED")
    assert slow.calls == fast.calls == 6
    assert "ratios from 3.0 to 3.15 in 5 pairs" in result.detail


def test_readings_that_differ_by_more_than_a_fifth_are_not_ok(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    result = compare("x", clock.side(2, 2, 2, 2, 2, 2.5), clock.side(1), "at least", 1.5, "")
    assert result.ok
    assert result.verdict == "UNSTEADY"


def test_a_difference_that_noise_swallows_is_no_figure() -> None:
    pairs = iter([(10.0, 0.1), (10.0, -0.05)])
    with pytest.raises(RuntimeError, match="difference of two timings that noise swallows"):
        compare_pairs("x", lambda: next(pairs), "at least", 1, "", repeats=2)


def test_a_counted_figure_has_no_spread() -> None:
    assert Result("errors", 0, 0, True, "").verdict == "ok"
