"""Training documents of the zoo, and batches of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random

from jaxtyping import Int
from torch import Tensor

from howwhen.lm.padding import Padded, pad

TokenIds = tuple[int, ...]
IGNORED = -100
"""Target of a token that the loss does not count."""


@dataclass(frozen=True)
class Document:
    """Token ids of one document. The loss counts tokens from `scored_from` on."""

    ids: TokenIds
    scored_from: int
    unscored: frozenset[int] = frozenset()
    """Positions of later tokens that the loss does not count either."""


Batch = Callable[[int], list[Document]]
"""Documents of a training step, by the step's number."""


def chain_batches(groups: Callable[[int], list[list[Document]]]) -> Batch:
    """Batches by number, from groups of batches by number."""
    batches: list[list[Document]] = []
    numbers = count()

    def batch(step: int) -> list[Document]:
        while len(batches) <= step:
            batches.extend(groups(next(numbers)))
        return batches[step]

    return batch


def sorted_batches(
    documents: Sequence[Document], max_tokens: int, rng: Random, multiple: int
) -> list[list[Document]]:
    """Cut documents into batches of similar length, and return these in random order.

    Args:
        documents: in any order.
        max_tokens: size of a batch, padding included. A single longer document is a batch.
        rng: source of the order.
        multiple: lengths are padded to a multiple of this.
    """
    remaining = list(documents)
    rng.shuffle(remaining)
    remaining.sort(key=lambda document: len(document.ids), reverse=True)
    batches: list[list[Document]] = []
    while remaining:
        longest = len(remaining[0].ids)
        size = max(1, max_tokens // (longest + -longest % multiple))
        batches.append(remaining[:size])
        remaining = remaining[size:]
    rng.shuffle(batches)
    return batches


def pad_documents(
    documents: Sequence[Document], multiple: int = 1
) -> tuple[Padded, Int[Tensor, "document position"]]:
    """Pad a batch of documents on the right.

    Returns:
        The batch, and its targets: its ids, or `IGNORED` where the loss does not count them.
    """
    batch = pad([document.ids for document in documents], multiple=multiple)
    targets = batch.ids.masked_fill(batch.mask == 0, IGNORED)
    for row, document in enumerate(documents):
        targets[row, : document.scored_from] = IGNORED
        targets[row, sorted(document.unscored)] = IGNORED
    return batch, targets
