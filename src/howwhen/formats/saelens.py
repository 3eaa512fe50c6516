"""Taxonomies as SAELens folders: `cfg.json`, `sae_weights.safetensors`, and our normaliser beside.

SAELens 6 reads such a folder with `SAE.load_from_disk`; neither writing nor reading one needs it.
`check_sae` and `assemble` make a taxonomy of anyone's SAE, or say why not.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from howwhen.errors import InputError
from howwhen.formats.files import write_whole
from howwhen.formats.safetensors import Json
from howwhen.probes import Sae, Taxonomy

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
NORMALISER = "normaliser.safetensors"
UNIT_TOLERANCE = 1e-3
"""How far a decoder row's norm may be from 1."""
_STATE = ("W_enc", "b_enc", "W_dec", "b_dec")
_OUTPUT_OF = re.compile(r"(?:blocks\.(\d+)\.hook_resid_post|(?:model\.)?layers\.(\d+))$")
_INPUT_OF = re.compile(r"blocks\.(\d+)\.hook_resid_pre$")


def export_saelens(folder: Path, taxonomy: Taxonomy) -> Path:
    """Write a taxonomy whose scorer is an SAE as a SAELens folder of architecture `topk`.

    What a reader in SAELens must know:

    - The SAE reads normalised residuals, and no normaliser of SAELens centres on a corpus mean:
      take `mean` from `normaliser.safetensors` and pass `(x - mean) / |x - mean|`.
    - Its pre-activations (`hook_sae_acts_pre`) are our scores, so their argmax is the category,
      always. The argmax of `encode` is the category wherever the best score is positive.
    - Codes and reconstructions agree with ours wherever the k kept scores are positive. SAELens
      sets kept scores below zero to 0, ours keeps them. None of its architectures keeps the k
      largest scores with their sign (`abstopk` ranks by magnitude, and so keeps other latents), and
      raising the encoder's bias until every score is positive would spoil the reconstruction.

    Returns:
        The folder.

    Raises:
        InputError: a taxonomy without an SAE.
    """
    sae = taxonomy.scorer
    if not isinstance(sae, Sae):
        raise InputError(
            f"a SAELens folder holds an SAE, but these categories were found by {sae.method}; type "
            "--to safetensors, or discover with an SAE"
        )
    state = {
        "W_enc": sae.encoder.T,
        "b_enc": sae.encoder_bias,
        "W_dec": sae.decoder,
        "b_dec": sae.decoder_bias,
    }
    write_whole(folder / WEIGHTS, _packed(state))
    write_whole(folder / NORMALISER, _packed({"mean": taxonomy.mean}))
    config = json.dumps(_make_config(taxonomy, sae), indent=2, ensure_ascii=False)
    write_whole(folder / CONFIG, f"{config}\n".encode())
    return folder


def _packed(tensors: dict[str, Tensor]) -> bytes:
    plain = {name: t.detach().float().cpu().clone().contiguous() for name, t in tensors.items()}
    return save(plain)


def _make_config(taxonomy: Taxonomy, sae: Sae) -> Json:
    size, width = sae.encoder.shape
    return {
        "architecture": "topk",
        "d_in": width,
        "d_sae": size,
        "k": sae.k,
        "rescale_acts_by_decoder_norm": False,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            # SAELens takes a config without a version, or of one before 6, for an older format.
            "sae_lens_version": "6.0.0",
            "sae_lens_training_version": None,
            "model_name": taxonomy.model,
            "hook_name": f"blocks.{taxonomy.layer}.hook_resid_post",
            "normaliser": NORMALISER,
            "input": "(x - mean) / |x - mean|, x being the residual, mean that of `normaliser`",
            "layer": taxonomy.layer,
            "titles": list(taxonomy.titles),
        },
    }


def read_saelens(
    folder: Path,
    model: str | None = None,
    layer: int | None = None,
    titles: Sequence[str] | None = None,
    mean: Tensor | None = None,
) -> Taxonomy:
    """Read a SAELens folder: ours, or a top-k SAE of others that was trained on such inputs.

    A taxonomy centres residuals on `mean` and scales them to unit norm before the SAE. Give the
    mean only where the SAE was trained on residuals treated so; of any other, the scores are off.

    Args:
        folder: with `cfg.json` and `sae_weights.safetensors`.
        model: name of the model whose residuals it reads; by default the config's `model_name`.
        layer: 0-based block whose output it reads; by default the one the config's hook names.
        titles: one per latent; by default the config's `titles`, or `latent 0`, `latent 1`, ...
        mean: of the residuals; by default the one in `normaliser.safetensors`.

    Raises:
        InputError: missing or damaged files, an SAE that is no plain top-k SAE, an unknown model,
            layer or mean, or values that do not fit together.
    """
    config = _read_config(folder / CONFIG)
    about = config["metadata"]
    sae = _read_sae(folder / WEIGHTS, config)
    if mean is None and not (folder / NORMALISER).exists():
        raise InputError(
            f"{folder} has no {NORMALISER}, so it is not known on which mean its SAE's inputs were "
            "centred; type --mean FILE.safetensors (key `mean`)"
        )
    if (model := model or about.get("model_name")) is None:
        raise InputError(f"{folder / CONFIG} names no model; type --model with its name")
    return assemble(
        folder,
        sae,
        model,
        agree_on_layer(layer, _layer_of_hook(about.get("hook_name")), folder / CONFIG),
        about.get("titles") if titles is None else titles,
        read_mean(folder / NORMALISER) if mean is None else mean,
    )


