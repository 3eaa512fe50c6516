"""Slots that are filled again as answers end: nothing changes but the time it takes."""

import random as randoms
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from howwhen.errors import InputError
from howwhen.hybrid.choice import Base, Takeover
from howwhen.hybrid.decoder import LiveBatch, decode
from howwhen.hybrid.guesses import Phrases
from howwhen.hybrid.prompt_cache import PromptCache
from howwhen.hybrid.session import Session
from howwhen.hybrid.streams import open_streams
from howwhen.records import HybridToken, Problem
from howwhen.settings import HybridSettings
from howwhen.zoo.tally import tally_problems
from tests.conftest import MakeModel
from tests.factories import make_models
from tests.hybrid.every_rung import EVERY_RUNG, expect_equal

PROBLEMS = [
    *tally_problems(6, seed=3),
    Problem("short", "2", "2"),
    *tally_problems(4, seed=4),
    Problem("long", " and ".join(f"w{n}" for n in range(40)), "0"),
]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("kind", EVERY_RUNG)
def test_refilled_slots_give_the_same_answers(
    make_model: MakeModel, kind: str, temperature: float
) -> None:
    models, rung = make_models(make_model), EVERY_RUNG[kind]
    how = HybridSettings(max_new_tokens=24, block_tokens=8, temperature=temperature)
    expected = decode(models, PROBLEMS, rung, how, seed=2)
    phrases, prompts = Phrases([trace.ids for trace in expected[:5]]), PromptCache()
    known = [[trace.ids] if n % 3 else [trace.ids[:4]] for n, trace in enumerate(expected)]
    cases: list[dict[str, Any]] = [
        {"slots": 3}, {"slots": 1, "phrases": phrases}, {"slots": 5, "prompts": prompts},
        {"slots": 5, "prompts": prompts}, {"slots": 5, "prompts": prompts, "known": known},
        {"slots": 4, "prompts": prompts}, {"slots": 5, "known": known}, {"slots": 99},
    ]  # fmt: skip
    for case in cases:
        expect_equal(decode(models, PROBLEMS, rung, how, seed=2, **case), expected)
    persistent = how.model_copy(update={"cache_policy": "persistent"})
    apart = decode(models, PROBLEMS, rung, persistent, seed=2)
    expect_equal(decode(models, PROBLEMS, rung, persistent, seed=2, slots=3), apart)


def test_no_more_answers_are_written_at_once_than_there_are_slots(make_model: MakeModel) -> None:
    models, how = make_models(make_model), HybridSettings(max_new_tokens=30, block_tokens=1)
    widths: list[tuple[int, int]] = []
    models.base.model.get_input_embeddings().register_forward_hook(
        lambda _module, inputs, _output: widths.append(tuple(inputs[0].shape))
    )
    traces = decode(models, PROBLEMS, Takeover(), how, slots=4)
    tokens = sum(len(trace.tokens) for trace in traces)
    steps = [count for count, width in widths if width == 1]
    assert max(steps) == 4
    assert tokens <= sum(steps) < 1.3 * tokens  # few slots stay empty
    ended: list[int] = []
    decode(models, PROBLEMS, Takeover(), how, slots=4, ended=ended.append)
    assert ended == sorted(ended)
    assert ended[-1] == len(PROBLEMS)


def test_answers_that_join_at_any_time_are_written_as_if_alone(make_model: MakeModel) -> None:
    models, rng = make_models(make_model), randoms.Random(1)
    how = HybridSettings(max_new_tokens=24, block_tokens=6)
    for kind in ("takeover", "steer", "self-gate", "thinking"):
        rung = EVERY_RUNG[kind]
        alone = [decode(models, [problem], rung, how)[0].tokens for problem in PROBLEMS]
        batch, waiting = LiveBatch(models, rung, how), list(enumerate(PROBLEMS))
        numbers: dict[int, int] = {}
        answers: list[list[HybridToken]] = [[] for _ in PROBLEMS]
        cancelled = -1
        while waiting or not batch.is_done:
            joining = [waiting.pop() for _ in range(min(rng.randrange(4), len(waiting)))]
            if joining:
                added = batch.add([problem for _, problem in joining])
                numbers |= dict(zip(added, [place for place, _ in joining], strict=True))
            fresh = batch.advance()
            for number, tokens in fresh.items():
                answers[numbers[number]] += tokens
            if cancelled < 0 and batch.running > 2:
                number = next(iter(fresh))
                cancelled = numbers[number]
                batch.cancel(number)
        assert cancelled >= 0
        for place, (found, expected) in enumerate(zip(answers, alone, strict=True)):
            written = len(found) if place == cancelled else len(expected)
            assert [token[:4] for token in found] == [token[:4] for token in expected[:written]]


