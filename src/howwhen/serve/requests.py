"""Takes requests in, within limits, and hands the engine's events out."""

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

USUAL_TOKENS = 256
"""Longest answer where a request does not say."""


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may ask for."""

    body_bytes: int = 256_000
    prompt_tokens: int = 4096
    running_per_client: int = 64
    """Requests of one address under way at once."""


@dataclass(frozen=True)
class Service:
    """What is served."""

    name: str
    """Of the pair; also the model that answers where none is named by a rung."""
    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    rungs: Sequence[str]
    titles: tuple[str, ...]
    """Of the categories."""
    settings: HybridSettings
    """Of the rungs; `max_new_tokens` is the longest answer that may be asked for."""
    example: str = ""
    """A question that the playground starts with."""


@dataclass
class RequestHandler:
    """Takes requests in, one client's no more than its share, and hands answers out."""

    service: Service
    limits: Limits
    running: dict[str, int] = field(default_factory=dict)
    """Requests under way, by client."""

    def ask(self, body: Body) -> GenerationRequest:
        """The request as the engine takes it.

        Raises:
            RefusedError: an unknown model, or more than the limits allow.
        """
        rung = self._rung(body)
        chosen = body.max_tokens_asked
        most = self.service.settings.max_new_tokens
        if chosen is not None and chosen > most:
            raise RefusedError(413, f"{chosen} new tokens; expected at most {most}", "max_tokens")
        settings = self.service.settings.model_copy(
            update={
                "max_new_tokens": chosen or min(USUAL_TOKENS, most),
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

    async def check(self, ask: GenerationRequest) -> int:
        """Tokens of the prompt.

        Raises:
            RefusedError: a prompt that is too long, or cannot be answered.
        """
        try:
            tokens = await asyncio.to_thread(self.service.engine.check, ask)
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
        self, ask: GenerationRequest, client: str
    ) -> AsyncIterator[AsyncIterator[Update]]:
        """The events of an answer; whoever leaves early is written for no longer.

        Raises:
            RefusedError: too much is under way.
        """
        if self.running.get(client, 0) >= self.limits.running_per_client:
            most = self.limits.running_per_client
            raise RefusedError(429, f"{most} requests of yours are under way", "rate_limit")
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def deliver(event: Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        try:
            ticket = self.service.engine.submit(ask, deliver)
        except BusyError as error:
            raise RefusedError(503, str(error), "overloaded") from error
        self.running[client] = self.running.get(client, 0) + 1
        try:
            yield _until_end(events)
        finally:
            self.service.engine.cancel(ticket)
            self.running[client] -= 1
            if not self.running[client]:
                del self.running[client]


async def _until_end(events: "asyncio.Queue[Event]") -> AsyncIterator[Update]:
    """Tokens, and at last why there are no more; what went wrong is raised."""
    while True:
        event = await events.get()
        if isinstance(event, Exception):
            raise event
        yield event
        if isinstance(event, Finish):
            return
