from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from howwhen.discover.judge_scores import JudgedScores
from howwhen.discover.sae import Shape
from howwhen.discover.taxonomy import (
    CellScores,
    LayerSentences,
    annotate,
    choose,
    discover_layer,
    heldout_layers,
    possible_shapes,
    scoring_sample,
    shortlist,
)
from howwhen.discover.validate import OfflineScores
from howwhen.errors import InputError, SettingsError
from howwhen.probes import normalise
from howwhen.records import Finish, Rollout, SentenceSpan
from howwhen.settings import DiscoverSettings
from tests.discover.planted import planted

WORDS = ("Next, Ann gets more.", "So the answer is 7.", "Wait, let me redo that.")


def cell(
    size: int, score: float, *, layer: int = 4, method: str = "sae", k: int = 1, error: float = 0.01
) -> CellScores:
    offline = OfflineScores(score, score, score, score, score, score, score, error)
    return CellScores(layer, method, size, k, offline, unused=0)


def judged_scores(score: float) -> JudgedScores:
    return JudgedScores(score, score, score, score, 0.01, 10, 0, 20, ())


def test_only_judged_cells_are_chosen_where_a_judge_was_asked() -> None:
    cells = [cell(8, 0.9), cell(6, 0.8), cell(10, 0.7)]
    settings = DiscoverSettings(judge_cells=2)
    assert shortlist(cells, settings) == [0, 1]
    judged = [
        replace(cells[0], judged=judged_scores(0.4)),
        replace(cells[1], judged=judged_scores(0.6)),
        cells[2],
    ]
    choice = choose(judged, settings)
    assert choice.index == 1
    assert "judge's score 0.600" in choice.reason
    assert "1 of 2 cells that are judged are that good" in choice.reason


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
    choice = choose([cell(size, score) for size, score in scores], DiscoverSettings())
    assert choice.index == chosen
    assert "smallest size within one standard error of the best score" in choice.reason


def test_empty_categories_of_the_chosen_taxonomy_are_told() -> None:
    """On distilled answers 23 of 25 were empty, and the two others scored best."""
    empty = replace(cell(25, 0.9), unused=23)
    told = choose([empty, cell(5, 0.5)], DiscoverSettings()).reason
    assert told.startswith("sae at layer 4, size 25, k 1 (23 of 25 categories are empty): offline")
    assert "empty" not in choose([cell(25, 0.9)], DiscoverSettings()).reason


GRID = [
    cell(8, 0.9),
    cell(6, 0.7, layer=2),
    cell(6, 0.6, k=3),
    cell(6, 0.99, method="kmeans"),
]
WISHES = [
    ({}, 0),
    ({"chosen_layer": 2}, 1),
    ({"chosen_size": 6}, 1),
    ({"chosen_k": 3}, 2),
    ({"chosen_method": "kmeans"}, 3),
    ({"methods": ("kmeans", "sae")}, 3),
]


@pytest.mark.parametrize(("wish", "chosen"), WISHES)
def test_the_choice_can_be_overridden(wish: dict[str, object], chosen: int) -> None:
    grid = {"sizes": (6, 8), "methods": ("sae", "kmeans")}
    settings = DiscoverSettings.model_validate({**grid, **wish})
    assert choose(GRID, settings).index == chosen


def test_a_wish_that_no_cell_meets_is_refused_with_what_there_is() -> None:
    with pytest.raises(SettingsError, match=r"layer 9, size 6; the grid has layers \[2, 4\]"):
        choose(GRID, DiscoverSettings(sizes=(6, 8), chosen_layer=9, chosen_size=6))


def test_shapes_that_cannot_be_trained_are_listed() -> None:
    settings = DiscoverSettings(sizes=(2, 5, 50), ks=(1, 3))
    kept, left_out = possible_shapes(20, settings)
    assert kept == [Shape(2, 1), Shape(5, 1), Shape(5, 3)]
    assert left_out == [Shape(2, 3), Shape(50, 1), Shape(50, 3)]
    with pytest.raises(InputError, match="3 sentences are too few"):
        possible_shapes(3, settings)


def test_the_planted_taxonomy_is_found_chosen_and_scored_against_the_truth() -> None:
    inputs, which = planted(300)
    noise = functional.normalize(
        torch.randn(300, 24, generator=torch.Generator().manual_seed(3)), dim=1
    )
    raw = {0: noise, 4: inputs * 5 + 2}
    settings = DiscoverSettings(
        sizes=(3, 7), ks=(1,), steps=200, sentences_per_step=128, methods=("sae", "kmeans")
    )
    said: list[str] = []
    cells = []
    for layer, rows in raw.items():
        mean = rows.mean(0)
        sentences = LayerSentences(
            layer=layer,
            mean=mean,
            inputs=normalise(rows, mean),
            texts=[WORDS[w] for w in which.tolist()],
            labels={"behaviour": [str(w) for w in which.tolist()]},
            sample_rows=scoring_sample(300, 0),
            others=raw[4 - layer].numpy(),
        )
        cells += discover_layer("m", sentences, settings, said.append)
    assert [(c.scores.layer, c.scores.method, c.scores.size) for c in cells] == [
        (layer, method, size) for layer in (0, 4) for method in ("sae", "kmeans") for size in (3, 7)
    ]
    best = cells[choose([one.scores for one in cells], settings).index]
    assert (best.scores.layer, best.scores.method, best.scores.size) == (4, "sae", 3)
    assert best.scores.truth is not None
    assert best.scores.truth["behaviour"].purity > 0.97
    assert best.scores.truth["behaviour"].nmi > 0.9
    assert best.scores.offline.stability_over_seeds > 0.9
    assert best.scores.offline.stability_over_halves > 0.9
    assert best.scores.metrics is not None
    assert (best.scores.metrics.l0, best.scores.metrics.dead, best.scores.unused) == (1, 0, 0)
    assert len(said) == 2
    same = best.taxonomy.categorise(raw[4][:30])
    assert len(set(zip(same.tolist(), which[:30].tolist(), strict=True))) == 3


def test_a_probe_sees_every_second_layer_and_never_its_own() -> None:
    assert heldout_layers([2, 4, 6, 8], 4) == [2, 6]
    assert heldout_layers([8, 2, 6, 4], 2) == [4, 8]
    assert heldout_layers([3], 3) == []


def test_the_sentences_looked_at_are_drawn_evenly_and_ascend() -> None:
    few, many = scoring_sample(10, 0), scoring_sample(100_000, 0)
    assert few.tolist() == list(range(10))
    assert (np.diff(many) > 0).all()
    assert len(many) == 4000
    assert 45_000 < many.mean() < 55_000


def test_every_sentence_is_annotated_with_its_runner_up() -> None:
    spans = (SentenceSpan(0, 2, 0, 1), SentenceSpan(2, 4, 1, 2))
    rollouts = [
        Rollout("a", (1, 2), "x y ", Finish.STOP, spans),
        Rollout("b", (), "", Finish.STOP, ()),
        Rollout("c", (1,), "z ", Finish.STOP, spans[:1]),
    ]
    scores = torch.tensor([[1.0, 3.0, 2.0], [0.5, -1.0, 0.0], [0.0, 0.0, 9.0]])
    found = annotate(rollouts, scores)
    assert [(one.problem_id, one.span) for one in found] == [
        ("a", spans[0]), ("a", spans[1]), ("c", spans[0]),
    ]  # fmt: skip
    assert [(o.category, o.strength, o.runner_up, o.runner_up_strength) for o in found[:2]] == [
        (1, 3.0, 2, 2.0),
        (0, 0.5, 2, 0.0),
    ]
