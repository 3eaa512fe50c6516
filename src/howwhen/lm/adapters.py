"""A LoRA adapter on another model's weights: two models in the memory of one.

The adapted model is a second tree of modules whose tensors are those of the first, with the
adapter's own beside them. Nothing is switched on or off, so the first model computes what it
computes alone, to the last bit.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from howwhen.errors import MissingExtraError, ModelError
from howwhen.lm.checkpoint import commit_of, read_adapter_config, weights_digest
from howwhen.lm.models import LanguageModel
from howwhen.lm.prompts import CHAT, THINK_TAGS, TemplateArguments, ThinkTags
from howwhen.lm.residual import find_blocks

_INCIDENTAL = ("base_model_name_or_path", "inference_mode", "peft_version", "revision")
"""Entries of an adapter's config that no logit depends on."""
_REWRITING = ("pissa", "olora", "loftq", "corda", "eva", "lora_ga")
"""Ways to begin a LoRA that change the weights it is on."""


def outline_adapter(
    carrier: LanguageModel,
    folder: Path,
    *,
    name: str,
    prompt: str = CHAT,
    think_tags: ThinkTags = THINK_TAGS,
    template: TemplateArguments | None = None,
) -> LanguageModel:
    """All that the files of an adapter, and those of the model it is on, say of the two together.

    Args:
        carrier: outline of the model whose weights it is on.
        folder: the adapter's. If it holds a tokenizer, that one is used.
        name: as the user gave it.
        prompt: as in `load_model`.
        think_tags: likewise.
        template: likewise.

    Raises:
        ModelError: an adapter of another kind than LoRA, or one that changes the weights it is on.
    """
    config = _read_config(folder)
    is_own = (folder / "tokenizer_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(folder) if is_own else carrier.tokenizer
    described = [
        carrier.fingerprint,
        {key: value for key, value in config.items() if key not in _INCIDENTAL},
        getattr(tokenizer, "chat_template", None) if is_own else None,
        sorted(tokenizer.get_vocab().items()) if is_own else None,
        weights_digest(folder),
    ]
    content = json.dumps(described, sort_keys=True, default=str)
    return LanguageModel(
        name=name,
        fingerprint=hashlib.sha256(content.encode()).hexdigest()[:16],
        model=carrier.model,
        tokenizer=tokenizer,
        prompt=prompt,
        revision=commit_of(folder),
        think_tags=think_tags,
        template=template or {},
        device_type=carrier.device_type,
    )


def load_adapter(carrier: LanguageModel, folder: Path, outline: LanguageModel) -> LanguageModel:
    """A model with an adapter, on the weights of a loaded model, which stays as it is.

    Args:
        carrier: the loaded model.
        folder: the adapter's.
        outline: what `outline_adapter` returned.

    Raises:
        MissingExtraError: PEFT is not installed.
        ModelError: the adapter does not fit the model.
    """
    try:
        from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
        from peft.utils import load_peft_weights
    except ImportError as error:
        raise MissingExtraError(
            f"{outline.name} is an adapter, which is read with PEFT; type: pip install "
            "'howwhen[peft]'"
        ) from error
    twin = _twin(carrier.model)
    try:
        with ignore_deprecated_names():
            config = LoraConfig.from_pretrained(str(folder))
            config.inference_mode = True
            adapted = PeftModel(twin, config)
            stored = _without_copies(load_peft_weights(str(folder), device="cpu"), twin)
            _check_names(stored, get_peft_model_state_dict(adapted, save_embedding_layers=False))
            set_peft_model_state_dict(adapted, stored)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"the adapter {outline.name} does not fit {carrier.name}: {error}. It was made for "
            f"{_read_config(folder).get('base_model_name_or_path')!r}"
        ) from error
    model: PreTrainedModel = adapted.get_base_model()
    model.eval().requires_grad_(False)
    find_blocks(model)
    return replace(outline, model=model, device_type=None)


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """The same modules once more, with the very same tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        tensors += [value for value in vars(module).values() if isinstance(value, Tensor)]
    return deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _read_config(folder: Path) -> dict[str, Any]:
    """An adapter's config, refused if the adapter would change the weights it is on."""
    config = read_adapter_config(folder)
    kind = config["peft_type"]
    how = "merge it (merge_and_unload, then save_pretrained) and give the merged model"
    if kind != "LORA":
        raise ModelError(f"{folder} is an adapter of the kind {kind}; expected LORA. Else {how}")
    begun = config.get("init_lora_weights", True)
    changes = [
        f"bias {config['bias']!r}" if config.get("bias", "none") != "none" else "",
        f"init_lora_weights {begun!r}" if str(begun).lower().startswith(_REWRITING) else "",
    ]
    if any(changes):
        raise ModelError(
            f"{folder} is an adapter that changes the weights it is on "
            f"({', '.join(filter(None, changes))}), which two models share here; {how}"
        )
    return config


def _without_copies(stored: Mapping[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
    """An adapter's weights without copies of the model's own, as PEFT saves of embeddings."""
    own = model.state_dict()

    def is_copy(name: str, tensor: Tensor) -> bool:
        same = own.get(name.removeprefix("base_model.model."))
        if same is None or same.shape != tensor.shape:
            return False
        return torch.equal(same, tensor.to(same))

    return {name: tensor for name, tensor in stored.items() if not is_copy(name, tensor)}


def _check_names(stored: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse weights that have no place or another shape, and places that get no weight."""
    missing, unknown = expected.keys() - stored.keys(), stored.keys() - expected.keys()
    if missing:
        raise ValueError(f"it lacks {len(missing)} weights, such as {min(missing)}")
    if unknown:
        raise ValueError(f"it has {len(unknown)} weights too many, such as {min(unknown)}")
    for name, tensor in expected.items():
        if stored[name].shape != tensor.shape:
            found, needed = tuple(stored[name].shape), tuple(tensor.shape)
            raise ValueError(f"its weight {name} has the shape {found}, expected {needed}")


@contextmanager
def ignore_deprecated_names() -> Iterator[None]:
    """Silence a warning about a name that PEFT uses and transformers 6 will remove."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield
