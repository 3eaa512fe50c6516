"""Pairs of models by name: the embedded ones, the published presets, and any two of your own.

Nothing heavy is imported until a model is loaded, so that pairs can be listed and checked at once.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from howwhen.errors import ModelError, PairError
from howwhen.lm.placement import Placement, Role
from howwhen.lm.prompts import (
    CHAT,
    PLAIN,
    STEP_BY_STEP,
    THINK_TAGS,
    TemplateArguments,
    ThinkTags,
    check_prompt,
    check_template_arguments,
    check_think_tags,
)
from howwhen.records import Problem
from howwhen.settings import GateKind, ModelSettings, Overrides, read_prompt
from howwhen.zoo.smol import SMOLLM2
from howwhen.zoo.smol.problems import smol_problems, smol_test_problems
from howwhen.zoo.tally import TALLY_WEIGHTS, tally_problems, tally_truth
from howwhen.zoo.tally.which import card_problems, card_truth

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from howwhen.lm.alignment import ModelPair, OneSided
    from howwhen.lm.models import LanguageModel
    from howwhen.zoo.smol.weights import SmolName

_OWN = "own"
"""Name of every pair that has none."""

DrawProblems = Callable[[int, int], list[Problem]]
Truth = Callable[[Sequence[str]], Mapping[str, list[str | None]]]
"""Labels, on every level of the truth, for the sentences of one answer in order."""


@dataclass(frozen=True)
class Pair:
    """How to load a pair, and what is known about it."""

    name: str
    summary: str
    base_source: str
    """Hub id, folder, or name of embedded weights."""
    thinking_source: str
    base_prompt: str = PLAIN
    thinking_prompt: str = CHAT
    think_tags: ThinkTags = THINK_TAGS
    """What opens and what closes the thinking part of the thinking model's answers."""
    base_template: TemplateArguments = field(default_factory=dict, hash=False)
    """Arguments of the base's chat template."""
    thinking_template: TemplateArguments = field(default_factory=dict, hash=False)
    """Arguments of the thinking model's chat template."""
    step_by_step_prompt: str | None = None
    """Asks the base to reason step by step; None for a base that cannot be asked so."""
    steer_layer: int | None = None
    """0-based block of the base to steer; None for the middle one."""
    taxonomy_layers: tuple[int, ...] | None = None
    """0-based blocks of the thinking model to read; None for six spread ones."""
    taxonomy_sizes: tuple[int, ...] | None = None
    """Numbers of categories to try; defaults to those of the settings."""
    gate: GateKind | None = None
    """What names the category of a disagreement; defaults to that of the settings."""
    draw_problems: DrawProblems | None = field(default=None, repr=False)
    """Makes `count` problems from a seed, for pairs with problems of their own."""
    draw_test_problems: DrawProblems | None = field(default=None, repr=False)
    """The same, for the final measurement; defaults to a share of `draw_problems`."""
    draft_source: str | None = None
    """A small model of the same vocabulary that writes ahead for both; None for none."""
    longest_answer: int | None = None
    """Maximum tokens per answer, in rollouts and hybrids; defaults to that of the settings."""
    truth: Truth | None = field(default=None, repr=False)
    """Known labels of sentences, for pairs with known truth."""
    placing: ModelSettings = field(default=ModelSettings(), repr=False)
    """Where the models are put."""
    _loaded: "dict[str, LanguageModel]" = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Models that are in memory."""
    _adapters: dict[Role, Path | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Folder of the adapter by role; None for a model of its own."""
    _reader_outlines: "dict[str | None, LanguageModel]" = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """By source."""

    def asked(
        self,
        base_prompt: str | None = None,
        thinking_prompt: str | None = None,
        think_tags: ThinkTags | None = None,
        base_template: TemplateArguments | None = None,
        thinking_template: TemplateArguments | None = None,
    ) -> "Pair":
        """The same pair asked in another way, where one is given; nothing that is loaded is kept.

        Args:
            base_prompt: how the base is asked: `chat`, a text with {question}, a message of a chat
                after `chat:`, or any of these in a file after `@`.
            thinking_prompt: how the thinking model is asked.
            think_tags: what opens and what closes the thinking in the thinking model's answers.
            base_template: arguments of the base's chat template: {"enable_thinking": False}.
            thinking_template: the same for the thinking model.

        Raises:
            SettingsError: a file that cannot be read.
            InputError: a prompt without the question, an empty tag, or template arguments for a
                prompt that is no chat template.
        """
        base_prompt, thinking_prompt = (
            None if prompt is None else read_prompt(prompt)
            for prompt in (base_prompt, thinking_prompt)
        )
        asked = {
            "base_prompt": base_prompt,
            "thinking_prompt": thinking_prompt,
            "think_tags": think_tags,
            "base_template": base_template,
            "thinking_template": thinking_template,
        }
        changed: dict[str, Any] = {
            name: value
            for name, value in asked.items()
            if value is not None and value != getattr(self, name)
        }
        if "base_prompt" in changed:
            changed["step_by_step_prompt"] = STEP_BY_STEP if base_prompt == PLAIN else None
        pair = replace(self, **changed) if changed else self
        check_think_tags(pair.think_tags)
        check_template_arguments(check_prompt(pair.base_prompt), pair.base_template)
        check_template_arguments(check_prompt(pair.thinking_prompt), pair.thinking_template)
        return pair

    def placed(self, settings: ModelSettings) -> "Pair":
        """The same pair with its models put elsewhere; nothing that is loaded is moved."""
        return self if settings == self.placing else replace(self, placing=settings)

    @property
    def base(self) -> "LanguageModel":
        """The base model, loaded and checked on first use, and kept until `release`."""
        if "base" not in self._loaded:
            loaded = self._open("base", is_outline=False)
            _check_loaded(loaded, self.chosen_steer_layer)
            self._loaded["base"] = loaded
        return self._loaded["base"]

    @property
    def thinking(self) -> "LanguageModel":
        """The thinking model, loaded and checked on first use, and kept until `release`."""
        if "thinking" not in self._loaded:
            loaded = self._open("thinking", is_outline=False)
            _check_loaded(loaded, loaded.layer_count - 1)
            self._loaded["thinking"] = loaded
        return self._loaded["thinking"]

    def reader(self, source: str | None) -> "LanguageModel":
        """The model that reads the sentences: the thinking model, or one of another source."""
        if self.is_own_reader(source):
            return self.thinking
        key = f"reader {source}"
        if key not in self._loaded:
            self._loaded[key] = self._open("reader", source, is_outline=False)
        return self._loaded[key]

    def draft(self, source: str) -> "LanguageModel":
        """The small model that writes ahead for both, loaded and checked on first use."""
        key = f"draft {source}"
        if key not in self._loaded:
            loaded = self._open("draft", source, is_outline=False)
            _check_loaded(loaded, loaded.layer_count - 1)
            self._loaded[key] = loaded
        return self._loaded[key]

    def draft_outline(self, source: str) -> "LanguageModel":
        """The same without its weights."""
        return self._open("draft", source, is_outline=True)

    def release(self, *kept: Role) -> None:
        """Free the memory of all models that are loaded, but for some roles."""
        loaded = [role for role in kept if role in self._loaded]
        needed = {*kept, *(carrier for role in loaded if (carrier := self._carrier(role)))}
        for key in [key for key in self._loaded if key.split()[0] not in needed]:
            del self._loaded[key]
        if "torch" in sys.modules:
            from howwhen.lm.memory import free_unused

            free_unused()

    @cached_property
    def base_outline(self) -> "LanguageModel":
        """The base without its weights: all that its files say."""
        return self._open("base", is_outline=True)

    @cached_property
    def thinking_outline(self) -> "LanguageModel":
        """The thinking model without its weights."""
        return self._open("thinking", is_outline=True)

    def reader_outline(self, source: str | None) -> "LanguageModel":
        """The reader without its weights."""
        if self.is_own_reader(source):
            return self.thinking_outline
        if source not in self._reader_outlines:
            self._reader_outlines[source] = self._open("reader", source, is_outline=True)
        return self._reader_outlines[source]

    def is_own_reader(self, source: str | None) -> bool:
        """Whether this source of a reader means the thinking model."""
        return source is None or source == self.thinking_source

    def _open(self, role: Role, source: str | None = None, *, is_outline: bool) -> "LanguageModel":
        from howwhen.lm.models import load_model, outline_model

        sources = {"base": self.base_source, "thinking": self.thinking_source}
        prompts = {"base": self.base_prompt, "thinking": self.thinking_prompt}
        templates = {"base": self.base_template, "thinking": self.thinking_template}
        found = source or sources[role]
        asked: dict[str, Any] = {
            "prompt": check_prompt(prompts.get(role, CHAT)),
            "think_tags": self.think_tags if role == "thinking" else THINK_TAGS,
            "template": templates.get(role, {}),
            "name": found,
        }
        adapter = self._adapter(role) if source is None else None
        if adapter is not None:
            return self._open_adapter(role, adapter, asked, is_outline)
        open_ = outline_model if is_outline else load_model
        return open_(_resolve(found), placement=Placement.of(self.placing, role), **asked)

    def _open_adapter(
        self, role: Role, folder: Path, asked: dict[str, Any], is_outline: bool
    ) -> "LanguageModel":
        from howwhen.lm.adapters import load_adapter, outline_adapter

        carrier = self._carrier(role)
        if getattr(self.placing, f"{role}_device") is not None:
            raise ModelError(
                f"{asked['name']} is an adapter on the weights of the {carrier} model, so it is "
                f"where that one is; leave --{role}-device away"
            )
        outline = outline_adapter(getattr(self, f"{carrier}_outline"), folder, **asked)
        if is_outline:
            return outline
        return load_adapter(getattr(self, str(carrier)), folder, outline)

    def _carrier(self, role: Role) -> Role | None:
        """The role on whose weights an adapter is; None for a model of its own.

        Raises:
            ModelError: the other one is an adapter too.
        """
        others: dict[Role, Role] = {"base": "thinking", "thinking": "base"}
        if role not in others or self._adapter(role) is None:
            return None
        if self._adapter(others[role]) is not None:
            raise ModelError(
                f"{self.base_source} and {self.thinking_source} are both adapters (PEFT); expected "
                "a model in one of the two places, whose weights the adapter in the other is on"
            )
        return others[role]

    def _adapter(self, role: Role) -> Path | None:
        """The folder of base or thinking model, if it is an adapter."""
        from howwhen.lm.checkpoint import is_adapter, model_folder

        if role not in self._adapters:
            source = self.base_source if role == "base" else self.thinking_source
            revision = Placement.of(self.placing, role).revision
            folder = model_folder(_resolve(source), revision)
            self._adapters[role] = folder if is_adapter(folder) else None
        return self._adapters[role]

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The base's tokenizer, for reading answers without the models."""
        from howwhen.lm.models import load_tokenizer

        return load_tokenizer(_resolve(self.base_source), self.placing.base_revision)

    @property
    def chosen_steer_layer(self) -> int:
        """The block to steer: the pair's own, or the middle one."""
        if self.steer_layer is not None:
            return self.steer_layer
        return self.base_outline.layer_count // 2

    @property
    def chosen_taxonomy_layers(self) -> tuple[int, ...]:
        """The blocks to read: the pair's own, or up to six spread over the model."""
        if self.taxonomy_layers is not None:
            return self.taxonomy_layers
        return _spread(self.thinking_outline)

    def reading_layers(self, source: str | None, layers: tuple[int, ...] | None) -> tuple[int, ...]:
        """The blocks of a reader to read: those asked for, the pair's own, or six spread ones."""
        if layers is not None:
            return layers
        if self.is_own_reader(source):
            return self.chosen_taxonomy_layers
        return _spread(self.reader_outline(source))

    @property
    def overrides(self) -> Overrides:
        """Settings that the pair itself sets: over presets, under files and flags."""
        own: Overrides = {}
        if self.taxonomy_sizes:
            own["discover"] = {"sizes": self.taxonomy_sizes}
        if self.gate:
            own["elicit"] = {"gate": self.gate}
        hybrid: Overrides = {}
        if self.longest_answer:
            own["collect"] = {"max_new_tokens": self.longest_answer}
            hybrid |= own["collect"]
        if self.draft_source:
            hybrid["draft_model"] = self.draft_source
        if hybrid:
            own["hybrid"] = hybrid
        if placing := self.placing.model_dump(exclude_defaults=True):
            own["models"] = placing
        return own

    @property
    def title(self) -> str:
        """Name of the pair; for a pair of the user's models, that of the thinking model."""
        return Path(self.thinking_source).name if self.name == _OWN else self.name

    @property
    def example(self) -> str:
        """A question that both models may be asked."""
        return self.draw_problems(1, 1)[0].question if self.draw_problems else "What is 2 + 2?"

    def models(self, one_sided: "OneSided" = "ban", draft: str | None = None) -> "ModelPair":
        """Both models, loaded.

        Args:
            one_sided: what happens to tokens that only one of them knows.
            draft: source of a small model that writes ahead for both.
        """
        from howwhen.lm.alignment import ModelPair

        third = None if draft is None else self.draft(draft)
        return ModelPair(self.base, self.thinking, one_sided, third)

    def check(self) -> None:
        """Refuse the pair if its files show that it cannot work.

        Whether a model can be read with a masked cache and steered shows when it is loaded. The
        thinking model is loaded first; a base of another architecture is tried here.

        Raises:
            ModelError: a model that cannot be loaded or steered.
            PairError: vocabularies that do not match.
        """
        from howwhen.lm.alignment import align
        from howwhen.lm.residual import check_layer

        base, thinking = self.base_outline, self.thinking_outline
        align(base, thinking)
        check_layer(base.model, self.chosen_steer_layer)
        if type(base.model) is not type(thinking.model):
            _ = self.base


