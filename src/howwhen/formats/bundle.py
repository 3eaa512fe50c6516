"""A taxonomy together with the vectors that belong to it, in the files of the paper's authors."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from howwhen.errors import InputError
from howwhen.formats.files import write_whole
from howwhen.formats.pickles import read_pickled_tensors
from howwhen.formats.published import (
    as_taxonomy,
    as_vectors,
    is_sae,
    layer_in_name,
    list_pt_files,
)
from howwhen.formats.sae import agree_on_layer
from howwhen.formats.safetensors import write_tensors
from howwhen.probes import Sae, Taxonomy
from howwhen.vectors import VectorSet

FOLDER = "vectors"
"""Where published vectors are, beside their SAE."""


@dataclass(frozen=True)
class Bundle:
    """A taxonomy, and a vector for each of its categories."""

    taxonomy: Taxonomy
    vectors: VectorSet

    def __post_init__(self) -> None:
        if self.taxonomy.size != self.vectors.size:
            raise InputError(
                f"found {self.vectors.size} vectors for {self.taxonomy.size} categories; expected "
                "a vector for every category"
            )


def read_bundle(
    paths: Sequence[Path],
    base: str,
    thinking: str,
    titles: Sequence[str] | None = None,
    mean: Tensor | None = None,
) -> Bundle:
    """Read an SAE and vectors from files that the paper's authors published.

    Args:
        paths: `.pt` files or folders of them: one SAE, and a vector for each of its latents. What
            is in a folder's own folder `vectors` counts too.
        base: name of the model that the vectors steer.
        thinking: name of the model whose residuals the SAE reads.
        titles: one per latent.
        mean: corpus mean of the SAE's training sentences.

    Raises:
        InputError: files that cannot be read, or are not one SAE and its vectors.
        SteeringError: vectors that do not fit together.
    """
    inside = [path / FOLDER for path in paths if (path / FOLDER).is_dir()]
    files = list_pt_files([*paths, *(one for one in inside if one not in paths)])
    contents = dict(zip(files, read_pickled_tensors(files), strict=True)) if files else {}
    saes = [file for file, content in contents.items() if is_sae(content)]
    others = [file for file in contents if file not in saes]
    if len(saes) != 1 or not others:
        raise InputError(
            f"found {len(saes)} SAEs and {len(others)} vectors in "
            f"{', '.join(map(str, paths)) or 'no path at all'}; expected one SAE and a vector for "
            "each of its latents, as .pt files or folders of them"
        )
    sae = saes[0]
    layer = agree_on_layer(None, layer_in_name(sae), sae)
    return Bundle(
        as_taxonomy(sae, contents[sae], thinking, layer, titles, mean),
        as_vectors(others, [contents[file] for file in others], base, None),
    )


def write_published(out: Path, bundle: Bundle) -> list[str]:
    """Write `.pt` files as the paper's first version has them; returns what was written.

    The SAE is `sae_THINKING_layerL_clustersK.pt`, and each vector `vectors/BASE_idxN_linear.pt`
    under the key `idxN` (`bias` for the bias vector), with its layer in a sheet of hyperparameters.
    `titles.json` and `mean.safetensors` are beside them: the layout has no place for the SAE's
    corpus mean.

    Raises:
        InputError: a taxonomy that is no SAE, or vectors that depend on the residual.
    """
    taxonomy, vectors = bundle.taxonomy, bundle.vectors
    if not isinstance(taxonomy.scorer, Sae) or not vectors.is_static:
        raise InputError(
            f"found a taxonomy of method {taxonomy.scorer.method} and vectors that are "
            f"{'static' if vectors.is_static else 'scaled by the residual'}; the published layout "
            "holds an SAE and static vectors (--elicit.form linear)"
        )
    out.mkdir(parents=True, exist_ok=True)
    name = Path(taxonomy.model).name.lower()
    sae = out / f"sae_{name}_layer{taxonomy.layer}_clusters{taxonomy.size}.pt"
    torch.save(_sae_content(taxonomy.scorer), sae)
    rows = {f"idx{number}": row for number, row in enumerate(vectors.vectors)}
    if vectors.bias is not None:
        rows["bias"] = vectors.bias
    folder = out / FOLDER
    folder.mkdir(exist_ok=True)
    base = Path(vectors.model).name.lower()
    for key, row in rows.items():
        stem = f"{base}_{key}_linear"
        torch.save({key: row.float().clone()}, folder / f"{stem}.pt")
        sheet = {"layer": vectors.layer, "vector_norm": float(row.norm())}
        text = json.dumps({"hyperparameters": sheet}, indent=2)
        write_whole(folder / f"steering_vector_hyperparams_{stem}.json", text.encode())
    write_whole(out / "titles.json", json.dumps(list(taxonomy.titles), indent=2).encode())
    write_tensors(out / "mean.safetensors", {"mean": taxonomy.mean}, {})
    return [str(sae), f"{len(rows)} vectors for layer {vectors.layer}: {folder}"]


def _sae_content(sae: Sae) -> dict[str, Tensor | int]:
    latents, width = sae.encoder.shape
    return {
        "encoder_weight": sae.encoder.clone(),
        "encoder_bias": sae.encoder_bias.clone(),
        "decoder_weight": sae.decoder.clone(),
        "b_dec": sae.decoder_bias.clone(),
        "input_dim": width,
        "num_latents": latents,
        "topk": sae.k,
        "cluster_centers": sae.decoder.clone(),
    }
