"""Settings of the training that the paper's versions have otherwise than our defaults."""

import math
from random import Random

import pytest
import torch

from howwhen.elicit.examples import SoftTargets, SteeredWindow, TrainingExample
from howwhen.elicit.objective import Drawn, batch_losses
from howwhen.elicit.states import PrefixCache
from howwhen.elicit.trainer import Trainer
from howwhen.elicit.training import (
    in_steps,
    new_vectors,
    split_examples,
    train_vectors,
    without_untrained,
)
from howwhen.errors import SteeringError
from howwhen.settings import ElicitSettings
from tests.conftest import MakeModel
from tests.elicit.found import SETTINGS, examples_of, find, fresh


def test_epochs_are_as_many_steps_as_take_in_as_many_rollouts() -> None:
    settings = ElicitSettings(epochs=10, batch_size=4, validate_every="epoch")
    found = in_steps(settings, 10)
    assert (found.steps, found.validate_every) == (30, 3)
    assert in_steps(ElicitSettings(), 10) == ElicitSettings()


def test_vectors_can_start_at_norm_one() -> None:
    settings = ElicitSettings(vector_start="unit")
    one, again, other = (new_vectors("m", 1, 8, 3, "linear", settings, seed) for seed in (0, 0, 1))
    assert one.vectors.norm(dim=1).tolist() == pytest.approx([1.0] * 3)
    assert torch.equal(one.vectors, again.vectors)
    assert not torch.equal(one.vectors, other.vectors)


def test_categories_that_nothing_is_trained_on_start_at_zero_all_the_same() -> None:
    start = new_vectors("m", 1, 8, 3, "linear", ElicitSettings(vector_start="unit"), 0)
    windows = (SteeredWindow(1, 2, 0), SteeredWindow(2, 3, 2))
    kept = without_untrained(start, [TrainingExample((1, 2, 3, 4), windows, (3, 4))])
    assert kept.nonzero_categories().tolist() == [0, 2]
    one = new_vectors("m", 1, 8, 1, "linear", ElicitSettings(vector_start="unit"), 0)
    assert without_untrained(one, []) is one


def test_rates_fall_as_a_cosine(make_model: MakeModel) -> None:
    models, _, found = find(make_model)
    settings = SETTINGS.model_copy(update={"schedule": "cosine", "steps": 4})
    trainer = Trainer("vectors", fresh(4), 0, PrefixCache(models.base, 1), settings)
    examples = examples_of(found)
    rates = []
    for _ in range(4):
        batch = trainer.pick(examples)
        trainer.begin(batch)
        trainer.accumulate(batch)
        trainer.apply()
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
    shares = [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert [rate[0] for rate in rates] == pytest.approx(
        [settings.vector_learning_rate * share for share in shares]
    )
    assert rates[0][1] == pytest.approx(settings.network_learning_rate)


def test_softened_logits_are_in_the_loss(make_model: MakeModel) -> None:
    models, _, found = find(make_model)
    example = next(one for one in examples_of(found) if one.windows)
    states = PrefixCache(models.base, 1)
    losses = {
        scale: batch_losses(
            states,
            [Drawn(example, example)],
            fresh(4),
            SETTINGS.model_copy(update={"logit_scale": scale}),
        )
        for scale in (1.0, 0.7)
    }
    # Vectors of zero: the base's own logits, softened by hand.
    logits = models.base.model(torch.tensor([example.ids])).logits[0, list(example.positions)]
    wanted = torch.tensor(example.targets)
    for scale, found_losses in losses.items():
        by_hand = torch.nn.functional.cross_entropy(logits.float() * scale, wanted, reduction="sum")
        assert float(found_losses.sums.sum()) == pytest.approx(float(by_hand), rel=1e-4)
    assert float(losses[1.0].sums.sum()) != pytest.approx(float(losses[0.7].sums.sum()))


def questions(count: int) -> list[TrainingExample]:
    windows = (SteeredWindow(3, 4, 0),)
    return [TrainingExample((n, 1, 2, 7, 9), windows, (9,), prompt=3) for n in range(count)]


def test_what_stops_the_training() -> None:
    train, selection = questions(10), questions(14)[10:]
    by = {
        name: split_examples(
            train, selection, ElicitSettings(stop_by=name, validation_fraction=0.3)
        )
        for name in ("held-out", "train", "selection")
    }
    sizes = {name: tuple(map(len, (d.train, d.validation, d.selection))) for name, d in by.items()}
    assert sizes == {"held-out": (7, 3, 4), "train": (10, 3, 4), "selection": (10, 4, 4)}
    assert set(by["train"].validation) <= set(by["train"].train)
    assert by["selection"].validation is by["selection"].selection
    with pytest.raises(SteeringError, match="stop_by selection, but no answer"):
        split_examples(train, [], ElicitSettings(stop_by="selection"))


@pytest.mark.parametrize(("min_delta", "steps"), [(0.0, 12), (100.0, 4)])
def test_a_fall_that_is_too_small_is_no_improvement(
    make_model: MakeModel, min_delta: float, steps: int
) -> None:
    models, _, found = find(make_model)
    how = SETTINGS.model_copy(
        update={"steps": 12, "validate_every": 2, "patience": 2, "min_delta": min_delta}
    )
    data = split_examples(examples_of(found), [], how)
    states = PrefixCache(models.base, 1)
    training = train_vectors(fresh(4), data, states, how, 0, lambda _: None)
    assert training.steps == steps
    assert training.validation_losses[-1] < training.validation_losses[0]


def test_an_answer_counts_at_most_so_often_for_a_category() -> None:
    categories = [0, 1, 0, 0, 1, 2]
    windows = tuple(SteeredWindow(n, n + 1, category) for n, category in enumerate(categories))
    soft = SoftTargets(torch.arange(6)[:, None], torch.ones(6, 1))
    example = TrainingExample(tuple(range(7)), windows, tuple(range(1, 7)), soft)
    capped = example.capped(2, Random(0))
    assert [window.category for window in capped.windows].count(0) == 2
    assert len(capped.windows) == 5
    assert capped.targets == tuple(window.start + 1 for window in capped.windows)
    assert capped.soft is not None
    assert capped.soft.ids[:, 0].tolist() == [window.start for window in capped.windows]
    assert example.capped(9, Random(0)).windows == windows