def find_pair(name: str) -> Pair:
    """The pair of that name.

    Raises:
        PairError: no such pair.
    """
    for pair in list_pairs():
        if pair.name == name:
            return pair
    raise PairError(
        f"there is no pair {name!r}; expected one of "
        f"{', '.join(pair.name for pair in list_pairs())}, or give two models of your own: "
        "--base FOLDER_OR_ID --thinking FOLDER_OR_ID"
    )


def own_pair(
    base: str,
    thinking: str,
    base_prompt: str = PLAIN,
    thinking_prompt: str = CHAT,
    think_tags: ThinkTags = THINK_TAGS,
    base_template: TemplateArguments | None = None,
    thinking_template: TemplateArguments | None = None,
) -> Pair:
    """Any two causal language models, by hub id or folder.

    Args:
        base: the base.
        thinking: the thinking model.
        base_prompt: how the base is asked: `chat`, or a text with {question}.
        thinking_prompt: how the thinking model is asked.
        think_tags: what opens and what closes the thinking in the thinking model's answers.
        base_template: arguments of the base's chat template, such as {"enable_thinking": False}.
        thinking_template: the same for the thinking model.

    Raises:
        InputError: as `Pair.asked`.
    """
    pair = Pair(
        name=_OWN,
        summary="two models of your own",
        base_source=base,
        thinking_source=thinking,
        step_by_step_prompt=STEP_BY_STEP,
    )
    return pair.asked(base_prompt, thinking_prompt, think_tags, base_template, thinking_template)


