from dataclasses import replace

import pytest

from howwhen.collect.rollouts import collect_rollouts
from howwhen.errors import InputError
from howwhen.lm.generate import Sampling, generate
from howwhen.records import Finish, Problem
from howwhen.settings import CollectSettings
from howwhen.zoo.tally import tally_problems
from tests.conftest import ARCHITECTURES, MakeModel
from tests.oracles.naive import next_logits

PROBLEMS = tally_problems(4, seed=21)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_rollouts_in_a_batch_equal_one_forward_pass_per_token(
    make_model: MakeModel, architecture: str
) -> None:
    model = make_model(architecture)
    rollouts = collect_rollouts(model, PROBLEMS, CollectSettings(max_new_tokens=10))
    for problem, rollout in zip(PROBLEMS, rollouts, strict=True):
        ids = model.prompt_ids(problem.question)
        for token in rollout.ids:
            assert token == int(next_logits(model, ids).argmax())
            ids.append(token)


def test_a_rollout_says_why_it_ended_and_loses_no_text(make_model: MakeModel) -> None:
    model = make_model()
    problems = tally_problems(12, seed=9)
    settings = CollectSettings(max_new_tokens=80, temperature=3.0)
    rollouts = collect_rollouts(model, problems, settings)
    assert {rollout.finish for rollout in rollouts} == {Finish.STOP, Finish.LENGTH}
    for rollout in rollouts:
        assert rollout.text == model.tokenizer.decode(rollout.ids)
        assert (rollout.ids[-1] in model.end_ids) == (rollout.finish is Finish.STOP)
        end = rollout.ids[:-1] if rollout.finish is Finish.STOP else rollout.ids
        assert "".join(rollout.sentences()) == model.tokenizer.decode(end)


def test_sampling_repeats_with_its_seed_and_ignores_the_models_own_settings(
    make_model: MakeModel,
) -> None:
    model = make_model()
    prompts = [model.prompt_ids(problem.question) for problem in PROBLEMS]
    first, again, other = (
        generate(model.model, model.end_ids, prompts, Sampling(12, 1.0, seed)) for seed in (0, 0, 1)
    )
    assert first == again != other
    model.model.generation_config.repetition_penalty = 5.0
    model.model.generation_config.top_k = 1
    assert generate(model.model, model.end_ids, prompts, Sampling(12, 1.0, 0)) == first


def test_answers_are_drawn_by_the_seed_of_the_settings(make_model: MakeModel) -> None:
    drawn = [
        [
            rollout.ids
            for rollout in collect_rollouts(
                make_model(),
                [replace(problem, id=name) for problem in PROBLEMS[:1]],
                CollectSettings(max_new_tokens=12, temperature=1.0, seed=seed),
            )
        ]
        for name, seed in (("gsm8k_test-1234", 0), ("gsm8k_test-1234", 7), ("other-1234", 0))
    ]
    assert drawn[0] != drawn[1]
    assert drawn[0] != drawn[2]


def test_prompts_without_room_for_an_answer_are_refused(make_model: MakeModel) -> None:
    settings = CollectSettings(max_new_tokens=255)
    with pytest.raises(InputError, match="lower max_new_tokens to at most"):
        collect_rollouts(make_model(), [Problem("a", "How many?", "1")] * 2, settings)
