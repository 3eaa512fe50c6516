"""Disagreements: where the base would not have written what the thinking model wants.

Every answer is teacher-forced through both models. Their logits exist for some positions at a time,
and what a self-gate will read of the base is kept on the way.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from howwhen.elicit.examples import SoftTargets, SteeredWindow, TrainingExample
from howwhen.errors import PairError
from howwhen.lm.alignment import ModelPair
from howwhen.lm.logits import Head, chunks, split_forward
from howwhen.lm.models import LanguageModel
from howwhen.lm.padding import fitting, pad
from howwhen.lm.residual import capture_residuals
from howwhen.probes import Gate
from howwhen.records import Rollout
from howwhen.settings import ElicitSettings

TOP_TOKENS = 20
"""Likeliest tokens of the thinking model that are kept of every distribution."""


@dataclass(frozen=True)
class ProbeRows:
    """What a self-gate reads in one answer, at the positions drawn for it."""

    steps: tuple[int, ...]
    """Which tokens of the answer those positions predict, increasing."""
    features: Float[Tensor, "position features"]
    """The base's residuals there, concatenated over layers, in the base's own precision."""


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
    """Its residual at each, at the gate's layer, in its own precision."""
    soft: SoftTargets
    base_losses: Float[Tensor, " token"]
    """Of every token of the answer under the unsteered base, in nats."""
    banned_targets: int
    """Disagreements left out because the base may not write their token."""
    probe: ProbeRows

    def categories(self, gate: Gate) -> list[int]:
        """What a gate names them."""
        named: list[int] = gate.categorise(self.states.float()).tolist()
        return named

    def example(self, gate: Gate) -> TrainingExample:
        """The disagreements as windows of one position, named by a gate."""
        windows = tuple(
            SteeredWindow(position, position + 1, category)
            for position, category in zip(self.positions, self.categories(gate), strict=True)
        )
        return TrainingExample(self.ids, windows, self.targets, self.soft, self.prompt)


