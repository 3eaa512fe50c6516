"""How smol is trained: SmolLM2 is mid-trained on mixed documents, then reinforced or distilled.

Each stage trains a low-rank adapter (Hu et al. 2021) on frozen weights. The school learns from
careful writers how problems are worked out. The base then learns from hasty writers to hurry. The
reinforced model is rewarded for the outcome alone (is the concluded number right?), by expert
iteration on its own samples (Anthony et al. 2017). The distilled sibling copies people's worked
solutions, whose style the base's documents do not contain. The plain model is the school itself,
reinforced in the same way: nothing was hidden from it before.

Batches are drawn from generators seeded by their number and checkpoints are written, so an
interrupted build ends with the same weights on the same machine.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from howwhen.errors import MissingExtraError
from howwhen.lm.adapters import ignore_deprecated_names
from howwhen.lm.models import wrap_model
from howwhen.lm.prompts import PLAIN, ask
from howwhen.zoo.documents import Batch, Document, chain_batches, sorted_batches
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
from howwhen.zoo.smol.loss import LENGTH_MULTIPLE, answer_loss, product_type
from howwhen.zoo.smol.patterns import patterns
from howwhen.zoo.smol.problems import gsm8k_train, svamp_train
from howwhen.zoo.smol.sampling import is_right, sample
from howwhen.zoo.smol.weights import (
    LAYERS,
    SmolName,
    add_adapter,
    save_adapter,
    smollm2_folder,
)
from howwhen.zoo.training import Fit, Report, Workspace, claim, sample_right_answers

MAX_TOKENS = 260
"""Longer documents are left out of the training."""
_SORTED_DOCUMENTS = 192
"""Documents that are sorted by length before they are cut into batches, to reduce padding."""


@dataclass(frozen=True)
class Rounds:
    """Size of an expert iteration."""

    rounds: int = 4
    problems: int = 384
    """Problems drawn per round."""
    samples: int = 4
    """Samples per problem and round, at temperature 1."""
    keep: int = 2
    """Right samples kept per problem, so that easy problems do not crowd out hard ones."""
    passes: int = 1
    """Passes over the samples kept, per round."""
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class BuildSettings:
    """Sizes of the build."""

    seed: int = 0
    rank: int = 16
    """Rank of each adapter. All linear maps except the output embedding have one."""
    batch_tokens: int = 1152
    """Maximum number of tokens in a batch, padding included."""
    school: Fit = field(default_factory=lambda: Fit(steps=900, learning_rate=1.5e-3))
    base: Fit = field(default_factory=lambda: Fit(steps=90, learning_rate=5e-4))
    rl: Rounds = Rounds()
    sft: Fit = field(default_factory=lambda: Fit(steps=200, learning_rate=5e-4))
    plain: Rounds = Rounds(problems=512)


def build(out: Path, settings: BuildSettings, report: Report, deadline: float = math.inf) -> None:
    """Write the adapters `out/school`, `base`, `rl`, `sft` and `plain`. Finished ones are kept.

    Args:
        out: folder of the adapters, and of the checkpoints in `work`.
        settings: sizes.
        report: takes a line about the progress.
        deadline: when to stop for now, in seconds of `time.monotonic`.

    Raises:
        MissingExtraError: PEFT or SmolLM2's weights are not installed.
        StoreError: `out` holds checkpoints of other settings.
        OutOfTimeError: the deadline passed; the same call resumes.
    """
    for name, chain in LAYERS.items():
        workspace = Workspace(out / "work" / name, report, deadline)
        others = [other for other in LAYERS if other not in chain]
        relevant = {key: value for key, value in asdict(settings).items() if key not in others}
        claim(workspace.folder, relevant)
        if (out / name).is_dir():
            report(f"{name}: already built")
            continue
        stage = _Stage(settings, workspace)
        model = new_adapter(_start_of(name, out), settings)
        train: Callable[[Any], None] = getattr(stage, name)
        train(model)
        save_adapter(model, out / name)


def _start_of(name: SmolName, out: Path) -> PreTrainedModel:
    """The model that a stage's adapter is trained on: SmolLM2 with the earlier stages' adapters."""
    attention = "eager" if product_type() is torch.bfloat16 else "sdpa"  # whichever is faster
    model = AutoModelForCausalLM.from_pretrained(
        smollm2_folder(), dtype=torch.float32, attn_implementation=attention
    )
    for earlier in LAYERS[name][:-1]:
        model = add_adapter(model, out / earlier)
    return model


def new_adapter(model: PreTrainedModel, settings: BuildSettings) -> Any:
    """Freeze a model and add a new low-rank adapter (returns a PEFT model)."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtraError("training smol needs PEFT; type: pip install peft") from error
    torch.manual_seed(settings.seed)
    config = LoraConfig(r=settings.rank, lora_alpha=2 * settings.rank, target_modules="all-linear")
    with ignore_deprecated_names():
        return get_peft_model(model, config)


