"""How many tokens are drafted, given what passes cost."""

import math

import pytest

from howwhen.hybrid.block_size import BlockSizer, Rate
from howwhen.hybrid.pass_costs import STEPWISE, PassCosts

CHEAP = PassCosts((1.0, 1.1, 1.2, 1.3, 1.5), (1.0, 1.1, 1.2, 1.3, 1.5))
"""As on a machine that waits for the weights."""


def after(decisions: list[int], costs: PassCosts = CHEAP) -> BlockSizer:
    """A sizer that has seen blocks of five with decisions at these places."""
    sizer = BlockSizer(16, costs)
    for _ in range(20):
        kept = min([*decisions, 4]) + 1
        sizer.learn([[n in decisions for n in range(5)]], [kept])
    return sizer


def test_blocks_shorten_with_decisions_and_lengthen_without() -> None:
    calm, fresh, busy = (
        sizer.block()[0] for sizer in (after([]), BlockSizer(16, CHEAP), after([0]))
    )
    assert busy == 1 < fresh < calm == 16


def test_a_block_is_worth_what_it_promises() -> None:
    length, seconds = after([]).block()
    kept = length
    assert seconds == pytest.approx((length * 1.0 + CHEAP.thinking[4]) / kept, rel=0.15)
    assert seconds < BlockSizer(16, CHEAP).step == 2.0


def test_nothing_is_drafted_where_longer_passes_cost_as_much_as_single_ones() -> None:
    sizer = after([], STEPWISE)
    assert sizer.block() == (1, 2.0)
    assert sizer.most_guesses == 0
    assert sizer.guesses([[1.0] * 15])[0] == 0


def test_guesses_are_read_as_far_as_they_are_likely() -> None:
    sizer = BlockSizer(16, CHEAP)
    assert sizer.most_guesses == 15
    sure, unsure, wrong = (
        sizer.guesses([[rate ** (n + 1) for n in range(15)]])[0] for rate in (0.99, 0.7, 0.02)
    )
    assert sure == 15 > unsure > wrong == 0
    assert sizer.guesses([[0.99] * 15, []])[1] > sizer.guesses([[0.99] * 15])[1]
    few = sizer.guesses([[0.99, 0.98], [0.99]])
    assert few[0] == 2


def test_costs_lie_between_those_that_were_timed() -> None:
    assert [CHEAP.of_base(n) for n in (1, 2, 3, 8, 12, 16)] == pytest.approx(
        [1.0, 1.1, 1.15, 1.3, 1.4, 1.5]
    )
    assert CHEAP.of_base(32) == pytest.approx(1.9)
    assert CHEAP.of_both(4) == pytest.approx(2.4)


def test_where_the_base_may_not_draft_it_does_not() -> None:
    sizer = BlockSizer(16, CHEAP, base_drafts=False)
    assert sizer.block() == (1, 2.0)


def test_older_events_weigh_less() -> None:
    rate = Rate(0.5, tokens=4.0)
    for _ in range(400):
        rate.learn([True])
    assert rate.rate > 0.99
    for _ in range(40):
        rate.learn([False])
    assert rate.rate < 0.5


def test_stepwise_stays_stepwise() -> None:
    sizer = BlockSizer(1, CHEAP)
    assert sizer.block() == (1, 2.0)
    assert sizer.most_guesses == 0
    assert sizer.guesses([[0.9]])[0] == 0


def test_a_draft_model_writes_as_much_as_is_accepted_and_pays() -> None:
    costs = PassCosts(CHEAP.base, CHEAP.thinking, draft=tuple(c / 10 for c in CHEAP.base))
    sizer = BlockSizer(16, costs)
    assert BlockSizer(16, CHEAP).drafted(15) == (0, math.inf)
    before = sizer.drafted(15)[0]
    sizer.accepted.learn([True] * 200)
    sure, seconds = sizer.drafted(15)
    assert sizer.drafted(4)[0] == 4
    kept = sum(sizer.accepted.rate**n for n in range(sure + 1))
    drafting = costs.of_draft(2) + (sure - 1) * costs.of_draft(1)
    assert seconds == pytest.approx((drafting + costs.of_both(sure + 1)) / kept)
    assert 1 < before < sure == 15
    sizer.accepted.learn([False] * 200)
    assert sizer.drafted(15) == (0, math.inf)


def test_two_models_side_by_side_cost_what_both_take_together() -> None:
    beside = PassCosts(CHEAP.base, CHEAP.thinking, both=(1.1, 1.2, 1.3, 1.4, 1.6))
    assert BlockSizer(16, beside).step == 1.1
    assert beside.of_both(8) == 1.4
    calm = BlockSizer(16, beside)
    assert calm.block()[0] == 1  # single steps side by side beat blocks in turn
    assert BlockSizer(16, CHEAP).block()[0] > 1
