"""How concentrated a known divergence is."""

from collections.abc import Sequence

import numpy as np
import pytest

from howwhen.measure.concentration import FEWEST, TOP_SHARES, concentration_of, gini
from howwhen.records import Finish, HybridToken, HybridTrace


def trace(divergences: Sequence[float | None], decided: set[int] | None = None) -> HybridTrace:
    tokens = tuple(
        HybridToken(
            1, 1, 10 + place % 3, None, None, 0, place in (decided or set()), -1.0, -1.0,
            divergence=divergence,
        )
        for place, divergence in enumerate(divergences)
    )  # fmt: skip
    return HybridTrace("p", "takeover", 0, "", Finish.STOP, tokens)


def test_the_gini_index_of_known_distributions() -> None:
    assert gini(np.ones(50)) == pytest.approx(0)
    assert gini(np.eye(100)[0]) == pytest.approx(0.99)
    assert gini(np.arange(1, 1001) / 1000) == pytest.approx(1 / 3, abs=1e-3)


def test_the_tokens_with_the_largest_divergence_hold_what_was_planted() -> None:
    divergences = [0.01] * 92 + [1.0] * 8
    found = concentration_of("takeover", [trace(divergences)], str, {})
    assert found is not None
    assert found.tokens == 100
    assert found.mean == pytest.approx(0.0892)
    held = dict(found.top)
    assert tuple(held) == TOP_SHARES
    assert held[0.01] == pytest.approx(1 / 8.92)
    assert held[0.08] == pytest.approx(8 / 8.92)
    assert held[0.32] == pytest.approx((8 + 24 * 0.01) / 8.92)


def test_words_are_those_wanted_more_often_at_disagreements() -> None:
    # The thinking model wants 10, 11 and 12 in turn; it disagrees at 11 only, and once at 12.
    decided = {place for place in range(30) if place % 3 == 1} | {2}
    found = concentration_of("takeover", [trace([0.1] * 30, decided)], lambda n: f"w{n}", {})
    assert found is not None
    assert [(one.name, one.at_disagreements, one.elsewhere) for one in found.words] == [
        ("w11", 10, 0)
    ]  # once is too seldom
    assert FEWEST > 1
    assert found.words[0].ratio == pytest.approx((10.5 / 12) / (0.5 / 20))


def test_categories_are_compared_with_those_of_the_sentences() -> None:
    counts = {"0: rare": (1, 50), "1: due": (30, 10)}
    found = concentration_of("takeover", [trace([0.1, 0.2])], str, counts)
    assert found is not None
    assert [one.name for one in found.categories] == ["1: due", "0: rare"]
    assert found.categories[0].ratio == pytest.approx((30.5 / 32) / (10.5 / 61))


def test_without_divergence_there_is_nothing_to_tell() -> None:
    assert concentration_of("takeover", [trace([None, None])], str, {}) is None
    assert concentration_of("takeover", [trace([0.1, None])], str, {}) is None
    assert concentration_of("takeover", [trace([0.0, 0.0])], str, {}) is None
