"""Answers of a rung as the grader takes them."""

from collections.abc import Mapping, Sequence

from howwhen.lm.alignment import ModelPair
from howwhen.measure.grade import Item
from howwhen.records import HybridTrace, Problem, RungName
from howwhen.zoo.pairs import Pair


def items_of(
    pair: Pair, rung: RungName, traces: Sequence[HybridTrace], problems: Mapping[str, Problem]
) -> list[Item]:
    """A rung's answers, to be graded."""
    outlines = ModelPair(pair.base_outline, pair.thinking_outline)
    is_begun = outlines.starts_in_thinking(rung)
    return [
        Item(
            trace.text,
            problems[trace.problem_id].answer,
            problems[trace.problem_id].dataset,
            trace.finish,
            question=problems[trace.problem_id].question,
            think_tags=pair.think_tags,
            starts_in_thinking=is_begun,
        )
        for trace in traces
    ]
