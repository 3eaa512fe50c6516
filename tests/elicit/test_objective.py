import json
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

from howwhen.collect.rollouts import collect_rollouts, make_rollout
from howwhen.elicit import training
from howwhen.elicit.decisions import Decisions, find_decisions
from howwhen.elicit.examples import (
    UNCOUNTED,
    SoftTargets,
    SteeredWindow,
    TrainingExample,
    thinking_of,
)
from howwhen.elicit.objective import (
    Drawn,
    batch_losses,
    by_category,
    counted,
    distribution_losses,
    make_batch,
    micro_batches,
    position_losses,
    steered_hidden,
)
from howwhen.elicit.spans import Sentence, bias_example, choose_sentences, span_examples
from howwhen.elicit.states import PrefixCache
from howwhen.elicit.trainer import Trainer
from howwhen.elicit.training import (
    choose_training,
    split_examples,
    train_together,
    train_vectors,
)
from howwhen.errors import SteeringError
from howwhen.lm.alignment import ModelPair
from howwhen.records import Finish, Rollout, SentenceSpan
from howwhen.settings import CollectSettings, ElicitSettings, Form
from howwhen.vectors import VectorSet
from howwhen.zoo.tally.corpus import teacher_solution
from howwhen.zoo.tally.truth import draw_problems
from tests.conftest import ARCHITECTURES, MakeModel
from tests.elicit.found import (
    GATE,
    PROBLEMS,
    QUESTIONS,
    READING,
    SETTINGS,
    examples_of,
    find,
    fresh,
)
from tests.factories import make_forms, make_vectors, random
from tests.oracles.naive import next_logits, next_logits_with, residual_at


def whole(examples: list[TrainingExample]) -> list[Drawn]:
    return [Drawn(example, example) for example in examples]


def logits_of(
    states: PrefixCache, examples: list[TrainingExample], vectors: VectorSet
) -> torch.Tensor:
    batch = make_batch(examples, is_shared=False)
    hidden, head = steered_hidden(states, whole(examples), batch, vectors)
    return head(hidden[batch.is_real])


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
        assert one.base_losses.tolist() == pytest.approx(losses, abs=1e-3)
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
    found = find_decisions(models, GATE.layer, answers, QUESTIONS, READING, is_own=False)
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
    logits = logits_of(PrefixCache(models.base, vectors.layer), examples, vectors)
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
    logits = logits_of(PrefixCache(models.base, 1), examples, vectors)
    window = examples[0].windows[0]
    expected = naive_logits(models, examples[0], vectors, window, window.start + 2)
    torch.testing.assert_close(logits[2], expected, atol=3e-4, rtol=3e-4)


def test_the_loss_weighs_categories_not_positions() -> None:
    windows = (SteeredWindow(0, 2, 0), SteeredWindow(2, 3, 1))
    batch = make_batch([TrainingExample((1, 2, 3, 4, 5), windows, (2, 3, 4))], is_shared=False)
    assert batch.targets.tolist() == [[2, 3, 4]]
    probabilities = torch.tensor([0.5, 0.25, 0.125])
    logits = torch.full((3, 6), -torch.inf)
    for row, target in enumerate([2, 3, 4]):
        logits[row, target] = probabilities[row].log()
        logits[row, 0] = (1 - probabilities[row]).log()
    nats = position_losses(logits, lambda x: x, batch.is_real[0], batch.targets[0], 6, 1.0)
    losses = by_category(nats, batch.categories[0], 3)
    expected = ((0.5 * torch.tensor([2.0, 4.0]).log().sum()) + torch.tensor(8.0).log()) / 2
    torch.testing.assert_close(losses.mean(), expected)


def test_the_distribution_loss_is_cross_entropy_with_the_thinking_model(
    make_model: MakeModel,
) -> None:
    _, _, found = find(make_model)
    examples = examples_of(found)
    count = sum(len(one.positions) for one in found)
    logits = random(count, 200, seed=3)
    soft = found[0].soft
    every = SoftTargets(
        torch.cat([example.soft.ids for example in examples if example.soft]),
        torch.cat([example.soft.probs for example in examples if example.soft]),
    )
    losses = distribution_losses(logits, every)
    expected = -(soft.probs[0] * logits[0].log_softmax(0)[soft.ids[0]]).sum()
    torch.testing.assert_close(losses[0], expected)
    assert losses.shape == (count,)


