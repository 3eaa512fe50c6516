"""HTML of a run, a taxonomy and a set of vectors, for the output of a notebook's cell.

Each is a fragment with its own style. It loads nothing and runs no script. Its colours derive from
the surrounding text, so it suits light and dark pages.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from howwhen.discover.categories import CategorySummary
from howwhen.discover.page import STRONGEST_SHADE, Shaded, template_environment
from howwhen.present.tables import interval_column, interval_text
from howwhen.present.verdict import verdict
from howwhen.records import Interval, Measurement, RungMeasurement

if TYPE_CHECKING:
    from howwhen.vectors import VectorSet

MAX_TYPICAL = 3
"""Typical sentences shown per category."""
PLOT_WIDTH = 180
MARGIN = 6
_CEILINGS = ("base", "thinking", "takeover")
_AS_TRAINED = ("hybrid", "self-gate")
_LADDER_NOTE = (
    "Gap recovered is (rung - base) / (thinking - base); dotted lines mark 0 and 100 %, the bar is "
    "its interval. Steered: tokens at which the rung intervened. Changed: tokens that differ from "
    "the unsteered base's."
)
_VECTOR_NOTE = (
    "Columns with numbers: cosine with the vector of that category, in hundredths. Norm: of the "
    "vector itself; a learned coefficient multiplies it at each token. A vector that was not "
    "trained is zero and has no cosine."
)


class Bar(NamedTuple):
    """A value with its interval, as horizontal positions in a plot."""

    kind: str
    """`hybrid`, `control` or `ceiling`; it selects the colour."""
    low: float
    value: float
    high: float
    marks: tuple[float, ...]
    """Where 0 and 100 % are."""
    label: str


class LadderCellRow(NamedTuple):
    """A rung in the output of a run."""

    name: str
    cells: tuple[str, ...]
    bar: Bar | None


class Heading(NamedTuple):
    """The pair and the folder of a run."""

    title: str
    base: str
    """Name of the base model."""
    thinking: str
    """Name of the thinking model."""
    folder: str


def run_cell(heading: Heading, measurement: Measurement, confidence: float) -> str:
    """The verdict and the ladder of a measured run.

    Args:
        heading: the pair and the folder.
        measurement: its rungs.
        confidence: of the intervals, such as 0.95.
    """
    recovered = measurement.rungs["hybrid"].gap_recovered
    interval = interval_column(confidence)
    columns = ("rung", "accuracy", interval, "steered", "changed", "gap recovered", interval)
    given = {
        "headline": "no gap" if recovered is None else f"{recovered:.0%}",
        "verdict": verdict(measurement),
        "ladder": {"columns": columns, **_ladder(measurement)},
        "note": _LADDER_NOTE,
    }
    return render_cell("run", {**heading._asdict(), **given})


def unfinished_cell(
    heading: Heading, finished: Sequence[str], missing: Sequence[str], next_step: str
) -> str:
    """The state of a run that has no measurement yet, and how to continue it.

    Args:
        heading: the pair and the folder.
        finished: steps that are finished.
        missing: steps that are not.
        next_step: command to type.
    """
    given = {"finished": finished, "missing": missing, "next_step": next_step, "ladder": None}
    return render_cell("run", {**heading._asdict(), **given})


def taxonomy_cell(
    title: str, titles: Sequence[str], categories: Sequence[CategorySummary] = ()
) -> str:
    """The categories of a taxonomy.

    Args:
        title: of the cell.
        titles: of all categories.
        categories: summary of each; empty if the taxonomy belongs to no known run.
    """
    by_number = {summary.category: summary for summary in categories}
    rows = [
        _category_row(number, text, by_number.get(number)) for number, text in enumerate(titles)
    ]
    return render_cell("taxonomy", {"title": title, "rows": rows})


def vectors_cell(
    title: str, vectors: "VectorSet", titles: Sequence[str], counts: Sequence[int] = ()
) -> str:
    """Norms and cosines of steering vectors.

    Args:
        title: of the cell.
        vectors: the set.
        titles: of its categories.
        counts: disagreements that each vector was trained on; empty if unknown.
    """
    norms = vectors.vectors.norm(dim=1).tolist()
    cosines = vectors.similarity().tolist()
    rows = [
        {
            "title": text,
            "count": counts[number] if counts else None,
            "norm": f"{norms[number]:.2f}",
            "cosines": [
                _shaded(cosine) if norms[number] and norms[other] else Shaded("", 0)
                for other, cosine in enumerate(cosines[number])
            ],
        }
        for number, text in enumerate(titles)
    ]
    given = {"title": title, "rows": rows, "has_counts": bool(counts), "note": _VECTOR_NOTE}
    return render_cell("vectors", given)


def _category_row(number: int, title: str, summary: CategorySummary | None) -> Mapping[str, Any]:
    row: dict[str, Any] = {"category": number, "title": title}
    if summary is None:
        return {**row, "sentences": "", "share": None, "typical": ()}
    typical = [example.text for example in summary.typical[:MAX_TYPICAL]]
    share = round(100 * summary.share)
    return {**row, "sentences": f"{summary.sentences:,}", "share": share, "typical": typical}


def _ladder(measurement: Measurement) -> Mapping[str, Any]:
    """Rows of the ladder, and where 0 and 100 % of the gap are in the plots."""
    rungs = measurement.rungs
    intervals = [rung.gap_recovered_ci for rung in rungs.values() if rung.gap_recovered_ci]
    low = max(-1.0, min([0.0, *(interval.low for interval in intervals)]))
    high = min(2.0, max([1.0, *(interval.high for interval in intervals)]))
    scale = Interval(low, high)
    return {
        "rows": [_ladder_row(name, rung, scale) for name, rung in rungs.items()],
        "marks": _marks(scale) if intervals else (),
    }


def _marks(scale: Interval) -> tuple[float, float]:
    return _place(0.0, scale), _place(1.0, scale)


def _ladder_row(name: str, rung: RungMeasurement, scale: Interval) -> LadderCellRow:
    cells = (
        f"{rung.accuracy:.1%}",
        interval_text(rung.accuracy_ci),
        f"{rung.steered_fraction:.1%}",
        f"{rung.changed_fraction:.1%}",
    )
    recovered, interval = rung.gap_recovered, rung.gap_recovered_ci
    if recovered is None or interval is None:
        return LadderCellRow(name, (*cells, "undefined", ""), None)
    kind = "hybrid" if name in _AS_TRAINED else "ceiling" if name in _CEILINGS else "control"
    text = f"{recovered:.0%}", interval_text(interval)
    bar = Bar(
        kind,
        low=_place(interval.low, scale),
        value=_place(recovered, scale),
        high=_place(interval.high, scale),
        marks=_marks(scale),
        label=f"{name} recovers {text[0]} of the gap, interval {text[1]}",
    )
    return LadderCellRow(name, (*cells, *text), bar)


def _place(share: float, scale: Interval) -> float:
    """Horizontal position of a share, clipped to the ends of the scale."""
    part = (min(max(share, scale.low), scale.high) - scale.low) / (scale.high - scale.low)
    return round(MARGIN + part * (PLOT_WIDTH - 2 * MARGIN), 1)


def _shaded(cosine: float) -> Shaded:
    return Shaded(f"{100 * cosine:.0f}", round(STRONGEST_SHADE * max(0.0, min(1.0, cosine))))


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return template_environment(PackageLoader("howwhen.present", "page"))


def render_cell(macro: str, given: Mapping[str, Any]) -> str:
    """A fragment with its style around it.

    Args:
        macro: name of a macro in `cells.html`.
        given: values that the macro shows.
    """
    environment = _environment()
    style = environment.get_template("cells.css").render()
    body = getattr(environment.get_template("cells.html").module, macro)(given)
    fragment = Markup('<div class="howwhen-cell"><style>{}</style>{}</div>')
    return str(fragment.format(Markup(style), body))
