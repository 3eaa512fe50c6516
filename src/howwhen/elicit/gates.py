"""What the gate reads: three ways to name a disagreement from one position of the thinking model.

The taxonomy is fitted on the means of whole sentences, but the gate reads one position, before the
sentence exists. So there are two alternatives: a probe trained to predict the category of the
sentence that the disagreement leads into, and clusters of the disagreement positions themselves.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import get_args

import numpy as np
import torch
from jaxtyping import Float
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from howwhen.elicit.decisions import Decisions
from howwhen.elicit.report import GateAgreement
from howwhen.errors import SteeringError
from howwhen.probes import Gate, Taxonomy, normalise
from howwhen.records import Rollout, split_by_rollout
from howwhen.settings import GateKind

GATE_KINDS: tuple[GateKind, ...] = get_args(GateKind)


@dataclass(frozen=True)
class GateSite:
    """Where in the thinking model a gate reads, and the categories it names."""

    model: str
    layer: int
    """0-based block whose output it reads."""
    mean: Float[Tensor, " d_model"]
    """Subtracted before the normalisation."""
    titles: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of categories."""
        return len(self.titles)


@dataclass(frozen=True)
class LabelledDecisions:
    """Disagreements of some answers, with the category of the sentence that each leads into."""

    states: Float[Tensor, "decision d_model"]
    """The thinking model's residual at each."""
    next_categories: Sequence[int]
    """-1 where no sentence follows."""

    @classmethod
    def draw(
        cls, found: Iterable[Decisions], next_categories: Sequence[Sequence[int]], count: int
    ) -> "LabelledDecisions":
        """Draw `count` disagreements with equal chances, or take all if there are no more.

        Args:
            found: disagreements of some answers; gone through once, and only what is drawn is kept.
            next_categories: of every disagreement of every answer.
            count: how many are drawn.
        """
        total = sum(map(len, next_categories))
        drawn = sorted(Random("gate").sample(range(total), min(count, total)))
        states, chosen, first = [], [], 0
        for answer, categories in zip(found, next_categories, strict=True):
            last = first + len(categories)
            own = drawn[bisect_left(drawn, first) : bisect_left(drawn, last)]
            rows = [number - first for number in own]
            states.append(answer.states[rows].float())
            chosen += [categories[row] for row in rows]
            first = last
        return cls(torch.cat(states) if states else torch.zeros(0, 0), chosen)


def find_site(
    taxonomy: Taxonomy, thinking: str, layer: int, found: Float[Tensor, "decision d_model"]
) -> GateSite:
    """The taxonomy's own site; where another model read the sentences, one in the thinking model.

    Args:
        taxonomy: the chosen taxonomy.
        thinking: name of the thinking model.
        layer: 0-based block that the disagreements' states are from.
        found: the thinking model's residuals at disagreements of the training rollouts.
    """
    if taxonomy.model == thinking:
        return GateSite(thinking, taxonomy.layer, taxonomy.mean, taxonomy.titles)
    return GateSite(thinking, layer, found.mean(0), taxonomy.titles)


def make_gate(
    kind: GateKind,
    taxonomy: Taxonomy,
    site: GateSite,
    train: LabelledDecisions,
    seed: int,
) -> Gate:
    """The gate of that kind.

    Args:
        kind: which.
        taxonomy: the categories.
        site: where the gate reads.
        train: disagreements of the training rollouts.
        seed: of the clustering.

    Raises:
        SteeringError: a gate of this kind cannot be fitted.
    """
    if kind == "taxonomy":
        check_gate(kind, taxonomy.model, site.model)
        return taxonomy.gate()
    inputs = normalise(train.states, site.mean)
    if kind == "clusters":
        return _clusters(site, inputs, seed)
    return _probe(site, inputs, train.next_categories)


def check_gate(kind: str, reader: str, thinking: str) -> None:
    """Refuse a gate that would read another model's activations.

    Args:
        kind: of the gate.
        reader: name of the model that the taxonomy reads.
        thinking: name of the thinking model, which every gate reads.

    Raises:
        SteeringError: the taxonomy itself is to be the gate, and reads another model.
    """
    if kind == "taxonomy" and reader != thinking:
        raise SteeringError(
            f"the taxonomy reads {reader}, but a gate reads {thinking}, the thinking model; type "
            "--elicit.gate probe or --elicit.gate clusters"
        )


