"""The self-gate: a probe on the base's own residual that foretells decisions and their category.

It learns from recorded decisions, those of the thinking model's own answers and those that a hybrid
made, and lets a hybrid run without any thinking model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from howwhen.elicit.examples import Decisions
from howwhen.errors import SteeringError
from howwhen.lm.models import LanguageModel
from howwhen.lm.padding import pad
from howwhen.lm.residual import residuals
from howwhen.probes import Gate, SelfGate
from howwhen.settings import ElicitSettings

POSITIONS_PER_STEP = 512
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class LabelledAnswer:
    """What was decided at every position of one answer."""

    ids: tuple[int, ...]
    first: int
    """Position that predicts the answer's first token."""
    categories: tuple[int, ...]
    """Category steered with at each position from `first` on; -1 where nothing was decided."""


@dataclass(frozen=True)
class ProbeScores:
    """How well a probe foretells the decisions of answers it was not trained on."""

    precision: float
    """Share of its decisions that are decisions."""
    recall: float
    """Share of the decisions that it makes."""
    category_accuracy: float
    """Share of the decisions whose category it names right."""
    decisions: int
    positions: int


def label_positions(found: Sequence[Decisions], gate: Gate) -> list[LabelledAnswer]:
    """Recorded decisions as the probe learns them."""
    labelled = []
    for one in found:
        named = dict(zip(one.positions, gate.categorise(one.states).tolist(), strict=True))
        first = one.prompt - 1
        categories = tuple(named.get(p, -1) for p in range(first, len(one.ids) - 1))
        labelled.append(LabelledAnswer(one.ids, first, categories))
    return labelled


def train_self_gate(
    base: LanguageModel,
    layers: tuple[int, ...],
    size: int,
    train: Sequence[LabelledAnswer],
    held_out: Sequence[LabelledAnswer],
    settings: ElicitSettings,
) -> tuple[SelfGate, ProbeScores]:
    """Train a probe, and choose its threshold on answers held out.

    Args:
        base: the frozen base model.
        layers: 0-based blocks whose residuals it reads, concatenated.
        size: number of categories.
        train: answers to learn from.
        held_out: answers to choose the threshold on (best F1) and to score by.
        settings: steps and width.

    Raises:
        SteeringError: no decision to learn from, or none held out.
    """
    inputs, labels = _examples(base, layers, train, settings.batch_size)
    unseen, truth = _examples(base, layers, held_out, settings.batch_size)
    for name, found in (("training", labels), ("selection", truth)):
        if not (found >= 0).any():
            raise SteeringError(
                f"the {name} answers hold no decision, so a self-gate cannot be trained; collect "
                "more problems (--collect.limit), or ask whether these two models differ at all"
            )
    probe = _fit(base.name, layers, size, inputs, labels, settings)
    read = probe.read(unseen)
    probe = replace(probe, threshold=_best_threshold(read[:, 0], truth >= 0))
    return probe, _score(probe, read, truth)


def _fit(
    model: str,
    layers: tuple[int, ...],
    size: int,
    inputs: Float[Tensor, "n features"],
    labels: Int[Tensor, " n"],
    settings: ElicitSettings,
) -> SelfGate:
    generator = torch.Generator().manual_seed(settings.seeds[0])
    width, hidden = inputs.shape[1], settings.probe_hidden
    scale = 1 / inputs.std(0).clamp(min=1e-6)
    probe = SelfGate(
        model=model,
        layers=layers,
        mean=inputs.mean(0),
        scale=scale,
        hidden=nn.Parameter(torch.randn(hidden, width, generator=generator) / width**0.5),
        hidden_bias=nn.Parameter(torch.zeros(hidden)),
        outputs=nn.Parameter(torch.randn(size + 1, hidden, generator=generator) / hidden**0.5),
        outputs_bias=nn.Parameter(torch.zeros(size + 1)),
        threshold=0.0,
    )
    trained = (probe.hidden, probe.hidden_bias, probe.outputs, probe.outputs_bias)
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.01)
    for step in range(settings.probe_steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / settings.probe_steps)
        rows = torch.randint(len(inputs), (POSITIONS_PER_STEP,), generator=generator)
        loss = _loss(probe.read(inputs[rows]), labels[rows])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    names = ("hidden", "hidden_bias", "outputs", "outputs_bias")
    return replace(probe, **{name: getattr(probe, name).detach().clone() for name in names})


def _loss(read: Float[Tensor, "n outputs"], labels: Int[Tensor, " n"]) -> Tensor:
    is_decision = labels >= 0
    when = functional.binary_cross_entropy_with_logits(read[:, 0], is_decision.float())
    if not is_decision.any():
        return when
    which = functional.cross_entropy(read[is_decision, 1:], labels[is_decision])
    return when + which * is_decision.float().mean()


@torch.no_grad()
def _examples(
    base: LanguageModel,
    layers: tuple[int, ...],
    labelled: Sequence[LabelledAnswer],
    batch_size: int,
) -> tuple[Float[Tensor, "n features"], Int[Tensor, " n"]]:
    """Residuals of the base at every position of the answers, and what was decided there."""
    inputs, labels = [], []
    for start in range(0, len(labelled), batch_size):
        rows = labelled[start : start + batch_size]
        seen = residuals(base.model, layers, **pad([one.ids for one in rows]).inputs())
        for row, one in enumerate(rows):
            cut = slice(one.first, one.first + len(one.categories))
            inputs.append(torch.cat([seen[layer][row, cut].float() for layer in layers], dim=1))
            labels.append(torch.tensor(one.categories, dtype=torch.long))
    return torch.cat(inputs), torch.cat(labels)


def _best_threshold(log_odds: Float[Tensor, " n"], truth: Tensor) -> float:
    """The threshold with the best F1."""
    order = log_odds.argsort(descending=True)
    hits = truth[order].cumsum(0)
    f1 = 2 * hits / (torch.arange(1, len(order) + 1) + truth.sum())
    return float(log_odds[order[int(f1.argmax())]])


def _score(
    probe: SelfGate, read: Float[Tensor, "n outputs"], truth: Int[Tensor, " n"]
) -> ProbeScores:
    said, real = read[:, 0] >= probe.threshold, truth >= 0
    both = int((said & real).sum())
    named = read[real, 1:].argmax(1) == truth[real]
    return ProbeScores(
        precision=both / max(1, int(said.sum())),
        recall=both / int(real.sum()),
        category_accuracy=float(named.float().mean()),
        decisions=int(real.sum()),
        positions=len(truth),
    )
