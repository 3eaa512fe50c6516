"""The self-gate: a probe on the base's own residual that predicts disagreements and their category.

It learns from recorded disagreements, in the thinking model's answers and in a hybrid's, and lets a
hybrid run without any thinking model (a probe gate, or router).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from howwhen.elicit.examples import Decisions
from howwhen.elicit.report import ProbeScores
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
    """The category due at every position of one answer."""

    ids: tuple[int, ...]
    first: int
    """Position that predicts the answer's first token."""
    categories: tuple[int, ...]
    """Category at each position from `first` on; -1 where the two models agree."""


def label_positions(found: Sequence[Decisions], gate: Gate) -> list[LabelledAnswer]:
    """Recorded disagreements as the probe learns them."""
    labelled = []
    for answer in found:
        named = dict(zip(answer.positions, gate.categorise(answer.states).tolist(), strict=True))
        first = answer.prompt - 1
        categories = tuple(named.get(p, -1) for p in range(first, len(answer.ids) - 1))
        labelled.append(LabelledAnswer(answer.ids, first, categories))
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
    """Residuals of the base at every position of the answers, and the category due there."""
    inputs, labels = [], []
    for start in range(0, len(labelled), batch_size):
        rows = labelled[start : start + batch_size]
        batch = pad([answer.ids for answer in rows], device=base.device)
        captured = residuals(base.model, layers, **batch.inputs())
        for row, answer in enumerate(rows):
            cut = slice(answer.first, answer.first + len(answer.categories))
            parts = [captured[layer][row, cut].float().cpu() for layer in layers]
            inputs.append(torch.cat(parts, dim=1))
            labels.append(torch.tensor(answer.categories, dtype=torch.long))
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
    predicted, is_decision = read[:, 0] >= probe.threshold, truth >= 0
    both = int((predicted & is_decision).sum())
    is_right = read[is_decision, 1:].argmax(1) == truth[is_decision]
    return ProbeScores(
        precision=both / max(1, int(predicted.sum())),
        recall=both / int(is_decision.sum()),
        category_accuracy=float(is_right.float().mean()),
        decisions=int(is_decision.sum()),
        positions=len(truth),
    )
