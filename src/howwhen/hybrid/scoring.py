"""What a written token is the argmax of, and which tokens a model can read."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from howwhen.hybrid.sampling import Sampler
from howwhen.hybrid.streams import Streams
from howwhen.lm.alignment import ModelPair
from howwhen.lm.models import LanguageModel
from howwhen.lm.noise import gumbel_noise

Answer = Sequence[int]
"""Token ids of an answer."""


@dataclass(frozen=True)
class Scoring:
    """The same for all models of a session, so that they draw the same random numbers."""

    models: ModelPair
    sampler: Sampler
    seed: int
    """Of the sampling."""
    allows_banned_tokens: bool
    """Whether a rung may write tokens that only one model knows."""
    device: torch.device
    """Where random numbers are made."""

    def scores(
        self,
        model: LanguageModel,
        logits: Float[Tensor, "n g vocabulary"],
        noise: Sequence[Tensor | None],
    ) -> Float[Tensor, "n g shared"]:
        """Scores of the tokens that may be written, under one model.

        Args:
            model: whose logits these are.
            logits: of all its tokens.
            noise: at every position, what `noise` returned.
        """
        logits = self.allowed(model, logits)
        columns = [
            self.sampler.scores(logits[:, offset], numbers[:, : logits.shape[2]].to(logits.device))
            for offset, numbers in enumerate(noise)
            if numbers is not None
        ]
        return torch.stack(columns, 1) if columns else logits

    def allowed(
        self, model: LanguageModel, logits: Float[Tensor, "n g vocabulary"]
    ) -> Float[Tensor, "n g shared"]:
        """The logits of the tokens that may be written, under one model."""
        if self.allows_banned_tokens:
            return model.without_padding(logits)[..., : self._widest]
        missing = self.models.alignment.shared - logits.shape[2]
        if missing > 0:  # a draft model with fewer tokens
            logits = functional.pad(logits, (0, missing), value=-torch.inf)
        allowed = self.models.alignment.allowed(logits.flatten(0, 1))
        return allowed.view(*logits.shape[:2], -1)

    def noise(
        self, names: Sequence[str], positions: Sequence[int]
    ) -> Float[Tensor, "stream vocabulary"] | None:
        """What sampling adds to the scores at one position of each answer; None if greedy.

        Args:
            names: of the problems.
            positions: tokens of their answers that come before.
        """
        if self.sampler.is_greedy:
            return None
        return gumbel_noise(self.seed, list(names), list(positions), self._widest, self.device)

    @cached_property
    def _widest(self) -> int:
        """Tokens that either model of the pair can write. A draft model may have more."""
        both = (self.models.base, self.models.thinking)
        return max(int(model.model.get_output_embeddings().weight.shape[0]) for model in both)

    def readable(self, tokens: Tensor, streams: Streams) -> Tensor:
        """Tokens as a model can read them: an id without an embedding is read as an end token.

        Only the thinking model's own rung writes such ids, and there the base's opinion is of no
        consequence.
        """
        tokens = tokens.to(streams.device)
        if not self.allows_banned_tokens:
            return tokens
        return readable_by(streams.model, tokens)

    def readable_part(self, proposal: Answer) -> Answer:
        """A proposal up to the first token that only one of the models knows."""
        shared = self.models.alignment.shared
        if self.allows_banned_tokens or all(token < shared for token in proposal):
            return proposal
        return proposal[: next(n for n, token in enumerate(proposal) if token >= shared)]


def readable_by(model: LanguageModel, tokens: Tensor) -> Tensor:
    """Tokens with an end token for each that has no embedding in a model."""
    rows = model.model.get_input_embeddings().weight.shape[0]
    return torch.where(tokens < rows, tokens, min(model.end_ids, default=0))
