from dataclasses import replace

import pytest
import torch

from howwhen.errors import InputError, LengthError, ModelError, SettingsError, SteeringError
from howwhen.hybrid import streams
from howwhen.hybrid.choice import (
    Base,
    BaseStepByStep,
    Guardrail,
    Rung,
    SelfGated,
    Steer,
    Takeover,
    Thinking,
)
from howwhen.hybrid.context import AnswerSoFar, DecisionContext, ModelView
from howwhen.hybrid.controls import (
    BiasOnly,
    RandomCategory,
    RandomPositions,
    SharedVector,
    bias_only,
    randomise,
)
from howwhen.hybrid.decoder import LiveBatch, decode, stream
from howwhen.hybrid.ledger import MAX_MARGIN, Opinion, log_probs_of, numbers_of
from howwhen.hybrid.prompt_cache import PromptCache
from howwhen.hybrid.sampling import Sampler
from howwhen.hybrid.streams import open_streams
from howwhen.hybrid.strength import LEARNED, Strength, fixed, sweep
from howwhen.lm.alignment import ModelPair
from howwhen.lm.head import multiply_in_float32
from howwhen.lm.noise import gumbel_noise
from howwhen.pipeline.hybrid import _idle_decisions
from howwhen.pipeline.rungs import chosen_strength
from howwhen.records import Finish, HybridToken, HybridTrace, Problem
from howwhen.settings import HybridSettings, make_settings
from howwhen.vectors import VectorSet
from howwhen.zoo.tally import tally_problems
from tests.conftest import ARCHITECTURES, WINDOW, MakeModel
from tests.factories import (
    make_forms,
    make_gate,
    make_models,
    make_probe,
    make_vectors,
    random,
)
from tests.hybrid.every_rung import EVERY_RUNG, expect_equal
from tests.oracles.naive import NaiveHybrid, next_logits, residual_at, steered_next_logits

STEPWISE = HybridSettings(max_new_tokens=12, block_tokens=1)
BLOCK = HybridSettings(max_new_tokens=12, block_tokens=5)
SETTINGS = BLOCK
PROBLEMS = tally_problems(4, seed=3)


def ids(trace: HybridTrace) -> list[int]:
    return [token.id for token in trace.tokens]


def expect_naive(
    models: ModelPair,
    vectors: VectorSet,
    settings: HybridSettings,
    strength: Strength = LEARNED,
    problems: list[Problem] = PROBLEMS,
) -> None:
    gate = make_gate(vectors.size)
    traces = decode(models, problems, Steer(gate, vectors, strength), settings)
    for problem, trace in zip(problems, traces, strict=True):
        expected = NaiveHybrid(models, gate, vectors, settings, strength).answer(problem)
        assert ids(trace) == [token.id for token in expected]
        assert [token.category for token in trace.tokens] == [one.category for one in expected]
        for token, one in zip(trace.tokens, expected, strict=True):
            if strength.is_sweep:
                tried = sorted((c.strength, c.window, c.id) for c in token.candidates)
                assert tried == sorted(one.tried)
    assert sum(trace.decisions for trace in traces) > 0
    assert sum(trace.changed for trace in traces) > 0


