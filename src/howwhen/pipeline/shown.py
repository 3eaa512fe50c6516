"""A run's taxonomy and vectors as a notebook shows them.

Each is what it was, so it can be used wherever a taxonomy or a vector set can, and also holds what
the run knows of its categories.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass

from transformers import PreTrainedModel

from howwhen.discover.categories import CategorySummary
from howwhen.hybrid.steering import apply_vectors
from howwhen.lm.models import LanguageModel
from howwhen.present.cells import taxonomy_cell, vectors_cell
from howwhen.probes import Taxonomy
from howwhen.records import one_line
from howwhen.vectors import VectorSet


@dataclass(frozen=True)
class RunTaxonomy(Taxonomy):
    """The taxonomy of a run."""

    categories: tuple[CategorySummary, ...] = ()
    """What each category looks like."""

    __repr__ = one_line

    def _repr_html_(self) -> str:
        title = (
            f"{self.size} categories ({self.scorer.method}) in block {self.layer} of {self.model}"
        )
        return taxonomy_cell(title, self.titles, self.categories)


@dataclass(frozen=True)
class RunVectors(VectorSet):
    """The steering vectors of a run."""

    titles: tuple[str, ...] = ()
    """Of the categories."""
    counts: tuple[int, ...] = ()
    """Disagreements that each vector was trained on."""

    __repr__ = one_line

    def apply(
        self,
        model: PreTrainedModel | LanguageModel,
        category: int = 0,
        coefficient: float = 1.0,
        positions: slice | None = None,
    ) -> AbstractContextManager[None]:
        """Steer any model of this width inside a `with`: `with vectors.apply(model): ...`.

        Args:
            model: a causal language model of Hugging Face, or one of howwhen.
            category: whose vector is added.
            coefficient: multiple of what the set adds, its own learned coefficient included.
            positions: of every forward pass, such as `slice(-1, None)`; all of them by default.

        Raises:
            SteeringError: on entering: another width, no such layer, or no such category.
        """
        return apply_vectors(model, self, category, coefficient, positions)

    def _repr_html_(self) -> str:
        title = f"{self.size} steering vectors for the output of block {self.layer} of {self.model}"
        return vectors_cell(title, self, self.titles, self.counts)
