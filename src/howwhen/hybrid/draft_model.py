"""A third, small model that writes ahead for both others to read (Leviathan et al. 2023)."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from howwhen.hybrid.scoring import Scoring, readable_by
from howwhen.hybrid.streams import open_streams
from howwhen.lm.models import LanguageModel
from howwhen.settings import Compilation

MAX_ROOM = 2**30
"""Room in a context without an end."""


class DraftModel:
    """A draft model with what it has read of every stream.

    It reads the base's prompts, since the base writes every token.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        compilation: Compilation | None = None,
    ) -> None:
        ids = [readable_by(model, torch.tensor(prompt)).tolist() for prompt in prompts]
        if model.context is not None:  # of a longer prompt it reads the end
            most = model.context
            ids = [own if len(own) < most else own[-(most // 2 + 1) :] for own in ids]
        self.model = model
        self._streams = open_streams(model, ids, compilation=compilation)
        self._unread: list[list[int]] = [own[-1:] for own in ids]
        self._ahead = 0
        """Tokens of its own that it has read."""

    @property
    def room(self) -> int:
        """How many tokens it may write before its context is full."""
        if self.model.context is None:
            return MAX_ROOM
        pairs = zip(self._streams.lengths, self._unread, strict=True)
        return self.model.context - max(length + len(unread) for length, unread in pairs)

    def write(
        self, count: int, scoring: Scoring, noise: Sequence[Tensor | None]
    ) -> Int[Tensor, "stream count"]:
        """The tokens that it would write next, one after the other.

        Args:
            count: how many.
            scoring: of the session.
            noise: at every position, what sampling adds to the scores.
        """
        longest = max(map(len, self._unread))
        padded = [[*own, *own[-1:] * (longest - len(own))] for own in self._unread]
        streams, device = self._streams, self._streams.device
        streams.extend(readable_by(self.model, torch.tensor(padded, device=device)))
        streams.rollback([longest - len(own) for own in self._unread])
        last = torch.tensor([len(own) - 1 for own in self._unread], device=device)
        logits = streams.logits[torch.arange(len(last), device=device), last]
        written: list[Tensor] = []
        for offset in range(count):
            if offset:
                streams.extend(readable_by(self.model, written[-1])[:, None])
                logits = streams.logits[:, -1]
            scores = scoring.scores(self.model, logits[:, None], [noise[offset]])
            written.append(scores[:, 0].argmax(1))
        self._unread = [[] for _ in self._unread]
        self._ahead = count - 1
        return torch.stack(written, 1)

    def note(self, ids: Sequence[Sequence[int]], agreed: Sequence[int]) -> None:
        """Take in what was written, and forget what was not.

        Args:
            ids: tokens that came to every stream in a round; none where it has ended.
            agreed: how many of them are those that were drafted in this round, by whomever.
        """
        kept = [min(self._ahead, count) for count in agreed]
        self._streams.rollback([self._ahead - count for count in kept])
        for own, new, count in zip(self._unread, ids, kept, strict=True):
            own += new[count:]
            if not own:
                own.append(0)
        self._streams.shorten([row for row, new in enumerate(ids) if not new])
        self._ahead = 0

    def put(self, opened: "DraftModel", rows: Sequence[int]) -> None:
        """Go on with the streams of another one, in place of some or as further ones."""
        self._streams.put(opened._streams, rows)
        for row, own in zip(rows, opened._unread, strict=True):
            self._unread[row : row + 1] = [own]

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these streams."""
        self._streams.select(rows)
        self._unread = [self._unread[row] for row in rows]
