"""Train smol: mid-train SmolLM2 on mixed documents, reinforce that by outcome, distil a sibling.

Every stage trains a low-rank adapter (Hu et al. 2021) on frozen weights. The school learns from
careful writers how things are done, the base then from hasty ones to be in a hurry. Nothing but the
outcome (is the concluded number right?) reaches the reinforced model, by expert iteration on
samples of its own (Anthony et al. 2017). The distilled sibling copies people's worked solutions,
whose manner the base's documents do not contain.

Batches are drawn from generators seeded by their number and checkpoints are written, so a killed
build goes on to the same weights on the same machine.
"""

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from howwhen.errors import MissingExtraError, ModelError
from howwhen.lm.models import wrap_model
from howwhen.lm.padding import pad
from howwhen.lm.prompts import PLAIN
from howwhen.zoo.smol.corpus import (
    CAREFUL,
    HASTY,
    LIFE,
    SCHOOL,
    Habits,
    Mixture,
    Passage,
    Problems,
    base_solution,
    draw_problem,
    teacher_solution,
    worksheet,
)
from howwhen.zoo.smol.patterns import patterns
from howwhen.zoo.smol.problems import gsm8k_train, svamp_train
from howwhen.zoo.smol.sampling import is_right, sample
from howwhen.zoo.smol.weights import (
    LAYERS,
    SmolName,
    add_adapter,
    save_adapter,
    smollm2_folder,
    without_old_names,
)
from howwhen.zoo.training import Course, Document, Report, claim, fit, write_tensors

MAX_TOKENS = 260
"""Longer documents are left out of the training."""
_LENGTH_MULTIPLE = 32
_SCORED_MULTIPLE = 256
"""Shapes that recur keep the memory from splintering."""
IGNORED = -100
_SORTED_DOCUMENTS = 192
"""Batches are cut from this many documents at a time, sorted by length: little is padding."""


@dataclass(frozen=True)
class Fit:
    """Size of one training; one step is one batch of documents of like length."""

    steps: int
    learning_rate: float


@dataclass(frozen=True)
class Rounds:
    """Size of the expert iteration."""

    rounds: int = 4
    problems: int = 384
    """Drawn in every round."""
    samples: int = 4
    """Per problem and round, at temperature 1."""
    keep: int = 2
    """Right samples kept per problem, so that easy problems do not crowd out hard ones."""
    passes: int = 1
    """Over the samples kept, per round."""
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class BuildSettings:
    """Sizes of the build."""

    seed: int = 0
    rank: int = 16
    """Of every adapter; all linear maps but the output embedding have one."""
    batch_tokens: int = 1152
    """Most tokens of a batch, padding included."""
    school: Fit = Fit(steps=900, learning_rate=1.5e-3)
    base: Fit = Fit(steps=90, learning_rate=5e-4)
    rl: Rounds = Rounds()
    sft: Fit = Fit(steps=200, learning_rate=5e-4)


Batch = Callable[[int], list[Document]]


def build(out: Path, settings: BuildSettings, report: Report, deadline: float = math.inf) -> None:
    """Write the adapters `out/school`, `base`, `rl` and `sft`; finished ones are kept.

    Args:
        out: folder of the adapters, and of the checkpoints in `work`.
        settings: sizes.
        report: takes a line about the progress.
        deadline: when to stop for now, in seconds of `time.monotonic`.

    Raises:
        MissingExtraError: PEFT or SmolLM2's weights are not installed.
        StoreError: `out` holds checkpoints of other settings.
        OutOfTimeError: the deadline passed; the same call goes on from there.
    """
    for name, chain in LAYERS.items():
        work = out / "work" / name
        described = asdict(settings)
        others = [other for other in LAYERS if other not in chain]
        claim(work, {key: one for key, one in described.items() if key not in others})
        if (out / name).is_dir():
            report(f"{name}: already built")
            continue
        stage = _Stage(work, settings, report, deadline)
        model = new_adapter(_start_of(name, out), settings)
        train: Callable[[Any], None] = getattr(stage, name)
        train(model)
        save_adapter(model, out / name)


def _start_of(name: SmolName, out: Path) -> PreTrainedModel:
    """What a stage's adapter is put on: SmolLM2 with the adapters of the stages before it."""
    attention = "eager" if product_type() is torch.bfloat16 else "sdpa"  # whichever is faster
    model = AutoModelForCausalLM.from_pretrained(
        smollm2_folder(), dtype=torch.float32, attn_implementation=attention
    )
    for earlier in LAYERS[name][:-1]:
        model = add_adapter(model, out / earlier)
    return model


def product_type() -> torch.dtype:
    """Number type of matrix products: bfloat16, or float32 where the processor lacks AVX-512.

    There products in bfloat16 are emulated, a hundred times as slow as in float32.
    """
    is_fast = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.bfloat16 if is_fast else torch.float32


