"""Guesses of what comes next, at almost no cost: phrases of the text so far and of known answers.

A guess is what followed the last few tokens before, in the same text or in answers that the
thinking model gave to other problems. Both models read guesses in one pass, so that a wrong one
costs time and changes nothing (prompt lookup decoding, Saxena 2023; retrieval, He et al. 2023).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from howwhen.hybrid.block_size import Rate

ORDERS = (8, 5, 3, 2)
"""Numbers of last tokens that are looked up, the longest first."""
MAX_TOKENS = 2_000_000
"""Tokens of known answers that are taken in."""
_FACTOR = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def _hash(tokens: Sequence[int]) -> int:
    value = len(tokens)
    for token in tokens:
        value = (value * _FACTOR + token + 1) & _MASK
    return value


class Phrases:
    """What most often follows 8, 5, 3 or 2 tokens in known answers."""

    def __init__(self, answers: Iterable[Sequence[int]]) -> None:
        texts = list(_up_to(answers, MAX_TOKENS))
        self._tables = {order: _table(texts, order) for order in ORDERS}

    def longest(self, last: Sequence[int]) -> tuple[int, int, float] | None:
        """What most often followed the last tokens, as many of them as ever occurred.

        Returns:
            How many these are, the token that followed, and its share of all that followed; None
            if not even two of them occurred.
        """
        for order in ORDERS:
            if len(last) < order:
                continue
            hashes, following, shares = self._tables[order]
            wanted = np.uint64(_hash(last[-order:]))
            place = int(hashes.searchsorted(wanted))
            if place < len(hashes) and hashes[place] == wanted:
                return order, int(following[place]), float(shares[place])
        return None


def _up_to(answers: Iterable[Sequence[int]], most: int) -> Iterator[NDArray[np.uint64]]:
    taken = 0
    for answer in answers:
        if taken >= most:
            return
        taken += len(answer)
        yield np.asarray(answer, dtype=np.uint64)


Table = tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.float32]]
"""Hashes in order; for each, the token that follows it most often, and its share."""


def _table(texts: Sequence[NDArray[np.uint64]], order: int) -> Table:
    hashes, following = [], []
    for text in texts:
        count = len(text) - order
        if count <= 0:
            continue
        value = np.full(count, order, dtype=np.uint64)
        for offset in range(order):
            value = value * np.uint64(_FACTOR) + text[offset : offset + count] + np.uint64(1)
        hashes.append(value)
        following.append(text[order:].astype(np.int32))
    if not hashes:
        return np.zeros(0, np.uint64), np.zeros(0, np.int32), np.zeros(0, np.float32)
    every: NDArray[Any] = np.rec.fromarrays([np.concatenate(hashes), np.concatenate(following)])
    pairs, counts = np.unique(every, return_counts=True)
    keys, tokens = pairs["f0"], pairs["f1"]
    best = np.lexsort((tokens, -counts, keys))  # by hash, the most frequent first
    unique, starts = np.unique(keys[best], return_index=True)
    totals = np.add.reduceat(counts[best], starts)
    return unique, tokens[best][starts], (counts[best][starts] / totals).astype(np.float32)


Kind = tuple[str, int, int]
"""Where a guess comes from, how many tokens it was looked up by, and how sure its source is."""


@dataclass(frozen=True)
class Guess:
    """One token that may come next."""

    token: int
    kind: Kind


class Text:
    """Prompt and answer so far, and what followed some tokens in it last."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens: list[int] = []
        self._followed: dict[tuple[int, ...], int] = {}
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Take in more tokens."""
        for token in tokens:
            last = self.tokens[-max(ORDERS) :]
            for order in ORDERS:
                if len(last) >= order:
                    self._followed[tuple(last[-order:])] = token
            self.tokens.append(token)

    def longest(self, last: Sequence[int]) -> tuple[int, int] | None:
        """What followed the last tokens when they last occurred, as many of them as ever did.

        Returns:
            How many these are, and the token that followed; None if not even two occurred.
        """
        for order in ORDERS:
            seen = self._followed.get(tuple(last[-order:])) if len(last) >= order else None
            if seen is not None:
                return order, seen
        return None


@dataclass
class Guesser:
    """Guesses how texts go on, and learns which kinds of guesses come true."""

    phrases: Phrases | None = None
    rates: dict[Kind, Rate] = field(default_factory=dict)
    """How often each kind was right."""

    def guess(self, text: Text, count: int, ahead: Sequence[int] = ()) -> list[Guess]:
        """Up to so many tokens that may come next in a text, if these come first."""
        last = [*text.tokens[-max(ORDERS) :], *ahead][-max(ORDERS) :]
        found: list[Guess] = []
        while len(found) < count and (best := self._next(text, last)) is not None:
            found.append(best)
            last = [*last[1:], best.token] if len(last) == max(ORDERS) else [*last, best.token]
        return found

    def _next(self, text: Text, last: list[int]) -> Guess | None:
        """The guess with the best record among those by the most tokens of either source."""
        found: list[Guess] = []
        if (seen := text.longest(last)) is not None:
            found.append(Guess(seen[1], ("text", seen[0], 0)))
        if self.phrases is not None and (known := self.phrases.longest(last)) is not None:
            order, token, share = known
            found.append(Guess(token, ("phrases", order, int(share * 4))))
        return max(found, key=lambda guess: self.rate(guess.kind), default=None)

    def rate(self, kind: Kind) -> float:
        """How often guesses of a kind are right."""
        return self._rate(kind).rate

    def _rate(self, kind: Kind) -> Rate:
        if kind not in self.rates:
            source, order, sureness = kind
            share = 0.6 if source == "text" else (sureness + 0.5) / 5
            self.rates[kind] = Rate(share * (1 - 1 / order), tokens=4.0)
        return self.rates[kind]

    def chances(self, guesses: Sequence[Guess]) -> list[float]:
        """The probabilities that the first guess is right, that the first two are, and so on."""
        chance, found = 1.0, []
        for guess in guesses:
            chance *= self.rate(guess.kind)
            found.append(chance)
        return found

    def learn(self, guesses: Sequence[Guess], written: Sequence[int]) -> None:
        """Note which guesses were right, up to the first that was not."""
        for guess, token in zip(guesses, written, strict=False):
            self._rate(guess.kind).learn([guess.token == token])
            if guess.token != token:
                return