def next_sentence_categories(
    rollouts: Sequence[Rollout], steps: Sequence[Sequence[int]], assignments: Sequence[int]
) -> list[list[int]]:
    """For every disagreement, the category of the sentence that holds the token it leads to.

    Args:
        rollouts: the collected answers.
        steps: which of their tokens the disagreements lead to.
        assignments: category of every sentence of every rollout, in order.
    """
    next_categories = []
    by_rollout = split_by_rollout(rollouts, assignments)
    for rollout, own, categories in zip(rollouts, steps, by_rollout, strict=True):
        of_token = {
            token: category
            for span, category in zip(rollout.spans, categories, strict=True)
            for token in range(span.start_token, span.end_token)
        }
        next_categories.append([of_token.get(step, -1) for step in own])
    return next_categories


def gate_sentence_agreement(gate: Gate, labelled: LabelledDecisions) -> GateAgreement:
    """How often a gate's category equals that of the sentence that follows."""
    if not labelled.next_categories:
        return GateAgreement(None, 0)
    named = gate.categorise(labelled.states).tolist()
    pairs = [
        (one, category)
        for one, category in zip(named, labelled.next_categories, strict=True)
        if category >= 0
    ]
    agreeing = sum(one == category for one, category in pairs)
    return GateAgreement(agreeing / len(pairs) if pairs else None, len(pairs))


def choose_gate(
    kind: GateKind,
    taxonomy: Taxonomy,
    site: GateSite,
    train: LabelledDecisions,
    heldout: LabelledDecisions,
    seed: int,
) -> tuple[Gate, dict[str, GateAgreement]]:
    """Fit every kind of gate, compare them on answers held out, and keep one.

    Args:
        kind: the one to keep.
        taxonomy: the categories.
        site: where gates read.
        train: what they are fitted on.
        heldout: what they are compared on.
        seed: of the clustering.

    Raises:
        SteeringError: the gate that is to be kept cannot be fitted.
    """
    made = (taxonomy, site, train, seed)
    chosen = make_gate(kind, *made)
    agreement: dict[str, GateAgreement] = {}
    for other in GATE_KINDS:
        try:
            gate = chosen if other == kind else make_gate(other, *made)
        except SteeringError as error:
            agreement[other] = GateAgreement(None, 0, str(error))
        else:
            agreement[other] = gate_sentence_agreement(gate, heldout)
    return chosen, agreement


def _clusters(site: GateSite, inputs: Float[Tensor, "n d"], seed: int) -> Gate:
    if not len(inputs):
        raise SteeringError(
            "there is no disagreement to cluster; collect more problems (--collect.limit) or use "
            "--elicit.gate taxonomy"
        )
    size = min(site.size, len(np.unique(inputs.numpy(), axis=0)))
    fitted = KMeans(size, n_init=4, random_state=seed).fit(inputs.numpy())
    centres = torch.from_numpy(fitted.cluster_centers_).float()
    # The nearest centre maximises x.c - |c|^2 / 2.
    titles = tuple(f"decisions {number}" for number in range(size))
    return Gate(
        kind="clusters",
        model=site.model,
        layer=site.layer,
        mean=site.mean,
        weights=centres,
        biases=-centres.square().sum(1) / 2,
        titles=titles,
    )


def _probe(site: GateSite, inputs: Float[Tensor, "n d"], next_categories: Sequence[int]) -> Gate:
    rows = [row for row, category in enumerate(next_categories) if category >= 0]
    classes = sorted({next_categories[row] for row in rows})
    if len(classes) < 2:
        raise SteeringError(
            f"a probe needs decisions that lead into sentences of at least 2 categories; found "
            f"{len(classes)}. Collect more problems (--collect.limit) or use --elicit.gate taxonomy"
        )
    fitted = LogisticRegression(C=100.0, max_iter=2000).fit(
        inputs[rows].numpy(), [next_categories[row] for row in rows]
    )
    weights = torch.zeros(site.size, inputs.shape[1])
    biases = torch.full((site.size,), -1e9)  # a category that never comes is never named
    coefficients = torch.from_numpy(fitted.coef_).float()
    intercepts = torch.from_numpy(fitted.intercept_).float()
    if len(classes) == 2:
        coefficients = torch.cat([-coefficients, coefficients]) / 2
        intercepts = torch.cat([-intercepts, intercepts]) / 2
    weights[classes], biases[classes] = coefficients, intercepts
    return Gate(
        kind="probe",
        model=site.model,
        layer=site.layer,
        mean=site.mean,
        weights=weights,
        biases=biases,
        titles=site.titles,
    )
