"""Controls of the ladder against what they say they do, token by token without any cache."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from howwhen.hybrid.choice import Base, Guardrail, Rung, SelfGated, Steer, Takeover, Thinking
from howwhen.hybrid.context import Action, AnswerSoFar, DecisionContext
from howwhen.hybrid.controls import (
    BiasOnly,
    EarlyOnly,
    EntropyGate,
    HybridBudget,
    LogitDifference,
    MagnitudeOnly,
    Places,
    RandomPositions,
    RandomPositionsAnywhere,
    RandomVectors,
    ReverseTakeover,
    TakeoverBudget,
    bias_only,
    count_places,
    mean_direction,
    starts_sentence,
)
from howwhen.hybrid.decoder import decode
from howwhen.hybrid.notes import Watch
from howwhen.lm.alignment import ModelPair
from howwhen.records import HybridTrace, Problem
from howwhen.settings import HybridSettings
from howwhen.vectors import LowRank
from howwhen.zoo.tally import tally_problems
from tests.conftest import VOCABULARY, MakeModel
from tests.factories import make_forms, make_gate, make_models, make_probe, make_vectors
from tests.oracles.naive import next_logits, residual_at, steered_next_logits

PROBLEMS = tally_problems(4, seed=3)
STEPWISE = HybridSettings(max_new_tokens=14, block_tokens=1)
BLOCK = HybridSettings(max_new_tokens=14, block_tokens=5)
HOWS = {"stepwise": STEPWISE, "block": BLOCK}
GATE, VECTORS = make_gate(), make_vectors()
ENDS = frozenset(range(0, 60, 3))
"""Tokens that end a sentence, as far as these tests go."""


@dataclass
class Place:
    """What is known at one position."""

    base: Tensor
    """Logits of the tokens that may be written."""
    thinking: Tensor
    written: list[int]
    interventions: int
    steered: Callable[[], int]
    """The token that the steered base writes."""

    @property
    def tokens(self) -> tuple[int, int]:
        """The base's and the thinking model's."""
        return int(self.base.argmax()), int(self.thinking.argmax())


Decide = Callable[[Place], tuple[int, bool]]
"""The token at a position, and whether the rung intervened."""


def naive(models: ModelPair, problem: Problem, decide: Decide) -> list[tuple[int, bool]]:
    prompts = [model.prompt_ids(problem.question) for model in (models.base, models.thinking)]
    written: list[tuple[int, bool]] = []
    while len(written) < STEPWISE.max_new_tokens:
        said = [token for token, _ in written]
        ours, theirs = ([*prompt, *said] for prompt in prompts)

        def steered(ours: list[int] = ours, theirs: list[int] = theirs) -> int:
            state = residual_at(models.thinking, theirs, GATE.layer)[-1:]
            category = int(GATE.categorise(state)[0])
            logits = steered_next_logits(models.base, ours, VECTORS, category)
            return int(models.alignment.allowed(logits[None])[0].argmax())

        base, thinking = (
            models.alignment.allowed(next_logits(model, text)[None])[0]
            for model, text in ((models.base, ours), (models.thinking, theirs))
        )
        place = Place(base, thinking, said, sum(one for _, one in written), steered)
        written.append(decide(place))
        if written[-1][0] in models.end_ids:
            break
    return written


def differ(place: Place, models: ModelPair) -> bool:
    ours, theirs = place.tokens
    return ours != theirs and not {ours, theirs} <= models.end_ids


def expect(models: ModelPair, rung: Rung, decide: Decide, how: HybridSettings) -> None:
    traces = decode(models, PROBLEMS, rung, how)
    for problem, trace in zip(PROBLEMS, traces, strict=True):
        found = [(token.id, token.is_decision) for token in trace.tokens]
        assert found == naive(models, problem, decide)
    assert sum(trace.decisions for trace in traces) > 0


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
def test_early_only_steers_at_the_first_disagreements(
    make_model: MakeModel, how: HybridSettings
) -> None:
    models = make_models(make_model)

    def decide(place: Place) -> tuple[int, bool]:
        if differ(place, models) and place.interventions < 3:
            return place.steered(), True
        return place.tokens[0], False

    expect(models, EarlyOnly(GATE, VECTORS, limit=3), decide, how)


def test_limits_are_those_of_each_problem(make_model: MakeModel) -> None:
    models = make_models(make_model)
    limits = {problem.id: number for number, problem in enumerate(PROBLEMS)}
    for rung in (EarlyOnly(GATE, VECTORS, limits=limits), ReverseTakeover(limits)):
        traces = decode(models, PROBLEMS, rung, BLOCK)
        assert [trace.decisions for trace in traces] == [0, 1, 2, 3]


def test_early_only_without_a_limit_is_the_hybrid(make_model: MakeModel) -> None:
    models = make_models(make_model)
    early = decode(models, PROBLEMS, EarlyOnly(GATE, VECTORS, limit=99), BLOCK)
    hybrid = decode(models, PROBLEMS, Steer(GATE, VECTORS), BLOCK)
    assert [trace.ids for trace in early] == [trace.ids for trace in hybrid]


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
def test_reverse_takeover_puts_the_bases_tokens_into_the_thinking_models_answer(
    make_model: MakeModel, how: HybridSettings
) -> None:
    models = make_models(make_model)

    def decide(place: Place) -> tuple[int, bool]:
        is_decision = differ(place, models) and place.interventions < 2
        return place.tokens[0 if is_decision else 1], is_decision

    expect(models, ReverseTakeover(limit=2), decide, how)


def test_reverse_takeover_lies_between_the_thinking_model_and_the_base(
    make_model: MakeModel,
) -> None:
    models = make_models(make_model)
    for limit, rung in ((0, Thinking()), (99, Base())):
        reverse = decode(models, PROBLEMS, ReverseTakeover(limit=limit), BLOCK)
        end = decode(models, PROBLEMS, rung, BLOCK)
        assert [trace.text for trace in reverse] == [trace.text for trace in end]


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
def test_the_logit_difference_is_added_at_disagreements(
    make_model: MakeModel, how: HybridSettings
) -> None:
    models = make_models(make_model)

    def decide(place: Place) -> tuple[int, bool]:
        if not differ(place, models):
            return place.tokens[0], False
        finite = place.base.nan_to_num(neginf=-1e9), place.thinking.nan_to_num(neginf=-1e9)
        return int((finite[0] + 0.6 * (finite[1] - finite[0])).argmax()), True

    expect(models, LogitDifference(0.6), decide, how)


def test_the_whole_logit_difference_is_takeover(make_model: MakeModel) -> None:
    models = make_models(make_model)
    whole, little = (decode(models, PROBLEMS, LogitDifference(a), BLOCK) for a in (1.0, 1e-6))
    takeover, base = (decode(models, PROBLEMS, rung, BLOCK) for rung in (Takeover(), Base()))
    assert [trace.ids for trace in whole] == [trace.ids for trace in takeover]
    assert [trace.ids for trace in little] == [trace.ids for trace in base]


def test_the_logit_difference_stays_within_both_nuclei_or_with_the_base(
    make_model: MakeModel,
) -> None:
    models = make_models(make_model)
    how = BLOCK.model_copy(update={"temperature": 1.0, "top_p": 0.05})
    traces = decode(models, PROBLEMS, LogitDifference(0.5), how)
    # Nuclei of one token each have nothing in common where the models disagree.
    base = decode(models, PROBLEMS, Base(), how)
    assert [trace.ids for trace in traces] == [trace.ids for trace in base]
    assert sum(trace.decisions for trace in traces) > 0


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
def test_the_entropy_gate_steers_where_the_base_is_unsure(
    make_model: MakeModel, how: HybridSettings
) -> None:
    models, threshold = make_models(make_model), 2.0

    def decide(place: Place) -> tuple[int, bool]:
        shares = place.base.softmax(0)
        entropy = -float((shares * shares.clamp(min=1e-30).log()).sum())
        assert abs(entropy - threshold) > 1e-3
        return (place.steered(), True) if entropy >= threshold else (place.tokens[0], False)

    expect(models, EntropyGate(GATE, VECTORS, threshold=threshold), decide, how)


def test_entropy_is_that_of_the_distribution_and_not_of_what_was_drawn(
    make_model: MakeModel,
) -> None:
    models, how = make_models(make_model), BLOCK.model_copy(update={"temperature": 1.0})
    seen: list[Tensor] = []

    @dataclass(frozen=True)
    class Watched(EntropyGate):
        def choose_where(self, context: DecisionContext) -> Tensor:
            seen.append(context.base.entropy)
            return super().choose_where(context)

    decode(models, PROBLEMS[:1], Watched(GATE, VECTORS), how)
    logits = next_logits(models.base, models.base.prompt_ids(PROBLEMS[0].question))
    allowed = models.alignment.allowed(logits[None])[0]
    shares = allowed[allowed.isfinite()].softmax(0)
    assert float(seen[0][0]) == pytest.approx(-float((shares * shares.log()).sum()), abs=1e-4)


def places_of(trace: HybridTrace, ends: frozenset[int]) -> tuple[set[int], set[int]]:
    """Which starts of sentences, and which other tokens, were steered."""
    found: tuple[set[int], set[int]] = (set(), set())
    counts = [0, 0]
    last: int | None = None
    for token in trace.tokens:
        kind = 0 if ends and (last is None or last in ends) else 1
        if token.is_decision:
            found[kind].add(counts[kind])
        counts[kind] += 1
        last = token.id
    return found


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
def test_random_positions_are_those_that_were_drawn(
    make_model: MakeModel, how: HybridSettings
) -> None:
    models = make_models(make_model)
    drawn = Places(frozenset({0, 2, 50}), frozenset({1, 4, 5, 60}))
    places = {problem.id: drawn for problem in PROBLEMS[:3]}
    rung = RandomPositions(GATE, VECTORS, places=places, sentence_ends=ENDS, rate=0.0)
    *known, other = decode(models, PROBLEMS, rung, how)
    for trace in known:
        starts, others = count_places(trace.ids, ENDS)
        assert min(starts, others) > 0
        assert starts + others == len(trace.tokens)
        expected = {n for n in drawn.starts if n < starts}, {n for n in drawn.others if n < others}
        assert places_of(trace, ENDS) == expected
    assert other.decisions == 0  # at the rate of 0


def test_places_of_one_kind_are_positions(make_model: MakeModel) -> None:
    models = make_models(make_model)
    places = {problem.id: Places(frozenset(), frozenset({0, 3, 4})) for problem in PROBLEMS}
    rung = RandomPositionsAnywhere(GATE, VECTORS, places=places)
    for trace in decode(models, PROBLEMS, rung, BLOCK):
        steered = [n for n, token in enumerate(trace.tokens) if token.is_decision]
        assert steered == [n for n in (0, 3, 4) if n < len(trace.tokens)]
        assert trace.rung == "random-positions-anywhere"


def test_a_sentence_starts_an_answer_and_follows_an_end() -> None:
    assert starts_sentence(None, ENDS)
    assert starts_sentence(3, ENDS)
    assert not starts_sentence(4, ENDS)
    assert not starts_sentence(None, frozenset())
    assert count_places([5, 3, 3, 7, 6], ENDS) == (3, 2)
    assert count_places([5, 3], frozenset()) == (0, 2)
    assert count_places([], ENDS) == (0, 0)


@pytest.mark.parametrize("form", make_forms())
def test_magnitude_only_keeps_norms_and_one_direction(form: str) -> None:
    vectors = make_forms()[form]
    changed = mean_direction(vectors)
    torch.testing.assert_close(changed.vectors.norm(dim=1), vectors.vectors.norm(dim=1))
    torch.testing.assert_close(changed.similarity(), torch.ones(4, 4))
    mean = torch.nn.functional.normalize(vectors.vectors, dim=1).mean(0)
    assert float(changed.vectors[0] @ mean) > 0
    is_map = isinstance(vectors.modulation, LowRank)
    assert changed.modulation is (None if is_map else vectors.modulation)
    states, categories = torch.randn(5, 32), torch.tensor([0, 1, 2, 3, 0])
    if not is_map:
        own, other = (one.coefficient(states, categories) for one in (vectors, changed))
        assert torch.equal(own, other)


def test_of_one_category_the_mean_direction_is_its_own(make_model: MakeModel) -> None:
    models, vectors = make_models(make_model), make_vectors(1)
    torch.testing.assert_close(mean_direction(vectors).vectors, vectors.vectors)
    gate = make_gate(1)
    changed = MagnitudeOnly(gate, mean_direction(vectors))
    ours, hybrid = (decode(models, PROBLEMS, r, BLOCK) for r in (changed, Steer(gate, vectors)))
    assert [trace.ids for trace in ours] == [trace.ids for trace in hybrid]


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
def test_a_probe_reads_along_and_changes_nothing(
    make_model: MakeModel, how: HybridSettings
) -> None:
    models, probe = make_models(make_model), make_probe()
    for rung in (Steer(GATE, VECTORS), Takeover(), Guardrail(3)):
        alone = decode(models, PROBLEMS, rung, how)
        traces = decode(models, PROBLEMS, rung, how, watch=Watch(probe))
        assert [trace.ids for trace in traces] == [trace.ids for trace in alone]
        assert all(token.log_odds is None for trace in alone for token in trace.tokens)
        for problem, trace in zip(PROBLEMS, traces, strict=True):
            prompt = models.base.prompt_ids(problem.question)
            text = [*prompt, *trace.ids]
            states = torch.cat([residual_at(models.base, text, n) for n in probe.layers], dim=1)
            read = probe.read(states[len(prompt) - 1 : -1])
            odds = [token.log_odds for token in trace.tokens]
            assert odds == pytest.approx(read[:, 0].tolist(), abs=2e-3)
            for token, row in zip(trace.tokens, read.tolist(), strict=True):
                if token.category is None:
                    assert token.category_scores == ()
                else:
                    assert token.category_scores == pytest.approx(row[1:], abs=2e-3)


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
def test_the_guardrail_notes_the_bits_of_its_choice(
    make_model: MakeModel, how: HybridSettings
) -> None:
    models = make_models(make_model)
    traces = decode(models, PROBLEMS, Guardrail(3), how)
    for problem, trace in zip(PROBLEMS, traces, strict=True):
        prompt = models.base.prompt_ids(problem.question)
        for place, token in enumerate(trace.tokens):
            if not token.is_decision:
                assert token.choice_bits is None
                continue
            logits = next_logits(models.base, [*prompt, *trace.ids[:place]])
            top = models.alignment.allowed(logits[None])[0].topk(3)
            shares = top.values.log_softmax(0)
            expected = -float(shares[top.indices.tolist().index(token.id)]) / math.log(2)
            assert token.choice_bits == pytest.approx(expected, abs=1e-3)
    assert all(
        token.choice_bits is None
        for trace in decode(models, PROBLEMS, Takeover(), how)
        for token in trace.tokens
    )


def test_rungs_count_what_was_fitted_for_them() -> None:
    network, gate, probe = VECTORS, GATE, make_probe()
    numbers = 4 * 32 + 8 * 32 + 8 + 4 * 8 + 4
    assert network.numbers == numbers
    of_gate = 32 + 4 * 32 + 4
    assert Steer(gate, network).fitted == numbers + of_gate
    assert Base().fitted == Takeover().fitted == Guardrail(5).fitted == 0
    network_alone = numbers - 4 * 32
    assert RandomVectors(gate, network).fitted == network_alone + 4 + of_gate
    assert MagnitudeOnly(gate, network).fitted == network_alone + 4 + 32 + of_gate
    biased = replace(network, bias=torch.zeros(32))
    assert BiasOnly(gate, bias_only(biased)).fitted == 32
    of_probe = sum(p.numel() for p in (probe.mean, probe.scale, probe.hidden, probe.hidden_bias))
    gated = SelfGated(probe, network)
    assert gated.fitted == numbers + of_probe + probe.outputs.numel() + probe.outputs_bias.numel()
    static = replace(network, modulation=None)
    assert Steer(gate, static).fitted == 4 * 32 + of_gate


def test_what_was_written_is_known_to_a_rung(make_model: MakeModel) -> None:
    models = make_models(make_model)
    seen: list[AnswerSoFar] = []

    @dataclass(frozen=True)
    class Watched(Base):
        def act(self, context: DecisionContext) -> Action:
            seen.extend(context.answers)
            return super().act(context)

    trace = decode(models, PROBLEMS[:1], Watched(), STEPWISE)[0]
    assert [list(one.ids) for one in seen] == [list(trace.ids[:n]) for n in range(len(trace.ids))]
    assert {one.problem_id for one in seen} == {PROBLEMS[0].id}


def divergence(place: Place) -> float:
    """Of the two models, in bits."""
    ours, theirs = (logits[logits.isfinite()].softmax(0) for logits in (place.base, place.thinking))
    middle = (ours + theirs) / 2

    def nats(shares: Tensor) -> float:
        return -float((shares * shares.clamp(min=1e-30).log()).sum())

    return (nats(middle) - (nats(ours) + nats(theirs)) / 2) / math.log(2)


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
def test_budgets_are_spent_where_the_models_differ_most(
    make_model: MakeModel, how: HybridSettings
) -> None:
    models, threshold = make_models(make_model), 0.27
    at: list[bool] = []

    def matters(place: Place) -> bool:
        at.append(divergence(place) >= threshold)
        assert abs(divergence(place) - threshold) > 1e-4
        return differ(place, models) and at[-1]

    def take(place: Place) -> tuple[int, bool]:
        is_decision = matters(place)
        return place.tokens[1 if is_decision else 0], is_decision

    def steer(place: Place) -> tuple[int, bool]:
        return (place.steered(), True) if matters(place) else (place.tokens[0], False)

    expect(models, TakeoverBudget(threshold), take, how)
    expect(models, HybridBudget(GATE, VECTORS, threshold=threshold), steer, how)
    assert 0 < sum(at) < len(at)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_divergence_is_noted_where_it_is_asked_for(
    make_model: MakeModel, temperature: float
) -> None:
    models, how = make_models(make_model), BLOCK.model_copy(update={"temperature": temperature})
    traces = decode(models, PROBLEMS, Takeover(), how, watch=Watch(divergence=True))
    alone = decode(models, PROBLEMS, Takeover(), how)
    assert [trace.ids for trace in traces] == [trace.ids for trace in alone]
    assert {token.divergence for trace in alone for token in trace.tokens} == {None}
    for problem, trace in zip(PROBLEMS, traces, strict=True):
        prompts = [model.prompt_ids(problem.question) for model in (models.base, models.thinking)]
        for place, token in enumerate(trace.tokens):
            said = list(trace.ids[:place])
            base, thinking = (
                models.alignment.allowed(next_logits(model, [*prompt, *said])[None])[0]
                for model, prompt in zip((models.base, models.thinking), prompts, strict=True)
            )
            expected = divergence(Place(base, thinking, said, 0, lambda: 0))
            assert token.divergence == pytest.approx(expected, abs=2e-4)
    without = decode(models, PROBLEMS, Base(), how, watch=Watch(divergence=True))
    assert {token.divergence for trace in without for token in trace.tokens} == {None}


def test_reverse_takeover_writes_no_token_that_the_thinking_model_cannot_read(
    make_model: MakeModel,
) -> None:
    models = make_models(make_model)
    models.base.tokenizer.add_tokens([f"<own-{number}>" for number in range(8)])
    models.base.model.resize_token_embeddings(VOCABULARY + 8)
    output = models.base.model.get_output_embeddings().weight
    with torch.no_grad():
        output[VOCABULARY:] = 1.5 * output[[50, 56, 63, 116] * 2]  # what it would write anyway
    base = decode(models, PROBLEMS, Base(), BLOCK)
    traces = decode(models, PROBLEMS, ReverseTakeover(limit=99), BLOCK)
    wanted = {token.base_id for trace in traces for token in trace.tokens}
    assert max(wanted) >= VOCABULARY
    assert max(max(trace.ids) for trace in traces) < VOCABULARY
    assert max(max(trace.ids) for trace in base) < VOCABULARY  # it may not write them either


def test_noted_numbers_are_never_above_what_a_threshold_is_held_against(
    make_model: MakeModel,
) -> None:
    models, probe = make_models(make_model), make_probe()
    watch = Watch(probe, divergence=True)
    traces = decode(models, PROBLEMS, Takeover(), BLOCK, watch=watch)
    for problem, trace in zip(PROBLEMS, traces, strict=True):
        first = trace.tokens[0]
        assert first.divergence is not None
        again = TakeoverBudget(first.divergence)
        assert decode(models, [problem], again, BLOCK)[0].tokens[0].is_decision == first.is_decision
        prompt = models.base.prompt_ids(problem.question)
        states = torch.cat([residual_at(models.base, prompt, n)[-1:] for n in probe.layers], dim=1)
        assert first.log_odds is not None
        odds = float(probe.read(states)[0, 0])
        assert odds - 2e-3 < first.log_odds <= odds + 1e-5
