"""Reading other people's vector files, safely: the tensors inside, never the code.

A `.pt` file is a pickle. It is opened with `weights_only=True` in a child process that may be
killed, and refused when it asks for anything but tensors.
"""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor

from howwhen.errors import InputError, SteeringError
from howwhen.records import VectorSet

DEADLINE_SECONDS = 120.0
_SCRIPT = Path(__file__).with_name("unpickle.py")
_KEY = re.compile(r"idx(?P<number>\d+)$")


def read_pickled_tensors(paths: Sequence[Path]) -> list[dict[str, Tensor]]:
    """The tensors of `.pt` files that hold flat dicts; numbers become tensors too.

    Raises:
        InputError: a file that is missing, damaged, or asks for more than tensors.
    """
    for path in paths:
        if not path.is_file():
            raise InputError(f"there is no file {path}; expected a .pt file with a dict of tensors")
    command = [sys.executable, str(_SCRIPT), *map(str, paths)]
    try:
        child = subprocess.run(command, capture_output=True, timeout=DEADLINE_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{paths[0]} did not load within {DEADLINE_SECONDS:.0f} s") from error
    if child.returncode:
        why = child.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise InputError(
            f"refused: {why or 'the process that read it died'}. howwhen reads tensors from "
            "pickles and nothing else, since a pickle can run code; ask for a safetensors file, or "
            "save the tensors alone"
        )
    found: list[dict[str, Tensor]] = [{} for _ in paths]
    for name, tensor in load(child.stdout).items():
        number, _, key = name.partition("/")
        found[int(number)][key] = tensor
    return found


def read_published_vectors(
    paths: Sequence[Path], model: str, layer: int | None = None
) -> VectorSet:
    """One vector set from the authors' files of the first version.

    Args:
        paths: files with one vector each, under the key `bias` or `idxN` (N is the category), or
            folders of such files.
        model: name of the base model they steer.
        layer: 0-based block; read from `*hyperparameters*.json` files beside them where absent.

    Raises:
        InputError: no vectors, a category twice or missing, or no layer.
        SteeringError: widths that differ, or values that are not finite.
    """
    files = [file for path in paths for file in _files(path)]
    named: dict[str, Tensor] = {}
    for file, tensors in zip(files, read_pickled_tensors(files), strict=True):
        for key, tensor in tensors.items():
            if key in named:
                raise InputError(f"{key} is in two of the files, the second is {file}")
            named[key] = tensor
    bias = named.pop("bias", None)
    vectors = _ordered(named)
    widths = {tuple(tensor.shape) for tensor in (*vectors, *([] if bias is None else [bias]))}
    if len(widths) != 1 or len(next(iter(widths))) != 1:
        raise SteeringError(f"expected vectors of one width, found shapes {sorted(widths)}")
    found = VectorSet(
        model,
        _layer_beside(files) if layer is None else layer,
        torch.stack(vectors).float(),
        None if bias is None else bias.float(),
    )
    if not all(torch.isfinite(tensor).all() for tensor in found.tensors().values()):
        raise SteeringError("the files hold values that are not finite")
    return found


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.glob("*.pt"))
    return [path]


def _ordered(named: dict[str, Tensor]) -> list[Tensor]:
    keys = {key: _KEY.search(key) for key in named}
    unknown = [key for key, found in keys.items() if found is None]
    if unknown or not named:
        raise InputError(
            f"expected vectors under the keys idx0, idx1, ... and bias, found "
            f"{', '.join(unknown) or 'none'}"
        )
    numbers = {int(found["number"]): key for key, found in keys.items() if found is not None}
    missing = [number for number in range(max(numbers) + 1) if number not in numbers]
    if missing:
        raise InputError(
            f"the vectors of categories {missing} are missing; every category needs its vector"
        )
    return [named[numbers[number]] for number in range(len(numbers))]


def _layer_beside(files: Sequence[Path]) -> int:
    """The steer layer that the authors' hyperparameter files name."""
    folders = {folder for file in files for folder in (file.parent, file.parent.parent)}
    sheets = [sheet for folder in folders for sheet in folder.rglob("*hyperparams*.json")]
    layers = {json.loads(sheet.read_text())["hyperparameters"]["layer"] for sheet in sheets}
    if len(layers) != 1:
        raise InputError(
            f"the steer layer is not known: {len(layers)} layers are named in the "
            f"{len(sheets)} hyperparameter files beside the vectors; type --layer N"
        )
    return int(layers.pop())
