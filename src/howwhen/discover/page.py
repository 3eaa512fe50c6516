"""A taxonomy as one self-contained HTML page: the grid, the categories, what leads to what.

It needs no network and no script. Shades say what the printed numbers say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from howwhen.discover.categories import CategorySummary, Transitions

if TYPE_CHECKING:
    from howwhen.discover.report import DiscoverCounts, GridRow
    from howwhen.discover.taxonomy import CellScores

STRONGEST_SHADE = 60
"""Per cent of the accent colour behind the highest number of a table; more would hide the text."""


@dataclass(frozen=True)
class PageInput:
    """Everything the page shows."""

    title: str
    source: str
    """Whose sentences they are: the thinking model, or files of answers."""
    reader: str
    counts: "DiscoverCounts"
    rows: "Sequence[GridRow]"
    """Of the grid; none where the taxonomy was given."""
    summaries: Sequence[CategorySummary]
    transitions: Transitions
    truth: Mapping[str, Any] | None = None
    """The content of `truth.json`; None if no truth is known."""


@dataclass(frozen=True)
class Shaded:
    """A number of a table and how strongly it is shaded."""

    text: str
    shade: int
    """Per cent."""
    is_chosen: bool = False
    note: str = ""


@dataclass(frozen=True)
class HeatMap:
    """One table of the grid: layers down, sizes across."""

    title: str
    sizes: Sequence[int]
    rows: Sequence[tuple[int, Sequence[Shaded | None]]]


def make_page(given: PageInput) -> str:
    """The whole page as HTML."""
    environment = template_environment(PackageLoader("howwhen.discover", "."))
    return environment.get_template("page.html").render(page_context(given))


def template_environment(*loaders: PackageLoader) -> Environment:
    """Jinja as every page needs it: texts of models stay texts, and a missing name is an error."""
    return Environment(
        loader=ChoiceLoader(loaders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page_context(given: PageInput) -> dict[str, Any]:
    """What `taxonomy.html` shows, by the names it knows."""
    return {
        "given": given,
        "chosen": next((row.scores for row in given.rows if row.is_chosen), None),
        "heat_maps": _heat_maps(given.rows),
        "judged": [row for row in given.rows if row.scores.judged is not None],
        "baselines": _best_of_each_method([row.scores for row in given.rows]),
        "bars": [_bars(summary.positions) for summary in given.summaries],
        "moves": [_shares(row) for row in given.transitions.follows],
        "starts": _shares(given.transitions.first),
        "ends": _shares(given.transitions.last),
        "confusions": _confusions(given.truth, len(given.summaries)),
    }


def _heat_maps(rows: "Sequence[GridRow]") -> list[HeatMap]:
    """One table per method and k, in the order in which they were tried."""
    kinds: dict[tuple[str, int], list[GridRow]] = {}
    for row in rows:
        kinds.setdefault((row.scores.method, row.scores.k), []).append(row)
    scores = [row.scores.offline.score for row in rows]
    return [_heat_map(name, kind, min(scores), max(scores)) for name, kind in kinds.items()]


def _heat_map(
    name: tuple[str, int], cells: "Sequence[GridRow]", lowest: float, highest: float
) -> HeatMap:
    method, k = name
    sizes = sorted({cell.scores.size for cell in cells})
    layers = sorted({cell.scores.layer for cell in cells})
    placed = {(cell.scores.layer, cell.scores.size): cell for cell in cells}
    width = max(highest - lowest, 1e-9)

    def shaded(layer: int, size: int) -> Shaded | None:
        cell = placed.get((layer, size))
        if cell is None:
            return None
        offline = cell.scores.offline
        shade = round(STRONGEST_SHADE * (offline.score - lowest) / width)
        note = f"standard error {offline.standard_error:.3f}"
        return Shaded(f"{offline.score:.2f}", shade, cell.is_chosen, note)

    rows = [(layer, [shaded(layer, size) for size in sizes]) for layer in layers]
    return HeatMap(f"{method}, k = {k}" if method == "sae" else method, sizes, rows)


def _best_of_each_method(cells: "Sequence[CellScores]") -> "list[CellScores]":
    """The best cell of every method and k, if there is more than one of them."""
    best: dict[tuple[str, int], CellScores] = {}
    for cell in cells:
        key = cell.method, cell.k
        if key not in best or cell.offline.score > best[key].offline.score:
            best[key] = cell
    return sorted(best.values(), key=lambda cell: -cell.offline.score) if len(best) > 1 else []


def _bars(counts: Sequence[int]) -> list[int]:
    """Heights in per cent of the highest."""
    highest = max(*counts, 1)
    return [round(100 * count / highest) for count in counts]


def _shares(counts: Sequence[int]) -> list[Shaded]:
    """Each count as a share of all of them, in per cent."""
    total = sum(counts)
    if not total:
        return [Shaded("", 0) for _ in counts]
    return [
        Shaded(
            f"{100 * count / total:.0f}" if count else "",
            round(STRONGEST_SHADE * count / total),
            note=f"{count} of {total}",
        )
        for count in counts
    ]


def _confusions(
    truth: Mapping[str, Any] | None, size: int
) -> list[tuple[str, Mapping[str, float], list[tuple[str, list[Shaded]]]]]:
    """For every level of the truth its scores, and its labels with their shares per category."""
    if truth is None:
        return []
    tables = truth["confusion"]
    return [
        (level, scores, [(label, _shares(row[:size])) for label, row in tables[level].items()])
        for level, scores in truth["scores"].items()
    ]
