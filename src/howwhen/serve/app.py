"""A server with the OpenAI API for every rung of a run, and a playground at `/`.

`/v1/models`, `/v1/chat/completions` and `/v1/completions` answer as OpenAI's do, streamed or not.
The model's name chooses the rung: `tally-rl` is the hybrid, `tally-rl/base` the base alone. The
field `howwhen` extends requests (rung, strength, details) and replies (which model wanted what, for
every token).
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from sse_starlette import EventSourceResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from howwhen.errors import BusyError, HowwhenError, InputError
from howwhen.present.html import page_environment
from howwhen.records import Finish
from howwhen.serve.access import AccessMiddleware
from howwhen.serve.engine import Engine, GenerationRequest
from howwhen.serve.requests import Limits, RequestHandler, Service
from howwhen.serve.responses import Reply
from howwhen.serve.schemas import Body, ChatRequest, RefusedError, TextRequest, error_body

_LOG = logging.getLogger(__name__)


def make_app(service: Service, limits: Limits | None = None, key: str | None = None) -> ASGIApp:
    """The server as an ASGI application, which starts and closes the engine.

    Args:
        service: the loaded run.
        limits: of requests.
        key: required of every request; None serves this machine without one.
    """
    limits = limits or Limits()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        yield
        await asyncio.to_thread(service.engine.close)

    app = FastAPI(
        title="howwhen",
        version=version("howwhen"),
        lifespan=lifespan,
        docs_url=None,  # these two pages load scripts from other sites
        redoc_url=None,
    )
    registry, first_token = _metrics(service)
    _add_errors(app)
    _add_pages(app, service, registry)
    _add_answers(app, RequestHandler(service, limits), first_token)
    return AccessMiddleware(app, limits.body_bytes, key)


def _add_answers(app: FastAPI, handler: RequestHandler, first_token: Histogram) -> None:
    async def respond(body: Body, request: Request) -> Response:
        started = time.monotonic()
        generation = handler.read(body)
        prompt_tokens = await handler.check(generation)
        reply = Reply(handler.service, body, generation.rung, prompt_tokens)
        client = request.client.host if request.client else ""
        if not body.stream:
            return await _complete(handler, generation, reply, client, request)
        chunks = _chunks(handler, generation, reply, client, first_token, started)
        first = await anext(chunks)  # a refusal is raised before the status is sent
        return EventSourceResponse(_prepend(first, chunks), headers={"Cache-Control": "no-store"})

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await respond(body, request)

    @app.post("/v1/completions")
    async def text(body: TextRequest, request: Request) -> Response:
        return await respond(body, request)


async def _chunks(
    handler: RequestHandler,
    generation: GenerationRequest,
    reply: Reply,
    client: str,
    first_token: Histogram,
    started: float,
) -> AsyncIterator[str]:
    """A streamed answer as the data of server-sent events."""
    async with handler.answer(generation, client) as updates:
        yield json.dumps(reply.opening())
        try:
            async for update in updates:
                if isinstance(update, Finish):
                    yield json.dumps(reply.chunk("", [], update))
                    continue
                if not reply.tokens:
                    first_token.observe(time.monotonic() - started)
                yield json.dumps(reply.chunk(*reply.explain(update)))
        except Exception as error:  # noqa: BLE001 - the status is already sent, so the stream reports the error
            if not isinstance(error, HowwhenError):
                _LOG.error("a streamed answer failed", exc_info=error)
            yield json.dumps(error_body(str(error), "server_error", "internal_error"))
            return
    if reply.body.stream_options and reply.body.stream_options.include_usage:
        yield json.dumps(reply.usage_chunk())
    yield "[DONE]"


async def _prepend(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for chunk in rest:
        yield chunk


async def _complete(
    handler: RequestHandler,
    generation: GenerationRequest,
    reply: Reply,
    client: str,
    request: Request,
) -> JSONResponse:
    """An answer that is not streamed. Generation stops when the client disconnects."""
    answer = asyncio.create_task(_generate(handler, generation, reply, client))
    disconnect = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait({answer, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return JSONResponse(answer.result())
    finally:
        answer.cancel()
        disconnect.cancel()
    raise RefusedError(499, "the client has disconnected", "client_closed_request")


async def _generate(
    handler: RequestHandler, generation: GenerationRequest, reply: Reply, client: str
) -> dict[str, Any]:
    text, finish = "", Finish.LENGTH
    details: list[dict[str, Any]] = []
    async with handler.answer(generation, client) as updates:
        async for update in updates:
            if isinstance(update, Finish):
                finish = update
            else:
                new_text, new_details = reply.explain(update)
                text, details = text + new_text, details + new_details
    return reply.complete(text, details, finish)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _add_pages(app: FastAPI, service: Service, registry: CollectorRegistry) -> None:
    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "pair": service.name, **vars(service.engine.stats)}

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(generate_latest(registry), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        rungs = {
            service.name: "hybrid",
            **{f"{service.name}/{rung}": rung for rung in service.rungs},
        }
        models = [
            {
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": "howwhen",
                "howwhen": {"starts_in_thinking": service.engine.models.starts_in_thinking(rung)},
            }
            for name, rung in rungs.items()
        ]
        return {"object": "list", "data": models}

    @app.get("/")
    async def playground() -> HTMLResponse:
        return HTMLResponse(_playground(service))


def _playground(service: Service) -> str:
    template = page_environment().get_template("playground.html")
    return template.render(service=service, service_data={"model": service.name})


def _metrics(service: Service) -> tuple[CollectorRegistry, Histogram]:
    registry = CollectorRegistry()
    registry.register(_StatsCollector(service.engine))
    first = Histogram(
        "howwhen_first_token_seconds", "From request to first token", registry=registry
    )
    return registry, first


class _StatsCollector:
    """The engine's statistics for Prometheus."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> list[Metric]:
        """All statistics."""
        stats = self.engine.stats
        counters = {
            "requests": (("asked", "answered", "cancelled", "failed"), "Requests"),
            "tokens": (("tokens", "decisions"), "Tokens written"),
        }
        metrics: list[Metric] = []
        for name, (keys, text) in counters.items():
            family = CounterMetricFamily(f"howwhen_{name}", text, labels=["kind"])
            for key in keys:
                family.add_metric([key], getattr(stats, key))
            metrics.append(family)
        gauge = GaugeMetricFamily("howwhen_now", "Requests and batches now", labels=["kind"])
        for key in ("waiting", "running", "batches"):
            gauge.add_metric([key], getattr(stats, key))
        return [*metrics, gauge]


def _add_errors(app: FastAPI) -> None:
    """Report every error in OpenAI's format."""

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
        headers = {"Retry-After": "1"} if error.status in (429, 503) else {}
        content = error_body(str(error), kind, error.code)
        return JSONResponse(content, status_code=error.status, headers=headers)

    @app.exception_handler(InputError)
    async def unusable(_: Request, error: InputError) -> JSONResponse:
        return JSONResponse(error_body(str(error), "invalid_request_error"), status_code=400)

    @app.exception_handler(BusyError)
    async def busy(_: Request, error: BusyError) -> JSONResponse:
        content = error_body(str(error), "server_error", "overloaded")
        return JSONResponse(content, status_code=503, headers={"Retry-After": "1"})

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        parts = [
            f"{'.'.join(str(part) for part in detail['loc'][1:]) or 'body'}: {detail['msg']}"
            for detail in error.errors()
        ]
        content = error_body("; ".join(parts), "invalid_request_error", "invalid_value")
        return JSONResponse(content, status_code=400)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:  # Starlette logs it
        return JSONResponse(error_body(str(error), "server_error", "internal_error"), 500)

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        content = error_body(str(error.detail), "invalid_request_error")
        return JSONResponse(content, status_code=error.status_code, headers=error.headers)