def test_examples_are_cut_to_a_part_of_the_answer() -> None:
    windows = (SteeredWindow(2, 3, 1), SteeredWindow(4, 8, 2), SteeredWindow(9, 10, 3))
    ids = tuple(range(20, 31))
    targets = tuple(ids[p + 1] for w in windows for p in range(w.start, w.end))
    soft = SoftTargets(torch.arange(12).view(6, 2), torch.full((6, 2), 0.5))
    whole = TrainingExample(ids, windows, targets, soft, prompt=3)  # tokens from position 2 on
    part = whole.within(1, 5)  # positions 3 to 6
    assert part.windows == (SteeredWindow(4, 7, 2),)
    assert part.targets == (25, 26, 27)
    assert part.soft is not None
    assert part.soft.ids.tolist() == [[2, 3], [4, 5], [6, 7]]
    assert part.ids == whole.ids
    assert whole.within(0, 9).windows == windows
    assert whole.within(0, 9).targets == targets
    assert whole.within(3, 3).windows == ()


def test_the_thinking_part_alone_can_be_trained_on() -> None:
    spans = (SentenceSpan(0, 4, 1, 2), SentenceSpan(4, 9, 2, 5))
    windows = tuple(SteeredWindow(9 + step, 10 + step, 0) for step in (0, 3, 5))
    example = TrainingExample(tuple(range(17)), windows, (1, 2, 3), prompt=10)
    for sentences, steps in ((spans, [3]), ((), [])):
        rollout = Rollout("a", tuple(range(7)), "", Finish.STOP, sentences)
        cut = thinking_of(rollout, example)
        assert [window.start - 9 for window in cut.windows] == steps


