"""Every record, in the order it is made: problem, rollout, taxonomy, vectors, trace, measurement.

Records are frozen values. They know their own arithmetic and nothing of models or files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


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

    def scores(self, inputs: Float[Tensor, "n d_model"]) -> Float[Tensor, "n latent"]:
        """Pre-activations of all latents; a category is the argmax."""
        return (inputs - self.decoder_bias) @ self.encoder.T + self.encoder_bias

    def reconstruct(self, inputs: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """Decode the top k raw pre-activations."""
        kept = self.scores(inputs).topk(self.k, dim=1)
        return (kept.values[..., None] * self.decoder[kept.indices]).sum(1) + self.decoder_bias


@dataclass(frozen=True)
class Taxonomy:
    """Categories of reasoning: an SAE with everything needed to apply it to one model's residuals.

    It owns the normaliser, and applies the same one to sentence means and to single tokens:
    subtract the corpus mean, divide by the L2 norm.
    """

    model: str
    """Name of the model whose residuals it reads."""
    layer: int
    """0-based block whose output it reads."""
    mean: Float[Tensor, " d_model"]
    """Corpus mean of the sentence activations."""
    sae: Sae
    titles: tuple[str, ...]
    """One title per category."""

    @property
    def size(self) -> int:
        """Number of categories K."""
        return self.sae.encoder.shape[0]

    def normalise(self, residual: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """Residuals as the SAE reads them."""
        return functional.normalize(residual - self.mean, dim=-1)

    def categorise(self, residual: Float[Tensor, "n d_model"]) -> Int[Tensor, " n"]:
        """Category of each residual: the argmax over all K pre-activations."""
        return self.sae.scores(self.normalise(residual)).argmax(1)


@dataclass(frozen=True)
class VectorSet:
    """Decision vectors (paper, second version): `h <- h + a(h, k) V_k` at the output of `layer`.

    The coefficient is `a = softplus(heads_k . gelu(hidden h) + heads_bias_k)`.
    """

    model: str
    """Name of the base model the vectors were trained in."""
    layer: int
    """0-based block whose output residual is steered."""
    vectors: Float[Tensor, "category d_model"]
    hidden: Float[Tensor, "hidden d_model"]
    heads: Float[Tensor, "category hidden"]
    heads_bias: Float[Tensor, " category"]

    def strength(
        self, residual: Float[Tensor, "n d_model"], category: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Coefficient `a(h, k)` for each residual, in multiples of the category's vector."""
        features = functional.gelu(residual @ self.hidden.T)
        raw = (features * self.heads[category]).sum(1) + self.heads_bias[category]
        return functional.softplus(raw)

    def delta(
        self, residual: Float[Tensor, "n d_model"], category: Int[Tensor, " n"]
    ) -> Float[Tensor, "n d_model"]:
        """What to add to each residual."""
        return self.strength(residual, category)[:, None] * self.vectors[category]


Rung = Literal[
    "base",
    "guardrail-only",
    "shared-vector",
    "random-category",
    "random-positions",
    "random-vectors",
    "hybrid",
    "takeover",
    "thinking",
]
LADDER: tuple[Rung, ...] = get_args(Rung)
"""The rungs of the ladder of controls, in the order they are shown."""


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
    is_decision: bool
    """Whether the rung intervened at this token (by steering or otherwise)."""
    base_log_prob: float
    """Log-probability of `id` under the unsteered base, in nats."""
    thinking_log_prob: float
    """Log-probability of `id` under the thinking model, in nats; 0 where it was not run."""


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

    @property
    def decisions(self) -> int:
        """Number of tokens at which the rung intervened."""
        return sum(token.is_decision for token in self.tokens)

    @property
    def changed(self) -> int:
        """Number of tokens that differ from what the unsteered base would have emitted there."""
        return sum(token.id != token.base_id for token in self.tokens)


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
    """A bootstrap interval."""

    low: float
    high: float


@dataclass(frozen=True)
class RungMeasurement:
    """What one rung of the ladder achieved, over all its seeds."""

    accuracy: float
    accuracy_ci: Interval
    counts: Mapping[str, int]
    """Answers per grade; they add up to n times the number of seeds."""
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
    tokens_per_answer: float


@dataclass(frozen=True)
class Measurement:
    """The answer to the question: what each rung recovers of the gap."""

    n: int
    """Problems measured."""
    gap: float
    """Accuracy of the thinking model minus the base's."""
    gap_ci: Interval
    rungs: Mapping[Rung, RungMeasurement]


def stack_rows(rows: list[Tensor]) -> Tensor:
    """Concatenate per-batch tensors of shape (n, ...) on the CPU."""
    return torch.cat([row.detach().float().cpu() for row in rows])
