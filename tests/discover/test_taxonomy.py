from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from howwhen.discover.sae import Shape
from howwhen.discover.taxonomy import Cell, Sentences, choose, discover_grid, possible_shapes
from howwhen.discover.validate import OfflineScores
from howwhen.errors import InputError
from howwhen.settings import DiscoverSettings
from tests.discover.test_sae import planted
from tests.factories import make_taxonomy

WORDS = ("Next, Ann gets more.", "So the answer is 7.", "Wait, let me redo that.")


def cell(size: int, score: float, error: float = 0.01) -> Cell:
    offline = OfflineScores(score, score, score, score, error)
    return Cell(make_taxonomy(size), 0.5, offline, {})


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ([(8, 0.9), (6, 0.8)], 0),
        ([(8, 0.9), (6, 0.895)], 1),
        ([(6, 0.892), (8, 0.9), (6, 0.895)], 2),
        ([(6, 0.5)], 0),
    ],
)
def test_the_smallest_size_within_one_standard_error_is_chosen(
    scores: Sequence[tuple[int, float]], chosen: int
) -> None:
    assert choose([cell(size, score) for size, score in scores]) == chosen


def test_shapes_that_cannot_be_trained_are_listed() -> None:
    grid = [Shape(size, k) for size in (2, 5, 50) for k in (1, 3)]
    kept, left_out = possible_shapes(20, grid)
    assert kept == [Shape(2, 1), Shape(5, 1), Shape(5, 3)]
    assert left_out == [Shape(2, 3), Shape(50, 1), Shape(50, 3)]
    with pytest.raises(InputError, match="1 sentences are too few"):
        possible_shapes(1, grid)


def test_the_planted_taxonomy_is_found_chosen_and_scored_against_the_truth() -> None:
    inputs, which = planted(300)
    noise = torch.randn(300, 24, generator=torch.Generator().manual_seed(3))
    texts = [WORDS[w] for w in which.tolist()]
    labels: list[str | None] = [str(w) for w in which.tolist()]
    sentences = Sentences(texts, {0: noise, 4: inputs * 5 + 2}, {"behaviour": labels})
    settings = DiscoverSettings(steps=200, sentences_per_step=128)
    grid = [Shape(3, 1), Shape(7, 1)]
    said: list[str] = []
    cells = discover_grid("m", sentences, grid, settings, said.append)
    best = cells[choose(cells)]
    assert (best.taxonomy.layer, best.taxonomy.size) == (4, 3)
    assert best.truth["behaviour"].purity > 0.97
    assert best.truth["behaviour"].nmi > 0.9
    assert len(said) == 2
    raw = (inputs * 5 + 2)[:30]
    same = replace(best.taxonomy, titles=()).categorise(raw)
    assert len(set(zip(same.tolist(), which[:30].tolist(), strict=True))) == 3
