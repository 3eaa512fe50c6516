"""Disagreements on disk: shards in the step's folder, each of some answers and written whole.

A killed step resumes after its last shard, and only what is read of a shard is ever in memory.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from howwhen.elicit.decisions import Decisions, ProbeDraw, ProbeRows, find_decisions
from howwhen.elicit.examples import SoftTargets
from howwhen.errors import StoreError
from howwhen.formats.files import Json
from howwhen.lm.alignment import ModelPair
from howwhen.lm.models import LanguageModel
from howwhen.pipeline.keys import describe_model
from howwhen.pipeline.store import StepFolder
from howwhen.records import Rollout
from howwhen.settings import ElicitSettings

FOLDER = "decisions"
"""Of the shards of the collected answers, in the folder of the step."""


@dataclass(frozen=True)
class StoredDecisions:
    """The disagreements of some answers, read from their shards whenever they are gone through."""

    step: StepFolder
    folder: str
    rollouts: Sequence[Rollout]
    prompts: Sequence[Sequence[int]]
    """The base's prompt of every answer."""
    shard_rollouts: int
    """Answers whose disagreements share a file."""

    def __len__(self) -> int:
        return len(self.rollouts)

    def __iter__(self) -> Iterator[Decisions]:
        for number, rows in self._shards():
            tensors, _ = self.step.read_tensors(_name(self.folder, number))
            yield from _unpack(tensors, self.rollouts[rows], self.prompts[rows])

    @cached_property
    def steps(self) -> list[list[int]]:
        """Of every answer, the tokens that its disagreements lead to."""
        steps: list[list[int]] = []
        for number, _ in self._shards():
            counts: list[int] = self._column(number, "counts").tolist()
            steps += [part.tolist() for part in torch.split(self._column(number, "steps"), counts)]
        return steps

    @cached_property
    def unwritable(self) -> int:
        """Disagreements left out because the base may not write their token."""
        return sum(int(self._column(number, "banned").sum()) for number, _ in self._shards())

    def _column(self, shard: int, key: str) -> Tensor:
        return self.step.read_tensor(_name(self.folder, shard), key)

    def _shards(self) -> Iterator[tuple[int, slice]]:
        starts = range(0, len(self.rollouts), self.shard_rollouts)
        for number, start in enumerate(starts):
            yield number, slice(start, start + self.shard_rollouts)


@dataclass(frozen=True)
class Comparison:
    """Which answers are compared, by which models, and how."""

    rollouts: Sequence[Rollout]
    questions: Sequence[str]
    """What each of them answers."""
    layer: int
    """Block of the thinking model that the gate reads."""
    probe_layers: tuple[int, ...]
    """Blocks of the base that the self-gate reads, increasing."""
    settings: ElicitSettings
    is_own: bool = True
    """Whether the thinking model wrote the answers."""

    def described(self, base: LanguageModel, thinking: LanguageModel, one_sided: str) -> Json:
        """Everything that the shards depend on."""
        texts = hashlib.sha256()
        for question, rollout in zip(self.questions, self.rollouts, strict=True):
            texts.update(repr((question, rollout.ids)).encode())
        names = ("batch_size", "positions_per_pass", "logits_gib", "probe_positions")
        return {
            "base": describe_model(base),
            "thinking": describe_model(thinking),
            "answers": texts.hexdigest(),
            "layer": self.layer,
            "probe_layers": list(self.probe_layers),
            "is_own": self.is_own,
            "one_sided_tokens": one_sided,
            **{name: getattr(self.settings, name) for name in names},
        }


