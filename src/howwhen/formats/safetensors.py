"""howwhen's own files: taxonomies and vector sets in safetensors, never pickled.

Notes (model, layer, titles, form) are JSON in the file's header. Everything that is read is
checked: shapes, types, finite values.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from howwhen.errors import SteeringError, StoreError
from howwhen.formats.files import Json, write_whole
from howwhen.probes import Clusters, Sae, Taxonomy
from howwhen.vectors import LinearCoefficient, LowRank, Modulation, Network, VectorSet, all_finite

_SCORERS: dict[str, type[Sae] | type[Clusters]] = {"Sae": Sae, "Clusters": Clusters}
_FORMS: dict[str, type[Modulation]] = {
    "Network": Network,
    "LinearGate": LinearCoefficient,
    "LowRank": LowRank,
}
"""Names in files, which stay the same when a class is renamed."""


def save_taxonomy(path: Path, taxonomy: Taxonomy) -> None:
    """Write a taxonomy, normaliser included, as safetensors."""
    tensors, notes = tensors_and_notes(taxonomy.scorer)
    notes |= {"model": taxonomy.model, "layer": taxonomy.layer, "titles": taxonomy.titles}
    notes["kind"] = _name_in_file(taxonomy.scorer, _SCORERS)
    write_tensors(path, {**tensors, "mean": taxonomy.mean}, notes)


def load_taxonomy(path: Path) -> Taxonomy:
    """Read a taxonomy and check it.

    Raises:
        StoreError: the file is missing, damaged, of another kind, or holds shapes that do not fit
            together.
    """
    tensors, notes = read_tensors(path, "Write it again with save_taxonomy or howwhen discover")
    try:
        titles = tuple(_list_of_texts(notes.pop("titles")))
        model, layer, kind = (notes.pop(name) for name in ("model", "layer", "kind"))
        tensors = _as_floats(tensors)
        mean = tensors.pop("mean")
        values: Json = {**tensors, **notes}
        scorer = _SCORERS[kind](**values)
        taxonomy = Taxonomy(model, _block(layer), mean, scorer, titles)
        _check_taxonomy(taxonomy)
    except _MISFITS as error:
        raise StoreError(
            f"{path} holds no taxonomy ({_brief(repr(error))}); expected a file of save_taxonomy, "
            "or convert one: howwhen convert"
        ) from error
    return taxonomy


def _check_taxonomy(taxonomy: Taxonomy) -> None:
    """Refuse shapes that do not fit together, and values that are not finite."""
    scorer, size, width = taxonomy.scorer, len(taxonomy.titles), taxonomy.mean.shape[0]
    expected: dict[str, tuple[int, ...]] = {
        "encoder": (size, width),
        "encoder_bias": (size,),
        "decoder": (size, width),
        "decoder_bias": (width,),
        "weights": (size, width),
        "biases": (size,),
    }
    for name, tensor in vars(scorer).items():
        if isinstance(tensor, Tensor) and tuple(tensor.shape) != expected[name]:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {expected[name]}")
        if isinstance(tensor, Tensor) and not all_finite([tensor]):
            raise ValueError(f"{name} holds values that are not finite")
    if taxonomy.mean.ndim != 1 or not all_finite([taxonomy.mean]):
        raise ValueError("mean is no vector of finite values")
    if not size:
        raise ValueError("no category has a title")
    if isinstance(scorer, Sae) and not (isinstance(scorer.k, int) and 1 <= scorer.k <= size):
        raise ValueError(f"k is {scorer.k!r}, expected 1 to {size}")


def save_vectors(path: Path, vectors: VectorSet) -> None:
    """Write a vector set as safetensors."""
    form = None if vectors.modulation is None else _name_in_file(vectors.modulation, _FORMS)
    notes = {"model": vectors.model, "layer": vectors.layer, "form": form}
    write_tensors(path, vectors.tensors(), notes)


def load_vectors(path: Path) -> VectorSet:
    """Read a vector set and check it.

    Raises:
        StoreError: the file is missing, damaged, of another kind, or holds shapes that do not fit
            together.
        SteeringError: values that are not finite.
    """
    tensors, notes = read_tensors(path, "Write it again with save_vectors or howwhen elicit")
    try:
        tensors = _as_floats(tensors)
        modulation = _take_modulation(notes["form"], tensors) if notes["form"] else None
        layer = _block(notes["layer"])
        vectors = VectorSet(notes["model"], layer, modulation=modulation, **tensors)
        _check_shapes(vectors)
    except _MISFITS as error:
        raise StoreError(
            f"{path} holds no vector set ({_brief(repr(error))}); expected a file of save_vectors "
            "with `vectors` of shape (category, d_model), or convert it: howwhen convert"
        ) from error
    if not all_finite(vectors.tensors().values()):
        raise SteeringError(f"{path} holds values that are not finite; train the vectors again")
    return vectors


def _name_in_file(record: object, names: Mapping[str, type]) -> str:
    return next(name for name, kind in names.items() if kind is type(record))


def _take_modulation(form: str, tensors: dict[str, Tensor]) -> Modulation:
    """Remove a modulation's tensors from a file's and make it of them."""
    kind = _FORMS[form]
    if kind is Network and "hidden_bias" not in tensors and "hidden" in tensors:
        # Older files have networks without it.
        tensors["hidden_bias"] = torch.zeros(len(tensors["hidden"]))
    return kind(**{field.name: tensors.pop(field.name) for field in fields(kind)})


def load_saved(path: Path) -> VectorSet | Taxonomy:
    """Read a vector set or a taxonomy, whichever the file holds.

    Raises:
        StoreError: the file is missing, damaged, or holds neither.
        SteeringError: vectors that are not finite.
    """
    advice = "Expected vectors or a taxonomy that howwhen wrote, .pt files, or a SAELens folder"
    _, notes = read_tensors(path, advice)
    return load_taxonomy(path) if "kind" in notes else load_vectors(path)


def _check_shapes(vectors: VectorSet) -> None:
    size, width = vectors.vectors.shape
    if not size:
        raise ValueError("vectors holds none")
    expected: dict[str, tuple[int | str, ...]] = {
        "vectors": (size, width),
        "bias": (width,),
        "heads": (size, "hidden"),
        "heads_bias": (size,),
        "hidden": ("hidden", width),
        "hidden_bias": ("hidden",),
        "gates": (size, width),
        "gates_bias": (size,),
        "down": (size, "rank", width),
        "up": (size, "rank", width),
    }
    free_sizes: dict[str, int] = {}
    for name, tensor in vectors.tensors().items():
        shape, axes = tuple(tensor.shape), expected[name]
        fits = len(shape) == len(axes) and all(
            length == (free_sizes.setdefault(axis, length) if isinstance(axis, str) else axis)
            for axis, length in zip(axes, shape, strict=True)
        )
        if not fits:
            raise ValueError(f"{name} has shape {shape}, expected {axes}")


_MISFITS = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)
"""Raised by a complete file with the wrong content."""


def _brief(text: str) -> str:
    """The beginning of an error message, since notes may hold anything of any length."""
    return text if len(text) <= 300 else f"{text[:300]}..."


def _as_floats(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert tensors to single precision, the precision of residuals; refuse whole numbers."""
    usable = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for name, tensor in tensors.items():
        if tensor.dtype not in usable:
            raise ValueError(f"{name} has type {tensor.dtype}, expected floating-point numbers")
    return {name: tensor.float() for name, tensor in tensors.items()}


