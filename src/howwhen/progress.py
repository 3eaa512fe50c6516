"""Progress: a bar on a terminal or in a notebook, otherwise plain lines with the time left."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_EVERY_SECONDS = 10.0
REDRAW_EVERY_SECONDS = 0.2
"""Minimum time between two updates of a bar in a notebook."""
Advance = Callable[[int], None]
"""Called with the total number of items done."""


@dataclass
class Reporter:
    """Reports progress on standard error, so that standard output can be piped."""

    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Advance]:
        """Show the progress of one task while the context is open.

        Args:
            label: what is counted.
            total: number of items.

        Yields:
            A function to call with the total number of items done.
        """
        if self.console.is_terminal:
            with self._bar() as bar:
                task = bar.add_task(label, total=total)
                yield lambda done: bar.update(task, completed=done)
        else:
            yield _Lines(self, label, total).advance

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
        )


class _Lines:
    """Plain progress lines: one every ten seconds, and one at the end."""

    def __init__(self, reporter: Reporter, label: str, total: int) -> None:
        self.reporter, self.label, self.total = reporter, label, total
        self.started = self.printed = time.monotonic()
        self.first: int | None = None

    def advance(self, done: int) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = done
        is_due = now - self.printed >= LINE_EVERY_SECONDS
        if not is_due and done != self.total:
            return
        self.printed = now
        advanced, remaining = done - self.first, self.total - done
        eta = ""
        if advanced and remaining:
            eta = f", about {(now - self.started) / advanced * remaining:.0f} s left"
        self.reporter.say(f"  {self.label}: {done}/{self.total}{eta}")


@dataclass
class NotebookReporter(Reporter):
    """Reports progress in one output of a notebook cell, with a bar below the lines.

    The output is updated in place. It needs no widgets, so it also shows in exported notebooks.
    """

    show: Callable[[str], None] = field(default_factory=lambda: _Output().show)
    """Called with the HTML of the whole output."""
    lines: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Add one line."""
        self.lines.append(text)
        self._draw()

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Advance]:
        """Show a bar during one task, and a line after it."""
        drawn = time.monotonic()
        reached = 0

        def advance(done: int) -> None:
            nonlocal drawn, reached
            reached = done
            if time.monotonic() - drawn >= REDRAW_EVERY_SECONDS:
                drawn = time.monotonic()
                self._draw(_bar_html(label, done, total))

        self._draw(_bar_html(label, 0, total))
        try:
            yield advance
        finally:
            self.say(f"  {label}: {reached}/{total}")

    def _draw(self, bar: str = "") -> None:
        lines = escape("\n".join(self.lines))
        # The order is reversed so that the box stays scrolled to its end while lines are added.
        self.show(
            '<div style="display: flex; flex-direction: column-reverse; max-height: 16em; '
            f'overflow: auto"><div>{bar}</div><pre style="margin: 0">{lines}</pre></div>'
        )


def _bar_html(label: str, done: int, total: int) -> str:
    bar = f'<progress max="{total}" value="{done}"></progress>'
    return f"{escape(label)} {bar} {done}/{total}"


class _Output:
    """The output of the notebook cell that is running."""

    def __init__(self) -> None:
        self.handle: Any = None

    def show(self, html: str) -> None:
        from IPython.display import HTML, display

        if self.handle is None:
            self.handle = display(HTML(html), display_id=True)
        else:
            self.handle.update(HTML(html))


def make_reporter() -> Reporter:
    """Make the reporter for where the process runs: a notebook, a terminal, or neither."""
    reporter = Reporter()
    return NotebookReporter() if reporter.console.is_jupyter else reporter
