"""howwhen's own files keep their names, whatever the classes are called."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from howwhen.formats.safetensors import (
    load_taxonomy,
    load_vectors,
    read_tensors,
    save_taxonomy,
    save_vectors,
    write_tensors,
)
from howwhen.probes import Clusters, Sae
from howwhen.vectors import LinearCoefficient, LowRank, Modulation, Network, VectorSet
from tests.factories import make_taxonomy, make_vectors, random

FORMS: dict[str, Modulation] = {
    "Network": Network(random(8, 32), random(8), random(4, 8), random(4)),
    "LinearGate": LinearCoefficient(random(4, 32), random(4)),
    "LowRank": LowRank(random(4, 2, 32), random(4, 2, 32)),
}
"""By the name in files, which is that of the class in version 0.1."""


def notes_of(path: Path) -> dict[str, object]:
    with safe_open(path, "pt") as file:
        notes: dict[str, object] = json.loads(file.metadata()["howwhen"])
    return notes


def test_every_form_has_a_name_in_files() -> None:
    assert {type(form) for form in FORMS.values()} == set(get_args(Modulation))


@pytest.mark.parametrize("name", FORMS)
def test_vectors_of_earlier_versions_load_and_are_written_as_they_were(
    tmp_path: Path, name: str
) -> None:
    form, path = FORMS[name], tmp_path / "vectors.safetensors"
    tensors = {field.name: getattr(form, field.name) for field in fields(form)}
    notes = {"model": "m", "layer": 1, "form": name}
    save_file({"vectors": random(4, 32), **tensors}, path, {"howwhen": json.dumps(notes)})
    loaded = load_vectors(path)
    assert type(loaded.modulation) is type(form)
    for key, tensor in tensors.items():
        assert torch.equal(getattr(loaded.modulation, key), tensor)
    save_vectors(tmp_path / "again.safetensors", loaded)
    assert notes_of(tmp_path / "again.safetensors") == notes


def test_vectors_without_a_form_and_taxonomies_keep_their_names_too(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_vectors(path, VectorSet("m", 1, random(4, 32)))
    assert notes_of(path)["form"] is None
    assert load_vectors(path).modulation is None
    taxonomy = make_taxonomy()
    assert isinstance(taxonomy.scorer, Sae)
    clusters = Clusters(random(4, 32), torch.zeros(4), "kmeans")
    scorers: dict[str, Sae | Clusters] = {"Sae": taxonomy.scorer, "Clusters": clusters}
    for name, scorer in scorers.items():
        save_taxonomy(path, replace(taxonomy, scorer=scorer))
        assert notes_of(path)["kind"] == name
        assert type(load_taxonomy(path).scorer) is type(scorer)


def test_networks_of_older_files_have_no_hidden_bias(tmp_path: Path) -> None:
    vectors = make_vectors()
    save_vectors(tmp_path / "new", vectors)
    tensors, notes = read_tensors(tmp_path / "new", "")
    write_tensors(tmp_path / "old", {n: t for n, t in tensors.items() if n != "hidden_bias"}, notes)
    loaded = load_vectors(tmp_path / "old").tensors()
    assert not loaded["hidden_bias"].any()
    assert torch.equal(loaded["hidden"], vectors.tensors()["hidden"])
