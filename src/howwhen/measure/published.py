"""The paper's figures, to compare a run with: a small table of facts with their sources."""

from importlib.resources import files
from typing import Literal

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from howwhen.records import RungMeasurement


@dataclass(frozen=True)
class PublishedFigure:
    """One figure of the paper: a share between 0 and 1, or a range of shares."""

    version: Literal[1, 2]
    """1: arXiv 2510.07364 (2025), method `span`. 2: ICML 2026, method `decision`."""
    pairs: str
    what: str
    low: float
    high: float
    """Equal to `low` unless the figure is a range."""
    compares_with: Literal["gap_recovered_clamped", "steered_per_problem"]
    """Which number of a run's hybrid it is compared with."""
    source: str

    def shown(self) -> str:
        """The figure as text."""
        if self.low == self.high:
            return f"{self.low:.0%}"
        return f"{self.low:.0%} to {self.high:.0%}"

    def measured(self, hybrid: RungMeasurement) -> str:
        """The same number of a run's hybrid, as text."""
        value: float | None = getattr(hybrid, self.compares_with)
        if value is None:
            return "undefined" if self.compares_with == "gap_recovered_clamped" else "not measured"
        return f"{value:.1%}"


def read_published() -> list[PublishedFigure]:
    """Every figure of the table, version by version."""
    text = files("howwhen.measure").joinpath("published.json").read_text(encoding="utf-8")
    return TypeAdapter(list[PublishedFigure]).validate_json(text)
