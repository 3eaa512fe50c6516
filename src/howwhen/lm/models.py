"""A language model with its tokenizer and prompt, loaded from its files and checked.

What its files say (layers, vocabulary, prompt, fingerprint) is known from an outline, without its
weights. Loading checks what would otherwise fail hours later: the folder exists, the weights are
complete, the decoder blocks are found, and steering changes the output and can be undone.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)

from howwhen.errors import MissingExtraError, ModelError
from howwhen.lm.checkpoint import (
    WEIGHTS,
    commit_of,
    is_adapter,
    model_folder,
    read_header,
    weights_digest,
)
from howwhen.lm.head import multiply_in_float32
from howwhen.lm.logits import check_split_forward
from howwhen.lm.memory import keep_freed_memory
from howwhen.lm.placement import Placement
from howwhen.lm.prompts import (
    CHAT,
    THINK_TAGS,
    TemplateArguments,
    ThinkTags,
    check_template_arguments,
    check_think_tags,
    encode_prompt,
    prompt_text,
)
from howwhen.lm.residual import check_layer, check_steerable, find_blocks, input_device

_INCIDENTAL = ("architectures", "dtype", "torch_dtype", "transformers_version")
"""Config entries that no logit depends on."""


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model in evaluation mode, its tokenizer, and its prompt."""

    name: str
    """Hub id, folder or name in the zoo, as the user gave it."""
    fingerprint: str
    """Hash of the files that determine its output; empty for a model made in memory."""
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompt: str = CHAT
    """`chat`, or a format string with `{question}`."""
    revision: str | None = None
    """Commit on the hub; None for a local model."""
    think_tags: ThinkTags = THINK_TAGS
    """The texts that open and close the thinking part of its answers."""
    template: TemplateArguments = field(default_factory=dict, hash=False)
    """Arguments of its chat template."""
    device_type: str | None = None
    """Kind of device (`cpu`, `cuda`) that an outline's weights will be on; None once loaded."""
    _padding_on: dict[torch.device, Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """`padding_ids`, by device."""

    def __post_init__(self) -> None:
        check_think_tags(self.think_tags)
        check_template_arguments(self.prompt, self.template)

    @property
    def rounding(self) -> float:
        """Distance of neighbouring numbers of its precision, relative to their size."""
        return torch.finfo(self.model.dtype).eps

    @property
    def numerics(self) -> dict[str, str]:
        """What decides the last bits of its logits, apart from its files."""
        return {
            "device": self.device_type or self.device.type,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "attention": str(self.model.config._attn_implementation),
        }

    @property
    def device(self) -> torch.device:
        """Where it reads token ids: the device of its input embedding."""
        return input_device(self.model)

    def layer_device(self, layer: int) -> torch.device:
        """Where the residual of a layer is: the device of the block's weights."""
        return next(find_blocks(self.model)[check_layer(self.model, layer)].parameters()).device

    @property
    def layer_count(self) -> int:
        """Number of decoder blocks."""
        return len(find_blocks(self.model))

    @property
    def vocabulary_size(self) -> int:
        """Rows of its output embedding: numbers in the logits of one position."""
        head = self.model.get_output_embeddings()
        return int(self.model.config.vocab_size if head is None else head.weight.shape[0])

    @cached_property
    def padding_ids(self) -> Int[Tensor, " padding"]:
        """Rows of its output embedding that stand for no token: it is padded to a round size."""
        named = set(self.tokenizer.get_vocab().values()) | self.end_ids
        return torch.tensor([i for i in range(self.vocabulary_size) if i not in named]).long()

    def without_padding(
        self, logits: Float[Tensor, "*n vocabulary"]
    ) -> Float[Tensor, "*n vocabulary"]:
        """Its logits, with those that stand for no token at minus infinity."""
        if not len(self.padding_ids):
            return logits
        if logits.device not in self._padding_on:
            self._padding_on[logits.device] = self.padding_ids.to(logits.device)
        return logits.index_fill(-1, self._padding_on[logits.device], -torch.inf)

    @property
    def matmul_params(self) -> int:
        """Parameters used in matrix products: all except an input embedding that is only looked up.

        Processing a token takes about twice as many floating-point operations, without attention.
        """
        total: int = sum(parameter.numel() for parameter in self.model.parameters())
        embedding, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        is_tied = head is not None and head.weight is embedding.weight
        return total if is_tied else total - int(embedding.weight.numel())

    @property
    def end_ids(self) -> frozenset[int]:
        """Token ids that end an answer."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        ids = configured if isinstance(configured, list) else [configured]
        return frozenset(i for i in [*ids, self.tokenizer.eos_token_id] if i is not None)

    @property
    def context(self) -> int | None:
        """Maximum number of tokens that all layers can attend to; None if the config has no limit.

        For a model with sliding-window layers it is the window, within which these layers attend
        to all tokens as any other layer does.
        """
        config = self.model.config.get_text_config()
        types = getattr(config, "layer_types", None)
        is_windowed = types is None or any(name != "full_attention" for name in types)
        limits = [getattr(config, "max_position_embeddings", None)]
        if is_windowed:
            limits.append(self.window)
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def window(self) -> int | None:
        """The smallest window that its config names, whether or not a layer uses it."""
        config = self.model.config.get_text_config()
        names = ["sliding_window", "attention_chunk_size"]
        if "local" in (getattr(config, "attention_layers", None) or ()):
            names.append("window_size")  # GPT-Neo
        named = (getattr(config, name, None) for name in names)
        return min((size for size in named if size is not None), default=None)

    def prompt_ids(self, question: str) -> list[int]:
        """Token ids of the prompt that asks `question`."""
        return encode_prompt(self.tokenizer, self._prompt_text(question))

    @cached_property
    def starts_in_thinking(self) -> bool:
        """Whether its prompt ends in the opening think tag, so that answers begin in thinking."""
        return self.prompt_ends_in(self.think_tags[0])

    def prompt_ends_in(self, mark: str) -> bool:
        """Whether the last thing in its prompt is a mark, blanks aside."""
        return self._prompt_text("1 + 1?").rstrip().endswith(mark.strip())

    def _prompt_text(self, question: str) -> str:
        try:
            return prompt_text(self.tokenizer, question, self.prompt, self.template)
        except ModelError as error:
            raise ModelError(f"{self.name}: {error}") from error

    def check_steering(self, layer: int) -> None:
        """Check that block `layer` can be steered, and the output embedding used on its own.

        Raises:
            ModelError: there is no such layer, steering it has no effect, or logits depend on more
                than what the backbone returns.
        """
        check_layer(self.model, layer)
        check_steerable(self.model, layer)
        check_split_forward(self.model)


def load_model(
    source: str | Path,
    *,
    prompt: str = CHAT,
    think_tags: ThinkTags = THINK_TAGS,
    template: TemplateArguments | None = None,
    name: str | None = None,
    placement: Placement = Placement(),
) -> LanguageModel:
    """Load a model folder or hub id, frozen and in evaluation mode.

    Raises:
        ModelError: there is no model, its weights are broken, its blocks cannot be found, or the
            device is not there.
        InputError: a think tag is empty.
    """
    outline = outline_model(
        source,
        prompt=prompt,
        think_tags=think_tags,
        template=template,
        name=name,
        placement=placement,
    )
    folder, device = model_folder(source, placement.revision), placement.find_device()
    for file in folder.glob(WEIGHTS):
        read_header(file)
    kwargs: dict[str, Any] = {"dtype": outline.model.dtype}
    if placement.attention is not None:
        kwargs["attn_implementation"] = placement.attention
    if find_spec("accelerate") is not None and (placement.device_map or device.type == "cuda"):
        kwargs["device_map"] = placement.device_map or {"": device}
    elif placement.device_map is not None:
        raise MissingExtraError(
            "a device map needs the library `accelerate`; type: pip install 'howwhen[gpu]'"
        )
    if device.type == "cpu":
        keep_freed_memory()
    else:
        # cuDNN's attention gives gradients that are not numbers under some masks (PyTorch #196678).
        torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        with _bars_for_downloads_only(source):
            model = AutoModelForCausalLM.from_pretrained(folder, **kwargs)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise ModelError(
            f"cannot load a causal language model from {str(source)!r}: {error}. Give a folder "
            "written by save_pretrained, or a hub id reachable from here"
        ) from error
    if "device_map" not in kwargs:
        model.to(device)
    _check_all_on_gpus(model, source)
    return replace(outline, model=_prepared(model), device_type=None)


def outline_model(
    source: str | Path,
    *,
    prompt: str = CHAT,
    think_tags: ThinkTags = THINK_TAGS,
    template: TemplateArguments | None = None,
    name: str | None = None,
    placement: Placement = Placement(),
) -> LanguageModel:
    """All that a model's files say about it, with weights that hold no values (device `meta`).

    Raises:
        ModelError: there is no model, its blocks cannot be found, or the device is not there.
        InputError: a think tag is empty.
    """
    check_think_tags(think_tags)
    folder, device = model_folder(source, placement.revision), placement.find_device()
    if is_adapter(folder):
        raise ModelError(
            f"{str(source)!r} is an adapter (PEFT), not a model of its own; expected it as "
            "--thinking with its base as --base (or the other way round)"
        )
    try:
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        dtype = placement.find_dtype(config)
        attention = {"attn_implementation": placement.attention} if placement.attention else {}
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, **attention)
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"cannot load a causal language model and its tokenizer from {str(source)!r}: "
            f"{error}. Give a folder written by save_pretrained, or a hub id reachable from here"
        ) from error
    find_blocks(model)
    return LanguageModel(
        name=name or str(source),
        fingerprint=_fingerprint(model, tokenizer, folder),
        model=model,
        tokenizer=tokenizer,
        prompt=prompt,
        revision=commit_of(folder),
        think_tags=think_tags,
        template=template or {},
        device_type=device.type,
    )


def _check_all_on_gpus(model: Any, source: str | Path) -> None:
    """Refuse a device map that leaves weights out of the GPUs, where no block can be steered."""
    places = set(map(str, (getattr(model, "hf_device_map", None) or {}).values()))
    left_out = sorted(places & {"cpu", "disk"})
    if left_out and places - {"cpu"}:
        raise ModelError(
            f"{str(source)!r} does not fit on the GPUs: the device map puts parts of it on "
            f"{' and '.join(left_out)}. Use more GPUs, a quantised checkpoint, or --dtype bfloat16"
        )


@contextmanager
def _bars_for_downloads_only(source: str | Path) -> Iterator[None]:
    """Hide the library's progress bars while a folder is loaded, which takes seconds."""
    if not Path(source).is_dir() or not is_progress_bar_enabled():
        yield
        return
    disable_progress_bar()
    try:
        yield
    finally:
        enable_progress_bar()


def load_tokenizer(source: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder or hub id, without the model.

    Raises:
        ModelError: there is no tokenizer.
    """
    folder = model_folder(source, revision)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"cannot load a tokenizer from {str(source)!r}: {error}") from error
    return tokenizer


def wrap_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt: str = CHAT,
    think_tags: ThinkTags = THINK_TAGS,
    template: TemplateArguments | None = None,
    name: str,
) -> LanguageModel:
    """Make a language model of a loaded model, which is frozen and set to evaluation mode.

    It has no fingerprint, since it has no files.

    Raises:
        ModelError: its blocks cannot be found.
        InputError: a think tag is empty.
    """
    return LanguageModel(
        name=name,
        fingerprint="",
        model=_prepared(model),
        tokenizer=tokenizer,
        prompt=prompt,
        think_tags=think_tags,
        template=template or {},
    )


def _prepared(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, frozen and in evaluation mode."""
    model.eval().requires_grad_(False)
    find_blocks(model)
    _make_head_input_contiguous(model)
    multiply_in_float32(model)
    return model


def _make_head_input_contiguous(model: PreTrainedModel) -> None:
    """Make the output embedding copy its input if that is a slice of a batch.

    The matrix product would otherwise copy the whole embedding matrix for each sequence.
    """
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))


def _fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> str:
    """A short hash of config, end tokens, vocabulary, chat template and weights."""
    config = {
        name: value
        for name, value in model.config.to_diff_dict().items()
        if not name.startswith("_") and name not in _INCIDENTAL
    }
    end_ids = getattr(model.generation_config, "eos_token_id", None)
    template = getattr(tokenizer, "chat_template", None)
    vocabulary = sorted(tokenizer.get_vocab().items())
    described = [config, end_ids, vocabulary, template, weights_digest(folder)]
    content = json.dumps(described, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
