"""One model reading a batch of growing texts: its cache, and two things a plain cache cannot do.

Tokens can be rolled back, by a different number in each text, at no cost: every text has a length
of its own. Positions read before can be passed through the upper blocks again with their residual
steered, many candidates in one pass, without changing what was read. Nothing here knows of text or
categories.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from howwhen.hybrid.places import Branch, Places, branch_view
from howwhen.lm.attention import attention_of, fitted_mask
from howwhen.lm.compiled import columns_of, compiled_pass, compiled_upper, size_of
from howwhen.lm.models import LanguageModel
from howwhen.lm.padding import pad
from howwhen.lm.residual import capture_residuals, check_layer, resume_from_layer
from howwhen.lm.slots import SlotCache, placed, with_room
from howwhen.lm.upper import upper_blocks
from howwhen.settings import Compilation

BRANCH_COLUMNS = 64
"""Columns that a compiled cache has to spare for branches."""
MAX_FIRST_LOGITS = 2**24
"""Logits that reading prompts may take; beyond, their last tokens are read apart."""


@dataclass
class Streams:
    """A model with what it has read of every stream. Made by `open_streams`."""

    model: LanguageModel
    layers: tuple[int, ...]
    """Blocks whose residual is kept for the positions read last."""
    steer_layer: int | None
    """Block whose residual is kept for every position, so that it can be steered."""
    lengths: list[int]
    """Tokens read of every stream."""
    cache: SlotCache
    """Keys and values; a column is a position of its stream."""
    logits: Float[Tensor, "stream new vocabulary"] = field(init=False)
    """Of the token after each position read last."""
    residual: dict[int, Float[Tensor, "stream new d_model"]] = field(init=False)
    """Per layer, of the positions read last."""
    history: Float[Tensor, "stream column d_model"] | None = None
    """At `steer_layer`, of every column; what lies behind a stream's length means nothing."""
    is_open: bool = False
    """Whether `capturing` is open, so that no hooks are needed for a single pass."""
    compilation: Compilation | None = None
    """How passes over a few tokens are compiled."""
    first: "First | None" = None
    """What came of the last token of every prompt, until anything else is read."""
    branched: int = 0
    """Where the states end that branches left behind the streams."""
    read: dict[int, Tensor] = field(default_factory=dict)
    """Where the model leaves its residuals meanwhile."""
    device: torch.device = field(init=False)
    """Where tokens are read. Residuals and states are on the devices of their blocks."""

    def __post_init__(self) -> None:
        self.device = self.model.device

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Read with one set of hooks all along, rather than one for every token."""
        if self.compilation is not None:  # a graph has hooks of its own, and others would change it
            yield
            return
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
    def width(self) -> int:
        """Tokens of the longest stream."""
        return max(self.lengths, default=0)

    def extend(self, tokens: Int[Tensor, "stream new"]) -> None:
        """Read `new` more tokens of every stream."""
        first, self.first = self.first, None
        if first is not None and tokens.shape[1] == 1 and first.residual.keys() >= {*self.layers}:
            self.logits = first.logits
            self.residual = {layer: first.residual[layer] for layer in self.layers}
            self.lengths = [length + 1 for length in self.lengths]
            return
        size = None if self.compilation is None else size_of(tokens.shape[1])
        if self.compilation is None or size is None or not self.cache.layers[0].is_initialized:
            self._forward(tokens, tokens.shape[1])
        else:
            self._forward_compiled(tokens, size, self.compilation)

    def _forward_compiled(self, tokens: Tensor, size: int, how: Compilation) -> None:
        """Read tokens with a graph for `size` of them; what is read beyond is written over."""
        count = tokens.shape[1]
        columns = columns_of(self.width + size + BRANCH_COLUMNS)
        run = compiled_pass(self.model, self._wanted(), how)
        if not run.has_graph(len(self.lengths), size, columns):
            self._forward(tokens, count)
            return
        self.cache.fit(columns)
        positions = self._positions(size)
        self.cache.board.put_at(positions, columns)
        view = self._view(positions, columns)
        padded = functional.pad(tokens, (0, size - count))
        logits, read = run(
            self.model, padded, view["position_ids"], view["attention_mask"], self.cache
        )
        self.cache.board.put_at(positions[:, :count], columns)
        kept = {layer: part[:, :count] for layer, part in read.items()}
        self._take(logits[:, :count], kept, count, columns)

    def _forward(self, tokens: Tensor, logits_kept: int | Tensor) -> None:
        count, width = tokens.shape[1], self.width + tokens.shape[1]
        once = capture_residuals(self.model.model, self._wanted())
        inputs = self._inputs(count)
        with nullcontext(self.read) if self.is_open else once as read, attention_of(self.model):
            output = self.model.model(
                tokens,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=logits_kept,
                **inputs,
            )
        self._take(output.logits.float(), read, count, width)

    def _take(self, logits: Tensor, read: dict[int, Tensor], count: int, width: int) -> None:
        """Keep what came of reading `count` tokens, of which states are in `width` columns."""
        self.logits = logits
        self.residual = {layer: read[layer] for layer in self.layers}
        if self.steer_layer is not None:
            self._note_history(read[self.steer_layer], width)
        self.lengths = [length + count for length in self.lengths]

    def _read_prompts(self, prompts: Sequence[Sequence[int]], places: Sequence[int]) -> None:
        """Read whole prompts, whose last tokens are at so many different places."""
        top = self.model.layer_device(self.model.layer_count - 1)
        self._forward(pad(prompts, device=self.device).ids, torch.tensor(places, device=top))
        last = [len(prompt) - 1 for prompt in prompts]

        def at(part: Tensor, columns: list[int]) -> Tensor:
            rows = torch.arange(len(columns), device=part.device)
            return part[rows, torch.tensor(columns, device=part.device)][:, None]

        logits = at(self.logits, [places.index(place) for place in last])
        self.first = First(logits, {layer: at(own, last) for layer, own in self.residual.items()})

    def _inputs(self, count: int) -> dict[str, Tensor]:
        """Mask and positions of `count` new tokens, unless the model can infer them."""
        width, board = self.width, self.cache.board
        if len(set(self.lengths)) == 1:
            board.put(width, count)
            if count == 1 or width == 0:
                return {}
            positions = torch.arange(width, width + count, device=self.device)[None]
        else:
            positions = self._positions(count)
            board.put_at(positions, width + count)
        return self._view(positions, width + count)

    def _positions(self, count: int) -> Int[Tensor, "stream new"]:
        starts = torch.tensor(self.lengths, device=self.device)
        return starts[:, None] + torch.arange(count, device=self.device)

    def _view(self, positions: Int[Tensor, "#stream new"], width: int) -> dict[str, Tensor]:
        """Each token looks at the columns up to its own, of so many."""
        allowed = torch.arange(width, device=self.device) <= positions[..., None]
        # A stream whose context is full reads on with the others, at its last position. Whatever it
        # reads is rolled back.
        last = (self.model.context or width) - 1
        streams = len(self.lengths)
        return {
            "attention_mask": fitted_mask(allowed.expand(streams, -1, -1), self.model),
            "position_ids": positions.clamp(max=last).expand(streams, -1),
        }

    def _note_history(self, residual: Tensor, width: int) -> None:
        """Keep the residual of new tokens in the columns where their states are."""
        board = self.cache.board
        if self.history is None:
            self.history = residual.new_zeros(len(residual), 0, residual.shape[2])
        if width > self.history.shape[1]:
            self.history = with_room(self.history, 1, width)
        if board.columns is None:
            self.history[:, board.start : width] = residual
        else:
            where = board.columns.to(residual.device)[..., None].expand_as(residual)
            self.history.scatter_(1, where, residual)

    def rollback(self, counts: Sequence[int]) -> None:
        """Forget the last `counts` tokens of every stream."""
        if any(counts):
            self.first = None
        pairs = zip(self.lengths, counts, strict=True)
        self.lengths = [length - count for length, count in pairs]

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these streams; an index that occurs several times makes as many copies."""
        chosen = torch.tensor(rows, device=self.device)
        self.first = None
        self.cache.select(chosen)
        self.lengths = [self.lengths[row] for row in rows]
        if self.history is not None:
            self.history = self.history[chosen.to(self.history.device)]

    def put(self, other: "Streams", rows: Sequence[int]) -> None:
        """Take over another's streams in place of some, or as further ones behind the others.

        Args:
            other: streams of the same model and layers.
            rows: where each of them goes.
        """
        self.first = None
        for row, length in zip(rows, other.lengths, strict=True):
            self.lengths[row : row + 1] = [length]
        chosen, count = torch.tensor(rows, device=self.device), len(self.lengths)
        self.cache.put(other.cache, chosen, count)
        old, new = self.history, other.history
        if old is None and new is not None:
            old = new[:0]
        if old is not None:
            self.history = placed(old, new, chosen.to(old.device), count, 1)

    def shorten(self, rows: Sequence[int]) -> None:
        """Let streams that are of no use any more be no longer than the longest of the others."""
        idle = set(rows)
        longest = max((n for row, n in enumerate(self.lengths) if row not in idle), default=0)
        for row in idle:
            self.lengths[row] = min(self.lengths[row], longest)

    @property
    def nbytes(self) -> int:
        """Memory that its states take."""
        parts = [] if self.history is None else [self.history]
        if self.first is not None:
            parts += [self.first.logits, *self.first.residual.values()]
        return self.cache.nbytes + sum(part.nbytes for part in parts)

    def copy(self) -> "Streams":
        """Streams that have read the same and go on independently."""
        history = None if self.history is None else self.history.clone()
        return replace(self, cache=self.cache.copy(), history=history)

    def branch(
        self,
        places: Places,
        delta: Float[Tensor, "place candidate window d_model"],
        skip: int = 0,
    ) -> Branch:
        """Pass some positions through the upper blocks once more, steered.

        Args:
            places: which; `window` is their largest reach.
            delta: what to add at `steer_layer` to these positions, per candidate, all in one pass.
                A candidate sees its own steered positions and the unsteered ones before them.
            skip: columns that earlier branches of the same places have taken.

        Returns:
            The candidates' logits, and where their keys and values are, for `commit`.
        """
        if self.steer_layer is None:
            raise RuntimeError("these streams were opened without a layer to steer")
        upper = upper_blocks(self.model.model, self.steer_layer)
        if (made := self._branch_compiled(upper, places, delta, skip)) is not None:
            return made
        count, candidates, window, _ = delta.shape
        columns = places.window
        steered = self.residuals_at(places)[:, None]
        steered = (steered + delta.to(steered.dtype)).flatten(1, 2)
        # The new states are written behind those of all streams, where nothing else looks.
        width = self.width
        if places.streams == list(range(len(self.lengths))):
            width += skip
            self.cache.board.put(width, candidates * window)
            self.branched = max(self.branched, self.cache.board.width)
        else:
            self.cache.board.put_beside(places.rows, width, candidates * window)
        allowed = branch_view(places, candidates, width)
        inputs: dict[str, Any] = {
            "position_ids": columns.repeat(1, candidates),
            "attention_mask": fitted_mask(allowed, self.model),
            "past_key_values": self.cache,
            "use_cache": True,
        }
        model = self.model.model
        with attention_of(self.model):
            if upper is None:
                ids = torch.zeros(count, candidates * window, dtype=torch.long, device=self.device)
                with resume_from_layer(model, self.steer_layer, steered):
                    output = model(input_ids=ids, **inputs)
            else:  # a model that is spread over devices is entered where its upper blocks are
                for name in ("position_ids", "attention_mask"):
                    inputs[name] = inputs[name].to(steered.device)
                output = upper(inputs_embeds=steered, **inputs)
        logits = output.logits[:, window - 1 :: window].float()
        is_copied = self.cache.board.rows is not None
        layers = self.cache.layers[self.steer_layer + 1 :]
        copies = [layer.beside for layer in layers] if is_copied else None
        return Branch(places, logits, width, copies)

    def _branch_compiled(
        self, upper: PreTrainedModel | None, places: Places, delta: Tensor, skip: int
    ) -> Branch | None:
        """The same with a graph, through all streams; None where there is none.

        There is one for single positions, one of each stream at most.
        """
        _, candidates, window, _ = delta.shape
        streams, start = len(self.lengths), self.width + skip
        is_one_each = len(set(places.streams)) == len(places.streams)
        if upper is None or self.compilation is None or window > 1 or not is_one_each:
            return None
        run = compiled_upper(upper, self.compilation)
        columns = max(columns_of(start + candidates), self.cache.fixed_columns)
        if not run.has_graph(streams, candidates, columns):
            return None
        self.cache.fit(columns)
        every = places.in_all(self.lengths)
        steered = self.residuals_at(every).expand(-1, candidates, -1).clone()
        rows = places.rows.to(steered.device)
        steered[rows] += delta[:, :, 0].to(steered.dtype)
        behind = torch.arange(start, start + candidates, device=self.device)
        self.cache.board.put_at(behind.expand(streams, -1), columns)
        self.branched = max(self.branched, start + candidates)
        view = branch_view(every, candidates, start)
        mask = fitted_mask(functional.pad(view, (0, columns - view.shape[2])), self.model)
        positions = every.column[:, None].expand(-1, candidates)
        with attention_of(self.model):
            logits = run(
                upper,
                steered,
                mask.to(steered.device),
                positions.to(steered.device),
                self.cache,
            )
        return Branch(places, logits.float()[rows.to(logits.device)], start, None)

    def forget_branches(self) -> None:
        """Free what branches left: copies, and states behind the streams.

        Nothing looks there, but a state that is no number would spoil what is masked.
        """
        if self.steer_layer is None:
            return
        for layer in self.cache.layers[self.steer_layer + 1 :]:
            layer.beside = None
            layer.keys[:, :, self.width : self.branched] = 0
            layer.values[:, :, self.width : self.branched] = 0
        self.branched = 0

    def residuals_at(self, places: Places) -> Float[Tensor, "place window d_model"]:
        """Unsteered residual at `steer_layer` of the positions to be steered."""
        if self.history is None:
            raise RuntimeError("these streams were opened without a layer to steer")
        device = self.history.device
        return self.history[places.rows[:, None].to(device), places.window.to(device)]

    def commit(self, branch: Branch, index: int, candidate: int) -> None:
        """Let one stream's cache hold a candidate's steered states from here on.

        Args:
            branch: what `branch` returned, before anything more was read.
            index: of the place that was steered.
            candidate: which of its candidates.
        """
        if self.steer_layer is None:
            raise RuntimeError("these streams were opened without a layer to steer")
        places = branch.places
        reach, last = places.reach[index], places.columns[index] + 1
        end = branch.start + (candidate + 1) * places.longest
        kept, made = slice(last - reach, last), slice(end - reach, end)
        row = places.streams[index]
        for number, layer in enumerate(self.cache.layers[self.steer_layer + 1 :]):
            states = (layer.keys, layer.values)
            steered = states if branch.copies is None else branch.copies[number]
            source = row if branch.copies is None else index
            for old, new in zip(states, steered, strict=True):
                old[row, :, kept] = new[source, :, made]


