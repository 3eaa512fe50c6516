"""How strongly to steer at a disagreement: learned, fixed, or the best of a sweep.

A policy is a list of candidates, each a strength (coefficient, scale) and a window. With several,
all are tried, in one pass per window, and the one whose token the thinking model finds likeliest is
taken (paper, first version, section 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from howwhen.errors import SettingsError

Window = int | str
"""Last positions steered: at most so many of the answer, the `answer` so far, `everything` (the
prompt too), or `text-N`, the last N of prompt and answer."""


@dataclass(frozen=True)
class Strength:
    """Pairs of strength (multiple of what the vector set adds) and window to try."""

    candidates: tuple[tuple[float, Window], ...]
    picked_by: Literal["thinking", "base", "random"] = "thinking"
    """Who picks among several: either model takes the token that it finds likeliest."""

    def __post_init__(self) -> None:
        for strength, window in self.candidates:
            if strength == 0:
                raise SettingsError(
                    "a strength of 0 steers nothing; expected another number, or the rung base"
                )
            reach(window, 1, 2)  # refuses what is no window
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


def reach(window: Window, answered: int, column: int) -> int:
    """How many positions a window holds, up to and including the last one of a text.

    The last position of the prompt predicts the answer's first token, and so counts as one of the
    answer.

    Args:
        window: which.
        answered: tokens of the answer that are there.
        column: the last position, from 0, prompt included.

    Raises:
        SettingsError: there is no such window.
    """
    of_text = isinstance(window, str) and window.startswith("text-")
    number = window.removeprefix("text-") if isinstance(window, str) else str(window)
    if window == "everything":
        return column + 1
    if window == "answer":
        return answered + 1
    if not number.isdecimal() or int(number) < 1:
        raise SettingsError(
            f"found window {window!r}; expected a number of positions from 1 on, `answer` (all of "
            "the answer so far), `everything` (the prompt too) or `text-15` (the last 15 positions "
            "of prompt and answer)"
        )
    return min(column + 1 if of_text else answered + 1, int(number))


def fixed(strength: float, window: Window = 1) -> Strength:
    """Always the same strength."""
    return Strength(((strength, window),))


LEARNED = fixed(1.0)
"""Exactly what the vector set's own coefficient says."""


def sweep(strengths: Sequence[float], windows: Sequence[Window] = (1,)) -> Strength:
    """Every strength with every window; of equally good candidates the first is taken.

    All windows of a strength come before the next strength, as in the paper's code.
    """
    return Strength(tuple((strength, window) for strength in strengths for window in windows))
