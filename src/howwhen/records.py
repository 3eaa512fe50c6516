"""Every record, in the order it is made: problem, rollout, taxonomy, vectors, trace, measurement.

Records are frozen values. They know their own arithmetic and nothing of models or files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum, StrEnum
from itertools import accumulate
from typing import Any, Literal, NamedTuple, TypeVar, get_args

Item = TypeVar("Item")

MAX_SHOWN_TEXT = 60
"""Characters of a text in a record's `repr`."""
MAX_SHOWN_ITEMS = 4
"""Items of a tuple in a record's `repr`; of a longer one only the number is shown."""


def one_line(record: Any) -> str:
    """A `repr` of one line: long texts, tuples and tensors shortened, fields at default left out.

    Args:
        record: a dataclass or a named tuple.
    """
    if isinstance(record, tuple):
        defaults: Mapping[str, Any] = getattr(record, "_field_defaults", {})
        names = list(getattr(record, "_fields", ()))
    else:
        defaults = {
            field.name: field.default for field in fields(record) if field.default is not MISSING
        }
        names = [field.name for field in fields(record) if field.repr]
    values = {name: getattr(record, name) for name in names}
    shown = [
        f"{name}={_shortened(value)}"
        for name, value in values.items()
        if name not in defaults or value is not defaults[name]
    ]
    return f"{type(record).__name__}({', '.join(shown)})"


def _shortened(value: Any) -> str:
    if hasattr(value, "shape"):
        return f"<{'x'.join(map(str, value.shape))}>"
    if isinstance(value, Enum):
        return repr(value.value)
    if isinstance(value, str) and len(value) > MAX_SHOWN_TEXT:
        return f"{value[:MAX_SHOWN_TEXT]!r}..."
    if isinstance(value, Mapping):
        return f"<{len(value)} items: {', '.join(map(str, value))}>"
    is_plain_tuple = isinstance(value, tuple) and not hasattr(value, "_fields")
    if is_plain_tuple and len(value) > MAX_SHOWN_ITEMS:
        return f"<{len(value)} items>"
    if is_plain_tuple:
        return f"({', '.join(map(_shortened, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


class Split(StrEnum):
    """What a problem is used for; the three sets are disjoint."""

    TRAIN = "train"
    SELECTION = "selection"
    TEST = "test"


