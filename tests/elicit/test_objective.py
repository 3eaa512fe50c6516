from dataclasses import replace

import pytest
import torch

from howwhen.collect.rollouts import collect_rollouts
from howwhen.elicit.agreement import gate_sentence_agreement
from howwhen.elicit.examples import DecisionExample, Teacher
from howwhen.elicit.objective import (
    UnsteeredCache,
    category_losses,
    make_batch,
    steered_logits,
)
from howwhen.elicit.vectors import choose_training, split_lesson, train_vectors
from howwhen.errors import SteeringError
from howwhen.models import LanguageModel
from howwhen.records import Rollout
from howwhen.residual import residuals
from howwhen.settings import CollectSettings, ElicitSettings
from howwhen.zoo.tally import tally_problems
from tests.conftest import ARCHITECTURES, MakeModel
from tests.hybrid.test_decoder import make_taxonomy, make_vectors
from tests.oracles.naive import next_logits, steered_next_logits

PROBLEMS = tally_problems(5, seed=11)
QUESTIONS = [problem.question for problem in PROBLEMS]


def find(
    make_model: MakeModel, architecture: str = "llama"
) -> tuple[LanguageModel, LanguageModel, list[Rollout], list[DecisionExample]]:
    base, thinking = make_model(architecture, seed=0), make_model(architecture, seed=1)
    rollouts = collect_rollouts(thinking, PROBLEMS, CollectSettings(max_new_tokens=15))
    teacher = Teacher(base, thinking, make_taxonomy())
    return base, thinking, rollouts, teacher.find_decisions(rollouts, QUESTIONS, 2)


def test_decisions_are_where_the_naive_base_would_go_elsewhere(make_model: MakeModel) -> None:
    base, thinking, rollouts, examples = find(make_model)
    for question, rollout, example in zip(QUESTIONS, rollouts, examples, strict=True):
        prompt = base.prompt_ids(question)
        assert example.ids == (*prompt, *rollout.ids)
        found = []
        for step, token in enumerate(rollout.ids):
            greedy = int(next_logits(base, prompt + list(rollout.ids[:step])).argmax())
            if greedy != token:
                found.append(len(prompt) + step - 1)
        assert list(example.positions) == found
        taxonomy = make_taxonomy()
        whole = torch.tensor([example.ids])
        residual = residuals(thinking.model, [taxonomy.layer], input_ids=whole)[taxonomy.layer][0]
        categories = taxonomy.categorise(residual)[list(example.positions)]
        assert list(example.categories) == categories.tolist()
    assert sum(len(example.positions) for example in examples) > 10


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_decisions_in_one_pass_equal_one_naive_pass_each(
    make_model: MakeModel, architecture: str
) -> None:
    base, _, _, examples = find(make_model, architecture)
    vectors = make_vectors()
    batch = make_batch(examples, is_shared=False)
    logits = steered_logits(UnsteeredCache(base.model), examples, batch, vectors)
    for row, example in enumerate(examples):
        for column, (position, category) in enumerate(
            zip(example.positions, example.categories, strict=True)
        ):
            prefix = list(example.ids[: position + 1])
            expected = steered_next_logits(base, prefix, vectors, category)
            torch.testing.assert_close(logits[row, column], expected, atol=2e-4, rtol=2e-4)


def test_keeping_keys_and_values_changes_nothing(make_model: MakeModel) -> None:
    base, _, _, examples = find(make_model)
    batch, vectors = make_batch(examples, is_shared=False), make_vectors()
    cache, forgetful = UnsteeredCache(base.model), UnsteeredCache(base.model)
    forgetful.bytes_left = 0
    first = steered_logits(cache, examples, batch, vectors)
    assert torch.equal(first, steered_logits(cache, examples, batch, vectors))
    torch.testing.assert_close(first, steered_logits(forgetful, examples, batch, vectors))
    assert len(cache.kept) == len(examples)
    assert not forgetful.kept


