"""Reading other people's vectors and SAEs, safely: the tensors inside, never the code.

A `.pt` file is a pickle. It is opened with `weights_only=True` in a child process that may be
killed, and refused when it asks for anything but tensors. What a file holds is told from its
content, never from its name.
"""

import glob
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load
from torch import Tensor

from howwhen.errors import InputError, SettingsError, SteeringError
from howwhen.formats.gguf import export_gguf
from howwhen.formats.saelens import (
    CONFIG,
    agree_on_layer,
    assemble,
    check_sae,
    export_saelens,
    read_mean,
    read_saelens,
)
from howwhen.formats.safetensors import load_saved, save_taxonomy, save_vectors
from howwhen.probes import Taxonomy
from howwhen.vectors import VectorSet

Format = Literal["safetensors", "gguf", "saelens"]

DEADLINE_SECONDS = 120.0
_SCRIPT = Path(__file__).with_name("unpickle.py")
_KEY = re.compile(r"idx(?P<number>\d+)$")
_LAYER = re.compile(r"layer(\d+)")
_SAE_PARTS = ("encoder_weight", "encoder_bias", "decoder_weight", "b_dec", "topk")
_SAE_REST = ("input_dim", "num_latents", "loss", "cluster_labels", "cluster_centers")


@dataclass(frozen=True)
class FileInfo:
    """What the user says of files that do not say it themselves."""

    model: str | None = None
    """Name of the model that vectors steer, or whose residuals an SAE reads."""
    layer: int | None = None
    """0-based block."""
    titles: Path | None = None
    """JSON file with one title per latent."""
    mean: Path | None = None
    """Safetensors file with the corpus `mean`."""

    def read(self) -> tuple[list[str] | None, Tensor | None]:
        """The titles and the mean, as far as files of them were named."""
        titles = None if self.titles is None else read_titles(self.titles)
        return titles, None if self.mean is None else read_mean(self.mean)

    def refuse(self, names: Sequence[str], why: str) -> None:
        """Refuse what was said needlessly, since it would be ignored."""
        if said := [f"--{name}" for name in names if getattr(self, name) is not None]:
            raise SettingsError(f"{why}; leave out {', '.join(said)}")


def read_any(paths: Sequence[Path], info: FileInfo = FileInfo()) -> VectorSet | Taxonomy:
    """Vectors or a taxonomy, whichever the files hold.

    Args:
        paths: `.pt` files or folders of them, one file of howwhen, or one SAELens folder.
        info: what the files do not say.

    Raises:
        InputError: files that cannot be read, or lack something that was not told either.
        StoreError: a damaged file of howwhen.
        SteeringError: vectors that do not fit together.
    """
    if any(path.suffix == ".safetensors" or (path / CONFIG).exists() for path in paths):
        return _read_one(paths, info)
    files = [file for path in paths for file in _files(path)]
    if not files:
        raise InputError(
            f"found no .pt file in {', '.join(map(str, paths)) or 'no path at all'}; expected .pt "
            "files, a .safetensors file of howwhen, or a SAELens folder"
        )
    titles, mean = info.read()
    contents = read_pickled_tensors(files)
    if not any(key in content for content in contents for key in _SAE_PARTS):
        info.refuse(("titles", "mean"), "these are steering vectors, which have no titles or mean")
        if info.model is None:
            raise SettingsError("whose vectors are these? Type --model with the base model's name")
        return _as_vectors(files, contents, info.model, info.layer)
    if len(files) > 1:
        raise InputError(f"found an SAE among {len(files)} files; convert one SAE at a time")
    if info.model is None:
        raise SettingsError(
            "whose residuals does this SAE read? Type --model with the thinking model's name"
        )
    layer = agree_on_layer(info.layer, _layer_in(files[0]), files[0])
    return as_taxonomy(files[0], contents[0], info.model, layer, titles, mean)


def _read_one(paths: Sequence[Path], info: FileInfo) -> VectorSet | Taxonomy:
    if len(paths) > 1:
        raise InputError(f"found {len(paths)} paths; expected {paths[0]} alone, or .pt files")
    if paths[0].is_dir():
        return read_saelens(paths[0], info.model, info.layer, *info.read())
    info.refuse(("model", "layer", "titles", "mean"), f"{paths[0]} says all of it itself")
    return load_saved(paths[0])


def write_any(out: Path, found: VectorSet | Taxonomy, to: Format) -> list[str]:
    """Write vectors or a taxonomy, and say in lines what was written.

    Raises:
        InputError: a format that cannot hold it, or an `out` that is in the way.
    """
    if to == "safetensors" and out.is_dir():
        raise InputError(f"{out} is a folder; type --out with the name of a file, which may be new")
    if to != "safetensors" and out.is_file():
        raise InputError(f"{out} is a file; for --to {to}, --out expects a folder")
    if isinstance(found, Taxonomy):
        return _write_taxonomy(out, found, to)
    size, width = found.vectors.shape
    if to == "saelens":
        raise InputError(
            "a SAELens folder holds an SAE, but these are steering vectors; type --to safetensors "
            "or --to gguf"
        )
    if to == "gguf":
        return [f"{len(export_gguf(out, found))} control vectors: {out}"]
    save_vectors(out, found)
    return [f"{size} vectors of width {width} for layer {found.layer}: {out}"]


def _write_taxonomy(out: Path, taxonomy: Taxonomy, to: Format) -> list[str]:
    if to == "gguf":
        raise InputError(
            "a GGUF control vector holds what to add to a residual, but this is a taxonomy, which "
            "only reads residuals; type --to safetensors or --to saelens"
        )
    if to == "saelens":
        export_saelens(out, taxonomy)
    else:
        save_taxonomy(out, taxonomy)
    width = len(taxonomy.mean)
    lines = [f"{taxonomy.size} categories of width {width} at layer {taxonomy.layer}: {out}"]
    return lines if taxonomy.mean.any() else [*lines, WITHOUT_MEAN]


