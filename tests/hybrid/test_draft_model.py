"""A small model that writes ahead: it changes no token, and saves passes where it is right."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from tokenizers.models import WordLevel

from howwhen.errors import PairError
from howwhen.hybrid.choice import Takeover
from howwhen.hybrid.decoder import LiveBatch, decode
from howwhen.lm.alignment import ModelPair
from howwhen.lm.models import LanguageModel
from howwhen.settings import HybridSettings
from howwhen.zoo.tally import tally_problems
from howwhen.zoo.tally.tokenizer import build_tokenizer
from tests.conftest import VOCABULARY, MakeModel
from tests.factories import make_models
from tests.hybrid.every_rung import EVERY_RUNG, expect_equal, watch_drafts

PROBLEMS = tally_problems(6, seed=8)


def with_draft(make_model: MakeModel, kind: str) -> ModelPair:
    """A pair with a draft model that is always right about the base, or of any kind."""
    models = make_models(make_model)
    if kind == "the base":
        return replace(models, draft=models.base)
    draft = make_model(seed=5)
    if kind == "wider":
        draft.model.resize_token_embeddings(VOCABULARY + 8)
    if kind == "narrower":
        draft.model.resize_token_embeddings(VOCABULARY - 3)
    return replace(models, draft=draft)


@pytest.mark.parametrize("policy", ["transient", "persistent"])
@pytest.mark.parametrize("kind", EVERY_RUNG)
def test_a_draft_model_changes_no_answer(
    make_model: MakeModel,
    kind: str,
    policy: Literal["transient", "persistent"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rung = EVERY_RUNG[kind]
    found = watch_drafts(monkeypatch)
    for temperature in (0.0, 0.8):
        how = HybridSettings(
            max_new_tokens=30, block_tokens=8, cache_policy=policy, temperature=temperature
        )
        step = how.model_copy(update={"block_tokens": 1})
        expected = decode(make_models(make_model), PROBLEMS, rung, step, seed=2)
        for number, draft in enumerate(("the base", "another", "wider", "narrower")):
            models, slots = with_draft(make_model, draft), (None, 2)[number % 2]
            found.clear()
            traces = decode(models, PROBLEMS, rung, how, seed=2, slots=slots)
            expect_equal(traces, expected)
            assert "draft model" in dict(found)


def test_a_draft_model_that_is_right_saves_passes(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = make_models(make_model)
    agreed = ModelPair(models.base, models.base)
    how = HybridSettings(max_new_tokens=40, block_tokens=8)
    twin = make_model(seed=0)
    found = watch_drafts(monkeypatch)
    passes: list[int] = []
    models.base.model.register_forward_hook(lambda *_: passes.append(1))
    expected = decode(agreed, PROBLEMS, Takeover(), how)
    alone = len(passes)
    passes.clear()
    found.clear()
    traces = decode(replace(agreed, draft=twin), PROBLEMS, Takeover(), how)
    expect_equal(traces, expected)
    assert {source for source, _ in found} == {"draft model"}
    assert len(passes) < alone / 2
    assert len(found) <= 40 / 8 + 2


def test_a_draft_model_that_is_wrong_is_given_up(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = with_draft(make_model, "another")
    found = watch_drafts(monkeypatch)
    decode(models, PROBLEMS, Takeover(), HybridSettings(max_new_tokens=60, block_tokens=8))
    assert "draft model" in dict(found[:2])
    assert "draft model" not in dict(found[-10:])


def test_answers_that_join_are_drafted_too(make_model: MakeModel) -> None:
    models, how = with_draft(make_model, "the base"), HybridSettings(max_new_tokens=20)
    alone = [decode(models, [one], Takeover(), how)[0].ids for one in PROBLEMS]
    batch = LiveBatch(models, Takeover(), how)
    answers: list[list[int]] = [[] for _ in PROBLEMS]
    for problem in PROBLEMS:
        batch.add([problem])
        for number, tokens in batch.advance().items():
            answers[number] += [token.id for token in tokens]
    while not batch.is_done:
        for number, tokens in batch.advance().items():
            answers[number] += [token.id for token in tokens]
    assert [tuple(answer) for answer in answers] == alone


def test_a_draft_model_of_another_vocabulary_is_refused(make_model: MakeModel) -> None:
    models, other = make_models(make_model), make_model(seed=5)
    swapped = build_tokenizer()
    ids = swapped.get_vocab()
    first, second = sorted(ids, key=ids.__getitem__)[-2:]
    ids[first], ids[second] = ids[second], ids[first]
    swapped.backend_tokenizer.model = WordLevel(ids, unk_token="<unk>")
    with pytest.raises(PairError, match="2 of .* common ids mean different tokens"):
        replace(models, draft=replace(other, tokenizer=swapped))


@pytest.mark.parametrize("context", [16, 40, 64])
def test_a_draft_model_with_a_shorter_context_stops_where_it_ends(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, context: int
) -> None:
    models = make_models(make_model, "gpt2")
    how = HybridSettings(max_new_tokens=60, block_tokens=8)
    expected = decode(models, PROBLEMS, Takeover(), how)
    draft = cut_to(make_model("gpt2", seed=0), context)
    found = watch_drafts(monkeypatch)
    for slots in (None, 1, 3):
        found.clear()
        traces = decode(replace(models, draft=draft), PROBLEMS, Takeover(), how, slots=slots)
        expect_equal(traces, expected)
        assert "base" in dict(found)
        assert context < 64 or "draft model" in dict(found)


def cut_to(model: LanguageModel, context: int) -> LanguageModel:
    """GPT-2 with fewer learned positions."""
    positions = model.model.transformer.wpe
    positions.weight = torch.nn.Parameter(positions.weight[:context].clone())
    model.model.config.n_positions = context
    assert model.context == context
    return model
