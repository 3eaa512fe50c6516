"""One answer, token by token, as an HTML fragment for the output of a notebook's cell.

Like the fragments in `cells`, it loads nothing and runs no script. Each token's details are its
`title`, which the style also shows under the text while the token is pointed at or has the focus.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from howwhen.present.cells import render_cell
from howwhen.present.detokenize import IncrementalDetokenizer
from howwhen.present.viewer import reason
from howwhen.records import WRITTEN_BY_THINKING, Grade, HybridToken, HybridTrace, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from howwhen.measure.ladder import GradedTrace

COLOURS = 8
"""Of the categories, in `colours.css`; the ninth category has the first colour again."""
MARKS = {Grade.CORRECT: "✓", Grade.WRONG: "✗"}
"""Before a grade; all others have a question mark."""
END = "⏎"
"""What is shown for a disagreement whose token has no text, such as the end of the answer."""


class TokenSpan(NamedTuple):
    """One token of an answer as the card shows it."""

    text: str
    details: str
    """Who wanted what, one fact per line."""
    kind: str
    """CSS classes: `decision`, and `kept` where the base's own token was written; else empty."""
    colour: int | None
    """Number of the category's colour; None where the base was not steered."""


class LegendEntry(NamedTuple):
    """A category that was steered with."""

    label: str
    colour: int


def trace_card(
    trace: HybridTrace,
    tokenizer: "PreTrainedTokenizerBase",
    titles: Sequence[str],
    problem: Problem | None = None,
    graded: "GradedTrace | None" = None,
) -> str:
    """One answer with its tokens coloured by category.

    Args:
        trace: the answer.
        tokenizer: of the base.
        titles: of the categories that the answer's rung steers with.
        problem: the question; an empty gold answer is not shown.
        graded: the answer's grades, shown if the problem is given too.
    """
    given = {
        "title": trace.rung,
        "question": problem.question if problem else "",
        "gold": problem.answer if problem else "",
        "grade": _grade(graded) if graded else "",
        "is_correct": graded is not None and graded.flexible is Grade.CORRECT,
        "reason": reason(graded, problem) if graded and problem else "",
        "tokens": list(_token_spans(trace, tokenizer, titles)),
        "counts": _counts(trace),
        "legend": [
            LegendEntry(f"{category} {titles[category]}", category % COLOURS)
            for category in sorted(trace_categories(trace))
        ],
    }
    return render_cell("trace", given)


def trace_categories(trace: HybridTrace) -> set[int]:
    """The categories that an answer was steered with."""
    return {token.category for token in trace.tokens if token.category is not None}


def _grade(graded: "GradedTrace") -> str:
    flexible, strict = (str(grade).replace("_", " ") for grade in (graded.flexible, graded.strict))
    mark = MARKS.get(graded.flexible, "?")
    note = "" if flexible == strict else f" (strict mode: {strict})"
    return f"{mark} {flexible}{note}"


def _counts(trace: HybridTrace) -> str:
    plural = "" if trace.decisions == 1 else "s"
    return (
        f"{len(trace.tokens)} tokens, {trace.decisions} disagreement{plural}, {trace.changed} "
        "tokens other than the base's own."
    )


def _token_spans(
    trace: HybridTrace, tokenizer: "PreTrainedTokenizerBase", titles: Sequence[str]
) -> Iterator[TokenSpan]:
    detokenizer = IncrementalDetokenizer(tokenizer, frozenset(tokenizer.all_special_ids))
    chooser = "the thinking model" if trace.rung in WRITTEN_BY_THINKING else "the base"
    for number, token in enumerate(trace.tokens, start=1):
        text = detokenizer.add(token.id)
        if not token.is_decision:
            chosen = f"token {number}: {_quoted(tokenizer, token.id)}, as {chooser} chose"
            details = [chosen, *_log_probs(token)]
            yield TokenSpan(text, "\n".join(details), "", None)
            continue
        details = [f"token {number}: a disagreement", *_who_wanted_what(token, tokenizer, titles)]
        kind = "decision kept" if token.id == token.base_id else "decision"
        colour = None if token.category is None else token.category % COLOURS
        yield TokenSpan(text or END, "\n".join(details), kind, colour)


def _who_wanted_what(
    token: HybridToken, tokenizer: "PreTrainedTokenizerBase", titles: Sequence[str]
) -> Iterator[str]:
    kept = ", the base's own choice after all" if token.id == token.base_id else ""
    yield f"written: {_quoted(tokenizer, token.id)}{kept}"
    wanted = f"wanted by the base: {_quoted(tokenizer, token.base_id)}"
    if token.thinking_id is not None:
        wanted += f", by the thinking model: {_quoted(tokenizer, token.thinking_id)}"
    yield wanted
    if token.category is not None and token.coefficient is not None:
        plural = "" if token.window == 1 else "s"
        yield (
            f"steered with: {token.category} {titles[token.category]}, coefficient "
            f"{token.coefficient:.3g}, last {token.window} position{plural}"
        )
    yield from _log_probs(token)
    if token.candidates:
        tried = (
            f"{candidate.strength:g} on {candidate.window}: {_quoted(tokenizer, candidate.id)}"
            for candidate in token.candidates
        )
        yield f"tried: {'; '.join(tried)}"


def _log_probs(token: HybridToken) -> list[str]:
    values = {"base": token.base_log_prob, "thinking model": token.thinking_log_prob}
    known = [f"{value:.2f} {model}" for model, value in values.items() if value is not None]
    return [f"log-probability: {', '.join(known)} (nats)"] if known else []


def _quoted(tokenizer: "PreTrainedTokenizerBase", token: int) -> str:
    """A token on its own, in quotes, so that spaces and line ends can be seen."""
    return repr(str(tokenizer.decode([token])))
