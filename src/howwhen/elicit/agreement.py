"""Does the gate's category name the sentence that follows? Reported, never assumed."""

from collections.abc import Sequence

from howwhen.elicit.examples import DecisionExample
from howwhen.records import Rollout


def gate_sentence_agreement(
    rollouts: Sequence[Rollout],
    examples: Sequence[DecisionExample],
    assignments: Sequence[int],
) -> dict[str, float | int | None]:
    """Compare the category read at each decision with that of the sentence it leads into.

    Args:
        rollouts: the collected answers.
        examples: their decisions, in the same order.
        assignments: category of every sentence of every rollout, in order.

    Returns:
        `share` of agreeing decisions (None without any), `decisions` compared, and
        `share_at_sentence_start` over those decisions that begin a sentence.
    """
    agree: list[bool] = []
    agree_at_start: list[bool] = []
    first = 0
    for rollout, example in zip(rollouts, examples, strict=True):
        own = assignments[first : first + len(rollout.spans)]
        first += len(rollout.spans)
        before = len(example.ids) - len(rollout.ids) - 1
        for position, category in zip(example.positions, example.categories, strict=True):
            token = position - before
            for span, sentence_category in zip(rollout.spans, own, strict=True):
                if span.start_token <= token < span.end_token:
                    agree.append(category == sentence_category)
                    if token == span.start_token:
                        agree_at_start.append(category == sentence_category)
    return {
        "share": _share(agree),
        "decisions": len(agree),
        "share_at_sentence_start": _share(agree_at_start),
        "decisions_at_sentence_start": len(agree_at_start),
    }


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None
