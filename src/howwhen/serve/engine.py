"""Answers many requests at once: one thread writes, requests join batches as they come and go.

Requests for the same rung with the same settings are written side by side. A request that comes
while others are being written starts in a batch of its own at the next round, as long as there are
fewer than `max_batches`; batches take turns, a block of tokens each.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from howwhen.errors import BusyError, HowwhenError
from howwhen.hybrid.choice import Rung
from howwhen.hybrid.decoder import LiveBatch, asked_models
from howwhen.lm.alignment import ModelPair
from howwhen.lm.generate import check_lengths
from howwhen.records import Finish, HybridToken, Problem
from howwhen.settings import HybridSettings

_LOG = logging.getLogger(__name__)
RungFinder = Callable[[str, float | None], Rung]
"""The rung of that name at that strength; raises SettingsError where there is none."""


class GenerationRequest(NamedTuple):
    """One request."""

    question: str
    rung: str
    settings: HybridSettings
    strength: float | None = None
    draw: str = "0"
    """Names, beside the seed, the random numbers of a sampled answer."""


Update = Sequence[HybridToken] | Finish
"""New tokens; why the answer ended."""
Event = Update | Exception
"""The same, or what went wrong."""


@dataclass(eq=False)
class PendingRequest:
    """A request on its way through the engine."""

    ask: GenerationRequest
    deliver: Callable[[Event], None]
    """Called from the engine's thread."""
    is_cancelled: bool = False
    told: int = 0
    """Tokens delivered."""

    def __post_init__(self) -> None:
        ask = self.ask
        self.group = ask.rung, ask.strength, ask.settings.model_dump_json()
        """Equal for requests that can be written side by side."""


@dataclass
class Stats:
    """What the engine has done, and is doing."""

    asked: int = 0
    answered: int = 0
    cancelled: int = 0
    failed: int = 0
    tokens: int = 0
    decisions: int = 0
    waiting: int = 0
    running: int = 0
    batches: int = 0


@dataclass
class _Group:
    """A batch being written, and whom its rows belong to."""

    batch: LiveBatch
    tickets: list[PendingRequest | None]
    """None where a row has been delivered whole."""


@dataclass
class Engine:
    """Both models at work for many requests; `start` it first, `close` it last."""

    models: ModelPair
    find_rung: RungFinder
    batch_size: int = 32
    """Most answers in one batch."""
    max_batches: int = 4
    """Batches taking turns; more make every one of them slower."""
    max_waiting: int = 256
    stats: Stats = field(default_factory=Stats)
    _waiting: deque[PendingRequest] = field(default_factory=deque)
    _groups: list[_Group] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _is_closing: bool = False
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to work, in a thread of its own."""
        self._thread = threading.Thread(target=self._work, name="howwhen-engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop after the current round; requests that are not answered fail."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def check(self, ask: GenerationRequest) -> int:
        """Refuse now what could not be answered, and count the tokens of the longer prompt.

        Raises:
            SettingsError: no such rung, or one that has no strength.
            InputError: an empty prompt, or one too long for a model's context.
        """
        longest = 0
        for model in asked_models(self.models, self.find_rung(ask.rung, ask.strength)):
            prompt = model.prompt_ids(ask.question)
            check_lengths(model, [prompt], ask.settings.max_new_tokens)
            longest = max(longest, len(prompt))
        return longest

    def submit(self, ask: GenerationRequest, deliver: Callable[[Event], None]) -> PendingRequest:
        """Queue a request that `check` has let pass.

        Raises:
            BusyError: too many are waiting, or the engine is closing.
        """
        ticket = PendingRequest(ask, deliver)
        with self._changed:
            if self._is_closing or len(self._waiting) >= self.max_waiting:
                raise BusyError(f"{len(self._waiting)} requests are waiting; try again later")
            self.stats.asked += 1
            self._waiting.append(ticket)
            self._count()
            self._changed.notify()
        return ticket

    def cancel(self, ticket: PendingRequest) -> None:
        """Write no more of a request; nothing is delivered afterwards."""
        with self._changed:
            ticket.is_cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                self.stats.cancelled += 1
                self._count()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._groups or self._is_closing):
                    self._changed.wait()
                if self._is_closing:
                    break
                fresh = self._next_group()
            if fresh:
                self._open(fresh)
            for group in list(self._groups):
                self._advance(group)
            with self._changed:
                self._groups = [group for group in self._groups if not group.batch.is_done]
                self._count()
        self._abandon()

    def _next_group(self) -> list[PendingRequest]:
        """Take the request that has waited longest, and those that can be written beside it."""
        if len(self._groups) >= self.max_batches or not self._waiting:
            return []
        group = self._waiting[0].group
        taken = [one for one in self._waiting if one.group == group][: self.batch_size]
        self._waiting = deque(one for one in self._waiting if one not in taken)
        return taken

    def _open(self, tickets: list[PendingRequest]) -> None:
        first = tickets[0].ask
        problems = [Problem(ticket.ask.draw, ticket.ask.question, "unknown") for ticket in tickets]
        try:
            rung = self.find_rung(first.rung, first.strength)
            batch = LiveBatch(self.models, problems, rung, first.settings)
        except Exception as error:  # noqa: BLE001 - each asker is told; the engine goes on
            self._fail(tickets, error)
        else:
            self._groups.append(_Group(batch, list(tickets)))

    def _advance(self, group: _Group) -> None:
        for row, ticket in enumerate(group.tickets):
            if ticket is not None and ticket.is_cancelled:
                self._leave(group, row)
                with self._changed:
                    self.stats.cancelled += 1
        if group.batch.is_done:
            return
        try:
            fresh = group.batch.advance()
        except Exception as error:  # noqa: BLE001 - each asker is told; the engine goes on
            self._fail([ticket for ticket in group.tickets if ticket], error)
            self._groups.remove(group)
            return
        for row, (ticket, tokens) in enumerate(zip(group.tickets, fresh, strict=True)):
            if ticket is not None and tokens:
                self._deliver(group, row, ticket, tokens)

    def _deliver(
        self, group: _Group, row: int, ticket: PendingRequest, tokens: Sequence[HybridToken]
    ) -> None:
        ticket.told += len(tokens)
        self.stats.tokens += len(tokens)
        self.stats.decisions += sum(token.is_decision for token in tokens)
        ticket.deliver(tokens)
        is_ended = tokens[-1].id in self.models.end_ids
        if is_ended or ticket.told == ticket.ask.settings.max_new_tokens:
            self.stats.answered += 1
            ticket.deliver(Finish.STOP if is_ended else Finish.LENGTH)
            self._leave(group, row)

    def _leave(self, group: _Group, row: int) -> None:
        group.tickets[row] = None
        group.batch.cancel(row)

    def _fail(self, tickets: Sequence[PendingRequest], error: Exception) -> None:
        if not isinstance(error, HowwhenError):
            _LOG.error("an answer failed", exc_info=error)
        for ticket in tickets:
            self.stats.failed += 1
            ticket.deliver(error)

    def _abandon(self) -> None:
        running = [ticket for group in self._groups for ticket in group.tickets if ticket]
        with self._changed:
            left = [*running, *self._waiting]
            self._waiting.clear()
            self._groups.clear()
            self._count()
        self._fail(left, BusyError("the server is closing"))

    def _count(self) -> None:
        self.stats.waiting, self.stats.batches = len(self._waiting), len(self._groups)
        self.stats.running = sum(one is not None for group in self._groups for one in group.tickets)
