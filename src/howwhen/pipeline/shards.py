"""Sentence activations on disk: shards in the step's folder, each row with its rollout and span.

Each shard is written whole, so a killed run resumes after its last one.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from howwhen.discover.activations import (
    ReaderInput,
    check_reader_inputs,
    count_sentences,
    sentence_means,
)
from howwhen.errors import StoreError
from howwhen.formats.files import Json
from howwhen.lm.models import LanguageModel
from howwhen.pipeline.store import StepFolder
from howwhen.probes import ROWS_AT_A_TIME
from howwhen.settings import DiscoverSettings

FOLDER = "activations"
"""Of the shards, in the folder of the step."""


SHARD_TEXTS = 128
"""Texts whose sentences share a file."""


@dataclass(frozen=True)
class Activations:
    """The shards of one reading; rows are in the order of rollouts and their spans."""

    step: StepFolder
    reader: str
    """Name of the model that read."""
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
        found, width = None, len(self) if wanted is None else len(wanted)
        first = 0
        for part in self._by_shard(layer, wanted):
            if found is None:
                found = part.new_empty(width, part.shape[1])
            found[first : first + len(part)] = part
            first += len(part)
        return torch.zeros(0, 0) if found is None else found

    def parts(
        self, layer: int, wanted: Sequence[int] | None = None
    ) -> Iterator[Float[Tensor, "part d_model"]]:
        """The same, at least `ROWS_AT_A_TIME` at a time if there are more."""
        waiting: list[Tensor] = []
        for part in self._by_shard(layer, wanted):
            waiting.append(part)
            if sum(map(len, waiting)) >= ROWS_AT_A_TIME:
                yield torch.cat(waiting)
                waiting = []
        if waiting:
            yield torch.cat(waiting)

    def _by_shard(self, layer: int, wanted: Sequence[int] | None) -> Iterator[Tensor]:
        start = 0
        chosen = None if wanted is None else torch.tensor(wanted, dtype=torch.long)
        for number, count in enumerate(self.counts):
            part = self.step.read_tensor(_name(number), f"layer.{layer}")
            if chosen is not None:
                inside = chosen[(chosen >= start) & (chosen < start + count)]
                part = part[inside - start]
            yield part
            start += count


def read_activations(
    step: StepFolder,
    reader: LanguageModel,
    reader_inputs: Sequence[ReaderInput],
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
        reader_inputs: what it reads, one per rollout.
        layers: 0-based blocks.
        how: see `sentence_means`.
        report: told the number of passages after each shard.

    Raises:
        InputError: a passage longer than the reader's context, or nothing to read.
        StoreError: a shard that is damaged, or of another reading.
    """
    check_reader_inputs(reader, reader_inputs)
    step.claim(FOLDER, _reading(reader, reader_inputs, layers, how))
    counts = []
    for number, start in enumerate(range(0, len(reader_inputs), SHARD_TEXTS)):
        own = reader_inputs[start : start + SHARD_TEXTS]
        if not (step.path / _name(number)).exists():
            means = sentence_means(reader, own, layers, how)
            step.write_tensors(_name(number), _shard(start, own, means), {})
        counts.append(_check_shard(step, number, own, layers))
        report(start + len(own))
    return Activations(step, reader.name, tuple(layers), tuple(counts))


def _name(shard: int) -> str:
    return f"{FOLDER}/{shard:05}.safetensors"


def _reading(
    reader: LanguageModel,
    reader_inputs: Sequence[ReaderInput],
    layers: Sequence[int],
    how: DiscoverSettings,
) -> Json:
    """Everything that the shards depend on."""
    texts = hashlib.sha256()
    for reader_input in reader_inputs:
        texts.update(repr(tuple(map(tuple, reader_input))).encode())
    return {
        "reader": reader.name,
        "fingerprint": reader.fingerprint,
        **reader.numerics,
        "layers": sorted(layers),
        "batch_tokens": how.batch_tokens,
        "bfloat16": how.bfloat16,
        "shard_texts": SHARD_TEXTS,
        "passages": texts.hexdigest(),
    }


def _shard(
    first: int,
    reader_inputs: Sequence[ReaderInput],
    means: dict[int, Float[Tensor, "sentence d_model"]],
) -> dict[str, Tensor]:
    trained = [one for reader_input in reader_inputs for one in reader_input.is_trained]
    is_trained = torch.tensor(trained, dtype=torch.bool)
    places = [
        (first + number, span)
        for number, reader_input in enumerate(reader_inputs)
        for span in range(len(reader_input.spans))
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
    step: StepFolder, number: int, reader_inputs: Sequence[ReaderInput], layers: Sequence[int]
) -> int:
    """Number of sentences in a shard, which must be those of its passages."""
    expected = count_sentences(reader_inputs)
    found = step.tensor_shapes(_name(number))
    for layer in layers:
        shape = found.get(f"layer.{layer}", ())
        if not shape or shape[0] != expected:
            raise StoreError(
                f"{step.path / _name(number)} holds {shape or 'nothing'} for layer {layer}, "
                f"expected {expected} sentences. Delete {step.path} and run again"
            )
    return expected
