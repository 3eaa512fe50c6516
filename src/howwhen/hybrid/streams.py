"""One model reading a batch of growing texts: its cache, and three things a plain cache cannot do.

Tokens can be rolled back, by a different number in each text. Columns of the cache that hold
padding or a token that was rolled back are masked and never read. Positions read before can be
passed through the upper blocks again with their residual steered, many candidates in one pass,
without touching the cache. Nothing here knows of text or categories.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache

from howwhen.errors import ModelError
from howwhen.lm.cache import Columns, growing_cache
from howwhen.lm.models import LanguageModel
from howwhen.lm.padding import additive_mask, cache_of, pad
from howwhen.lm.residual import capture_residuals, check_layer, resume_from_layer

MIN_DROPPED = 0.2
"""Share of a cache's columns that makes moving the others worthwhile."""
PROMPT_BYTES = 2**30
"""Most memory spent on keeping prompts."""


@dataclass
class Streams:
    """A model with what it has read of every stream. Made by `open_streams`."""

    model: LanguageModel
    layers: tuple[int, ...]
    """Blocks whose residual is kept for the positions read last."""
    steer_layer: int | None
    """Block whose residual is kept for every position, so that it can be steered."""
    valid: Bool[Tensor, "stream column"]
    """Which columns of the cache hold a token of the stream."""
    cache: Cache = field(default_factory=growing_cache)
    logits: Float[Tensor, "stream new vocabulary"] = field(init=False)
    """Of the token after each position read last."""
    residual: dict[int, Float[Tensor, "stream new d_model"]] = field(init=False)
    """Per layer, of the positions read last."""
    history: Float[Tensor, "stream column d_model"] | None = None
    """At `steer_layer`, of every column."""
    history_columns: Columns = field(default_factory=Columns)
    """Where `history` grows."""
    is_unpadded: bool = field(init=False)
    """Whether every column holds a token, so that no mask is needed."""
    is_open: bool = False
    """Whether `capturing` is open, so that no hooks are needed for a single pass."""
    read: dict[int, Tensor] = field(default_factory=dict)
    """Where the model leaves its residuals meanwhile."""

    def __post_init__(self) -> None:
        self.is_unpadded = bool(self.valid.all())

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Read with one set of hooks all along, rather than one for every token."""
        with capture_residuals(self.model.model, self._wanted()) as self.read:
            self.is_open = True
            try:
                yield
            finally:
                self.is_open = False

    def _wanted(self) -> list[int]:
        steer = () if self.steer_layer is None else (self.steer_layer,)
        return sorted({*self.layers, *steer})

    @property
    def device(self) -> torch.device:
        """Where tokens are read. Residuals and states are on the devices of their blocks."""
        return self.valid.device

    @property
    def lengths(self) -> Int[Tensor, " stream"]:
        """Tokens read of every stream."""
        return self.valid.sum(1)

    def extend(self, tokens: Int[Tensor, "stream new"]) -> None:
        """Read `new` more tokens of every stream."""
        fresh = torch.ones_like(tokens, dtype=torch.bool)
        self._forward(tokens, torch.cat([self.valid, fresh], dim=1), tokens.shape[1])

    def _forward(self, tokens: Tensor, valid: Tensor, logits_kept: int) -> None:
        count = tokens.shape[1]
        self.valid = valid
        once = capture_residuals(self.model.model, self._wanted())
        with nullcontext(self.read) if self.is_open else once as read:
            output = self.model.model(
                tokens,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=logits_kept,
                **self._places(count),
            )
        self.logits = output.logits.float()
        self.residual = {layer: read[layer] for layer in self.layers}
        if self.steer_layer is not None:
            self.history = self.history_columns.append(self.history, read[self.steer_layer])

    def _places(self, count: int) -> dict[str, Tensor]:
        """Mask and positions of the last `count` columns, unless the model can infer them."""
        width = self.valid.shape[1]
        if self.is_unpadded and count in (1, width):
            return {}
        columns = self.valid[:, None].expand(-1, count, -1)
        allowed = columns.tril(width - count)
        # Padding looks at itself: some kernels give no number where nothing may be looked at.
        allowed.diagonal(width - count, 1, 2).fill_(True)
        # A stream whose context is full reads on with the others, at its last position. Whatever it
        # reads is rolled back.
        last = (self.model.context or width) - 1
        positions = (self.valid.cumsum(1) - 1).clamp(0, last)[:, -count:]
        return {
            "attention_mask": additive_mask(allowed, self.model.model.dtype),
            "position_ids": positions,
        }

    def rollback(self, counts: Int[Tensor, " stream"]) -> None:
        """Forget the last `counts` tokens of every stream, no more than were read last."""
        width, common = self.valid.shape[1], int(counts.min())
        if common:
            self.cache.crop(-common)
            self.valid = self.valid[:, : width - common]
            self.history = None if self.history is None else self.history[:, : width - common]
        if int(counts.max()) == common:
            return
        extra = (counts - common).to(self.device)
        self.valid = self.valid & (_ranks(self.valid) > extra[:, None])
        self.is_unpadded = False

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        """Keep only these streams; an index that occurs several times makes as many copies."""
        for layer in self.cache.layers:
            layer.batch_select_indices(rows.to(layer.keys.device))
        self.valid = self.valid[rows.to(self.device)]
        if self.history is not None:
            self.history = self.history[rows.to(self.history.device)]

    def repack(self) -> None:
        """Move every text to the right end, once that drops enough columns to be worth a copy."""
        width = int(self.lengths.max())
        if width > (1 - MIN_DROPPED) * self.valid.shape[1]:
            return
        columns = self.valid.long().argsort(dim=1, stable=True)[:, -width:]  # those in use are last
        for layer in self.cache.layers:
            where = columns[:, None, :, None].to(layer.keys.device)
            layer.keys = layer.keys.gather(2, where.expand(-1, *_around(layer.keys)))
            layer.values = layer.values.gather(2, where.expand(-1, *_around(layer.values)))
        if self.history is not None:
            where = columns[:, :, None].to(self.history.device)
            self.history = self.history.gather(1, where.expand(-1, -1, self.history.shape[2]))
        self.valid = self.valid.gather(1, columns)
        self.is_unpadded = bool(self.valid.all())

    @property
    def nbytes(self) -> int:
        """Memory that its states take."""
        states = [part for layer in self.cache.layers for part in (layer.keys, layer.values)]
        if self.history is not None:
            states.append(self.history)
        return sum(part.nbytes for part in states)

    def copy(self) -> "Streams":
        """Streams that have read the same and go on independently."""
        states = [(layer.keys, layer.values) for layer in self.cache.layers]
        return replace(self, cache=growing_cache(states), history_columns=Columns())

    def columns_of(self, places: "Places") -> tuple[Tensor, Tensor]:
        """Columns of the positions to be steered, (place, window), and which of them exist."""
        offsets = torch.arange(places.longest, 0, -1, device=self.device)
        wanted = offsets + places.back[:, None]  # ranks, counted from the end of the stream
        is_wanted = offsets <= places.reach[:, None]
        if self.is_unpadded:
            return (self.valid.shape[1] - wanted).clamp(min=0), is_wanted
        valid = self.valid[places.rows]
        matches = (_ranks(valid)[:, None, :] == wanted[:, :, None]) & valid[:, None, :]
        return matches.long().argmax(2), matches.any(2) & is_wanted

    def branch(
        self, places: "Places", delta: Float[Tensor, "place candidate window d_model"]
    ) -> "Branch":
        """Pass some positions through the upper blocks once more, steered.

        Args:
            places: which; `window` is their largest reach.
            delta: what to add at `steer_layer` to these positions, per candidate, all in one pass.
                A candidate sees its own steered positions and the unsteered ones before them.

        Returns:
            The candidates' logits, and their keys and values for `commit`.
        """
        if self.steer_layer is None:
            raise RuntimeError("these streams were opened without a layer to steer")
        _, candidates, window, _ = delta.shape
        columns, exists = self.columns_of(places)
        steered = self.residuals_at(places)[:, None]
        steered = steered + delta.to(steered.dtype)
        upper = range(self.steer_layer + 1, self.model.layer_count)
        cache = cache_of({i: self._rows(i, places.rows) for i in upper})
        valid = self.valid[places.rows]
        position = (valid.cumsum(1) - 1).clamp(min=0).gather(1, columns)
        seen = valid & (_ranks(valid) > places.back[:, None])
        allowed = _branch_view(seen, columns, exists, candidates)
        with resume_from_layer(self.model.model, self.steer_layer, steered.flatten(1, 2)):
            output = self.model.model(
                input_ids=torch.zeros_like(position.repeat(1, candidates)),
                position_ids=position.repeat(1, candidates),
                attention_mask=additive_mask(allowed, self.model.model.dtype),
                past_key_values=cache,
                use_cache=True,
            )
        logits = output.logits[:, window - 1 :: window].float()
        return Branch(logits, places.rows, columns, exists, cache)

    def _rows(self, layer: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        kept = self.cache.layers[layer]
        is_all = len(rows) == len(kept.keys)
        if is_all and torch.equal(rows, torch.arange(len(rows), device=rows.device)):
            return kept.keys, kept.values
        chosen = rows.to(kept.keys.device)
        return kept.keys[chosen], kept.values[chosen]

    def residuals_at(self, places: "Places") -> Float[Tensor, "place window d_model"]:
        """Unsteered residual at `steer_layer` of the positions to be steered."""
        if self.history is None:
            raise RuntimeError("these streams were opened without a layer to steer")
        columns, _ = self.columns_of(places)
        device = self.history.device
        return self.history[places.rows[:, None].to(device), columns.to(device)]

    def commit(self, branch: "Branch", index: int, candidate: int) -> None:
        """Let one stream's cache hold a candidate's steered states from here on.

        Args:
            branch: what `branch` returned, before anything more was read.
            index: of the place that was steered.
            candidate: which of its candidates.
        """
        window = branch.columns.shape[1]
        row, columns = int(branch.rows[index]), branch.columns[index][branch.exists[index]]
        start = self.valid.shape[1] + candidate * window
        for kept, steered in zip(self.cache.layers, branch.cache.layers, strict=True):
            if steered.is_initialized:
                exists, where = (x.to(kept.keys.device) for x in (branch.exists[index], columns))
                for old, new in ((kept.keys, steered.keys), (kept.values, steered.values)):
                    old[row, :, where] = new[index, :, start : start + window][:, exists]


@dataclass(frozen=True)
class Places:
    """Positions to be steered: each is the last one of a window in some stream."""

    rows: Int[Tensor, " place"]
    """The stream of each."""
    back: Int[Tensor, " place"]
    """How many tokens the stream has read after it."""
    reach: Int[Tensor, " place"]
    """How many positions are steered, this one and those before it."""

    @cached_property
    def longest(self) -> int:
        """The largest reach."""
        return int(self.reach.max())

    @classmethod
    def last(cls, rows: Int[Tensor, " place"], reach: Int[Tensor, " place"]) -> "Places":
        """The last positions of some streams."""
        return cls(rows, torch.zeros_like(rows), reach)


@dataclass(frozen=True)
class Branch:
    """What came of steering some places."""

    logits: Float[Tensor, "place candidate vocabulary"]
    rows: Int[Tensor, " place"]
    columns: Int[Tensor, "place window"]
    exists: Bool[Tensor, "place window"]
    cache: Cache


def open_streams(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    layers: tuple[int, ...] = (),
    steer_layer: int | None = None,
) -> Streams:
    """Streams that have read each prompt up to its last token, which is to be read next."""
    for layer in layers if steer_layer is None else (*layers, steer_layer):
        check_layer(model.model, layer)
    batch = pad([prompt[:-1] for prompt in prompts], left=True, device=model.device)
    none = torch.zeros(len(prompts), 0, dtype=torch.bool, device=model.device)
    streams = Streams(model, layers, steer_layer, none)
    if batch.ids.shape[1]:
        valid = batch.mask.bool()
        streams.is_unpadded = bool(valid.all())
        streams._forward(batch.ids, valid, 1)
    return streams


class PromptCache:
    """Prompts that a model has read, kept so that another rung need not read them again."""

    def __init__(self, max_bytes: int = PROMPT_BYTES) -> None:
        self._bytes_left = max_bytes
        self._opened: dict[tuple[int, tuple[tuple[int, ...], ...]], Streams] = {}

    def streams(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        layers: tuple[int, ...] = (),
        steer_layer: int | None = None,
    ) -> Streams:
        """As `open_streams`."""
        key = id(model.model), tuple(tuple(prompt) for prompt in prompts)
        opened = self._opened.get(key)
        if opened is None or steer_layer not in (None, opened.steer_layer):
            opened = open_streams(model, prompts, layers, steer_layer).copy()
            size = opened.nbytes
            if key not in self._opened and size <= self._bytes_left:
                self._bytes_left -= size
                self._opened[key] = opened
        history = None if steer_layer is None else opened.history
        return replace(opened.copy(), layers=layers, steer_layer=steer_layer, history=history)


def _around(states: Tensor) -> tuple[int, int, int]:
    """Sizes that `repack` keeps: heads, any number of columns, width of a head."""
    return states.shape[1], -1, states.shape[3]


def _ranks(valid: Bool[Tensor, "stream column"]) -> Int[Tensor, "stream column"]:
    """Rank of every token counted from the end of its stream: 1 for the last, 2 before it."""
    return valid.flip(1).cumsum(1).flip(1)


def _branch_view(
    seen: Bool[Tensor, "place column"],
    columns: Int[Tensor, "place window"],
    exists: Bool[Tensor, "place window"],
    candidates: int,
) -> Bool[Tensor, "place query key"]:
    """What each steered position may look at: the unsteered columns before, its own candidate."""
    window = columns.shape[1]
    steered = torch.zeros_like(seen).scatter(1, columns, exists)
    past = (seen & ~steered)[:, None].expand(-1, candidates * window, -1)
    causal = torch.ones(window, window, device=seen.device).tril()
    same = torch.kron(torch.eye(candidates, device=seen.device), causal).bool()
    same = same & exists.repeat(1, candidates)[:, None]
    return torch.cat([past, same], dim=2)


@torch.no_grad()
def check_streams(model: LanguageModel, layer: int) -> None:
    """Prove on dummy prompts that caching, masking, rolling back and branching change no logits.

    Raises:
        ModelError: a model whose attention cannot be masked column by column.
    """
    needs = "howwhen needs a decoder whose attention takes a mask and whose cache can be cropped"
    what = f"{model.name} ({type(model.model).__name__})"
    try:
        is_same = _is_same_with_a_cache(model, layer)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{what} cannot be read with a masked cache ({error}); {needs}") from error
    if not is_same:
        raise ModelError(f"{what} gives other logits with a masked cache than without; {needs}")


_TEXT = "Tom has 3 apples and buys 2 more apples, so he has 5 apples. Then he eats 1 apple."
"""Read to check a model: what comes first matters for what follows."""
CHECKED_TOKENS = {"cpu": 1100, "cuda": 8300}
"""By kind of device, the longest text that is read to check a model: enough for most windows."""


def _is_same_with_a_cache(model: LanguageModel, layer: int) -> bool:
    """Whether padded streams with a history of rolled back tokens read as plain passes do.

    The longer text crosses the window that the model's config names, or fills it where no answer
    may be longer.

    In half precision, kernels for other shapes give other logits. How far off logits are is
    therefore compared with what tokens that a mask should hide would do to them.
    """
    device = model.device
    ids = list(model.tokenizer(_TEXT, add_special_tokens=False)["input_ids"])
    longest = _checked_length(model)
    long, short = (ids * (longest // len(ids) + 1))[: longest - 2], ids[:3]
    streams = open_streams(model, [long, short], steer_layer=layer)
    following = [[prompt[-1], *ids[-3:-1]] for prompt in (long, short)]
    streams.extend(torch.tensor(following, device=device))
    streams.rollback(torch.tensor([1, 2]))
    streams.extend(torch.tensor([ids[-2:-1], ids[-1:]], device=device))
    nothing = torch.zeros(2, 2, 1, model.model.config.hidden_size, device=model.layer_device(layer))
    last = Places.last(
        torch.arange(2, device=device), torch.ones(2, dtype=torch.long, device=device)
    )
    branched = streams.branch(last, nothing).logits
    for row, text in enumerate([[*long, *ids[-3:-1]], [*short, ids[-1]]]):
        plain = _last_logits(model, text)
        hidden = [*ids[3:8], *text][-(model.context or longest) :]
        strayed = _distance(_last_logits(model, hidden), plain)
        limit = 0.02 if model.rounding < 1e-4 else max(0.02, strayed / 2)
        found = [streams.logits[row, -1], *branched[row]]
        if max(_distance(logits, plain) for logits in found) > limit:
            return False
    return True


def _last_logits(model: LanguageModel, text: list[int]) -> Float[Tensor, " vocabulary"]:
    ids = torch.tensor([text], device=model.device)
    logits: Tensor = model.model(input_ids=ids, logits_to_keep=1).logits[0, -1].float()
    return logits


def _checked_length(model: LanguageModel) -> int:
    """Tokens of the longer text of the check: beyond a window, but within the context."""
    limit = CHECKED_TOKENS.get(model.device.type, CHECKED_TOKENS["cpu"])
    crossing = 0 if model.window is None else model.window + 4
    wanted = max(10, crossing if crossing <= limit else 0)
    return min(wanted, model.context or wanted)


def _distance(found: Tensor, expected: Tensor) -> float:
    """Of logits, relative to how far they spread."""
    spread = (expected - expected.mean()).norm()
    return float((found.to(expected.device) - expected).norm() / spread)
