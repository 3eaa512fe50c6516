"""Converting vectors and SAEs from one format to another.

The format of an input is recognised from its content, never from its name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from howwhen.errors import InputError, SettingsError
from howwhen.formats.gguf import export_gguf
from howwhen.formats.pickles import read_pickled_tensors
from howwhen.formats.published import (
    as_taxonomy,
    as_vectors,
    is_sae,
    layer_in_name,
    list_pt_files,
    read_titles,
)
from howwhen.formats.sae import agree_on_layer, read_mean
from howwhen.formats.saelens import CONFIG, export_saelens, read_saelens
from howwhen.formats.safetensors import load_saved, save_taxonomy, save_vectors
from howwhen.probes import Taxonomy
from howwhen.settings import ConvertFormat
from howwhen.vectors import VectorSet


@dataclass(frozen=True)
class FileInfo:
    """What the user states about files that do not contain it."""

    model: str | None = None
    """Name of the model that vectors steer, or whose residuals an SAE reads."""
    layer: int | None = None
    """0-based block."""
    titles: Path | None = None
    """JSON file with one title per latent."""
    mean: Path | None = None
    """Safetensors file with the corpus `mean`."""

    def read(self) -> tuple[list[str] | None, Tensor | None]:
        """Read the titles and the mean; None for a file that was not named."""
        titles = None if self.titles is None else read_titles(self.titles)
        return titles, None if self.mean is None else read_mean(self.mean)

    def refuse(self, names: Sequence[str], reason: str) -> None:
        """Refuse flags that would be ignored.

        Raises:
            SettingsError: one of `names` is set; the message starts with `reason`.
        """
        if flags := [f"--{name}" for name in names if getattr(self, name) is not None]:
            raise SettingsError(f"{reason}; leave out {', '.join(flags)}")


def read_any(paths: Sequence[Path], info: FileInfo = FileInfo()) -> VectorSet | Taxonomy:
    """Read vectors or a taxonomy, whichever the files hold.

    Args:
        paths: `.pt` files or folders of them, one file written by howwhen, or one SAELens folder.
        info: what the files do not contain.

    Raises:
        InputError: files that cannot be read, or lack something that `info` does not give either.
        StoreError: a damaged file of howwhen.
        SteeringError: vectors that do not fit together.
    """
    if any(path.suffix == ".safetensors" or (path / CONFIG).exists() for path in paths):
        return _read_single(paths, info)
    files = list_pt_files(paths)
    if not files:
        raise InputError(
            f"found no .pt file in {', '.join(map(str, paths)) or 'no path at all'}; expected .pt "
            "files, a .safetensors file of howwhen, or a SAELens folder"
        )
    titles, mean = info.read()
    contents = read_pickled_tensors(files)
    if any(is_sae(content) for content in contents):
        return _as_taxonomy(files, contents, info, titles, mean)
    info.refuse(("titles", "mean"), "these are steering vectors, which have no titles or mean")
    if info.model is None:
        raise SettingsError("whose vectors are these? Type --model with the base model's name")
    return as_vectors(files, contents, info.model, info.layer)


def _read_single(paths: Sequence[Path], info: FileInfo) -> VectorSet | Taxonomy:
    if len(paths) > 1:
        raise InputError(f"found {len(paths)} paths; expected {paths[0]} alone, or .pt files")
    if paths[0].is_dir():
        return read_saelens(paths[0], info.model, info.layer, *info.read())
    info.refuse(("model", "layer", "titles", "mean"), f"{paths[0]} says all of it itself")
    return load_saved(paths[0])


def _as_taxonomy(
    files: Sequence[Path],
    contents: Sequence[dict[str, Tensor]],
    info: FileInfo,
    titles: list[str] | None,
    mean: Tensor | None,
) -> Taxonomy:
    if len(files) > 1:
        raise InputError(f"found an SAE among {len(files)} files; convert one SAE at a time")
    if info.model is None:
        raise SettingsError(
            "whose residuals does this SAE read? Type --model with the thinking model's name"
        )
    layer = agree_on_layer(info.layer, layer_in_name(files[0]), files[0])
    return as_taxonomy(files[0], contents[0], info.model, layer, titles, mean)


def write_any(out: Path, content: VectorSet | Taxonomy, to: ConvertFormat) -> list[str]:
    """Write vectors or a taxonomy, and return lines that describe what was written.

    Raises:
        InputError: a format that cannot hold it, or an `out` that is in the way.
    """
    if to == "safetensors" and out.is_dir():
        raise InputError(f"{out} is a folder; type --out with the name of a file, which may be new")
    if to != "safetensors" and out.is_file():
        raise InputError(f"{out} is a file; for --to {to}, --out expects a folder")
    if isinstance(content, Taxonomy):
        return _write_taxonomy(out, content, to)
    return _write_vectors(out, content, to)


def _write_vectors(out: Path, vectors: VectorSet, to: ConvertFormat) -> list[str]:
    if to == "saelens":
        raise InputError(
            "a SAELens folder holds an SAE, but these are steering vectors; type --to safetensors "
            "or --to gguf"
        )
    if to == "gguf":
        return [f"{len(export_gguf(out, vectors))} control vectors: {out}"]
    save_vectors(out, vectors)
    size, width = vectors.vectors.shape
    return [f"{size} vectors of width {width} for layer {vectors.layer}: {out}"]


def _write_taxonomy(out: Path, taxonomy: Taxonomy, to: ConvertFormat) -> list[str]:
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