def list_pairs() -> list[Pair]:
    """Every pair with a name: embedded, local, published."""
    return [*_tally_pairs(), *_smol_pairs(), _smollm2_pair(), *_published_pairs()]


def _tally_pairs() -> list[Pair]:
    rl = Pair(
        name="tally-rl",
        summary="model organism with known truth; reinforced from the outcome alone",
        base_source="tally/base",
        thinking_source="tally/rl",
        base_prompt=CHAT,
        thinking_prompt=CHAT,
        steer_layer=2,
        taxonomy_layers=(0, 1, 2, 3),
        draw_problems=tally_problems,
        truth=tally_truth,
    )
    return [
        rl,
        replace(
            rl,
            name="tally-sft",
            summary="the same base, distilled from a teacher with words and ways of its own",
            thinking_source="tally/sft",
        ),
        replace(
            rl,
            name="tally-which",
            summary="four behaviours may be due at the same moment, and the base picks at random",
            base_source="tally/which-base",
            thinking_source="tally/which-rl",
            taxonomy_layers=(2, 3),  # below, the thinking model does not know yet which is due
            gate="probe",
            draw_problems=card_problems,
            truth=card_truth,
        ),
        replace(
            rl,
            name="tally-cross",
            summary="a base of a quarter of the size, and the thinking model of tally-rl",
            base_source="tally/small",
        ),
    ]


