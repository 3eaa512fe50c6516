"""The grid of taxonomies, its scores, and the choice of one cell."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from howwhen.discover.names import make_titles
from howwhen.discover.sae import Shape, train_grid, unexplained
from howwhen.discover.validate import (
    OfflineScores,
    TruthScores,
    score_against_truth,
    score_offline,
)
from howwhen.errors import InputError
from howwhen.records import Annotation, Rollout, Sae, Taxonomy
from howwhen.settings import DiscoverSettings

Report = Callable[[str], None]


@dataclass(frozen=True)
class Sentences:
    """Training sentences, their activations, and, where it is known, the truth about them."""

    texts: Sequence[str]
    means: Mapping[int, Float[Tensor, "sentence d_model"]]
    """For each layer the raw mean residuals."""
    labels: Mapping[str, Sequence[str | None]]
    """For each level of the truth (`behaviour`, `operation`) a label per sentence."""


@dataclass(frozen=True)
class Cell:
    """One taxonomy of the grid with its scores."""

    taxonomy: Taxonomy
    fvu: float
    offline: OfflineScores
    truth: Mapping[str, TruthScores]


def discover_grid(
    model: str,
    sentences: Sentences,
    grid: Sequence[Shape],
    settings: DiscoverSettings,
    report: Report,
) -> list[Cell]:
    """Train and score every cell of the grid: layers x shapes.

    Every cell is trained from two seeds: the one that explains more is kept, and how far the two
    agree is the cell's stability.

    Raises:
        InputError: too few sentences for any of the sizes.
    """
    shapes, left_out = possible_shapes(len(sentences.texts), grid)
    if left_out:
        report(
            f"  left out (k above size, or size above {len(sentences.texts)} sentences): {left_out}"
        )
    cells = []
    for layer, means in sentences.means.items():
        mean = means.mean(0)
        inputs = functional.normalize(means - mean, dim=1)
        saes = train_grid(inputs, shapes, settings)
        twins = train_grid(inputs, shapes, settings.model_copy(update={"seed": settings.seed + 1}))
        for pair in zip(saes, twins, strict=True):
            sae, twin = sorted(pair, key=lambda one: unexplained(one, inputs))
            taxonomy = Taxonomy(model, layer, mean, sae, ())
            cells.append(_score(taxonomy, twin, inputs, sentences, settings))
        report(f"  layer {layer}: {len(shapes)} autoencoders trained and scored")
    return cells


def annotate(
    rollouts: Sequence[Rollout], scores: Float[Tensor, "sentence category"]
) -> list[Annotation]:
    """Category, strength and runner-up of every sentence, in order of rollouts and their spans.

    Args:
        rollouts: with the sentences' offsets.
        scores: of all categories for every sentence; at least two categories.
    """
    spans = [(rollout.problem_id, span) for rollout in rollouts for span in rollout.spans]
    top = scores.topk(2, dim=1)
    return [
        Annotation(problem_id, span, first, strength, second, weaker)
        for (problem_id, span), (first, second), (strength, weaker) in zip(
            spans, top.indices.tolist(), top.values.tolist(), strict=True
        )
    ]


def possible_shapes(sentences: int, grid: Sequence[Shape]) -> tuple[list[Shape], list[Shape]]:
    """The shapes that can be trained on so many sentences, and those that cannot.

    Raises:
        InputError: none can.
    """
    kept = [shape for shape in grid if shape.k <= shape.size <= sentences]
    if not kept:
        smallest = min(shape.size for shape in grid)
        raise InputError(
            f"{sentences} sentences are too few for any taxonomy of the grid, whose smallest has "
            f"{smallest} categories; give more problems (--collect.limit) or smaller "
            "--discover.sizes"
        )
    return kept, [shape for shape in grid if shape not in kept]


def choose(cells: Sequence[Cell]) -> int:
    """Index of the smallest taxonomy within one standard error of the best score.

    Among cells of that size the best score decides.
    """
    best = max(cells, key=lambda cell: cell.offline.score).offline
    good = [
        index
        for index, cell in enumerate(cells)
        if cell.offline.score >= best.score - best.standard_error
    ]
    return min(good, key=lambda i: (cells[i].taxonomy.size, -cells[i].offline.score))


CHOICE_RULE = "smallest size within one standard error of the best offline score"


def _score(
    taxonomy: Taxonomy,
    twin: Sae,
    inputs: Float[Tensor, "sentence d_model"],
    sentences: Sentences,
    settings: DiscoverSettings,
) -> Cell:
    with torch.no_grad():
        categories = taxonomy.scorer.scores(inputs).argmax(1).tolist()
        others = twin.scores(inputs).argmax(1).tolist()
        fvu = unexplained(taxonomy.scorer, inputs)
    titles = make_titles(sentences.texts, categories, taxonomy.size)
    truth = {
        level: scores
        for level, labels in sentences.labels.items()
        if (scores := score_against_truth(categories, labels)) is not None
    }
    offline = score_offline(sentences.texts, categories, others, taxonomy.size, settings.seed)
    return Cell(replace(taxonomy, titles=titles), fvu, offline, truth)