@dataclass(frozen=True)
class _Stage:
    """One training in its folder. Changes the adapter it is given."""

    settings: BuildSettings
    workspace: Workspace

    def school(self, model: Any) -> None:
        """Mid-train on documents of careful writers."""
        batch = self._writers(SCHOOL, CAREFUL, "school")
        self._fit("school", model, batch, self.settings.school)

    def base(self, model: Any) -> None:
        """Continue mid-training on documents of hasty writers."""
        self._fit("base", model, self._writers(LIFE, HASTY, "haste"), self.settings.base)

    def _writers(self, mixture: Mixture, habits: Habits, seed: str) -> Batch:
        """Batches of documents by writers with these habits."""
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

        self._fit("sft", model, self._documents("sft", draw), self.settings.sft)

    def rl(self, model: Any) -> None:
        """Reinforce the base by expert iteration."""
        self._reinforce("rl", model, self.settings.rl)

    def plain(self, model: Any) -> None:
        """Reinforce the school by expert iteration."""
        self._reinforce("plain", model, self.settings.plain)

    def _reinforce(self, name: str, model: Any, rounds: Rounds) -> None:
        def fit(number: int, documents: list[Document]) -> None:
            one_pass = self._passes(documents, number)
            size = Fit(rounds.passes * len(one_pass(0)), rounds.learning_rate)
            self._fit(f"{name}-{number}", model, chain_batches(one_pass), size)

        def draw(number: int) -> tuple[list[Document], float]:
            return sample_right(model, rounds, self.settings.seed, number)

        self.workspace.reinforce(model, rounds.rounds, draw, fit)

    def _documents(self, stage: str, draw: Callable[[Random], Document]) -> Batch:
        """Batches of documents, several batches' worth sorted by length at a time."""

        def several(number: int) -> list[list[Document]]:
            rng = Random(f"{self.settings.seed}-{stage}-{number}")
            documents: list[Document] = []
            while len(documents) < _SORTED_DOCUMENTS:
                document = draw(rng)
                if len(document.ids) <= MAX_TOKENS:
                    documents.append(document)
            return self._sorted(documents, rng)

        return chain_batches(several)

    def _passes(
        self, documents: Sequence[Document], number: int
    ) -> Callable[[int], list[list[Document]]]:
        """The batches of each pass over a round's samples."""

        def one_pass(pass_number: int) -> list[list[Document]]:
            rng = Random(f"{self.settings.seed}-round-{number}-{pass_number}")
            return self._sorted(documents, rng)

        return one_pass

    def _sorted(self, documents: Sequence[Document], rng: Random) -> list[list[Document]]:
        return sorted_batches(documents, self.settings.batch_tokens, rng, LENGTH_MULTIPLE)

    def _fit(self, name: str, model: Any, batch: Batch, size: Fit) -> None:
        self.workspace.fit(name, model, lambda step: answer_loss(model, batch(step)), size)


def sample_right(
    model: Any, rounds: Rounds, seed: int, number: int
) -> tuple[list[Document], float]:
    """Right samples of one round as documents, and the share of all samples that were right.

    Raises:
        ModelError: no sample was right.
    """
    rng = Random(f"{seed}-sample-{number}")
    sources = smol_train()
    drawn = (draw_problem(sources, rng, LIFE) for _ in range(rounds.problems))
    problems = [problem for problem in drawn if problem is not None]
    problems.sort(key=lambda problem: len(problem.question))
    merged = copy.deepcopy(model).merge_and_unload().to(product_type())
    language_model = wrap_model(merged, smol_tokenizer(), prompt=PLAIN, name="smol")
    sampling_seed = seed * 1000 + number
    return sample_right_answers(
        prompts=[language_model.prompt_ids(problem.question) for problem in problems],
        samples=rounds.samples,
        sample=lambda prompts: sample(language_model, prompts, 1.0, sampling_seed),
        is_right=lambda index, answer: is_right(language_model, answer, problems[index].answer),
        choose=lambda answers: rng.sample(answers, min(rounds.keep, len(answers))),
    )


def smol_train() -> Problems:
    """All problems that smol is trained on."""
    return Problems(svamp_train(), patterns(), gsm8k_train())


@lru_cache(maxsize=1)
def smol_tokenizer() -> PreTrainedTokenizerBase:
    """SmolLM2's tokenizer."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(smollm2_folder())
    return tokenizer


def encode(
    tokenizer: PreTrainedTokenizerBase, question: str | None, passages: Sequence[Passage]
) -> Document:
    """Token ids of a document: the prompt, then the answer with its end token.

    A document without a question has no prompt and no end token.
    """
    ids: list[int] = []
    if question is not None:
        ids += tokenizer(ask(PLAIN, question))["input_ids"]
    start = len(ids)
    unscored: list[int] = []
    for passage in passages:
        passage_ids = tokenizer(f" {passage.text}", add_special_tokens=False)["input_ids"]
        unscored += [] if passage.is_learnt else range(len(ids), len(ids) + len(passage_ids))
        ids += passage_ids
    end = [] if question is None else [tokenizer.eos_token_id]
    return Document((*ids, *end), start, frozenset(unscored))
