"""Step 2: a taxonomy of the sentences."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from howwhen.discover.activations import ReaderInput
from howwhen.discover.categories import (
    CategorySummary,
    Transitions,
    count_transitions,
    summarize_categories,
)
from howwhen.discover.judge_scores import score_with_judge
from howwhen.discover.page import PageInput, make_page
from howwhen.discover.reader_inputs import own_tokens, retokenized
from howwhen.discover.taxonomy import (
    Cell,
    CellScores,
    LayerSentences,
    annotate,
    choose,
    compare_with_truth,
    discover_layer,
    heldout_layers,
    normalise,
    scoring_sample,
    shortlist,
)
from howwhen.discover.titles import Assigned, Naming, name_by_words, name_with_judge
from howwhen.discover.validate import confusion
from howwhen.formats.saelens import export_saelens
from howwhen.formats.files import Json
from howwhen.judge.endpoint import Judge, describe_usage
from howwhen.judge.local import open_judge
from howwhen.lm.models import LanguageModel
from howwhen.pipeline.context import Run
from howwhen.pipeline.shards import Activations, read_activations
from howwhen.pipeline.store import StepFolder
from howwhen.probes import Sae, Taxonomy
from howwhen.records import Rollout

SAELENS = "saelens"
"""Folder of the chosen autoencoder as SAELens reads it."""
PAGE = "taxonomy.html"
"""What `howwhen discover --report` points to."""
TRACES_SHOWN = 3
"""Whole answers that a judge sees beside the sentences."""


def discover(run: Run, step: StepFolder) -> Json:
    """Read the sentences, train the grid of taxonomies, choose one and name its categories."""
    study = _Study(run, step)
    cells = [cell for layer in study.layers for cell in study.discover_layer(layer)]
    cells = study.ask_judge(cells)
    scores = [cell.scores for cell in cells]
    choice = choose(scores, study.settings)
    chosen, naming = study.name(choice.index, cells[choice.index])
    run.reporter.say(f"  chosen: {choice.reason}")
    counts = study.keep(chosen, naming)
    rows = [{**_row(one), "chosen": number == choice.index} for number, one in enumerate(scores)]
    step.write_json("scores.json", rows)
    judged = scores[choice.index].judged
    counts |= {
        "cells": len(cells),
        "choice": choice.reason,
        "judge": study.usage,
        "unparsable_names": naming.unparsable,
        "unparsable_scores": None if judged is None else judged.unparsable,
        "named_without_judge": list(naming.fell_back),
    }
    step.write_text(PAGE, make_page(taxonomy_page(run, step, counts, rows)))
    return counts


def taxonomy_page(run: Run, step: StepFolder, counts: Json, cells: Sequence[Json]) -> PageInput:
    """What there is to show of the taxonomy whose files are in the step's folder."""
    truth = step.path / "truth.json"
    traces = run.folder.step("collect").read_json("settings.json")["traces"]
    writers = [run.pair.thinking_source] if traces is None else [Path(one).name for one in traces]
    return PageInput(
        title=f"What {run.pair.name if traces is None else 'a model'} does when it thinks",
        source=", ".join(writers),
        reader=step.read_taxonomy().model,
        counts=counts,
        cells=cells,
        summaries=step.read_records("categories.jsonl", CategorySummary),
        transitions=step.read_records("transitions.jsonl", Transitions)[0],
        truth=step.read_json("truth.json") if truth.exists() else None,
    )


