"""What vectors are trained on: where to steer the base, and the tokens wanted there.

Both methods give the same kind of example. A `decision` (second version) is a window of one
position: a disagreement, at which the base would not have written the thinking model's token. A
`span` (first version) is the window of a whole sentence.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from howwhen.errors import PairError
from howwhen.lm.alignment import ModelPair
from howwhen.lm.models import LanguageModel
from howwhen.lm.padding import pad
from howwhen.lm.residual import capture_residuals
from howwhen.probes import Gate
from howwhen.records import Rollout

TOP_TOKENS = 20
"""Likeliest tokens of the thinking model that are kept of every distribution."""
LOGIT_BYTES = 2**28
"""About how much memory the logits of answers read at a time may take."""


class SteeredWindow(NamedTuple):
    """Half-open range of positions to steer; position t predicts token t + 1."""

    start: int
    end: int
    category: int


@dataclass(frozen=True)
class SoftTargets:
    """What the thinking model would write at some positions: its likeliest tokens."""

    ids: Int[Tensor, "position top"]
    probs: Float[Tensor, "position top"]
    """They add up to 1 over the tokens kept."""


@dataclass(frozen=True, eq=False)
class TrainingExample:
    """One text as the base reads it, and where to steer it."""

    ids: tuple[int, ...]
    """The base's prompt, then (part of) an answer."""
    windows: tuple[SteeredWindow, ...]
    """Disjoint, in order."""
    targets: tuple[int, ...]
    """Token wanted after each steered position, window by window."""
    soft: SoftTargets | None = None
    """The same as distributions, where known."""
    prompt: int = 0
    """Tokens of the base's prompt: texts that share them answer the same question."""

    @property
    def positions(self) -> tuple[int, ...]:
        """Every steered position, window by window."""
        return tuple(p for window in self.windows for p in range(window.start, window.end))

    @property
    def categories(self) -> tuple[int, ...]:
        """Category of every steered position."""
        return tuple(w.category for w in self.windows for _ in range(w.start, w.end))


@dataclass(frozen=True, eq=False)
class Decisions:
    """The disagreements of one answer, before a gate has named them."""

    ids: tuple[int, ...]
    """The base's prompt, then the answer."""
    prompt: int
    """Tokens of the base's prompt."""
    positions: tuple[int, ...]
    """Indices into `ids` at which to steer, increasing."""
    targets: tuple[int, ...]
    """The thinking model's token after each."""
    states: Float[Tensor, "decision d_model"]
    """Its residual at each, at the gate's layer."""
    soft: SoftTargets
    base_losses: tuple[float, ...]
    """Of every token of the answer under the unsteered base, in nats."""
    banned_targets: int
    """Disagreements left out because the base may not write their token."""

    def example(self, gate: Gate) -> TrainingExample:
        """The disagreements as windows of one position, named by a gate."""
        categories = gate.categorise(self.states).tolist() if self.positions else []
        windows = tuple(
            SteeredWindow(position, position + 1, category)
            for position, category in zip(self.positions, categories, strict=True)
        )
        return TrainingExample(self.ids, windows, self.targets, self.soft, self.prompt)


@torch.no_grad()
def find_decisions(
    models: ModelPair,
    layer: int,
    rollouts: Sequence[Rollout],
    questions: Sequence[str],
    batch_size: int,
    *,
    is_own: bool = True,
    report: Callable[[int], None] | None = None,
) -> list[Decisions]:
    """Teacher-force every rollout through both models (paper, second version, section 4).

    Args:
        models: the pair.
        layer: block of the thinking model whose residual the gate will read.
        rollouts: the thinking model's answers.
        questions: what each answers.
        batch_size: rollouts read at a time.
        is_own: whether the thinking model wrote them. If so, it wants the tokens that are written,
            and otherwise those that it finds likeliest.
        report: called with the number of rollouts read.

    Returns:
        One record per rollout, in order; it may hold no disagreement.

    Raises:
        PairError: an answer holds a token that the base cannot read.
    """
    _refuse_unknown_ids(models.base, rollouts)
    found: list[Decisions] = []
    while len(found) < len(rollouts):
        size = _that_fit(models, rollouts[len(found) : len(found) + batch_size])
        rows = slice(len(found), len(found) + size)
        found += _find(models, layer, rollouts[rows], questions[rows], is_own)
        if report is not None:
            report(len(found))
    return found


