"""Code lengths on planted answers, where it is known what is told."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from howwhen.measure.bits import (
    READ_ALONG,
    TELLS,
    UNKNOWN_TOKEN_BITS,
    bits_of,
    code_lengths,
)
from howwhen.records import (
    BUDGETS,
    LADDER,
    PAPER_RUNGS,
    WRITTEN_BY_THINKING,
    Bits,
    Candidate,
    Finish,
    HybridToken,
    HybridTrace,
    RungName,
)

ANSWERS, TOKENS, CATEGORIES = 200, 40, 4
MakeToken = Callable[[np.random.Generator], HybridToken]


def token(
    *,
    is_decision: bool = False,
    category: int | None = None,
    log_odds: float | None = 0.0,
    scores: tuple[float, ...] = (),
    log_prob: float | None = -1.0,
    choice_bits: float | None = None,
    candidates: tuple[Candidate, ...] = (),
) -> HybridToken:
    return HybridToken(
        5, 5, 6, category, None, 0, is_decision, log_prob, None, candidates,
        base_margin=1.0, choice_bits=choice_bits, log_odds=log_odds, category_scores=scores,
    )  # fmt: skip


def answers(make: MakeToken, rung: RungName = "hybrid", count: int = ANSWERS) -> list[HybridTrace]:
    rng = np.random.default_rng(5)
    return [
        HybridTrace(f"p{n}", rung, 0, "", Finish.STOP, tuple(make(rng) for _ in range(TOKENS)))
        for n in range(count)
    ]


def mean_bits(rung: RungName, traces: list[HybridTrace]) -> Bits:
    found = bits_of(rung, traces)
    assert found is not None
    return Bits(*(float(part) for part in np.mean(found, axis=0)))


def test_moments_that_the_base_knows_cost_almost_nothing() -> None:
    def known(rng: np.random.Generator) -> HybridToken:
        is_decision = bool(rng.random() < 0.1)
        return token(is_decision=is_decision, log_odds=6.0 if is_decision else -6.0)

    bits = mean_bits("shared-vector", answers(known, "shared-vector"))
    assert 0 < bits.when < 0.3  # of 40 tokens
    assert (bits.which, bits.what) == (0, 0)


def test_a_coin_at_every_token_costs_a_bit() -> None:
    def coin(rng: np.random.Generator) -> HybridToken:
        return token(is_decision=bool(rng.random() < 0.5), log_odds=float(rng.normal()))

    bits = mean_bits("shared-vector", answers(coin, "shared-vector"))
    assert bits.when / TOKENS == pytest.approx(1, abs=0.01)


def test_rare_moments_that_nobody_foresees_cost_their_entropy() -> None:
    def rare(rng: np.random.Generator) -> HybridToken:
        return token(is_decision=bool(rng.random() < 0.05), log_odds=float(rng.normal()))

    entropy = -0.05 * math.log2(0.05) - 0.95 * math.log2(0.95)
    bits = mean_bits("shared-vector", answers(rare, "shared-vector"))
    assert bits.when / TOKENS == pytest.approx(entropy, rel=0.05)


def category_tokens(foreseen: bool) -> MakeToken:
    def make(rng: np.random.Generator) -> HybridToken:
        category = int(rng.integers(CATEGORIES))
        scores = rng.normal(size=CATEGORIES)
        if foreseen:
            scores[category] += 20
        return token(is_decision=True, category=category, scores=tuple(map(float, scores)))

    return make


def test_equally_likely_categories_cost_the_logarithm_of_their_number() -> None:
    bits = mean_bits("hybrid", answers(category_tokens(foreseen=False)))
    assert bits.which / TOKENS == pytest.approx(math.log2(CATEGORIES), abs=0.02)
    assert bits.when / TOKENS < 0.01  # it always steers
    assert bits.what == 0


def test_categories_that_the_base_foresees_cost_almost_nothing() -> None:
    bits = mean_bits("hybrid", answers(category_tokens(foreseen=True)))
    assert bits.which / TOKENS < 0.01


def test_a_coder_does_not_learn_from_the_answers_that_it_codes() -> None:
    # The same two features in all answers to a problem; across problems they say nothing.
    rng = np.random.default_rng(3)
    folds = np.repeat(np.arange(5), 100)
    told = rng.integers(2, size=500)
    memorised = np.eye(5)[folds] * 10
    lengths = code_lengths(memorised, told, folds, 2)
    assert lengths.mean() > 0.99
    always_one_fold = np.where(folds == 2, 1, 0)
    lengths = code_lengths(memorised, always_one_fold, folds, 2)
    assert lengths.sum() == 500  # it had never seen a one, so that knowing nothing is better


def test_takeover_pays_for_tokens_and_the_guardrail_for_its_choice() -> None:
    def taken(rng: np.random.Generator) -> HybridToken:
        return token(is_decision=True, log_prob=-3 * math.log(2))

    def chosen(rng: np.random.Generator) -> HybridToken:
        return token(is_decision=True, log_prob=-3 * math.log(2), choice_bits=1.5)

    bits = mean_bits("takeover", answers(taken, "takeover"))
    assert bits == pytest.approx((0, 0, 3 * TOKENS))  # all tokens are told, so no moments need be
    guarded = mean_bits("guardrail-only", answers(chosen, "guardrail-only"))
    assert guarded.what == pytest.approx(1.5 * TOKENS)
    assert guarded.when < 0.4


def test_a_sweep_pays_for_the_choice_among_different_tokens() -> None:
    tried = tuple(Candidate(0.1 * n, 1, n % 4, -1.0) for n in range(10))

    def swept(rng: np.random.Generator) -> HybridToken:
        return token(is_decision=True, category=0, scores=(0.0, 0.0), candidates=tried)

    assert mean_bits("hybrid", answers(swept)).what == pytest.approx(2 * TOKENS)
    bits = mean_bits("random-category", answers(swept, "random-category"))
    assert bits.what == pytest.approx(2 * TOKENS)


def test_the_thinking_model_tells_every_token() -> None:
    def written(rng: np.random.Generator) -> HybridToken:
        return token(log_prob=-math.log(2))

    def unknown(rng: np.random.Generator) -> HybridToken:
        return token(log_prob=None)

    other = answers(lambda rng: replace_id(written(rng)), "thinking")
    assert mean_bits("thinking", other).what == pytest.approx(TOKENS)
    bits = mean_bits("thinking", answers(unknown, "thinking"))
    assert bits.what == 0  # its token is the base's own
    other = answers(lambda rng: replace_id(unknown(rng)), "thinking")
    assert mean_bits("thinking", other).what == UNKNOWN_TOKEN_BITS * TOKENS


def replace_id(one: HybridToken) -> HybridToken:
    return one._replace(id=one.base_id + 1)


def test_the_shorter_of_the_two_codes_of_tokens_counts() -> None:
    # The base's own token is half likely, everywhere; a quarter of a bit at moments it foresees.
    def rare(rng: np.random.Generator) -> HybridToken:
        is_other = bool(rng.random() < 0.1)
        odds, log_prob = (6.0, -4 * math.log(2)) if is_other else (-6.0, -math.log(2))
        one = token(is_decision=is_other, log_odds=odds, log_prob=log_prob)
        return replace_id(one) if is_other else one

    taken = mean_bits("takeover", answers(rare, "takeover"))
    thought = mean_bits("thinking", answers(rare, "thinking"))
    assert taken == thought  # the same text, told in the same way
    assert taken.total == pytest.approx(0.1 * TOKENS * 4, rel=0.1)
    assert mean_bits("base", answers(rare, "base")).total == 0


def test_few_answers_cost_no_more_than_knowing_nothing() -> None:
    rng = np.random.default_rng(1)
    folds, told = np.arange(20) % 5, rng.integers(15, size=20)
    lengths = code_lengths(rng.normal(size=(20, 15)) * 5, told, folds, 15)
    assert lengths.sum() <= 20 * math.log2(15) + 1e-9


def test_the_base_and_the_self_gate_are_told_nothing() -> None:
    def alone(rng: np.random.Generator) -> HybridToken:
        return token(is_decision=True, category=1, log_odds=None)

    for rung in ("base", "base-step-by-step", "self-gate"):
        assert bits_of(rung, answers(alone, rung)) == [Bits(0, 0, 0)] * ANSWERS


def test_nothing_is_reckoned_where_no_probe_read_along_or_a_single_problem_was_answered() -> None:
    def blind(rng: np.random.Generator) -> HybridToken:
        return token(log_odds=None)

    assert bits_of("hybrid", answers(blind)) is None
    assert bits_of("hybrid", answers(category_tokens(foreseen=False), count=1)) is None
    assert bits_of("hybrid", answers(category_tokens(foreseen=False), count=2)) is not None


def test_answers_without_any_intervention_cost_nothing_but_the_chance_of_one() -> None:
    bits = mean_bits("hybrid", answers(lambda _: token()))
    assert bits.when < 0.1
    assert bits.which == 0


def test_it_is_known_of_every_rung_what_is_told() -> None:
    alone = {"base", "base-step-by-step", "self-gate"}
    assert {*TELLS} == {*LADDER, *PAPER_RUNGS, *BUDGETS}
    assert {*WRITTEN_BY_THINKING} < {*TELLS}
    assert {rung for rung, parts in TELLS.items() if not parts} == {*alone, "self-gate-budget"}
    assert bits_of("one-category", answers(category_tokens(foreseen=True))) is None
    assert {"hybrid", "random-positions"} < READ_ALONG
    assert READ_ALONG & alone == {"self-gate"}  # where it is asked anyway
