"""The grid of taxonomies of one layer, its scores, and the choice of one cell among all layers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from howwhen.discover.clusters import fit_clusters
from howwhen.discover.judge_scores import JudgedScores
from howwhen.discover.sae import SaeMetrics, Shape, Training, evaluate, max_latents, train_grids
from howwhen.discover.validate import (
    MAX_SENTENCES,
    OfflineScores,
    Partition,
    TruthScores,
    Validator,
    score_against_truth,
)
from howwhen.errors import InputError, SettingsError
from howwhen.probes import Clusters, Sae, Taxonomy, in_parts
from howwhen.records import Annotation, Rollout
from howwhen.settings import DiscoverSettings

Report = Callable[[str], None]
CHOICE_RULE = "smallest size within one standard error of the best score"


@dataclass(frozen=True)
class CellScores:
    """One cell of the grid, without its weights."""

    layer: int
    method: str
    """`sae`, or one of the clusterings."""
    size: int
    k: int
    """Latents kept per sentence; 1 for a clustering."""
    offline: OfflineScores
    unused: int
    """Categories that no sentence is in."""
    metrics: SaeMetrics | None = None
    """Of an autoencoder."""
    truth: Mapping[str, TruthScores] | None = None
    """By level of the truth, where it is known."""
    judged: JudgedScores | None = None
    """Where a judge was asked."""

    @property
    def name(self) -> str:
        """What the cell is called in messages."""
        kept = f", k {self.k}" if self.method == "sae" else ""
        return f"{self.method} at layer {self.layer}, size {self.size}{kept}"


@dataclass(frozen=True)
class Cell:
    """One taxonomy of the grid with its scores."""

    taxonomy: Taxonomy
    scores: CellScores


@dataclass(frozen=True)
class TaxonomyChoice:
    """The chosen cell and why."""

    index: int
    reason: str


@dataclass(frozen=True)
class LayerSentences:
    """The training sentences as one layer sees them."""

    layer: int
    mean: Float[Tensor, " d_model"]
    """Corpus mean of the raw activations."""
    inputs: Float[Tensor, "sentence d_model"]
    """Normalised activations."""
    texts: Sequence[str]
    labels: Mapping[str, Sequence[str | None]]
    """For each level of the truth (`behaviour`, `operation`) a label per sentence."""
    sample_rows: np.ndarray
    """Numbers of the sentences that the offline scores look at."""
    others: np.ndarray | None = None
    """Activations of those at the layers of the other half, (sentence, features)."""


Scorer = Sae | Clusters


def scoring_sample(sentences: int, seed: int) -> np.ndarray:
    """Ascending numbers of the sentences that the offline scores look at."""
    return np.sort(np.random.default_rng(seed).permutation(sentences)[:MAX_SENTENCES])


def heldout_layers(layers: Sequence[int], layer: int) -> list[int]:
    """The layers that a probe of `layer`'s categories may see: every second one, not `layer`."""
    ordered = sorted(layers)
    return [one for one in ordered if (ordered.index(one) - ordered.index(layer)) % 2]


def discover_layer(
    model: str, sentences: LayerSentences, settings: DiscoverSettings, report: Report
) -> list[Cell]:
    """Train and score every cell of one layer.

    Every cell is trained from several seeds and on two disjoint halves of the sentences. Kept are
    the autoencoder whose seed explains the sentences best, and the clustering of the first seed.

    Raises:
        InputError: too few sentences for any of the sizes.
    """
    shapes, left_out = possible_shapes(len(sentences.inputs), settings)
    if left_out:
        report(f"  left out (k above size, or more categories than sentences): {left_out}")
    trained = [
        *(_train_saes(sentences, shapes, settings) if "sae" in settings.methods else ()),
        *_train_baselines(sentences, settings),
    ]
    inputs = sentences.inputs
    partitions = [_partition(kept, others, sentences) for kept, others in trained]
    validator = Validator(
        [sentences.texts[row] for row in sentences.sample_rows],
        inputs[torch.from_numpy(sentences.sample_rows)].numpy(),
        sentences.others,
        settings.seeds[0],
    )
    cells = []
    for (own, _), offline in zip(trained, validator.score(partitions), strict=True):
        titles = tuple(f"category {number}" for number in range(len(own.weights)))
        taxonomy = Taxonomy(model, sentences.layer, sentences.mean, own, titles)
        cells.append(Cell(taxonomy, _account(own, offline, sentences)))
    report(f"  layer {sentences.layer}: {len(cells)} taxonomies trained and scored")
    return cells