class _Study:
    """The sentences of a run, and everything that is done with them."""

    def __init__(self, run: Run, step: StepFolder) -> None:
        self.run, self.step, self.settings = run, step, run.settings.discover
        # What can be known of the judge without asking it is known before anything is read.
        self.judge: Judge | None = open_judge(
            self.settings, run.folder.judge_cache, run.reporter.say
        )
        self.namings: dict[int, Naming] = {}
        self.reader = run.reader
        self.layers = run.taxonomy_layers
        self.rollouts, questions = run.rollouts_with_questions()
        self.texts = [text for rollout in self.rollouts for text in rollout.sentences()]
        is_long = [len(text.split()) >= self.settings.min_words for text in self.texts]
        self.trained = [number for number, keep in enumerate(is_long) if keep]
        self.labels = _labels(run, self.rollouts)
        self.activations = self._read(questions, is_long)

    @property
    def usage(self) -> str:
        """What the judge has used."""
        return "none asked" if self.judge is None else describe_usage(self.judge)

    def _read(self, questions: Sequence[str], is_long: Sequence[bool]) -> Activations:
        reader_inputs = _reader_inputs(self.reader, self.rollouts, questions, is_long, self.run)
        with self.run.reporter.task("rollouts read", len(reader_inputs)) as advance:
            return read_activations(
                self.step, self.reader, reader_inputs, self.layers, self.settings, advance
            )

    def discover_layer(self, layer: int) -> list[Cell]:
        """Train and score the cells of a layer, or read them where that was done already."""
        name = f"grid/layer-{layer}"
        if not (self.step.path / f"{name}.jsonl").exists():
            cells = discover_layer(
                self.reader.name, self._sentences(layer), self.settings, self.run.reporter.say
            )
            for number, cell in enumerate(cells):
                self.step.write_taxonomy(cell.taxonomy, f"{name}-{number:03}.safetensors")
            self.step.write_records(f"{name}.jsonl", [cell.scores for cell in cells])
        scores = self.step.read_records(f"{name}.jsonl", CellScores)
        return [
            Cell(self.step.read_taxonomy(f"{name}-{number:03}.safetensors"), one)
            for number, one in enumerate(scores)
        ]

    def _sentences(self, layer: int) -> LayerSentences:
        """The training sentences as a layer sees them."""
        sample_rows = scoring_sample(len(self.trained), self.settings.seeds[0])
        rows = [self.trained[number] for number in sample_rows]
        others = [
            normalise(self.activations.rows(one, rows), self.activations.mean(one)).numpy()
            for one in heldout_layers(self.layers, layer)
        ]
        mean = self.activations.mean(layer)
        return LayerSentences(
            layer=layer,
            mean=mean,
            inputs=normalise(self.activations.rows(layer, self.trained), mean),
            texts=self._of_trained(self.texts),
            labels={level: self._of_trained(column) for level, column in self.labels.items()},
            sample_rows=sample_rows,
            others=np.hstack(others) if others else None,
        )

    def _of_trained(self, column: Sequence[Any]) -> list[Any]:
        return [column[number] for number in self.trained]

    def _assigned(self, taxonomy: Taxonomy) -> Assigned:
        """The training sentences with their categories, as a namer sees them."""
        scores = taxonomy.scores(self.activations.rows(taxonomy.layer, self.trained))
        top = scores.max(1)
        traces = [rollout.text for rollout in self.rollouts[:TRACES_SHOWN]]
        texts = self._of_trained(self.texts)
        return Assigned(texts, top.indices.tolist(), top.values.tolist(), taxonomy.size, traces)

    def ask_judge(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells, the most promising of them with scores of the judge, if there is one."""
        if self.judge is None:
            return list(cells)
        asked = shortlist([cell.scores for cell in cells], self.settings)
        judged = {number: self._judged(number, cells[number], self.judge) for number in asked}
        found = [one.scores.judged for one in judged.values() if one.scores.judged is not None]
        replies, unusable = sum(one.replies for one in found), sum(one.unparsable for one in found)
        if unusable > replies / 2:
            self.run.reporter.say(
                f"  WARNING: {unusable} of {replies} replies of {self.judge.model} were unusable "
                "and count as the worst; its scores say little. Name a more able judge"
            )
        return [judged.get(number, cell) for number, cell in enumerate(cells)]

    def _judged(self, number: int, cell: Cell, judge: Judge) -> Cell:
        """A cell with scores of the judge, which names it first."""
        assigned = self._assigned(cell.taxonomy)
        naming = self.namings[number] = name_with_judge(assigned, judge, self.settings)
        scores = score_with_judge(assigned, naming.names, judge, self.settings)
        self.run.reporter.say(f"  {cell.scores.name}: judged {scores.score:.3f}; {self.usage}")
        return replace(cell, scores=replace(cell.scores, judged=scores))

    def name(self, number: int, cell: Cell) -> tuple[Taxonomy, Naming]:
        """The chosen taxonomy with the judge's names, or else the offline ones."""
        naming = self.namings.get(number) or name_by_words(self._assigned(cell.taxonomy))
        titles = tuple(name.title for name in naming.names)
        return replace(cell.taxonomy, titles=titles), naming

    def keep(self, taxonomy: Taxonomy, naming: Naming) -> Json:
        """Write the chosen taxonomy and what it says of every sentence; returns the counts."""
        scores = taxonomy.scores(self.activations.rows(taxonomy.layer))
        annotations = annotate(self.rollouts, scores)
        categories = [one.category for one in annotations]
        self.step.write_taxonomy(taxonomy)
        self.step.discard(SAELENS)
        if isinstance(taxonomy.scorer, Sae):
            export_saelens(self.step.path / SAELENS, taxonomy)
        self.step.write_records("annotations.jsonl", annotations)
        self.step.write_tensors("sentence_scores.safetensors", {"scores": scores}, {})
        summaries = summarize_categories(self.rollouts, annotations, naming.names)
        transitions = count_transitions(self.rollouts, annotations, taxonomy.size)
        self.step.write_records("categories.jsonl", summaries)
        self.step.write_records("transitions.jsonl", [transitions])
        trained = self._of_trained(categories)
        labels = {level: self._of_trained(column) for level, column in self.labels.items()}
        if truth := compare_with_truth(trained, labels):
            tables = {level: confusion(trained, labels[level], taxonomy.size) for level in truth}
            found = {level: vars(one) for level, one in truth.items()}
            self.step.write_json("truth.json", {"scores": found, "confusion": tables})
        return {
            "sentences": len(self.texts),
            "sentences_trained_on": len(self.trained),
            "sentences_too_short": len(self.texts) - len(self.trained),
            "sentences_per_category": _tally(categories, taxonomy.size),
        }


def _tally(categories: Sequence[int], size: int) -> list[int]:
    counts = Counter(categories)
    return [counts[number] for number in range(size)]


def _reader_inputs(
    reader: LanguageModel,
    rollouts: Sequence[Rollout],
    questions: Sequence[str],
    is_long: Sequence[bool],
    run: Run,
) -> list[ReaderInput]:
    """What the reader reads: the answers' own tokens, or its own tokens of their text."""
    is_own = reader is run.pair.thinking
    reader_inputs, first = [], 0
    for rollout, question in zip(rollouts, questions, strict=True):
        prompt = reader.prompt_ids(question)
        trained = is_long[first : first + len(rollout.spans)]
        first += len(rollout.spans)
        read = own_tokens if is_own else retokenized
        reader_inputs.append(read(reader, rollout, prompt, trained))
    return reader_inputs


def _labels(run: Run, rollouts: Sequence[Rollout]) -> dict[str, list[str | None]]:
    if run.pair.truth is None:
        return {}
    columns: dict[str, list[str | None]] = {}
    for rollout in rollouts:
        for level, labels in run.pair.truth(rollout.sentences()).items():
            columns.setdefault(level, []).extend(labels)
    return columns


def _row(scores: CellScores) -> dict[str, Any]:
    """A cell's scores as one flat row; `score` is the offline one."""
    row: dict[str, Any] = {
        name: getattr(scores, name) for name in ("layer", "method", "size", "k", "unused")
    }
    row |= vars(scores.metrics) if scores.metrics is not None else {}
    for level, truth in (scores.truth or {}).items():
        row |= {f"{key}_{level}": value for key, value in vars(truth).items()}
    row |= vars(scores.offline)
    if scores.judged is not None:
        judged = vars(scores.judged)
        row |= {f"judged_{key}": v for key, v in judged.items() if key != "per_category"}
    return row