def _read_config(path: Path) -> Json:
    """The config of a top-k SAE without anything between its input and its encoder."""
    try:
        config = json.loads(path.read_bytes())
        found = {name: config.get(name, "none") for name in _EXPECTED}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"cannot read {path}: {error}; expected a folder that SAELens or howwhen wrote"
        ) from error
    for name, expected in _EXPECTED.items():
        if found[name] != expected:
            raise InputError(
                f"{path} has {name} {found[name]!r}, expected {expected!r}; an SAE of an older "
                "SAELens is brought up to date by loading and saving it with sae-lens 6"
            )
    about = config.get("metadata", {})
    if not isinstance(about, dict):
        raise InputError(f"{path} has no metadata that is an object; found {about!r}")
    kinds = {"model_name": str, "hook_name": str, "titles": list}
    for name, kind in kinds.items():
        if not isinstance(about.get(name), kind | None):
            raise InputError(
                f"{path} has {name} {str(about[name])[:60]!r} in its metadata; expected a "
                f"{kind.__name__}, or none"
            )
    return {**config, "metadata": about}


_EXPECTED = {
    "architecture": "topk",
    "normalize_activations": "none",
    "reshape_activations": "none",
}


def _read_sae(path: Path, config: Json) -> Sae:
    state = _read_tensors(path)
    if sorted(state) != sorted(_STATE):
        raise InputError(f"{path} holds {', '.join(sorted(state))}; expected {', '.join(_STATE)}")
    encoder, bias, decoder, shift = (state[name].float() for name in _STATE)
    shapes = [tuple(tensor.shape) for tensor in (encoder, bias, decoder, shift)]
    width, size = config.get("d_in"), config.get("d_sae")
    if shapes != [(width, size), (size,), (size, width), (width,)]:
        raise InputError(
            f"{path} has shapes {shapes} for {', '.join(_STATE)}, but {CONFIG} says d_in {width} "
            f"and d_sae {size}"
        )
    encoder = encoder.T.contiguous()
    if config.get("rescale_acts_by_decoder_norm", False):
        norm = decoder.norm(dim=1)
        encoder, bias, decoder = encoder * norm[:, None], bias * norm, decoder / norm[:, None]
    if not config.get("apply_b_dec_to_input", True):
        bias = bias + encoder @ shift  # our scores subtract the decoder's bias from the input
    return check_sae(path, encoder, bias, decoder, shift, config.get("k"))


def _layer_of_hook(hook: str | None) -> int | None:
    """The block whose output a hook reads, as far as its name tells."""
    if found := _OUTPUT_OF.search(hook or ""):
        return int(found[1] or found[2])
    found = _INPUT_OF.search(hook or "")
    return int(found[1]) - 1 if found and int(found[1]) else None


def check_sae(
    source: Path,
    encoder: Tensor,
    encoder_bias: Tensor,
    decoder: Tensor,
    decoder_bias: Tensor,
    k: Any,
) -> Sae:
    """An SAE of these parts.

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
    """A taxonomy of an SAE and what is known about it; without titles, a latent's is its number.

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
    if not torch.isfinite(tensor).all():
        raise InputError(f"{source}: the {name} holds values that are not finite")


def agree_on_layer(given: int | None, found: int | None, source: Path) -> int:
    """The layer that was given, or that a file names.

    Raises:
        InputError: neither, or both and they differ.
    """
    if given is not None and found is not None and given != found:
        raise InputError(
            f"--layer is {given}, but {source} says layer {found}; leave --layer out, or give the "
            "file that belongs to the layer"
        )
    layer = found if given is None else given
    if layer is None or layer < 0:
        raise InputError(
            f"{source} does not say whose block's output the SAE reads (layer: {layer}); type "
            "--layer N, counted from 0"
        )
    return layer


def read_mean(path: Path) -> Tensor:
    """The corpus mean in a safetensors file.

    Raises:
        InputError: a file that cannot be read, or holds no `mean`.
    """
    tensors = _read_tensors(path)
    if "mean" not in tensors:
        raise InputError(
            f"{path} holds {', '.join(sorted(tensors)) or 'nothing'}; expected the key `mean`"
        )
    return tensors["mean"]


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {path}: {error}; expected a safetensors file") from error
