"""Progress: a bar on a terminal, plain lines with an estimate of the time left elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

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
Advance = Callable[[int], None]
"""Told how many items are done in all."""


@dataclass
class Reporter:
    """Says what happens, on standard error, so that output can be piped."""

    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Advance]:
        """Show the progress of one piece of work."""
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
    """Plain progress lines, at most one in ten seconds, and one at the end."""

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
        made, left = done - self.first, self.total - done
        eta = f", about {(now - self.started) / made * left:.0f} s left" if made and left else ""
        self.reporter.say(f"  {self.label}: {done}/{self.total}{eta}")