WITHOUT_MEAN = (
    "Its corpus mean is 0, since none was given: what all residuals have in common counts towards "
    "the categories, which are shifted. Convert with --mean FILE.safetensors; the "
    "taxonomy.safetensors of a run that reads the same model at the same layer holds one"
)


def read_pickled_tensors(paths: Sequence[Path]) -> list[dict[str, Tensor]]:
    """The tensors of `.pt` files that hold flat dicts; numbers become tensors too.

    Raises:
        InputError: a file that is missing, damaged, or asks for more than tensors.
    """
    for path in paths:
        if not path.is_file():
            raise InputError(f"there is no file {path}; expected a .pt file with a dict of tensors")
    command = [sys.executable, "-P", str(_SCRIPT), *map(str, paths)]
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
        layer: 0-based block; read from the files `*hyperparams_NAME.json` beside them where
            absent.

    Raises:
        InputError: no vectors, a category twice or missing, or no layer.
        SteeringError: widths that differ, or values that are not finite.
    """
    files = [file for path in paths for file in _files(path)]
    return _as_vectors(files, read_pickled_tensors(files), model, layer)


def _as_vectors(
    files: Sequence[Path], contents: Sequence[dict[str, Tensor]], model: str, layer: int | None
) -> VectorSet:
    named: dict[str, Tensor] = {}
    for file, tensors in zip(files, contents, strict=True):
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
    sheets = [sheet for file in files for sheet in _sheets(file)]
    layers = {_layer_of_sheet(sheet) for sheet in sheets}
    if len(layers) != 1:
        raise InputError(
            f"the steer layer is not known: {len(layers)} layers are named in the "
            f"{len(sheets)} hyperparameter files beside the vectors; type --layer N"
        )
    return layers.pop()


def _sheets(file: Path) -> list[Path]:
    """The hyperparameter files that bear a vector's name: beside it, or in a folder beside its."""
    name = f"*hyperparams_{glob.escape(file.stem)}.json"
    folder = file.parent
    return [*folder.glob(name), *folder.parent.glob(f"*hyperparams*/{name}")]


def _layer_of_sheet(sheet: Path) -> int:
    try:
        layer = json.loads(sheet.read_bytes())["hyperparameters"]["layer"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(
            f"cannot read a layer in {sheet}: {error!r}; type --layer N, or mend the file"
        ) from error
    if not isinstance(layer, int) or layer < 0:
        raise InputError(f"{sheet} says layer {layer!r}; expected a block's number; type --layer N")
    return layer


def read_published_sae(
    path: Path,
    model: str,
    layer: int | None = None,
    titles: Sequence[str] | None = None,
    mean: Tensor | None = None,
) -> Taxonomy:
    """A taxonomy from one of the authors' SAE files.

    Args:
        path: `.pt` file with an encoder, a decoder of unit rows, their biases and `topk`.
        model: name of the model whose residuals it reads.
        layer: 0-based block whose output it reads; by default the one in the file's name.
        titles: one per latent; by default `latent 0`, `latent 1`, ...
        mean: corpus mean of its training sentences, which the file does not hold; 0 by default.
            Categories of raw residuals are then shifted.

    Raises:
        InputError: a file that is no such SAE, or titles, mean or layer that do not fit it.
    """
    agreed = agree_on_layer(layer, _layer_in(path), path)
    (content,) = read_pickled_tensors([path])
    return as_taxonomy(path, content, model, agreed, titles, mean)


def as_taxonomy(
    path: Path,
    content: dict[str, Tensor],
    model: str,
    layer: int,
    titles: Sequence[str] | None,
    mean: Tensor | None,
) -> Taxonomy:
    """A taxonomy of what a published SAE file holds; see `read_published_sae`."""
    missing = [key for key in _SAE_PARTS if key not in content]
    unknown = [key for key in content if key not in (*_SAE_PARTS, *_SAE_REST)]
    if missing or unknown:
        raise InputError(
            f"{path} lacks {', '.join(missing) or 'no key'} and has unknown keys "
            f"{', '.join(unknown) or '(none)'}; expected {', '.join(_SAE_PARTS)}, and nothing else "
            f"but {', '.join(_SAE_REST)}"
        )
    encoder, encoder_bias, decoder, decoder_bias = (content[key] for key in _SAE_PARTS[:4])
    sae = check_sae(path, encoder, encoder_bias, decoder, decoder_bias, content["topk"].tolist())
    for key, expected in zip(("num_latents", "input_dim"), sae.encoder.shape, strict=True):
        found: object = content[key].tolist() if key in content else expected
        if found != expected:
            raise InputError(f"{path}: {key} is {found}, but the encoder says {expected}")
    return assemble(
        path, sae, model, layer, titles, torch.zeros(len(decoder_bias)) if mean is None else mean
    )


def _layer_in(path: Path) -> int | None:
    found = _LAYER.search(path.name)
    return int(found[1]) if found else None


def read_titles(path: Path) -> list[str]:
    """Titles in a JSON file: a list, or an object with the list under `final_titles`.

    Raises:
        InputError: neither.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {error}; expected JSON with titles") from error
    titles = content.get("final_titles") if isinstance(content, dict) else content
    if not (isinstance(titles, list) and all(isinstance(title, str) for title in titles)):
        raise InputError(
            f"{path} holds no titles; expected a JSON list of texts, or an object with such a list "
            "under final_titles"
        )
    return titles