def _train_saes(
    sentences: LayerSentences, shapes: Sequence[Shape], settings: DiscoverSettings
) -> list[tuple[Sae, list[Sae]]]:
    """For every shape the kept autoencoder, then those of the other seeds and of the two halves."""
    inputs = sentences.inputs
    trainings = [Training(inputs, seed) for seed in settings.seeds]
    trainings += [Training(inputs, settings.seeds[0], half) for half in _halves(inputs)]
    saes = train_grids(trainings, shapes, settings)
    seeded, halves = saes[:-2], saes[-2:]
    found = []
    for number in range(len(shapes)):
        own, *others = sorted(
            (one[number] for one in seeded), key=lambda s: evaluate(s, inputs).fvu
        )
        found.append((own, [*others, *(half[number] for half in halves)]))
    return found


def _train_baselines(
    sentences: LayerSentences, settings: DiscoverSettings
) -> list[tuple[Clusters, list[Clusters]]]:
    """The same for every clustering and size."""
    methods = [method for method in settings.methods if method != "sae"]
    inputs, dimensions = sentences.inputs, settings.pca_dimensions
    sizes = [size for size in settings.sizes if size <= max_latents(len(inputs) // 2)]
    found = []
    for method, size in product(methods, sizes):
        runs = [(inputs, seed) for seed in settings.seeds]
        runs += [(inputs[half], settings.seeds[0]) for half in _halves(inputs)]
        own, *others = [fit_clusters(method, x, size, dimensions, seed) for x, seed in runs]
        found.append((own, others))
    return found


def _halves(inputs: Float[Tensor, "n d"]) -> tuple[Int[Tensor, " a"], Int[Tensor, " b"]]:
    """Rows of two disjoint halves, drawn at random."""
    order = torch.from_numpy(np.random.default_rng(len(inputs)).permutation(len(inputs)))
    middle = (len(inputs) + 1) // 2
    return order[:middle], order[middle:]


def _partition(own: Scorer, others: Sequence[Scorer], sentences: LayerSentences) -> Partition:
    rows = sentences.inputs[torch.from_numpy(sentences.sample_rows)]
    found = [one.scores(rows).argmax(1).numpy() for one in (own, *others)]
    return Partition(found[0], found[1:-2], (found[-2], found[-1]))


def _account(own: Scorer, offline: OfflineScores, sentences: LayerSentences) -> CellScores:
    categories = torch.cat([own.scores(rows).argmax(1) for rows in in_parts(sentences.inputs)])
    size = len(own.weights)
    return CellScores(
        layer=sentences.layer,
        method=own.method,
        size=size,
        k=own.k if isinstance(own, Sae) else 1,
        offline=offline,
        unused=int((categories.bincount(minlength=size) == 0).sum()),
        metrics=evaluate(own, sentences.inputs) if isinstance(own, Sae) else None,
        truth=compare_with_truth(categories.tolist(), sentences.labels) or None,
    )


def compare_with_truth(
    categories: Sequence[int], labels: Mapping[str, Sequence[str | None]]
) -> dict[str, TruthScores]:
    """Scores on every level of the truth on which any sentence has a label."""
    scores = {level: score_against_truth(categories, column) for level, column in labels.items()}
    return {level: score for level, score in scores.items() if score is not None}


def possible_shapes(sentences: int, settings: DiscoverSettings) -> tuple[list[Shape], list[Shape]]:
    """The shapes that can be trained on so many sentences (on half of them, too), and the others.

    Raises:
        InputError: none can.
    """
    grid = [Shape(size, k) for size in settings.sizes for k in settings.ks]
    most = max_latents(sentences // 2)
    kept = [shape for shape in grid if shape.k <= shape.size <= most]
    if not kept:
        raise InputError(
            f"{sentences} sentences are too few for any taxonomy of the grid, whose smallest has "
            f"{min(settings.sizes)} categories, while a half of them can start {most}; give more "
            "problems (--collect.limit) or smaller --discover.sizes"
        )
    return kept, [shape for shape in grid if shape not in kept]


def choose(cells: Sequence[CellScores], settings: DiscoverSettings) -> TaxonomyChoice:
    """The smallest taxonomy within one standard error of the best score, among the allowed cells.

    Allowed are the cells of the first method, or those that the settings `chosen_...` name; where a
    judge scored any of them, only those that it scored, by its scores. Among cells of one size the
    best score decides.

    Raises:
        SettingsError: no cell is as the settings want it.
    """
    allowed = find_allowed(cells, settings)
    judged = {n: found for n in allowed if (found := cells[n].judged) is not None}
    offline = {number: cells[number].offline for number in allowed}
    scores: Mapping[int, JudgedScores | OfflineScores] = judged or offline
    best = max(scores, key=lambda number: scores[number].score)
    error = scores[best].standard_error or 0.0
    good = [n for n, one in scores.items() if one.score >= scores[best].score - error]
    index = min(good, key=lambda number: (cells[number].size, -scores[number].score))
    kind = "judge's score" if judged else "offline score"
    traits = ", ".join(one for one in (_wish(settings), "judged" if judged else "") if one)
    chosen = cells[index]
    empty = f" ({chosen.unused} of {chosen.size} categories are empty)" if chosen.unused else ""
    return TaxonomyChoice(
        index,
        f"{chosen.name}{empty}: {kind} {scores[index].score:.3f}. Rule: {CHOICE_RULE}, which is "
        f"{scores[best].score:.3f} ± {error:.3f} ({cells[best].name}); {len(good)} of "
        f"{len(scores)} cells {f'that are {traits} ' if traits else ''}are that good",
    )


def shortlist(cells: Sequence[CellScores], settings: DiscoverSettings) -> list[int]:
    """Numbers of the allowed cells that a judge is asked about, the best offline scores first.

    Raises:
        SettingsError: no cell is as the settings want it.
    """
    ranked = sorted(find_allowed(cells, settings), key=lambda n: -cells[n].offline.score)
    return ranked[: settings.judge_cells]


def find_allowed(cells: Sequence[CellScores], settings: DiscoverSettings) -> list[int]:
    """Numbers of the cells that may be chosen.

    Raises:
        SettingsError: no cell is as the settings want it.
    """
    allowed = [number for number, cell in enumerate(cells) if _is_allowed(cell, settings)]
    if not allowed:
        raise SettingsError(
            f"no cell of the grid is {_wish(settings)}; the grid has layers "
            f"{sorted({c.layer for c in cells})}, sizes {sorted({c.size for c in cells})}, "
            f"k {sorted({c.k for c in cells})}, methods {sorted({c.method for c in cells})}"
        )
    return allowed


def _is_allowed(cell: CellScores, settings: DiscoverSettings) -> bool:
    wanted = {
        "layer": settings.chosen_layer,
        "size": settings.chosen_size,
        "k": settings.chosen_k,
        "method": settings.chosen_method or settings.methods[0],
    }
    return all(want is None or getattr(cell, name) == want for name, want in wanted.items())


def _wish(settings: DiscoverSettings) -> str:
    wanted = {
        "method": settings.chosen_method,
        "layer": settings.chosen_layer,
        "size": settings.chosen_size,
        "k": settings.chosen_k,
    }
    return ", ".join(f"{name} {want}" for name, want in wanted.items() if want is not None)


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