def _that_fit(models: ModelPair, rollouts: Sequence[Rollout]) -> int:
    """How many rollouts can be read at a time, by the memory that their logits take."""
    longest = max(len(rollout.ids) for rollout in rollouts) + 1
    return min(len(rollouts), max(1, LOGIT_BYTES // (longest * models.alignment.shared * 4)))


def _find(
    models: ModelPair,
    layer: int,
    rollouts: Sequence[Rollout],
    questions: Sequence[str],
    is_own: bool,
) -> list[Decisions]:
    prompts = [models.base.prompt_ids(question) for question in questions]
    others = [models.thinking.prompt_ids(question) for question in questions]
    base_logits, _ = _read(models.base, prompts, rollouts, None)
    thinking_logits, states = _read(models.thinking, others, rollouts, layer)
    banned = frozenset(models.alignment.banned.tolist())
    decisions = []
    for row, (rollout, prompt) in enumerate(zip(rollouts, prompts, strict=True)):
        ours = models.alignment.allowed(base_logits[row]).argmax(1).tolist()
        theirs = models.alignment.allowed(thinking_logits[row]).cpu()
        wanted = list(rollout.ids) if is_own else theirs.argmax(1).tolist()
        differs = _where_they_differ(models, ours, wanted)
        kept = [step for step in differs if wanted[step] not in banned]
        answer = torch.tensor(rollout.ids)
        ours_of = base_logits[row]
        losses = torch.nn.functional.cross_entropy(
            ours_of, answer.to(ours_of.device), reduction="none"
        )
        decisions.append(
            Decisions(
                ids=(*prompt, *rollout.ids),
                prompt=len(prompt),
                positions=tuple(len(prompt) - 1 + step for step in kept),
                targets=tuple(wanted[step] for step in kept),
                states=states[row].cpu()[kept],
                soft=top_k_targets(theirs[kept]),
                base_losses=tuple(losses.tolist()),
                banned_targets=len(differs) - len(kept),
            )
        )
    return decisions


def top_k_targets(logits: Float[Tensor, "position vocabulary"]) -> SoftTargets:
    """The likeliest tokens of some distributions."""
    top = logits.topk(min(TOP_TOKENS, logits.shape[1]), dim=1)
    return SoftTargets(top.indices, top.values.softmax(1))


def _where_they_differ(models: ModelPair, greedy: list[int], wanted: list[int]) -> list[int]:
    """Steps at which the base would write another token; two end tokens mean the same."""
    return [
        step
        for step, (ours, token) in enumerate(zip(greedy, wanted, strict=True))
        if ours != token and not {ours, token} <= models.end_ids
    ]


def _read(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    rollouts: Sequence[Rollout],
    layer: int | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Logits of every answer token, (token, vocabulary), and residuals where they were decided."""
    texts = [[*p, *r.ids] for p, r in zip(prompts, rollouts, strict=True)]
    batch = pad(texts, device=model.device)
    layers = [] if layer is None else [layer]
    with capture_residuals(model.model, layers) as captured:
        logits = model.model(**batch.inputs()).logits
    cuts = [
        slice(len(prompt) - 1, len(prompt) - 1 + len(rollout.ids))
        for prompt, rollout in zip(prompts, rollouts, strict=True)
    ]
    residual = logits[..., :0] if layer is None else captured[layer]
    parts = [
        [tensor[row, cut].float().clone() for row, cut in enumerate(cuts)]
        for tensor in (logits, residual)
    ]
    return parts[0], parts[1]


def _refuse_unknown_ids(base: LanguageModel, rollouts: Sequence[Rollout]) -> None:
    known = base.model.get_input_embeddings().weight.shape[0]
    for rollout in rollouts:
        if rollout.ids and max(rollout.ids) >= known:
            raise PairError(
                f"the answer to problem {rollout.problem_id} holds token id {max(rollout.ids)}, "
                f"but {base.name} embeds only ids below {known}; the pair cannot share this answer"
            )