def _smol_pairs() -> list[Pair]:
    smol = Pair(
        name="smol",
        summary="SmolLM2-135M mid-trained on word problems; reinforced from the outcome alone",
        base_source="smol/base",
        thinking_source="smol/rl",
        base_prompt=PLAIN,
        thinking_prompt=PLAIN,
        step_by_step_prompt=STEP_BY_STEP,
        draw_problems=smol_problems,
        draw_test_problems=smol_test_problems,
    )
    return [
        smol,
        replace(
            smol,
            name="smol-sft",
            summary="the same base, distilled from people's worked solutions",
            thinking_source="smol/sft",
        ),
        replace(
            smol,
            name="smol-plain",
            summary="the same before haste was trained into it; reinforced from the outcome alone",
            base_source="smol/school",
            thinking_source="smol/plain",
        ),
    ]


def _smollm2_pair() -> Pair:
    return Pair(
        name="smollm2-chat",
        summary="SmolLM2-135M-Instruct asked plainly (base) and in its chat format (thinking)",
        base_source=SMOLLM2,
        thinking_source=SMOLLM2,
        step_by_step_prompt=STEP_BY_STEP,
    )


_PUBLISHED = """
orz-0.5b     Qwen/Qwen2.5-0.5B         Open-Reasoner-Zero/Open-Reasoner-Zero-0.5B  9 8 10
orz-1.5b     Qwen/Qwen2.5-1.5B         Open-Reasoner-Zero/Open-Reasoner-Zero-1.5B  10 4 10
orz-7b       Qwen/Qwen2.5-7B           Open-Reasoner-Zero/Open-Reasoner-Zero-7B    10 20 10
orz-32b      Qwen/Qwen2.5-32B          Open-Reasoner-Zero/Open-Reasoner-Zero-32B   24 27 15
r1-math1.5b  Qwen/Qwen2.5-Math-1.5B    deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B   10 4 15
r1-llama8b   meta-llama/Llama-3.1-8B   deepseek-ai/DeepSeek-R1-Distill-Llama-8B    12 6 15
r1-14b       Qwen/Qwen2.5-14B          deepseek-ai/DeepSeek-R1-Distill-Qwen-14B    18 38 5
r1-32b       Qwen/Qwen2.5-32B          deepseek-ai/DeepSeek-R1-Distill-Qwen-32B    24 27 15
qwq-32b      Qwen/Qwen2.5-32B          Qwen/QwQ-32B                                24 27 10
"""
"""Name, base, thinking model, steer layer, taxonomy layer, taxonomy size."""
_DRAFT = "Qwen/Qwen2.5-0.5B"
"""Writes ahead where both models have the vocabulary of Qwen2.5 and at least ten times its size."""
_DRAFTED = ("orz-7b", "orz-32b", "r1-14b", "r1-32b", "qwq-32b")