class Finish(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    """One of the pair's end tokens was emitted."""
    LENGTH = "length"
    """`max_new_tokens` was reached first."""


@dataclass(frozen=True)
class Problem:
    """A question with its gold answer."""

    id: str
    question: str
    answer: str
    """The final answer only, as text (a number or LaTeX)."""
    split: Split = Split.TEST
    dataset: str = ""
    """Name of the problem set; graders need it for options as answers (`mmlu_pro`)."""

    __repr__ = one_line


class SentenceSpan(NamedTuple):
    """One sentence of a rollout, as half-open offsets; the text itself is never altered."""

    start_char: int
    end_char: int
    start_token: int
    """Index into the rollout's `ids`."""
    end_token: int

    def __repr__(self) -> str:
        return one_line(self)


@dataclass(frozen=True)
class Rollout:
    """The thinking model's answer to one problem."""

    problem_id: str
    ids: tuple[int, ...]
    """Token ids of the answer, end token included, prompt excluded."""
    text: str
    """`ids` decoded, special tokens kept."""
    finish: Finish
    spans: tuple[SentenceSpan, ...]
    """Sentences of the thinking part: ordered, disjoint, covering it."""

    __repr__ = one_line

    def sentences(self) -> list[str]:
        """The text of every span."""
        return [self.text[span.start_char : span.end_char] for span in self.spans]


@dataclass(frozen=True)
class Annotation:
    """What a taxonomy says of one sentence; the text itself stays where it is."""

    problem_id: str
    """Of the rollout."""
    span: SentenceSpan
    category: int
    strength: float
    """Score of the category."""
    runner_up: int
    """Category with the second highest score."""
    runner_up_strength: float

    __repr__ = one_line


LadderRungName = Literal[
    "base",
    "base-step-by-step",
    "guardrail-only",
    "logit-difference",
    "bias-only",
    "shared-vector",
    "magnitude-only",
    "random-category",
    "random-positions",
    "random-positions-anywhere",
    "random-vectors",
    "entropy-gate",
    "early-only",
    "hybrid",
    "self-gate",
    "reverse-takeover",
    "takeover",
    "thinking",
]
PaperRungName = Literal[
    "random-guardrail",
    "base-guardrail",
    "random-unit-vectors",
    "random-category-not-top-3",
    "least-similar-category",
    "random-vectors-and-category",
    "random-positions-at-rate",
]
"""Ablations of the paper that the ladder has in another form."""
KnockOutName = Literal["without-category", "one-category"]
"""The hybrid without one category, and with one alone."""
BudgetName = Literal["hybrid-budget", "self-gate-budget", "takeover-budget"]
"""Rungs that intervene only where it matters most, by some threshold."""
RungName = LadderRungName | PaperRungName | KnockOutName | BudgetName
LADDER: tuple[RungName, ...] = get_args(LadderRungName)
"""The rungs of the ladder of controls, in the order they are shown."""
PAPER_RUNGS: tuple[RungName, ...] = get_args(PaperRungName)
PAPER_ABLATIONS: tuple[RungName, ...] = (
    "bias-only",
    "random-category",
    "random-vectors",
    *PAPER_RUNGS,
)
"""All ablations that either version of the paper has."""
BUDGETS: tuple[RungName, ...] = get_args(BudgetName)
WRITTEN_BY_THINKING: tuple[RungName, ...] = ("reverse-takeover", "thinking")
"""Rungs that the thinking model writes, rather than the base."""
OPTIONAL_RUNGS: tuple[RungName, ...] = (
    "logit-difference",
    "magnitude-only",
    "random-positions-anywhere",
    "entropy-gate",
    "early-only",
    "reverse-takeover",
)
"""Rungs that are decoded only if they are asked for."""
KNOCK_OUTS: tuple[RungName, ...] = get_args(KnockOutName)


def split_by_rollout(rollouts: Sequence[Rollout], column: Sequence[Item]) -> list[Sequence[Item]]:
    """Cut a column with one item per sentence into the sentences of each rollout.

    Args:
        rollouts: with the spans of their sentences.
        column: one item for every span, in order of rollouts and their spans.

    Raises:
        ValueError: the column has another number of items.
    """
    ends = list(accumulate(len(rollout.spans) for rollout in rollouts))
    if (ends[-1] if ends else 0) != len(column):
        raise ValueError(
            f"a column of {len(column)} items cannot be split into {ends[-1] if ends else 0} "
            "sentences; expected one item per sentence"
        )
    return [column[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def titles_of(rung: str, titles: tuple[str, ...]) -> tuple[str, ...]:
    """What the categories of a rung's tokens are called.

    Rungs with a single vector steer with it at every decision: their category 0 is none of the
    taxonomy's.
    """
    return ("one vector for all",) if rung in ("bias-only", "shared-vector") else titles


class Candidate(NamedTuple):
    """One way of steering that was tried at a disagreement."""

    strength: float
    """Multiple of what the vector set adds."""
    window: int
    """Number of last positions steered."""
    id: int
    """The token the steered base would emit."""
    thinking_log_prob: float | None
    """Log-probability of that token under the thinking model, in nats; None where that model was
    not run or cannot write the token."""

    def __repr__(self) -> str:
        return one_line(self)


class Bits(NamedTuple):
    """What the thinking model tells in an answer, in bits: when to intervene, and how."""

    when: float
    """At which tokens."""
    which: float
    """Categories."""
    what: float
    """Tokens, or which of several candidates."""

    def __repr__(self) -> str:
        return one_line(self)

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self)


class HybridToken(NamedTuple):
    """One emitted token and how it came about."""

    id: int
    base_id: int
    """Greedy token of the unsteered base here."""
    thinking_id: int | None
    """Greedy token of the thinking model here; None where it was not run."""
    category: int | None
    """Category steered with; None where the base was not steered."""
    coefficient: float | None
    """Multiple of the category's vector that was added: the strength asked for times the learned
    coefficient. None where the base was not steered."""
    window: int
    """Number of last positions steered; 0 where not steered."""
    is_decision: bool
    """Whether the rung intervened at this token (by steering or otherwise)."""
    base_log_prob: float | None
    """Log-probability of `id` under the unsteered base, in nats; None where the base cannot write
    it."""
    thinking_log_prob: float | None
    """Log-probability of `id` under the thinking model, in nats; None where that model was not run
    or cannot write it."""
    candidates: tuple[Candidate, ...] = ()
    """What a sweep tried here; empty for a policy with a single strength."""
    base_margin: float | None = None
    """Score of `base_id` minus that of the base's second choice, in nats; at most 1000. None in
    traces written before margins were noted."""
    thinking_margin: float | None = None
    """The same of `thinking_id`; None also where the thinking model was not run."""
    is_tie: bool = False
    """Whether one of the two margins is within the rounding of its model's numbers, so that a
    disagreement here may be none."""
    choice_bits: float | None = None
    """Bits that name `id` among the tokens that the rung chose it from, for who knows the base;
    None where it chose from all."""
    log_odds: float | None = None
    """Log-odds of a disagreement here, by a probe on the base's residual; None where no probe
    read along."""
    divergence: float | None = None
    """Jensen-Shannon divergence of the two models' next-token distributions here, in bits; None
    where it was not asked for."""
    category_scores: tuple[float, ...] = ()
    """The probe's scores of the categories, in nats; empty where the base was not steered with one
    of several."""

    def __repr__(self) -> str:
        return one_line(self)


@dataclass(frozen=True)
class HybridTrace:
    """One problem answered on one rung of the ladder."""

    problem_id: str
    rung: RungName
    seed: int
    """Seed of a random rung; 0 elsewhere."""
    text: str
    finish: Finish
    tokens: tuple[HybridToken, ...]
    sample: int = 0
    """Number of the sampled answer; 0 where each problem is answered once."""
    category: int | None = None
    """The category of a knock-out; None elsewhere."""
    budget: float | None = None
    """Of a rung with a budget, the share of the full rung's interventions that its threshold is
    made for; None elsewhere."""

    __repr__ = one_line

    @property
    def ids(self) -> tuple[int, ...]:
        """Token ids of the answer, end token included."""
        return tuple(token.id for token in self.tokens)

    @property
    def decisions(self) -> int:
        """Number of tokens at which the rung intervened."""
        return sum(token.is_decision for token in self.tokens)

    @property
    def ties(self) -> int:
        """Number of tokens at which the rung intervened although a model's choice was a tie."""
        return sum(token.is_decision and token.is_tie for token in self.tokens)

    @property
    def changed(self) -> int:
        """Number of tokens that differ from what the unsteered base would have emitted there."""
        return sum(token.id != token.base_id for token in self.tokens)

    @property
    def steered_passes(self) -> int:
        """How often the base read a token once more, steered: once for every candidate."""
        steered = (token for token in self.tokens if token.category is not None)
        return sum(max(1, len(token.candidates)) for token in steered)

    @property
    def needs_thinking(self) -> bool:
        """Whether the thinking model read the answer."""
        return any(token.thinking_id is not None for token in self.tokens)


@dataclass(frozen=True)
class HybridSummary:
    """What later steps need to know of the hybrid step (`4-hybrid/summary.json`)."""

    steered_fraction: float
    """Steered tokens of the hybrid, per token."""
    decisions_per_category: tuple[int, ...]
    """Tokens of the hybrid that were steered with each category."""
    work: "Work"
    fitted: Mapping[str, int] = field(default_factory=dict)
    """Numbers that were fitted for each rung: vectors, coefficient network, gate, probe."""
    base_parameters: int | None = None
    """All parameters of the base; None in runs made before they were counted."""
    steered_per_answer: float | None = None
    """Steered tokens of the hybrid per answer; None in runs made before they were counted."""

    __repr__ = one_line


class Grade(StrEnum):
    """The five outcomes of an answer; their counts add up to the number of problems."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    """It ended, but no answer could be read from it."""
    TRUNCATED = "truncated"
    """It reached the token limit without stating an answer."""
    TIMED_OUT = "timed_out"
    """The grader did not finish by its deadline."""


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float

    def __repr__(self) -> str:
        return one_line(self)


@dataclass(frozen=True)
class Comparison:
    """One rung compared with another on the same problems."""

    only_first: int
    """Problems that only the first rung gets right (in more than half of its answers)."""
    only_second: int
    p_value: float
    """McNemar's exact test, two-sided."""
    difference: float
    """Accuracy of the first minus that of the second."""
    difference_ci: Interval
    """Paired bootstrap."""

    __repr__ = one_line


@dataclass(frozen=True)
class Gains:
    """How often a rung is right on the thinking model's gains over the base, and elsewhere."""

    problems: int
    """The gains: problems that the thinking model gets right and the base does not, each by the
    majority of its answers."""
    shared: float
    """Share of the rung's answers to the gains that are right."""
    elsewhere: float | None
    """Share of its answers to all other problems that are right; None if there are no others."""

    __repr__ = one_line


@dataclass(frozen=True)
class Flips:
    """Problems on which a rung and the base differ, by the majority of their answers."""

    gained: int
    """Wrong to right: the base is wrong, the rung is right."""
    lost: int
    """Right to wrong: the base is right, the rung is wrong."""
    net: int
    """The first minus the second."""

    __repr__ = one_line


@dataclass(frozen=True)
class RungMeasurement:
    """What one rung of the ladder achieved, over all its seeds and samples."""

    accuracy: float
    accuracy_ci: Interval
    """Wilson's if every problem was answered once, else a bootstrap."""
    flexible_accuracy: float
    """By the flexible grading mode. `accuracy` is this or the strict one."""
    strict_accuracy: float
    counts: Mapping[str, int]
    """Answers per grade. They add up to n times the number of seeds and samples."""
    truncated_fraction: float
    """Answers that reached the token limit, whatever their grade."""
    steered_fraction: float
    """Tokens at which the rung intervened, per token, pooled. Ties are among them."""
    changed_fraction: float
    """Tokens that differ from the unsteered base's, per token, pooled."""
    gap_recovered: float | None
    """(rung - base) / (thinking - base), signed (recovery, Rec. %). None where the interval of the
    gap contains 0."""
    gap_recovered_ci: Interval | None
    gap_recovered_clamped: float | None
    """By the formula of the paper's code (`published_share`), whatever the interval of the gap;
    None without any gap."""
    seeds: tuple[int, ...]
    """Seeds pooled here; more than one only for random rungs."""
    samples: int
    """Answers per problem and seed."""
    tokens_per_answer: float
    steered_passes_per_answer: float
    """Tokens that the base read again, steered. Each candidate of a sweep counts."""
    needs_thinking: bool
    """Whether the thinking model read the answers."""
    pass_at_k: Mapping[int, float]
    """Chance that one of k samples is right, k = 1, 2, 4, ... up to `samples`; empty for one."""
    against_hybrid: Comparison | None
    """This rung against the hybrid; None for the hybrid itself."""
    gains: Gains | None = None
    """How many of the thinking model's gains the rung shares; None if there are none, and in runs
    measured before they were counted."""
    flips: Flips | None = None
    """This rung against the base; None for the base itself, and in runs measured before they were
    counted."""
    tie_fraction: float = 0.0
    """Tokens at which the rung intervened although a model's first two choices were closer than the
    rounding of its numbers, per token, pooled."""
    read_by: Mapping[str, int] = field(default_factory=dict)
    """Answers that each rule of the flexible mode read; the others hold none."""
    open_fraction: float = 0.0
    """Share of answers that stop inside their thinking."""
    loop_fraction: float = 0.0
    """Share of answers that end in the same words again and again."""
    interventions_per_answer: float | None = None
    """Tokens at which the rung intervened; None in runs measured before they were counted."""
    bits: Bits | None = None
    """What the thinking model tells per answer, on average, for a coder who sees only the base: an
    upper bound. None where it is unknown, as in runs measured before it was reckoned."""
    bits_ci: Interval | None = None
    """Of their sum."""
    steered_per_problem: float | None = None
    """Share of tokens at which the rung intervened, as the paper's first version reckons it: the
    unweighted mean over answers. None in runs measured before it was reckoned."""
    fitted: int | None = None
    """Numbers fitted for the rung: vectors, coefficient network, gate, probe; None where they were
    not counted."""

    __repr__ = one_line


@dataclass(frozen=True)
class Work:
    """What reading a token takes."""

    base: int
    """Parameters of the base that every token is multiplied with."""
    thinking: int
    """The same of the thinking model."""
    steered: float
    """Share of the base's blocks that a steered pass goes through again."""

    def __repr__(self) -> str:
        return one_line(self)


@dataclass(frozen=True)
class KnockOut:
    """What one category contributes: the hybrid without it, and with it alone."""

    category: int
    title: str
    decisions: int
    """Tokens that the hybrid steered with this category."""
    without: float | None
    """Gap recovered when every other category is steered; None where the gap may be zero, as in the
    other shares."""
    without_ci: Interval | None
    drop: float | None
    """Gap recovered by the hybrid minus `without`."""
    drop_ci: Interval | None
    alone: float | None
    """Gap recovered when this category alone is steered."""
    alone_ci: Interval | None

    __repr__ = one_line


class Enriched(NamedTuple):
    """Something that is more or less common at disagreements than elsewhere."""

    name: str
    at_disagreements: int
    elsewhere: int
    ratio: float
    """Its share at disagreements over its share elsewhere, both smoothed by half a count."""

    def __repr__(self) -> str:
        return one_line(self)


@dataclass(frozen=True)
class Concentration:
    """How concentrated the difference between the two models is in a rung's answers."""

    rung: str
    tokens: int
    mean: float
    """Jensen-Shannon divergence of the next-token distributions, in bits, per token."""
    gini: float
    """Gini index of the divergence over tokens."""
    top: tuple[tuple[float, float], ...]
    """The Lorenz curve from above: share of the tokens, and their share of the divergence."""
    words: tuple[Enriched, ...]
    """Tokens that the thinking model wants at disagreements more often than elsewhere."""
    categories: tuple[Enriched, ...]
    """Categories that the hybrid steers with, against those of the thinking model's sentences."""

    __repr__ = one_line


@dataclass(frozen=True)
class BudgetPoint:
    """One point of a budget curve: what is recovered by the interventions that matter most."""

    rung: str
    """The full rung: `hybrid`, `self-gate` or `takeover`."""
    budget: float
    """Share of its interventions that the threshold is made for; 1 is the rung itself."""
    threshold: float | None
    """Divergence in bits, for the self-gate log-odds; None for the rung itself."""
    steered_fraction: float
    """Tokens at which it intervened, per token, pooled."""
    interventions_per_answer: float
    accuracy: float
    accuracy_ci: Interval
    gap_recovered: float | None
    """None where the gap may be zero, as in the interval."""
    gap_recovered_ci: Interval | None

    __repr__ = one_line


@dataclass(frozen=True)
class Measurement:
    """The answer to the question: what each rung recovers of the gap."""

    n: int
    """Problems measured."""
    mode: Literal["flexible", "strict"]
    """Grading mode of `accuracy` and of everything computed from it."""
    gap: float
    """Accuracy of the thinking model minus the base's."""
    gap_ci: Interval
    rungs: Mapping[RungName, RungMeasurement]
    knock_outs: tuple[KnockOut, ...] = ()
    base_parameters: int | None = None
    """All parameters of the base; None where they were not counted."""
    budgets: tuple[BudgetPoint, ...] = ()
    """The budget curves, if they were asked for."""
    concentration: Concentration | None = None
    """Of the divergence in the answers of `takeover`; None where it was not noted."""

    __repr__ = one_line
