"""Answers many requests at once: one thread decodes, and requests are grouped into batches.

Requests for the same rung with the same settings share a batch. A request that arrives while others
are being decoded joins its batch in the next round, or starts one if there are fewer than
`max_batches`. Batches take turns and decode one block of tokens per turn.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from howwhen.errors import BusyError, HowwhenError
from howwhen.hybrid.choice import Rung
from howwhen.hybrid.decoder import LiveBatch
from howwhen.hybrid.guesses import Phrases
from howwhen.hybrid.opening import asked_models
from howwhen.lm.alignment import ModelPair
from howwhen.lm.generate import check_lengths
from howwhen.records import Finish, HybridToken, Problem
from howwhen.settings import HybridSettings

_LOG = logging.getLogger(__name__)
RungFinder = Callable[[str, float | None], Rung]
"""Returns the rung of that name at that strength; raises SettingsError if there is none."""


class GenerationRequest(NamedTuple):
    """One request."""

    question: str
    rung: str
    settings: HybridSettings
    strength: float | None = None
    draw: str = "0"
    """Together with the seed, this determines the random numbers of a sampled answer."""


Update = Sequence[HybridToken] | Finish
"""New tokens, or why the answer ended."""
Event = Update | Exception
"""An update, or the error that ended the request."""
BatchKey = tuple[str, float | None, str]
"""Equal for requests that can share a batch."""


@dataclass(eq=False)
class PendingRequest:
    """A request that the engine has accepted."""

    request: GenerationRequest
    deliver: Callable[[Event], None]
    """Called from the engine's thread."""
    is_cancelled: bool = False
    delivered: int = 0
    """Number of tokens delivered."""

    def __post_init__(self) -> None:
        request = self.request
        settings = request.settings.model_dump_json()
        self.batch_key: BatchKey = request.rung, request.strength, settings


@dataclass
class Stats:
    """Counters since the start, and what is in progress now."""

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
    """A batch in progress, and the requests whose answers have not ended."""

    key: BatchKey
    batch: LiveBatch
    pending: dict[int, PendingRequest] = field(default_factory=dict)
    """By number of the answer."""


