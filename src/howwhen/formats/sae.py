"""Taxonomies from the parts of SAEs that were trained elsewhere, checked part by part."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from howwhen.errors import InputError
from howwhen.probes import Sae, Taxonomy
from howwhen.vectors import all_finite

UNIT_TOLERANCE = 1e-3
"""Largest accepted difference between a decoder row's norm and 1."""


def check_sae(
    source: Path,
    encoder: Tensor,
    encoder_bias: Tensor,
    decoder: Tensor,
    decoder_bias: Tensor,
    k: Any,
) -> Sae:
    """Make an SAE of its parts.

    Raises:
        InputError: shapes that do not fit together, values that are not finite, decoder rows that
            are not of unit norm, or a k outside 1 to the number of latents.
    """
    if encoder.ndim != 2:
        raise InputError(
            f"{source}: the encoder has shape {tuple(encoder.shape)}; expected (latent, d_model)"
        )
    size, width = encoder.shape
    parts = {
        "encoder": (encoder, (size, width)),
        "encoder bias": (encoder_bias, (size,)),
        "decoder": (decoder, (size, width)),
        "decoder bias": (decoder_bias, (width,)),
    }
    for name, (tensor, expected) in parts.items():
        _check_tensor(source, name, tensor, expected)
    norms = decoder.float().norm(dim=1)
    if ((norms - 1).abs() > UNIT_TOLERANCE).any():
        raise InputError(
            f"{source}: decoder rows have norms from {float(norms.min()):.4g} to "
            f"{float(norms.max()):.4g}; expected unit norm, which makes latents comparable"
        )
    if not (type(k) is int and 1 <= k <= size):
        raise InputError(f"{source}: k is {k!r}; expected a whole number from 1 to {size}")
    return Sae(encoder.float(), encoder_bias.float(), decoder.float(), decoder_bias.float(), k)


def assemble(
    source: Path,
    sae: Sae,
    model: str,
    layer: int,
    titles: Sequence[str] | None,
    mean: Tensor,
) -> Taxonomy:
    """Make a taxonomy of an SAE. Without titles, its categories are `latent 0`, `latent 1`, ...

    Raises:
        InputError: titles or a mean that do not fit the SAE.
    """
    size, width = sae.encoder.shape
    titles = [f"latent {i}" for i in range(size)] if titles is None else titles
    if len(titles) != size or not all(isinstance(title, str) for title in titles):
        raise InputError(
            f"{source}: found {len(titles)} titles for {size} latents; expected one text each"
        )
    _check_tensor(source, "mean", mean, (width,))
    return Taxonomy(model, layer, mean.float(), sae, tuple(titles))


def _check_tensor(source: Path, name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise InputError(
            f"{source}: the {name} has shape {tuple(tensor.shape)}; expected {expected}"
        )
    if not all_finite([tensor]):
        raise InputError(f"{source}: the {name} holds values that are not finite")


def agree_on_layer(given: int | None, stated: int | None, source: Path) -> int:
    """The layer that the user gave or the file states.

    Raises:
        InputError: neither is known, or the two differ.
    """
    if given is not None and stated is not None and given != stated:
        raise InputError(
            f"--layer is {given}, but {source} says layer {stated}; leave --layer out, or give the "
            "file that belongs to the layer"
        )
    layer = stated if given is None else given
    if layer is None or layer < 0:
        raise InputError(
            f"{source} does not say whose block's output the SAE reads (layer: {layer}); type "
            "--layer N, counted from 0"
        )
    return layer


def read_mean(path: Path) -> Tensor:
    """Read the corpus mean from a safetensors file.

    Raises:
        InputError: a file that cannot be read, or holds no `mean`.
    """
    tensors = read_safetensors(path)
    if "mean" not in tensors:
        raise InputError(
            f"{path} holds {', '.join(sorted(tensors)) or 'nothing'}; expected the key `mean`"
        )
    return tensors["mean"]


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of anyone's safetensors file.

    Raises:
        InputError: a file that cannot be read.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {path}: {error}; expected a safetensors file") from error
