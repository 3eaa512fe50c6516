"""What reads residuals: autoencoders, clusterings, taxonomies and gates.

They are frozen values of tensors. They know their own arithmetic and nothing of models or files.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from howwhen.records import one_line
from howwhen.settings import GateKind

_Record = TypeVar("_Record")


def _moved(record: _Record, device: torch.device) -> _Record:
    """The same record with its tensors on a device."""
    fields: dict[str, Any] = vars(record)
    tensors = {name: value for name, value in fields.items() if isinstance(value, Tensor)}
    if all(tensor.device == device for tensor in tensors.values()):
        return record
    moved: Any = {name: tensor.to(device) for name, tensor in tensors.items()}
    changed: _Record = replace(record, **moved)  # type: ignore[type-var]
    return changed


def numbers_in(record: Any) -> int:
    """How many numbers the tensors of a record hold."""
    return sum(value.numel() for value in vars(record).values() if isinstance(value, Tensor))


def normalise(
    residual: Float[Tensor, "n d_model"], mean: Float[Tensor, " d_model"]
) -> Float[Tensor, "n d_model"]:
    """Residuals as every taxonomy and gate reads them: minus the corpus mean, at unit norm."""
    return functional.normalize(residual - mean, dim=-1)


def normalise_in_place(
    residual: Float[Tensor, "n d_model"], mean: Float[Tensor, " d_model"]
) -> Float[Tensor, "n d_model"]:
    """The same, in the memory of the residuals themselves."""
    return functional.normalize(residual.sub_(mean), dim=-1, out=residual)


ROWS_AT_A_TIME = 16_384
"""Rows that are worked on at a time, so that copies of many never exist."""


def in_parts(
    rows: Float[Tensor, "n d"], chosen: Int[Tensor, " m"] | None = None
) -> Iterator[Float[Tensor, "part d"]]:
    """All rows or some of them, some at a time."""
    if chosen is None:
        yield from torch.split(rows, ROWS_AT_A_TIME)
    else:
        for part in torch.split(chosen, ROWS_AT_A_TIME):
            yield rows[part]


def mean_in_parts(
    rows: Float[Tensor, "n d"], chosen: Int[Tensor, " m"] | None = None
) -> Float[Tensor, " d"]:
    """Mean of all rows or of some."""
    count = len(rows) if chosen is None else len(chosen)
    means = [part.mean(0) * (len(part) / count) for part in in_parts(rows, chosen)]
    return torch.stack(means).sum(0)


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

    __repr__ = one_line

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

    __repr__ = one_line

    def scores(self, inputs: Float[Tensor, "n d_model"]) -> Float[Tensor, "n category"]:
        """Scores of all categories; a category is the argmax."""
        return inputs @ self.weights.T + self.biases


@dataclass(frozen=True)
class Taxonomy:
    """Categories of reasoning, with everything needed to read them from one model's residuals.

    It normalises sentence means and the residuals of single tokens in the same way.
    """

    model: str
    """Name of the model whose residuals it reads."""
    layer: int
    """0-based block whose output it reads."""
    mean: Float[Tensor, " d_model"]
    """Corpus mean of the sentence activations."""
    scorer: Sae | Clusters
    """What separates the categories."""
    titles: tuple[str, ...]
    """One title per category."""

    __repr__ = one_line

    @property
    def size(self) -> int:
        """Number of categories K."""
        return self.scorer.weights.shape[0]

    def normalise(self, residual: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """Residuals as the SAE reads them."""
        return normalise(residual, self.mean)

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
class Gate:
    """Names the category that is due, from one position of the thinking model's residual.

    Every gate is linear after the taxonomy's normaliser: `argmax(weights . n(h) + biases)`.
    """

    kind: GateKind
    model: str
    """Name of the model whose residuals it reads."""
    layer: int
    """0-based block whose output it reads."""
    mean: Float[Tensor, " d_model"]
    weights: Float[Tensor, "category d_model"]
    biases: Float[Tensor, " category"]
    titles: tuple[str, ...]

    __repr__ = one_line

    @property
    def size(self) -> int:
        """Number of categories."""
        return self.weights.shape[0]

    def to(self, device: torch.device) -> "Gate":
        """The same gate on a device."""
        return _moved(self, device)

    def categorise(self, residual: Float[Tensor, "n d_model"]) -> Int[Tensor, " n"]:
        """Category of each residual."""
        inputs = normalise(residual, self.mean)
        return (inputs @ self.weights.T + self.biases).argmax(1)


@dataclass(frozen=True)
class SelfGate:
    """Predicts a disagreement, and its category, from the base's own residuals.

    A network of one hidden layer over the concatenated residuals of `layers`, standardised by
    `mean` and `scale`. Output 0 is the log-odds of a disagreement, the others score the categories.
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
    """Log-odds at and above which a disagreement is predicted."""

    __repr__ = one_line

    def to(self, device: torch.device) -> "SelfGate":
        """The same probe on a device."""
        return _moved(self, device)

    def read(self, residual: Float[Tensor, "n features"]) -> Float[Tensor, "n outputs"]:
        """Log-odds of a disagreement (first column) and scores of the categories."""
        inputs = (residual - self.mean) * self.scale
        features = functional.relu(functional.linear(inputs, self.hidden, self.hidden_bias))
        return functional.linear(features, self.outputs, self.outputs_bias)

    def read_layers(
        self, residual: Mapping[int, Float[Tensor, "n d_model"]], device: torch.device
    ) -> Float[Tensor, "n outputs"]:
        """The same of residuals by layer, which may be on several devices; on the probe's own."""
        parts = [residual[layer].to(device) for layer in self.layers]
        return self.read(torch.cat(parts, dim=1).float())
