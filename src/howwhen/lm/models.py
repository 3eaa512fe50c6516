"""A language model with its tokenizer and prompt, loaded offline-first and checked.

Loading answers the questions that would otherwise surface hours later: is the folder there, are
the weights whole, are the decoder blocks found, does steering work and come off again.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from howwhen.errors import ModelError
from howwhen.lm.prompts import CHAT, THINK_TAGS, ThinkTags, check_think_tags
from howwhen.lm.residual import check_layer, check_steerable, find_blocks

_INCIDENTAL = ("architectures", "dtype", "torch_dtype", "transformers_version")
"""What a config holds and no logit depends on."""


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model in evaluation mode, its tokenizer, and how it is asked."""

    name: str
    """Hub id, folder or name in the zoo, as the user knows it."""
    fingerprint: str
    """Hash of all that decides what it writes; part of every run's provenance."""
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompt: str = CHAT
    """`chat`, or a format string with `{question}`."""
    revision: str | None = None
    """Commit on the hub, where the model came from there."""
    think_tags: ThinkTags = THINK_TAGS
    """What opens and what closes the thinking part of its answers."""

    def __post_init__(self) -> None:
        check_think_tags(self.think_tags)

    @property
    def layer_count(self) -> int:
        """Number of decoder blocks."""
        return len(find_blocks(self.model))

    @property
    def matmul_params(self) -> int:
        """Parameters that a token is multiplied with: all but a token embedding that is looked up.

        Reading a token takes about twice as many floating-point operations, attention apart.
        """
        every: int = sum(one.numel() for one in self.model.parameters())
        looked_up, last = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        is_tied = last is not None and last.weight is looked_up.weight
        return every if is_tied else every - int(looked_up.weight.numel())

    @property
    def end_ids(self) -> frozenset[int]:
        """Token ids that end an answer."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        ids = configured if isinstance(configured, list) else [configured]
        return frozenset(i for i in [*ids, self.tokenizer.eos_token_id] if i is not None)

    @property
    def context(self) -> int | None:
        """Most tokens that every layer can attend to, where the config says so.

        Of a model with windowed layers it is the window: up to there they attend to everything,
        and a text is read as it is anywhere else.
        """
        config = self.model.config.get_text_config()
        kinds = getattr(config, "layer_types", None)
        is_windowed = kinds is None or any(kind != "full_attention" for kind in kinds)
        windows = ("sliding_window", "attention_chunk_size") if is_windowed else ()
        limits = [getattr(config, name, None) for name in ("max_position_embeddings", *windows)]
        return min((limit for limit in limits if limit is not None), default=None)

    def prompt_ids(self, question: str) -> list[int]:
        """Token ids of `question`, ready to be answered."""
        if self.prompt != CHAT:
            return list(self.tokenizer(self.prompt.format(question=question))["input_ids"])
        if self.tokenizer.chat_template is None:
            raise ModelError(
                f"{self.name} is to be asked in its chat format, but its tokenizer has no chat "
                'template; set another prompt, such as "Question: {question}\\nAnswer:"'
            )
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def check_steering(self, layer: int) -> None:
        """Fail now if block `layer` cannot be steered."""
        check_layer(self.model, layer)
        check_steerable(self.model, layer)


def load_model(
    source: str | Path,
    *,
    prompt: str = CHAT,
    think_tags: ThinkTags = THINK_TAGS,
    name: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> LanguageModel:
    """Load a model folder or hub id.

    Raises:
        ModelError: nothing there, broken weights, or a model whose blocks cannot be found.
        InputError: an empty marker.
    """
    check_think_tags(think_tags)
    _check_folder(source)
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"cannot load a causal language model and its tokenizer from {str(source)!r}: "
            f"{error}. Give a folder written by save_pretrained, or a hub id reachable from here"
        ) from error
    return wrap_model(
        model, tokenizer, prompt=prompt, think_tags=think_tags, name=name or str(source)
    )


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder or hub id, without the model.

    Raises:
        ModelError: nothing there.
    """
    _check_folder(source)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"cannot load a tokenizer from {str(source)!r}: {error}") from error
    return tokenizer


def wrap_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt: str = CHAT,
    think_tags: ThinkTags = THINK_TAGS,
    name: str,
) -> LanguageModel:
    """A model at hand as a language model: frozen, in evaluation mode, its blocks found.

    Raises:
        ModelError: its blocks cannot be found.
        InputError: an empty marker.
    """
    model.eval().requires_grad_(False)
    find_blocks(model)
    _make_head_input_contiguous(model)
    revision = getattr(model.config, "_commit_hash", None)
    mark = fingerprint(model, tokenizer)
    return LanguageModel(name, mark, model, tokenizer, prompt, revision, think_tags)


def _make_head_input_contiguous(model: PreTrainedModel) -> None:
    """Let the output embedding copy its input where that is a slice of a batch.

    A matrix product of such a slice would copy the whole vocabulary for every sequence instead.
    """
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))


def fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """A short hash of config, vocabulary, chat template and weights.

    Of every weight its name, its shape and up to 4,096 evenly spread values are taken.
    """
    digest = hashlib.sha256()
    config = {
        name: value
        for name, value in model.config.to_diff_dict().items()
        if not name.startswith("_") and name not in _INCIDENTAL
    }
    end = getattr(model.generation_config, "eos_token_id", None)
    template = getattr(tokenizer, "chat_template", None)
    described = [config, end, sorted(tokenizer.get_vocab().items()), template]
    digest.update(json.dumps(described, sort_keys=True, default=str).encode())
    for key, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 4096)].float().cpu().contiguous()
        digest.update(f"{key}{tuple(tensor.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_folder(source: str | Path) -> None:
    folder = Path(source)
    looks_local = isinstance(source, Path) or str(source).startswith((".", "/", "~"))
    if looks_local and not folder.is_dir():
        raise ModelError(
            f"there is no model folder {str(source)!r}; expected a folder with config.json and "
            "*.safetensors. `howwhen zoo list` shows the pairs that come with names"
        )
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        _check_weights(file)


def _check_weights(file: Path) -> None:
    try:
        with safe_open(file, "pt") as opened:
            _ = opened.keys()
    except SafetensorError as error:
        raise ModelError(
            f"{file} is not a whole safetensors file ({error}); expected weights as "
            "save_pretrained writes them. Copy or download the file again"
        ) from error
