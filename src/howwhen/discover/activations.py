"""Sentence activations: the mean residual over a sentence's tokens, several layers at once.

Every text is read once, in batches of similar length, and pooled inside the pass, so that memory
grows with sentences and not with tokens. What was read goes into shards of the step's folder, each
row with its rollout and span; a killed reading goes on after its last shard.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from howwhen.artifacts import Json
from howwhen.errors import InputError, StoreError
from howwhen.models import LanguageModel, pad
from howwhen.residual import residuals
from howwhen.settings import DiscoverSettings
from howwhen.store import StepFolder

FOLDER = "activations"
"""Of the shards, in the folder of the step."""
SHARD_TEXTS = 128
"""Texts whose sentences share a file."""


class Passage(NamedTuple):
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
    reader: LanguageModel, passages: Sequence[Passage], layers: Sequence[int], how: DiscoverSettings
) -> dict[int, Float[Tensor, "sentence d_model"]]:
    """Read every passage once and average the residuals within its sentences.

    Padding stands at the right, where a causal model never looks, so that no mask is needed.

    Args:
        reader: the model whose residuals are read.
        passages: what it reads.
        layers: 0-based blocks.
        how: `batch_tokens` are read at a time, padding included (at least one passage); products
            are in bfloat16 where `bfloat16` says so, sums in float32 all the same.

    Returns:
        For each layer the raw (not normalised) means in float32, in order of passages and spans.
    """
    counts = [len(passage.spans) for passage in passages]
    starts = torch.tensor([0, *counts]).cumsum(0).tolist()
    means = {
        layer: torch.empty(starts[-1], reader.model.config.hidden_size) for layer in set(layers)
    }
    device = reader.model.device
    for batch in _batches(passages, how.batch_tokens):
        chosen = [passages[number] for number in batch]
        ids = pad([[*one.prompt, *one.ids] for one in chosen]).ids.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=how.bfloat16):
            pooled = residuals(reader.model, layers, _pooling(chosen, device), input_ids=ids)
        rows = torch.cat([torch.arange(starts[n], starts[n + 1]) for n in batch])
        for layer, found in pooled.items():
            means[layer][rows] = found.float().cpu()
    return means


def _batches(passages: Sequence[Passage], batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of the passages, those of similar length together."""
    batch: list[int] = []
    for number in sorted(range(len(passages)), key=lambda n: passages[n].length):
        if batch and (len(batch) + 1) * passages[number].length > batch_tokens:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _pooling(passages: Sequence[Passage], device: torch.device) -> Callable[[Tensor], Tensor]:
    """Takes a batch's residual to the means over its sentences."""
    firsts = accumulate((len(passage.spans) for passage in passages), initial=0)
    places = [
        (row, len(passage.prompt) + position, number)
        for row, (passage, first) in enumerate(zip(passages, firsts, strict=False))
        for number, (start, end) in enumerate(passage.spans, start=first)
        for position in range(start, end)
    ]
    rows, positions, numbers = torch.tensor(places, dtype=torch.long, device=device).view(-1, 3).T
    lengths = numbers.bincount(minlength=_sentences(passages))

    def pool(
        residual: Float[Tensor, "batch position d_model"],
    ) -> Float[Tensor, "sentence d_model"]:
        sums = residual.new_zeros(len(lengths), residual.shape[-1], dtype=torch.float32)
        sums.index_add_(0, numbers, residual[rows, positions].float())
        return sums.div_(lengths[:, None])

    return pool


def _sentences(passages: Sequence[Passage]) -> int:
    return sum(len(passage.spans) for passage in passages)


@dataclass(frozen=True)
class Activations:
    """The shards of one reading; rows are in the order of rollouts and their spans."""

    step: StepFolder
    layers: tuple[int, ...]
    counts: tuple[int, ...]
    """Sentences in each shard."""

    def __len__(self) -> int:
        return sum(self.counts)

    def mean(self, layer: int) -> Float[Tensor, " d_model"]:
        """Corpus mean over the sentences that are trained on, summed in float64."""
        names = [_name(number) for number in range(len(self.counts))]
        sums = [self.step.read_tensor(name, f"sum.{layer}") for name in names]
        trained = sum(int(self.step.read_tensor(name, "trained")) for name in names)
        return (torch.stack(sums).sum(0) / trained).float()

    def rows(
        self, layer: int, wanted: Sequence[int] | None = None
    ) -> Float[Tensor, "sentence d_model"]:
        """The raw means of all sentences, or of the wanted ones, which ascend."""
        parts, start = [], 0
        chosen = None if wanted is None else torch.tensor(wanted, dtype=torch.long)
        for number, count in enumerate(self.counts):
            part = self.step.read_tensor(_name(number), f"layer.{layer}")
            if chosen is not None:
                inside = chosen[(chosen >= start) & (chosen < start + count)]
                part = part[inside - start]
            parts.append(part)
            start += count
        return torch.cat(parts)


def read_activations(
    step: StepFolder,
    reader: LanguageModel,
    passages: Sequence[Passage],
    layers: Sequence[int],
    how: DiscoverSettings,
    report: Callable[[int], None],
) -> Activations:
    """Read all passages into shards, except those whose shard of the same reading is there already.

    Args:
        step: folder of the step; shards are `activations/00000.safetensors`, ... with `layer.L`
            (sentence, d_model), `rollout` and `span` (sentence,), `sum.L` (d_model,) in float64 and
            `trained` (number of sentences in that sum). `activations/described.json` says what was
            read, by whom; shards of another reading are removed.
        reader: the model whose residuals are read.
        passages: what it reads, one per rollout.
        layers: 0-based blocks.
        how: see `sentence_means`.
        report: told the number of passages after each shard.

    Raises:
        InputError: a passage longer than the reader's context, or nothing to read.
        StoreError: a shard that is damaged, or of another reading.
    """
    _check_passages(reader, passages)
    step.claim(FOLDER, _reading(reader, passages, layers, how))
    counts = []
    for number, start in enumerate(range(0, len(passages), SHARD_TEXTS)):
        own = passages[start : start + SHARD_TEXTS]
        if not (step.path / _name(number)).exists():
            means = sentence_means(reader, own, layers, how)
            step.write_tensors(_name(number), _shard(start, own, means), {})
        counts.append(_check_shard(step, number, own, layers))
        report(start + len(own))
    return Activations(step, tuple(layers), tuple(counts))


def _name(shard: int) -> str:
    return f"{FOLDER}/{shard:05}.safetensors"


def _reading(
    reader: LanguageModel, passages: Sequence[Passage], layers: Sequence[int], how: DiscoverSettings
) -> Json:
    """Everything that the shards depend on."""
    texts = hashlib.sha256()
    for passage in passages:
        texts.update(repr(tuple(map(tuple, passage))).encode())
    return {
        "reader": reader.name,
        "fingerprint": reader.fingerprint,
        "layers": sorted(layers),
        "batch_tokens": how.batch_tokens,
        "bfloat16": how.bfloat16,
        "shard_texts": SHARD_TEXTS,
        "passages": texts.hexdigest(),
    }


def _shard(
    first: int, passages: Sequence[Passage], means: dict[int, Float[Tensor, "sentence d_model"]]
) -> dict[str, Tensor]:
    trained = [one for passage in passages for one in passage.is_trained]
    is_trained = torch.tensor(trained, dtype=torch.bool)
    places = [
        (first + number, span)
        for number, passage in enumerate(passages)
        for span in range(len(passage.spans))
    ]
    rollout, span = torch.tensor(places, dtype=torch.int32).view(-1, 2).T
    sums = {f"sum.{layer}": rows[is_trained].double().sum(0) for layer, rows in means.items()}
    return {
        **{f"layer.{layer}": rows for layer, rows in means.items()},
        **sums,
        "trained": is_trained.sum(),
        "rollout": rollout,
        "span": span,
    }


def _check_shard(
    step: StepFolder, number: int, passages: Sequence[Passage], layers: Sequence[int]
) -> int:
    """Number of sentences in a shard, which must be those of its passages."""
    expected = _sentences(passages)
    found = step.tensor_shapes(_name(number))
    for layer in layers:
        shape = found.get(f"layer.{layer}", ())
        if not shape or shape[0] != expected:
            raise StoreError(
                f"{step.path / _name(number)} holds {shape or 'nothing'} for layer {layer}, "
                f"expected {expected} sentences. Delete {step.path} and run again"
            )
    return expected


def _check_passages(reader: LanguageModel, passages: Sequence[Passage]) -> None:
    if not any(passage.spans for passage in passages):
        raise InputError("there is not one sentence to read; collect answers with thinking in them")
    longest = max(range(len(passages)), key=lambda number: passages[number].length)
    length = passages[longest].length
    if reader.context is not None and length > reader.context:
        raise InputError(
            f"answer {longest} (from 0) and its prompt have {length} tokens in the words of "
            f"{reader.name}, which can attend to {reader.context}; collect shorter answers "
            "(--max-new-tokens), leave that line of --traces out, or let a model of longer context "
            "read (--discover.reader)"
        )