@pytest.mark.parametrize("settings", [STEPWISE, BLOCK], ids=["stepwise", "block"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cached_batched_decoding_equals_the_naive_semantics(
    make_model: MakeModel, architecture: str, settings: HybridSettings
) -> None:
    models = make_models(make_model, architecture)
    expect_naive(models, make_vectors(model=f"{architecture}-0"), settings)


@pytest.mark.parametrize("form", make_forms())
def test_every_form_of_vector_equals_the_naive_semantics(make_model: MakeModel, form: str) -> None:
    expect_naive(make_models(make_model), make_forms()[form], BLOCK)


POLICIES: dict[str, Strength] = {
    "fixed": fixed(0.7),
    "window": fixed(0.7, 3),
    "sweep": sweep([0.2, 0.6, 1.5]),
    "windows": sweep([0.3, 1.0], [1, 4, "answer", "everything", "text-6"]),
    "picked by the base": replace(sweep([0.2, 0.6, 1.5], [1, "answer"]), picked_by="base"),
}


@pytest.mark.parametrize("cache_policy", ["transient", "persistent"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("settings", [STEPWISE, BLOCK], ids=["stepwise", "block"])
def test_every_strength_and_cache_policy_equals_the_naive_semantics(
    make_model: MakeModel, policy: str, cache_policy: str, settings: HybridSettings
) -> None:
    how = settings.model_copy(update={"cache_policy": cache_policy})
    vectors = make_forms()["bias"]
    expect_naive(make_models(make_model), vectors, how, POLICIES[policy], PROBLEMS[:3])


@pytest.mark.parametrize("settings", [STEPWISE, BLOCK], ids=["stepwise", "block"])
def test_sampled_decoding_equals_the_naive_semantics(
    make_model: MakeModel, settings: HybridSettings
) -> None:
    how = settings.model_copy(update={"temperature": 0.8, "top_p": 0.9})
    expect_naive(make_models(make_model), make_vectors(), how)


def test_an_unsteered_sampled_hybrid_is_the_bases_own_answer(make_model: MakeModel) -> None:
    models, how = make_models(make_model), BLOCK.model_copy(update={"temperature": 1.0})
    zero = replace(make_vectors(), vectors=torch.zeros(4, 32))
    hybrid = decode(models, PROBLEMS, Steer(make_gate(), zero), how)
    base = decode(models, PROBLEMS, Base(), how)
    other = decode(models, PROBLEMS, Base(), how.model_copy(update={"seed": 1}))
    assert [ids(t) for t in hybrid] == [ids(t) for t in base] != [ids(t) for t in other]
    assert sum(t.decisions for t in hybrid) > 0


def test_sampling_follows_the_distribution(make_model: MakeModel) -> None:
    """First tokens of 3,000 answers against the base's own probabilities, nucleus included."""
    models = make_models(make_model)
    how = HybridSettings(max_new_tokens=1, temperature=1.5, top_p=0.8)
    problems = [replace(PROBLEMS[0], id=str(number)) for number in range(3000)]
    drawn = [ids(t)[0] for t in decode(models, problems, Base(), how)]
    logits = next_logits(models.base, models.base.prompt_ids(PROBLEMS[0].question)) / 1.5
    ranked = logits.softmax(0).sort(descending=True)
    inside = ranked.indices[ranked.values.cumsum(0) - ranked.values < 0.8].tolist()
    assert set(drawn) <= set(inside)
    likeliest = inside[0]
    expected = float(logits[likeliest].exp() / logits[inside].exp().sum())
    assert drawn.count(likeliest) / 3000 == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("kind", ["guardrail", "takeover", "positions", "category", "steer"])
@pytest.mark.parametrize("length", [2, 3, 8])
def test_block_equals_stepwise_on_every_rung(make_model: MakeModel, kind: str, length: int) -> None:
    models, vectors, gate = make_models(make_model), make_vectors(), make_gate()
    rung: Rung = {
        "guardrail": Guardrail(3),
        "takeover": Takeover(),
        "positions": RandomPositions(gate, vectors, rate=0.2),
        "category": RandomCategory(gate, vectors),
        "steer": Steer(gate, vectors),
    }[kind]
    problems = tally_problems(9, seed=8)
    step, block = (
        decode(models, problems, rung, HybridSettings(max_new_tokens=40, block_tokens=n), seed=2)
        for n in (1, length)
    )
    assert [[t[:4] for t in a.tokens] for a in step] == [[t[:4] for t in a.tokens] for a in block]


def test_batched_equals_one_at_a_time(make_model: MakeModel) -> None:
    models = make_models(make_model)
    rung = Steer(make_gate(), make_vectors())
    together = decode(models, PROBLEMS, rung, SETTINGS)
    for problem, trace in zip(PROBLEMS, together, strict=True):
        alone = decode(models, [problem], rung, SETTINGS)[0]
        assert [token[:4] for token in alone.tokens] == [token[:4] for token in trace.tokens]


def test_streaming_yields_the_tokens_of_the_trace(make_model: MakeModel) -> None:
    models, rung = make_models(make_model), Steer(make_gate(), make_vectors())
    yielded = [token[:4] for token in stream(models, PROBLEMS[0], rung, SETTINGS)]
    whole = decode(models, PROBLEMS[:1], rung, SETTINGS)[0].tokens
    assert yielded == [token[:4] for token in whole]


def test_whoever_reads_along_waits_for_a_single_token_first(make_model: MakeModel) -> None:
    models = make_models(make_model)
    agreed = replace(models, thinking=models.base)
    batch = begun(agreed, Takeover(), BLOCK)
    assert [len(fresh) for fresh in batch.advance().values()] == [1] * len(PROBLEMS)
    assert max(len(fresh) for fresh in batch.advance().values()) > 1


def test_vectors_of_zero_equal_the_base(make_model: MakeModel) -> None:
    models = make_models(make_model)
    zero = replace(make_vectors(), vectors=torch.zeros(4, 32))
    steered = decode(models, PROBLEMS, Steer(make_gate(), zero), SETTINGS)
    plain = decode(models, PROBLEMS, Base(), SETTINGS)
    assert [t.text for t in steered] == [t.text for t in plain]
    assert sum(t.changed for t in steered) == 0 < sum(t.decisions for t in steered)


def test_base_and_thinking_rungs_are_their_models_greedy_answers(make_model: MakeModel) -> None:
    models = make_models(make_model)
    for rung, model in ((Base(), models.base), (Thinking(), models.thinking)):
        for problem, trace in zip(PROBLEMS, decode(models, PROBLEMS, rung, SETTINGS), strict=True):
            ids = model.prompt_ids(problem.question)
            for token in trace.tokens:
                assert token.id == int(next_logits(model, ids).argmax())
                ids.append(token.id)


def test_takeover_writes_what_the_thinking_model_would(make_model: MakeModel) -> None:
    models = make_models(make_model)
    takeover = decode(models, PROBLEMS, Takeover(), SETTINGS)
    thinking = decode(models, PROBLEMS, Thinking(), SETTINGS)
    assert [t.text for t in takeover] == [t.text for t in thinking]
    assert all(t.id != t.base_id for trace in takeover for t in trace.tokens if t.is_decision)


def test_guardrail_picks_the_thinking_models_favourite_of_the_bases_top_tokens(
    make_model: MakeModel,
) -> None:
    models = make_models(make_model)
    for problem, trace in zip(
        PROBLEMS, decode(models, PROBLEMS, Guardrail(3), SETTINGS), strict=True
    ):
        ids: list[int] = []
        for token in trace.tokens:
            base = next_logits(models.base, models.base.prompt_ids(problem.question) + ids)
            other = next_logits(models.thinking, models.thinking.prompt_ids(problem.question) + ids)
            if token.is_decision:
                own = base.topk(3).indices
                assert token.id == int(own[other[own].argmax()])
            else:
                assert token.id == int(base.argmax())
            ids.append(token.id)


def test_random_rungs_depend_on_their_seed_and_on_nothing_else(make_model: MakeModel) -> None:
    models, vectors = make_models(make_model), make_vectors()
    for rung in (
        RandomCategory(make_gate(), vectors),
        RandomPositions(make_gate(), vectors, rate=0.5),
    ):
        first, again, other = (
            [t.text for t in decode(models, PROBLEMS, rung, SETTINGS, seed)] for seed in (1, 1, 2)
        )
        assert first == again != other


def test_random_categories_are_drawn_evenly_among_those_with_a_vector(
    make_model: MakeModel,
) -> None:
    models, vectors = make_models(make_model), make_vectors()
    some = vectors.vectors.clone()
    some[[0, 2]] = 0
    rung = RandomCategory(make_gate(), replace(vectors, vectors=some))
    settings = HybridSettings(max_new_tokens=30)
    traces = decode(models, tally_problems(12, seed=4), rung, settings)
    drawn = [token.category for trace in traces for token in trace.tokens if token.is_decision]
    assert set(drawn) == {1, 3}
    assert 0.4 < drawn.count(1) / len(drawn) < 0.6


def test_random_positions_steer_at_about_their_rate(make_model: MakeModel) -> None:
    models = make_models(make_model)
    rung = RandomPositions(make_gate(), make_vectors(), rate=0.3)
    settings = HybridSettings(max_new_tokens=60)
    traces = decode(models, tally_problems(20, seed=4), rung, settings)
    steered = sum(t.decisions for t in traces) / sum(len(t.tokens) for t in traces)
    assert 0.25 < steered < 0.35


def test_random_vectors_keep_norms_and_lose_directions() -> None:
    vectors = make_vectors()
    drawn = randomise(vectors, seed=1)
    torch.testing.assert_close(drawn.vectors.norm(dim=1), vectors.vectors.norm(dim=1))
    similar = torch.nn.functional.cosine_similarity(drawn.vectors, vectors.vectors)
    assert similar.abs().max() < 0.7
    assert torch.equal(drawn.tensors()["heads"], vectors.tensors()["heads"])


def test_a_token_of_the_trace_explains_itself(make_model: MakeModel) -> None:
    models, vectors = make_models(make_model), make_vectors()
    trace = decode(models, PROBLEMS[:1], Steer(make_gate(), vectors), SETTINGS)[0]
    ids = models.base.prompt_ids(PROBLEMS[0].question)
    other = models.thinking.prompt_ids(PROBLEMS[0].question)
    for token in trace.tokens:
        base = next_logits(models.base, ids).log_softmax(0)
        thinking = next_logits(models.thinking, other).log_softmax(0)
        assert token.base_id == int(base.argmax())
        assert token.thinking_id == int(thinking.argmax())
        assert token.base_log_prob == pytest.approx(float(base[token.id]), abs=2e-4)
        assert token.thinking_log_prob == pytest.approx(float(thinking[token.id]), abs=2e-4)
        assert (token.coefficient is not None) == token.is_decision == (token.category is not None)
        assert token.coefficient is None or token.coefficient > 0
        ids.append(token.id)
        other.append(token.id)


def test_an_end_token_ends_only_its_own_stream(make_model: MakeModel) -> None:
    models = make_models(make_model)
    settings = HybridSettings(max_new_tokens=80, temperature=3.0)
    traces = decode(models, tally_problems(12, seed=9), Base(), settings)
    assert {trace.finish for trace in traces} == {Finish.STOP, Finish.LENGTH}
    for trace in traces:
        ended = [token.id in models.end_ids for token in trace.tokens]
        assert not any(ended[:-1])
        assert ended[-1] == (trace.finish is Finish.STOP)
        assert len(trace.tokens) == 80 or ended[-1]


WRONG: dict[str, tuple[type[Exception], VectorSet, str]] = {
    "width": (
        SteeringError,
        VectorSet("llama-0", 1, torch.ones(4, 16)),
        "width 16 cannot steer llama-0, whose residual has width 32",
    ),
    "category": (
        SteeringError,
        make_vectors(size=3),
        "3 vectors for the 4 categories",
    ),
    "one for all": (SteeringError, make_vectors(size=1), "1 vectors for the 4 categories"),
    "layer": (ModelError, make_vectors(layer=9), "layer 9 is out of range"),
    "pair": (SteeringError, make_vectors(model="other"), "trained in 'other' and would steer"),
    "nan": (
        SteeringError,
        replace(make_vectors(), vectors=torch.full((4, 32), torch.nan)),
        "not finite",
    ),
    "nan in the network": (
        SteeringError,
        make_vectors().with_tensors(
            {**make_vectors().tensors(), "heads": torch.full((4, 8), torch.inf)}
        ),
        "not finite",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_vectors_that_do_not_fit_are_refused(make_model: MakeModel, case: str) -> None:
    error, vectors, message = WRONG[case]
    models = make_models(make_model)
    with pytest.raises(error, match=message):
        decode(models, PROBLEMS, Steer(make_gate(), vectors), SETTINGS)


def test_categories_whose_vector_is_zero_do_not_move(make_model: MakeModel) -> None:
    vectors = make_vectors()
    vectors.vectors[2] = 0
    assert vectors.nonzero_categories().tolist() == vectors.trained().tolist() == [0, 1, 3]
    nothing = replace(vectors, vectors=torch.zeros_like(vectors.vectors))
    assert nothing.nonzero_categories().tolist() == []
    assert nothing.trained().tolist() == [0, 1, 2, 3]
    traces = decode(make_models(make_model), PROBLEMS, Steer(make_gate(), nothing), SETTINGS)
    decisions = sum(trace.decisions for trace in traces)
    assert _idle_decisions(traces, nothing) == decisions > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fixed(0.0), "a strength of 0 steers nothing"),
        (lambda: sweep([1.0, 0.0]), "a strength of 0 steers nothing"),
        (lambda: fixed(1.0, 0), "found window 0; expected"),
        (lambda: fixed(1.0, "text-0"), "found window 'text-0'; expected"),
        (lambda: fixed(1.0, "all"), "found window 'all'; expected"),
        (lambda: sweep([]), "without strengths or windows"),
    ],
)
def test_a_strength_that_steers_nothing_is_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(SettingsError, match=message):
        make()


def test_of_equally_good_candidates_the_first_counts(make_model: MakeModel) -> None:
    """As in the paper's code, whose sweep goes through all windows of a strength in turn."""
    nothing = replace(make_forms()["linear"], vectors=torch.zeros(4, 32))
    rung = Steer(make_gate(), nothing, sweep([0.3, 0.9], ["everything", 1, "text-6"]))
    [trace] = decode(make_models(make_model), PROBLEMS[:1], rung, SETTINGS)
    steered = [token for token in trace.tokens if token.candidates]
    assert steered
    for token in steered:
        assert [one.strength for one in token.candidates] == [0.3] * 3 + [0.9] * 3
        assert (token.coefficient, token.window) == (0.3, token.candidates[0].window)


def test_the_strength_of_a_run_is_that_of_its_method() -> None:
    def chosen(method: str, **hybrid: object) -> Strength:
        return chosen_strength(make_settings({"elicit": {"method": method}, "hybrid": hybrid}))

    assert chosen("decision") == LEARNED
    tenths = [n / 10 for n in range(1, 11)]
    assert chosen("span") == sweep(tenths, ["everything"])
    assert chosen("decision", strength="sweep") == sweep(tenths)
    assert chosen("span", windows=["text-15"], strengths=[0.5]) == fixed(0.5, "text-15")


def test_a_prompt_longer_than_the_context_is_refused(make_model: MakeModel) -> None:
    models = make_models(make_model)
    long = Problem("long", "How many? " * 100, "1")
    with pytest.raises(InputError, match="exceed the 256 tokens"):
        decode(models, [long], Base(), SETTINGS)


def test_a_windowed_model_is_read_as_far_as_its_window(make_model: MakeModel) -> None:
    models = ModelPair(make_model("mistral"), make_model("mistral", 1))
    assert models.base.context == WINDOW < 256
    longest = max(len(models.base.prompt_ids(one.question)) for one in PROBLEMS)
    settings = BLOCK.model_copy(update={"max_new_tokens": WINDOW - longest})
    expect_naive(models, replace(make_vectors(), model=models.base.name), settings)
    with pytest.raises(LengthError, match=f"exceed the {WINDOW} tokens"):
        decode(
            models,
            PROBLEMS,
            Base(),
            BLOCK.model_copy(update={"max_new_tokens": WINDOW + 1 - longest}),
        )


def test_a_block_ends_where_the_context_does(make_model: MakeModel) -> None:
    models = ModelPair(make_model("gpt2"), make_model("gpt2"))  # its positions are learned
    torch.manual_seed(0)
    for parameter in models.thinking.model.parameters():
        parameter.add_(1e-3 * torch.randn_like(parameter))
    longest = max(len(models.base.prompt_ids(one.question)) for one in PROBLEMS)
    stepwise, block = (
        decode(
            models,
            PROBLEMS,
            Takeover(),
            HybridSettings(max_new_tokens=256 - longest, block_tokens=length),
        )
        for length in (1, 8)
    )
    assert [ids(trace) for trace in stepwise] == [ids(trace) for trace in block]
    assert max(len(trace.tokens) for trace in block) == 256 - longest


def context_of(base: torch.Tensor, thinking: torch.Tensor | None) -> DecisionContext:
    view = None if thinking is None else ModelView(thinking)
    return DecisionContext(
        ModelView(base),
        view,
        torch.tensor([8]),
        draw_uniforms=lambda: torch.rand(1, 2),
        drafted=torch.zeros(1, 1, dtype=torch.long),
        look_up_answers=lambda: [AnswerSoFar("p", (), 0)],
        may_both_write=lambda tokens: tokens >= 0,
    )


def test_the_guardrail_stays_within_the_bases_nucleus() -> None:
    base = torch.full((1, 9), -torch.inf)
    base[0, [4, 7]] = torch.tensor([2.0, 1.0])
    thinking = torch.arange(9.0)[None]
    context = context_of(base, thinking)
    assert Guardrail(5).act(context).token.tolist() == [7]
    thinking[0, 7] = -torch.inf
    assert Guardrail(5).act(context).token.tolist() == [4]


def test_an_empty_prompt_is_refused(make_model: MakeModel) -> None:
    base = replace(make_model(seed=0), prompt="{question}")
    models = ModelPair(base, make_model(seed=1))
    with pytest.raises(InputError, match="empty prompt"):
        decode(models, [Problem("empty", "", "1")], Base(), SETTINGS)


def test_a_prompt_of_one_token_can_be_answered_beside_longer_ones(make_model: MakeModel) -> None:
    base, thinking = (replace(make_model(seed=s), prompt="{question}") for s in (0, 1))
    models = ModelPair(base, thinking)
    problems = [Problem("short", "Ann", "1"), Problem("long", "Ann has 3 pens .", "1")]
    expect_naive(models, make_vectors(), SETTINGS, problems=problems)
    expect_naive(models, make_vectors(), SETTINGS, problems=problems[:1])


def test_the_shared_vector_needs_no_vector_per_category(make_model: MakeModel) -> None:
    models = make_models(make_model)
    rung: Rung = SharedVector(make_gate(), make_vectors(size=1))
    trace = decode(models, PROBLEMS[:1], rung, SETTINGS)[0]
    assert {t.category for t in trace.tokens if t.is_decision} == {0}


def test_the_bias_alone_has_one_category_and_no_vector(make_model: MakeModel) -> None:
    alone = bias_only(make_forms()["bias"])
    residual = random(3, 32)
    expected = make_forms()["bias"].bias
    assert expected is not None
    assert torch.equal(alone.delta(residual, torch.zeros(3).long()), expected.expand(3, -1))
    trace = decode(make_models(make_model), PROBLEMS[:1], BiasOnly(make_gate(), alone), SETTINGS)[0]
    assert {t.category for t in trace.tokens if t.is_decision} == {0}


def test_the_self_gate_steers_where_its_probe_says_without_a_thinking_model(
    make_model: MakeModel,
) -> None:
    models, vectors, probe = make_models(make_model), make_vectors(), make_probe(0.0)
    traces = decode(models, PROBLEMS, SelfGated(probe, vectors), SETTINGS)
    for problem, trace in zip(PROBLEMS, traces, strict=True):
        said: list[int] = []
        for token in trace.tokens:
            prompt = models.base.prompt_ids(problem.question) + said
            features = torch.cat(
                [residual_at(models.base, prompt, layer)[-1] for layer in probe.layers]
            )
            read = probe.read(features[None])[0]
            assert token.is_decision == (float(read[0]) >= 0)
            expected = next_logits(models.base, prompt)
            if token.is_decision:
                assert token.category is not None
                assert token.category == int(read[1:].argmax())
                expected = steered_next_logits(models.base, prompt, vectors, token.category)
            assert token.id == int(expected.argmax())
            assert token.thinking_id is None
            assert token.thinking_log_prob is None
            said.append(token.id)
    assert 0 < sum(t.decisions for t in traces) < sum(len(t.tokens) for t in traces)


def test_a_sweep_without_a_thinking_model_is_refused(make_model: MakeModel) -> None:
    rung = SelfGated(make_probe(0.0), make_vectors(), sweep([1.0, 2.0]))
    with pytest.raises(SteeringError, match="would have to choose among the 2 candidates"):
        decode(make_models(make_model), PROBLEMS, rung, SETTINGS)


def test_the_step_by_step_rung_asks_the_base_otherwise(make_model: MakeModel) -> None:
    models = make_models(make_model)
    asked = replace(models.base, prompt="{question} Next")
    expected = decode(ModelPair(asked, models.thinking), PROBLEMS, Base(), SETTINGS)
    found = decode(models, PROBLEMS, BaseStepByStep("{question} Next"), SETTINGS)
    assert [ids(t) for t in found] == [ids(t) for t in expected]
    assert [ids(t) for t in found] != [ids(t) for t in decode(models, PROBLEMS, Base(), SETTINGS)]


def test_a_model_with_more_output_rows_emits_only_shared_ids(make_model: MakeModel) -> None:
    wide, narrow = make_model(seed=0), make_model(seed=1)
    wide.model.resize_token_embeddings(len(wide.tokenizer) + 40, mean_resizing=False)
    head = wide.model.get_output_embeddings()
    with torch.no_grad():
        head.weight[len(wide.tokenizer) :] = 50 * head.weight[:40]
    for base, thinking in ((wide, narrow), (narrow, wide)):
        models = ModelPair(base, thinking)
        vectors = make_vectors(model=base.name)
        for rung in (Steer(make_gate(), vectors), Takeover(), Guardrail(3)):
            for trace in decode(models, PROBLEMS, rung, SETTINGS):
                assert max(token.id for token in trace.tokens) < len(wide.tokenizer)


def drain(batch: LiveBatch, answers: list[list[HybridToken]]) -> None:
    for number, fresh in batch.advance().items():
        answers[number] += fresh


def begun(models: ModelPair, rung: Rung, how: HybridSettings) -> LiveBatch:
    batch = LiveBatch(models, rung, how)
    batch.add(PROBLEMS)
    return batch


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_batches_written_side_by_side_equal_those_written_alone(
    make_model: MakeModel, temperature: float
) -> None:
    models = make_models(make_model)
    rungs: list[Rung] = [Steer(make_gate(), make_vectors()), Takeover(), Base()]
    how = BLOCK.model_copy(update={"temperature": temperature})
    expected = [[list(t.tokens) for t in decode(models, PROBLEMS, one, how)] for one in rungs]
    batches = [begun(models, one, how) for one in rungs]
    answers: list[list[list[HybridToken]]] = [[[] for _ in PROBLEMS] for _ in rungs]
    rounds = 0
    while not all(batch.is_done for batch in batches):
        for batch, own in zip(batches, answers, strict=True):
            if not batch.is_done:
                drain(batch, own)
        rounds += 1
    assert rounds > 1
    for ours, theirs in zip(answers, expected, strict=True):  # but for the last digits
        assert [[t[:4] for t in one] for one in ours] == [[t[:4] for t in one] for one in theirs]
    assert not models.base.model._forward_hooks
    assert not any(module._forward_hooks for module in models.thinking.model.model.layers)


def test_a_cancelled_answer_is_written_no_further_and_the_others_are_whole(
    make_model: MakeModel,
) -> None:
    models, rung = make_models(make_model), Takeover()
    whole = [list(trace.tokens) for trace in decode(models, PROBLEMS, rung, BLOCK)]
    batch = begun(models, rung, BLOCK)
    answers: list[list[HybridToken]] = [[] for _ in PROBLEMS]
    drain(batch, answers)
    written = [len(answer) for answer in answers]
    for row in (1, 2, 2):
        batch.cancel(row)
    while not batch.is_done:
        drain(batch, answers)
    assert [len(answers[row]) for row in (1, 2)] == [written[row] for row in (1, 2)]
    assert [answers[row] for row in (0, 3)] == [whole[row] for row in (0, 3)]
    assert written[1] < len(whole[1])


_TRACES: dict[str, dict[str, list[HybridTrace]]] = {}


def every_trace(
    models: ModelPair, problems: list[Problem], how: HybridSettings
) -> dict[str, list[HybridTrace]]:
    """The answers of every rung, decoded once for all tests with these settings."""
    key = how.model_dump_json()
    if key not in _TRACES:
        _TRACES[key] = {
            kind: decode(models, problems, rung, how, seed=2) for kind, rung in EVERY_RUNG.items()
        }
    return _TRACES[key]


@pytest.mark.parametrize(
    ("cache_policy", "temperature"),
    [
        ("transient", 0.0),
        ("persistent", 0.8),
        pytest.param("transient", 0.8, marks=pytest.mark.slow),
        pytest.param("persistent", 0.0, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("kind", EVERY_RUNG)
def test_answers_known_from_other_rungs_change_nothing(
    make_model: MakeModel, kind: str, cache_policy: str, temperature: float
) -> None:
    models, problems = make_models(make_model), tally_problems(6, seed=8)
    how = HybridSettings(max_new_tokens=24, block_tokens=4, temperature=temperature)
    how = how.model_copy(update={"cache_policy": cache_policy})
    traces_of = every_trace(models, problems, how)
    known = [[traces[row].ids for traces in traces_of.values()] for row in range(len(problems))]
    prompts = PromptCache()
    rung, expected = EVERY_RUNG[kind], traces_of[kind]
    for given in (known, [one[:3] for one in known], [[one[0][:5]] for one in known]):
        traces = decode(models, problems, rung, how, seed=2, known=given, prompts=prompts)
        expect_equal(traces, expected)


def test_a_known_answer_takes_a_pass_where_writing_it_takes_many(make_model: MakeModel) -> None:
    models, how = make_models(make_model), HybridSettings(max_new_tokens=40, block_tokens=4)
    rung = Takeover()
    known = [[trace.ids] for trace in decode(models, PROBLEMS, rung, how)]
    passes: list[int] = []
    models.base.model.register_forward_hook(lambda *_: passes.append(1))
    decode(models, PROBLEMS, rung, how)
    alone = len(passes)
    passes.clear()
    decode(models, PROBLEMS, rung, how, known=known)
    assert len(passes) * 5 < alone


def test_prompts_are_read_once_for_all_rungs(make_model: MakeModel) -> None:
    models, prompts = make_models(make_model), PromptCache()
    read: list[int] = []
    models.base.model.get_input_embeddings().register_forward_hook(
        lambda _module, inputs, _output: read.append(inputs[0].numel())
    )
    how = HybridSettings(max_new_tokens=1)
    for rung in (Steer(make_gate(), make_vectors()), Base(), Takeover()):
        read.clear()
        decode(models, PROBLEMS, rung, how, prompts=prompts)
        longest = max(len(models.base.prompt_ids(one.question)) for one in PROBLEMS)
        assert read[:1] == ([len(PROBLEMS) * longest] if isinstance(rung, Steer) else [])
    small = PromptCache(max_bytes=10)
    for _ in range(2):
        read.clear()
        decode(models, PROBLEMS, Base(), how, prompts=small)
        assert len(read) == 1


@pytest.mark.parametrize("count", [1, 3])
def test_the_first_token_takes_no_pass_of_its_own(make_model: MakeModel, count: int) -> None:
    models, passes = make_models(make_model), list[int]()
    models.thinking.model.register_forward_hook(lambda *_: passes.append(1))
    batch = LiveBatch(models, Takeover(), BLOCK)
    batch.add(PROBLEMS[:count])
    first = batch.advance()
    assert len(first) == count
    assert len(passes) == 1
    expected = decode(models, PROBLEMS[:count], Takeover(), BLOCK)
    assert [first[row][0].id for row in range(count)] == [trace.ids[0] for trace in expected]


def test_prompts_too_many_for_their_logits_are_read_up_to_their_last_token(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = make_models(make_model)
    expected = decode(models, PROBLEMS, Takeover(), BLOCK)
    monkeypatch.setattr(streams, "MAX_FIRST_LOGITS", 0)
    assert open_streams(models.base, [[3, 4], [5]]).first is None
    expect_equal(decode(models, PROBLEMS, Takeover(), BLOCK), expected)


def test_a_rung_that_runs_no_thinking_model_cannot_ask_for_it() -> None:
    context = context_of(torch.zeros(1, 9), None)
    with pytest.raises(SettingsError, match="`needs_thinking = False` asked for the thinking"):
        Takeover().act(context)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_margins_are_the_distance_to_the_second_choice(
    make_model: MakeModel, temperature: float
) -> None:
    models = make_models(make_model)
    settings = HybridSettings(max_new_tokens=8, temperature=temperature)
    for problem in PROBLEMS[:2]:
        trace = decode(models, [problem], Takeover(), settings)[0]
        prompts = [model.prompt_ids(problem.question) for model in (models.base, models.thinking)]
        sampler = Sampler(temperature)
        for position, token in enumerate(trace.tokens):
            noted = (token.base_margin, token.thinking_margin)
            own = (token.base_id, token.thinking_id)
            for model, prompt, margin, wanted in zip(
                (models.base, models.thinking), prompts, noted, own, strict=True
            ):
                logits = next_logits(model, [*prompt, *ids(trace)[:position]])
                noise = gumbel_noise(0, [problem.id], [position], len(logits))
                top = sampler.scores(logits[None], noise)[0].topk(2)
                assert wanted == int(top.indices[0])
                assert margin == pytest.approx(float(top.values[0] - top.values[1]), abs=2e-4)
        assert not any(token.is_tie for token in trace.tokens)


def test_a_choice_within_the_rounding_of_its_logit_is_a_tie() -> None:
    scores = torch.tensor([[[20.0, 19.95, 1.0], [20.0, 19.8, 1.0], [20.0, 20.0, 1.0]]])
    half, whole = (torch.finfo(dtype).eps for dtype in (torch.bfloat16, torch.float32))
    first = torch.zeros(1, 3, dtype=torch.long)
    numbers = numbers_of(scores, scores, first, first, may_be_unknown=False)[0].tolist()
    coarse, fine = ([Opinion.of(0.0, row, eps) for row in numbers] for eps in (half, whole))
    assert [one.is_tie for one in coarse] == [True, False, True]
    assert [one.margin for one in coarse[:2]] == pytest.approx([0.05, 0.2], abs=1e-5)
    assert [one.is_tie for one in fine] == [False, False, True]
    alone = torch.tensor([[[3.0, -torch.inf]]])
    (row,) = numbers_of(alone, alone, first[:, :1], first[:, :1], may_be_unknown=False)[0].tolist()
    assert Opinion.of(0.0, row, half).margin == MAX_MARGIN


def test_a_token_that_a_model_does_not_know_has_no_log_probability() -> None:
    logits = torch.tensor([[[1.0, 2.0, 3.0]]])
    expected = logits.log_softmax(2)[0, 0, 1].item()
    for chosen, wanted in ((1, expected), (7, -torch.inf)):
        numbers = numbers_of(
            logits, logits, torch.tensor([[2]]), torch.tensor([[chosen]]), may_be_unknown=True
        )
        assert Opinion.of(2.0, numbers[0, 0].tolist(), 0.0).log_prob == pytest.approx(wanted)
    found = log_probs_of(logits[0], torch.tensor([[1, 7]])).tolist()
    assert found == [[pytest.approx(expected), -torch.inf]]


def test_ties_are_counted_apart_in_half_precision(make_model: MakeModel) -> None:
    models = make_models(make_model)
    for model in (models.base, models.thinking):
        model.model.to(torch.bfloat16)
        multiply_in_float32(model.model)
    settings = HybridSettings(max_new_tokens=60)
    traces = decode(models, tally_problems(16, seed=3), Takeover(), settings)
    tied = [token for trace in traces for token in trace.tokens if token.is_tie]
    assert len(tied) > 3
    for token in tied:
        assert min(token.base_margin or 0.0, token.thinking_margin or 0.0) < 0.3
    assert sum(trace.ties for trace in traces) == sum(token.is_decision for token in tied)
