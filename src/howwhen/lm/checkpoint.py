"""A model's files: where they are, whether they are whole, and a fingerprint of the weights.

Nothing here loads a weight. A hub id is a folder too: its snapshot in the hub's cache.
"""

import hashlib
import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from howwhen.errors import ModelError

WEIGHTS = "*.safetensors"
OLD_WEIGHTS = ("pytorch_model*.bin", "adapter_model.bin")
ADAPTER_CONFIG = "adapter_config.json"
"""The file that tells an adapter (PEFT) from a model."""
_UNUSED = [
    "*.bin", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.ot", "*.pth", "*.pt", "original/*",
]  # fmt: skip
"""What a repository on the hub may hold besides the model."""
STRETCHES = 16
"""Evenly spaced parts of a tensor that count in the fingerprint."""
STRETCH_BYTES = 512
MAX_HEADER_BYTES = 100_000_000
"""Longest header of a safetensors file, as the format says."""


class StoredTensor(NamedTuple):
    """One tensor of a file."""

    name: str
    dtype: str
    """As the file names it, such as `BF16`."""
    shape: tuple[int, ...]
    start: int
    """First byte in the file."""
    end: int


def model_folder(source: str | Path, revision: str | None = None) -> Path:
    """The folder of a model: as given, or the snapshot of a hub id, fetched if it is not there.

    Args:
        source: folder or hub id.
        revision: branch, tag or commit on the hub; the main branch by default.

    Raises:
        ModelError: there is no such folder, or the hub cannot give the model.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ModelError(
                f"{str(source)!r} is a folder, so there is no revision {revision!r} of it; leave "
                "the revision away, or name a model on the hub"
            )
        return folder
    if isinstance(source, Path) or source.startswith((".", "/", "~")):
        raise ModelError(
            f"there is no model folder {str(source)!r}; expected a folder with config.json and "
            "*.safetensors. `howwhen zoo list` shows the pairs that come with names"
        )
    try:
        snapshot = Path(snapshot_download(source, revision=revision, ignore_patterns=_UNUSED))
        if not any(snapshot.glob(WEIGHTS)):
            snapshot_download(source, revision=revision, allow_patterns=[*OLD_WEIGHTS, "*.bin.*"])
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"cannot get {source!r} from the hub: {error}. Give a folder written by "
            "save_pretrained, or a hub id reachable from here"
        ) from error
    return snapshot


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter (PEFT), and not a model of its own."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The config of an adapter, with its kind as `peft_type`.

    Raises:
        ModelError: it cannot be read, or names no kind.
    """
    file = folder / ADAPTER_CONFIG
    try:
        config = json.loads(file.read_bytes())
        return {**config, "peft_type": config["peft_type"]}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(
            f"cannot read {file}: {error!r}; expected a folder written by PEFT's save_pretrained"
        ) from error


def commit_of(folder: Path) -> str | None:
    """Commit on the hub that a folder is a snapshot of; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def read_header(file: Path) -> list[StoredTensor]:
    """The tensors of a safetensors file.

    Raises:
        ModelError: the file is cut off, or is none.
    """
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(min(length, MAX_HEADER_BYTES)))
        header.pop("__metadata__", None)
        tensors = [
            StoredTensor(
                name,
                entry["dtype"],
                tuple(entry["shape"]),
                *(8 + length + offset for offset in entry["data_offsets"]),
            )
            for name, entry in header.items()
        ]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{file} is not a complete safetensors file ({error}); expected weights written by "
            "save_pretrained. Copy or download the file again"
        ) from error
    expected, size = max((t.end for t in tensors), default=8 + length), file.stat().st_size
    if size != expected:
        raise ModelError(
            f"{file} is not a complete safetensors file: it has {size} bytes, expected {expected}. "
            "Copy or download the file again"
        )
    return tensors


def weights_digest(folder: Path) -> str:
    """A hash of a folder's weights: of every tensor its name, type, shape and 16 stretches of it.

    The same however the tensors are spread over files. Files of the older format are hashed whole.
    """
    digest = hashlib.sha256()
    files = sorted(folder.glob(WEIGHTS))
    for line in sorted(line for file in files for line in _tensor_lines(file)):
        digest.update(line)
    old = sorted(file for pattern in OLD_WEIGHTS for file in folder.glob(pattern))
    for file in () if files else old:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _tensor_lines(file: Path) -> Iterator[bytes]:
    tensors = read_header(file)
    if not tensors:
        return
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for tensor in tensors:
            size = tensor.end - tensor.start
            step = max(1, size - STRETCH_BYTES) / (STRETCHES - 1)
            starts = {tensor.start + int(number * step) for number in range(STRETCHES)}
            stretches = (data[s : min(s + STRETCH_BYTES, tensor.end)] for s in sorted(starts))
            content = hashlib.sha256(b"".join(stretches)).hexdigest()
            yield f"{tensor.name} {tensor.dtype} {tensor.shape} {content}\n".encode()
