"""An answer in the terminal: tokens coloured by category as they are generated, and why."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from howwhen.present.detokenize import IncrementalDetokenizer
from howwhen.records import HybridToken

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLOURS = (
    "bright_cyan",
    "orange1",
    "spring_green3",
    "orchid",
    "gold1",
    "deep_sky_blue1",
    "light_coral",
    "plum2",
)
"""Of the categories, in turn. Categories that share a colour differ by number in the legend."""
OWN_CHOICE = "reverse"
"""Style of a token that the rung chose without steering."""


@dataclass(frozen=True)
class Painter:
    """Turns tokens into styled text."""

    tokenizer: "PreTrainedTokenizerBase"
    titles: tuple[str, ...]
    ends: frozenset[int] = frozenset()
    """End tokens, which have no text."""

    def pieces(self, tokens: Iterable[HybridToken]) -> Iterator[tuple[HybridToken, Text]]:
        """Every token with the text it adds."""
        stream = IncrementalDetokenizer(self.tokenizer, self.ends)
        for token in tokens:
            yield token, Text(stream.add(token.id), style=style(token))

    def legend(self, tokens: Iterable[HybridToken]) -> Text:
        """The categories that were steered with, in their colours."""
        used = sorted({token.category for token in tokens if token.category is not None})
        legend = Text()
        for category in used:
            legend.append(f" {category} {self._title(category)} ", style=_colour(category))
            legend.append("  ")
        return legend

    def why(self, tokens: Iterable[HybridToken]) -> Table:
        """One row per disagreement: the token written, what each model wanted, and the steering."""
        table = Table(
            "token", "wrote", "base", "thinking", "category", "coefficient", "log p base",
            "log p thinking", "tried",
        )  # fmt: skip
        for number, token in enumerate(tokens):
            if token.is_decision:
                table.add_row(
                    str(number),
                    self._word(token.id),
                    self._word(token.base_id),
                    self._word(token.thinking_id),
                    self._title(token.category),
                    _two_digits(token.coefficient),
                    _two_digits(token.base_log_prob),
                    _two_digits(token.thinking_log_prob),
                    ", ".join(f"{c.strength:g}: {self._word(c.id)}" for c in token.candidates),
                )
        return table

    def _word(self, token: int | None) -> str:
        return "" if token is None else repr(str(self.tokenizer.decode([token])))

    def _title(self, category: int | None) -> str:
        return "" if category is None else self.titles[category]


def style(token: HybridToken) -> str:
    """A category's colour where the base was steered, underlined where that changed the token."""
    if not token.is_decision:
        return ""
    colour = OWN_CHOICE if token.category is None else _colour(token.category)
    return f"bold {colour} underline" if token.id != token.base_id else f"bold {colour}"


def summary(tokens: list[HybridToken]) -> str:
    """Counts of one answer, in a line."""
    decisions = sum(token.is_decision for token in tokens)
    changed = sum(token.id != token.base_id for token in tokens)
    share = decisions / len(tokens)
    return f"{len(tokens)} tokens, {decisions} disagreements ({share:.1%}), {changed} changed"


def show(console: Console, painter: Painter, tokens: Iterable[HybridToken], is_why: bool) -> None:
    """Print an answer as it is generated, then its legend and, if `is_why`, the reasons."""
    seen: list[HybridToken] = []
    for token, piece in painter.pieces(tokens):
        seen.append(token)
        console.print(piece, end="", soft_wrap=True)
    console.print()
    console.print(painter.legend(seen), soft_wrap=True)
    console.print(summary(seen), style="dim")
    if is_why:
        console.print(painter.why(seen))


def _two_digits(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _colour(category: int) -> str:
    return COLOURS[category % len(COLOURS)]
