"""What a forward pass over several tokens costs, measured once per pair, machine and batch size.

The costs decide how many tokens are drafted at a time, and so the order in which some sums are
made. They are therefore kept in a file, so that a run that is repeated on a machine gives the same
numbers to the last digit.
"""

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from howwhen.cache_folder import cache_folder
from howwhen.hybrid.streams import open_streams
from howwhen.lm.alignment import ModelPair
from howwhen.lm.models import LanguageModel

SIZES = (1, 2, 4, 8, 16)
"""Tokens of the passes that are timed."""
DEAREST = 6.0
"""Costs in passes over one token beyond which longer passes are not timed: they never pay."""
PROMPT = 32
"""Tokens that are read before."""
REPEATS = 5


@dataclass(frozen=True)
class PassCosts:
    """Seconds of a pass over 1, 2, 4, 8 and 16 tokens of every stream."""

    base: tuple[float, ...]
    thinking: tuple[float, ...]

    def of_base(self, tokens: int) -> float:
        """Of a pass of the base."""
        return _between(self.base, tokens)

    def of_both(self, tokens: int) -> float:
        """Of a pass of either model."""
        return _between(self.base, tokens) + _between(self.thinking, tokens)


STEPWISE = PassCosts((1.0, 2.0, 4.0, 8.0, 16.0), (1.0, 2.0, 4.0, 8.0, 16.0))
"""Where nothing is drafted, nothing need be timed."""


def _between(costs: tuple[float, ...], tokens: int) -> float:
    """Linear between the sizes that were timed, and beyond the last two."""
    upper = next((n for n, size in enumerate(SIZES) if size >= tokens), len(SIZES) - 1)
    upper = max(1, upper)
    low, high = SIZES[upper - 1], SIZES[upper]
    share = (tokens - low) / (high - low)
    return costs[upper - 1] + share * (costs[upper] - costs[upper - 1])


def pass_costs(models: ModelPair, streams: int, *, needs_thinking: bool) -> PassCosts:
    """The costs of a pair's passes over so many streams, timed if they are not known.

    Without the thinking model its costs are 0.
    """
    size = 1 << (streams - 1).bit_length()  # 33 streams cost about as much as 64
    base = _costs(models.base, size)
    return PassCosts(base, _costs(models.thinking, size) if needs_thinking else (0.0,) * len(SIZES))


_TIMED: dict[str, tuple[float, ...]] = {}


def _costs(model: LanguageModel, streams: int) -> tuple[float, ...]:
    key = _key(model, streams)
    if key not in _TIMED:
        _TIMED[key] = _kept(key, lambda: _time(model, streams))
    return _TIMED[key]


def _key(model: LanguageModel, streams: int) -> str:
    kind = model.device.type
    where = (
        torch.cuda.get_device_name(model.device)
        if kind == "cuda" and torch.cuda.is_available()
        else f"{platform.node()} {kind} {torch.get_num_threads()} threads"
    )
    return f"{model.fingerprint} {model.model.dtype} {where} {streams} streams"


def _kept(key: str, measure: Callable[[], tuple[float, ...]]) -> tuple[float, ...]:
    """What is in this machine's file of that key; the first process that asks makes it."""
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    path = cache_folder() / "pass-costs" / f"{name}.json"
    found = _read(path)
    if found is not None:
        return found
    measured = measure()
    text = json.dumps({"of": key, "tokens": SIZES, "seconds": measured})
    try:
        _claim(path, text.encode())
    except OSError:
        return measured  # without a folder to keep them in they are measured by every process
    return _read(path) or measured


def _read(path: Path) -> tuple[float, ...] | None:
    """Costs that were kept; None for a file that is missing or damaged."""
    try:
        seconds = json.loads(path.read_bytes())["seconds"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    is_whole = isinstance(seconds, list) and len(seconds) == len(SIZES)
    return tuple(map(float, seconds)) if is_whole else None


def _claim(path: Path, content: bytes) -> None:
    """Write a file whole, unless another process was faster."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_suffix(f".{os.getpid()}.partial")
    own.write_bytes(content)
    try:
        with suppress(FileExistsError):
            os.link(own, path)
    finally:
        own.unlink()


@torch.no_grad()
def _time(model: LanguageModel, streams: int) -> tuple[float, ...]:
    prompt = [n % model.vocabulary_size for n in range(1, PROMPT + 2)]
    opened = open_streams(model, [prompt] * streams)
    seconds: list[float] = []
    for size in SIZES:
        if seconds and seconds[-1] > DEAREST * seconds[0]:
            seconds.append(seconds[-1] * size / SIZES[len(seconds) - 1])
            continue
        tokens = torch.full((streams, size), prompt[-1], device=model.device)
        timings = []
        for _ in range(REPEATS + 1):
            started = time.perf_counter()
            opened.extend(tokens)
            opened.logits[:, -1].argmax().item()  # waits for the device
            timings.append(time.perf_counter() - started)
            opened.rollback([size] * streams)
        seconds.append(round(median(timings[1:]), 7))
    return tuple(seconds)
