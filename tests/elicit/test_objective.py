from dataclasses import replace

import pytest
import torch

from howwhen.collect.rollouts import collect_rollouts, make_rollout
from howwhen.elicit.examples import Decisions, SteeredWindow, TrainingExample, find_decisions
from howwhen.elicit.objective import (
    PrefixCache,
    by_category,
    distribution_losses,
    make_batch,
    steered_logits,
    token_losses,
)
from howwhen.elicit.spans import Sentence, bias_examples, choose_sentences, span_examples
from howwhen.elicit.training import choose_training, new_vectors, split_examples, train_vectors
from howwhen.errors import SteeringError
from howwhen.lm.alignment import ModelPair
from howwhen.records import Rollout
from howwhen.settings import CollectSettings, ElicitSettings, Form
from howwhen.vectors import VectorSet
from howwhen.zoo.tally import tally_problems
from howwhen.zoo.tally.corpus import teacher_solution
from howwhen.zoo.tally.truth import draw_problems
from tests.conftest import ARCHITECTURES, MakeModel
from tests.factories import make_forms, make_gate, make_models, make_vectors, random
from tests.oracles.naive import next_logits, next_logits_with, residual_at

PROBLEMS = tally_problems(5, seed=11)
QUESTIONS = [problem.question for problem in PROBLEMS]
GATE = make_gate()
Found = tuple[ModelPair, list[Rollout], list[Decisions]]


def find(make_model: MakeModel, architecture: str = "llama") -> Found:
    models = make_models(make_model, architecture)
    rollouts = collect_rollouts(models.thinking, PROBLEMS, CollectSettings(max_new_tokens=15))
    return models, rollouts, find_decisions(models, GATE.layer, rollouts, QUESTIONS, 2)


def examples_of(found: list[Decisions]) -> list[TrainingExample]:
    return [one.example(GATE) for one in found]


def spans_of(found: list[Decisions]) -> list[TrainingExample]:
    """Two neighbouring windows of four positions in every long answer, of two categories."""
    made = []
    for one in found:
        first = one.prompt - 1
        if len(one.ids) < first + 9:
            continue
        windows = (SteeredWindow(first, first + 4, 1), SteeredWindow(first + 4, first + 8, 2))
        targets = one.ids[first + 1 : first + 9]
        made.append(TrainingExample(one.ids, windows, targets))
    return made


def test_decisions_are_where_the_naive_base_would_go_elsewhere(make_model: MakeModel) -> None:
    models, rollouts, found = find(make_model)
    for question, rollout, one in zip(QUESTIONS, rollouts, found, strict=True):
        prompt, other = models.base.prompt_ids(question), models.thinking.prompt_ids(question)
        assert one.ids == (*prompt, *rollout.ids)
        positions, losses = [], []
        for step, token in enumerate(rollout.ids):
            logits = next_logits(models.base, prompt + list(rollout.ids[:step]))
            losses.append(-float(logits.log_softmax(0)[token]))
            if int(logits.argmax()) != token:
                positions.append(len(prompt) + step - 1)
        assert list(one.positions) == positions
        assert one.base_losses == pytest.approx(losses, abs=1e-3)
        shift = len(other) - len(prompt)
        states = residual_at(models.thinking, other + list(rollout.ids), GATE.layer)
        chosen = states[[p + shift for p in positions]]
        torch.testing.assert_close(one.states, chosen, atol=1e-4, rtol=1e-4)
        expected = GATE.categorise(chosen).tolist()
        assert list(one.example(GATE).categories) == expected
        assert one.targets == tuple(one.ids[p + 1] for p in positions)
        assert [int(row[0]) for row in one.soft.ids] == list(one.targets)  # it wrote greedily
        torch.testing.assert_close(one.soft.probs.sum(1), torch.ones(len(positions)))
    assert sum(len(one.positions) for one in found) > 10


def test_decisions_of_foreign_answers_want_the_thinking_models_greedy_token(
    make_model: MakeModel,
) -> None:
    models, _, _ = find(make_model)
    answers = collect_rollouts(models.base, PROBLEMS, CollectSettings(max_new_tokens=8))
    found = find_decisions(models, GATE.layer, answers, QUESTIONS, 2, is_own=False)
    for question, answer, one in zip(QUESTIONS, answers, found, strict=True):
        wanted = []
        for step in range(len(answer.ids)):
            said = list(answer.ids[:step])
            ours = int(next_logits(models.base, models.base.prompt_ids(question) + said).argmax())
            other = models.thinking.prompt_ids(question) + said
            theirs = int(next_logits(models.thinking, other).argmax())
            if ours != theirs:
                wanted.append(theirs)
        assert list(one.targets) == wanted


def naive_logits(
    models: ModelPair,
    example: TrainingExample,
    vectors: VectorSet,
    window: SteeredWindow,
    position: int,
) -> torch.Tensor:
    """Logits after `position` of a window, with the window steered up to it and nothing else."""
    prefix = list(example.ids[: position + 1])
    residual = residual_at(models.base, prefix, vectors.layer)[window.start :]
    delta = vectors.delta(residual, torch.full((len(residual),), window.category))
    places = range(window.start, position + 1)
    deltas = dict(zip(places, delta, strict=True))
    return next_logits_with(models.base, prefix, vectors.layer, deltas)