def test_the_coefficient_network_starts_as_the_papers_does() -> None:
    start = fresh(4, settings=SETTINGS.model_copy(update={"hidden": 512}))
    tensors = start.tensors()
    assert not tensors["vectors"].any()
    for name in ("hidden_bias", "heads_bias"):
        assert (tensors[name] == 0.5).all()
    for name, bound in (("hidden", (6 / 544) ** 0.5), ("heads", (6 / 513) ** 0.5)):
        largest = float(tensors[name].abs().max())
        assert 0.99 * bound < largest <= bound
        assert float(tensors[name].std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    # Every coefficient is moderate before anything is learnt.
    residual = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    coefficients = start.coefficient(residual, torch.zeros(64, dtype=torch.long))
    assert 0.3 < float(coefficients.mean()) < 2


def test_gradients_of_the_network_are_clipped_and_those_of_the_vectors_are_not(
    make_model: MakeModel,
) -> None:
    models, _, found = find(make_model)
    examples = examples_of(found)
    sizes = {}
    for clip in (None, 1e-6):
        settings = SETTINGS.model_copy(update={"clip": clip})
        trainer = Trainer("v", fresh(4), 0, PrefixCache(models.base, 1), settings)
        trainer.parameters["vectors"].data.fill_(0.3)
        trainer.begin(examples[:2])
        trainer.accumulate(examples[:2])
        trainer.apply()
        grads = {name: one.grad for name, one in trainer.parameters.items()}
        sizes[clip] = {
            name: 0.0 if one is None else float(one.norm()) for name, one in grads.items()
        }
    assert sizes[None]["vectors"] == sizes[1e-6]["vectors"] > 0
    network = [sizes[1e-6][name] for name in ("hidden", "hidden_bias", "heads", "heads_bias")]
    assert sum(one**2 for one in network) ** 0.5 == pytest.approx(1e-6, rel=0.01)
    assert sizes[None]["heads"] > 1e-5


@pytest.mark.parametrize("objective", ["token", "distribution"])
@pytest.mark.parametrize("form", ["network", "linear", "gated", "low-rank"])
def test_training_lowers_the_loss_of_the_frozen_base_and_repeats(
    make_model: MakeModel, form: Form, objective: str
) -> None:
    models, _, found = find(make_model)
    examples = examples_of(found)
    before = models.base.model(input_ids=torch.tensor([examples[0].ids])).logits
    settings = SETTINGS.model_copy(update={"objective": objective})
    data = split_examples(examples, examples[:2], settings)
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
    data = split_examples(spans_of(found), [], SETTINGS)
    states = PrefixCache(models.base, 1)
    trained = train_vectors(start, data, states, SETTINGS, 0, lambda _: None).vectors
    assert trained.bias is not None
    assert torch.equal(trained.bias, bias)
    assert trained.vectors[1:3].norm(dim=1).min() > 0
    assert trained.vectors[[0, 3]].norm() == 0  # no sentence of these categories


def test_a_shared_vector_is_trained_on_every_position(make_model: MakeModel) -> None:
    models, _, found = find(make_model)
    data = split_examples(examples_of(found), [], SETTINGS)
    batch = make_batch(data.train, is_shared=True)
    assert set(batch.categories[batch.is_real].tolist()) == {0}
    assert int(batch.is_real.sum()) == sum(len(one.positions) for one in data.train)
    states = PrefixCache(models.base, 1)
    training = train_vectors(fresh(1), data, states, SETTINGS, 0, lambda _: None)
    assert training.vectors.vectors.shape == (1, 32)


def test_the_kept_seed_has_the_lowest_selection_loss(make_model: MakeModel) -> None:
    models, _, found = find(make_model)
    examples = examples_of(found)
    data = split_examples(examples, examples[:2], SETTINGS)
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
    data = split_examples(examples, [], ElicitSettings(validation_fraction=0.3))
    parts = [{example.ids[0] for example in part} for part in (data.train, data.validation)]
    assert len(data.validation) == 9
    assert len(data.train) == 21
    assert not parts[0] & parts[1]


def test_rollouts_without_decisions_cannot_be_trained_on() -> None:
    silent = [TrainingExample((1, 2, 3), (), ())] * 5
    with pytest.raises(SteeringError, match="only 0 questions of 5 training rollouts hold"):
        split_examples(silent, [], SETTINGS)


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
    read = find_decisions(models, GATE.layer, rollouts, QUESTIONS, READING, report=told.append)
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
    for rollout, one in zip(rollouts, found, strict=True):
        example = bias_example(one)
        assert example.targets == rollout.ids
        assert set(example.categories) == {0}


def test_a_draw_keeps_only_what_the_losses_that_count_depend_on() -> None:
    windows = (SteeredWindow(2, 3, 1), SteeredWindow(4, 8, 2), SteeredWindow(9, 10, 3))
    ids, targets = tuple(range(12)), (3, 5, 6, 7, 8, 10)
    example = TrainingExample(ids, windows, targets, prompt=2)
    assert example.draw(6, Random(0)) is example
    seen = set()
    for seed in range(60):
        drawn = example.draw(2, Random(seed))
        counts = [p for p, t in zip(drawn.positions, drawn.targets, strict=True) if t != UNCOUNTED]
        assert len(counts) == 2
        assert all(ids[p + 1] in drawn.targets for p in counts)
        for window in drawn.windows:
            assert window.end - 1 in counts
            assert window.start in {2, 4, 9}
        assert int(counted([drawn], 4).sum()) == 2
        seen.update(counts)
    assert seen == set(example.positions)


def test_a_draw_of_decisions_keeps_their_distributions(make_model: MakeModel) -> None:
    _, _, found = find(make_model)
    example = max(examples_of(found), key=lambda one: len(one.positions))
    drawn = example.draw(3, Random(1))
    assert example.soft is not None
    assert drawn.soft is not None
    rows = [example.positions.index(position) for position in drawn.positions]
    assert UNCOUNTED not in drawn.targets
    assert torch.equal(drawn.soft.ids, example.soft.ids[rows])
    assert drawn.targets == tuple(example.targets[row] for row in rows)


def test_what_counts_is_the_same_whatever_else_is_drawn(make_model: MakeModel) -> None:
    """Losses of the drawn positions, from an example that has more windows and longer ones."""
    models, _, found = find(make_model)
    examples, vectors = spans_of(found), make_vectors(model=models.base.name)
    states = PrefixCache(models.base, vectors.layer)
    every = logits_of(states, examples, vectors).log_softmax(1)
    drawn = [Drawn(one, one.draw(3, Random(5))) for one in examples]
    expected, first = 0.0, 0
    for one in drawn:
        places = {position: row for row, position in enumerate(one.whole.positions)}
        for position, target in zip(one.part.positions, one.part.targets, strict=True):
            if target != UNCOUNTED:
                expected -= float(every[first + places[position], target])
        first += len(one.whole.positions)
    losses = batch_losses(states, drawn, vectors, SETTINGS)
    assert int(losses.counts.sum()) == 3 * len(examples)
    assert float(losses.sums.sum()) == pytest.approx(expected, abs=1e-3)


def test_passes_hold_as_many_positions_as_they_may() -> None:
    examples = [
        TrainingExample(tuple(range(9)), (SteeredWindow(start, start + 1, 0),), (1,))
        for start in (3, 5, 1, 1, 7)
    ]  # positions attended to or steered: 4, 6, 2, 2, 8
    sizes = [
        [len(part) for part in micro_batches(whole(examples), positions)]
        for positions in (1, 12, 24, 999)
    ]
    assert sizes == [[1] * 5, [2, 2, 1], [4, 1], [5]]


TIGHT: dict[str, dict[str, float]] = {
    "passes of one text": {"positions_per_pass": 1},
    "logits of one position": {"logits_gib": 1e-9},
    "recomputed blocks": {"activations_gib": 1e-9},
}


@pytest.mark.parametrize("kind", ["decision", "span"])
@pytest.mark.parametrize("how", TIGHT)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_tight_budget_trains_the_same_vectors(
    make_model: MakeModel, architecture: str, how: str, kind: str
) -> None:
    models, _, found = find(make_model, architecture)
    examples = examples_of(found) if kind == "decision" else spans_of(found)
    quick = SETTINGS.model_copy(update={"steps": 6, "validate_every": 3})
    data = split_examples(examples, [], quick)
    trainings = [
        train_vectors(fresh(4), data, PrefixCache(models.base, 1), settings, 0, lambda _: None)
        for settings in (quick, quick.model_copy(update=TIGHT[how]))
    ]
    first, second = (training.vectors.tensors() for training in trainings)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-5, rtol=1e-4)
    losses = [training.validation_losses for training in trainings]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0][-1] < losses[0][0]
    if how == "recomputed blocks":
        assert all(torch.equal(second[name], tensor) for name, tensor in first.items())