@dataclass(frozen=True)
class First:
    """What a model says after every prompt, read with the prompt itself."""

    logits: Float[Tensor, "stream 1 vocabulary"]
    residual: dict[int, Float[Tensor, "stream 1 d_model"]]


def open_streams(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    layers: tuple[int, ...] = (),
    steer_layer: int | None = None,
    compilation: Compilation | None = None,
) -> Streams:
    """Streams that have read each prompt up to its last token, which is to be read next.

    Where it takes little memory, the last token is read with the others, so that nothing is left to
    do when it is.
    """
    for layer in layers if steer_layer is None else (*layers, steer_layer):
        check_layer(model.model, layer)
    cache = SlotCache(model.layer_count)
    streams = Streams(
        model, layers, steer_layer, [0] * len(prompts), cache, compilation=compilation
    )
    # Padding is on the right, where no token looks at it and others will be written over it.
    lengths = [len(prompt) - 1 for prompt in prompts]
    places = sorted(set(lengths))
    if len(prompts) * len(places) * model.vocabulary_size <= MAX_FIRST_LOGITS:
        streams._read_prompts(prompts, places)
    elif places[-1]:
        streams._forward(pad([prompt[:-1] for prompt in prompts], device=model.device).ids, 1)
    streams.lengths = lengths
    return streams
