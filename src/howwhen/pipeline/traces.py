"""Traces that a step decodes, stored some batches at a time."""

from collections.abc import Callable, Sequence

from howwhen.pipeline.store import StepFolder
from howwhen.progress import Advance
from howwhen.records import HybridTrace, Problem

BATCHES_AT_ONCE = 4
"""Batches of answers that are decoded before they are stored. Within them, slots are refilled as
answers end; a killed run resumes after them."""
DecodeSome = Callable[[Sequence[Problem], Advance], list[HybridTrace]]
"""Answers some problems, and says how many of them have ended meanwhile."""


def grow_traces(
    step: StepFolder,
    name: str,
    problems: Sequence[Problem],
    batch_size: int,
    decode_some: DecodeSome,
    advance: Advance,
) -> list[HybridTrace]:
    """The traces in a step's file; those that are missing are decoded and added to it.

    Args:
        step: the step.
        name: of the file.
        problems: all of them, in an order that a resumed run repeats.
        batch_size: answers side by side.
        decode_some: makes the traces of some problems.
        advance: called with the number of answers that have ended.

    Raises:
        StoreError: the file cannot be written.
    """
    stored = 0

    def report(count: int) -> None:
        nonlocal stored
        stored = count
        advance(count)

    return step.grow_records(
        name,
        HybridTrace,
        problems,
        BATCHES_AT_ONCE * batch_size,
        lambda some: decode_some(some, lambda count: advance(stored + count)),
        report,
    )