def prompts_of(models: Any, problems: Sequence[Problem]) -> list[list[int]]:
    return [models.base.prompt_ids(problem.question) for problem in problems]


@pytest.mark.parametrize("steer_layer", [None, 1])
def test_prompts_that_were_kept_are_those_that_are_read(
    make_model: MakeModel, steer_layer: int | None
) -> None:
    models, prompts = make_models(make_model), PromptCache()
    texts = [*prompts_of(models, PROBLEMS), [7]]
    prompts.streams(models.base, texts[2:5], (0,), steer_layer)
    prompts.streams(models.base, [[7]], (0,), steer_layer)
    for chosen in (texts, texts[::-1], [[7], texts[3]], [texts[0], [7]], [[9], [7]]):
        kept = prompts.streams(models.base, chosen, (0,), steer_layer)
        read = open_streams(models.base, chosen, (0,), steer_layer)
        assert kept.lengths == read.lengths
        last = torch.tensor([[text[-1]] for text in chosen])
        for streams in (kept, read):
            streams.extend(last)
        torch.testing.assert_close(kept.logits, read.logits, atol=1e-4, rtol=1e-4)
        assert (kept.history is None) == (steer_layer is None)


def test_an_ended_batch_takes_further_answers(make_model: MakeModel) -> None:
    models, how = make_models(make_model), HybridSettings(max_new_tokens=5)
    batch = LiveBatch(models, Base(), how)
    assert batch.is_done
    assert batch.advance() == {}
    for round_ in range(2):
        assert batch.add(PROBLEMS[:2]) == [2 * round_, 2 * round_ + 1]
        counts = {2 * round_: 0, 2 * round_ + 1: 0}
        while not batch.is_done:
            for number, tokens in batch.advance().items():
                counts[number] += len(tokens)
        assert max(counts.values()) == 5
    batch.add(PROBLEMS[:1])
    batch.cancel(4)
    assert batch.is_done
    assert batch.advance() == {}


def test_no_problems_have_no_answers_and_known_ones_belong_to_a_problem_each(
    make_model: MakeModel,
) -> None:
    models, how = make_models(make_model), HybridSettings(max_new_tokens=5)
    assert decode(models, [], Base(), how) == []
    with pytest.raises(InputError, match="known answers to 1 problems, but 2 problems"):
        decode(models, PROBLEMS[:2], Base(), how, known=[[]])


def test_the_same_question_twice_is_answered_twice(make_model: MakeModel) -> None:
    models, how = make_models(make_model), HybridSettings(max_new_tokens=12)
    twice = [PROBLEMS[0], replace(PROBLEMS[0], id="again")]
    rung = EVERY_RUNG["steer"]
    expected = decode(models, twice, rung, how)
    expect_equal(decode(models, twice, rung, how, slots=1, prompts=PromptCache()), expected)


def test_an_answer_of_no_numbers_spoils_none_that_comes_after_it(make_model: MakeModel) -> None:
    models = make_models(make_model)
    word = models.base.tokenizer("and")["input_ids"][-1]
    with torch.no_grad():
        models.base.model.get_input_embeddings().weight[word] = torch.nan
    bad = Problem("bad", " ".join(["and"] * 25), "0")
    others = [Problem("a", "2", "0"), PROBLEMS[0], Problem("b", "7", "0"), PROBLEMS[1]]
    how = HybridSettings(max_new_tokens=30, block_tokens=1)
    for rung in (Base(), EVERY_RUNG["takeover"]):
        expected = decode(models, others, rung, how)
        expect_equal(decode(models, [bad, *others], rung, how, slots=2)[1:], expected)


def test_a_batch_that_cannot_be_joined_is_given_up(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, how = make_models(make_model), HybridSettings(max_new_tokens=12)
    batch = LiveBatch(models, Takeover(), how)
    assert batch.add([]) == []
    batch.add(PROBLEMS[:1])
    batch.advance()
    with pytest.raises(InputError):  # before anything is touched
        batch.add([Problem("long", " ".join(["and"] * 400), "0")])
    assert batch.running == 1

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Session, "put", full)
    with pytest.raises(torch.OutOfMemoryError):
        batch.add(PROBLEMS[1:2])
    assert batch.is_done
    batch.add(PROBLEMS[2:3])
    assert batch.running == 1


def test_whoever_begins_anew_waits_for_a_single_token(make_model: MakeModel) -> None:
    models, how = make_models(make_model), HybridSettings(max_new_tokens=12)
    batch = LiveBatch(replace(models, thinking=models.base), Takeover(), how)
    batch.add(PROBLEMS[:3])
    batch.advance()
    for number in range(3):
        batch.cancel(number)
    (number,) = batch.add(PROBLEMS[3:4])
    assert [len(tokens) for tokens in batch.advance().values()] == [1]
    assert list(batch.advance()) == [number]
