"""Opening answers: both models read the prompts, and what sessions share is made once."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from torch import Tensor

from howwhen.hybrid.block_size import BlockSizer
from howwhen.hybrid.choice import Rung
from howwhen.hybrid.draft_model import DraftModel
from howwhen.hybrid.drafting import Drafter, OpenAnswer
from howwhen.hybrid.guesses import Guesser, Phrases, Text
from howwhen.hybrid.notes import Watch
from howwhen.hybrid.pass_costs import STEPWISE, PassCosts, pass_costs
from howwhen.hybrid.prompt_cache import PromptCache
from howwhen.hybrid.sampling import Sampler
from howwhen.hybrid.scoring import Answer, Scoring
from howwhen.hybrid.session import Session
from howwhen.hybrid.steering import check_vectors
from howwhen.hybrid.streams import Streams, open_streams
from howwhen.lm.alignment import ModelPair
from howwhen.lm.generate import check_lengths
from howwhen.lm.models import LanguageModel
from howwhen.records import Problem
from howwhen.settings import HybridSettings


@dataclass
class Opener:
    """Opens sessions of one rung. What one session learns of drafts, the next one knows.

    Raises:
        SteeringError: vectors that do not fit the base model or the gate.
    """

    models: ModelPair
    rung: Rung
    settings: HybridSettings
    seed: int = 0
    prompts: PromptCache | None = None
    """Keeps the prompts that were read, for other rungs on the same problems."""
    phrases: Phrases | None = None
    watch: Watch = field(default_factory=Watch)
    """What else is noted of every token."""
    _asked: list[LanguageModel] = field(init=False)
    _scoring: Scoring = field(init=False)
    _sizer: BlockSizer = field(init=False)
    _guesser: Guesser = field(init=False)

    def __post_init__(self) -> None:
        check_vectors(self.models.base, self.rung)
        self._asked = asked_models(self.models, self.rung)
        self.rung = self.rung.on(self.models)
        self.watch = self.watch.on(self.models.base.device)
        sampler = Sampler(self.settings.temperature, self.settings.top_p)
        self._scoring = Scoring(
            self.models,
            sampler,
            self.settings.seed,
            self.rung.allows_banned_tokens,
            self.models.base.device,
        )
        self._sizer = BlockSizer(
            self.settings.block_tokens,
            STEPWISE,
            base_drafts=self.rung.needs_thinking and not self.rung.allows_banned_tokens,
        )
        self._guesser = Guesser(self.phrases)

    def begin(
        self, problems: Sequence[Problem], known: Sequence[Sequence[Answer]], numbers: Sequence[int]
    ) -> Session:
        """A session in which all models have read the prompts of some problems.

        Args:
            problems: to be answered.
            known: answers to each of them, likeliest last.
            numbers: of each of them.

        Raises:
            InputError: an empty prompt, or one too long for a model's context.
        """
        questions = [problem.question for problem in problems]
        prompts = [self._prompts(model, questions) for model in self._asked]
        base_prompts, thinking_prompts = prompts[0], prompts[-1]
        rung, steering, how = self.rung, self.rung.steering, self.settings
        steer_layer = None if steering is None else steering.vectors.layer
        layers = tuple(sorted({*rung.base_layers, *self.watch.layers}))
        base = self._read(self.models.base, base_prompts, layers, steer_layer)
        thinking = draft = None
        if rung.needs_thinking:
            thinking = self._read(self.models.thinking, thinking_prompts, rung.thinking_layers)
        if self.models.draft is not None and how.block_tokens > 1:
            draft = DraftModel(self.models.draft, base_prompts, how.compile)
        drafter = Drafter(base, self._scoring, how, self._sizer, self._guesser, draft)
        return Session(
            models=self.models,
            rung=rung,
            settings=how,
            seed=self.seed,
            answers=[
                OpenAnswer(number, problem, Text(prompt), list(answers))
                for number, problem, prompt, answers in zip(
                    numbers, problems, base_prompts, known, strict=True
                )
            ],
            base=base,
            thinking=thinking,
            base_next=_last_tokens(base_prompts, self.models.base.device),
            thinking_next=_last_tokens(thinking_prompts, self.models.base.device),
            scoring=self._scoring,
            drafter=drafter,
            watch=self.watch,
        )

    def join(self, session: Session, opened: Session) -> None:
        """Let a session go on with the answers of one that has just been opened."""
        answers = len(session.running) + len(opened.answers)
        self.fit(max(answers, len(session.answers)))
        session.put(opened)

    def compact(self, session: Session) -> None:
        """Drop finished streams once there are enough of them to be worth a copy of the caches."""
        if session.compact():
            self.fit(len(session.answers))

    def fit(self, streams: int) -> None:
        """Reckon with what passes over so many streams cost."""
        self._sizer.costs = self._costs(streams)

    def _read(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        layers: tuple[int, ...],
        steer_layer: int | None = None,
    ) -> Streams:
        read = open_streams if self.prompts is None else self.prompts.streams
        return read(model, prompts, layers, steer_layer, self.settings.compile)

    def _costs(self, streams: int) -> PassCosts:
        if self.settings.block_tokens == 1:
            return STEPWISE
        return pass_costs(
            self.models,
            streams,
            needs_thinking=self.rung.needs_thinking,
            compilation=self.settings.compile,
        )

    def _prompts(self, model: LanguageModel, questions: Sequence[str]) -> list[list[int]]:
        prompts = [model.prompt_ids(question) for question in questions]
        check_lengths(model, prompts, self.settings.max_new_tokens)
        return prompts


def asked_models(models: ModelPair, rung: Rung) -> list[LanguageModel]:
    """The models that run on a rung, with the prompts they get there: the base first."""
    base = models.base if rung.prompt is None else replace(models.base, prompt=rung.prompt)
    return [base, models.thinking] if rung.needs_thinking else [base]


def _last_tokens(prompts: Sequence[Sequence[int]], device: torch.device) -> Int[Tensor, " stream"]:
    return torch.tensor([prompt[-1] for prompt in prompts], device=device)
