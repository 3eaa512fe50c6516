"""How tally's models are trained: bases on documents, others by expert iteration or distillation.

Each batch is drawn from a generator seeded by its step, and a checkpoint of weights and optimiser
is written every fifty steps, so an interrupted build ends with the same weights on the same
machine. What is reinforced is rewarded for the outcome alone: whether the concluded number is
right.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Literal, Protocol, runtime_checkable

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from howwhen.lm.generate import Sampling, generate
from howwhen.zoo.documents import IGNORED, Batch, Document, TokenIds, pad_documents
from howwhen.zoo.tally.corpus import draw_base_document, draw_teacher_document, vocabulary
from howwhen.zoo.tally.tokenizer import build_tokenizer
from howwhen.zoo.tally.truth import draw_problem
from howwhen.zoo.tally.which import card_vocabulary, draw_card_document, draw_card_problem
from howwhen.zoo.training import Fit, Report, Workspace, claim, sample_right_answers

MAX_ANSWER_TOKENS = 150
Stage = Literal["base", "rl", "sft"]
"""How a model is trained."""
Drawn = Callable[[Random], tuple[str, str]]
"""Draws a question and a solution."""
_PROMPTS_AT_A_TIME = 512


@dataclass(frozen=True)
class BuildSettings:
    """Sizes of the build. One step is one batch of `batch_documents` documents."""

    seed: int = 0
    batch_documents: int = 96
    pretrain_steps: int = 1600
    pretrain_learning_rate: float = 2e-3
    rounds: int = 8
    round_problems: int = 640
    round_samples: int = 4
    """Samples per problem and round, at temperature 1."""
    keep_per_problem: int = 2
    """Right samples kept per problem, so that easy problems do not crowd out long ones."""
    round_steps: int = 60
    round_learning_rate: float = 3e-4
    distil_steps: int = 250
    distil_learning_rate: float = 5e-4


@runtime_checkable
class Posed(Protocol):
    """A problem that can be asked and graded."""

    @property
    def question(self) -> str:
        """The problem as text."""

    @property
    def answer(self) -> int:
        """The right final total."""


@dataclass(frozen=True)
class Organism:
    """A family of models: what its base reads, what is posed to it, and how large it is."""

    stages: Mapping[str, Stage]
    """What is trained, by the name of its folder; the base first."""
    words: Sequence[str]
    draw_document: Drawn
    """Draws a question, and a solution by the base's writer."""
    draw_problem: Callable[[Random], Posed]
    draw_lesson: Drawn | None = None
    """Draws a question, and a solution by the teacher of a distilled model."""
    width: int = 192
    heads: int = 6
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Settings of the build that differ from the defaults."""


TALLY = Organism(
    {"base": "base", "rl": "rl", "sft": "sft"},
    vocabulary(),
    draw_base_document,
    draw_problem,
    draw_teacher_document,
)
"""`tally-rl` and `tally-sft`."""
SMALL = Organism(
    {"small": "base"}, vocabulary(), draw_base_document, draw_problem, width=96, heads=3
)
"""A smaller base for tally's reinforced model."""
WHICH = Organism(
    {"which-base": "base", "which-rl": "rl"},
    card_vocabulary(),
    draw_card_document,
    draw_card_problem,
    width=128,
    heads=4,
    sizes={"pretrain_steps": 700, "rounds": 8},
)
"""`tally-which`."""


def build(
    out: Path,
    settings: BuildSettings,
    report: Report,
    deadline: float = math.inf,
    organism: Organism = TALLY,
) -> None:
    """Write the models of an organism as bf16 folders in `out`. Finished ones are kept.

    Args:
        out: folder of the model folders, and of the checkpoints in `work`.
        settings: sizes.
        report: takes a line about the progress.
        deadline: when to stop for now, in seconds of `time.monotonic`.
        organism: whose models.

    Raises:
        StoreError: `out` holds checkpoints of other settings.
        OutOfTimeError: the deadline passed; the same call resumes.
    """
    workspace = Workspace(out / "work", report, deadline)
    shape = {} if organism is TALLY else {"models": [*organism.stages], "width": organism.width}
    claim(workspace.folder, {**asdict(settings), **shape})
    stages = _Stages(organism, build_tokenizer(organism.words), settings, workspace)
    train = {"base": stages.base, "rl": stages.rl, "sft": stages.sft}
    first = next(iter(organism.stages))
    for name, stage in organism.stages.items():
        if (out / name / "model.safetensors").exists():
            report(f"{name}: already built")
            continue
        model = new_model(settings.seed, organism)
        if stage != "base":
            base = LlamaForCausalLM.from_pretrained(out / first, dtype=torch.float32)
            model.load_state_dict(base.state_dict())
        train[stage](model)
        _save_model(model, stages.tokenizer, out / name)


