"""The rows of a run's tables: a class per table, whose fields are its columns.

A value that does not apply (a category where nothing was steered, a gap that may be zero) is None,
and never 0 or -1.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from howwhen.records import (
    Annotation,
    Grade,
    HybridTrace,
    Problem,
    Rollout,
    RungMeasurement,
)

if TYPE_CHECKING:
    from howwhen.measure.ladder import GradedTrace

TableName = Literal["ladder", "grades", "tokens", "decisions", "sentences", "problems"]
TABLE_NAMES: tuple[TableName, ...] = get_args(TableName)
Row = tuple[Any, ...]


class ProblemRow(NamedTuple):
    """A problem of the run."""

    problem_id: str
    question: str
    answer: str
    """The gold answer."""
    split: str
    """`train`, `selection` or `test`."""
    dataset: str


class SentenceRow(NamedTuple):
    """A sentence of the thinking model's answers."""

    problem_id: str
    sentence: int
    """0-based number in its answer."""
    text: str
    start_token: int
    end_token: int
    """Half-open range of tokens of the answer."""
    category: int | None
    """None until the step discover is done, as in all columns below."""
    title: str | None
    strength: float | None
    """Score of the category."""
    runner_up: int | None
    """Category with the second highest score."""
    runner_up_strength: float | None


class TokenRow(NamedTuple):
    """A token of an answer to a test problem."""

    rung: str
    problem_id: str
    seed: int
    """Seed of a random rung; 0 elsewhere."""
    sample: int
    knocked_out: int | None
    """Category of a knock-out."""
    budget: float | None
    """Of a rung with a smaller budget."""
    position: int
    """0-based number in the answer."""
    id: int
    text: str
    """What the token adds to the answer."""
    base_id: int
    """Greedy token of the unsteered base here."""
    base_text: str
    thinking_id: int | None
    """Greedy token of the thinking model here; None where it was not run."""
    thinking_text: str | None
    is_decision: bool
    """Whether the rung intervened here."""
    is_changed: bool
    """Whether the token differs from the unsteered base's."""
    category: int | None
    """Steered with; None where nothing was steered, as in the next three columns."""
    title: str | None
    coefficient: float | None
    """Multiple of the category's vector that was added."""
    window: int | None
    """Number of last positions steered."""
    base_log_prob: float | None
    """Of `id`, in nats; None where the base cannot write it."""
    thinking_log_prob: float | None
    """Of `id`, in nats; None where the thinking model was not run or cannot write it."""
    base_margin: float | None
    """Score of `base_id` minus that of the base's second choice, in nats."""
    thinking_margin: float | None
    """The same of `thinking_id`."""
    is_tie: bool
    """Whether one of the margins is within the rounding of its model's numbers."""
    log_odds: float | None
    """Of a disagreement here, by the self-gate's probe on the base; None where it did not read
    along."""


class GradeRow(NamedTuple):
    """An answer to a test problem, graded."""

    rung: str
    problem_id: str
    seed: int
    sample: int
    knocked_out: int | None
    """Category of a knock-out."""
    budget: float | None
    """Of a rung with a smaller budget."""
    flexible: str
    """Grade by the flexible mode."""
    strict: str
    """Grade by the strict mode."""
    answer: str | None
    """What the flexible mode read as the answer; None where it found none."""
    rule: str | None
    """How it was found."""
    finish: str
    """Why the answer ended: `stop` or `length`."""
    tokens: int
    decisions: int
    changed: int
    """Tokens that differ from the unsteered base's."""
    steered_passes: int
    needs_thinking: bool


class LadderRow(NamedTuple):
    """What one rung achieved. Shares are between 0 and 1; `_low` and `_high` bound an interval."""

    rung: str
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    gap_recovered: float | None
    """(rung - base) / (thinking - base); None where the gap may be zero, as in the next two."""
    gap_recovered_low: float | None
    gap_recovered_high: float | None
    steered: float
    """Tokens at which the rung intervened."""
    ties: float
    """Share of tokens at which the rung intervened although a model's choice was a tie."""
    changed: float
    """Tokens that differ from the unsteered base's."""
    flexible_accuracy: float
    strict_accuracy: float
    correct: int
    """Answers with this grade, as in the next four columns."""
    wrong: int
    no_answer: int
    truncated: int
    timed_out: int
    tokens_per_answer: float
    steered_passes_per_answer: float
    needs_thinking: bool
    seeds: int
    """How many seeds are pooled."""
    samples: int
    """Answers per problem and seed."""
    gains_shared: float | None
    """Accuracy on the problems that the thinking model gets right and the base does not."""
    right_elsewhere: float | None
    """Accuracy on all other problems."""
    wrong_to_right: int | None
    """Problems that the base gets wrong and this rung right; None for the base, as in the next
    two."""
    right_to_wrong: int | None
    net_flips: int | None
    """The first minus the second."""
    bits_per_answer: float | None
    """What the thinking model tells; None where it is unknown, as in the next five."""
    bits_low: float | None
    bits_high: float | None
    bits_when: float | None
    bits_which: float | None
    bits_what: float | None
    interventions_per_answer: float | None
    fitted: int | None
    """Numbers that were fitted for the rung."""
    only_it_right: int | None
    """Problems that this rung gets right and the hybrid does not; None for the hybrid."""
    only_hybrid_right: int | None
    p_value: float | None
    """McNemar's exact test of this rung against the hybrid."""