def read_decisions(
    step: StepFolder,
    folder: str,
    outlines: ModelPair,
    models: Callable[[], ModelPair],
    compared: Comparison,
    report: Callable[[int], None],
) -> StoredDecisions:
    """Compare both models on all answers, except those whose shard is there already.

    Args:
        step: folder of the step.
        folder: of the shards, in it: `00000.safetensors`, ... `described.json` says what was
            compared; shards of another comparison are removed.
        outlines: both models without their weights.
        models: loads them; not called if every shard is there.
        compared: the answers, and how they are compared.
        report: told the number of answers after each shard.

    Raises:
        PairError: an answer holds a token that the base cannot read.
        StoreError: a shard that is damaged, or of other answers.
    """
    how, rollouts = compared.settings, compared.rollouts
    described = compared.described(outlines.base, outlines.thinking, outlines.one_sided)
    step.claim(folder, described)
    prompts = [outlines.base.prompt_ids(question) for question in compared.questions]
    stored = StoredDecisions(step, folder, rollouts, prompts, how.batch_size)
    lengths = [len(rollout.ids) for rollout in rollouts]
    draw = ProbeDraw.of(compared.probe_layers, lengths, how.probe_positions)
    for number, rows in stored._shards():
        name = _name(folder, number)
        if (step.path / name).exists():
            _check_shard(step, name, len(rollouts[rows]))
        else:
            found = find_decisions(
                models(),
                compared.layer,
                rollouts[rows],
                compared.questions[rows],
                how,
                is_own=compared.is_own,
                probe=draw.part(rows),
            )
            step.write_tensors(name, _pack(found), {})
        report(min(rows.stop, len(rollouts)))
    return stored


def _name(folder: str, shard: int) -> str:
    return f"{folder}/{shard:05}.safetensors"


def _check_shard(step: StepFolder, name: str, expected: int) -> None:
    found = step.tensor_shapes(name).get("counts", ())
    if found != (expected,):
        raise StoreError(
            f"{step.path / name} holds the disagreements of {found[0] if found else 'no'} answers, "
            f"expected {expected}. Delete {step.path / name} and run again"
        )


def _pack(found: Sequence[Decisions]) -> dict[str, Tensor]:
    """The disagreements of some answers as the tensors of a shard."""

    def whole(numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int32)

    return {
        "counts": whole([len(one.positions) for one in found]),
        "steps": whole([p + 1 - one.prompt for one in found for p in one.positions]),
        "targets": whole([target for one in found for target in one.targets]),
        "states": torch.cat([one.states for one in found]),
        "soft_ids": torch.cat([one.soft.ids for one in found]).int(),
        "soft_probs": torch.cat([one.soft.probs for one in found]),
        "base_losses": torch.cat([one.base_losses for one in found]),
        "banned": whole([one.banned_targets for one in found]),
        "probe_counts": whole([len(one.probe.steps) for one in found]),
        "probe_steps": whole([step for one in found for step in one.probe.steps]),
        "features": torch.cat([one.probe.features for one in found]),
    }


def _unpack(
    tensors: dict[str, Tensor], rollouts: Sequence[Rollout], prompts: Sequence[Sequence[int]]
) -> Iterator[Decisions]:
    """The opposite of `_pack`.

    What outlives the shard is copied, since a view would keep the whole file in memory.
    """
    counts: list[int] = tensors["counts"].tolist()
    probed: list[int] = tensors["probe_counts"].tolist()
    by_decision = ("steps", "targets", "states", "soft_ids", "soft_probs")
    columns = {name: torch.split(tensors[name], counts) for name in by_decision}
    columns |= {name: torch.split(tensors[name], probed) for name in ("probe_steps", "features")}
    losses = torch.split(tensors["base_losses"], [len(rollout.ids) for rollout in rollouts])
    for row, (rollout, prompt) in enumerate(zip(rollouts, prompts, strict=True)):
        own = {name: column[row] for name, column in columns.items()}
        yield Decisions(
            ids=(*prompt, *rollout.ids),
            prompt=len(prompt),
            positions=tuple(len(prompt) - 1 + step for step in own["steps"].tolist()),
            targets=tuple(own["targets"].tolist()),
            states=own["states"],
            soft=SoftTargets(own["soft_ids"].long(), own["soft_probs"].clone()),
            base_losses=losses[row],
            banned_targets=int(tensors["banned"][row]),
            probe=ProbeRows(tuple(own["probe_steps"].tolist()), own["features"].clone()),
        )
