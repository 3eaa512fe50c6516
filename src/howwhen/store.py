"""Run folders: where every step reads its input and leaves its output.

`runs/<name>/1-collect ... 6-present`, each with `settings.json`, data (JSONL, safetensors) and,
written last, `provenance.json`, which marks the step as done. A step's key is a hash of its
settings, its models and the keys of the steps before it: a step whose key still fits is not run
again, a step whose key changed starts afresh; where only its extent changed (how many rungs, seeds
or samples), what is there stays and the rest is added. Files appear whole (write, fsync, rename)
or, for JSONL, grow by whole batches. Nothing is ever pickled.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from howwhen.errors import MissingExtraError, SteeringError, StoreError
from howwhen.records import MODULATIONS, Clusters, Gate, Sae, SelfGate, Taxonomy, VectorSet

Step = Literal["collect", "discover", "elicit", "hybrid", "measure", "present"]
STEPS: tuple[Step, ...] = ("collect", "discover", "elicit", "hybrid", "measure", "present")
TAXONOMY = "taxonomy.safetensors"
Json = dict[str, Any]
Record = TypeVar("Record")
Item = TypeVar("Item")


class RunFolder:
    """A run's folder; `open_run` makes one and locks it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def step(self, name: Step) -> "StepFolder":
        """The folder of one step, which need not exist yet."""
        return StepFolder(self.root / f"{STEPS.index(name) + 1}-{name}", name)

    @property
    def judge_cache(self) -> Path:
        """Where the judges of all steps keep their replies."""
        return self.root / "judge-cache"


@contextmanager
def open_run(root: Path, *, is_new: bool = True) -> Iterator[RunFolder]:
    """Hold a run folder's lock, so that two runs cannot mix.

    Args:
        root: the folder.
        is_new: whether to make it where it is missing.

    Raises:
        StoreError: the folder is in use, is no folder, or is missing and not to be made.
    """
    if not is_new and not root.exists():
        raise StoreError(
            f"there is no run folder {root}; type `howwhen run PAIR --out {root}` first"
        )
    if root.exists() and not root.is_dir():
        raise StoreError(f"{root} is a file; --out expects a folder, which may be new")
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(
                f"another howwhen process is working in {root}; wait for it or choose another --out"
            ) from error
        yield RunFolder(root)


@dataclass(frozen=True)
class Key:
    """Everything a step's output depends on."""

    settings: Json
    models: Json
    """Fingerprints and prompts of the models the step uses."""
    upstream: Json
    """Digests of the keys of the steps before it."""
    extent: Json = field(default_factory=dict)
    """Settings that say how much there is of the output: a change adds to it, and spoils none."""

    @property
    def digest(self) -> str:
        """A short hash of all of it."""
        return _digest(asdict(self))

    @property
    def content_digest(self) -> str:
        """A short hash of all but the extent."""
        return _digest({**asdict(self), "extent": {}})