@dataclass
class Engine:
    """Serves many requests with one pair of models. Call `start` first and `close` last."""

    models: ModelPair
    find_rung: RungFinder
    batch_size: int = 32
    """Maximum number of answers in one batch at a time."""
    max_batches: int = 4
    """Maximum number of batches that take turns; more of them make each one slower."""
    max_waiting: int = 256
    phrases: Phrases | None = None
    """Of answers of the thinking model, to guess how others go on."""
    stats: Stats = field(default_factory=Stats)
    _waiting: deque[PendingRequest] = field(default_factory=deque)
    _groups: list[_Group] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _is_closing: bool = False
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread = threading.Thread(target=self._work, name="howwhen-engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop after the current round; unfinished requests fail."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def check(self, request: GenerationRequest) -> int:
        """Count the tokens of the longer prompt; refuse a request that cannot be answered.

        Raises:
            SettingsError: no such rung, or a strength for a rung that does not steer.
            InputError: an empty prompt, or one too long for a model's context.
        """
        longest = 0
        for model in asked_models(self.models, self.find_rung(request.rung, request.strength)):
            prompt = model.prompt_ids(request.question)
            check_lengths(model, [prompt], request.settings.max_new_tokens)
            longest = max(longest, len(prompt))
        return longest

    def submit(
        self, request: GenerationRequest, deliver: Callable[[Event], None]
    ) -> PendingRequest:
        """Queue a request that has passed `check`.

        Raises:
            BusyError: the queue is full, or the engine is closing.
        """
        pending = PendingRequest(request, deliver)
        with self._changed:
            if self._is_closing or len(self._waiting) >= self.max_waiting:
                raise BusyError(f"{len(self._waiting)} requests are waiting; try again later")
            self.stats.asked += 1
            self._waiting.append(pending)
            self._count()
            self._changed.notify()
        return pending

    def cancel(self, pending: PendingRequest) -> None:
        """Stop a request; nothing more is generated for it."""
        with self._changed:
            pending.is_cancelled = True
            if pending in self._waiting:
                self._waiting.remove(pending)
                self.stats.cancelled += 1
                self._count()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._groups or self._is_closing):
                    self._changed.wait()
                if self._is_closing:
                    break
                placed = self._next_requests()
            for key, requests in placed.items():
                self._begin(key, requests)
            for group in list(self._groups):
                self._advance(group)
            with self._changed:
                self._groups = [group for group in self._groups if not group.batch.is_done]
                self._count()
        self._abandon()

    def _next_requests(self) -> dict[BatchKey, list[PendingRequest]]:
        """Take those that can begin now, by batch, the longest waiting first.

        A request that needs a batch of its own while there are too many keeps later ones out of
        all batches, so that one of these comes to its end.
        """
        free = {group.key: self.batch_size - group.batch.running for group in self._groups}
        placed: dict[BatchKey, list[PendingRequest]] = {}
        for pending in list(self._waiting):
            key = pending.batch_key
            if key not in free:
                if len(free) >= self.max_batches:
                    break
                free[key] = self.batch_size
            if free[key] > 0:
                free[key] -= 1
                placed.setdefault(key, []).append(pending)
                self._waiting.remove(pending)
        return placed

    def _begin(self, key: BatchKey, requests: list[PendingRequest]) -> None:
        """Add requests to their batch, or begin one."""
        first = requests[0].request
        problems = [
            Problem(pending.request.draw, pending.request.question, "unknown")
            for pending in requests
        ]
        group = next((group for group in self._groups if group.key == key), None)
        try:
            if group is None:
                rung = self.find_rung(first.rung, first.strength)
                group = _Group(
                    key, LiveBatch(self.models, rung, first.settings, phrases=self.phrases)
                )
            numbers = group.batch.add(problems)
        except Exception as error:  # noqa: BLE001 - each client gets the error; the engine goes on
            self._fail(requests, error)
            if group is not None and group.batch.is_done:  # it was given up
                self._fail(list(group.pending.values()), error)
                group.pending.clear()
            return
        group.pending |= dict(zip(numbers, requests, strict=True))
        if group not in self._groups:
            self._groups.append(group)

    def _advance(self, group: _Group) -> None:
        for number, pending in list(group.pending.items()):
            if pending.is_cancelled:
                self._drop(group, number)
                with self._changed:
                    self.stats.cancelled += 1
        try:
            new_tokens = group.batch.advance()
        except Exception as error:  # noqa: BLE001 - each client gets the error; the engine goes on
            self._fail(list(group.pending.values()), error)
            self._groups.remove(group)
            return
        for number, tokens in new_tokens.items():
            self._deliver(group, number, group.pending[number], tokens)

    def _deliver(
        self, group: _Group, number: int, pending: PendingRequest, tokens: Sequence[HybridToken]
    ) -> None:
        pending.delivered += len(tokens)
        self.stats.tokens += len(tokens)
        self.stats.decisions += sum(token.is_decision for token in tokens)
        pending.deliver(tokens)
        is_ended = tokens[-1].id in self.models.end_ids
        if is_ended or pending.delivered == pending.request.settings.max_new_tokens:
            self.stats.answered += 1
            pending.deliver(Finish.STOP if is_ended else Finish.LENGTH)
            self._drop(group, number)

    def _drop(self, group: _Group, number: int) -> None:
        del group.pending[number]
        group.batch.cancel(number)

    def _fail(self, requests: Sequence[PendingRequest], error: Exception) -> None:
        if not isinstance(error, HowwhenError):
            _LOG.error("an answer failed", exc_info=error)
        for pending in requests:
            if not pending.is_cancelled:
                self.stats.failed += 1
                pending.deliver(error)

    def _abandon(self) -> None:
        running = [pending for group in self._groups for pending in group.pending.values()]
        with self._changed:
            unfinished = [*running, *self._waiting]
            self._waiting.clear()
            self._groups.clear()
            self._count()
        self._fail(unfinished, BusyError("the server is closing"))

    def _count(self) -> None:
        self.stats.waiting, self.stats.batches = len(self._waiting), len(self._groups)
        self.stats.running = sum(len(group.pending) for group in self._groups)
