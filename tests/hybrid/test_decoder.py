from dataclasses import replace

import pytest
import torch

from howwhen.errors import InputError, ModelError, SteeringError
from howwhen.hybrid.choice import (
    Base,
    Choice,
    Guardrail,
    RandomCategory,
    RandomPositions,
    SharedVector,
    Steer,
    Takeover,
    Thinking,
    randomise,
)
from howwhen.hybrid.decoder import HybridModels, decode
from howwhen.records import Finish, Problem, Sae, Taxonomy, VectorSet
from howwhen.settings import HybridSettings
from howwhen.zoo.tally import tally_problems
from tests.conftest import ARCHITECTURES, MakeModel
from tests.oracles.naive import next_logits, transient_hybrid

SETTINGS = HybridSettings(max_new_tokens=12)
PROBLEMS = tally_problems(4, seed=3)


def make_taxonomy(size: int = 4, layer: int = 1) -> Taxonomy:
    generator = torch.Generator().manual_seed(7)
    rows = torch.nn.functional.normalize(torch.randn(size, 32, generator=generator), dim=1)
    sae = Sae(rows, torch.zeros(size), rows, torch.zeros(32), k=1)
    mean = torch.randn(32, generator=generator) * 0.1
    return Taxonomy("random", layer, mean, sae, tuple(f"c{i}" for i in range(size)))


def make_vectors(size: int = 4, scale: float = 3.0, layer: int = 1) -> VectorSet:
    generator = torch.Generator().manual_seed(8)
    return VectorSet(
        "random",
        layer,
        vectors=torch.randn(size, 32, generator=generator) * scale,
        hidden=torch.randn(8, 32, generator=generator) * 0.2,
        heads=torch.randn(size, 8, generator=generator) * 0.2,
        heads_bias=torch.zeros(size),
    )