def new_adapter(model: PreTrainedModel, settings: BuildSettings) -> Any:
    """The model, frozen, with a fresh adapter of low rank (a PEFT model)."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtraError("training smol takes PEFT; type: pip install peft") from error
    torch.manual_seed(settings.seed)
    shape = LoraConfig(r=settings.rank, lora_alpha=2 * settings.rank, target_modules="all-linear")
    with without_old_names():
        return get_peft_model(model, shape)


@dataclass(frozen=True)
class _Stage:
    """One training in its folder; changes the adapter it is given."""

    work: Path
    settings: BuildSettings
    report: Report
    deadline: float

    def school(self, model: Any) -> None:
        """Mid-train with careful writers."""
        self._fit(model, self._writers(SCHOOL, CAREFUL, "school"), self.settings.school, "school")

    def base(self, model: Any) -> None:
        """Mid-train on with hasty writers."""
        self._fit(model, self._writers(LIFE, HASTY, "haste"), self.settings.base, "base")

    def _writers(self, mixture: Mixture, habits: Habits, seed: str) -> Batch:
        """Batches of documents by writers of these habits."""
        problems, tokenizer = smol_train(), smol_tokenizer()

        def draw(rng: Random) -> Document:
            problem = draw_problem(problems, rng, mixture)
            if problem is None:
                return encode(tokenizer, None, worksheet(rng))
            return encode(tokenizer, problem.question, base_solution(problem, rng, habits))

        return self._documents(seed, draw)

    def sft(self, model: Any) -> None:
        """Fine-tune the base on people's solutions."""
        gsm8k, tokenizer = gsm8k_train(), smol_tokenizer()

        def draw(rng: Random) -> Document:
            problem = rng.choice(gsm8k)
            return encode(tokenizer, problem.question, teacher_solution(problem))

        self._fit(model, self._documents("sft", draw), self.settings.sft, "sft")

    def rl(self, model: Any) -> None:
        """Expert iteration: sample, keep what ends in the right number, train on it, repeat."""
        rounds = self.settings.rl
        trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
        for number in range(rounds.rounds):
            done = self.work / f"round-{number}.safetensors"
            if not done.exists():
                one_pass = self._passes_over(self._right_samples(model, number), number)
                size = Fit(rounds.passes * len(one_pass(0)), rounds.learning_rate)
                self._fit(model, _one_by_one(one_pass), size, f"rl-{number}")
                write_tensors({name: one.detach() for name, one in trained.items()}, done)
            model.load_state_dict(load_file(done), strict=False)

    def _right_samples(self, model: Any, number: int) -> list[Document]:
        """Right samples of one round; drawn once and kept beside the checkpoints."""
        path = self.work / f"round-{number}.json"
        if not path.exists():
            kept, share = sample_right(model, self.settings, number)
            rounds = self.settings.rl.rounds
            self.report(f"rl round {number + 1}/{rounds}: {share:.1%} of samples right")
            unfinished = path.with_suffix(".partial")
            rows = [{"ids": one.ids, "scored_from": one.scored_from} for one in kept]
            unfinished.write_text(json.dumps(rows))
            unfinished.replace(path)
        rows = json.loads(path.read_text())
        return [Document(tuple(row["ids"]), row["scored_from"]) for row in rows]

    def _documents(self, stage: str, draw: Callable[[Random], Document]) -> Batch:
        """Batches of documents, cut from several batches' worth sorted by length."""

        def several(number: int) -> list[list[Document]]:
            rng = Random(f"{self.settings.seed}-{stage}-{number}")
            examples: list[Document] = []
            while len(examples) < _SORTED_DOCUMENTS:
                example = draw(rng)
                if len(example.ids) <= MAX_TOKENS:
                    examples.append(example)
            return _sorted_batches(examples, self.settings.batch_tokens, rng)

        return _one_by_one(several)

    def _passes_over(
        self, kept: Sequence[Document], number: int
    ) -> Callable[[int], list[list[Document]]]:
        """The batches of each pass over the samples of a round."""

        def one_pass(passed: int) -> list[list[Document]]:
            rng = Random(f"{self.settings.seed}-round-{number}-{passed}")
            return _sorted_batches(kept, self.settings.batch_tokens, rng)

        return one_pass

    def _fit(self, model: Any, batch: Batch, size: Fit, name: str) -> None:
        place = self.work / f"{name}.safetensors"
        course = Course(size.steps, size.learning_rate, place, self.report, deadline=self.deadline)
        fit(model, lambda step: answer_loss(model, batch(step)), course)


