"""Asking a judge about the most promising cells of the grid, or naming the chosen one without."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from howwhen.discover.judge_scores import score_with_judge
from howwhen.discover.taxonomy import Cell, Report, shortlist
from howwhen.discover.titles import CategorisedSentences, Naming, name_by_words, name_with_judge
from howwhen.judge.endpoint import Judge, describe_usage
from howwhen.probes import Taxonomy
from howwhen.settings import DiscoverSettings

Categorise = Callable[[Taxonomy], CategorisedSentences]
"""The training sentences with their categories in a taxonomy."""


@dataclass(frozen=True)
class JudgedGrid:
    """The grid after a judge was asked about some of its cells."""

    cells: Sequence[Cell]
    """All of them; those that the judge was asked about have its scores."""
    namings: Mapping[int, Naming]
    """The judge's names, by number of the cell."""

    def name(self, number: int, categorise: Categorise) -> tuple[Taxonomy, Naming]:
        """The taxonomy of a cell with the judge's names, or else the offline ones."""
        taxonomy = self.cells[number].taxonomy
        naming = self.namings.get(number) or name_by_words(categorise(taxonomy))
        return replace(taxonomy, titles=tuple(name.title for name in naming.names)), naming


def judge_cells(
    cells: Sequence[Cell],
    categorise: Categorise,
    judge: Judge | None,
    settings: DiscoverSettings,
    report: Report,
) -> JudgedGrid:
    """Let a judge name and score the most promising cells; without a judge nothing changes.

    Args:
        cells: of all layers.
        categorise: see `Categorise`.
        judge: who is asked.
        settings: `judge_cells` is the number of cells, the others are those of `name_with_judge`
            and `score_with_judge`.
        report: receives the score of every cell, and a warning about a judge whose replies are
            mostly unusable.

    Raises:
        JudgeError: the judge gives no reply.
        SettingsError: no cell is as the settings want it.
    """
    if judge is None:
        return JudgedGrid(cells, {})
    asked = shortlist([cell.scores for cell in cells], settings)
    judged = dict(enumerate(cells))
    namings = {}
    replies = unusable = 0
    for number in asked:
        cell = cells[number]
        sentences = categorise(cell.taxonomy)
        namings[number] = name_with_judge(sentences, judge, settings)
        scores = score_with_judge(sentences, namings[number].names, judge, settings)
        report(f"  {cell.scores.name}: judged {scores.score:.3f}; {describe_usage(judge)}")
        judged[number] = replace(cell, scores=replace(cell.scores, judged=scores))
        replies, unusable = replies + scores.replies, unusable + scores.unparsable
    if unusable > replies / 2:
        report(
            f"  WARNING: {unusable} of {replies} replies of {judge.model} were unusable "
            "and count as the worst; its scores say little. Name a more able judge"
        )
    return JudgedGrid([judged[number] for number in range(len(cells))], namings)
