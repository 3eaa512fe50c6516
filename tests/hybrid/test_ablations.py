"""The paper's ablations that the ladder has in another form."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from howwhen.hybrid.ablations import (
    BaseGuardrail,
    LeastSimilarCategory,
    RandomCategoryNotTop3,
    RandomGuardrail,
    RandomPositionsAtRate,
    draw_outside,
    least_similar,
    with_unit_norm,
)
from howwhen.hybrid.choice import Steer
from howwhen.hybrid.decoder import decode
from howwhen.hybrid.strength import sweep
from howwhen.measure.bits import bits_of
from howwhen.records import HybridTrace
from howwhen.settings import HybridSettings
from howwhen.vectors import VectorSet
from howwhen.zoo.tally import tally_problems
from tests.conftest import MakeModel
from tests.factories import make_gate, make_models, make_vectors

SETTINGS = HybridSettings(max_new_tokens=40)
PROBLEMS = tally_problems(9, seed=8)
SWEEP = sweep([0.3, 1.0, 2.0])


def test_the_least_similar_category_has_the_lowest_cosine_among_those_with_a_vector() -> None:
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.2], [-1.0, 0.1], [0.0, 0.0], [0.1, 1.0]])
    assert least_similar(VectorSet("m", 0, rows)) == (2, 2, 0, 0, 2)


def test_draws_outside_the_three_highest_are_even() -> None:
    scores = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0, 0.0]]).repeat(6000, 1)
    uniforms = torch.linspace(0, 1, 6001)[:-1]
    drawn = Counter(draw_outside(scores, torch.arange(6), uniforms).tolist())
    assert drawn == {3: 2000, 4: 2000, 5: 2000}
    # A category without a vector is neither drawn nor among those left out.
    some = Counter(draw_outside(scores, torch.tensor([0, 1, 3, 4, 5]), uniforms).tolist())
    assert some == {4: 3000, 5: 3000}
    few = Counter(draw_outside(scores, torch.tensor([0, 2]), uniforms).tolist())
    assert few == {2: 6000}
    assert set(draw_outside(scores, torch.tensor([4]), uniforms).tolist()) == {4}


def test_unit_norms_leave_the_bias_as_it_is() -> None:
    vectors = replace(make_vectors(), bias=torch.ones(32))
    found = with_unit_norm(vectors)
    assert found.vectors.norm(dim=1).tolist() == pytest.approx([1.0] * 4)
    assert found.bias is vectors.bias


def decided(traces: list[HybridTrace]) -> list[tuple[str, int, int]]:
    """Problem, position and category of every steered token."""
    return [
        (trace.problem_id, position, token.category)
        for trace in traces
        for position, token in enumerate(trace.tokens)
        if token.category is not None
    ]


def test_who_picks_among_the_candidates(make_model: MakeModel) -> None:
    models, parts = make_models(make_model), (make_gate(), make_vectors())
    rungs: list[Steer] = [
        RandomGuardrail(*parts, replace(SWEEP, picked_by="random")),
        BaseGuardrail(*parts, replace(SWEEP, picked_by="base")),
    ]
    for rung in rungs:
        traces = decode(models, PROBLEMS, rung, SETTINGS, seed=3)
        steered = [token for trace in traces for token in trace.tokens if token.candidates]
        assert len(steered) > 20
        picked = [[one.id for one in token.candidates].index(token.id) for token in steered]
        best = [
            max(range(3), key=lambda number: token.candidates[number].thinking_log_prob or -99.0)
            for token in steered
        ]
        assert picked != best
        told = bits_of(rung.name, traces)
        assert told is None or all(bits.what == 0 for bits in told)
        if rung.name == "random-guardrail":
            strengths = Counter(
                min(one.strength for one in token.candidates if one.id == token.id)
                for token in steered
                if len({one.id for one in token.candidates}) == 3
            )
            assert len(strengths) == 3
            other = decode(models, PROBLEMS, rung, SETTINGS, seed=4)
            assert [trace.ids for trace in other] != [trace.ids for trace in traces]


def test_other_categories_are_other_categories(make_model: MakeModel) -> None:
    models, gate, vectors = make_models(make_model), make_gate(6), make_vectors(6)
    least = least_similar(vectors)
    one = PROBLEMS[:4]
    right = decode(models, one, Steer(gate, vectors), SETTINGS)
    wrong = decode(models, one, LeastSimilarCategory(gate, vectors, instead=least), SETTINGS)
    rest = decode(models, one, RandomCategoryNotTop3(gate, vectors), SETTINGS)
    first = [next(token for token in trace.tokens if token.is_decision) for trace in right]
    for named, swapped, drawn in zip(first, wrong, rest, strict=True):
        first_of = [
            next(token for token in trace.tokens if token.is_decision) for trace in (swapped, drawn)
        ]
        assert named.category is not None
        assert first_of[0].category == least[named.category]
        assert first_of[1].category != named.category


def test_positions_at_a_rate_are_a_share_of_all_tokens(make_model: MakeModel) -> None:
    rung = RandomPositionsAtRate(make_gate(), make_vectors(), rate=0.25)
    traces = decode(make_models(make_model), tally_problems(40, seed=1), rung, SETTINGS)
    tokens = sum(len(trace.tokens) for trace in traces)
    assert sum(trace.decisions for trace in traces) / tokens == pytest.approx(0.25, abs=0.04)
