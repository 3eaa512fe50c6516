"""The semantics of the hybrid and of its training, written for clarity and nothing else.

No cache, no batches, no padding, no blocks: one full forward pass per model, token and candidate.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from howwhen.hybrid.sampling import Sampler
from howwhen.hybrid.strength import LEARNED, Strength, Window
from howwhen.lm.alignment import ModelPair
from howwhen.lm.models import LanguageModel
from howwhen.lm.noise import gumbel_noise
from howwhen.lm.residual import add_to_residual, residuals
from howwhen.probes import Gate
from howwhen.records import Problem
from howwhen.settings import HybridSettings
from howwhen.vectors import VectorSet

Deltas = dict[int, Tensor]
"""What is added to the residual, by position."""


def next_logits(model: LanguageModel, ids: list[int]) -> Tensor:
    """Logits of the token after `ids`, (vocabulary,)."""
    logits: Tensor = model.model(input_ids=torch.tensor([ids])).logits[0, -1]
    return logits


def residual_at(model: LanguageModel, ids: list[int], layer: int) -> Tensor:
    """Unsteered residual of every position, (position, d_model)."""
    return residuals(model.model, [layer], input_ids=torch.tensor([ids]))[layer][0]


def next_logits_with(model: LanguageModel, ids: list[int], layer: int, deltas: Deltas) -> Tensor:
    """Logits of the token after `ids` with something added at some positions."""

    def edit(residual: Tensor) -> Tensor:
        added = torch.zeros_like(residual)
        for position, delta in deltas.items():
            added[0, position] = delta
        return added

    with add_to_residual(model.model, layer, edit):
        return next_logits(model, ids)


def steered_next_logits(
    model: LanguageModel, ids: list[int], vectors: VectorSet, category: int
) -> Tensor:
    """Logits of the token after `ids` when only the last position is steered, (vocabulary,)."""
    last = residual_at(model, ids, vectors.layer)[-1:]
    delta = vectors.delta(last, torch.tensor([category]))[0]
    return next_logits_with(model, ids, vectors.layer, {len(ids) - 1: delta})


class NaiveToken(NamedTuple):
    id: int
    category: int | None
    tried: tuple[tuple[float, int, int], ...]
    """Strength, window and token of every candidate."""


@dataclass
class NaiveHybrid:
    """The full hybrid, token by token."""

    models: ModelPair
    gate: Gate
    vectors: VectorSet
    settings: HybridSettings
    strength: Strength = LEARNED
    standing: Deltas = field(default_factory=dict)
    """Steering that stays, under the persistent policy."""

    def answer(self, problem: Problem) -> list[NaiveToken]:
        """The hybrid's answer to one problem."""
        prompt = self.models.base.prompt_ids(problem.question)
        other = self.models.thinking.prompt_ids(problem.question)
        self.standing = {}
        tokens: list[NaiveToken] = []
        while len(tokens) < self.settings.max_new_tokens:
            said = [token.id for token in tokens]
            tokens.append(self.next(problem, prompt, said, other + said))
            if tokens[-1].id in self.models.end_ids:
                break
        return tokens

    def next(
        self, problem: Problem, prompt: list[int], said: list[int], thinking_ids: list[int]
    ) -> NaiveToken:
        ids, layer = prompt + said, self.vectors.layer
        plain = next_logits_with(self.models.base, ids, layer, self.standing)
        thinking = next_logits(self.models.thinking, thinking_ids)
        token, wanted = (self.pick(one, problem, len(said)) for one in (plain, thinking))
        if token == wanted or {token, wanted} <= self.models.end_ids:
            return NaiveToken(token, None, ())
        state = residual_at(self.models.thinking, thinking_ids, self.gate.layer)[-1:]
        category = int(self.gate.categorise(state)[0])
        tried, best, best_score, best_deltas = [], -1, -torch.inf, {}
        for strength, window in self.strength.candidates:
            deltas = self.deltas(ids, len(prompt), category, strength, window)
            everything = {**self.standing, **deltas}
            steered = next_logits_with(self.models.base, ids, layer, everything)
            one = self.pick(steered, problem, len(said))
            tried.append((strength, len(deltas), one))
            judge = plain if self.strength.picked_by == "base" else thinking
            score = float(judge.log_softmax(0)[one])
            if score > best_score:
                best, best_score, best_deltas = one, score, everything
        if self.settings.cache_policy == "persistent":
            self.standing = best_deltas
        return NaiveToken(best, category, tuple(tried))

    def deltas(
        self, ids: list[int], prompt: int, category: int, strength: float, window: Window
    ) -> Deltas:
        first = {"everything": 0, "answer": prompt - 1}.get(str(window))
        if first is None:
            of_text = str(window).startswith("text-")
            number = int(str(window).removeprefix("text-"))
            first = max(0 if of_text else prompt - 1, len(ids) - number)
        residual = residual_at(self.models.base, ids, self.vectors.layer)[first:]
        categories = torch.full((len(residual),), category)
        added = strength * self.vectors.delta(residual, categories)
        return {first + offset: delta for offset, delta in enumerate(added)}

    def pick(self, logits: Tensor, problem: Problem, position: int) -> int:
        sampler = Sampler(self.settings.temperature, self.settings.top_p)
        noise = None
        if not sampler.is_greedy:
            noise = gumbel_noise(self.settings.seed, [problem.id], [position], len(logits))
        allowed = self.models.alignment.allowed(logits[None])
        return int(sampler.scores(allowed, noise)[0].argmax())
