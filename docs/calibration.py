"""The tables of docs/calibration.md: what was expected of every rung, and what was measured.

`python docs/calibration.py` makes them anew of the files in docs/measurements.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter

from howwhen.present.verdict import explain
from howwhen.records import LADDER, Interval, Measurement, RungMeasurement, RungName

HERE = Path(__file__).parent
PAGE = HERE / "calibration.md"
MARK = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


class Expected(NamedTuple):
    """Between which shares of the gap a recovery must lie, by how the organism is made."""

    low: float = -1.0
    high: float = 2.0

    def holds(self, found: Interval) -> bool:
        """Whether the interval of what was measured allows a value between them."""
        return found.high >= self.low and found.low <= self.high

    def __str__(self) -> str:
        if self.high < 2:
            return f"≤ {self.high:.0%}"
        return f"≥ {self.low:.0%}"


MUCH, HALF, LITTLE = Expected(low=0.8), Expected(high=0.5), Expected(high=0.2)
_MOMENTS: Mapping[RungName, Expected] = {
    "hybrid": MUCH,
    "guardrail-only": MUCH,
    "logit-difference": MUCH,
    "random-category": HALF,
    "random-positions": LITTLE,
    "random-positions-anywhere": LITTLE,
    "random-vectors": HALF,
    "reverse-takeover": LITTLE,
    "early-only": HALF,
    "takeover": Expected(low=1.0),
}
"""Where the thinking model knows when, and the base how."""
EXPECTED: Mapping[str, Mapping[RungName, Expected]] = {
    "tally-rl": {**_MOMENTS, "shared-vector": MUCH, "self-gate": MUCH},
    "tally-cross": {**_MOMENTS, "shared-vector": MUCH, "self-gate": MUCH},
    "tally-which": {**_MOMENTS, "shared-vector": HALF, "self-gate": LITTLE},
    "tally-sft": {
        "hybrid": LITTLE,
        "guardrail-only": LITTLE,
        "shared-vector": LITTLE,
        "self-gate": LITTLE,
        "random-category": LITTLE,
        "random-positions": LITTLE,
        "random-vectors": LITTLE,
        "takeover": Expected(low=1.0),
    },
}
"""Of each organism, as far as its making says what must come out."""


def read(name: str) -> Measurement:
    """The measurement of a pair."""
    file = HERE / "measurements" / f"{name}.json"
    return TypeAdapter(Measurement).validate_json(file.read_bytes())


def measured() -> dict[str, Measurement]:
    """The organisms that have been measured."""
    names = [name for name in EXPECTED if (HERE / "measurements" / f"{name}.json").exists()]
    return {name: read(name) for name in names}


def surprises(found: Mapping[str, Measurement]) -> Iterator[tuple[str, RungName]]:
    """Rungs that did not do what was expected of them."""
    for name, measurement in found.items():
        for rung, expected in EXPECTED[name].items():
            interval = measurement.rungs[rung].gap_recovered_ci
            if interval is not None and not expected.holds(interval):
                yield name, rung


def _percent(value: float, interval: Interval) -> str:
    low, high = (f"{100 * bound:.0f}" for bound in interval)
    return f"{100 * value:.0f} ({low} to {high})"


def _recovery(name: str, rung: RungName, one: RungMeasurement | None) -> str:
    if one is None or one.gap_recovered is None or one.gap_recovered_ci is None:
        return ""
    cell = _percent(one.gap_recovered, one.gap_recovered_ci)
    expected = EXPECTED[name].get(rung)
    if expected is None:
        return cell
    held = "" if expected.holds(one.gap_recovered_ci) else ", **not so**"
    return f"{cell}; {expected}{held}"


def _told(one: RungMeasurement | None) -> str:
    if one is None or one.bits is None or one.bits_ci is None:
        return ""
    if not one.bits.total:
        return "0"
    low, high = one.bits_ci
    return f"{one.bits.total:.1f} ({low:.1f} to {high:.1f})"


def _fitted(measurement: Measurement, one: RungMeasurement | None) -> str:
    if one is None or not one.fitted or measurement.base_parameters is None:
        return ""
    return f"{one.fitted:,} ({one.fitted / measurement.base_parameters:.1%})"


def _table(rows: list[list[str]]) -> str:
    head, *rest = rows
    lines = [head, ["---"] * len(head), *rest]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def tables(found: Mapping[str, Measurement]) -> dict[str, str]:
    """Markdown tables by the mark they stand behind."""
    rungs = [rung for rung in LADDER if rung not in ("base", "thinking")]
    rungs = [rung for rung in rungs if any(rung in one.rungs for one in found.values())]

    def table(cell: str, names: list[str]) -> str:
        rows = [["rung", *(f"`{name}`" for name in names)]]
        if cell == "recovery":
            for end in ("base", "thinking"):
                right = [found[name].rungs[end] for name in names]
                told = [f"{_percent(one.accuracy, one.accuracy_ci)} right" for one in right]
                rows.append([f"*{end}*", *told])
        for rung in rungs:
            cells = []
            for name in names:
                one = found[name].rungs.get(rung)
                cells.append(
                    _recovery(name, rung, one)
                    if cell == "recovery"
                    else _told(one)
                    if cell == "bits"
                    else _fitted(found[name], one)
                )
            if any(cells):
                rows.append([rung, *cells])
        return _table(rows)

    made = {cell: table(cell, list(found)) for cell in ("recovery", "bits", "fitted")}
    rows = [["pair", "n", "cause", "what the report says"]]
    for name, one in found.items():
        told = explain(one)
        rows.append([f"`{name}`", str(one.n), told.cause, told.text])
    return {**made, "verdicts": _table(rows)}


def filled(page: str) -> str:
    """The page with the tables of what has been measured."""
    found = tables(measured())
    return MARK.sub(lambda match: f"{match[1]}\n{found[match[2]]}\n{match[3]}", page)


def main() -> None:
    """Write the tables into the page."""
    PAGE.write_text(filled(PAGE.read_text()))


if __name__ == "__main__":
    main()
