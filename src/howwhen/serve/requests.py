"""Checks requests against the limits, submits them to the engine and returns its events."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from howwhen.errors import BusyError, InputError, LengthError
from howwhen.records import Finish
from howwhen.serve.engine import Engine, Event, GenerationRequest, Update
from howwhen.serve.schemas import Body, RefusedError
from howwhen.settings import HybridSettings

DEFAULT_TOKENS = 256
"""Maximum length of an answer if the request names none."""


@dataclass(frozen=True)
class Limits:
    """Limits of one request, and of one client."""

    body_bytes: int = 256_000
    prompt_tokens: int = 4096
    running_per_client: int = 64
    """Maximum number of simultaneous requests from one address."""


@dataclass(frozen=True)
class Service:
    """A loaded run, as the server needs it."""

    name: str
    """Of the pair; also the name of the model that means the hybrid."""
    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    rungs: Sequence[str]
    titles: tuple[str, ...]
    """Of the categories."""
    settings: HybridSettings
    """Of the rungs; a request may lower `max_new_tokens` but not raise it."""
    example: str = ""
    """The question that the playground shows first."""


@dataclass
class RequestHandler:
    """Turns the bodies of requests into answers, within the limits."""

    service: Service
    limits: Limits
    running: dict[str, int] = field(default_factory=dict)
    """Number of requests in progress, by client."""

    def read(self, body: Body) -> GenerationRequest:
        """The request in the form that the engine takes.

        Raises:
            RefusedError: an unknown model, or a limit exceeded.
        """
        rung = self._rung(body)
        requested = body.requested_max_tokens
        max_tokens = self.service.settings.max_new_tokens
        if requested is not None and requested > max_tokens:
            text = f"{requested} new tokens; expected at most {max_tokens}"
            raise RefusedError(413, text, "max_tokens")
        settings = self.service.settings.model_copy(
            update={
                "max_new_tokens": requested or min(DEFAULT_TOKENS, max_tokens),
                "temperature": body.temperature or 0.0,
                "top_p": 1.0 if body.top_p is None else body.top_p,
                "seed": body.seed or 0,
            }
        )
        draw = "0" if body.seed is not None or not body.temperature else uuid.uuid4().hex
        return GenerationRequest(body.question(), rung, settings, body.howwhen.strength, draw)

    def _rung(self, body: Body) -> str:
        name, _, rung = body.model.partition("/")
        if name != self.service.name or (rung and rung not in self.service.rungs):
            raise RefusedError(
                404,
                f"there is no model {body.model!r}; expected {self.service.name}, or "
                f"{self.service.name}/RUNG with a rung of {', '.join(self.service.rungs)}",
                "model_not_found",
            )
        return body.howwhen.rung or rung or "hybrid"

    async def check(self, request: GenerationRequest) -> int:
        """Number of tokens of the prompt.

        Raises:
            RefusedError: a prompt that is too long, or cannot be answered.
        """
        try:
            tokens = await asyncio.to_thread(self.service.engine.check, request)
        except LengthError as error:
            raise RefusedError(413, str(error), "context_length_exceeded") from error
        except InputError as error:
            raise RefusedError(400, str(error), "invalid_value") from error
        if tokens > self.limits.prompt_tokens:
            raise RefusedError(
                413,
                f"a prompt of {tokens} tokens; expected at most {self.limits.prompt_tokens}",
                "context_length_exceeded",
            )
        return tokens

    @asynccontextmanager
    async def answer(
        self, request: GenerationRequest, client: str
    ) -> AsyncIterator[AsyncIterator[Update]]:
        """The updates of an answer; leaving the context early stops the generation.

        Raises:
            RefusedError: the client has too many requests in progress, or the server is full.
        """
        if self.running.get(client, 0) >= self.limits.running_per_client:
            limit = self.limits.running_per_client
            text = f"you already have {limit} requests in progress, the maximum; try again later"
            raise RefusedError(429, text, "rate_limit")
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def deliver(event: Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        try:
            pending = self.service.engine.submit(request, deliver)
        except BusyError as error:
            raise RefusedError(503, str(error), "overloaded") from error
        self.running[client] = self.running.get(client, 0) + 1
        try:
            yield _until_end(events)
        finally:
            self.service.engine.cancel(pending)
            self.running[client] -= 1
            if not self.running[client]:
                del self.running[client]


async def _until_end(events: "asyncio.Queue[Event]") -> AsyncIterator[Update]:
    """New tokens, then why the answer ended; an error of the engine is raised."""
    while True:
        event = await events.get()
        if isinstance(event, Exception):
            raise event
        yield event
        if isinstance(event, Finish):
            return
