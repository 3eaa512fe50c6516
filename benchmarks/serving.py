"""The server under load, as its users meet it: `howwhen serve` in a process of its own, tally-rl.

Sixty-four clients stream for a minute, among them slow ones and ones that leave; every whole answer
must be the one that a client alone gets. Then how long the first token takes, against the base's.
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

from benchmarks.timing import Result
from howwhen.zoo.tally import tally_problems

CLIENTS = 64
SECONDS = float(os.environ.get("HOWWHEN_LOAD_SECONDS", "60"))
RUNGS = ("hybrid", "base", "thinking", "takeover")
SLOW_SECONDS = 0.05
"""What a slow client waits between two chunks."""
FIRST_TOKENS = 60


@dataclass
class Tally:
    """What the clients saw."""

    answers: int = 0
    left: int = 0
    errors: list[str] = field(default_factory=list)
    crossed: int = 0
    """Answers that differ from the one a client alone got."""


def results() -> Iterator[Result]:
    """Load, memory, what is left over, and the first token."""
    yield from asyncio.run(_measure())


async def _measure() -> list[Result]:
    with TemporaryDirectory() as place:
        async with _served(Path(place)) as (process, client):
            alone = await _answers_alone(client)
            await _load(client, alone, SECONDS / 6)  # caches and arenas reach their size
            before = _resident(process)
            seen = await _load(client, alone, SECONDS)
            await asyncio.sleep(1)
            grown = _resident(process) / before
            health = (await client.get("/health")).json()
            first = await _first_tokens(client)
    left_over = health["running"] + health["waiting"] + health["batches"]
    wrong = len(seen.errors) + seen.crossed
    what = f"{seen.answers} whole answers, {seen.left} left early, first error {seen.errors[:1]}"
    base, hybrid = first["base"], first["hybrid"]
    ratio = round(hybrid / base, 2)
    return [
        Result("load: errors and crossed answers", wrong, 0, wrong == 0, f"at most 0; {what}"),
        Result("load: requests left over", left_over, 0, left_over == 0, "at most 0; after it"),
        Result(
            "load: memory after / before", round(grown, 2), 1.1, grown <= 1.1,
            f"at most 1.1; {before / 2**20:.0f} MiB before",
        ),
        Result(
            "first token, hybrid / base", ratio, 1.3, ratio <= 1.3,
            f"at most 1.3; medians {1000 * hybrid:.1f} ms, {1000 * base:.1f} ms",
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


GenerationRequest = tuple[str, str]
"""Rung and question."""


async def _answers_alone(client: httpx.AsyncClient) -> dict[GenerationRequest, str]:
    """Every answer that will be asked for, one at a time."""
    questions = [problem.question for problem in tally_problems(16, seed=5)]
    asks = [(rung, question) for rung in RUNGS for question in questions]
    return {ask: "".join([text async for text in _stream(client, ask)]) for ask in asks}


async def _load(
    client: httpx.AsyncClient, alone: dict[GenerationRequest, str], seconds: float
) -> Tally:
    seen, deadline = Tally(), time.monotonic() + seconds
    await asyncio.gather(*(_one(client, alone, seen, deadline, n) for n in range(CLIENTS)))
    return seen


async def _one(
    client: httpx.AsyncClient,
    alone: dict[GenerationRequest, str],
    seen: Tally,
    deadline: float,
    number: int,
) -> None:
    """A client: every eighth is slow, every other eighth leaves after its first chunk."""
    rng, asks = random.Random(number), list(alone)
    while time.monotonic() < deadline:
        ask, text = rng.choice(asks), ""
        try:
            async for piece in _stream(client, ask):
                text += piece
                if number % 8 == 1:
                    break
                if number % 8 == 2:
                    await asyncio.sleep(SLOW_SECONDS)
        except (httpx.HTTPError, RuntimeError) as error:
            seen.errors.append(repr(error))
            continue
        if number % 8 == 1:
            seen.left += 1
            continue
        seen.answers += 1
        seen.crossed += text != alone[ask]


async def _stream(client: httpx.AsyncClient, ask: GenerationRequest) -> AsyncIterator[str]:
    rung, question = ask
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


async def _first_tokens(client: httpx.AsyncClient) -> dict[str, float]:
    """Median seconds to the first text of an answer, both rungs in turn."""
    times: dict[str, list[float]] = {"base": [], "hybrid": []}
    for problem in tally_problems(FIRST_TOKENS, seed=6):
        for rung, own in times.items():
            started = time.perf_counter()
            async for _ in _stream(client, (rung, problem.question)):
                own.append(time.perf_counter() - started)
                break
            await asyncio.sleep(0.02)  # what is left of the answer is dropped meanwhile
    return {rung: median(own) for rung, own in times.items()}


def _resident(process: subprocess.Popen[bytes]) -> int:
    """Memory of the process in bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])
