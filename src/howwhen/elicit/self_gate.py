"""The self-gate: a probe on the base's own residual that predicts disagreements and their category.

It learns from recorded disagreements, in the thinking model's answers and in a hybrid's, and lets a
hybrid run without any thinking model (a probe gate, or router).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from howwhen.elicit.decisions import Decisions
from howwhen.elicit.report import ProbeScores
from howwhen.errors import SteeringError
from howwhen.probes import Gate, SelfGate, in_parts
from howwhen.settings import ElicitSettings

POSITIONS_PER_STEP = 512
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class ProbeData:
    """What a probe learns from, or is scored on."""

    inputs: Float[Tensor, "position features"]
    """The base's residuals, concatenated over layers, in its own precision."""
    labels: Int[Tensor, " position"]
    """The category due there; -1 where the two models agree."""

    @classmethod
    def of(cls, found: Iterable[Decisions], gate: Gate) -> "ProbeData":
        """The positions drawn of some answers, whose disagreements a gate names.

        Args:
            found: gone through once; only what is drawn of an answer is kept.
            gate: names them.
        """
        inputs, labels = [], []
        for answer in found:
            if not answer.probe.steps:
                continue
            named = dict(zip(answer.positions, answer.categories(gate), strict=True))
            first = answer.prompt - 1
            due = [named.get(first + step, -1) for step in answer.probe.steps]
            inputs.append(answer.probe.features)
            labels.append(torch.tensor(due, dtype=torch.long))
        if not inputs:
            return cls(torch.zeros(0, 0), torch.zeros(0, dtype=torch.long))
        return cls(_gathered(inputs), torch.cat(labels))

    def __add__(self, other: "ProbeData") -> "ProbeData":
        if not (len(self.labels) and len(other.labels)):
            return self if len(self.labels) else other
        return ProbeData(
            torch.cat([self.inputs, other.inputs]), torch.cat([self.labels, other.labels])
        )

    @property
    def decisions(self) -> int:
        """Positions at which the two models disagree."""
        return int((self.labels >= 0).sum())

    def moments(self) -> tuple[Float[Tensor, " features"], Float[Tensor, " features"]]:
        """Mean and standard deviation of every feature, summed in float64."""
        count = len(self.labels)
        mean = torch.stack([part.double().sum(0) for part in in_parts(self.inputs)]).sum(0) / count
        squares = [(part.double() - mean).square().sum(0) for part in in_parts(self.inputs)]
        deviation = (torch.stack(squares).sum(0) / max(1, count - 1)).sqrt()
        return mean.float(), deviation.float()

    def read(self, probe: SelfGate) -> Float[Tensor, "position outputs"]:
        """What a probe says at every position."""
        return torch.cat([probe.read(part.float()) for part in in_parts(self.inputs)])


def _gathered(parts: list[Tensor]) -> Tensor:
    """All rows in one tensor; the list is emptied on the way, so that both never exist whole."""
    whole = parts[0].new_empty(sum(map(len, parts)), parts[0].shape[1])
    end = len(whole)
    while parts:
        part = parts.pop()
        whole[end - len(part) : end] = part
        end -= len(part)
    return whole


def train_self_gate(
    base: str,
    layers: tuple[int, ...],
    size: int,
    train: ProbeData,
    held_out: ProbeData,
    settings: ElicitSettings,
) -> tuple[SelfGate, ProbeScores]:
    """Train a probe, and choose its threshold on answers held out.

    Args:
        base: name of the frozen base model.
        layers: 0-based blocks whose residuals it reads, concatenated.
        size: number of categories.
        train: what it learns from.
        held_out: what its threshold is chosen on (best F1), and its scores are of.
        settings: steps and width.

    Raises:
        SteeringError: no decision to learn from, or none held out.
    """
    for name, data in (("training", train), ("selection", held_out)):
        if not data.decisions:
            raise SteeringError(
                f"the {name} answers hold no decision, so a self-gate cannot be trained; collect "
                "more problems (--collect.limit), or ask whether these two models differ at all"
            )
    probe = _fit(base, layers, size, train, settings)
    read = held_out.read(probe)
    probe = replace(probe, threshold=_best_threshold(read[:, 0], held_out.labels >= 0))
    return probe, _score(probe, read, held_out.labels)


def _fit(
    model: str,
    layers: tuple[int, ...],
    size: int,
    data: ProbeData,
    settings: ElicitSettings,
) -> SelfGate:
    generator = torch.Generator().manual_seed(settings.seeds[0])
    width, hidden = data.inputs.shape[1], settings.probe_hidden
    mean, deviation = data.moments()
    probe = SelfGate(
        model=model,
        layers=layers,
        mean=mean,
        scale=1 / deviation.clamp(min=1e-6),
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
        rows = torch.randint(len(data.labels), (POSITIONS_PER_STEP,), generator=generator)
        loss = _loss(probe.read(data.inputs[rows].float()), data.labels[rows])
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