def _block(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"layer is {value!r}, expected the 0-based number of a block")
    return value


def _list_of_texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(title, str) for title in value):
        raise ValueError(f"titles is {value!r}, expected a list of texts")
    return value


def tensors_and_notes(record: Any) -> tuple[dict[str, Tensor], Json]:
    """Split a flat record into its tensors and everything else, as JSON."""
    tensors = {name: value for name, value in vars(record).items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in vars(record).items() if name not in tensors}


def write_tensors(path: Path, tensors: dict[str, Tensor], notes: Json) -> None:
    """Write a safetensors file of howwhen, with notes in its header."""
    plain = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in tensors.items()}
    write_whole(path, save(plain, {"howwhen": json.dumps(notes)}))


def read_tensors(path: Path, advice: str) -> tuple[dict[str, Tensor], Json]:
    """Read a safetensors file of howwhen with its notes.

    Raises:
        StoreError: the file is missing, damaged, or not written by howwhen. The message ends with
            `advice`.
    """
    with opened_tensors(path, advice) as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        notes = json.loads((opened.metadata() or {})["howwhen"])
        if not isinstance(notes, dict):
            raise ValueError(f"its notes are a {type(notes).__name__}, expected an object")
    return tensors, notes


@contextmanager
def opened_tensors(path: Path, advice: str) -> Iterator[Any]:
    """Open a safetensors file. Errors are those of `read_tensors`."""
    try:
        with safe_open(path, "pt") as opened:
            yield opened
    except (OSError, SafetensorError, KeyError, RecursionError, ValueError) as error:
        reason = "howwhen did not write it" if isinstance(error, KeyError) else _brief(str(error))
        raise StoreError(f"cannot read {path}: {reason}. {advice}") from error