@pytest.mark.parametrize("share", [2, 0.6, 0])
def test_training_resumed_after_any_evaluation_ends_the_same(
    make_model: MakeModel, share: float
) -> None:
    """With states that fit at once, in chapters, and one at a time."""
    models, _, found = find(make_model)
    settings = SETTINGS.model_copy(update={"steps": 12, "validate_every": 4, "batch_size": 2})
    data = split_examples(examples_of(found), [], settings)
    gib = PrefixCache(models.base, 1).size(data.train) * share / 2**30

    def make() -> tuple[PrefixCache, list[Trainer]]:
        states = PrefixCache(models.base, 1, gib)
        return states, [
            Trainer(name, fresh(size), seed, states, settings)
            for name, size in (("vectors", 4), ("shared", 1))
            for seed in (0, 1)
        ]

    states, first = make()
    saved: dict[int, list[tuple[dict[str, torch.Tensor], str]]] = {}

    def save(step: int) -> None:
        saved[step] = [
            (
                {name: value.clone() for name, value in one.tensors().items()},
                json.dumps(one.notes()),
            )
            for one in first
        ]

    train_together(first, data, states, settings, lambda _: None, save)
    assert list(saved) == [4, 8, 12]
    for done, kept in saved.items():
        states, second = make()
        for trainer, (tensors, notes) in zip(second, kept, strict=True):
            trainer.restore(tensors, json.loads(notes))
        train_together(second, data, states, settings, lambda _: None, done=done)
        for one, other in zip(first, second, strict=True):
            assert one.result().notes == other.result().notes
            for name, tensor in one.result().vectors.tensors().items():
                assert torch.equal(other.result().vectors.tensors()[name], tensor)