def make_models(make_model: MakeModel, architecture: str = "llama") -> HybridModels:
    return HybridModels(
        make_model(architecture, seed=0), make_model(architecture, seed=1), make_taxonomy()
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cached_batched_decoding_equals_the_naive_semantics(
    make_model: MakeModel, architecture: str
) -> None:
    models, vectors = make_models(make_model, architecture), make_vectors()
    traces = decode(models, PROBLEMS, Steer(models.taxonomy, vectors), SETTINGS)
    for problem, trace in zip(PROBLEMS, traces, strict=True):
        ids, categories = transient_hybrid(models, problem.question, vectors, 12)
        assert [token.id for token in trace.tokens] == ids
        assert [token.category for token in trace.tokens] == categories
    assert sum(trace.decisions for trace in traces) > 0
    assert sum(trace.changed for trace in traces) > 0


def test_batched_equals_one_at_a_time(make_model: MakeModel) -> None:
    models = make_models(make_model)
    choice = Steer(models.taxonomy, make_vectors())
    together = decode(models, PROBLEMS, choice, SETTINGS)
    for problem, trace in zip(PROBLEMS, together, strict=True):
        alone = decode(models, [problem], choice, SETTINGS)[0]
        assert [token[:4] for token in alone.tokens] == [token[:4] for token in trace.tokens]


def test_persistent_cache_differs_from_transient_and_from_nothing(make_model: MakeModel) -> None:
    models, vectors = make_models(make_model), make_vectors()
    choice = Steer(models.taxonomy, vectors)
    persistent = HybridSettings(max_new_tokens=12, cache_policy="persistent")
    ids = {
        policy.cache_policy: [t.text for t in decode(models, PROBLEMS, choice, policy)]
        for policy in (SETTINGS, persistent)
    }
    assert ids["transient"] != ids["persistent"]


def test_vectors_of_zero_equal_the_base(make_model: MakeModel) -> None:
    models = make_models(make_model)
    zero = replace(make_vectors(), vectors=torch.zeros(4, 32))
    steered = decode(models, PROBLEMS, Steer(models.taxonomy, zero), SETTINGS)
    plain = decode(models, PROBLEMS, Base(), SETTINGS)
    assert [t.text for t in steered] == [t.text for t in plain]
    assert sum(t.changed for t in steered) == 0 < sum(t.decisions for t in steered)


def test_base_and_thinking_rungs_are_their_models_greedy_answers(make_model: MakeModel) -> None:
    models = make_models(make_model)
    for choice, model in ((Base(), models.base), (Thinking(), models.thinking)):
        for problem, trace in zip(
            PROBLEMS, decode(models, PROBLEMS, choice, SETTINGS), strict=True
        ):
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
    for choice in (
        RandomCategory(models.taxonomy, vectors),
        RandomPositions(models.taxonomy, vectors, rate=0.5),
    ):
        first, again, other = (
            [t.text for t in decode(models, PROBLEMS, choice, SETTINGS, seed)] for seed in (1, 1, 2)
        )
        assert first == again != other


def test_random_positions_steer_at_about_their_rate(make_model: MakeModel) -> None:
    models = make_models(make_model)
    choice = RandomPositions(models.taxonomy, make_vectors(), rate=0.3)
    settings = HybridSettings(max_new_tokens=60)
    traces = decode(models, tally_problems(20, seed=4), choice, settings)
    steered = sum(t.decisions for t in traces) / sum(len(t.tokens) for t in traces)
    assert 0.25 < steered < 0.35


def test_random_vectors_keep_norms_and_lose_directions() -> None:
    vectors = make_vectors()
    drawn = randomise(vectors, seed=1)
    torch.testing.assert_close(drawn.vectors.norm(dim=1), vectors.vectors.norm(dim=1))
    similar = torch.nn.functional.cosine_similarity(drawn.vectors, vectors.vectors)
    assert similar.abs().max() < 0.7
    assert torch.equal(drawn.heads, vectors.heads)


def test_a_token_of_the_trace_explains_itself(make_model: MakeModel) -> None:
    models, vectors = make_models(make_model), make_vectors()
    trace = decode(models, PROBLEMS[:1], Steer(models.taxonomy, vectors), SETTINGS)[0]
    ids = models.base.prompt_ids(PROBLEMS[0].question)
    other = models.thinking.prompt_ids(PROBLEMS[0].question)
    for token in trace.tokens:
        base = next_logits(models.base, ids).log_softmax(0)
        thinking = next_logits(models.thinking, other).log_softmax(0)
        assert token.base_id == int(base.argmax())
        assert token.thinking_id == int(thinking.argmax())
        assert token.base_log_prob == pytest.approx(float(base[token.id]), abs=2e-4)
        assert token.thinking_log_prob == pytest.approx(float(thinking[token.id]), abs=2e-4)
        assert (token.strength > 0) == token.is_decision == (token.category >= 0)
        ids.append(token.id)
        other.append(token.id)


def test_an_end_token_ends_only_its_own_stream(make_model: MakeModel) -> None:
    models = make_models(make_model)
    settings = HybridSettings(max_new_tokens=80)
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
        VectorSet("x", 1, torch.ones(4, 16), torch.ones(8, 16), torch.ones(4, 8), torch.ones(4)),
        "width 16 cannot steer llama-0, whose residual has width 32",
    ),
    "category": (SteeringError, make_vectors(size=3), "3 vectors for a taxonomy of 4 categories"),
    "layer": (ModelError, make_vectors(layer=9), "layer 9 is out of range"),
    "nan": (
        SteeringError,
        replace(make_vectors(), vectors=torch.full((4, 32), torch.nan)),
        "not finite",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_vectors_that_do_not_fit_are_refused(make_model: MakeModel, case: str) -> None:
    error, vectors, message = WRONG[case]
    models = make_models(make_model)
    with pytest.raises(error, match=message):
        decode(models, PROBLEMS, Steer(models.taxonomy, vectors), SETTINGS)


def test_a_prompt_longer_than_the_context_is_refused(make_model: MakeModel) -> None:
    models = make_models(make_model)
    long = Problem("long", "How many? " * 100, "1")
    with pytest.raises(InputError, match="exceed the 256 tokens"):
        decode(models, [long], Base(), SETTINGS)


def test_the_shared_vector_needs_no_vector_per_category(make_model: MakeModel) -> None:
    models = make_models(make_model)
    choice: Choice = SharedVector(models.taxonomy, make_vectors(size=1))
    trace = decode(models, PROBLEMS[:1], choice, SETTINGS)[0]
    assert {t.category for t in trace.tokens if t.is_decision} == {0}


def test_a_model_with_more_output_rows_emits_only_shared_ids(make_model: MakeModel) -> None:
    wide, narrow = make_model(seed=0), make_model(seed=1)
    wide.model.resize_token_embeddings(len(wide.tokenizer) + 40, mean_resizing=False)
    head = wide.model.get_output_embeddings()
    with torch.no_grad():
        head.weight[len(wide.tokenizer) :] = 50 * head.weight[:40]
    for base, thinking in ((wide, narrow), (narrow, wide)):
        models = HybridModels(base, thinking, make_taxonomy())
        for choice in (Steer(models.taxonomy, make_vectors()), Takeover(), Guardrail(3)):
            for trace in decode(models, PROBLEMS, choice, SETTINGS):
                assert max(token.id for token in trace.tokens) < len(wide.tokenizer)
