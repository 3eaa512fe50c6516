"""Sentence activations: the mean residual over a sentence's tokens, several layers at once.

Every text is read once, in batches of similar length, and pooled inside the pass, so that memory
grows with sentences and not with tokens. What was read goes into shards of the step's folder, each
row with its rollout and span; a killed reading goes on after its last shard.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from howwhen.errors import InputError
from howwhen.lm.models import LanguageModel
from howwhen.lm.padding import fitting, pad
from howwhen.lm.residual import residuals
from howwhen.settings import DiscoverSettings


class ReaderInput(NamedTuple):
    """One rollout as a model reads it."""

    prompt: Sequence[int]
    """Token ids before the answer."""
    ids: Sequence[int]
    """Token ids of the answer."""
    spans: Sequence[tuple[int, int]]
    """Half-open token ranges of its sentences in `ids`; none is empty, two may share a token."""
    is_trained: Sequence[bool]
    """Whether a sentence counts in the corpus mean."""

    @property
    def length(self) -> int:
        """Tokens in all."""
        return len(self.prompt) + len(self.ids)


@torch.no_grad()
def sentence_means(
    reader: LanguageModel,
    reader_inputs: Sequence[ReaderInput],
    layers: Sequence[int],
    how: DiscoverSettings,
) -> dict[int, Float[Tensor, "sentence d_model"]]:
    """Read every passage once and average the residuals within its sentences.

    Padding is on the right, where a causal model never looks, so no mask is needed.

    Args:
        reader: the model whose residuals are read.
        reader_inputs: what it reads.
        layers: 0-based blocks.
        how: `batch_tokens` are read at a time, padding included (at least one passage); products
            are in bfloat16 where `bfloat16` says so, sums in float32 all the same.

    Returns:
        For each layer the raw (not normalised) means in float32, in order of passages and spans.
    """
    counts = [len(reader_input.spans) for reader_input in reader_inputs]
    starts = torch.tensor([0, *counts]).cumsum(0).tolist()
    means = {
        layer: torch.empty(starts[-1], reader.model.config.hidden_size) for layer in set(layers)
    }
    device = reader.device
    for batch in _batches(reader_inputs, how.batch_tokens):
        chosen = [reader_inputs[number] for number in batch]
        ids = pad([[*one.prompt, *one.ids] for one in chosen], device=device).ids
        with torch.autocast(device.type, torch.bfloat16, enabled=how.bfloat16):
            pooled = residuals(reader.model, layers, _pooling(chosen), input_ids=ids)
        rows = torch.cat([torch.arange(starts[n], starts[n + 1]) for n in batch])
        for layer, found in pooled.items():
            means[layer][rows] = found.float().cpu()
    return means


def _batches(reader_inputs: Sequence[ReaderInput], batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of the passages, those of similar length together."""
    order = sorted(range(len(reader_inputs)), key=lambda n: reader_inputs[n].length)
    for rows in fitting([(reader_inputs[number].length,) for number in order], batch_tokens):
        yield order[rows]


def _pooling(reader_inputs: Sequence[ReaderInput]) -> Callable[[Tensor], Tensor]:
    """Takes a batch's residual to the means over its sentences, on the residual's device."""
    firsts = accumulate((len(reader_input.spans) for reader_input in reader_inputs), initial=0)
    places = [
        (row, len(reader_input.prompt) + position, number)
        for row, (reader_input, first) in enumerate(zip(reader_inputs, firsts, strict=False))
        for number, (start, end) in enumerate(reader_input.spans, start=first)
        for position in range(start, end)
    ]
    index = torch.tensor(places, dtype=torch.long).view(-1, 3).T
    lengths = index[2].bincount(minlength=count_sentences(reader_inputs))

    def pool(
        residual: Float[Tensor, "batch position d_model"],
    ) -> Float[Tensor, "sentence d_model"]:
        rows, positions, numbers = index.to(residual.device)
        sums = residual.new_zeros(len(lengths), residual.shape[-1], dtype=torch.float32)
        sums.index_add_(0, numbers, residual[rows, positions].float())
        return sums.div_(lengths[:, None].to(residual.device))

    return pool


def count_sentences(reader_inputs: Sequence[ReaderInput]) -> int:
    """Number of sentences in all inputs."""
    return sum(len(reader_input.spans) for reader_input in reader_inputs)


def check_reader_inputs(reader: LanguageModel, reader_inputs: Sequence[ReaderInput]) -> None:
    """Refuse inputs that the reader cannot read.

    Raises:
        InputError: an input longer than the reader's context, or no sentence at all.
    """
    if not any(reader_input.spans for reader_input in reader_inputs):
        raise InputError("there is not one sentence to read; collect answers with thinking in them")
    longest = max(range(len(reader_inputs)), key=lambda number: reader_inputs[number].length)
    length = reader_inputs[longest].length
    if reader.context is not None and length > reader.context:
        raise InputError(
            f"answer {longest} (from 0) and its prompt have {length} tokens in the words of "
            f"{reader.name}, which can attend to {reader.context}; collect shorter answers "
            "(--max-new-tokens), leave that line of --traces out, or let a model of longer context "
            "read (--discover.reader)"
        )
