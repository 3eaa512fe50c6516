"""What is added to residuals: a set of steering vectors and how it depends on the residual.

A set is a frozen value: it can be added, scaled and compared, and knows nothing of models or files.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from howwhen.errors import SteeringError
from howwhen.records import one_line


@dataclass(frozen=True)
class Network:
    """Coefficient `a(h, k) = softplus(heads_k . gelu(hidden h + hidden_bias) + heads_bias_k)`.

    The network of the paper's second version.
    """

    hidden: Float[Tensor, "hidden d_model"]
    hidden_bias: Float[Tensor, " hidden"]
    heads: Float[Tensor, "category hidden"]
    heads_bias: Float[Tensor, " category"]

    __repr__ = one_line

    def coefficient(
        self, residual: Float[Tensor, "n d_model"], category: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """`a(h, k)` for each residual."""
        features = functional.gelu(functional.linear(residual, self.hidden, self.hidden_bias))
        raw = (features * self.heads[category]).sum(1) + self.heads_bias[category]
        return functional.softplus(raw)


@dataclass(frozen=True)
class LinearCoefficient:
    """Coefficient `2 sigmoid(w_k . h / |h| + b_k)`: between 0 and 2, 1 at the start."""

    gates: Float[Tensor, "category d_model"]
    gates_bias: Float[Tensor, " category"]

    __repr__ = one_line

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

    __repr__ = one_line

    def mapped(
        self, residual: Float[Tensor, "n d_model"], category: Int[Tensor, " n"]
    ) -> Float[Tensor, "n d_model"]:
        """`up_k^T down_k h` for each residual."""
        inner = torch.einsum("nd,nrd->nr", residual, self.down[category])
        return torch.einsum("nr,nrd->nd", inner, self.up[category])


Modulation = Network | LinearCoefficient | LowRank
"""How a vector depends on the residual it is added to; None where it does not."""


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

    __repr__ = one_line

    @property
    def size(self) -> int:
        """Number of categories."""
        return self.vectors.shape[0]

    @property
    def numbers(self) -> int:
        """How many numbers it holds: vectors, bias vector and what scales them."""
        return sum(tensor.numel() for tensor in self.tensors().values())

    @property
    def is_static(self) -> bool:
        """Whether the same vector is added whatever the residual."""
        return self.modulation is None

    def nonzero_categories(self) -> Int[Tensor, " moving"]:
        """Categories that move a residual at all, the bias vector apart."""
        size = self.vectors.norm(dim=1)
        if isinstance(self.modulation, LowRank):
            size = size + self.modulation.up.flatten(1).norm(dim=1)
        categories: Tensor = size.nonzero()[:, 0]
        return categories

    def trained(self) -> Int[Tensor, " trained"]:
        """Categories that move a residual; all of them where none does."""
        categories = self.nonzero_categories()
        return categories if len(categories) else torch.arange(self.size)

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

    def to(self, device: torch.device) -> "VectorSet":
        """The same set on a device."""
        if self.vectors.device == device:
            return self
        return self.with_tensors({name: value.to(device) for name, value in self.tensors().items()})

    def __add__(self, other: "VectorSet") -> "VectorSet":
        """Sum of two static sets of one model, layer and size."""
        self._check_alike(other)
        biases = [vectors.bias for vectors in (self, other) if vectors.bias is not None]
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
        keys = [(v.model, v.layer, tuple(v.vectors.shape)) for v in (self, other)]
        if keys[0] != keys[1] or not (self.is_static and other.is_static):
            raise SteeringError(
                f"cannot add vectors of {keys[0]} and {keys[1]} (model, layer, shape); expected "
                "two static sets that agree in all three"
            )


_ADDED = ("vectors", "bias", "up")


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no tensor holds an infinite value or a NaN."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
