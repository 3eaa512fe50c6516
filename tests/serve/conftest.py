"""A server over tiny random models, on a free port of this machine."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn

from howwhen.errors import SettingsError
from howwhen.hybrid.choice import Base, Rung, Steer, Takeover, Thinking
from howwhen.hybrid.strength import fixed
from howwhen.serve.app import make_app
from howwhen.serve.engine import Engine, Event, GenerationRequest
from howwhen.serve.requests import Limits, Service
from howwhen.settings import HybridSettings
from tests.conftest import MakeModel
from tests.factories import make_gate, make_models, make_vectors

SETTINGS = HybridSettings(max_new_tokens=24)
QUESTIONS = [f"Ann has {n} pens . Ann gets {n} more . How many pens ?" for n in range(2, 12)]


@dataclass(frozen=True)
class Running:
    """A server at work."""

    url: str
    service: Service

    def choose(self, rung: str) -> Rung:
        return self.service.engine.find_rung(rung, None)


Serve = Callable[..., Running]


@contextmanager
def kept_busy(engine: Engine) -> Iterator[None]:
    """An engine of one batch at a time, held at the first token of an answer: all others wait."""
    at_work, may_go_on = threading.Event(), threading.Event()

    def hold(event: Event) -> None:
        at_work.set()
        assert may_go_on.wait(20)

    assert engine.max_batches == 1
    engine.submit(GenerationRequest(QUESTIONS[0], "base", SETTINGS), hold)
    assert at_work.wait(20)
    try:
        yield
    finally:
        may_go_on.set()


def make_service(make_model: MakeModel, name: str = "tiny", **engine: Any) -> Service:
    models = make_models(make_model)
    rungs: dict[str, Rung] = {
        "base": Base(),
        "hybrid": Steer(make_gate(), make_vectors()),
        "takeover": Takeover(),
        "thinking": Thinking(),
    }

    def choose(rung: str, strength: float | None) -> Rung:
        if rung not in rungs:
            raise SettingsError(f"no rung {rung!r}; expected one of {', '.join(rungs)}")
        if strength is None:
            return rungs[rung]
        if rung != "hybrid":
            raise SettingsError(f"the rung {rung} does not steer, so it has no strength")
        return Steer(make_gate(), make_vectors(), fixed(strength))

    return Service(
        name, Engine(models, choose, **engine), models.base.tokenizer, tuple(rungs),
        make_gate().titles, SETTINGS, "What is 2 + 2 ?",
    )  # fmt: skip


@pytest.fixture
def serve(make_model: MakeModel) -> Iterator[Serve]:
    opened: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(limits: Limits | None = None, key: str | None = None, **engine: Any) -> Running:
        service = make_service(make_model, **engine)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        config = uvicorn.Config(
            make_app(service, limits, key), host="127.0.0.1", port=port, log_config=None
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        opened.append((server, thread))
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        return Running(f"http://127.0.0.1:{port}", service)

    yield start
    for server, thread in opened:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()
