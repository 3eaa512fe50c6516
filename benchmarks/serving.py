"""The server under load: `howwhen serve` for tally-rl, in a separate process.

Sixty-four clients stream for a minute. Some are slow and some leave early. Each complete answer
must equal the one that a single client gets. Then the time to the first token is compared with the
base's.
"""

import asyncio
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import httpx

from benchmarks.timing import Result, compare_pairs
from howwhen.zoo.tally import tally_problems

CLIENTS = 64
SECONDS = float(os.environ.get("HOWWHEN_LOAD_SECONDS", "60"))
RUNGS = ("hybrid", "base", "thinking", "takeover")
SLOW_SECONDS = 0.05
"""Pause of a slow client between two chunks."""
REPEATS = 5
"""Paired readings of the time to the first token."""
FIRST_TOKENS = 12
"""Questions per reading."""

RungQuestion = tuple[str, str]
"""Rung and question of a request."""


@dataclass
class Tally:
    """Outcomes of the requests of all clients."""

    answers: int = 0
    left: int = 0
    errors: list[str] = field(default_factory=list)
    crossed: int = 0
    """Answers that differ from the one that a single client got."""


def results() -> Iterator[Result]:
    """Errors under load, memory, leftover requests, and the time to the first token."""
    yield from asyncio.run(_measure())


async def _measure() -> list[Result]:
    with TemporaryDirectory() as place:
        async with _served(Path(place)) as (process, client):
            alone = await _answers_alone(client)
            await _load(client, alone, SECONDS / 6)  # caches and arenas reach their size
            before = _resident(process)
            tally = await _load(client, alone, SECONDS)
            await asyncio.sleep(1)
            grown = _resident(process) / before
            health = (await client.get("/health")).json()
            first_tokens = iter(await _first_tokens(client))
    left_over = health["running"] + health["waiting"] + health["batches"]
    wrong = len(tally.errors) + tally.crossed
    what = (
        f"{tally.answers} complete answers, {tally.left} left early, first error {tally.errors[:1]}"
    )
    return [
        Result("load: errors and crossed answers", wrong, 0, wrong == 0, f"at most 0; {what}"),
        Result("load: requests left over", left_over, 0, left_over == 0, "at most 0; at the end"),
        Result(
            "load: memory after / before", round(grown, 2), 1.1, grown <= 1.1,
            f"at most 1.1; {before / 2**20:.0f} MiB before",
        ),
        compare_pairs(
            "first token, hybrid / base", lambda: next(first_tokens), "at most", 1.1,
            f"hybrid, base, medians of {FIRST_TOKENS} questions", REPEATS,
        ),
    ]  # fmt: skip


@asynccontextmanager
async def _served(place: Path) -> AsyncIterator[tuple[subprocess.Popen[bytes], httpx.AsyncClient]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "howwhen", "serve", "--pair", "tally-rl", "--preset", "smoke",
               "--out", str(place / "run"), "--port", str(port)]  # fmt: skip
    process = subprocess.Popen(command)
    limits = httpx.Limits(max_connections=2 * CLIENTS)
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        try:
            await _until_up(process, client)
            yield process, client
        finally:
            process.terminate()
            process.wait(30)


async def _until_up(process: subprocess.Popen[bytes], client: httpx.AsyncClient) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        try:
            await client.get("/health")
            return
        except httpx.ConnectError:
            await asyncio.sleep(0.5)
    raise RuntimeError("the server did not come up")


async def _answers_alone(client: httpx.AsyncClient) -> dict[RungQuestion, str]:
    """All answers that the load will request, one at a time."""
    questions = [problem.question for problem in tally_problems(16, seed=5)]
    requests = [(rung, question) for rung in RUNGS for question in questions]
    return {
        request: "".join([text async for text in _stream(client, request)]) for request in requests
    }


async def _load(client: httpx.AsyncClient, alone: dict[RungQuestion, str], seconds: float) -> Tally:
    tally, deadline = Tally(), time.monotonic() + seconds
    await asyncio.gather(
        *(_stream_until(deadline, client, alone, tally, n) for n in range(CLIENTS))
    )
    return tally


async def _stream_until(
    deadline: float,
    client: httpx.AsyncClient,
    alone: dict[RungQuestion, str],
    tally: Tally,
    number: int,
) -> None:
    """One client. An eighth of them are slow, and an eighth leave after their first chunk."""
    rng, requests = random.Random(number), list(alone)
    while time.monotonic() < deadline:
        request, text = rng.choice(requests), ""
        try:
            async for piece in _stream(client, request):
                text += piece
                if number % 8 == 1:
                    break
                if number % 8 == 2:
                    await asyncio.sleep(SLOW_SECONDS)
        except (httpx.HTTPError, RuntimeError) as error:
            tally.errors.append(repr(error))
            continue
        if number % 8 == 1:
            tally.left += 1
            continue
        tally.answers += 1
        tally.crossed += text != alone[request]


async def _stream(client: httpx.AsyncClient, request: RungQuestion) -> AsyncIterator[str]:
    rung, question = request
    body = {
        "model": f"tally-rl/{rung}", "messages": [{"role": "user", "content": question}],
        "stream": True, "howwhen": {"details": False},
    }  # fmt: skip
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            raise RuntimeError(f"{reply.status_code} {(await reply.aread()).decode()[:200]}")
        async for line in reply.aiter_lines():
            data = line.removeprefix("data: ")
            if not line.startswith("data: ") or data == "[DONE]":
                continue
            chunk = json.loads(data)
            if "error" in chunk:
                raise RuntimeError(str(chunk["error"]))
            content = chunk["choices"][0]["delta"]["content"]
            if content:
                yield content


async def _first_tokens(client: httpx.AsyncClient) -> list[tuple[float, float]]:
    """Paired readings of hybrid and base: median seconds to the first text of an answer."""
    questions = [problem.question for problem in tally_problems(REPEATS * FIRST_TOKENS, seed=6)]
    readings = []
    for start in range(0, len(questions), FIRST_TOKENS):
        pairs = [
            (
                await _first_token(client, "hybrid", question),
                await _first_token(client, "base", question),
            )
            for question in questions[start : start + FIRST_TOKENS]
        ]
        hybrid, base = zip(*pairs, strict=True)
        readings.append((median(hybrid), median(base)))
    return readings


async def _first_token(client: httpx.AsyncClient, rung: str, question: str) -> float:
    """Seconds to the first text of an answer."""
    started = time.perf_counter()
    async for _ in _stream(client, (rung, question)):
        seconds = time.perf_counter() - started
        break
    else:
        raise RuntimeError(f"the rung {rung} streamed no text for {question!r}")
    await asyncio.sleep(0.02)  # the server drops the rest of the answer meanwhile
    return seconds


def _resident(process: subprocess.Popen[bytes]) -> int:
    """Memory of the process in bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    match = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    assert match is not None
    return 1024 * int(match[1])
