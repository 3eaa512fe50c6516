"""A taxonomy together with its vectors, between a run's folder and published files.

`howwhen convert --to run` makes of published files a folder that other runs take both from, and
`--to published` writes a run's in the layout of the paper's first version.
"""

from collections.abc import Sequence
from pathlib import Path

from howwhen.errors import InputError, SettingsError
from howwhen.formats.bundle import Bundle, read_bundle, write_published
from howwhen.formats.convert import WITHOUT_MEAN, FileInfo
from howwhen.pipeline.given import GATE, TAXONOMY, VECTORS
from howwhen.pipeline.store import RunFolder
from howwhen.settings import ConvertFormat


def convert_bundle(
    paths: Sequence[Path],
    out: Path,
    info: FileInfo,
    to: ConvertFormat,
    names: tuple[str, str] | None,
) -> list[str]:
    """Convert a taxonomy together with its vectors; returns lines that say what was written.

    Args:
        paths: published files for `run`, the folder of a run for `published`.
        out: folder to write.
        info: what the files do not contain; only titles and mean, and only for `run`.
        to: `run` or `published`.
        names: of the base and the thinking model; needed for `run` alone.

    Raises:
        InputError: files or flags that do not fit.
        SteeringError: vectors that do not fit together.
        StoreError: a damaged file of howwhen.
    """
    if to == "run" and names is not None:
        info.refuse(("model", "layer"), "--pair says which models these are, the files the layers")
        bundle = read_bundle(paths, *names, *info.read())
        written = write_run(out, bundle)
        return written if bundle.taxonomy.mean.any() else [*written, WITHOUT_MEAN]
    if to == "published" and names is None:
        info.refuse(("model", "layer", "titles", "mean"), "a run's folder says all of it itself")
        if len(paths) != 1:
            raise InputError(f"found {len(paths)} paths; expected the folder of one run")
        return write_published(out, read_run(paths[0]))
    raise SettingsError(
        f"found --to {to} {'without' if names is None else 'with'} --pair; expected --pair with "
        "--to run, which needs the names of both models, and with no other format"
    )


def read_run(folder: Path) -> Bundle:
    """Read the taxonomy and the vectors of a run.

    Raises:
        InputError: the folder lacks one of them.
        StoreError: a damaged file.
    """
    discovered, elicited = RunFolder(folder).step("discover"), RunFolder(folder).step("elicit")
    files = (discovered.path / TAXONOMY, elicited.path / VECTORS)
    missing = [str(file.relative_to(folder)) for file in files if not file.is_file()]
    if missing:
        raise InputError(
            f"{folder} lacks {' and '.join(missing)}; expected the folder of a run whose steps "
            "discover and elicit are finished"
        )
    kind = "taxonomy"
    if (elicited.path / GATE).is_file():
        kind = elicited.read_gate(GATE).kind
    if kind != "taxonomy":
        raise InputError(
            f"the vectors of {folder} belong to a gate of kind {kind}, not to the latents of its "
            "SAE; expected a run with --elicit.gate taxonomy"
        )
    return Bundle(discovered.read_taxonomy(), elicited.read_vectors(VECTORS))


def write_run(out: Path, bundle: Bundle) -> list[str]:
    """Write a folder that other runs take taxonomy and vectors from; returns what was written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there already; type --out with a folder that is new or empty")
    discovered, elicited = RunFolder(out).step("discover"), RunFolder(out).step("elicit")
    discovered.write_taxonomy(bundle.taxonomy)
    elicited.write_vectors(VECTORS, bundle.vectors)
    return [str(discovered.path / TAXONOMY), str(elicited.path / VECTORS)]
