"""Step 2: a taxonomy of the sentences."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from pydantic import TypeAdapter

from howwhen.discover.activations import ReaderInput
from howwhen.discover.categories import (
    CategorySummary,
    Transitions,
    count_transitions,
    summarize_categories,
)
from howwhen.discover.corpus import Corpus, count_per_category, score_all
from howwhen.discover.judging import judge_cells
from howwhen.discover.page import PageInput, make_page
from howwhen.discover.reader_inputs import own_tokens, retokenized
from howwhen.discover.report import DiscoverCounts, GridRow, row_from_json, row_to_json
from howwhen.discover.taxonomy import (
    Cell,
    CellScores,
    annotate,
    choose,
    compare_with_truth,
    discover_layer,
)
from howwhen.discover.titles import Name
from howwhen.discover.validate import confusion
from howwhen.formats.saelens import export_saelens
from howwhen.judge.endpoint import describe_usage
from howwhen.judge.local import open_judge
from howwhen.lm.placement import Placement
from howwhen.pipeline.context import Run
from howwhen.pipeline.shards import Activations, read_activations
from howwhen.pipeline.store import StepFolder
from howwhen.probes import Sae, Taxonomy
from howwhen.records import Rollout, split_by_rollout

SAELENS = "saelens"
"""Folder of the chosen autoencoder as SAELens reads it."""
PAGE = "taxonomy.html"
"""What `howwhen discover --report` points to."""


def discover(run: Run, step: StepFolder) -> DiscoverCounts:
    """Read the sentences, train the grid of taxonomies, choose one and name its categories."""
    settings, report = run.settings.discover, run.reporter.say
    if settings.taxonomy is not None:
        return _take(run, step, settings.taxonomy)
    # A judge that cannot be used is refused before anything is read.
    judge = open_judge(
        settings, run.folder.judge_cache, report, Placement.of(run.settings.models, "judge")
    )
    rollouts, questions = run.rollouts_with_questions()
    corpus = Corpus(rollouts, _labels(run, rollouts), settings.min_words)
    activations = _read(run, step, corpus, questions)
    cells = [
        cell
        for layer in run.taxonomy_layers
        for cell in _grid_of_layer(run, step, corpus, activations, layer)
    ]
    categorise = partial(corpus.categorise, activations)
    grid = judge_cells(cells, categorise, judge, settings, report)
    scores = [cell.scores for cell in grid.cells]
    choice = choose(scores, settings)
    taxonomy, naming = grid.name(choice.index, categorise)
    report(f"  chosen: {choice.reason}")
    categories = _write_taxonomy(step, corpus, activations, taxonomy, naming.names)
    _write_truth(step, corpus, categories, taxonomy.size)
    rows = [GridRow(cell, number == choice.index) for number, cell in enumerate(scores)]
    step.write_json("scores.json", [row_to_json(row) for row in rows])
    judged = scores[choice.index].judged
    counts = DiscoverCounts(
        sentences=len(corpus.texts),
        sentences_trained_on=len(corpus.trained),
        sentences_too_short=len(corpus.texts) - len(corpus.trained),
        sentences_per_category=count_per_category(categories, taxonomy.size),
        cells=len(cells),
        choice=choice.reason,
        judge="none asked" if judge is None else describe_usage(judge),
        unparsable_names=naming.unparsable,
        unparsable_scores=None if judged is None else judged.unparsable,
        named_without_judge=naming.fell_back,
    )
    step.write_text(PAGE, make_page(taxonomy_page(run, step, counts, rows)))
    return counts


def _take(run: Run, step: StepFolder, source: str) -> DiscoverCounts:
    """Categorise the sentences, if there are any, by a taxonomy that exists."""
    taxonomy = run.given_taxonomy
    rollouts, questions = run.rollouts_with_questions()
    corpus = Corpus(rollouts, _labels(run, rollouts), run.settings.discover.min_words)
    activations = _read(run, step, corpus, questions) if corpus.texts else None
    names = [Name(title, "", Path(source).name, ()) for title in taxonomy.titles]
    categories = _write_taxonomy(step, corpus, activations, taxonomy, names)
    _write_truth(step, corpus, categories, taxonomy.size)
    step.write_json("scores.json", [])
    counts = DiscoverCounts(
        sentences=len(corpus.texts),
        sentences_trained_on=0,
        sentences_too_short=0,
        sentences_per_category=count_per_category(categories, taxonomy.size),
        cells=0,
        choice=f"{taxonomy.size} categories at layer {taxonomy.layer}, given as {source}",
        judge="none asked",
        unparsable_names=0,
        unparsable_scores=None,
        named_without_judge=(),
    )
    run.reporter.say(f"  taxonomy: {counts.choice}")
    step.write_text(PAGE, make_page(taxonomy_page(run, step, counts, [])))
    return counts


def read_counts(step: StepFolder) -> DiscoverCounts:
    """The counts of a finished step."""
    return TypeAdapter(DiscoverCounts).validate_python(step.read_json("provenance.json")["counts"])


def read_grid(step: StepFolder) -> list[GridRow]:
    """The rows of a finished step's grid."""
    return [row_from_json(row) for row in step.read_json("scores.json")]


