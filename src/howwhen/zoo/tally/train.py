"""How tally is trained: the base on its documents, `rl` by expert iteration, `sft` by distillation.

Each batch is drawn from a generator seeded by its step, and a checkpoint of weights and optimiser
is written every fifty steps, so an interrupted build ends with the same weights on the same
machine. tally-rl is rewarded for the outcome alone: whether the concluded number is right.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from howwhen.lm.generate import Sampling, generate
from howwhen.zoo.documents import IGNORED, Batch, Document, TokenIds, pad_documents
from howwhen.zoo.tally.corpus import draw_base_document, draw_teacher_document
from howwhen.zoo.tally.tokenizer import build_tokenizer
from howwhen.zoo.tally.truth import TallyProblem, draw_problem
from howwhen.zoo.training import Fit, Report, Workspace, claim, sample_right_answers

MAX_ANSWER_TOKENS = 150
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


def build(out: Path, settings: BuildSettings, report: Report, deadline: float = math.inf) -> None:
    """Write `out/base`, `out/rl` and `out/sft` as bf16 model folders. Finished ones are kept.

    Args:
        out: folder of the model folders, and of the checkpoints in `work`.
        settings: sizes.
        report: takes a line about the progress.
        deadline: when to stop for now, in seconds of `time.monotonic`.

    Raises:
        StoreError: `out` holds checkpoints of other settings.
        OutOfTimeError: the deadline passed; the same call resumes.
    """
    workspace = Workspace(out / "work", report, deadline)
    claim(workspace.folder, asdict(settings))
    stages = _Stages(build_tokenizer(), settings, workspace)
    for name, train in {"base": stages.base, "rl": stages.rl, "sft": stages.sft}.items():
        if (out / name / "model.safetensors").exists():
            report(f"{name}: already built")
            continue
        model = new_model(settings.seed)
        if name != "base":
            base = LlamaForCausalLM.from_pretrained(out / "base", dtype=torch.float32)
            model.load_state_dict(base.state_dict())
        train(model)
        _save_model(model, stages.tokenizer, out / name)


def new_model(seed: int) -> LlamaForCausalLM:
    """A fresh tally model: 4 blocks of width 192, 2.1 million parameters."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


@dataclass(frozen=True)
class _Stages:
    """The three trainings. Each changes the model it is given."""

    tokenizer: PreTrainedTokenizerFast
    settings: BuildSettings
    workspace: Workspace

    def base(self, model: LlamaForCausalLM) -> None:
        """Train on whole documents of the base's corpus."""
        batch = self._documents("pretrain", draw_base_document, scores_question=True)
        size = Fit(self.settings.pretrain_steps, self.settings.pretrain_learning_rate)
        self._fit("base", model, batch, size)

    def sft(self, model: LlamaForCausalLM) -> None:
        """Fine-tune the base on the teacher's solutions."""
        batch = self._documents("distil", draw_teacher_document, scores_question=False)
        size = Fit(self.settings.distil_steps, self.settings.distil_learning_rate)
        self._fit("sft", model, batch, size)

    def rl(self, model: LlamaForCausalLM) -> None:
        """Reinforce the base by expert iteration."""
        size = Fit(self.settings.round_steps, self.settings.round_learning_rate)

        def fit(number: int, documents: list[Document]) -> None:
            self._fit(f"rl-{number}", model, self._draws(documents, number), size)

        def draw(number: int) -> tuple[list[Document], float]:
            return sample_right(model, self.tokenizer, self.settings, number)

        self.workspace.reinforce(model, self.settings.rounds, draw, fit)

    def _documents(
        self, stage: str, draw: Callable[[Random], tuple[str, str]], scores_question: bool
    ) -> Batch:
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
) -> tuple[list[Document], float]:
    """Right samples of one round as documents, and the share of all samples that were right.

    Raises:
        ModelError: no sample was right.
    """
    rng = Random(f"{settings.seed}-sample-{number}")
    problems = [draw_problem(rng) for _ in range(settings.round_problems)]
    seed = settings.seed * 1000 + number
    return sample_right_answers(
        prompts=[prompt_ids(tokenizer, problem.question) for problem in problems],
        samples=settings.round_samples,
        sample=lambda prompts: sample(model, tokenizer, prompts, 1.0, seed),
        is_right=lambda index, answer: is_right(tokenizer, answer, problems[index]),
        choose=lambda answers: answers[: settings.keep_per_problem],
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


def is_right(
    tokenizer: PreTrainedTokenizerFast, answer_ids: Sequence[int], problem: TallyProblem
) -> bool:
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