@dataclass(frozen=True)
class ProbeDraw:
    """Where a self-gate reads the answers: the base's layers, and the steps of every answer."""

    layers: tuple[int, ...] = ()
    """0-based blocks, in increasing order."""
    steps: Sequence[Sequence[int]] = field(default=())
    """Of every answer, increasing; empty for none."""

    @classmethod
    def of(cls, layers: tuple[int, ...], lengths: Sequence[int], count: int) -> "ProbeDraw":
        """Draw `count` of the tokens of all answers with equal chances, or all if there are fewer.

        Args:
            layers: 0-based blocks, in increasing order.
            lengths: of the answers, in tokens.
            count: how many tokens are drawn.
        """
        total, before = max(1, sum(lengths)), 0
        steps = []
        for number, length in enumerate(lengths):
            after = before + length
            share = min(after, after * count // total) - min(before, before * count // total)
            drawn = Random(f"probe-{number}").sample(range(length), min(length, share))
            steps.append(sorted(drawn))
            before = after
        return cls(layers, steps)

    def part(self, rows: slice) -> "ProbeDraw":
        """That of some of the answers."""
        return ProbeDraw(self.layers, self.steps[rows])


@torch.no_grad()
def find_decisions(
    models: ModelPair,
    layer: int,
    rollouts: Sequence[Rollout],
    questions: Sequence[str],
    settings: ElicitSettings,
    *,
    is_own: bool = True,
    probe: ProbeDraw | None = None,
    report: Callable[[int], None] | None = None,
) -> list[Decisions]:
    """Teacher-force every rollout through both models (paper, second version, section 4).

    Args:
        models: the pair.
        layer: block of the thinking model whose residual the gate will read.
        rollouts: the thinking model's answers.
        questions: what each answers.
        settings: how many rollouts, positions and logits are computed at a time.
        is_own: whether the thinking model wrote them. If so, it wants the tokens that are written,
            and otherwise those that it finds likeliest.
        probe: where the base's residuals are kept for a self-gate; nowhere by default.
        report: called with the number of rollouts read.

    Returns:
        One record per rollout, in order; it may hold no disagreement.

    Raises:
        PairError: an answer holds a token that the base cannot read.
    """
    _refuse_unknown_ids(models.base, rollouts)
    reading = _Reading(models, layer, settings, is_own, probe or ProbeDraw())
    prompts = [models.base.prompt_ids(question) for question in questions]
    others = [models.thinking.prompt_ids(question) for question in questions]
    sizes = [
        (max(len(prompt), len(other)) + len(rollout.ids),)
        for prompt, other, rollout in zip(prompts, others, rollouts, strict=True)
    ]
    found: list[Decisions] = []
    for rows in fitting(sizes, settings.positions_per_pass, settings.batch_size):
        found += reading.read(rollouts[rows], prompts[rows], others[rows], rows)
        if report is not None:
            report(len(found))
    return found


@dataclass(frozen=True)
class _Read:
    """What one model says of some answers, all tokens of which are in one row after another."""

    hidden: Float[Tensor, "token d_model"]
    """What its output embedding reads where each token was decided."""
    head: Head
    residuals: dict[int, list[Tensor]]
    """By layer, of every answer, (token, d_model)."""


@dataclass(frozen=True)
class _Reading:
    """Both models, and what is looked for."""

    models: ModelPair
    layer: int
    settings: ElicitSettings
    is_own: bool
    probe: ProbeDraw

    def read(
        self,
        rollouts: Sequence[Rollout],
        prompts: Sequence[Sequence[int]],
        others: Sequence[Sequence[int]],
        rows: slice,
    ) -> list[Decisions]:
        """The disagreements of answers that fit in one pass."""
        draw = self.probe.part(rows)
        base = _read(self.models.base, prompts, rollouts, draw.layers)
        thinking = _read(self.models.thinking, others, rollouts, (self.layer,))
        ids = [token for rollout in rollouts for token in rollout.ids]
        written = torch.tensor(ids, dtype=torch.long)
        greedy, losses = self._judge(base, written)
        wanted = written if self.is_own else self._likeliest(thinking)
        differs = self._where_they_differ(greedy, wanted)
        is_kept = differs & ~torch.isin(wanted, self.models.alignment.banned)
        soft = self._soften(thinking, is_kept)
        sizes = [len(rollout.ids) for rollout in rollouts]
        steps = [part.nonzero()[:, 0] for part in torch.split(is_kept, sizes)]
        counts = [len(part) for part in steps]
        columns = zip(
            torch.split(wanted, sizes),
            torch.split(differs, sizes),
            torch.split(losses, sizes),
            torch.split(soft.ids, counts),
            torch.split(soft.probs, counts),
            strict=True,
        )
        decisions = []
        for row, (tokens, different, nats, likely, probs) in enumerate(columns):
            prompt = prompts[row]
            own: list[int] = steps[row].tolist()
            decisions.append(
                Decisions(
                    ids=(*prompt, *rollouts[row].ids),
                    prompt=len(prompt),
                    positions=tuple(len(prompt) - 1 + step for step in own),
                    targets=tuple(tokens[steps[row]].tolist()),
                    states=_rows_of(thinking.residuals[self.layer][row], own),
                    soft=SoftTargets(likely, probs),
                    base_losses=nats,
                    banned_targets=int(different.sum()) - len(own),
                    probe=_probe_rows(base, draw, row),
                )
            )
        return decisions

    def _judge(
        self, base: _Read, written: Int[Tensor, " token"]
    ) -> tuple[Int[Tensor, " token"], Float[Tensor, " token"]]:
        """The base's greedy token at every step, and its loss on the one written, on the CPU."""
        greedy, losses = [], []
        for rows in self._chunks(self.models.base, len(written)):
            logits = base.head(base.hidden[rows])
            greedy.append(self.models.alignment.allowed(logits).argmax(1).cpu())
            answer = written[rows].to(logits.device)
            losses.append(functional.cross_entropy(logits, answer, reduction="none").cpu())
        return _joined(greedy, torch.long), _joined(losses, torch.float32)

    def _likeliest(self, thinking: _Read) -> Int[Tensor, " token"]:
        """The thinking model's greedy token at every step, on the CPU."""
        found = [
            self.models.alignment.allowed(thinking.head(thinking.hidden[rows])).argmax(1).cpu()
            for rows in self._chunks(self.models.thinking, len(thinking.hidden))
        ]
        return _joined(found, torch.long)

    def _soften(self, thinking: _Read, is_kept: Bool[Tensor, " token"]) -> SoftTargets:
        """The thinking model's likeliest tokens at some steps, on the CPU."""
        hidden = thinking.hidden[is_kept.to(thinking.hidden.device)]
        if not len(hidden):
            width = min(TOP_TOKENS, self.models.alignment.shared)
            return SoftTargets(torch.zeros(0, width, dtype=torch.long), torch.zeros(0, width))
        found = [
            top_k_targets(self.models.alignment.allowed(thinking.head(hidden[rows])))
            for rows in self._chunks(self.models.thinking, len(hidden))
        ]
        return SoftTargets(
            torch.cat([part.ids.cpu() for part in found]),
            torch.cat([part.probs.cpu() for part in found]),
        )

    def _chunks(self, model: LanguageModel, positions: int) -> Iterator[slice]:
        return chunks(positions, model.vocabulary_size, self.settings.logits_gib)

    def _where_they_differ(
        self, greedy: Int[Tensor, " token"], wanted: Int[Tensor, " token"]
    ) -> Bool[Tensor, " token"]:
        """Steps at which the base would write another token; two end tokens mean the same."""
        ends = torch.tensor(sorted(self.models.end_ids), dtype=torch.long)
        both_end = torch.isin(greedy, ends) & torch.isin(wanted, ends)
        return (greedy != wanted) & ~both_end


def top_k_targets(logits: Float[Tensor, "position vocabulary"]) -> SoftTargets:
    """The likeliest tokens of some distributions."""
    top = logits.topk(min(TOP_TOKENS, logits.shape[1]), dim=1)
    return SoftTargets(top.indices, top.values.softmax(1))


def _joined(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0, dtype=dtype)


def _rows_of(residual: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows, on the CPU."""
    index = torch.tensor(rows, dtype=torch.long, device=residual.device)
    return residual[index].cpu()


def _probe_rows(base: _Read, draw: ProbeDraw, row: int) -> ProbeRows:
    steps = draw.steps[row] if draw.layers else ()
    parts = [_rows_of(base.residuals[layer][row], steps) for layer in draw.layers]
    return ProbeRows(tuple(steps), torch.cat(parts, dim=1) if parts else torch.zeros(0, 0))


def _read(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    rollouts: Sequence[Rollout],
    layers: Sequence[int],
) -> _Read:
    """Run one model over prompts and answers, up to its output embedding."""
    texts = [[*p, *r.ids] for p, r in zip(prompts, rollouts, strict=True)]
    batch = pad(texts, device=model.device)
    with capture_residuals(model.model, layers) as captured:
        hidden, head = split_forward(model.model, **batch.inputs(), use_cache=False)
    cuts = [
        slice(len(prompt) - 1, len(prompt) - 1 + len(rollout.ids))
        for prompt, rollout in zip(prompts, rollouts, strict=True)
    ]
    return _Read(
        torch.cat([hidden[row, cut] for row, cut in enumerate(cuts)]),
        head,
        {layer: [captured[layer][row, cut] for row, cut in enumerate(cuts)] for layer in layers},
    )


def _refuse_unknown_ids(base: LanguageModel, rollouts: Sequence[Rollout]) -> None:
    known = base.model.get_input_embeddings().weight.shape[0]
    for rollout in rollouts:
        if rollout.ids and max(rollout.ids) >= known:
            raise PairError(
                f"the answer to problem {rollout.problem_id} holds token id {max(rollout.ids)}, "
                f"but {base.name} embeds only ids below {known}; the pair cannot share this answer"
            )
