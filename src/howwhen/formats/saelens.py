"""Taxonomies as SAELens folders: `cfg.json`, `sae_weights.safetensors`, `normaliser.safetensors`.

SAELens 6 reads such a folder with `SAE.load_from_disk`. Writing or reading one does not need
SAELens itself.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from howwhen.errors import InputError
from howwhen.formats.files import Json, write_whole
from howwhen.formats.sae import agree_on_layer, assemble, check_sae, read_mean, read_safetensors
from howwhen.probes import Sae, Taxonomy

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
NORMALISER = "normaliser.safetensors"
_STATE = ("W_enc", "b_enc", "W_dec", "b_dec")
_OUTPUT_OF = re.compile(r"(?:blocks\.(\d+)\.hook_resid_post|(?:model\.)?layers\.(\d+))$")
_INPUT_OF = re.compile(r"blocks\.(\d+)\.hook_resid_pre$")


def export_saelens(folder: Path, taxonomy: Taxonomy) -> Path:
    """Write a taxonomy whose scorer is an SAE as a SAELens folder of architecture `topk`.

    To use the SAE in SAELens:

    - Normalise the residuals first. No normaliser of SAELens centres on a corpus mean, so take
      `mean` from `normaliser.safetensors` and pass `(x - mean) / |x - mean|`.
    - The argmax of the pre-activations (`hook_sae_acts_pre`) is always the category. The argmax of
      `encode` is the category wherever the largest score is positive.
    - Codes and reconstructions equal howwhen's wherever the k kept scores are positive. SAELens
      clips negative kept scores to 0, howwhen keeps them. None of its architectures keeps the k
      largest scores with their sign (`abstopk` ranks by magnitude, which selects other latents),
      and raising the encoder's bias to make every score positive would change the reconstruction.

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
    write_whole(folder / WEIGHTS, _serialize(state))
    write_whole(folder / NORMALISER, _serialize({"mean": taxonomy.mean}))
    config = json.dumps(_make_config(taxonomy, sae), indent=2, ensure_ascii=False)
    write_whole(folder / CONFIG, f"{config}\n".encode())
    return folder


def _serialize(tensors: dict[str, Tensor]) -> bytes:
    return save(
        {
            name: tensor.detach().float().cpu().clone().contiguous()
            for name, tensor in tensors.items()
        }
    )


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
            # SAELens reads a config with no version, or one below 6, as an older format.
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
    """Read a SAELens folder written by howwhen, or any top-k SAE trained on normalised residuals.

    A taxonomy subtracts `mean` from residuals and scales them to unit norm before the SAE. Give a
    mean only if the SAE was trained on residuals normalised that way, otherwise its scores are
    wrong.

    Args:
        folder: holds `cfg.json` and `sae_weights.safetensors`.
        model: name of the model whose residuals the SAE reads. Defaults to the config's
            `model_name`.
        layer: 0-based block whose output the SAE reads. Defaults to the layer of the config's
            hook.
        titles: one per latent. Defaults to the config's `titles`, or `latent 0`, `latent 1`, ...
        mean: corpus mean of the residuals. Defaults to the one in `normaliser.safetensors`.

    Raises:
        InputError: missing or damaged files, an SAE that is not a plain top-k SAE, an unknown
            model, layer or mean, or values that do not fit together.
    """
    config = _read_config(folder / CONFIG)
    metadata = config["metadata"]
    sae = _read_sae(folder / WEIGHTS, config)
    if mean is None and not (folder / NORMALISER).exists():
        raise InputError(
            f"{folder} has no {NORMALISER}, so it is not known on which mean its SAE's inputs were "
            "centred; type --mean FILE.safetensors (key `mean`)"
        )
    if (model := model or metadata.get("model_name")) is None:
        raise InputError(f"{folder / CONFIG} names no model; type --model with its name")
    return assemble(
        folder,
        sae,
        model,
        agree_on_layer(layer, _layer_of_hook(metadata.get("hook_name")), folder / CONFIG),
        metadata.get("titles") if titles is None else titles,
        read_mean(folder / NORMALISER) if mean is None else mean,
    )


def _read_config(path: Path) -> Json:
    """Read the config of a top-k SAE that applies nothing between its input and its encoder."""
    try:
        config = json.loads(path.read_bytes())
        values = {name: config.get(name, "none") for name in _EXPECTED}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"cannot read {path}: {error}; expected a folder that SAELens or howwhen wrote"
        ) from error
    for name, expected in _EXPECTED.items():
        if values[name] != expected:
            raise InputError(
                f"{path} has {name} {values[name]!r}, expected {expected!r}; to update an SAE of "
                "an older SAELens, load and save it with sae-lens 6"
            )
    metadata = config.get("metadata", {})
    if not isinstance(metadata, dict):
        raise InputError(f"{path} has no metadata that is an object; found {metadata!r}")
    types = {"model_name": str, "hook_name": str, "titles": list}
    for name, expected_type in types.items():
        if not isinstance(metadata.get(name), expected_type | None):
            raise InputError(
                f"{path} has {name} {str(metadata[name])[:60]!r} in its metadata; expected a "
                f"{expected_type.__name__}, or none"
            )
    return {**config, "metadata": metadata}


_EXPECTED = {
    "architecture": "topk",
    "normalize_activations": "none",
    "reshape_activations": "none",
}


def _read_sae(path: Path, config: Json) -> Sae:
    state = read_safetensors(path)
    if sorted(state) != sorted(_STATE):
        raise InputError(f"{path} holds {', '.join(sorted(state))}; expected {', '.join(_STATE)}")
    encoder, bias, decoder, decoder_bias = (state[name].float() for name in _STATE)
    shapes = [tuple(tensor.shape) for tensor in (encoder, bias, decoder, decoder_bias)]
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
        bias = bias + encoder @ decoder_bias  # Sae subtracts the decoder's bias first
    return check_sae(path, encoder, bias, decoder, decoder_bias, config.get("k"))


def _layer_of_hook(hook: str | None) -> int | None:
    """The block whose output a hook reads; None if its name does not say."""
    if output := _OUTPUT_OF.search(hook or ""):
        return int(output[1] or output[2])
    input_ = _INPUT_OF.search(hook or "")
    return int(input_[1]) - 1 if input_ and int(input_[1]) else None
