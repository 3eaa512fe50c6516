"""What howwhen trains, as files: taxonomies and vector sets in safetensors, never pickled.

Notes (model, layer, titles, form) stand as JSON in the header. Everything read is checked: shapes,
types, finite values.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from howwhen.errors import SteeringError, StoreError
from howwhen.formats.files import write_whole
from howwhen.probes import Clusters, Sae, Taxonomy
from howwhen.vectors import MODULATIONS, VectorSet

Json = dict[str, Any]


def save_taxonomy(path: Path, taxonomy: Taxonomy) -> None:
    """Write a taxonomy, normaliser included, as safetensors."""
    tensors, notes = tensors_and_notes(taxonomy.scorer)
    notes |= {"model": taxonomy.model, "layer": taxonomy.layer, "titles": taxonomy.titles}
    notes["kind"] = type(taxonomy.scorer).__name__
    write_tensors(path, {**tensors, "mean": taxonomy.mean}, notes)


def load_taxonomy(path: Path) -> Taxonomy:
    """Read a taxonomy and check it.

    Raises:
        StoreError: missing, damaged, of another kind, or with shapes that do not fit together.
    """
    tensors, notes = read_tensors(path, "Write it again with save_taxonomy or howwhen discover")
    try:
        titles = tuple(_list_of_texts(notes.pop("titles")))
        model, layer, kind = (notes.pop(name) for name in ("model", "layer", "kind"))
        tensors = _as_floats(tensors)
        mean = tensors.pop("mean")
        every: Json = {**tensors, **notes}
        scorer = {"Sae": Sae, "Clusters": Clusters}[kind](**every)
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
        if isinstance(tensor, Tensor) and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds values that are not finite")
    if taxonomy.mean.ndim != 1 or not torch.isfinite(taxonomy.mean).all():
        raise ValueError("mean is no vector of finite values")
    if not size:
        raise ValueError("no category has a title")
    if isinstance(scorer, Sae) and not (isinstance(scorer.k, int) and 1 <= scorer.k <= size):
        raise ValueError(f"k is {scorer.k!r}, expected 1 to {size}")


def save_vectors(path: Path, vectors: VectorSet) -> None:
    """Write a vector set as safetensors."""
    form = None if vectors.modulation is None else type(vectors.modulation).__name__
    notes = {"model": vectors.model, "layer": vectors.layer, "form": form}
    write_tensors(path, vectors.tensors(), notes)


def load_vectors(path: Path) -> VectorSet:
    """Read a vector set and check it.

    Raises:
        StoreError: missing, damaged, of another kind, or with shapes that do not fit together.
        SteeringError: values that are not finite.
    """
    tensors, notes = read_tensors(path, "Write it again with save_vectors or howwhen elicit")
    forms = {kind.__name__: kind for kind in MODULATIONS}
    try:
        tensors = _as_floats(tensors)
        form = forms[notes["form"]] if notes["form"] else None
        own = {field.name: tensors.pop(field.name) for field in fields(form)} if form else {}
        vectors = VectorSet(
            notes["model"],
            _block(notes["layer"]),
            modulation=form(**own) if form else None,
            **tensors,
        )
        _check_shapes(vectors)
    except _MISFITS as error:
        raise StoreError(
            f"{path} holds no vector set ({_brief(repr(error))}); expected a file of save_vectors "
            "with `vectors` of shape (category, d_model), or convert it: howwhen convert"
        ) from error
    if not all(torch.isfinite(tensor).all() for tensor in vectors.tensors().values()):
        raise SteeringError(f"{path} holds values that are not finite; train the vectors again")
    return vectors


def load_saved(path: Path) -> VectorSet | Taxonomy:
    """Read a vector set or a taxonomy, whichever the file holds.

    Raises:
        StoreError: missing, damaged, or neither.
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
        "gates": (size, width),
        "gates_bias": (size,),
        "down": (size, "rank", width),
        "up": (size, "rank", width),
    }
    free: dict[str, int] = {}
    for name, tensor in vectors.tensors().items():
        shape, wanted = tuple(tensor.shape), expected[name]
        fits = len(shape) == len(wanted) and all(
            found == (free.setdefault(want, found) if isinstance(want, str) else want)
            for want, found in zip(wanted, shape, strict=True)
        )
        if not fits:
            raise ValueError(f"{name} has shape {shape}, expected {wanted}")


_MISFITS = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)
"""What a whole file with the wrong things in it leads to."""


def _brief(shown: str) -> str:
    """The beginning of an error's message: notes may hold anything of any length."""
    return shown if len(shown) <= 300 else f"{shown[:300]}..."


def _as_floats(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor in single precision, as residuals are; whole numbers are refused."""
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
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"titles is {value!r}, expected a list of texts")
    return value


def tensors_and_notes(record: Any) -> tuple[dict[str, Tensor], Json]:
    """A flat record's tensors, and everything else as JSON."""
    tensors = {name: value for name, value in vars(record).items() if isinstance(value, Tensor)}
    return tensors, {name: v for name, v in vars(record).items() if name not in tensors}


def write_tensors(path: Path, tensors: dict[str, Tensor], notes: Json) -> None:
    """Write a safetensors file of ours, with notes in its header."""
    plain = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in tensors.items()}
    write_whole(path, save(plain, {"howwhen": json.dumps(notes)}))


def read_tensors(path: Path, advice: str) -> tuple[dict[str, Tensor], Json]:
    """Read a safetensors file of ours with its notes.

    Raises:
        StoreError: missing, damaged, or not written by howwhen; the message ends with `advice`.
    """
    with opened_tensors(path, advice) as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        notes = json.loads((opened.metadata() or {})["howwhen"])
        if not isinstance(notes, dict):
            raise ValueError(f"its notes are a {type(notes).__name__}, expected an object")
    return tensors, notes


@contextmanager
def opened_tensors(path: Path, advice: str) -> Iterator[Any]:
    """Open a safetensors file; errors are those of `read_tensors`."""
    try:
        with safe_open(path, "pt") as opened:
            yield opened
    except (OSError, SafetensorError, KeyError, RecursionError, ValueError) as error:
        why = "howwhen did not write it" if isinstance(error, KeyError) else _brief(str(error))
        raise StoreError(f"cannot read {path}: {why}. {advice}") from error