ROWS: dict[TableName, type[Row]] = {
    "ladder": LadderRow,
    "grades": GradeRow,
    "tokens": TokenRow,
    "decisions": TokenRow,
    "sentences": SentenceRow,
    "problems": ProblemRow,
}
"""The columns of every table."""


def problem_row(problem: Problem) -> ProblemRow:
    """A problem's row."""
    return ProblemRow(
        problem.id, problem.question, problem.answer, problem.split.value, problem.dataset
    )


def sentence_rows(
    rollout: Rollout, annotations: Sequence[Annotation] | None, titles: Sequence[str]
) -> Iterator[SentenceRow]:
    """Rows of the sentences of one answer.

    Args:
        rollout: the answer.
        annotations: of its sentences; None if there is no taxonomy yet.
        titles: of the categories.
    """
    for number, (text, span) in enumerate(zip(rollout.sentences(), rollout.spans, strict=True)):
        label: tuple[Any, ...] = (None,) * 5
        if annotations is not None:
            note = annotations[number]
            title, runner_up = titles[note.category], note.runner_up
            label = note.category, title, note.strength, runner_up, note.runner_up_strength
        place = span.start_token, span.end_token
        yield SentenceRow(rollout.problem_id, number, text, *place, *label)


def grade_row(rung: str, graded: "GradedTrace") -> GradeRow:
    """A graded answer's row."""
    return GradeRow(
        rung,
        graded.problem_id,
        graded.seed,
        graded.sample,
        graded.category,
        graded.budget,
        graded.flexible.value,
        graded.strict.value,
        graded.answer,
        None if graded.rule is None else graded.rule.value,
        graded.finish.value,
        graded.tokens,
        graded.decisions,
        graded.changed,
        graded.steered_passes,
        graded.needs_thinking,
    )


def token_rows(
    trace: HybridTrace, texts: Sequence[str], titles: Sequence[str], word: Callable[[int], str]
) -> Iterator[TokenRow]:
    """Rows of the tokens of one answer.

    Args:
        trace: the answer.
        texts: what each of its tokens adds to it.
        titles: of the categories it was steered with.
        word: the text of a token on its own.
    """
    answer = (
        trace.rung, trace.problem_id, trace.seed, trace.sample, trace.category, trace.budget,
    )  # fmt: skip
    for position, (token, text) in enumerate(zip(trace.tokens, texts, strict=True)):
        is_steered = token.category is not None
        yield TokenRow(
            *answer,
            position=position,
            id=token.id,
            text=text,
            base_id=token.base_id,
            base_text=word(token.base_id),
            thinking_id=token.thinking_id,
            thinking_text=None if token.thinking_id is None else word(token.thinking_id),
            is_decision=token.is_decision,
            is_changed=token.id != token.base_id,
            category=token.category,
            title=None if token.category is None else titles[token.category],
            coefficient=token.coefficient,
            window=token.window if is_steered else None,
            base_log_prob=token.base_log_prob,
            thinking_log_prob=token.thinking_log_prob,
            base_margin=token.base_margin,
            thinking_margin=token.thinking_margin,
            is_tie=token.is_tie,
            log_odds=token.log_odds,
        )


def ladder_row(name: str, rung: RungMeasurement) -> LadderRow:
    """A rung's row."""
    interval, against, gains = rung.gap_recovered_ci, rung.against_hybrid, rung.gains
    flips, bits, bits_ci = rung.flips, rung.bits, rung.bits_ci
    return LadderRow(
        rung=name,
        accuracy=rung.accuracy,
        accuracy_low=rung.accuracy_ci.low,
        accuracy_high=rung.accuracy_ci.high,
        gap_recovered=rung.gap_recovered,
        gap_recovered_low=interval.low if interval else None,
        gap_recovered_high=interval.high if interval else None,
        steered=rung.steered_fraction,
        ties=rung.tie_fraction,
        changed=rung.changed_fraction,
        flexible_accuracy=rung.flexible_accuracy,
        strict_accuracy=rung.strict_accuracy,
        **{grade.value: rung.counts[grade.value] for grade in Grade},
        tokens_per_answer=rung.tokens_per_answer,
        steered_passes_per_answer=rung.steered_passes_per_answer,
        needs_thinking=rung.needs_thinking,
        seeds=len(rung.seeds),
        samples=rung.samples,
        gains_shared=gains.shared if gains else None,
        right_elsewhere=gains.elsewhere if gains else None,
        wrong_to_right=flips.gained if flips else None,
        right_to_wrong=flips.lost if flips else None,
        net_flips=flips.net if flips else None,
        bits_per_answer=bits.total if bits else None,
        bits_low=bits_ci.low if bits_ci else None,
        bits_high=bits_ci.high if bits_ci else None,
        bits_when=bits.when if bits else None,
        bits_which=bits.which if bits else None,
        bits_what=bits.what if bits else None,
        interventions_per_answer=rung.interventions_per_answer,
        fitted=rung.fitted,
        only_it_right=against.only_first if against else None,
        only_hybrid_right=against.only_second if against else None,
        p_value=against.p_value if against else None,
    )