@dataclass(frozen=True)
class StepFolder:
    """One step's files."""

    path: Path
    name: Step

    @property
    def digest(self) -> str | None:
        """Digest of the key this step was finished with; None while it is not done."""
        provenance = self.path / "provenance.json"
        return self.read_json("provenance.json")["key"] if provenance.exists() else None

    def begin(self, key: Key, spared: Sequence[str] = ()) -> bool:
        """Prepare to run under `key`; output of the same key, or of another extent, is kept.

        Args:
            key: of the run to come.
            spared: names in the folder that are kept under any key; their users `claim` them.

        Returns:
            Whether output of another key was removed.
        """
        started = self.path / "started.json"
        is_stale = self.path.exists() and not (
            started.exists() and self.read_json("started.json")["key"] == key.content_digest
        )
        if is_stale:
            for path in self.path.iterdir():
                if path.name not in spared:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.path.mkdir(exist_ok=True)
        (self.path / "provenance.json").unlink(missing_ok=True)
        self.write_json("started.json", {"key": key.content_digest})
        self.write_json("settings.json", {**key.settings, **key.extent})
        return is_stale

    def claim(self, folder: str, described: Json) -> None:
        """Make a subfolder that holds only what belongs to this description, emptied if need be."""
        path, label = self.path / folder, f"{folder}/described.json"
        if path.exists():
            if (self.path / label).exists() and self.read_json(label) == described:
                return
            shutil.rmtree(path)
        self.write_json(label, described)

    def discard(self, folder: str) -> None:
        """Remove a subfolder that an earlier extent left, if there is one."""
        if (self.path / folder).exists():
            shutil.rmtree(self.path / folder)

    def finish(self, key: Key, counts: Json) -> None:
        """Write the provenance, with a hash of every output file; the step is done."""
        files = sorted(path for path in self.path.rglob("*") if path.is_file())
        outputs = {
            str(path.relative_to(self.path)): _hash(path)
            for path in files
            if path.suffix != ".partial" and path.name not in ("started.json", "provenance.json")
        }
        self.write_json(
            "provenance.json",
            {
                "step": self.name,
                "key": key.digest,
                "models": key.models,
                "upstream": key.upstream,
                "counts": counts,
                "versions": {name: version(name) for name in ("howwhen", "torch", "transformers")},
                "outputs": outputs,
            },
        )

    def check(self) -> None:
        """Refuse a step that is not done, or whose files changed since.

        Raises:
            StoreError: with the command that makes the step.
        """
        if self.digest is None:
            raise StoreError(
                f"{self.path} is not finished, but a later step needs it; type "
                f"`howwhen {self.name} PAIR --out {self.path.parent}` first, or `howwhen run`"
            )
        for name, expected in self.read_json("provenance.json")["outputs"].items():
            file = self.path / name
            found = _hash(file) if file.exists() else "nothing"
            if found != expected:
                raise StoreError(
                    f"{file} is damaged: expected the content with hash {expected[:12]}, found "
                    f"{found[:12]}. Delete {self.path} and run the same command again"
                )

    def write_json(self, name: str, value: Any) -> None:
        """Write a whole JSON file."""
        text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
        write_whole(self.path / name, text.encode())

    def read_json(self, name: str) -> Any:
        """Read a JSON file.

        Raises:
            StoreError: missing or damaged.
        """
        try:
            return json.loads((self.path / name).read_bytes())
        except (OSError, ValueError) as error:
            raise StoreError(
                f"cannot read {self.path / name}: {error}. Delete {self.path} and run again"
            ) from error

    def write_text(self, name: str, text: str) -> Path:
        """Write a whole text file and return its path."""
        write_whole(self.path / name, text.encode())
        return self.path / name

    def write_tensors(self, name: str, tensors: dict[str, Tensor], notes: Json) -> None:
        """Write a whole safetensors file; `notes` goes into its metadata as JSON."""
        _write_tensors(self.path / name, tensors, notes)

    def read_tensors(self, name: str) -> tuple[dict[str, Tensor], Json]:
        """Read a safetensors file and its notes.

        Raises:
            StoreError: missing, truncated, or not written by howwhen.
        """
        return _read_tensors(self.path / name, f"Delete {self.path} and run again")

    def read_tensor(self, name: str, key: str) -> Tensor:
        """Read one tensor of a safetensors file.

        Raises:
            StoreError: missing, truncated, or without that tensor.
        """
        with _opened(self.path / name, f"Delete {self.path} and run again") as opened:
            found: Tensor = opened.get_tensor(key)
            return found

    def tensor_shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Shapes of a safetensors file's tensors, from its header alone.

        Raises:
            StoreError: missing or truncated.
        """
        with _opened(self.path / name, f"Delete {self.path} and run again") as opened:
            return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118

    def write_taxonomy(self, taxonomy: Taxonomy, name: str = TAXONOMY) -> None:
        """Write a taxonomy; without a name the chosen one."""
        save_taxonomy(self.path / name, taxonomy)

    def read_taxonomy(self, name: str = TAXONOMY) -> Taxonomy:
        """Read a taxonomy; without a name the chosen one."""
        return load_taxonomy(self.path / name)

    def write_vectors(self, name: str, vectors: VectorSet) -> None:
        """Write a vector set."""
        save_vectors(self.path / name, vectors)

    def read_vectors(self, name: str) -> VectorSet:
        """Read a vector set."""
        return load_vectors(self.path / name)

    def write_gate(self, name: str, gate: Gate | SelfGate) -> None:
        """Write a gate or a self-gate."""
        self.write_tensors(name, *_tensors_and_notes(gate))

    def read_gate(self, name: str) -> Gate:
        """Read a gate."""
        tensors, notes = self.read_tensors(name)
        every: Json = {**tensors, **notes, "titles": tuple(notes["titles"])}
        return Gate(**every)

    def read_self_gate(self, name: str) -> SelfGate:
        """Read a self-gate."""
        tensors, notes = self.read_tensors(name)
        every: Json = {**tensors, **notes, "layers": tuple(notes["layers"])}
        return SelfGate(**every)

    def write_records(self, name: str, records: Sequence[Any]) -> None:
        """Write a whole JSONL file, one record per line."""
        write_whole(self.path / name, _lines(records))

    def read_records(self, name: str, kind: type[Record]) -> list[Record]:
        """Read a JSONL file of records.

        Raises:
            StoreError: missing, or a line that is no such record.
        """
        adapter = TypeAdapter(kind)
        try:
            lines = (self.path / name).read_bytes().splitlines()
            return [adapter.validate_json(line) for line in lines]
        except OSError as error:
            why = str(error)
        except ValidationError as error:
            first = error.errors()[0]
            why = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        raise StoreError(f"cannot read {self.path / name}: {why}. Delete {self.path} and run again")

    def grow_records(
        self,
        name: str,
        kind: type[Record],
        items: Sequence[Item],
        size: int,
        make: Callable[[Sequence[Item]], list[Record]],
        report: Callable[[int], None],
    ) -> list[Record]:
        """Make one record per item, batch by batch; a killed run goes on after its last batch.

        Args:
            name: JSONL file that grows by one batch at a time.
            kind: type of the records.
            items: what records are made of, in an order that a resumed run repeats.
            size: items in a batch.
            make: records of one batch, as many as it has items.
            report: told the number of records after each batch.
        """
        batches = [items[start : start + size] for start in range(0, len(items), size)]
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        whole = _whole_lines(path)
        kept = done = 0
        while done < len(batches) and kept + len(batches[done]) <= len(whole):
            kept += len(batches[done])
            done += 1
        content = b"".join(whole[:kept])
        if not path.exists() or path.stat().st_size != len(content):
            write_whole(path, content)
        report(kept)
        for batch in batches[done:]:
            with path.open("ab") as file:
                file.write(_lines(make(batch)))
                file.flush()
                os.fsync(file.fileno())
            kept += len(batch)
            report(kept)
        return self.read_records(name, kind)


def save_taxonomy(path: Path, taxonomy: Taxonomy) -> None:
    """Write a taxonomy, normaliser included, as safetensors."""
    tensors, notes = _tensors_and_notes(taxonomy.scorer)
    notes |= {"model": taxonomy.model, "layer": taxonomy.layer, "titles": taxonomy.titles}
    notes["kind"] = type(taxonomy.scorer).__name__
    _write_tensors(path, {**tensors, "mean": taxonomy.mean}, notes)


def load_taxonomy(path: Path) -> Taxonomy:
    """Read a taxonomy and check it.

    Raises:
        StoreError: missing, damaged, of another kind, or with shapes that do not fit together.
    """
    tensors, notes = _read_tensors(path, "Write it again with save_taxonomy or howwhen discover")
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
    _write_tensors(path, vectors.tensors(), notes)


def load_vectors(path: Path) -> VectorSet:
    """Read a vector set and check it.

    Raises:
        StoreError: missing, damaged, of another kind, or with shapes that do not fit together.
        SteeringError: values that are not finite.
    """
    tensors, notes = _read_tensors(path, "Write it again with save_vectors or howwhen elicit")
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
    _, notes = _read_tensors(path, advice)
    return load_taxonomy(path) if "kind" in notes else load_vectors(path)


def export_gguf(folder: Path, vectors: VectorSet) -> list[Path]:
    """Write every vector of a static set as a GGUF control-vector file, one per category.

    A file's only direction is added after the block of its number, as llama.cpp numbers them. The
    bias vector, if any, is part of each.

    Raises:
        SteeringError: a set that depends on the residual, or layer 0, which the format cannot say.
        MissingExtraError: the package `gguf` is not installed.
    """
    if not vectors.is_static:
        raise SteeringError(
            f"a control-vector file holds a fixed direction, but these vectors depend on the "
            f"residual ({type(vectors.modulation).__name__}); train with --elicit.form linear"
        )
    if vectors.layer < 1:
        raise SteeringError("control-vector files number layers from 1; layer 0 cannot be exported")
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        raise MissingExtraError(
            "writing GGUF needs the package gguf; type: pip install gguf"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    added = vectors.vectors if vectors.bias is None else vectors.vectors + vectors.bias
    for category, direction in enumerate(added):
        path = folder / f"category-{category}.gguf"
        writer = GGUFWriter(path, "controlvector")
        writer.add_string("controlvector.model_hint", vectors.model)
        writer.add_uint32("controlvector.layer_count", vectors.layer)
        writer.add_tensor(f"direction.{vectors.layer}", direction.float().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return paths


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


def _tensors_and_notes(record: Any) -> tuple[dict[str, Tensor], Json]:
    """A flat record's tensors, and everything else as JSON."""
    tensors = {name: value for name, value in vars(record).items() if isinstance(value, Tensor)}
    return tensors, {name: v for name, v in vars(record).items() if name not in tensors}


def _write_tensors(path: Path, tensors: dict[str, Tensor], notes: Json) -> None:
    plain = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in tensors.items()}
    write_whole(path, save(plain, {"howwhen": json.dumps(notes)}))


def _read_tensors(path: Path, advice: str) -> tuple[dict[str, Tensor], Json]:
    with _opened(path, advice) as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        notes = json.loads((opened.metadata() or {})["howwhen"])
        if not isinstance(notes, dict):
            raise ValueError(f"its notes are a {type(notes).__name__}, expected an object")
    return tensors, notes


@contextmanager
def _opened(path: Path, advice: str) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as opened:
            yield opened
    except (OSError, SafetensorError, KeyError, RecursionError, ValueError) as error:
        why = "howwhen did not write it" if isinstance(error, KeyError) else _brief(str(error))
        raise StoreError(f"cannot read {path}: {why}. {advice}") from error


def _whole_lines(path: Path) -> list[bytes]:
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith(b"\n")]


def _lines(records: Sequence[Any]) -> bytes:
    return b"".join(TypeAdapter(type(one)).dump_json(one) + b"\n" for one in records)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
