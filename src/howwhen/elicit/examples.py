"""Decisions: where the base, reading the thinking model's own answer, would have gone elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from howwhen.errors import PairError, SteeringError
from howwhen.models import LanguageModel, pad
from howwhen.records import Rollout, Taxonomy
from howwhen.residual import reading


@dataclass(frozen=True)
class DecisionExample:
    """One rollout as the base reads it, with its decisions."""

    ids: tuple[int, ...]
    """The base's prompt, then the answer."""
    positions: tuple[int, ...]
    """Indices into `ids` at which to steer, increasing; position t predicts token t + 1."""
    categories: tuple[int, ...]
    """Category of the thinking model's residual at each of them."""

    @property
    def targets(self) -> tuple[int, ...]:
        """The token the thinking model wrote after each position."""
        return tuple(self.ids[position + 1] for position in self.positions)


@dataclass(frozen=True)
class Teacher:
    """What is needed to find decisions: both models and the taxonomy that names them."""

    base: LanguageModel
    thinking: LanguageModel
    taxonomy: Taxonomy

    def __post_init__(self) -> None:
        width = self.thinking.model.config.hidden_size
        if self.taxonomy.mean.shape[0] != width:
            raise SteeringError(
                f"the taxonomy reads residuals of width {self.taxonomy.mean.shape[0]}, but "
                f"{self.thinking.name} has width {width}; run discover with this model"
            )

    @torch.no_grad()
    def find_decisions(
        self, rollouts: Sequence[Rollout], questions: Sequence[str], batch_size: int
    ) -> list[DecisionExample]:
        """Teacher-force every rollout through both models (paper, second version, section 4).

        Returns:
            One example per rollout, in order; an example may have no decision.
        """
        examples: list[DecisionExample] = []
        for start in range(0, len(rollouts), batch_size):
            rows = slice(start, start + batch_size)
            examples += self._find(rollouts[rows], questions[rows])
        return examples

    def _find(self, rollouts: Sequence[Rollout], questions: Sequence[str]) -> list[DecisionExample]:
        base_prompts = [self.base.prompt_ids(question) for question in questions]
        thinking_prompts = [self.thinking.prompt_ids(question) for question in questions]
        _refuse_unknown_ids(self.base, rollouts)
        greedy = self._base_greedy(base_prompts, rollouts)
        category = self._categories(thinking_prompts, rollouts)
        examples = []
        for row, (rollout, prompt) in enumerate(zip(rollouts, base_prompts, strict=True)):
            first = len(prompt) - 1
            differs = [
                step
                for step, token in enumerate(rollout.ids)
                if token != greedy[row][first + step]
                and not (token in self.thinking.end_ids and greedy[row][first + step] in self.ends)
            ]
            shift = len(thinking_prompts[row]) - 1
            examples.append(
                DecisionExample(
                    ids=(*prompt, *rollout.ids),
                    positions=tuple(first + step for step in differs),
                    categories=tuple(category[row][shift + step] for step in differs),
                )
            )
        return examples

    @property
    def ends(self) -> frozenset[int]:
        """Tokens of either model that end an answer."""
        return self.base.end_ids | self.thinking.end_ids

    def _base_greedy(
        self, prompts: Sequence[Sequence[int]], rollouts: Sequence[Rollout]
    ) -> list[list[int]]:
        batch = pad([[*p, *r.ids] for p, r in zip(prompts, rollouts, strict=True)])
        logits = self.base.model(**batch.to(self.base.model.device).inputs()).logits
        rows: list[list[int]] = logits.argmax(2).tolist()
        return rows

    def _categories(
        self, prompts: Sequence[Sequence[int]], rollouts: Sequence[Rollout]
    ) -> list[list[int]]:
        batch = pad([[*p, *r.ids] for p, r in zip(prompts, rollouts, strict=True)])
        model = self.thinking.model
        with reading(model, [self.taxonomy.layer]) as seen:
            model(**batch.to(model.device).inputs())
        residual = seen[self.taxonomy.layer].float().cpu()
        rows: list[list[int]] = (
            self.taxonomy.categorise(residual.flatten(0, 1)).view(batch.ids.shape).tolist()
        )
        return rows


def _refuse_unknown_ids(base: LanguageModel, rollouts: Sequence[Rollout]) -> None:
    known = base.model.get_input_embeddings().weight.shape[0]
    for rollout in rollouts:
        if rollout.ids and max(rollout.ids) >= known:
            raise PairError(
                f"the answer to problem {rollout.problem_id} holds token id {max(rollout.ids)}, "
                f"but {base.name} embeds only ids below {known}; the pair cannot share this answer"
            )