def test_a_training_that_is_not_finished_has_no_result(make_model: MakeModel) -> None:
    trainer = Trainer("vectors", fresh(4), 7, PrefixCache(make_model("llama"), 1), SETTINGS)
    with pytest.raises(ValueError, match="vectors-7 is not finished; call train_together first"):
        trainer.result()


def test_seeds_differ_where_they_share_their_batches(make_model: MakeModel) -> None:
    """Linear vectors start at zero, so that only the batches can tell seeds apart."""
    models, _, found = find(make_model)
    data = split_examples(examples_of(found), [], SETTINGS)
    trainers = [
        Trainer("vectors", fresh(4, "linear"), seed, PrefixCache(models.base, 1, 1e-9), SETTINGS)
        for seed in (0, 1)
    ]
    train_together(trainers, data, trainers[0].states, SETTINGS, lambda _: None)
    first, second = (trainer.result() for trainer in trainers)
    assert not torch.equal(first.vectors.vectors, second.vectors.vectors)
    for one in (first, second):
        assert min(one.validation_losses) < one.validation_losses[0]


def test_windows_drawn_in_part_keep_the_distributions_that_count(make_model: MakeModel) -> None:
    models, _, found = find(make_model)
    settings = SETTINGS.model_copy(update={"objective": "distribution"})
    example = spans_of(found)[0]
    sure = SoftTargets(torch.tensor(example.targets)[:, None], torch.ones(8, 1))
    part = replace(example, soft=sure).draw(3, Random(2))
    drawn, vectors = [Drawn(example, part)], make_vectors(model=models.base.name)
    states = PrefixCache(models.base, vectors.layer)
    soft = batch_losses(states, drawn, vectors, settings)
    torch.testing.assert_close(soft.sums, batch_losses(states, drawn, vectors, SETTINGS).sums)
    assert int(soft.counts.sum()) == 3


@pytest.mark.parametrize("broken", ["gradient", "evaluation", "selection"])
def test_a_training_whose_numbers_break_is_refused(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    models, _, found = find(make_model)
    data = split_examples(examples_of(found), [], SETTINGS)
    trainer = Trainer("vectors", fresh(4), 7, PrefixCache(models.base, 1), SETTINGS)
    messages = {
        "gradient": "failed after 0 steps: the loss or its gradient is nan",
        "evaluation": "failed after 0 steps: the validation loss is inf",
        "selection": "the selection loss is nan",
    }
    if broken == "gradient":
        add = Trainer.accumulate

        def spoil(one: Trainer, among: Sequence[TrainingExample]) -> None:
            add(one, among)
            gradient = one.parameters["vectors"].grad
            assert gradient is not None
            gradient[0, 0] = torch.nan

        monkeypatch.setattr(Trainer, "accumulate", spoil)
    elif broken == "evaluation":
        monkeypatch.setattr(training, "_evaluate", lambda *_: [torch.inf])
    else:
        evaluate = training._evaluate

        def spoil_last(*args: Any) -> list[float]:
            losses = evaluate(*args)
            return [torch.nan] if args[1] is data.selection else losses

        monkeypatch.setattr(training, "_evaluate", spoil_last)
        data = replace(data, selection=list(data.selection))
    with pytest.raises(SteeringError, match=f"the training vectors-7 .*{messages[broken]}"):
        train_together([trainer], data, trainer.states, SETTINGS, lambda _: None)


def test_float16_keeps_the_gradients_of_large_batches(make_model: MakeModel) -> None:
    """A mean over ten thousand positions has gradients that float16 cannot hold."""
    gradients = {}
    for dtype in (torch.float32, torch.float16):
        models, _, found = find(make_model)
        models.base.model.to(dtype)
        trainer = Trainer("vectors", fresh(4), 7, PrefixCache(models.base, 1), SETTINGS)
        examples = examples_of(found)
        trainer.begin(examples)
        trainer._counts = trainer._counts * 10_000
        trainer.accumulate(examples)
        scale = trainer._scale
        gradient = trainer.parameters["vectors"].grad
        assert gradient is not None
        gradients[dtype] = gradient / scale
    assert scale > 10_000
    expected, found_half = gradients.values()
    cosine = torch.cosine_similarity(expected, found_half, dim=1)
    assert cosine.min() > 0.99
