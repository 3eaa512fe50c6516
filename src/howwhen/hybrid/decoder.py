"""The hybrid decoder: both models over shared token ids, every token explained.

Draft and verify (speculative decoding): blocks of drafted tokens give the same answers as blocks of
one token, which is stepwise decoding, up to ties in the last bits of a sum. A `Session` writes.

Under the `transient` policy the base's cache keeps the unsteered states of a steered position,
under `persistent` the steered.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from howwhen.hybrid.block_size import BlockSizer
from howwhen.hybrid.choice import Rung
from howwhen.hybrid.guesses import Guesser, Phrases
from howwhen.hybrid.ledger import Round
from howwhen.hybrid.pass_costs import STEPWISE, pass_costs
from howwhen.hybrid.session import Answer, Session
from howwhen.hybrid.steering import check_vectors
from howwhen.hybrid.streams import PromptCache, open_streams
from howwhen.lm.alignment import ModelPair
from howwhen.lm.generate import check_lengths
from howwhen.lm.models import LanguageModel
from howwhen.records import Finish, HybridToken, HybridTrace, Problem
from howwhen.settings import HybridSettings


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
) -> list[HybridTrace]:
    """Answer one batch of problems on one rung.

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

    Raises:
        SteeringError: vectors that do not fit the base model or the gate.
        InputError: an empty prompt, or one too long for a model's context.
    """
    session = _open_session(models, problems, rung, settings, seed, known, prompts, phrases)
    answers: list[list[HybridToken]] = [[] for _ in problems]
    with session.capturing():
        while session.rows:
            _note(session.round(), answers)
            session.compact()
    return [
        _trace(models, problem, rung, seed, tokens)
        for problem, tokens in zip(problems, answers, strict=True)
    ]


def stream(
    models: ModelPair,
    problem: Problem,
    rung: Rung,
    settings: HybridSettings,
    seed: int = 0,
    phrases: Phrases | None = None,
) -> Iterator[HybridToken]:
    """Answer one problem, yielding tokens as they are decided; errors are those of `decode`."""
    batch = LiveBatch(models, [problem], rung, settings, seed, phrases)
    while not batch.is_done:
        yield from batch.advance()[0]


class LiveBatch:
    """A batch of answers written a round at a time, in turn with other batches of the same models.

    The first block is a single token, so that a reader sees it soon.

    Raises:
        SteeringError, InputError: as `decode`.
    """

    def __init__(
        self,
        models: ModelPair,
        problems: Sequence[Problem],
        rung: Rung,
        settings: HybridSettings,
        seed: int = 0,
        phrases: Phrases | None = None,
    ) -> None:
        self._session = _open_session(models, problems, rung, settings, seed, phrases=phrases)
        self._count = len(problems)
        self._has_begun = False

    @property
    def is_done(self) -> bool:
        """Whether every answer has ended or was cancelled."""
        return not self._session.rows

    def advance(self) -> list[list[HybridToken]]:
        """Go on by a block, and return each answer's new tokens."""
        session = self._session
        fresh: list[list[HybridToken]] = [[] for _ in range(self._count)]
        with session.capturing():
            _note(session.round(None if self._has_begun else 1), fresh)
        self._has_begun = True
        session.compact()
        return fresh

    def cancel(self, row: int) -> None:
        """Write no more of one answer."""
        session = self._session
        if row in session.rows:
            session.is_done[session.rows.index(row)] = True
            session.compact()


def _note(done: Round, answers: list[list[HybridToken]]) -> None:
    """Add the tokens of a round to the answers of a batch."""
    for stream, row in enumerate(done.rows):
        answers[row] += done.tokens(stream)


def asked_models(models: ModelPair, rung: Rung) -> list[LanguageModel]:
    """The models that run on a rung, with the prompts they get there: the base first."""
    base = models.base if rung.prompt is None else replace(models.base, prompt=rung.prompt)
    return [base, models.thinking] if rung.needs_thinking else [base]


def _open_session(
    models: ModelPair,
    problems: Sequence[Problem],
    rung: Rung,
    settings: HybridSettings,
    seed: int,
    known: Sequence[Sequence[Answer]] | None = None,
    prompts: PromptCache | None = None,
    phrases: Phrases | None = None,
) -> Session:
    """Both models with the prompts read."""
    check_vectors(models.base, rung)
    rung = rung.on(models)
    questions = [problem.question for problem in problems]
    base_prompts, *other_prompts = (
        _prompts(model, questions, settings) for model in asked_models(models, rung)
    )
    thinking_prompts = next(iter(other_prompts), base_prompts)
    steer_layer = None if rung.steering is None else rung.steering.vectors.layer
    open_ = open_streams if prompts is None else prompts.streams
    sizer = BlockSizer(
        settings.block_tokens,
        STEPWISE
        if settings.block_tokens == 1
        else pass_costs(models, len(problems), needs_thinking=rung.needs_thinking),
        base_drafts=rung.needs_thinking and not rung.allows_banned_tokens,
    )
    return Session(
        models=models,
        rung=rung,
        settings=settings,
        seed=seed,
        problems=problems,
        base=open_(models.base, base_prompts, rung.base_layers, steer_layer),
        thinking=(
            open_(models.thinking, thinking_prompts, rung.thinking_layers)
            if rung.needs_thinking
            else None
        ),
        base_next=_last_tokens(base_prompts, models.base.device),
        thinking_next=_last_tokens(thinking_prompts, models.base.device),
        known=[list(answers) for answers in known] if known else [[] for _ in problems],
        block_sizer=sizer,
        guesser=Guesser([list(prompt) for prompt in base_prompts], phrases),
    )


def _last_tokens(prompts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    return torch.tensor([prompt[-1] for prompt in prompts], device=device)


def _prompts(
    model: LanguageModel, questions: Sequence[str], settings: HybridSettings
) -> list[list[int]]:
    prompts = [model.prompt_ids(question) for question in questions]
    check_lengths(model, prompts, settings.max_new_tokens)
    return prompts


def _trace(
    models: ModelPair, problem: Problem, rung: Rung, seed: int, tokens: Sequence[HybridToken]
) -> HybridTrace:
    """The record of one answer."""
    ids = [token.id for token in tokens]
    is_ended = ids[-1] in models.end_ids
    writer = models.thinking if rung.allows_banned_tokens else models.base
    text = str(writer.tokenizer.decode(ids[:-1] if is_ended else ids))
    finish = Finish.STOP if is_ended else Finish.LENGTH
    return HybridTrace(problem.id, rung.name, seed, text, finish, tuple(tokens))
