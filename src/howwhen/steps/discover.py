"""Step 2: a taxonomy of the sentences."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from howwhen.discover.activations import sentence_means
from howwhen.discover.sae import Shape
from howwhen.discover.taxonomy import CHOICE_RULE, Cell, Sentences, annotate, choose, discover_grid
from howwhen.records import Rollout, Taxonomy
from howwhen.store import Json, StepFolder

if TYPE_CHECKING:
    from howwhen.pipeline import Pipeline


def discover(run: "Pipeline", step: StepFolder) -> Json:
    """Train the grid of taxonomies and choose one."""
    layers = run.settings.discover.layers or run.pair.chosen_taxonomy_layers
    settings = run.settings.discover
    rollouts, questions = run.rollouts_with_questions()
    prompts = [run.pair.thinking.prompt_ids(question) for question in questions]
    means = sentence_means(run.pair.thinking, rollouts, prompts, layers, settings.batch_size)
    texts = [text for rollout in rollouts for text in rollout.sentences()]
    is_long = [len(text.split()) >= settings.min_words for text in texts]
    rows = [index for index, keep in enumerate(is_long) if keep]
    labels = _labels(run, rollouts)
    sentences = Sentences(
        texts=[texts[row] for row in rows],
        means={layer: mean[rows] for layer, mean in means.items()},
        labels={level: [column[row] for row in rows] for level, column in labels.items()},
    )
    shapes = [Shape(size, k) for size in settings.sizes for k in settings.ks]
    name, report = run.pair.thinking.name, run.reporter.say
    cells = discover_grid(name, sentences, shapes, settings, report)
    chosen = choose(cells)
    taxonomy = cells[chosen].taxonomy
    scores = taxonomy.scores(means[taxonomy.layer])
    annotations = annotate(rollouts, scores)
    categories = [one.category for one in annotations]
    step.write_json("scores.json", [_cell_row(c, i == chosen) for i, c in enumerate(cells)])
    step.write_json("categories.json", _category_rows(taxonomy, texts, categories))
    step.write_records("annotations.jsonl", annotations)
    step.write_tensors("sentence_scores.safetensors", {"scores": scores}, {})
    step.write_taxonomy(taxonomy)
    return {
        "sentences": len(texts),
        "sentences_kept": len(rows),
        "sentences_too_short": len(texts) - len(rows),
        "cells": len(cells),
        "cells_left_out": len(layers) * len(shapes) - len(cells),
        "choice_rule": CHOICE_RULE,
    }


def _labels(run: "Pipeline", rollouts: Sequence[Rollout]) -> dict[str, list[str | None]]:
    if run.pair.truth is None:
        return {}
    columns: dict[str, list[str | None]] = {}
    for rollout in rollouts:
        for level, labels in run.pair.truth(rollout.sentences()).items():
            columns.setdefault(level, []).extend(labels)
    return columns


def _cell_row(cell: Cell, is_chosen: bool) -> dict[str, Any]:
    taxonomy, offline = cell.taxonomy, vars(cell.offline)
    row = {"layer": taxonomy.layer, "size": taxonomy.size, "k": taxonomy.scorer.k, "fvu": cell.fvu}
    for level, scores in cell.truth.items():
        suffix = "" if level == next(iter(cell.truth)) else f"_{level}"
        row |= {f"nmi{suffix}": scores.nmi, f"purity{suffix}": scores.purity}
    return {**row, **offline, "chosen": is_chosen}


def _category_rows(
    taxonomy: Taxonomy, texts: Sequence[str], categories: Sequence[int]
) -> list[dict[str, Any]]:
    """Each category with its title, its share of the sentences and five examples."""
    rows = []
    for category, title in enumerate(taxonomy.titles):
        mine = [t.strip() for t, c in zip(texts, categories, strict=True) if c == category]
        examples = list(dict.fromkeys(mine))[:5]
        rows.append(
            {
                "category": category,
                "title": title,
                "sentences": len(mine),
                "share": len(mine) / len(texts),
                "examples": examples,
            }
        )
    return rows
