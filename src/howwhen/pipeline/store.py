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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from howwhen.errors import StoreError
from howwhen.formats.files import write_whole
from howwhen.formats.safetensors import (
    Json,
    load_taxonomy,
    load_vectors,
    opened_tensors,
    read_tensors,
    save_taxonomy,
    save_vectors,
    tensors_and_notes,
    write_tensors,
)
from howwhen.probes import Gate, SelfGate, Taxonomy
from howwhen.vectors import VectorSet

StepName = Literal["collect", "discover", "elicit", "hybrid", "measure", "present"]
STEPS: tuple[StepName, ...] = ("collect", "discover", "elicit", "hybrid", "measure", "present")
TAXONOMY = "taxonomy.safetensors"
Record = TypeVar("Record")
Item = TypeVar("Item")


class RunFolder:
    """A run's folder; `open_run` makes one and locks it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def step(self, name: StepName) -> "StepFolder":
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
    additive: Json = field(default_factory=dict)
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
    name: StepName

    @property
    def digest(self) -> str | None:
        """Digest of the key this step was finished with; None while it is not done."""
        provenance = self.path / "provenance.json"
        return self._provenance()["key"] if provenance.exists() else None

    def _provenance(self) -> Json:
        found = self.read_json("provenance.json")
        if not isinstance(found, dict) or not {"key", "upstream", "outputs"} <= found.keys():
            raise StoreError(
                f"{self.path / 'provenance.json'} does not say what was made from what; expected "
                f"key, upstream and outputs. Delete {self.path} and run the same command again"
            )
        return found

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
        self.write_json("settings.json", {**key.settings, **key.additive})
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
        for name, expected in self._provenance()["outputs"].items():
            file = self.path / name
            found = _hash(file) if file.exists() else "nothing"
            if found != expected:
                raise StoreError(
                    f"{file} is damaged: expected the content with hash {expected[:12]}, found "
                    f"{found[:12]}. Delete {self.path} and run the same command again"
                )

    def check_upstream(self, digests: Mapping[str, str | None]) -> None:
        """Refuse a step that was made from other earlier steps than those there are now.

        Args:
            digests: of the earlier steps.

        Raises:
            StoreError: with the command that makes the step again.
        """
        made_from = self._provenance()["upstream"]
        for name, digest in digests.items():
            if made_from.get(name) != digest:
                raise StoreError(
                    f"{self.path} was made from another {name} step than the one that is there "
                    f"now; type `howwhen {self.name} PAIR --out {self.path.parent}` first, or "
                    "`howwhen run`"
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
        write_tensors(self.path / name, tensors, notes)

    def read_tensors(self, name: str) -> tuple[dict[str, Tensor], Json]:
        """Read a safetensors file and its notes.

        Raises:
            StoreError: missing, truncated, or not written by howwhen.
        """
        return read_tensors(self.path / name, f"Delete {self.path} and run again")

    def read_tensor(self, name: str, key: str) -> Tensor:
        """Read one tensor of a safetensors file.

        Raises:
            StoreError: missing, truncated, or without that tensor.
        """
        with opened_tensors(self.path / name, f"Delete {self.path} and run again") as opened:
            found: Tensor = opened.get_tensor(key)
            return found

    def tensor_shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Shapes of a safetensors file's tensors, from its header alone.

        Raises:
            StoreError: missing or truncated.
        """
        with opened_tensors(self.path / name, f"Delete {self.path} and run again") as opened:
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
        self.write_tensors(name, *tensors_and_notes(gate))

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


def _whole_lines(path: Path) -> list[bytes]:
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith(b"\n")]


def _lines(records: Sequence[Any]) -> bytes:
    return b"".join(TypeAdapter(type(one)).dump_json(one) + b"\n" for one in records)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
