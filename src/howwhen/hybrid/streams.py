"""One model reading a batch of growing texts: its cache, and three things a plain cache cannot do.

Tokens can be taken back, each text by its own count; columns of the cache that hold padding or a
token taken back are masked, never read. And the last positions can be passed through the upper
blocks again with their residual steered, many candidates in one pass, without touching the cache.
It never sees text or categories.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from howwhen.errors import ModelError
from howwhen.lm.models import LanguageModel
from howwhen.lm.padding import additive_mask, cache_of, pad
from howwhen.lm.residual import capture_residuals, check_layer, resume_from_layer


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
    cache: DynamicCache = field(default_factory=DynamicCache)
    logits: Float[Tensor, "stream new vocabulary"] = field(init=False)
    """Of the token after each position read last."""
    residual: dict[int, Float[Tensor, "stream new d_model"]] = field(init=False)
    """Per layer, of the positions read last."""
    history: Float[Tensor, "stream column d_model"] | None = None
    """At `steer_layer`, of every column."""
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
            fresh, before = read[self.steer_layer], self.history
            self.history = fresh if before is None else torch.cat([before, fresh], dim=1)

    def _places(self, count: int) -> dict[str, Tensor]:
        """Mask and positions of the last `count` columns, where a model cannot tell them itself."""
        if self.is_unpadded and (count == 1 or count == self.valid.shape[1]):
            return {}
        every = self.valid[:, None].expand(-1, count, -1)
        allowed = every.tril(self.valid.shape[1] - count)
        # A stream that is full reads on beside the others, which is taken back: at its last place.
        last = (self.model.context or self.valid.shape[1]) - 1
        positions = (self.valid.cumsum(1) - 1).clamp(0, last)[:, -count:]
        return {
            "attention_mask": additive_mask(allowed, self.model.model.dtype),
            "position_ids": positions,
        }

    def rollback(self, counts: Int[Tensor, " stream"]) -> None:
        """Forget the last `counts` tokens of every stream, at most those fed last."""
        width, common = self.valid.shape[1], int(counts.min())
        if common:
            self.cache.crop(-common)
            self.valid = self.valid[:, : width - common]
            self.history = None if self.history is None else self.history[:, : width - common]
        if int(counts.max()) == common:
            return
        own = self.valid.flip(1).cumsum(1).flip(1)  # 1 on the last token of a stream, 2 before it
        self.valid = self.valid & (own > (counts - common)[:, None])
        self.is_unpadded = False

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        """Go on with these streams only; one that is named several times goes on as so many."""
        self.cache.batch_select_indices(rows)
        self.valid = self.valid[rows]
        self.history = None if self.history is None else self.history[rows]

    def last_columns(
        self, rows: Int[Tensor, " row"], reach: Int[Tensor, " row"]
    ) -> tuple[Int[Tensor, "row window"], Bool[Tensor, "row window"]]:
        """Columns of the last `reach` tokens of some streams, and which of them exist."""
        wanted = torch.arange(int(reach.max()), 0, -1)
        if self.is_unpadded:
            exists = wanted <= reach[:, None]
            return (self.valid.shape[1] - wanted).clamp(min=0).expand(len(rows), -1), exists
        valid = self.valid[rows]
        rank = valid.flip(1).cumsum(1).flip(1)  # of each token, counted from the end
        matches = (rank[:, None, :] == wanted[:, None]) & valid[:, None, :]
        return matches.long().argmax(2), matches.any(2) & (wanted <= reach[:, None])

    def branch(
        self,
        rows: Int[Tensor, " row"],
        reach: Int[Tensor, " row"],
        delta: Float[Tensor, "row candidate window d_model"],
    ) -> "Branch":
        """Pass the last positions through the upper blocks once more, steered.

        Args:
            rows: streams to steer.
            reach: last positions of each that are steered; `window` is the largest.
            delta: what to add at `steer_layer` to these positions, per candidate, all in one pass;
                a candidate sees its own steered positions and the unsteered ones before them.

        Returns:
            The candidates' logits, and their keys and values for `commit`.
        """
        if self.steer_layer is None:
            raise RuntimeError("these streams were opened without a layer to steer")
        _, candidates, window, _ = delta.shape
        columns, exists = self.last_columns(rows, reach)
        steered = self.recent(rows, reach)[:, None]
        steered = steered + delta.to(steered.dtype)
        upper = range(self.steer_layer + 1, self.model.layer_count)
        cache = cache_of({i: self._rows(i, rows) for i in upper})
        position = (self.valid[rows].cumsum(1) - 1).clamp(min=0).gather(1, columns)
        allowed = _branch_view(self.valid[rows], columns, exists, candidates)
        with resume_from_layer(self.model.model, self.steer_layer, steered.flatten(1, 2)):
            output = self.model.model(
                input_ids=torch.zeros(len(rows), candidates * window, dtype=torch.long),
                position_ids=position.repeat(1, candidates),
                attention_mask=additive_mask(allowed, self.model.model.dtype),
                past_key_values=cache,
                use_cache=True,
            )
        return Branch(output.logits[:, window - 1 :: window].float(), rows, columns, exists, cache)

    def _rows(self, layer: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        kept = self.cache.layers[layer]
        if len(rows) == len(kept.keys):
            return kept.keys, kept.values
        return kept.keys[rows], kept.values[rows]

    def recent(
        self, rows: Int[Tensor, " row"], reach: Int[Tensor, " row"]
    ) -> Float[Tensor, "row window d_model"]:
        """Residual at `steer_layer` of the last `reach` tokens of some streams."""
        if self.history is None:
            raise RuntimeError("these streams were opened without a layer to steer")
        columns, _ = self.last_columns(rows, reach)
        return self.history[rows[:, None], columns]

    def commit(self, branch: "Branch", index: int, candidate: int) -> None:
        """Let one stream's cache hold a candidate's steered states from here on.

        Args:
            branch: what `branch` returned, before anything more was read.
            index: place of the stream among the branch's rows.
            candidate: which of its candidates.
        """
        window = branch.columns.shape[1]
        real, row = branch.exists[index], int(branch.rows[index])
        columns = branch.columns[index][real]
        start = self.valid.shape[1] + candidate * window
        for kept, steered in zip(self.cache.layers, branch.cache.layers, strict=True):
            if steered.is_initialized:
                for old, new in ((kept.keys, steered.keys), (kept.values, steered.values)):
                    old[row, :, columns] = new[index, :, start : start + window][:, real]


@dataclass(frozen=True)
class Branch:
    """What came of steering the last positions of some streams."""

    logits: Float[Tensor, "row candidate vocabulary"]
    rows: Int[Tensor, " row"]
    columns: Int[Tensor, "row window"]
    exists: Bool[Tensor, "row window"]
    cache: DynamicCache


def open_streams(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    layers: tuple[int, ...] = (),
    steer_layer: int | None = None,
) -> Streams:
    """Streams that have read all of each prompt but its last token, which is to be fed first."""
    for layer in layers if steer_layer is None else (*layers, steer_layer):
        check_layer(model.model, layer)
    batch = pad([prompt[:-1] for prompt in prompts], left=True)
    none = torch.zeros(len(prompts), 0, dtype=torch.bool)
    streams = Streams(model, layers, steer_layer, none)
    if batch.ids.shape[1]:
        valid = batch.mask.bool()
        streams.is_unpadded = bool(valid.all())
        streams._forward(batch.ids, valid, 1)  # nobody asks what a prompt might have been
    return streams


def _branch_view(
    valid: Bool[Tensor, "row column"],
    columns: Int[Tensor, "row window"],
    exists: Bool[Tensor, "row window"],
    candidates: int,
) -> Bool[Tensor, "row query key"]:
    """What each steered position may look at: the unsteered columns before, its own candidate."""
    window = columns.shape[1]
    steered = torch.zeros_like(valid).scatter(1, columns, exists)
    past = (valid & ~steered)[:, None].expand(-1, candidates * window, -1)
    causal = torch.ones(window, window).tril()
    own = torch.kron(torch.eye(candidates), causal).bool()
    own = own & exists.repeat(1, candidates)[:, None]
    return torch.cat([past, own], dim=2)


@torch.no_grad()
def check_streams(model: LanguageModel, layer: int) -> None:
    """Prove on dummy prompts that caching, masking, taking back and branching change no logits.

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


def _is_same_with_a_cache(model: LanguageModel, layer: int) -> bool:
    long, short = [3, 4, 5, 6, 7], [3, 4]
    streams = open_streams(model, [long, short], steer_layer=layer)
    streams.extend(torch.tensor([[long[-1], 5, 6], [short[-1], 5, 6]]))
    streams.rollback(torch.tensor([1, 2]))
    streams.extend(torch.tensor([[4], [7]]))
    texts = [[*long, 5, 4], [*short, 7]]
    nothing = torch.zeros(2, 2, 1, model.model.config.hidden_size)
    branched = streams.branch(torch.arange(2), torch.ones(2, dtype=torch.long), nothing).logits
    off = []
    for row, text in enumerate(texts):
        plain = model.model(input_ids=torch.tensor([text])).logits[0, -1].float()
        found = torch.stack([streams.logits[row, -1], *branched[row]])
        off.append(float((found - plain).abs().max() / plain.abs().max()))
    return max(off) <= 0.02
