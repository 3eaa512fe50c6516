"""A share of what `python -m benchmarks fuzzing` does, and the loaders' bugs that it found."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.fuzzing import fuzz_files, fuzz_splitter
from howwhen.errors import StoreError
from howwhen.formats.safetensors import load_taxonomy, load_vectors, save_taxonomy, save_vectors
from howwhen.vectors import VectorSet
from tests.factories import make_taxonomy, make_vectors


def test_hostile_texts_are_cut_into_sentences() -> None:
    outcome = fuzz_splitter(2000, seed=1)
    assert outcome.failures == []
    assert outcome.inputs == outcome.kinds.total() == 2000


def test_damaged_artifacts_are_refused_or_usable() -> None:
    outcome = fuzz_files(2000, seed=1)
    assert outcome.failures == []
    assert outcome.inputs == outcome.kinds.total() == 2000
    assert all(any(kind.startswith(start) for kind in outcome.kinds) for start in ("ref", "usa"))


def edit(path: Path, old: str, new: str) -> None:
    """Change the header of a safetensors file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].replace(old.encode(), new.encode())
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])


NOTES = [
    (r"\"layer\": 1", r"\"layer\": 1e999", "layer is inf"),
    (r"\"layer\": 1", r"\"layer\": 1.5", "layer is 1.5"),
    (r"\"layer\": 1", r"\"layer\": -1", "layer is -1"),
    (r"\"layer\": 1", r"\"layer\": " + "[" * 9999, "cannot read"),
]


@pytest.mark.parametrize(("old", "new", "message"), NOTES)
@pytest.mark.parametrize("load", [load_taxonomy, load_vectors])
def test_notes_that_make_no_sense_are_refused(
    tmp_path: Path, load: Callable[[Path], object], old: str, new: str, message: str
) -> None:
    if load is load_taxonomy:
        save_taxonomy(tmp_path / "f", make_taxonomy())
    else:
        save_vectors(tmp_path / "f", make_vectors())
    edit(tmp_path / "f", old, new)
    with pytest.raises(StoreError, match=message):
        load(tmp_path / "f")


def test_titles_are_a_list_of_texts(tmp_path: Path) -> None:
    save_taxonomy(tmp_path / "t", make_taxonomy())
    titles = json.dumps(json.dumps(["c0", "c1", "c2", "c3"]))[1:-1]
    edit(tmp_path / "t", titles, json.dumps(json.dumps("cccc"))[1:-1])
    with pytest.raises(StoreError, match="titles is 'cccc', expected a list of texts"):
        load_taxonomy(tmp_path / "t")


def test_half_precision_is_widened_and_whole_numbers_are_refused(tmp_path: Path) -> None:
    rows = torch.eye(3, 4).bfloat16()
    save_vectors(tmp_path / "v", VectorSet("m", 1, rows, bias=torch.ones(4)))
    assert load_vectors(tmp_path / "v").vectors.dtype is torch.float32
    edit(tmp_path / "v", '"dtype":"BF16"', '"dtype":"I16"')
    with pytest.raises(StoreError, match=r"vectors has type torch\.int16, expected floating"):
        load_vectors(tmp_path / "v")


def test_inner_widths_must_agree(tmp_path: Path) -> None:
    save_vectors(tmp_path / "v", make_vectors())
    edit(tmp_path / "v", '"F32","shape":[4,8]', '"F16","shape":[4,16]')
    with pytest.raises(StoreError, match=r"holds no vector set .*heads"):
        load_vectors(tmp_path / "v")
