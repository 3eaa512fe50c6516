"""How strongly to steer at a disagreement: learned, fixed, or the best of a sweep.

A policy is a list of candidates, each a strength (coefficient, scale) and a window. With several,
all are tried, in one pass per window, and the one whose token the thinking model finds likeliest is
taken (paper, first version, section 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from howwhen.errors import SettingsError

Window = int | Literal["answer", "everything"]
"""Last positions steered: a number of them, the whole answer so far, or the prompt as well."""


@dataclass(frozen=True)
class Strength:
    """Pairs of strength (multiple of what the vector set adds) and window to try."""

    candidates: tuple[tuple[float, Window], ...]

    def __post_init__(self) -> None:
        for strength, window in self.candidates:
            if strength == 0:
                raise SettingsError(
                    "a strength of 0 steers nothing; expected another number, or the rung base"
                )
            if isinstance(window, int) and window < 1:
                raise SettingsError(
                    f"a window of {window} positions steers nothing; expected at least 1, "
                    "`answer` (all of the answer so far) or `everything` (the prompt too)"
                )
        if not self.candidates:
            raise SettingsError("a sweep without strengths or windows steers nothing")

    @property
    def is_sweep(self) -> bool:
        """Whether the thinking model has to choose among candidates."""
        return len(self.candidates) > 1

    def by_window(self) -> dict[Window, list[float]]:
        """Strengths to try with each window."""
        grouped: dict[Window, list[float]] = {}
        for strength, window in self.candidates:
            grouped.setdefault(window, []).append(strength)
        return grouped


def fixed(strength: float, window: Window = 1) -> Strength:
    """Always the same strength."""
    return Strength(((strength, window),))


LEARNED = fixed(1.0)
"""Exactly what the vector set's own coefficient says."""


def sweep(strengths: Sequence[float], windows: Sequence[Window] = (1,)) -> Strength:
    """Every strength with every window."""
    return Strength(tuple((strength, window) for window in windows for strength in strengths))