def taxonomy_page(
    run: Run, step: StepFolder, counts: DiscoverCounts, rows: Sequence[GridRow]
) -> PageInput:
    """What there is to show of the taxonomy whose files are in the step's folder."""
    truth = step.path / "truth.json"
    traces = run.folder.step("collect").read_object("settings.json")["traces"]
    sources = [run.pair.thinking_source] if traces is None else [Path(file).name for file in traces]
    return PageInput(
        title=f"What {run.pair.name if traces is None else 'a model'} does when it thinks",
        source=", ".join(sources),
        reader=step.read_taxonomy().model,
        counts=counts,
        rows=rows,
        summaries=step.read_records("categories.jsonl", CategorySummary),
        transitions=step.read_records("transitions.jsonl", Transitions)[0],
        truth=step.read_json("truth.json") if truth.exists() else None,
    )


def _read(run: Run, step: StepFolder, corpus: Corpus, questions: Sequence[str]) -> Activations:
    """The activations of all sentences, from shards that are there or from the reader."""
    reader = run.reader
    # The answers' own tokens, or the reader's tokens of their text.
    is_own = run.pair.is_own_reader(run.settings.discover.reader)
    to_input = own_tokens if is_own else retokenized
    is_trained = split_by_rollout(corpus.rollouts, corpus.is_trained)
    reader_inputs: list[ReaderInput] = [
        to_input(reader, rollout, reader.prompt_ids(question), trained)
        for rollout, question, trained in zip(corpus.rollouts, questions, is_trained, strict=True)
    ]
    with run.reporter.task("rollouts read", len(reader_inputs)) as advance:
        return read_activations(
            step, reader, reader_inputs, run.taxonomy_layers, run.settings.discover, advance
        )


def _grid_of_layer(
    run: Run, step: StepFolder, corpus: Corpus, activations: Activations, layer: int
) -> list[Cell]:
    """Train and score the cells of a layer, or read those that are finished."""
    name, settings = f"grid/layer-{layer}", run.settings.discover
    if not (step.path / f"{name}.jsonl").exists():
        sentences = corpus.layer_sentences(
            activations, layer, run.taxonomy_layers, settings.seeds[0]
        )
        cells = discover_layer(activations.reader, sentences, settings, run.reporter.say)
        for number, cell in enumerate(cells):
            step.write_taxonomy(cell.taxonomy, f"{name}-{number:03}.safetensors")
        step.write_records(f"{name}.jsonl", [cell.scores for cell in cells])
    scores = step.read_records(f"{name}.jsonl", CellScores)
    return [
        Cell(step.read_taxonomy(f"{name}-{number:03}.safetensors"), cell)
        for number, cell in enumerate(scores)
    ]


def _write_taxonomy(
    step: StepFolder,
    corpus: Corpus,
    activations: Activations | None,
    taxonomy: Taxonomy,
    names: Sequence[Name],
) -> list[int]:
    """Write the chosen taxonomy and its categories; returns the category of every sentence.

    Args:
        step: its folder.
        corpus: the sentences.
        activations: of them; None if there is no sentence.
        taxonomy: the chosen one.
        names: of its categories.
    """
    scores = (
        torch.zeros(0, taxonomy.size) if activations is None else score_all(activations, taxonomy)
    )
    annotations = annotate(corpus.rollouts, scores)
    step.write_taxonomy(taxonomy)
    step.discard(SAELENS)
    if isinstance(taxonomy.scorer, Sae):
        export_saelens(step.path / SAELENS, taxonomy)
    step.write_records("annotations.jsonl", annotations)
    step.write_tensors("sentence_scores.safetensors", {"scores": scores}, {})
    summaries = summarize_categories(corpus.rollouts, annotations, names)
    transitions = count_transitions(corpus.rollouts, annotations, taxonomy.size)
    step.write_records("categories.jsonl", summaries)
    step.write_records("transitions.jsonl", [transitions])
    return [annotation.category for annotation in annotations]


def _write_truth(step: StepFolder, corpus: Corpus, categories: Sequence[int], size: int) -> None:
    """Compare the training sentences with the truth, if it is known."""
    if not categories:
        return
    trained, labels = corpus.select_trained(categories), corpus.trained_labels
    if truth := compare_with_truth(trained, labels):
        tables = {level: confusion(trained, labels[level], size) for level in truth}
        scores = {level: vars(agreement) for level, agreement in truth.items()}
        step.write_json("truth.json", {"scores": scores, "confusion": tables})


def _labels(run: Run, rollouts: Sequence[Rollout]) -> Mapping[str, Sequence[str | None]]:
    if run.pair.truth is None:
        return {}
    columns: dict[str, list[str | None]] = {}
    for rollout in rollouts:
        for level, labels in run.pair.truth(rollout.sentences()).items():
            columns.setdefault(level, []).extend(labels)
    return columns