@pytest.mark.parametrize("kind", ["decision", "span"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_windows_in_one_pass_equal_one_naive_pass_each(
    make_model: MakeModel, architecture: str, kind: str
) -> None:
    models, _, found = find(make_model, architecture)
    examples = examples_of(found) if kind == "decision" else spans_of(found)
    vectors = make_vectors(model=models.base.name)
    batch = make_batch(examples, is_shared=False)
    states = PrefixCache(models.base, vectors.layer)
    logits = steered_logits(states, examples, batch, vectors)
    expected = [
        naive_logits(models, example, vectors, window, position)
        for example in examples
        for window in example.windows
        for position in range(window.start, window.end)
    ]
    torch.testing.assert_close(logits, torch.stack(expected), atol=3e-4, rtol=3e-4)


@pytest.mark.parametrize("form", make_forms())
def test_every_form_is_trained_as_it_is_used(make_model: MakeModel, form: str) -> None:
    models, _, found = find(make_model)
    examples, vectors = spans_of(found)[:2], make_forms()[form]
    batch = make_batch(examples, is_shared=False)
    logits = steered_logits(PrefixCache(models.base, 1), examples, batch, vectors)
    window = examples[0].windows[0]
    expected = naive_logits(models, examples[0], vectors, window, window.start + 2)
    torch.testing.assert_close(logits[2], expected, atol=3e-4, rtol=3e-4)


def test_keeping_states_changes_nothing(make_model: MakeModel) -> None:
    models, _, found = find(make_model)
    examples, vectors = examples_of(found), make_vectors()
    batch = make_batch(examples, is_shared=False)
    keeping, forgetful = PrefixCache(models.base, 1), PrefixCache(models.base, 1, 0)
    first = steered_logits(keeping, examples, batch, vectors)
    assert torch.equal(first, steered_logits(keeping, examples, batch, vectors))
    torch.testing.assert_close(first, steered_logits(forgetful, examples, batch, vectors))
    assert len(keeping.kept) == len(examples)
    assert not forgetful.kept


def test_the_loss_weighs_categories_not_positions() -> None:
    windows = (SteeredWindow(0, 2, 0), SteeredWindow(2, 3, 1))
    batch = make_batch([TrainingExample((1, 2, 3, 4, 5), windows, (2, 3, 4))], is_shared=False)
    assert batch.targets.tolist() == [[2, 3, 4]]
    probabilities = torch.tensor([0.5, 0.25, 0.125])
    logits = torch.full((3, 6), -torch.inf)
    for row, target in enumerate([2, 3, 4]):
        logits[row, target] = probabilities[row].log()
        logits[row, 0] = (1 - probabilities[row]).log()
    losses = by_category(token_losses(logits, batch), batch, 3)
    expected = ((0.5 * torch.tensor([2.0, 4.0]).log().sum()) + torch.tensor(8.0).log()) / 2
    torch.testing.assert_close(losses.mean(), expected)


def test_the_distribution_loss_is_cross_entropy_with_the_thinking_model(
    make_model: MakeModel,
) -> None:
    _, _, found = find(make_model)
    examples = examples_of(found)
    count = sum(len(one.positions) for one in found)
    logits = random(count, 200, seed=3)
    losses = distribution_losses(logits, examples)
    soft = found[0].soft
    expected = -(soft.probs[0] * logits[0].log_softmax(0)[soft.ids[0]]).sum()
    torch.testing.assert_close(losses[0], expected)
    assert losses.shape == (count,)


SETTINGS = ElicitSettings(steps=60, validate_every=10, patience=9, seeds=(0,), batch_size=4)


def fresh(size: int, form: Form = "network", settings: ElicitSettings = SETTINGS) -> VectorSet:
    return new_vectors("llama-0", 1, 32, size, form, settings, 0)


@pytest.mark.parametrize("objective", ["token", "distribution"])
@pytest.mark.parametrize("form", ["network", "linear", "gated", "low-rank"])
def test_training_lowers_the_loss_of_the_frozen_base_and_repeats(
    make_model: MakeModel, form: Form, objective: str
) -> None:
    models, _, found = find(make_model)
    examples = examples_of(found)
    before = models.base.model(input_ids=torch.tensor([examples[0].ids])).logits
    settings = SETTINGS.model_copy(update={"objective": objective})
    data = split_examples(examples, examples[:2], 4, settings)
    states = PrefixCache(models.base, 1)
    first, again = (
        train_vectors(fresh(4, form), data, states, settings, 0, lambda _: None) for _ in range(2)
    )
    assert min(first.validation_losses) < first.validation_losses[0]
    assert first.losses[-1] < first.losses[0]
    assert torch.equal(first.vectors.vectors, again.vectors.vectors)
    after = models.base.model(input_ids=torch.tensor([examples[0].ids])).logits
    assert torch.equal(before, after)
    assert first.vectors.vectors.shape == (4, 32)


def test_a_bias_vector_stays_as_it_is(make_model: MakeModel) -> None:
    models, _, found = find(make_model)
    bias = random(32, seed=1)
    start = replace(fresh(4, "linear"), bias=bias)
    data = split_examples(spans_of(found), [], 4, SETTINGS)
    states = PrefixCache(models.base, 1)
    trained = train_vectors(start, data, states, SETTINGS, 0, lambda _: None).vectors
    assert trained.bias is not None
    assert torch.equal(trained.bias, bias)
    assert trained.vectors[1:3].norm(dim=1).min() > 0
    assert trained.vectors[[0, 3]].norm() == 0  # no sentence of these categories


def test_a_shared_vector_is_trained_on_every_position(make_model: MakeModel) -> None:
    models, _, found = find(make_model)
    data = split_examples(examples_of(found), [], 1, SETTINGS)
    batch = make_batch(data.train, is_shared=True)
    assert set(batch.categories[batch.is_real].tolist()) == {0}
    assert int(batch.is_real.sum()) == sum(len(one.positions) for one in data.train)
    states = PrefixCache(models.base, 1)
    training = train_vectors(fresh(1), data, states, SETTINGS, 0, lambda _: None)
    assert training.vectors.vectors.shape == (1, 32)


def test_the_kept_seed_has_the_lowest_selection_loss(make_model: MakeModel) -> None:
    models, _, found = find(make_model)
    examples = examples_of(found)
    data = split_examples(examples, examples[:2], 4, SETTINGS)
    quick = SETTINGS.model_copy(update={"steps": 10})
    states = PrefixCache(models.base, 1)
    trainings = [
        train_vectors(fresh(4), data, states, quick, seed, lambda _: None) for seed in (0, 1)
    ]
    worse = replace(trainings[0], selection_loss=trainings[1].selection_loss + 1)
    assert choose_training([worse, trainings[1]]) is trainings[1]


def test_no_question_is_trained_on_and_validated_on() -> None:
    """Ten questions, each answered three times."""
    windows = (SteeredWindow(3, 4, 0),)
    examples = [
        TrainingExample((question, 1, 2, answer, 9), windows, (9,), prompt=3)
        for answer in range(3)
        for question in range(10)
    ]
    data = split_examples(examples, [], 1, ElicitSettings(validation_fraction=0.3))
    parts = [{example.ids[0] for example in part} for part in (data.train, data.validation)]
    assert len(data.validation) == 9
    assert len(data.train) == 21
    assert not parts[0] & parts[1]


def test_rollouts_without_decisions_cannot_be_trained_on() -> None:
    silent = [TrainingExample((1, 2, 3), (), ())] * 5
    with pytest.raises(SteeringError, match="only 0 questions of 5 training rollouts hold"):
        split_examples(silent, [], 4, SETTINGS)


def test_sentences_are_chosen_by_activation_then_by_the_bases_surprise() -> None:
    """Of nine sentences the eight most typical are looked at, the two least likely are kept."""
    losses = [1.0, 5.0, 2.0, 3.0, 9.0, 0.5, 0.1, 0.2, 99.0]
    sentences = [
        Sentence(number, SteeredWindow(0, 1, 0), activation=10.0 - number, base_loss=loss)
        for number, loss in enumerate(losses)
    ]
    assert [one.rollout for one in choose_sentences(sentences, 2)] == [4, 1]


def test_span_windows_predict_exactly_the_sentences_tokens(make_model: MakeModel) -> None:
    models, _, _ = find(make_model)
    tokenizer = models.thinking.tokenizer
    texts = [teacher_solution(problem) for problem in draw_problems(5, seed=11)]
    rollouts = [
        make_rollout(
            models.thinking, problem, [*tokenizer(text, add_special_tokens=False)["input_ids"], 2]
        )
        for problem, text in zip(PROBLEMS, texts, strict=True)
    ]
    told: list[int] = []
    read = find_decisions(models, GATE.layer, rollouts, QUESTIONS, 2, report=told.append)
    assert told == [2, 4, 5]
    scores = random(sum(len(one.spans) for one in rollouts), 3)
    examples = span_examples(rollouts, read, scores, 10**6, min_words=1)
    row = 0
    for rollout, example in zip(rollouts, examples, strict=True):
        said = tuple(i for span in rollout.spans for i in rollout.ids[span[2] : span[3]])
        assert example.targets == said
        own = scores[row : row + len(rollout.spans)].argmax(1).tolist()
        assert [window.category for window in example.windows] == own
        row += len(rollout.spans)
    assert row > 20
    fewer = span_examples(rollouts, read, scores, 1, min_words=1)
    assert sum(len(example.windows) for example in fewer) == 3


def test_the_bias_sees_whole_answers(make_model: MakeModel) -> None:
    _, rollouts, found = find(make_model)
    for rollout, example in zip(rollouts, bias_examples(found), strict=True):
        assert example.targets == rollout.ids
        assert set(example.categories) == {0}