def _one_by_one(several: Callable[[int], list[list[Document]]]) -> Batch:
    """Batches by number, from lists of batches by number."""
    batches: list[list[Document]] = []
    lists = count()

    def batch(step: int) -> list[Document]:
        while len(batches) <= step:
            batches.extend(several(next(lists)))
        return batches[step]

    return batch


def _sorted_batches(examples: Sequence[Document], most: int, rng: Random) -> list[list[Document]]:
    """Batches of examples of like length, each of at most `most` tokens, in random order."""
    drawn = list(examples)
    rng.shuffle(drawn)
    drawn.sort(key=lambda example: len(example.ids), reverse=True)
    batches: list[list[Document]] = []
    while drawn:
        longest = len(drawn[0].ids)
        size = max(1, most // (longest + -longest % _LENGTH_MULTIPLE))
        batches.append(drawn[:size])
        drawn = drawn[size:]
    rng.shuffle(batches)
    return batches


def sample_right(model: Any, settings: BuildSettings, number: int) -> tuple[list[Document], float]:
    """Right samples of one round as examples, and the share of all samples that were right.

    Raises:
        ModelError: none was right.
    """
    rng = Random(f"{settings.seed}-sample-{number}")
    sources = smol_train()
    drawn = (draw_problem(sources, rng, LIFE) for _ in range(settings.rl.problems))
    problems = [problem for problem in drawn if problem is not None]
    problems.sort(key=lambda problem: len(problem.question))
    merged = copy.deepcopy(model).merge_and_unload().to(product_type())
    language_model = wrap_model(merged, smol_tokenizer(), prompt=PLAIN, name="smol")
    times, seed = settings.rl.samples, settings.seed * 1000 + number
    prompts = [
        language_model.prompt_ids(problem.question) for problem in problems for _ in range(times)
    ]
    answers = sample(language_model, prompts, 1.0, seed)
    kept: list[Document] = []
    right = 0
    for index, problem in enumerate(problems):
        mine = answers[index * times : (index + 1) * times]
        good = [ids for ids in mine if is_right(language_model, ids, problem.answer)]
        right += len(good)
        prompt = tuple(prompts[index * times])
        different = sorted(set(good))
        chosen = rng.sample(different, min(settings.rl.keep, len(different)))
        kept += [Document(prompt + ids, len(prompt)) for ids in chosen]
    if not kept:
        raise ModelError(
            f"no sample of round {number} was right, so there is nothing to reinforce; "
            "train the base longer or sample more"
        )
    return kept, right / len(answers)


def smol_train() -> Problems:
    """All that smol is trained on."""
    return Problems(svamp_train(), patterns(), gsm8k_train())


@lru_cache(maxsize=1)
def smol_tokenizer() -> PreTrainedTokenizerBase:
    """SmolLM2's tokenizer."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(smollm2_folder())
    return tokenizer


def encode(
    tokenizer: PreTrainedTokenizerBase, question: str | None, passages: Sequence[Passage]
) -> Document:
    """A document as an example: the prompt, then the answer with its end token.

    Without a question nothing is asked, and nothing ends.
    """
    ids: list[int] = []
    if question is not None:
        ids += tokenizer(PLAIN.format(question=question))["input_ids"]
    start = len(ids)
    unscored: list[int] = []
    for passage in passages:
        told = tokenizer(f" {passage.text}", add_special_tokens=False)["input_ids"]
        unscored += [] if passage.is_learnt else range(len(ids), len(ids) + len(told))
        ids += told
    end = [] if question is None else [tokenizer.eos_token_id]
    return Document((*ids, *end), start, frozenset(unscored))


def answer_loss(model: Any, examples: Sequence[Document]) -> Tensor:
    """Mean cross-entropy in nats over the scored tokens; matrix products in `product_type`.

    The vocabulary is multiplied at scored positions only.
    """
    batch = pad([example.ids for example in examples], multiple=_LENGTH_MULTIPLE)
    targets = batch.ids.masked_fill(batch.mask == 0, IGNORED)
    for row, example in enumerate(examples):
        targets[row, : example.scored_from] = IGNORED
        targets[row, sorted(example.unscored)] = IGNORED
    targets = targets[:, 1:].flatten()
    scored = (targets != IGNORED).nonzero()[:, 0]
    scored = functional.pad(scored, (0, -len(scored) % _SCORED_MULTIPLE))  # position 0 is ignored
    inner = model.get_base_model()
    product = product_type()
    with torch.autocast("cpu", torch.bfloat16, enabled=product is torch.bfloat16):
        hidden = inner.model(**batch.inputs(), use_cache=False).last_hidden_state
        logits = inner.lm_head(hidden[:, :-1].flatten(0, 1)[scored])
    return functional.cross_entropy(logits.float(), targets[scored], ignore_index=IGNORED)