def test_the_loss_weighs_categories_not_decisions() -> None:
    examples = [DecisionExample((1, 2, 3, 4, 5), (0, 1, 2), (0, 0, 1))]
    batch = make_batch(examples, is_shared=False)
    assert batch.targets.tolist() == [[2, 3, 4]]
    probabilities = torch.tensor([[0.5, 0.25, 0.125]])
    logits = torch.full((1, 3, 6), -torch.inf)
    for column, target in enumerate([2, 3, 4]):
        logits[0, column, target] = probabilities[0, column].log()
        logits[0, column, 0] = (1 - probabilities[0, column]).log()
    losses = category_losses(logits, batch, 3)
    expected = ((0.5 * torch.tensor([2.0, 4.0]).log().sum()) + torch.tensor(8.0).log()) / 2
    torch.testing.assert_close(losses.mean(), expected)


SETTINGS = ElicitSettings(steps=60, validate_every=10, patience=9, seeds=(0,), batch_size=4)


def test_training_lowers_the_loss_of_the_frozen_base_and_repeats(make_model: MakeModel) -> None:
    base, _, _, examples = find(make_model)
    before = base.model(input_ids=torch.tensor([examples[0].ids])).logits
    lesson = split_lesson(examples, examples[:2], 4, SETTINGS)
    cache = UnsteeredCache(base.model)
    first, again = (
        train_vectors(base, lesson, 1, 0, SETTINGS, cache, lambda _: None) for _ in range(2)
    )
    assert min(first.validation_losses) < first.validation_losses[0]
    assert torch.equal(first.vectors.vectors, again.vectors.vectors)
    assert torch.equal(before, base.model(input_ids=torch.tensor([examples[0].ids])).logits)
    assert first.vectors.vectors.shape == (4, 32)


def test_a_shared_vector_is_trained_on_every_decision(make_model: MakeModel) -> None:
    base, _, _, examples = find(make_model)
    lesson = split_lesson(examples, [], 1, SETTINGS)
    batch = make_batch(lesson.train, is_shared=True)
    assert set(batch.categories[batch.is_real].tolist()) == {0}
    assert int(batch.is_real.sum()) == sum(len(one.positions) for one in lesson.train)
    cache = UnsteeredCache(base.model)
    training = train_vectors(base, lesson, 1, 0, SETTINGS, cache, lambda _: None)
    assert training.vectors.vectors.shape == (1, 32)


def test_the_kept_seed_has_the_lowest_selection_loss(make_model: MakeModel) -> None:
    base, _, _, examples = find(make_model)
    lesson = split_lesson(examples, examples[:2], 4, SETTINGS)
    quick = SETTINGS.model_copy(update={"steps": 10})
    cache = UnsteeredCache(base.model)
    trainings = [train_vectors(base, lesson, 1, s, quick, cache, lambda _: None) for s in (0, 1)]
    worse = replace(trainings[0], selection_loss=trainings[1].selection_loss + 1)
    assert choose_training([worse, trainings[1]]) is trainings[1]


def test_rollouts_without_decisions_cannot_be_trained_on() -> None:
    silent = [DecisionExample((1, 2, 3), (), ())] * 5
    with pytest.raises(SteeringError, match="only 0 of 5 training rollouts hold a decision"):
        split_lesson(silent, [], 4, SETTINGS)


def test_a_taxonomy_of_another_width_is_refused(make_model: MakeModel) -> None:
    taxonomy = replace(make_taxonomy(), mean=torch.zeros(16))
    with pytest.raises(SteeringError, match="residuals of width 16.*width 32"):
        Teacher(make_model(seed=0), make_model(seed=1), taxonomy)


def test_gate_sentence_agreement_by_hand(make_model: MakeModel) -> None:
    _, thinking, rollouts, examples = find(make_model)
    assignments = [0 for rollout in rollouts for _ in rollout.spans]
    every = [
        category
        for example in examples
        for category, target in zip(example.categories, example.targets, strict=True)
        if target not in thinking.end_ids  # belongs to no sentence
    ]
    agreement = gate_sentence_agreement(rollouts, examples, assignments)
    assert agreement["decisions"] == len(every)
    assert agreement["share"] == pytest.approx(every.count(0) / len(every))
