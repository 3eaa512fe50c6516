"""Train tally: the base on its documents, tally-rl by expert iteration, tally-sft by distillation.

Every batch is drawn from a generator seeded by its own step, and a checkpoint (weights and
optimiser) is written every fifty steps, so a killed build resumes to the same weights on the
same machine. Nothing but the outcome (is the concluded number right?) reaches tally-rl.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from howwhen.errors import ModelError
from howwhen.lm.generate import Sampling, generate
from howwhen.zoo.tally.corpus import draw_base_document, draw_teacher_document
from howwhen.zoo.tally.tokenizer import build_tokenizer
from howwhen.zoo.tally.truth import TallyProblem, draw_problem
from howwhen.zoo.training import Course, Document, Report, claim, fit, write_tensors

MAX_ANSWER_TOKENS = 150


@dataclass(frozen=True)
class BuildSettings:
    """Sizes of the build; one step is one batch of `batch_documents` documents."""

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


def build(out: Path, settings: BuildSettings, report: Report) -> None:
    """Write `out/base`, `out/rl` and `out/sft` as bf16 model folders; finished parts are kept.

    Raises:
        StoreError: `out` holds checkpoints of other settings.
    """
    work = out / "work"
    claim(work, asdict(settings))
    stages = _Stages(build_tokenizer(), work, settings, report)
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
    """The three trainings; each changes the model it is given."""

    tokenizer: PreTrainedTokenizerFast
    work: Path
    settings: BuildSettings
    report: Report

    def base(self, model: LlamaForCausalLM) -> None:
        """Train on whole documents of the base's corpus."""
        steps, rate = self.settings.pretrain_steps, self.settings.pretrain_learning_rate
        self._fit(model, self._documents("pretrain", draw_base_document, True), steps, rate, "base")

    def sft(self, model: LlamaForCausalLM) -> None:
        """Fine-tune the base on the teacher's solutions."""
        steps, rate = self.settings.distil_steps, self.settings.distil_learning_rate
        self._fit(
            model, self._documents("distil", draw_teacher_document, False), steps, rate, "sft"
        )

    def rl(self, model: LlamaForCausalLM) -> None:
        """Expert iteration: sample, keep what ends in the right number, train on it, repeat."""
        for number in range(self.settings.rounds):
            done = self.work / f"rl-round-{number}.safetensors"
            if done.exists():
                model.load_state_dict(load_file(done))
                continue
            kept, share = sample_right(model, self.tokenizer, self.settings, number)
            self.report(
                f"rl round {number + 1}/{self.settings.rounds}: {share:.1%} of samples right"
            )
            steps, rate = self.settings.round_steps, self.settings.round_learning_rate
            self._fit(model, self._draws_of(kept, number), steps, rate, f"rl-{number}")
            write_tensors(model.state_dict(), done)

    def _documents(
        self, stage: str, draw: Callable[[Random], tuple[str, str]], is_whole: bool
    ) -> Callable[[int], list[Document]]:
        def batch(step: int) -> list[Document]:
            rng = Random(f"{self.settings.seed}-{stage}-{step}")
            documents = (draw(rng) for _ in range(self.settings.batch_documents))
            return [encode(self.tokenizer, one, text, is_whole) for one, text in documents]

        return batch

    def _draws_of(self, kept: Sequence[Document], number: int) -> Callable[[int], list[Document]]:
        def batch(step: int) -> list[Document]:
            rng = Random(f"{self.settings.seed}-round-{number}-{step}")
            return rng.choices(kept, k=self.settings.batch_documents)

        return batch

    def _fit(
        self,
        model: LlamaForCausalLM,
        batch: Callable[[int], list[Document]],
        steps: int,
        rate: float,
        name: str,
    ) -> None:
        course = Course(steps, rate, self.work / f"{name}.safetensors", self.report)
        fit(model, lambda step: answer_loss(model, batch(step)), course)


def sample_right(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    settings: BuildSettings,
    number: int,
) -> tuple[list[Document], float]:
    """Right samples of one round as examples, and the share of all samples that were right."""
    rng = Random(f"{settings.seed}-sample-{number}")
    problems = [draw_problem(rng) for _ in range(settings.round_problems)]
    prompts = [
        prompt_ids(tokenizer, problem.question)
        for problem in problems
        for _ in range(settings.round_samples)
    ]
    answers = sample(model, tokenizer, prompts, 1.0, settings.seed * 1000 + number)
    kept: list[Document] = []
    right = 0
    for index, problem in enumerate(problems):
        mine = slice(index * settings.round_samples, (index + 1) * settings.round_samples)
        good = {ids for ids in answers[mine] if is_right(tokenizer, ids, problem)}
        right += sum(ids in good for ids in answers[mine])
        prompt = tuple(prompts[mine.start])
        kept += [
            Document(prompt + ids, len(prompt)) for ids in sorted(good)[: settings.keep_per_problem]
        ]
    if not kept:
        raise ModelError(
            f"no sample of round {number} was right, so there is nothing to reinforce; "
            "train the base longer or sample more"
        )
    return kept, right / len(answers)


def sample(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    temperature: float,
    seed: int,
) -> list[tuple[int, ...]]:
    """Answer prompts in batches of 512; greedy at temperature 0."""
    ends = frozenset({tokenizer.eos_token_id})
    answers: list[tuple[int, ...]] = []
    for start in range(0, len(prompts), 512):
        sampling = Sampling(MAX_ANSWER_TOKENS, temperature, seed + start)
        answers += generate(model, ends, prompts[start : start + 512], sampling)
    return answers


def is_right(
    tokenizer: PreTrainedTokenizerFast, answer_ids: Sequence[int], problem: TallyProblem
) -> bool:
    """The outcome reward: the answer ended by itself and concludes with the right number."""
    if not answer_ids or answer_ids[-1] != tokenizer.eos_token_id:
        return False
    text = tokenizer.decode(answer_ids, skip_special_tokens=True)
    concluded = re.search(r"the answer is (\d+)\.$", text)
    return concluded is not None and int(concluded[1]) == problem.answer


def prompt_ids(tokenizer: PreTrainedTokenizerFast, question: str) -> list[int]:
    """A question in the chat format, ready to be answered."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode(
    tokenizer: PreTrainedTokenizerFast, question: str, solution: str, whole: bool = False
) -> Document:
    """A document as an example; `whole` scores the question too."""
    prompt = prompt_ids(tokenizer, question)
    answer = tokenizer(solution, add_special_tokens=False)["input_ids"]
    return Document((*prompt, *answer, tokenizer.eos_token_id), 1 if whole else len(prompt))


def answer_loss(model: LlamaForCausalLM, examples: Sequence[Document]) -> torch.Tensor:
    """Mean cross-entropy in nats over the scored tokens of a right-padded batch."""
    longest = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    targets = torch.full_like(ids, -100)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        scored = torch.tensor(example.ids[example.scored_from :])
        targets[row, example.scored_from : len(example.ids)] = scored
    logits = model(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())


def _save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    partial = folder.with_name(folder.name + ".partial")
    model.to(torch.bfloat16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)