def _published_pairs() -> list[Pair]:
    rows = (line.split() for line in _PUBLISHED.strip().splitlines())
    return [
        Pair(
            name=name,
            summary="published pair; loads from the Hugging Face hub",
            base_source=base,
            thinking_source=thinking,
            step_by_step_prompt=STEP_BY_STEP,
            steer_layer=int(steer),
            taxonomy_layers=(int(layer),),
            taxonomy_sizes=(int(size),),
            draft_source=_DRAFT if name in _DRAFTED else None,
        )
        for name, base, thinking, steer, layer, size in rows
    ]


def _check_loaded(model: "LanguageModel", layer: int) -> None:
    """Refuse a model that cannot be steered, or read with a masked cache."""
    from howwhen.hybrid.load_check import check_streams

    model.check_steering(layer)
    check_streams(model, layer)


def _spread(model: "LanguageModel") -> tuple[int, ...]:
    """Up to six blocks spread over a model."""
    count = model.layer_count
    return tuple(sorted({min(round(count * part / 7), count - 1) for part in range(1, 7)}))


def _resolve(source: str) -> str | Path:
    """Folder or hub id of a source, made first if it is an embedded model that is not there yet."""
    if source == SMOLLM2 or source.startswith("smol/"):
        from howwhen.zoo.smol.weights import smol_folder, smollm2_folder

        if source == SMOLLM2:
            return smollm2_folder()
        return smol_folder(cast("SmolName", source.removeprefix("smol/")))
    return local_folder(source) or source


def local_folder(source: str) -> Path | None:
    """Folder of a source that is on this machine already; None for a hub id or smol's weights.

    Raises:
        ModelError: a path to a folder that does not exist.
    """
    if source.startswith("tally/"):
        return TALLY_WEIGHTS / source.removeprefix("tally/")
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if source.startswith((".", "/", "~")):
        raise ModelError(
            f"there is no model folder {source!r}; expected a folder with config.json and "
            "*.safetensors. `howwhen zoo list` shows the pairs that come with names"
        )
    return None