def new_model(seed: int, organism: Organism = TALLY) -> LlamaForCausalLM:
    """A fresh model of 4 blocks; tally's are of width 192 and have 2.1 million parameters."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(organism.words)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=organism.width,
        intermediate_size=10 * organism.width // 3,
        num_hidden_layers=4,
        num_attention_heads=organism.heads,
        num_key_value_heads=organism.heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


@dataclass(frozen=True)
class _Stages:
    """The trainings. Each changes the model it is given."""

    organism: Organism
    tokenizer: PreTrainedTokenizerFast
    settings: BuildSettings
    workspace: Workspace

    def base(self, model: LlamaForCausalLM) -> None:
        """Train on whole documents of the base's corpus."""
        batch = self._documents("pretrain", self.organism.draw_document, scores_question=True)
        size = Fit(self.settings.pretrain_steps, self.settings.pretrain_learning_rate)
        self._fit("base", model, batch, size)

    def sft(self, model: LlamaForCausalLM) -> None:
        """Fine-tune the base on the teacher's solutions."""
        if self.organism.draw_lesson is None:
            raise RuntimeError("this organism has no teacher")
        batch = self._documents("distil", self.organism.draw_lesson, scores_question=False)
        size = Fit(self.settings.distil_steps, self.settings.distil_learning_rate)
        self._fit("sft", model, batch, size)

    def rl(self, model: LlamaForCausalLM) -> None:
        """Reinforce the base by expert iteration."""
        size = Fit(self.settings.round_steps, self.settings.round_learning_rate)

        def fit(number: int, documents: list[Document]) -> None:
            self._fit(f"rl-{number}", model, self._draws(documents, number), size)

        def draw(number: int) -> tuple[list[Document], float]:
            return sample_right(model, self.tokenizer, self.settings, number, self.organism)

        self.workspace.reinforce(model, self.settings.rounds, draw, fit)

    def _documents(self, stage: str, draw: Drawn, scores_question: bool) -> Batch:
        def batch(step: int) -> list[Document]:
            rng = Random(f"{self.settings.seed}-{stage}-{step}")
            pairs = (draw(rng) for _ in range(self.settings.batch_documents))
            return [
                encode(self.tokenizer, question, solution, scores_question)
                for question, solution in pairs
            ]

        return batch

    def _draws(self, documents: Sequence[Document], number: int) -> Batch:
        def batch(step: int) -> list[Document]:
            rng = Random(f"{self.settings.seed}-round-{number}-{step}")
            return rng.choices(documents, k=self.settings.batch_documents)

        return batch

    def _fit(self, name: str, model: LlamaForCausalLM, batch: Batch, size: Fit) -> None:
        self.workspace.fit(name, model, lambda step: answer_loss(model, batch(step)), size)


def sample_right(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    settings: BuildSettings,
    number: int,
    organism: Organism = TALLY,
) -> tuple[list[Document], float]:
    """Right samples of one round as documents, and the share of all samples that were right.

    Raises:
        ModelError: no sample was right.
    """
    rng = Random(f"{settings.seed}-sample-{number}")
    problems = [organism.draw_problem(rng) for _ in range(settings.round_problems)]
    seed, keep = settings.seed * 1000 + number, settings.keep_per_problem
    return sample_right_answers(
        prompts=[prompt_ids(tokenizer, problem.question) for problem in problems],
        samples=settings.round_samples,
        sample=lambda prompts: sample(model, tokenizer, prompts, 1.0, seed),
        is_right=lambda index, answer: is_right(tokenizer, answer, problems[index]),
        choose=lambda answers: rng.sample(answers, min(keep, len(answers))),
    )


def sample(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    temperature: float,
    seed: int,
) -> list[TokenIds]:
    """Answer prompts in batches. Temperature 0 is greedy."""
    end_ids = frozenset({tokenizer.eos_token_id})
    answers: list[TokenIds] = []
    for start in range(0, len(prompts), _PROMPTS_AT_A_TIME):
        sampling = Sampling(MAX_ANSWER_TOKENS, temperature, seed + start)
        batch = prompts[start : start + _PROMPTS_AT_A_TIME]
        answers += generate(model, end_ids, batch, sampling)
    return answers


def is_right(tokenizer: PreTrainedTokenizerFast, answer_ids: Sequence[int], problem: Posed) -> bool:
    """The outcome reward: the answer ends with an end token and concludes with the right number."""
    if not answer_ids or answer_ids[-1] != tokenizer.eos_token_id:
        return False
    text = tokenizer.decode(answer_ids, skip_special_tokens=True)
    conclusion = re.search(r"the answer is (\d+)\.$", text)
    return conclusion is not None and int(conclusion[1]) == problem.answer


def prompt_ids(tokenizer: PreTrainedTokenizerFast, question: str) -> list[int]:
    """A question in the chat format, ready to be answered."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode(
    tokenizer: PreTrainedTokenizerFast,
    question: str,
    solution: str,
    scores_question: bool = False,
) -> Document:
    """Token ids of a question and its solution; the loss may count the question too."""
    prompt = prompt_ids(tokenizer, question)
    answer = tokenizer(solution, add_special_tokens=False)["input_ids"]
    ids = (*prompt, *answer, tokenizer.eos_token_id)
    return Document(ids, 1 if scores_question else len(prompt))


def answer_loss(model: LlamaForCausalLM, documents: Sequence[Document]) -> torch.Tensor:
    """Mean cross-entropy in nats over the scored tokens."""
    batch, targets = pad_documents(documents)
    logits = model(input_ids=batch.ids, use_cache=False).logits
    return functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORED
    )


def _save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    partial = folder.with_name(folder.name + ".partial")
    model.to(torch.bfloat16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)
