"""What the step found, as its files and pages hold it: the rows of the grid, and the counts."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from howwhen.discover.judge_scores import JudgedScores
from howwhen.discover.sae import SaeMetrics
from howwhen.discover.taxonomy import CellScores
from howwhen.discover.validate import OfflineScores, TruthScores

Part = TypeVar("Part", SaeMetrics, OfflineScores, TruthScores, JudgedScores)


@dataclass(frozen=True)
class GridRow:
    """One taxonomy of the grid as `scores.json` lists it."""

    scores: CellScores
    is_chosen: bool


@dataclass(frozen=True)
class DiscoverCounts:
    """What the step notes about its work."""

    sentences: int
    sentences_trained_on: int
    sentences_too_short: int
    sentences_per_category: tuple[int, ...]
    cells: int
    """Taxonomies in the grid."""
    choice: str
    """Which one was chosen, and why."""
    judge: str
    """What the judge has used."""
    unparsable_names: int
    """Replies of the judge that were no name."""
    unparsable_scores: int | None
    """Unusable replies in the judge's scores of the chosen taxonomy; None without such scores."""
    named_without_judge: tuple[int, ...]
    """Categories that keep their offline names because no reply of the judge was usable."""


def row_to_json(row: GridRow) -> dict[str, Any]:
    """A row of `scores.json`: flat, `score` is the offline one, the judge's have a prefix."""
    scores = row.scores
    flat: dict[str, Any] = {name: getattr(scores, name) for name in _PLAIN}
    flat |= vars(scores.metrics) if scores.metrics is not None else {}
    for level, truth in (scores.truth or {}).items():
        flat |= {f"{name}_{level}": value for name, value in vars(truth).items()}
    flat |= vars(scores.offline)
    if scores.judged is not None:
        judged = vars(scores.judged)
        flat |= {f"judged_{name}": v for name, v in judged.items() if name != "per_category"}
    return {**flat, "chosen": row.is_chosen}


def row_from_json(row: Mapping[str, Any]) -> GridRow:
    """The row that `row_to_json` wrote, without the judge's scores of single categories."""
    levels = [key.removeprefix("nmi_") for key in row if key.startswith("nmi_")]
    scores = CellScores(
        **{name: row[name] for name in _PLAIN},
        offline=_part(OfflineScores, row),
        metrics=_part(SaeMetrics, row) if "fvu" in row else None,
        truth={level: _part(TruthScores, row, suffix=f"_{level}") for level in levels} or None,
        judged=_part(JudgedScores, {**row, "judged_per_category": ()}, prefix="judged_")
        if "judged_score" in row
        else None,
    )
    return GridRow(scores, row["chosen"])


_PLAIN = ("layer", "method", "size", "k", "unused")


def _part(kind: type[Part], row: Mapping[str, Any], prefix: str = "", suffix: str = "") -> Part:
    return kind(**{field.name: row[f"{prefix}{field.name}{suffix}"] for field in fields(kind)})
