"""A taxonomy as one self-contained HTML page: the grid, the categories, what leads to what.

It needs no network and no script. Shades say what the printed numbers say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from howwhen.discover.categories import CategorySummary, Transitions

STRONGEST_SHADE = 60
"""Per cent of the accent colour behind the highest number of a table; more would hide the text."""


@dataclass(frozen=True)
class PageInput:
    """Everything the page shows."""

    title: str
    source: str
    """Whose sentences they are: the thinking model, or files of answers."""
    reader: str
    counts: Mapping[str, Any]
    """Counts of the step's provenance."""
    cells: Sequence[Mapping[str, Any]]
    """Rows of `scores.json`."""
    summaries: Sequence[CategorySummary]
    transitions: Transitions
    truth: Mapping[str, Any] | None = None
    """`truth.json`, where the truth is known."""


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
        "chosen": next(cell for cell in given.cells if cell["chosen"]),
        "heat_maps": _heat_maps(given.cells),
        "judged": [cell for cell in given.cells if "judged_score" in cell],
        "baselines": _best_of_each_method(given.cells),
        "bars": [_bars(summary.positions) for summary in given.summaries],
        "moves": [_shares(row) for row in given.transitions.follows],
        "starts": _shares(given.transitions.first),
        "ends": _shares(given.transitions.last),
        "confusions": _confusions(given.truth, len(given.summaries)),
    }


def _heat_maps(cells: Sequence[Mapping[str, Any]]) -> list[HeatMap]:
    """One table per method and k, in the order in which they were tried."""
    kinds: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for cell in cells:
        kinds.setdefault((cell["method"], cell["k"]), []).append(cell)
    scores = [cell["score"] for cell in cells]
    return [_heat_map(name, own, min(scores), max(scores)) for name, own in kinds.items()]


def _heat_map(
    name: tuple[str, int], cells: Sequence[Mapping[str, Any]], lowest: float, highest: float
) -> HeatMap:
    method, k = name
    sizes = sorted({cell["size"] for cell in cells})
    layers = sorted({cell["layer"] for cell in cells})
    placed = {(cell["layer"], cell["size"]): cell for cell in cells}
    width = max(highest - lowest, 1e-9)

    def shaded(layer: int, size: int) -> Shaded | None:
        cell = placed.get((layer, size))
        if cell is None:
            return None
        shade = round(STRONGEST_SHADE * (cell["score"] - lowest) / width)
        note = f"standard error {cell['standard_error']:.3f}"
        return Shaded(f"{cell['score']:.2f}", shade, cell["chosen"], note)

    rows = [(layer, [shaded(layer, size) for size in sizes]) for layer in layers]
    return HeatMap(f"{method}, k = {k}" if method == "sae" else method, sizes, rows)


def _best_of_each_method(cells: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The best cell of every method and k, where there is more than one of them."""
    best: dict[tuple[str, int], Mapping[str, Any]] = {}
    for cell in cells:
        key = cell["method"], cell["k"]
        if key not in best or cell["score"] > best[key]["score"]:
            best[key] = cell
    return sorted(best.values(), key=lambda cell: -cell["score"]) if len(best) > 1 else []


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
