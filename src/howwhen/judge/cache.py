"""Replies of an endpoint on disk, one file per request."""

import hashlib
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, JsonValue

from howwhen.errors import StoreError


class Reply(BaseModel):
    """What an endpoint replied."""

    text: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


class _Kept(BaseModel):
    """A cache file."""

    request: dict[str, JsonValue]
    reply: Reply


def digest(body: dict[str, JsonValue]) -> str:
    """Name of a request: a hash of everything that its reply depends on."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class ReplyCache:
    """A folder of replies; several threads and processes may use it at the same time."""

    folder: Path

    def path(self, body: dict[str, JsonValue]) -> Path:
        """The file of a request."""
        return self.folder / f"{digest(body)}.json"

    def read(self, body: dict[str, JsonValue]) -> Reply | None:
        """The cached reply to a request; None if there is none.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file is damaged, or holds the reply to another request.
        """
        path = self.path(body)
        try:
            kept = _Kept.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        if digest(kept.request) != path.stem:
            raise ValueError("it holds the reply to another request")
        return kept.reply

    def write(self, body: dict[str, JsonValue], reply: Reply) -> None:
        """Write a reply completely or not at all.

        The partial file is named after process and thread, as others may write the same reply.

        Raises:
            StoreError: the reply cannot be written.
        """
        path = self.path(body)
        partial = path.with_name(f"{path.name}.partial-{os.getpid()}-{threading.get_ident()}")
        try:
            with partial.open("wb") as file:
                file.write(_Kept(request=body, reply=reply).model_dump_json(indent=1).encode())
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            raise StoreError(
                f"cannot keep a judge's reply in {path}: {error}; make room or give another folder"
            ) from error


def open_cache(folder: Path) -> ReplyCache:
    """The cache in a folder, which is made if needed.

    Raises:
        StoreError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot make the judge's cache folder {folder}: {error}; give another one"
        ) from error
    return ReplyCache(folder)
