"""The hybrid decoder: both models over shared token ids, every token explained.

Draft and verify (speculative decoding): blocks of drafted tokens give the same answers as blocks of
one token, which is stepwise decoding, up to ties in the last bits of a sum. A `Session` writes.

Under the `transient` policy the base's cache keeps the unsteered states of a steered position,
under `persistent` the steered.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from howwhen.errors import InputError
from howwhen.hybrid.choice import Rung
from howwhen.hybrid.guesses import Phrases
from howwhen.hybrid.ledger import Round
from howwhen.hybrid.notes import Watch
from howwhen.hybrid.opening import Opener
from howwhen.hybrid.prompt_cache import PromptCache
from howwhen.hybrid.scoring import Answer
from howwhen.hybrid.session import Session
from howwhen.lm.alignment import ModelPair
from howwhen.records import Finish, HybridToken, HybridTrace, Problem
from howwhen.settings import HybridSettings

REFILLED_PART = 8
"""An eighth of the slots is filled again at a time: prompts are read together."""


def decode(
    models: ModelPair,
    problems: Sequence[Problem],
    rung: Rung,
    settings: HybridSettings,
    seed: int = 0,
    *,
    known: Sequence[Sequence[Answer]] | None = None,
    prompts: PromptCache | None = None,
    phrases: Phrases | None = None,
    slots: int | None = None,
    ended: Callable[[int], None] | None = None,
    watch: Watch | None = None,
) -> list[HybridTrace]:
    """Answer problems on one rung.

    Args:
        models: the pair.
        problems: answered side by side; no answer depends on the others.
        rung: the rung.
        settings: lengths, cache policy, sampling.
        seed: of random rungs.
        known: for every problem the answers of other rungs, likeliest last. What an answer has in
            common with one of them is read rather than written, which takes fewer passes. They
            change no answer.
        prompts: keeps the prompts that were read, for other rungs on the same problems.
        phrases: of answers that the thinking model gave to other problems. What they let one guess
            is read rather than written. They change no answer either.
        slots: the most answers that are written side by side, by default all. When some have ended,
            the next problems take their places.
        ended: called after every round with the number of answers that have ended.
        watch: what else to note of every token. It changes no answer.

    Raises:
        SteeringError: vectors that do not fit the base model or the gate.
        InputError: an empty prompt, one too long for a model's context, or known answers to another
            number of problems.
    """
    if known is not None and len(known) != len(problems):
        raise InputError(
            f"found known answers to {len(known)} problems, but {len(problems)} problems; expected "
            "a list for each problem, which may be empty"
        )
    if not problems:
        return []
    opener = Opener(models, rung, settings, seed, prompts, phrases, watch or Watch())
    size = min(slots or len(problems), len(problems))
    answers: list[list[HybridToken]] = [[] for _ in problems]
    done = _write(opener, problems, known or [()] * len(problems), size, ended or (lambda _: None))
    for number, tokens in done:
        answers[number] += tokens
    return [
        trace_of(models, problem, rung, seed, tokens)
        for problem, tokens in zip(problems, answers, strict=True)
    ]


def _write(
    opener: Opener,
    problems: Sequence[Problem],
    known: Sequence[Sequence[Answer]],
    size: int,
    ended: Callable[[int], None],
) -> Iterator[tuple[int, list[HybridToken]]]:
    """The tokens of all answers, as they are written in so many slots."""
    waiting = deque(range(len(problems)))
    more = max(1, size // REFILLED_PART)

    def begin(count: int) -> Session:
        numbers = [waiting.popleft() for _ in range(min(count, len(waiting)))]
        return opener.begin([problems[n] for n in numbers], [known[n] for n in numbers], numbers)

    session = begin(size)
    opener.fit(size)
    with session.capturing():
        while session.answers:
            yield from _new_tokens(session.round())
            ended(len(problems) - len(waiting) - len(session.running))
            # Always as many, so that the same prompts are read together on every rung.
            while waiting and size - len(session.running) >= min(more, len(waiting)):
                opener.join(session, begin(more))
            if not waiting:
                opener.compact(session)


def stream(
    models: ModelPair,
    problem: Problem,
    rung: Rung,
    settings: HybridSettings,
    seed: int = 0,
    phrases: Phrases | None = None,
) -> Iterator[HybridToken]:
    """Answer one problem, yielding tokens as they are decided; errors are those of `decode`."""
    batch = LiveBatch(models, rung, settings, seed, phrases)
    batch.add([problem])
    while not batch.is_done:
        yield from batch.advance()[0]


class LiveBatch:
    """Answers written a round at a time, in turn with other batches of the same models.

    They may join at any time. Where none is being written, the first block is a single token, so
    that a reader sees it soon.

    Raises:
        SteeringError: as `decode`.
    """

    def __init__(
        self,
        models: ModelPair,
        rung: Rung,
        settings: HybridSettings,
        seed: int = 0,
        phrases: Phrases | None = None,
    ) -> None:
        self._opener = Opener(models, rung, settings, seed, phrases=phrases)
        self._session: Session | None = None
        self._count = 0
        self._is_fresh = True

    def add(self, problems: Sequence[Problem]) -> list[int]:
        """Begin some answers, and return the number of each.

        If they were begun and cannot join those that are being written, all are given up.

        Raises:
            InputError: as `decode`.
        """
        if not problems:
            return []
        numbers = list(range(self._count, self._count + len(problems)))
        opened = self._opener.begin(problems, [()] * len(problems), numbers)
        self._count += len(problems)
        running, self._session = self._session, None  # until the two are one
        if running is None or not running.running:
            self._opener.fit(len(problems))
            self._session, self._is_fresh = opened, True
        else:
            self._opener.join(running, opened)
            self._session = running
        return numbers

    @property
    def running(self) -> int:
        """How many answers have not ended."""
        return 0 if self._session is None else len(self._session.running)

    @property
    def is_done(self) -> bool:
        """Whether every answer has ended or was cancelled."""
        return self.running == 0

    def advance(self) -> Mapping[int, list[HybridToken]]:
        """Go on by a block, and return the new tokens of every answer that was being written."""
        if self._session is None or self.is_done:
            return {}
        with self._session.capturing():
            fresh = dict(_new_tokens(self._session.round(1 if self._is_fresh else None)))
        self._is_fresh = False
        self._opener.compact(self._session)
        return fresh

    def cancel(self, number: int) -> None:
        """Write no more of one answer."""
        for answer in () if self._session is None else self._session.answers:
            if answer.number == number:
                answer.is_done = True


def _new_tokens(done: Round) -> Iterator[tuple[int, list[HybridToken]]]:
    """The tokens of a round, by answer; of those that were being written."""
    for stream, number in enumerate(done.numbers):
        if tokens := done.tokens(stream):
            yield number, tokens


def trace_of(
    models: ModelPair, problem: Problem, rung: Rung, seed: int, tokens: Sequence[HybridToken]
) -> HybridTrace:
    """The record of one answer."""
    ids = [token.id for token in tokens]
    is_ended = ids[-1] in models.end_ids
    writer = models.thinking if rung.allows_banned_tokens else models.base
    text = str(writer.tokenizer.decode(ids[:-1] if is_ended else ids))
    finish = Finish.STOP if is_ended else Finish.LENGTH
    return HybridTrace(problem.id, rung.name, seed, text, finish, tuple(tokens))
