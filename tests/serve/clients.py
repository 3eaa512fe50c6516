"""Answers that clients of the server expect."""

import time

from howwhen.hybrid.decoder import decode
from howwhen.records import HybridTrace, Problem
from tests.serve.conftest import QUESTIONS, SETTINGS, Running

QUESTION = QUESTIONS[0]


def expected(running: Running, rung: str, question: str = QUESTION) -> HybridTrace:
    problems = [Problem("0", question, "unknown")]
    return decode(running.service.engine.models, problems, running.choose(rung), SETTINGS)[0]


def wait_until_idle(running: Running) -> None:
    deadline = time.monotonic() + 10
    stats = running.service.engine.stats
    while stats.running or stats.waiting or stats.batches:
        assert time.monotonic() < deadline, stats
        time.sleep(0.02)
