"""Writing a file completely or not at all."""

import os
from pathlib import Path
from typing import Any

from howwhen.errors import StoreError

Json = dict[str, Any]
"""An object as JSON holds it."""


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically, creating its folder if needed.

    Raises:
        StoreError: the disk is full, or the folder cannot be written. No partial file is left
            behind, and an existing file of that name keeps its content.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> StoreError:
    """The error to raise when a file cannot be written: the cause, and what to type next."""
    return StoreError(
        f"cannot write {path}: {error.strerror or error}. Make room or allow writing there, then "
        "type the same command again; it resumes from what is finished"
    )
