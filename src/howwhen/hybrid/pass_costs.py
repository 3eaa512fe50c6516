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
from howwhen.settings import Compilation

SIZES = (1, 2, 4, 8, 16)
"""Tokens of the passes that are timed."""
DEAREST = 6.0
"""Costs in passes over one token beyond which longer passes are not timed: they never pay."""
PROMPT = 32
"""Tokens that are read before."""
REPEATS = 5
PATIENCE = 2.0
"""Seconds after which a pass is not timed again."""
VARIABLE = "HOWWHEN_PASS_COSTS"


@dataclass(frozen=True)
class PassCosts:
    """Seconds of a pass over 1, 2, 4, 8 and 16 tokens of every stream."""

    base: tuple[float, ...]
    thinking: tuple[float, ...]
    both: tuple[float, ...] | None = None
    """Of both models reading the same tokens, where they are on two devices and do so side by side;
    None where one waits for the other."""
    draft: tuple[float, ...] | None = None
    """Of the draft model; None where there is none."""

    def of_base(self, tokens: int) -> float:
        """Of a pass of the base."""
        return _between(self.base, tokens)

    def of_thinking(self, tokens: int) -> float:
        """Of a pass of the thinking model."""
        return _between(self.thinking, tokens)

    def of_both(self, tokens: int) -> float:
        """Of a pass of either model."""
        if self.both is not None:
            return _between(self.both, tokens)
        return self.of_base(tokens) + self.of_thinking(tokens)

    def of_draft(self, tokens: int) -> float:
        """Of a pass of the draft model."""
        return math.inf if self.draft is None else _between(self.draft, tokens)


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


def pass_costs(
    models: ModelPair,
    streams: int,
    *,
    needs_thinking: bool,
    compilation: Compilation | None = None,
) -> PassCosts:
    """The costs of a pair's passes over so many streams, timed if they are not known.

    Without the thinking model its costs are 0. The environment variable `HOWWHEN_PASS_COSTS` takes
    their place, for numbers that are the same to the last digit on every machine.

    Raises:
        SettingsError: the variable holds something else than five numbers above 0.
    """
    if fixed := os.environ.get(VARIABLE):
        return _fixed(fixed, models, needs_thinking=needs_thinking)
    used = {"base": models.base}
    if needs_thinking:
        used["thinking"] = models.thinking
    if models.draft is not None:
        used["draft"] = models.draft
    size = 4 ** round(math.log(streams, 4))  # 33 streams cost about as much as 64
    names = " ".join(f"{name} {_of(model)}" for name, model in used.items())
    is_apart = needs_thinking and models.base.device != models.thinking.device
    beside = " side by side" if is_apart else ""
    key = f"{names}{beside} {size} streams {compilation or ''}".rstrip()
    if key not in _TIMED:
        costs = _kept(key, lambda: _time(used, size, compilation))
        _TIMED[key] = PassCosts(**{"thinking": (0.0,) * len(SIZES)} | costs)
    return _TIMED[key]


def _fixed(text: str, models: ModelPair, *, needs_thinking: bool) -> PassCosts:
    try:
        costs = tuple(float(part) for part in text.split(","))
    except ValueError:
        costs = ()
    if len(costs) != len(SIZES) or not all(0 < cost < math.inf for cost in costs):
        raise SettingsError(
            f"found {VARIABLE}={text!r}; expected what a pass over 1, 2, 4, 8 and 16 tokens costs, "
            f"such as {VARIABLE}=1,1.1,1.2,1.3,1.5"
        )
    draft = None if models.draft is None else tuple(cost / 10 for cost in costs)
    return PassCosts(costs, costs if needs_thinking else (0.0,) * len(SIZES), draft=draft)


def _of(model: LanguageModel) -> str:
    kind = model.device.type
    where = (
        torch.cuda.get_device_name(model.device)
        if kind == "cuda" and torch.cuda.is_available()
        else f"{platform.node()} {kind} {torch.get_num_threads()} threads"
    )
    return f"{model.fingerprint} {model.model.dtype} {where}"


Costs = dict[str, tuple[float, ...]]
"""Fields of `PassCosts`."""


def _kept(key: str, measure: Callable[[], Costs]) -> Costs:
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


def _read(path: Path) -> Costs | None:
    """Costs that were kept; None for a file that is missing or damaged."""
    try:
        seconds = json.loads(path.read_bytes())["seconds"]
        costs = {
            str(name): tuple(float(one) for one in seconds[name])
            for name in ("base", "thinking", "both", "draft")
            if name in seconds
        }
    except (OSError, ValueError, TypeError, KeyError):
        return None
    is_whole = "base" in costs and all(len(own) == len(SIZES) for own in costs.values())
    is_sound = all(0 < one < math.inf for own in costs.values() for one in own)
    return costs if is_whole and is_sound else None


def _claim(path: Path, content: bytes) -> None:
    """Write a file whole, unless another process was faster; a damaged one is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
        file.write(content)
    own = Path(file.name)
    try:
        os.link(own, path)
    except FileExistsError:
        if _read(path) is None:
            own.replace(path)
    finally:
        own.unlink(missing_ok=True)


@torch.no_grad()
def _time(models: dict[str, LanguageModel], streams: int, compilation: Compilation | None) -> Costs:
    """Time the models in turn, as a hybrid runs them: each finds the caches full of the others."""
    room = min(model.context or PROMPT + SIZES[-1] for model in models.values()) - SIZES[-1]
    length = max(2, min(PROMPT, room))
    opened: dict[str, list[Streams]] = {}
    for name, model in models.items():
        prompt = [n % model.vocabulary_size for n in range(1, length + 1)]
        opened[name] = [open_streams(model, [prompt] * streams, compilation=compilation)]
    if "thinking" in opened and models["base"].device != models["thinking"].device:
        opened["both"] = [*opened["base"], *opened["thinking"]]
    costs: dict[str, list[float]] = {name: [] for name in opened}
    for number, size in enumerate(SIZES):
        if number and max(own[-1] / own[0] for own in costs.values()) > DEAREST:
            for own in costs.values():
                own.append(own[-1] * size / SIZES[number - 1])
            continue
        timings: list[list[float]] = []
        for together in opened.values():
            _seconds(together, size)  # warms up
        while len(timings) < REPEATS and (len(timings) < 2 or sum(map(sum, timings)) < PATIENCE):
            timings.append([_seconds(together, size) for together in opened.values()])
        for own, column in zip(costs.values(), zip(*timings, strict=True), strict=True):
            own.append(round(median(column), 7))
    return {name: tuple(own) for name, own in costs.items()}


def _seconds(together: Sequence[Streams], size: int) -> float:
    """Of one pass of some models, each of which is forgotten again."""
    count = len(together[0].lengths)
    tokens = [
        torch.ones(count, size, dtype=torch.long, device=streams.device) for streams in together
    ]
    started = time.perf_counter()
    for streams, own in zip(together, tokens, strict=True):
        streams.extend(own)
    for streams in together:
        streams.logits[:, -1].argmax().item()  # waits for the device
    seconds = time.perf_counter() - started
    for streams in together:
        streams.rollback([size] * count)
    return seconds
