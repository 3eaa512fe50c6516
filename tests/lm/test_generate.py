"""Batched generation: a model's own sampler, and rows of the vocabulary that stand for nothing."""

import pytest
import torch

from howwhen.errors import ModelError
from howwhen.lm.generate import Sampling, generate, greedy_warning, own_sampling
from howwhen.lm.models import LanguageModel
from tests.conftest import MakeModel

PROMPTS = [[3, 9, 14, 27], [5, 11], [8]]
NAMES = ["a", "b", "c"]


def with_sampler(model: LanguageModel, **settings: object) -> LanguageModel:
    for name, value in settings.items():
        setattr(model.model.generation_config, name, value)
    return model


def test_a_models_own_sampler_is_taken_over(make_model: MakeModel) -> None:
    model = make_model(seed=5)
    assert own_sampling(model, 7, 2) == Sampling(7, seed=2)
    assert greedy_warning(model, "--flag") is None
    with_sampler(model, repetition_penalty=1.3)
    assert own_sampling(model, 7, 2) == Sampling(7, seed=2, repetition_penalty=1.3)
    with_sampler(model, do_sample=True, top_k=-1)
    assert own_sampling(model, 7).top_k == 0
    with_sampler(
        model, do_sample=True, temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.1
    )
    expected = Sampling(7, 0.6, 2, top_k=20, top_p=0.9, repetition_penalty=1.1)
    assert own_sampling(model, 7, 2) == expected
    warning = greedy_warning(model, "--flag") or ""
    assert "temperature 0.6, top_k 20, top_p 0.9" in warning
    assert warning.endswith("type --flag")
    with_sampler(
        model, min_new_tokens=0, guidance_scale=1.0, suppress_tokens=[], sequence_bias={},
        encoder_repetition_penalty=1.0, num_beams=1, stop_strings=None,
    )  # fmt: skip
    assert own_sampling(model, 7, 2) == expected
    with_sampler(model, min_length=3, stop_strings=["x"])
    with pytest.raises(ModelError, match="sets min_length, stop_strings, which howwhen"):
        own_sampling(model, 7)
    with_sampler(model, min_length=0, stop_strings=[], typical_p=0.5)
    with pytest.raises(ModelError, match="sets typical_p, which howwhen does not know"):
        own_sampling(model, 7)


@pytest.mark.parametrize(
    "how",
    [Sampling(9, 3.0, top_k=1), Sampling(9, 3.0, top_p=1e-6), Sampling(9, 3.0, min_p=1.0)],
)
def test_a_sampler_that_leaves_one_token_is_greedy(make_model: MakeModel, how: Sampling) -> None:
    model = make_model(seed=5)
    ends = model.end_ids
    greedy = generate(model.model, ends, PROMPTS, Sampling(9))
    assert generate(model.model, ends, PROMPTS, how, NAMES) == greedy
    assert generate(model.model, ends, PROMPTS, how) == greedy
    assert generate(model.model, ends, PROMPTS, Sampling(9, 3.0), NAMES) != greedy


def test_a_penalty_for_repetition_depends_on_no_other_prompt_of_the_batch(
    make_model: MakeModel,
) -> None:
    model = make_model(seed=5)
    how = Sampling(12, repetition_penalty=1.5)
    alone = [generate(model.model, model.end_ids, [prompt], how)[0] for prompt in PROMPTS]
    assert generate(model.model, model.end_ids, PROMPTS, how) == alone
    assert alone != generate(model.model, model.end_ids, PROMPTS, Sampling(12))


def test_padding_of_the_vocabulary_is_never_written(make_model: MakeModel) -> None:
    model = make_model(seed=5)
    size = len(model.tokenizer)
    assert not len(model.padding_ids)
    padded = make_model(seed=5)
    padded.model.resize_token_embeddings(size + 6, mean_resizing=False)
    with torch.no_grad():
        padded.model.get_output_embeddings().weight[size:] *= 1000  # it would win every time
    assert padded.padding_ids.tolist() == list(range(size, size + 6))
    unguarded = generate(padded.model, padded.end_ids, PROMPTS, Sampling(9))
    assert max(max(ids) for ids in unguarded) >= size
    suppressed = padded.padding_ids.tolist()
    written = generate(padded.model, padded.end_ids, PROMPTS, Sampling(9), suppressed=suppressed)
    assert written == generate(model.model, model.end_ids, PROMPTS, Sampling(9))
    logits = torch.ones(2, 3, size + 6)
    assert padded.without_padding(logits)[..., size:].isinf().all()
    assert torch.equal(padded.without_padding(logits)[..., :size], logits[..., :size])
