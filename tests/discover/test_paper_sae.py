"""Autoencoders trained as the paper's code trains them."""

import math

import pytest
import torch

from howwhen.discover.paper_sae import Sentences, paper_rate, train_as_paper
from howwhen.discover.sae import Shape, Training, evaluate, train_grids
from howwhen.settings import DiscoverSettings
from tests.discover.planted import planted
from tests.oracles.sae import loss_of

SETTINGS = DiscoverSettings(trainer="paper", sentences_per_step=128, epochs=60)


def test_the_rate_is_the_papers() -> None:
    """0.008 to 0.011 for the sizes of the published grid (PAPER: 2e-4 / sqrt(K / 2^14))."""
    assert paper_rate(2**14) == pytest.approx(2e-4)
    assert paper_rate(5) == pytest.approx(0.01145, abs=1e-5)
    assert paper_rate(50) == pytest.approx(0.00362, abs=1e-5)


def test_planted_directions_are_found_from_random_ones() -> None:
    inputs, _ = planted()
    trainings = [Training(inputs, 0), Training(inputs, 1)]
    grids = train_grids(trainings, [Shape(3, 1), Shape(8, 2)], SETTINGS)
    assert [len(grid) for grid in grids] == [2, 2]
    three, eight = (evaluate(sae, inputs) for sae in grids[0])
    assert three.fvu < 0.5
    assert eight.fvu < three.fvu
    for grid in grids:
        for sae in grid:
            torch.testing.assert_close(sae.decoder.norm(dim=1), torch.ones(len(sae.decoder)))
    assert not torch.equal(grids[0][0].encoder, grids[1][0].encoder)
    again = train_grids(trainings[:1], [Shape(3, 1)], SETTINGS)[0][0]
    assert torch.equal(again.encoder, grids[0][0].encoder)


def test_a_last_batch_of_one_sentence_breaks_nothing() -> None:
    inputs, _ = planted()
    size = SETTINGS.sentences_per_step
    even = inputs[: 4 * size]
    (plain,), (odd,) = (
        train_grids([Training(rows, 0)], [Shape(3, 1)], SETTINGS)[0]
        for rows in (even, inputs[: 4 * size + 1])
    )
    assert evaluate(odd, even).fvu == pytest.approx(evaluate(plain, even).fvu, rel=0.1)


def test_only_the_chosen_sentences_are_trained_on() -> None:
    inputs, _ = planted()
    broken = inputs.clone()
    broken[0] = math.nan
    rest = torch.arange(1, len(inputs))
    (sae,) = train_grids([Training(broken, 0, rest)], [Shape(3, 1)], SETTINGS)[0]
    assert sae.encoder.isfinite().all()


def test_it_starts_and_stops_as_the_paper_does() -> None:
    """One epoch of one batch: the loss is that of the start, and Adam's first step is the rate."""
    inputs, _ = planted()
    asked: list[int] = []

    def rows(numbers: torch.Tensor) -> torch.Tensor:
        asked.append(len(numbers))
        return inputs[numbers]

    one = SETTINGS.model_copy(update={"epochs": 1, "sentences_per_step": len(inputs)})
    sentences = Sentences(len(inputs), inputs.shape[1], rows)
    sae = train_as_paper(sentences, 4, 2, one, seed=0)
    assert asked == [len(inputs)]
    width = inputs.shape[1]
    assert sae.decoder_bias.abs().max() == pytest.approx(paper_rate(4), rel=1e-3)
    assert sae.encoder_bias.abs().max() <= paper_rate(4) * 1.001
    assert sae.encoder.abs().max() <= 1 / math.sqrt(width) + paper_rate(4) * 1.001
    asked.clear()
    still = SETTINGS.model_copy(
        update={"learning_rate": 1e-12, "patience": 3, "sentences_per_step": len(inputs)}
    )
    kept = train_as_paper(sentences, 4, 2, still, seed=0)
    assert len(asked) < SETTINGS.epochs  # a loss that does not fall ends it
    assert float(loss_of(kept, inputs)) > float(loss_of(sae, inputs))
