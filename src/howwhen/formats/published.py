"""The files that the paper's authors published: steering vectors, SAEs and titles.

Each is a `.pt` file with a flat dict of tensors, or JSON. `pickles` reads the tensors.
"""

import glob
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from howwhen.errors import InputError, SteeringError
from howwhen.formats.pickles import read_pickled_tensors
from howwhen.formats.sae import agree_on_layer, assemble, check_sae
from howwhen.probes import Taxonomy
from howwhen.vectors import VectorSet, all_finite

_KEY = re.compile(r"idx(?P<number>\d+)$")
_LAYER = re.compile(r"layer(\d+)")
_SAE_PARTS = ("encoder_weight", "encoder_bias", "decoder_weight", "b_dec", "topk")
_SAE_REST = ("input_dim", "num_latents", "loss", "cluster_labels", "cluster_centers")


def list_pt_files(paths: Sequence[Path]) -> list[Path]:
    """The files among `paths`, and the `.pt` files of its folders."""
    return [
        file for path in paths for file in (sorted(path.glob("*.pt")) if path.is_dir() else [path])
    ]


def read_published_vectors(
    paths: Sequence[Path], model: str, layer: int | None = None
) -> VectorSet:
    """Read one vector set from the files of the paper's first version.

    Args:
        paths: files with one vector each, under the key `bias` or `idxN` (N is the category), or
            folders of such files.
        model: name of the base model they steer.
        layer: 0-based block. Defaults to the layer in the `*hyperparams_NAME.json` files next to
            the vectors.

    Raises:
        InputError: no vectors, a category twice or missing, or no layer.
        SteeringError: widths that differ, or values that are not finite.
    """
    files = list_pt_files(paths)
    return as_vectors(files, read_pickled_tensors(files), model, layer)


def as_vectors(
    files: Sequence[Path], contents: Sequence[Mapping[str, Tensor]], model: str, layer: int | None
) -> VectorSet:
    """Make one vector set of the contents of published files; see `read_published_vectors`."""
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
    result = VectorSet(
        model,
        _layer_of_vectors(files) if layer is None else layer,
        torch.stack(vectors).float(),
        None if bias is None else bias.float(),
    )
    if not all_finite(result.tensors().values()):
        raise SteeringError("the files hold values that are not finite")
    return result


def _ordered(named: dict[str, Tensor]) -> list[Tensor]:
    matches = {key: _KEY.search(key) for key in named}
    unknown = [key for key, match in matches.items() if match is None]
    if unknown or not named:
        raise InputError(
            f"expected vectors under the keys idx0, idx1, ... and bias, found "
            f"{', '.join(unknown) or 'none'}"
        )
    numbers = {int(match["number"]): key for key, match in matches.items() if match is not None}
    missing = [number for number in range(max(numbers) + 1) if number not in numbers]
    if missing:
        raise InputError(
            f"the vectors of categories {missing} are missing; every category needs its vector"
        )
    return [named[numbers[number]] for number in range(len(numbers))]


def _layer_of_vectors(files: Sequence[Path]) -> int:
    """The steer layer that the hyperparameter files of these vectors name."""
    sheets = [sheet for file in files for sheet in _sheets(file)]
    layers = {_layer_of_sheet(sheet) for sheet in sheets}
    if len(layers) != 1:
        raise InputError(
            f"the steer layer is not known: {len(layers)} layers are named in the "
            f"{len(sheets)} hyperparameter files next to the vectors; type --layer N"
        )
    return layers.pop()


def _sheets(file: Path) -> list[Path]:
    """The hyperparameter files with a vector's name, in its folder or a folder next to that."""
    name = f"*hyperparams_{glob.escape(file.stem)}.json"
    folder = file.parent
    return [*folder.glob(name), *folder.parent.glob(f"*hyperparams*/{name}")]


def _layer_of_sheet(sheet: Path) -> int:
    try:
        layer = json.loads(sheet.read_bytes())["hyperparameters"]["layer"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(
            f"cannot read a layer in {sheet}: {error!r}; type --layer N, or repair the file"
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
    """Read a taxonomy from one of the authors' SAE files.

    Args:
        path: `.pt` file with an encoder, a decoder of unit rows, their biases and `topk`.
        model: name of the model whose residuals it reads.
        layer: 0-based block whose output it reads. Defaults to the one in the file's name.
        titles: one per latent. Defaults to `latent 0`, `latent 1`, ...
        mean: corpus mean of its training sentences, which the file does not hold. Defaults to 0,
            which shifts the categories of raw residuals.

    Raises:
        InputError: a file that is no such SAE, or titles, mean or layer that do not fit it.
    """
    agreed = agree_on_layer(layer, layer_in_name(path), path)
    (content,) = read_pickled_tensors([path])
    return as_taxonomy(path, content, model, agreed, titles, mean)


def is_sae(content: Mapping[str, Tensor]) -> bool:
    """Whether the content of a `.pt` file is an SAE rather than steering vectors."""
    return any(key in content for key in _SAE_PARTS)


def as_taxonomy(
    path: Path,
    content: Mapping[str, Tensor],
    model: str,
    layer: int,
    titles: Sequence[str] | None,
    mean: Tensor | None,
) -> Taxonomy:
    """Make a taxonomy of the content of a published SAE file; see `read_published_sae`."""
    missing = [key for key in _SAE_PARTS if key not in content]
    unknown = [key for key in content if key not in (*_SAE_PARTS, *_SAE_REST)]
    if missing or unknown:
        raise InputError(
            f"{path} lacks {', '.join(missing) or 'no key'} and has unknown keys "
            f"{', '.join(unknown) or '(none)'}; expected {', '.join(_SAE_PARTS)}, and "
            f"optionally {', '.join(_SAE_REST)}"
        )
    encoder, encoder_bias, decoder, decoder_bias = (content[key] for key in _SAE_PARTS[:4])
    sae = check_sae(path, encoder, encoder_bias, decoder, decoder_bias, content["topk"].tolist())
    for key, expected in zip(("num_latents", "input_dim"), sae.encoder.shape, strict=True):
        stated: object = content[key].tolist() if key in content else expected
        if stated != expected:
            raise InputError(f"{path}: {key} is {stated}, but the encoder says {expected}")
    mean = torch.zeros(len(decoder_bias)) if mean is None else mean
    return assemble(path, sae, model, layer, titles, mean)


def layer_in_name(path: Path) -> int | None:
    """The layer in an SAE file's name, such as 4 in `sae_layer4.pt`; None if there is none."""
    match = _LAYER.search(path.name)
    return int(match[1]) if match else None


def read_titles(path: Path) -> list[str]:
    """Read titles from JSON: a list, or an object with the list under `final_titles`.

    Raises:
        InputError: a file that cannot be read, or holds neither.
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
