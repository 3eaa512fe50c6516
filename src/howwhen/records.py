"""Every record, in the order it is made: problem, rollout, taxonomy, vectors, trace, measurement.

Records are frozen values. They know their own arithmetic and nothing of models or files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from howwhen.errors import SteeringError


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


class SentenceSpan(NamedTuple):
    """One sentence of a rollout, as half-open offsets; the text itself is never altered."""

    start_char: int
    end_char: int
    start_token: int
    """Index into the rollout's `ids`."""
    end_token: int


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

    def sentences(self) -> list[str]:
        """The text of every span."""
        return [self.text[span.start_char : span.end_char] for span in self.spans]


@dataclass(frozen=True)
class Sae:
    """A Top-K sparse autoencoder over normalised activations (paper, section 3)."""

    encoder: Float[Tensor, "latent d_model"]
    encoder_bias: Float[Tensor, " latent"]
    decoder: Float[Tensor, "latent d_model"]
    """Rows of unit norm."""
    decoder_bias: Float[Tensor, " d_model"]
    k: int
    """Latents kept per sentence."""

    @property
    def weights(self) -> Float[Tensor, "latent d_model"]:
        """The linear part of the scores."""
        return self.encoder

    @property
    def biases(self) -> Float[Tensor, " latent"]:
        """The constant part of the scores."""
        return self.encoder_bias - self.encoder @ self.decoder_bias

    @property
    def method(self) -> str:
        """How the categories were found."""
        return "sae"

    def scores(self, inputs: Float[Tensor, "n d_model"]) -> Float[Tensor, "n latent"]:
        """Pre-activations of all latents; a category is the argmax."""
        return (inputs - self.decoder_bias) @ self.encoder.T + self.encoder_bias

    def reconstruct(self, inputs: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """Decode the top k raw pre-activations."""
        kept = self.scores(inputs).topk(self.k, dim=1)
        return (kept.values[..., None] * self.decoder[kept.indices]).sum(1) + self.decoder_bias


@dataclass(frozen=True)
class Clusters:
    """A clustering of normalised activations that is applied by a linear function of them.

    Nearest centroid, largest cosine and a mixture with one covariance for all components are all
    the argmax of `weights . x + biases`.
    """

    weights: Float[Tensor, "category d_model"]
    biases: Float[Tensor, " category"]
    method: str
    """How the categories were found, such as `kmeans`."""

    def scores(self, inputs: Float[Tensor, "n d_model"]) -> Float[Tensor, "n category"]:
        """Scores of all categories; a category is the argmax."""
        return inputs @ self.weights.T + self.biases


@dataclass(frozen=True)
class Taxonomy:
    """Categories of reasoning, with everything needed to tell them from one model's residuals.

    It owns the normaliser, and applies the same one to sentence means and to single tokens:
    subtract the corpus mean, divide by the L2 norm.
    """

    model: str
    """Name of the model whose residuals it reads."""
    layer: int
    """0-based block whose output it reads."""
    mean: Float[Tensor, " d_model"]
    """Corpus mean of the sentence activations."""
    scorer: Sae | Clusters
    """What tells the categories apart."""
    titles: tuple[str, ...]
    """One title per category."""

    @property
    def size(self) -> int:
        """Number of categories K."""
        return self.scorer.weights.shape[0]

    def normalise(self, residual: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """Residuals as the SAE reads them."""
        return functional.normalize(residual - self.mean, dim=-1)

    def categorise(self, residual: Float[Tensor, "n d_model"]) -> Int[Tensor, " n"]:
        """Category of each residual: the argmax over all K scores."""
        return self.scores(residual).argmax(1)

    def scores(self, residual: Float[Tensor, "n d_model"]) -> Float[Tensor, "n category"]:
        """Scores of all categories for each residual (an SAE's are its pre-activations)."""
        return self.scorer.scores(self.normalise(residual))

    def gate(self) -> "Gate":
        """The gate that reads a single position as if it were a sentence's mean."""
        return Gate(
            kind="taxonomy",
            model=self.model,
            layer=self.layer,
            mean=self.mean,
            weights=self.scorer.weights,
            biases=self.scorer.biases,
            titles=self.titles,
        )


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


@dataclass(frozen=True)
class Gate:
    """Names the category that is due, from one position of the thinking model's residual.

    Every gate is linear after the taxonomy's normaliser: `argmax(weights . n(h) + biases)`.
    """

    kind: "GateKind"
    model: str
    """Name of the model whose residuals it reads."""
    layer: int
    """0-based block whose output it reads."""
    mean: Float[Tensor, " d_model"]
    weights: Float[Tensor, "category d_model"]
    biases: Float[Tensor, " category"]
    titles: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of categories."""
        return self.weights.shape[0]

    def categorise(self, residual: Float[Tensor, "n d_model"]) -> Int[Tensor, " n"]:
        """Category of each residual."""
        inputs = functional.normalize(residual - self.mean, dim=-1)
        return (inputs @ self.weights.T + self.biases).argmax(1)


GateKind = Literal["taxonomy", "probe", "clusters"]
"""The taxonomy itself, a probe for the coming sentence's category, or clusters of decisions."""


@dataclass(frozen=True)
class SelfGate:
    """Tells from the base's own residuals whether a decision is due, and of which category.

    A network of one hidden layer over the concatenated residuals of `layers`, standardised by
    `mean` and `scale`. Output 0 is the log-odds of a decision, the others score the categories.
    """

    model: str
    """Name of the base model whose residuals it reads."""
    layers: tuple[int, ...]
    """0-based blocks whose output it reads."""
    mean: Float[Tensor, " features"]
    scale: Float[Tensor, " features"]
    hidden: Float[Tensor, "hidden features"]
    hidden_bias: Float[Tensor, " hidden"]
    outputs: Float[Tensor, "one_more_than_categories hidden"]
    outputs_bias: Float[Tensor, " one_more_than_categories"]
    threshold: float
    """Log-odds from which on a decision is made."""

    def read(self, residual: Float[Tensor, "n features"]) -> Float[Tensor, "n outputs"]:
        """Log-odds of a decision (first column) and scores of the categories."""
        inputs = (residual - self.mean) * self.scale
        features = functional.relu(functional.linear(inputs, self.hidden, self.hidden_bias))
        return functional.linear(features, self.outputs, self.outputs_bias)


@dataclass(frozen=True)
class Network:
    """Coefficient `a(h, k) = softplus(heads_k . gelu(hidden h) + heads_bias_k)` (version 2)."""

    hidden: Float[Tensor, "hidden d_model"]
    heads: Float[Tensor, "category hidden"]
    heads_bias: Float[Tensor, " category"]

    def coefficient(
        self, residual: Float[Tensor, "n d_model"], category: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """`a(h, k)` for each residual."""
        features = functional.gelu(residual @ self.hidden.T)
        raw = (features * self.heads[category]).sum(1) + self.heads_bias[category]
        return functional.softplus(raw)


@dataclass(frozen=True)
class LinearGate:
    """Coefficient `2 sigmoid(w_k . h / |h| + b_k)`: between 0 and 2, 1 at the start."""

    gates: Float[Tensor, "category d_model"]
    gates_bias: Float[Tensor, " category"]

    def coefficient(
        self, residual: Float[Tensor, "n d_model"], category: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Coefficient for each residual."""
        direction = functional.normalize(residual, dim=-1)
        raw = (direction * self.gates[category]).sum(1) + self.gates_bias[category]
        return 2 * raw.sigmoid()


@dataclass(frozen=True)
class LowRank:
    """Adds `up_k^T down_k h` to the vector: a map of low rank for every category."""

    down: Float[Tensor, "category rank d_model"]
    up: Float[Tensor, "category rank d_model"]

    def mapped(
        self, residual: Float[Tensor, "n d_model"], category: Int[Tensor, " n"]
    ) -> Float[Tensor, "n d_model"]:
        """`up_k^T down_k h` for each residual."""
        inner = torch.einsum("nd,nrd->nr", residual, self.down[category])
        return torch.einsum("nr,nrd->nd", inner, self.up[category])


Modulation = Network | LinearGate | LowRank
"""How a vector depends on the residual it is added to; None where it does not."""
MODULATIONS: tuple[type[Network] | type[LinearGate] | type[LowRank], ...] = get_args(Modulation)


@dataclass(frozen=True)
class VectorSet:
    """Steering vectors as a value: `h <- h + s (a(h, k) V_k + b)` at the output of `layer`.

    `s` is the strength of the policy in force, `a` the modulation's coefficient (1 without one) and
    `b` the bias vector of the paper's first version (0 without one).
    """

    model: str
    """Name of the base model the vectors were trained in."""
    layer: int
    """0-based block whose output residual is steered."""
    vectors: Float[Tensor, "category d_model"]
    bias: Float[Tensor, " d_model"] | None = None
    modulation: Modulation | None = None

    @property
    def size(self) -> int:
        """Number of categories."""
        return self.vectors.shape[0]

    @property
    def is_static(self) -> bool:
        """Whether the same vector is added whatever the residual."""
        return self.modulation is None

    def moving(self) -> Int[Tensor, " moving"]:
        """Categories that move a residual at all, the bias vector apart."""
        size = self.vectors.norm(dim=1)
        if isinstance(self.modulation, LowRank):
            size = size + self.modulation.up.flatten(1).norm(dim=1)
        found: Tensor = size.nonzero()[:, 0]
        return found

    def trained(self) -> Int[Tensor, " trained"]:
        """Categories that move a residual; all of them where none does."""
        found = self.moving()
        return found if len(found) else torch.arange(self.size)

    def coefficient(
        self, residual: Float[Tensor, "n d_model"], category: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Coefficient `a(h, k)` for each residual, in multiples of the category's vector."""
        if self.modulation is None or isinstance(self.modulation, LowRank):
            return residual.new_ones(len(residual))
        return self.modulation.coefficient(residual, category)

    def delta(
        self, residual: Float[Tensor, "n d_model"], category: Int[Tensor, " n"]
    ) -> Float[Tensor, "n d_model"]:
        """What to add to each residual at strength 1."""
        added = self.coefficient(residual, category)[:, None] * self.vectors[category]
        if isinstance(self.modulation, LowRank):
            added = added + self.modulation.mapped(residual, category)
        return added if self.bias is None else added + self.bias

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name; `with_tensors` is the inverse."""
        parts = [self, self.modulation] if self.modulation is not None else [self]
        return {
            name: value
            for part in parts
            for name, value in vars(part).items()
            if isinstance(value, Tensor)
        }

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "VectorSet":
        """The same set with other values."""
        modulation = self.modulation
        if modulation is not None:
            names = [field.name for field in fields(modulation)]
            modulation = type(modulation)(**{name: tensors[name] for name in names})
        bias = tensors.get("bias")
        return replace(self, vectors=tensors["vectors"], bias=bias, modulation=modulation)

    def __add__(self, other: "VectorSet") -> "VectorSet":
        """Sum of two static sets of one model, layer and size."""
        self._check_alike(other)
        biases = [one.bias for one in (self, other) if one.bias is not None]
        return replace(
            self,
            vectors=self.vectors + other.vectors,
            bias=torch.stack(biases).sum(0) if biases else None,
        )

    def scaled(self, factor: float) -> "VectorSet":
        """Everything that is added, times `factor`."""
        scaled = {name: value * factor for name, value in self.tensors().items() if name in _ADDED}
        return self.with_tensors({**self.tensors(), **scaled})

    def similarity(self, other: "VectorSet | None" = None) -> Float[Tensor, "category other"]:
        """Cosine of every vector with every vector of `other`, by default of this set."""
        ours = functional.normalize(self.vectors, dim=1)
        return ours @ functional.normalize((other or self).vectors, dim=1).T

    def _check_alike(self, other: "VectorSet") -> None:
        found = [(one.model, one.layer, tuple(one.vectors.shape)) for one in (self, other)]
        if found[0] != found[1] or not (self.is_static and other.is_static):
            raise SteeringError(
                f"cannot add vectors of {found[0]} and {found[1]} (model, layer, shape); expected "
                "two static sets that agree in all three"
            )


_ADDED = ("vectors", "bias", "up")


LadderRung = Literal[
    "base",
    "base-step-by-step",
    "guardrail-only",
    "bias-only",
    "shared-vector",
    "random-category",
    "random-positions",
    "random-vectors",
    "hybrid",
    "self-gate",
    "takeover",
    "thinking",
]
KnockOutRung = Literal["without-category", "one-category"]
"""The hybrid without one category, and with one alone."""
Rung = LadderRung | KnockOutRung
LADDER: tuple[Rung, ...] = get_args(LadderRung)
"""The rungs of the ladder of controls, in the order they are shown."""
KNOCK_OUTS: tuple[Rung, ...] = get_args(KnockOutRung)


def titles_of(rung: str, titles: tuple[str, ...]) -> tuple[str, ...]:
    """What the categories of a rung's tokens are called.

    Rungs with a single vector steer with it at every decision: their category 0 is none of the
    taxonomy's.
    """
    return ("one vector for all",) if rung in ("bias-only", "shared-vector") else titles


class Candidate(NamedTuple):
    """One way of steering that was tried at a decision."""

    strength: float
    """Multiple of what the vector set adds."""
    window: int
    """Number of last positions steered."""
    id: int
    """The token the steered base would emit."""
    thinking_log_prob: float
    """Log-probability of that token under the thinking model, in nats."""


class HybridToken(NamedTuple):
    """One emitted token and how it came about."""

    id: int
    base_id: int
    """Greedy token of the unsteered base here."""
    thinking_id: int
    """Greedy token of the thinking model here; -1 where it was not run."""
    category: int
    """Category steered with; -1 where the base was not steered."""
    strength: float
    """Coefficient used, in multiples of the category's vector; 0 where not steered."""
    window: int
    """Number of last positions steered; 0 where not steered."""
    is_decision: bool
    """Whether the rung intervened at this token (by steering or otherwise)."""
    base_log_prob: float
    """Log-probability of `id` under the unsteered base, in nats."""
    thinking_log_prob: float
    """Log-probability of `id` under the thinking model, in nats; 0 where it was not run."""
    candidates: tuple[Candidate, ...] = ()
    """What a sweep tried here; empty for a policy with a single strength."""


@dataclass(frozen=True)
class HybridTrace:
    """One problem answered on one rung of the ladder."""

    problem_id: str
    rung: Rung
    seed: int
    """Seed of a random rung; 0 elsewhere."""
    text: str
    finish: Finish
    tokens: tuple[HybridToken, ...]
    sample: int = 0
    """Number of the sampled answer; 0 where each problem is answered once."""
    category: int = -1
    """The category of a knock-out; -1 elsewhere."""

    @property
    def decisions(self) -> int:
        """Number of tokens at which the rung intervened."""
        return sum(token.is_decision for token in self.tokens)

    @property
    def changed(self) -> int:
        """Number of tokens that differ from what the unsteered base would have emitted there."""
        return sum(token.id != token.base_id for token in self.tokens)

    @property
    def steered_passes(self) -> int:
        """How often the base read a token once more, steered: once for every candidate."""
        return sum(max(1, len(one.candidates)) for one in self.tokens if one.category >= 0)

    @property
    def needs_thinking(self) -> bool:
        """Whether the thinking model read the answer."""
        return any(token.thinking_id >= 0 for token in self.tokens)


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
    """An interval of confidence."""

    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """One rung held against another on the same problems."""

    only_first: int
    """Problems that only the first rung gets right (in more than half of its answers)."""
    only_second: int
    p_value: float
    """McNemar's exact test, two-sided."""
    difference: float
    """Accuracy of the first minus that of the second."""
    difference_ci: Interval
    """Paired bootstrap."""


@dataclass(frozen=True)
class Gains:
    """Whether a rung is right where the thinking model is and the base is not, or elsewhere."""

    problems: int
    """That the thinking model gets right and the base does not (in more than half of the answers);
    the thinking model's gains."""
    shared: float
    """Share of the rung's answers to them that are right."""
    elsewhere: float | None
    """Share of its answers to all other problems that are right; None where there are none."""


@dataclass(frozen=True)
class RungMeasurement:
    """What one rung of the ladder achieved, over all its seeds and samples."""

    accuracy: float
    accuracy_ci: Interval
    """Wilson's where every problem was answered once, else a bootstrap."""
    flexible_accuracy: float
    """By the flexible grading mode; `accuracy` is one of the two."""
    strict_accuracy: float
    counts: Mapping[str, int]
    """Answers per grade; they add up to n times the number of seeds and samples."""
    truncated_fraction: float
    """Answers that reached the token limit, whatever their grade."""
    steered_fraction: float
    """Decisions per token, pooled."""
    changed_fraction: float
    """Tokens that differ from the unsteered base's, per token, pooled."""
    gap_recovered: float | None
    """(rung - base) / (thinking - base), signed; None where the gap may be zero."""
    gap_recovered_ci: Interval | None
    gap_recovered_clamped: float | None
    """The same limited to 0..1, as the reference code prints it."""
    seeds: tuple[int, ...]
    """Seeds pooled here; more than one only for random rungs."""
    samples: int
    """Answers per problem and seed."""
    tokens_per_answer: float
    steered_passes_per_answer: float
    """Tokens that the base read once more, steered; a sweep's candidates count one by one."""
    needs_thinking: bool
    """Whether the thinking model read the answers."""
    pass_at_k: Mapping[int, float]
    """Chance that one of k samples is right, k = 1, 2, 4, ... up to `samples`; empty for one."""
    against_hybrid: Comparison | None
    """This rung against the hybrid; None for the hybrid itself."""
    gains: Gains | None = None
    """How many of the thinking model's gains are the rung's too; None where there are none, and in
    runs measured before they were counted."""


class Work(NamedTuple):
    """What reading a token takes."""

    base: int
    """Parameters of the base that every token is multiplied with."""
    thinking: int
    """The same of the thinking model."""
    steered: float
    """Share of the base's blocks that a steered pass goes through again."""


@dataclass(frozen=True)
class KnockOut:
    """What one category of the hybrid carries: steering without it, and with it alone."""

    category: int
    title: str
    decisions: int
    """Decisions of the hybrid with this category."""
    without: float | None
    """Gap recovered when every other category is steered; None where the gap may be zero."""
    without_ci: Interval | None
    drop: float | None
    """Gap recovered by the hybrid minus `without`."""
    drop_ci: Interval | None
    alone: float | None
    """Gap recovered when this category alone is steered."""
    alone_ci: Interval | None


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
    rungs: Mapping[Rung, RungMeasurement]
    knock_outs: tuple[KnockOut, ...] = ()


def stack_rows(rows: list[Tensor]) -> Tensor:
    """Concatenate per-batch tensors of shape (n, ...) on the CPU."""
    return torch.cat([row.detach().float().cpu() for row in rows])
