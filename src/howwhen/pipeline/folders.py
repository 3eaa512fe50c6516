"""A run's folder: whom it belongs to, and the lock that keeps two processes apart.

Nothing here needs torch, so a folder that cannot be used is refused in milliseconds.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from howwhen.errors import StoreError
from howwhen.formats.files import cannot_write, write_whole
from howwhen.pipeline.files import STEPS, StepFiles, StepName

OWNER = "run.json"
"""File at the root of a run folder that says which pair it belongs to."""
FORMAT = 2
"""Version of the files of a run; a run of another version is refused."""


@dataclass(frozen=True)
class Owner:
    """The pair that a run folder belongs to."""

    pair: str
    base: str
    """Hub id, folder or embedded name of the base model."""
    thinking: str
    """The same for the thinking model."""

    def __str__(self) -> str:
        return f"{self.pair} (base {self.base}, thinking model {self.thinking})"


class RunFiles:
    """A run's folder. It need not exist yet."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def step(self, name: StepName) -> "StepFiles":
        """The folder of one step, which need not exist yet."""
        return StepFiles(self.step_path(name), name)

    def step_path(self, name: StepName) -> Path:
        """Where the files of a step are kept."""
        return self.root / f"{STEPS.index(name) + 1}-{name}"

    @property
    def judge_cache(self) -> Path:
        """Where the judges of all steps keep their replies."""
        return self.root / "judge-cache"

    def owner(self) -> Owner | None:
        """The pair that the folder belongs to; None for a folder without a run.

        Raises:
            StoreError: another version of howwhen wrote the run, or the file cannot be read.
        """
        path = self.root / OWNER
        if not path.exists():
            if any(self.step_path(name).exists() for name in STEPS):
                raise StoreError(
                    f"{self.root} holds a run without {OWNER}, so an earlier version of howwhen "
                    "wrote it and this one cannot go on with it; choose another --out"
                )
            return None
        try:
            content = json.loads(path.read_bytes())
            owner = Owner(*(content[name] for name in ("pair", "base", "thinking")))
            found = content["format"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise StoreError(
                f"cannot read {path}: {error!r}; expected the pair that the run belongs to. Choose "
                "another --out"
            ) from error
        if found != FORMAT:
            raise StoreError(
                f"{self.root} holds a run of format {found}, and this howwhen reads and writes "
                f"format {FORMAT}; choose another --out"
            )
        return owner

    def check_owner(self, owner: Owner) -> None:
        """Refuse a folder that belongs to another pair, or to another version of howwhen.

        Raises:
            StoreError: with what is there, what was asked for, and what to type.
        """
        kept = self.owner()
        if kept is not None and kept != owner:
            raise StoreError(
                f"{self.root} holds a run of {kept}, but {owner} was asked for; choose another "
                "--out. A run folder belongs to one pair"
            )

    def claim(self, owner: Owner) -> None:
        """Note which pair the folder belongs to, after checking that it belongs to no other.

        Raises:
            StoreError: as `check_owner`, or the folder cannot be written.
        """
        self.check_owner(owner)
        if not (self.root / OWNER).exists():
            text = json.dumps({"format": FORMAT, **asdict(owner)}, indent=2) + "\n"
            write_whole(self.root / OWNER, text.encode())


@contextmanager
def locked(root: Path, *, is_new: bool = True) -> Iterator[None]:
    """Hold a run folder's lock, so that two processes cannot mix their files.

    Args:
        root: the folder.
        is_new: whether to make it if it is missing.

    Raises:
        StoreError: the folder is in use, is a file, cannot be written, or is missing and is not to
            be made.
    """
    if not is_new and not root.exists():
        raise StoreError(
            f"there is no run folder {root}; type `howwhen run PAIR --out {root}` first"
        )
    if root.exists() and not root.is_dir():
        raise StoreError(f"{root} is a file; --out expects a folder, which may be new")
    lock = FileLock(root / ".lock")
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StoreError(
            f"another howwhen process is working in {root}; wait for it or choose another --out"
        ) from error
    except OSError as error:
        raise cannot_write(root, error) from error
    try:
        yield
    finally:
        lock.release()
