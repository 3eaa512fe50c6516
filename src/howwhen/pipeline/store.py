"""Run folders with tensors: taxonomies, vectors and gates as well as records."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from howwhen.formats.files import Json
from howwhen.formats.safetensors import (
    load_taxonomy,
    load_vectors,
    opened_tensors,
    read_tensors,
    save_taxonomy,
    save_vectors,
    tensors_and_notes,
    write_tensors,
)
from howwhen.pipeline.files import StepFiles, StepName
from howwhen.pipeline.folders import RunFiles, locked
from howwhen.pipeline.given import TAXONOMY
from howwhen.probes import Gate, SelfGate, Taxonomy
from howwhen.vectors import VectorSet


class RunFolder(RunFiles):
    """A run's folder. `open_run` makes one and locks it."""

    def step(self, name: StepName) -> "StepFolder":
        """The folder of one step, which need not exist yet."""
        return StepFolder(self.step_path(name), name)


@contextmanager
def open_run(root: Path, *, is_new: bool = True) -> Iterator[RunFolder]:
    """Hold a run folder's lock, so that two processes cannot mix their files.

    Args:
        root: the folder.
        is_new: whether to make it if it is missing.

    Raises:
        StoreError: the folder is in use, is a file, cannot be written, or is missing and is not to
            be made.
    """
    with locked(root, is_new=is_new):
        yield RunFolder(root)


class StepFolder(StepFiles):
    """One step's files, tensors included."""

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
            tensor: Tensor = opened.get_tensor(key)
            return tensor

    def tensor_shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Shapes of a safetensors file's tensors, from its header alone.

        Raises:
            StoreError: missing or truncated.
        """
        with opened_tensors(self.path / name, f"Delete {self.path} and run again") as opened:
            return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118

    def write_taxonomy(self, taxonomy: Taxonomy, name: str = TAXONOMY) -> None:
        """Write a taxonomy, by default as the chosen one."""
        save_taxonomy(self.path / name, taxonomy)

    def read_taxonomy(self, name: str = TAXONOMY) -> Taxonomy:
        """Read a taxonomy, by default the chosen one."""
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
        fields: Json = {**tensors, **notes, "titles": tuple(notes["titles"])}
        return Gate(**fields)

    def read_self_gate(self, name: str) -> SelfGate:
        """Read a self-gate."""
        tensors, notes = self.read_tensors(name)
        fields: Json = {**tensors, **notes, "layers": tuple(notes["layers"])}
        return SelfGate(**fields)
