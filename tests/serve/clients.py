"""Answers that clients of the server expect, and a place where an engine's events arrive."""

import threading
import time

from howwhen.hybrid.decoder import decode
from howwhen.records import Finish, HybridToken, HybridTrace, Problem
from howwhen.serve.engine import Event
from tests.serve.conftest import QUESTIONS, SETTINGS, Running

QUESTION = QUESTIONS[0]


class Inbox:
    """Collects the events of one request."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.is_over = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Finish | Exception):
            self.is_over.set()

    def wait(self) -> Event:
        assert self.is_over.wait(20)
        return self.events[-1]

    @property
    def tokens(self) -> list[HybridToken]:
        return [
            token for event in self.events if isinstance(event, list | tuple) for token in event
        ]


def expected(running: Running, rung: str, question: str = QUESTION) -> HybridTrace:
    problems = [Problem("0", question, "unknown")]
    return decode(running.service.engine.models, problems, running.choose(rung), SETTINGS)[0]


def wait_until_idle(running: Running) -> None:
    deadline = time.monotonic() + 10
    stats = running.service.engine.stats
    while stats.running or stats.waiting or stats.batches:
        assert time.monotonic() < deadline, stats
        time.sleep(0.02)
