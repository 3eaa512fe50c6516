"""What a forward pass over several tokens costs, measured once per pair, machine and batch size.

The costs decide how many tokens are drafted at a time, and so the order in which some sums are
made. They are therefore kept in a file, so that a run that is repeated on a machine gives the same
numbers to the last digit.
"""

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import NamedTemporaryFile

import torch

from howwhen.cache_folder import cache_folder
from howwhen.errors import SettingsError
from howwhen.hybrid.streams import Streams, open_streams
from howwhen.lm.alignment import ModelPair
from howwhen.lm.models import LanguageModel

SIZES = (1, 2, 4, 8, 16)
"""Tokens of the passes that are timed."""
DEAREST = 6.0
"""Costs in passes over one token beyond which longer passes are not timed: they never pay."""
PROMPT = 32
"""Tokens that are read before."""
REPEATS = 5
VARIABLE = "HOWWHEN_PASS_COSTS"


@dataclass(frozen=True)
class PassCosts:
    """Seconds of a pass over 1, 2, 4, 8 and 16 tokens of every stream."""

    base: tuple[float, ...]
    thinking: tuple[float, ...]

    def of_base(self, tokens: int) -> float:
        """Of a pass of the base."""
        return _between(self.base, tokens)

    def of_thinking(self, tokens: int) -> float:
        """Of a pass of the thinking model."""
        return _between(self.thinking, tokens)

    def of_both(self, tokens: int) -> float:
        """Of a pass of either model."""
        return self.of_base(tokens) + self.of_thinking(tokens)


STEPWISE = PassCosts((1.0, 2.0, 4.0, 8.0, 16.0), (1.0, 2.0, 4.0, 8.0, 16.0))
"""Where nothing is drafted, nothing need be timed."""


def _between(costs: tuple[float, ...], tokens: int) -> float:
    """Linear between the sizes that were timed, and beyond the last two."""
    upper = next((n for n, size in enumerate(SIZES) if size >= tokens), len(SIZES) - 1)
    upper = max(1, upper)
    low, high = SIZES[upper - 1], SIZES[upper]
    share = (tokens - low) / (high - low)
    return costs[upper - 1] + share * (costs[upper] - costs[upper - 1])


_TIMED: dict[str, PassCosts] = {}


def pass_costs(models: ModelPair, streams: int, *, needs_thinking: bool) -> PassCosts:
    """The costs of a pair's passes over so many streams, timed if they are not known.

    Without the thinking model its costs are 0. The environment variable `HOWWHEN_PASS_COSTS` takes
    their place, for numbers that are the same to the last digit on every machine.

    Raises:
        SettingsError: the variable holds something else than five numbers above 0.
    """
    if fixed := os.environ.get(VARIABLE):
        return _fixed(fixed, needs_thinking=needs_thinking)
    used = [models.base, models.thinking] if needs_thinking else [models.base]
    size = 1 << (streams - 1).bit_length()  # 33 streams cost about as much as 64
    key = f"{' '.join(map(_of, used))} {size} streams"
    if key not in _TIMED:
        base, *thinking = _kept(key, len(used), lambda: _time(used, size))
        _TIMED[key] = PassCosts(base, thinking[0] if thinking else (0.0,) * len(SIZES))
    return _TIMED[key]


def _fixed(text: str, *, needs_thinking: bool) -> PassCosts:
    try:
        costs = tuple(float(part) for part in text.split(","))
    except ValueError:
        costs = ()
    if len(costs) != len(SIZES) or not all(0 < cost < math.inf for cost in costs):
        raise SettingsError(
            f"found {VARIABLE}={text!r}; expected what a pass over 1, 2, 4, 8 and 16 tokens costs, "
            f"such as {VARIABLE}=1,1.1,1.2,1.3,1.5"
        )
    return PassCosts(costs, costs if needs_thinking else (0.0,) * len(SIZES))


def _of(model: LanguageModel) -> str:
    kind = model.device.type
    where = (
        torch.cuda.get_device_name(model.device)
        if kind == "cuda" and torch.cuda.is_available()
        else f"{platform.node()} {kind} {torch.get_num_threads()} threads"
    )
    return f"{model.fingerprint} {model.model.dtype} {where}"


Costs = list[tuple[float, ...]]
"""Of each model, seconds by number of tokens."""


def _kept(key: str, models: int, measure: Callable[[], Costs]) -> Costs:
    """What is in this machine's file of that key; the first process that asks makes it."""
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    path = cache_folder() / "pass-costs" / f"{name}.json"
    found = _read(path, models)
    if found is not None:
        return found
    measured = measure()
    text = json.dumps({"of": key, "tokens": SIZES, "seconds": measured})
    try:
        _claim(path, text.encode(), models)
    except OSError:
        return measured  # without a folder to keep them in they are measured by every process
    return _read(path, models) or measured


def _read(path: Path, models: int) -> Costs | None:
    """Costs that were kept; None for a file that is missing or damaged."""
    try:
        seconds = json.loads(path.read_bytes())["seconds"]
        costs = [tuple(float(one) for one in own) for own in seconds]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    is_whole = [len(own) for own in costs] == [len(SIZES)] * models
    is_sound = all(0 < one < math.inf for own in costs for one in own)
    return costs if is_whole and is_sound else None


def _claim(path: Path, content: bytes, models: int) -> None:
    """Write a file whole, unless another process was faster; a damaged one is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
        file.write(content)
    own = Path(file.name)
    try:
        os.link(own, path)
    except FileExistsError:
        if _read(path, models) is None:
            own.replace(path)
    finally:
        own.unlink(missing_ok=True)


@torch.no_grad()
def _time(models: Sequence[LanguageModel], streams: int) -> Costs:
    """Time the models in turn, as a hybrid runs them: each finds the caches full of the others."""
    room = min(model.context or PROMPT + SIZES[-1] for model in models) - SIZES[-1]
    length = max(2, min(PROMPT, room))
    prompts = [[n % model.vocabulary_size for n in range(1, length + 1)] for model in models]
    opened = [
        open_streams(model, [prompt] * streams)
        for model, prompt in zip(models, prompts, strict=True)
    ]
    costs: list[list[float]] = [[] for _ in models]
    for number, size in enumerate(SIZES):
        if number and max(own[-1] / own[0] for own in costs) > DEAREST:
            for own in costs:
                own.append(own[-1] * size / SIZES[number - 1])
            continue
        timings = [[_seconds(one, size) for one in opened] for _ in range(REPEATS + 1)][1:]
        for own, column in zip(costs, zip(*timings, strict=True), strict=True):
            own.append(round(median(column), 7))
    return [tuple(own) for own in costs]


def _seconds(opened: Streams, size: int) -> float:
    """Of one pass, which is forgotten again."""
    tokens = torch.ones(len(opened.lengths), size, dtype=torch.long, device=opened.device)
    started = time.perf_counter()
    opened.extend(tokens)
    opened.logits[:, -1].argmax().item()  # waits for the device
    seconds = time.perf_counter() - started
    opened.rollback([size] * len(opened.lengths))
    return seconds
