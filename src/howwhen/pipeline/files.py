"""The files of one step: what they depend on, what is finished, what is damaged.

A step is done when its `provenance.json` holds the hash of everything its output depends on (its
key). A step whose key still fits is not run again. A step whose key changed is set aside before it
runs again. When only additive settings changed (how many rungs, seeds or samples), the files stay
and the rest is added. Files appear whole (write, fsync, rename). JSONL files grow by whole batches.
Nothing is ever pickled. Nothing here needs torch, so bad input is refused in milliseconds.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from howwhen.errors import StoreError
from howwhen.formats.files import Json, cannot_write, write_whole

StepName = Literal["collect", "discover", "elicit", "hybrid", "measure", "present"]
STEPS: tuple[StepName, ...] = ("collect", "discover", "elicit", "hybrid", "measure", "present")
Record = TypeVar("Record")
Item = TypeVar("Item")


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
        return _digest(self._parts())

    @property
    def content_digest(self) -> str:
        """A short hash of all but the additive settings."""
        return _digest({**self._parts(), "additive": {}})

    def _parts(self) -> Json:
        """All of it but settings that are not set, so that a new one spoils no finished work."""
        settings, additive = (
            {name: value for name, value in part.items() if value is not None}
            for part in (self.settings, self.additive)
        )
        return {**asdict(self), "settings": settings, "additive": additive}


StepState = Literal["new", "done", "resumable", "other"]
"""Nothing is there; finished under this key; begun or finished under a key that differs in additive
settings only; begun or finished under another key."""


@dataclass(frozen=True)
class StepFiles:
    """One step's files."""

    path: Path
    name: StepName

    @property
    def digest(self) -> str | None:
        """Digest of the key this step was finished with; None while it is not done."""
        is_done = (self.path / "provenance.json").exists()
        return str(self._provenance()["key"]) if is_done else None

    @property
    def aside(self) -> Path:
        """Where the files of this step go when it is run again under another key."""
        return self.path.with_name(f"{self.path.name}.replaced")

    @property
    def unfinished(self) -> Path:
        """Where files of an unfinished step go if a finished one is aside already."""
        return self.path.with_name(f"{self.path.name}.unfinished")

    @property
    def aside_digest(self) -> str | None:
        """Digest of the key that the step set aside was finished with; None if there is none."""
        return replace(self, path=self.aside).digest

    def _provenance(self) -> Json:
        provenance: Json = self.read_json("provenance.json")
        parts = {"key": str, "upstream": dict, "outputs": dict}
        is_object = isinstance(provenance, dict)
        if not (is_object and all(isinstance(provenance.get(k), t) for k, t in parts.items())):
            raise StoreError(
                f"{self.path / 'provenance.json'} does not say what was made from what; expected "
                f"key, upstream and outputs. Delete {self.path} and run the same command again"
            )
        return provenance

    def state(self, key: Key) -> StepState:
        """How far this step is under `key`."""
        if self.digest == key.digest:
            return "done"
        if not self.path.exists() or not any(self._written()):
            return "new"
        begun = self._read_if_there("started.json").get("key")
        return "resumable" if begun == key.content_digest else "other"

    def _written(self) -> Iterator[Path]:
        """Files of the step, but for those that were being written when a run was killed."""
        files = (path for path in self.path.rglob("*") if path.is_file())
        return (path for path in files if path.suffix != ".partial")

    def changes(self, key: Key) -> list[str]:
        """In words, how `key` differs from the one the files were made under."""
        settings = self._read_if_there("settings.json")
        changes = settings_changes(self.name, settings, key.settings)
        return [*changes, *self.model_changes(key.models), *self.upstream_changes(key.upstream)]

    def model_changes(self, models: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """In words, how the models differ from those that the files were made with."""
        begun = self._read_if_there("started.json").get("models", {})
        return [
            f"the {role} model's {name} was {_short(_kept(begun[role], name))}, now {_short(value)}"
            for role, model in models.items()
            if role in begun
            for name, value in {"template": {}, **model}.items()
            if _plain(value) != _kept(begun[role], name)
        ]

    def upstream_changes(self, upstream: Mapping[str, Any]) -> list[str]:
        """In words, which earlier steps or files differ from those the files were made from."""
        begun = self._read_if_there("started.json").get("upstream", {})
        return [
            f"the {name} {'step' if name in STEPS else 'files'} changed"
            for name, digest in upstream.items()
            if digest != begun.get(name)
        ]

    def _read_if_there(self, name: str) -> Json:
        return self.read_object(name) if (self.path / name).exists() else {}

    def begin(self, key: Key) -> None:
        """Prepare to run under `key`. Files that are there are kept and resumed from."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "provenance.json").unlink(missing_ok=True)
        begun = {"key": key.content_digest, "models": key.models, "upstream": key.upstream}
        self.write_json("started.json", begun)
        self.write_json("settings.json", {**key.settings, **key.additive})

    def set_aside(self, preserved: Sequence[str] = ()) -> Path:
        """Move all files to `NAME.replaced`, in place of what was set aside before.

        Files of an unfinished step never take the place of a finished one: they go to
        `NAME.unfinished`.

        Args:
            preserved: subfolders that are also kept here, since their users `claim` them.

        Returns:
            Where they are now.

        Raises:
            StoreError: the folder cannot be written.
        """
        is_finished = self.digest is not None
        aside = self.aside if is_finished or self.aside_digest is None else self.unfinished
        try:
            _remove(aside)
            self.path.rename(aside)
            for name in preserved:
                if (aside / name).exists():
                    _link_tree(aside / name, self.path / name)
        except OSError as error:
            raise cannot_write(aside, error) from error
        return aside

    def take_back(self) -> None:
        """Put the finished step that was set aside in the place of an unfinished one.

        Raises:
            StoreError: the folder cannot be written.
        """
        try:
            if self.path.exists():
                _remove(self.unfinished)
                self.path.rename(self.unfinished)
            self.aside.rename(self.path)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def claim(self, folder: str, described: Json) -> None:
        """Make a subfolder that holds only what belongs to this description, emptied if need be."""
        path, label = self.path / folder, f"{folder}/described.json"
        if path.exists():
            if (self.path / label).exists() and self.read_json(label) == described:
                return
            shutil.rmtree(path)
        self.write_json(label, described)

    def discard(self, folder: str) -> None:
        """Remove a subfolder that a run with other additive settings left, if there is one."""
        if (self.path / folder).exists():
            shutil.rmtree(self.path / folder)

    def finish(self, key: Key, counts: Any) -> None:
        """Write the provenance, with a hash of every output file. The step is then done.

        Args:
            key: what the output depends on.
            counts: what the step notes about its work: a record, or plain JSON.
        """
        files = sorted(path for path in self.path.rglob("*") if path.is_file())
        outputs = {
            str(path.relative_to(self.path)): content_hash(path)
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
                "counts": TypeAdapter(type(counts)).dump_python(counts, mode="json"),
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
            content = content_hash(file) if file.exists() else "nothing"
            if content != expected:
                raise StoreError(
                    f"{file} is damaged: expected the content with hash {expected[:12]}, found "
                    f"{content[:12]}. Delete {self.path} and run the same command again"
                )

    def holds(self, name: str) -> bool:
        """Whether this finished step wrote a file of that name."""
        return self.digest is not None and name in self._provenance()["outputs"]

    def is_made_from(self, digests: Mapping[str, str | None]) -> bool:
        """Whether this step is finished, and was made from the earlier steps with these digests."""
        if self.digest is None:
            return False
        made_from = self._provenance()["upstream"]
        return all(made_from.get(name) == digest for name, digest in digests.items())

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
                    f"now; type `howwhen {self.name} PAIR --out {self.path.parent} --redo` first, "
                    "or `howwhen run` with --redo"
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
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(
                f"cannot read {self.path / name}: {error}. Delete {self.path} and run again"
            ) from error

    def read_object(self, name: str) -> Json:
        """Read a JSON file that holds an object.

        Raises:
            StoreError: missing, damaged, or of another shape.
        """
        content: Any = self.read_json(name)
        if not isinstance(content, dict):
            raise StoreError(
                f"{self.path / name} holds {_short(content)}, expected an object; delete "
                f"{self.path} and run again"
            )
        return content

    def write_text(self, name: str, text: str) -> Path:
        """Write a whole text file and return its path."""
        write_whole(self.path / name, text.encode())
        return self.path / name

    def take(self, name: str, source: Path) -> None:
        """Copy a file from elsewhere as it is."""
        write_whole(self.path / name, source.read_bytes())

    def write_record(self, name: str, record: Any) -> None:
        """Write one record as a whole JSON file."""
        self.write_json(name, TypeAdapter(type(record)).dump_python(record, mode="json"))

    def read_record(self, name: str, kind: type[Record]) -> Record:
        """Read a JSON file that holds one record.

        Raises:
            StoreError: missing, damaged, or no such record.
        """
        try:
            return TypeAdapter(kind).validate_python(self.read_json(name))
        except ValidationError as error:
            raise StoreError(
                f"cannot read {self.path / name}: {_first_mistake(error)}. Delete {self.path} and "
                "run again"
            ) from error

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
            why = _first_mistake(error)
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
        """Make one record per item, batch by batch. A killed run resumes after its last batch.

        Args:
            name: JSONL file that grows by one batch at a time.
            kind: type of the records.
            items: what records are made of, in an order that a resumed run repeats.
            size: items in a batch.
            make: makes the records of one batch, as many as it has items.
            report: called with the number of records after each batch.

        Raises:
            StoreError: the file cannot be written.
        """
        batches = [items[start : start + size] for start in range(0, len(items), size)]
        path = self.path / name
        lines = _whole_lines(path)
        kept = done = 0
        while done < len(batches) and kept + len(batches[done]) <= len(lines):
            kept += len(batches[done])
            done += 1
        content = b"".join(lines[:kept])
        if not path.exists() or path.stat().st_size != len(content):
            write_whole(path, content)
        report(kept)
        for batch in batches[done:]:
            _append(path, _lines(make(batch)))
            kept += len(batch)
            report(kept)
        return self.read_records(name, kind)


def grades_file(rung: str) -> str:
    """File of a rung's graded answers, relative to the step's folder."""
    return f"grades/{rung}.jsonl"


def settings_changes(
    step: StepName, before: Mapping[str, Any], now: Mapping[str, Any]
) -> list[str]:
    """In words, which settings of a step differ from those its files were made with."""
    return _differences(f"{step}.", before, _plain(now))


def _differences(prefix: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    differences: list[str] = []
    for name, value in now.items():
        former = before.get(name)
        if isinstance(value, dict) and isinstance(former, dict):
            differences += _differences(f"{prefix}{name}.", former, value)
        elif value != former:
            differences.append(f"{prefix}{name} was {_short(former)}, now {_short(value)}")
    return differences


def _plain(value: Any) -> Any:
    """A value as it is read back from JSON."""
    return json.loads(json.dumps(value, default=str))


def _kept(model: Mapping[str, Any], name: str) -> Any:
    """What was kept of a model; template arguments only where there were some."""
    return model.get(name, {} if name == "template" else None)


def _short(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _append(path: Path, content: bytes) -> None:
    """Add whole lines to a file, or none: what a failed write leaves is cut off."""
    size = path.stat().st_size
    try:
        with path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        os.truncate(path, size)
        raise cannot_write(path, error) from error


def _whole_lines(path: Path) -> list[bytes]:
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith(b"\n")]


def _lines(records: Sequence[Any]) -> bytes:
    return b"".join(TypeAdapter(type(record)).dump_json(record) + b"\n" for record in records)


def _first_mistake(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def _remove(folder: Path) -> None:
    """Remove a folder, or a link to one, if it is there."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def _link_tree(source: Path, target: Path) -> None:
    """The same files under another name; copies where the file system has no hard links."""
    try:
        shutil.copytree(source, target, copy_function=os.link)
    except (OSError, shutil.Error):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def content_hash(path: Path) -> str:
    """Hash of a file's content. A file that was not touched since is not read again."""
    stat = path.stat()
    return _hash_of(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=4096)
def _hash_of(path: Path, _inode: int, _size: int, _modified: int, _changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
