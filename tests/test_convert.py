import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError
from safetensors.torch import save_file

from howwhen.convert import read_pickled_tensors, read_published_vectors
from howwhen.errors import InputError, SteeringError, StoreError
from howwhen.store import export_gguf, load_vectors, save_vectors
from tests.conftest import DATA, needs_data
from tests.factories import make_forms, make_vectors, random

PUBLISHED = DATA / "published"


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/howwhen-was-here",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"idx0": Evil()}, path)
    with pytest.raises(InputError, match="refused: evil.pt: its pickle asks for .*system"):
        read_pickled_tensors([path])
    assert not Path("/tmp/howwhen-was-here").exists()


def test_what_is_no_dict_or_no_pickle_is_refused(tmp_path: Path) -> None:
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(InputError, match="holds Tensor, expected a dict"):
        read_pickled_tensors([tmp_path / "tensor.pt"])
    with pytest.raises(InputError, match="refused: text.pt"):
        read_pickled_tensors([tmp_path / "text.pt"])
    with pytest.raises(InputError, match="there is no file"):
        read_pickled_tensors([tmp_path / "nothing.pt"])


@needs_data
def test_the_published_vectors_are_read_whole() -> None:
    vectors = read_published_vectors([PUBLISHED / "vectors"], "Qwen/Qwen2.5-Math-1.5B")
    assert (vectors.layer, vectors.vectors.shape) == (10, (15, 1536))
    assert vectors.bias is not None
    assert float(vectors.bias.norm()) == pytest.approx(51.569366, abs=1e-3)
    assert float(vectors.vectors[3].norm()) == pytest.approx(96.278, abs=1e-3)
    assert vectors.is_static


@needs_data
def test_the_published_sae_is_read_from_tensors_and_refused_as_a_pickle() -> None:
    name = "sae_deepseek-r1-distill-qwen-1.5b_layer4_clusters15"
    (tensors,) = read_pickled_tensors([PUBLISHED / f"{name}_tensors.pt"])
    assert tensors["encoder_weight"].shape == (15, 1536)
    with pytest.raises(InputError, match="asks for numpy.*no tensor"):
        read_pickled_tensors([PUBLISHED / f"{name}.pt"])


def write(folder: Path, **tensors: torch.Tensor) -> Path:
    folder.mkdir(exist_ok=True)
    for key, tensor in tensors.items():
        torch.save({key: tensor}, folder / f"{key}.pt")
    return folder


def test_vectors_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    holes = write(tmp_path / "holes", idx0=torch.ones(4), idx2=torch.ones(4))
    with pytest.raises(InputError, match=r"categories \[1\] are missing"):
        read_published_vectors([holes], "m", 3)
    odd = write(tmp_path / "odd", idx0=torch.ones(4), idx1=torch.ones(5))
    with pytest.raises(SteeringError, match="vectors of one width"):
        read_published_vectors([odd], "m", 3)
    nan = write(tmp_path / "nan", idx0=torch.full((4,), torch.nan))
    with pytest.raises(SteeringError, match="not finite"):
        read_published_vectors([nan], "m", 3)
    with pytest.raises(InputError, match="type --layer N"):
        read_published_vectors([write(tmp_path / "bare", idx0=torch.ones(4))], "m")
    with pytest.raises(InputError, match="expected vectors under the keys"):
        read_published_vectors([write(tmp_path / "names", other=torch.ones(4))], "m", 3)


@pytest.mark.parametrize("form", make_forms())
def test_every_form_of_vectors_is_saved_and_loaded(tmp_path: Path, form: str) -> None:
    vectors = make_forms()[form]
    save_vectors(tmp_path / "v.safetensors", vectors)
    again = load_vectors(tmp_path / "v.safetensors")
    assert (again.model, again.layer, type(again.modulation)) == (
        vectors.model, vectors.layer, type(vectors.modulation)
    )  # fmt: skip
    residual, category = random(6, 32), torch.tensor([0, 1, 2, 3, 0, 1])
    assert torch.equal(again.delta(residual, category), vectors.delta(residual, category))


def test_vectors_of_wrong_shapes_or_values_are_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    vectors = make_vectors()
    tensors = {**vectors.tensors(), "heads": torch.ones(3, 8)}
    notes = {"model": "m", "layer": 1, "form": "Network"}
    save_file(tensors, path, {"howwhen": json.dumps(notes)})
    with pytest.raises((StoreError, TypeCheckError), match=r"heads"):
        load_vectors(path)
    save_file({"vectors": torch.ones(3)}, path, {"howwhen": json.dumps({**notes, "form": None})})
    with pytest.raises((StoreError, TypeCheckError)):
        load_vectors(path)
    save_vectors(path, replace(vectors, vectors=torch.full((4, 32), torch.inf)))
    with pytest.raises(SteeringError, match="not finite"):
        load_vectors(path)


def test_vectors_are_values() -> None:
    one, other = (
        replace(make_vectors(), modulation=None, vectors=random(4, 32, seed=s)) for s in (1, 2)
    )
    bias = replace(one, bias=random(32, seed=3))
    residual, category = random(4, 32), torch.arange(4)
    both = (one + other).delta(residual, category)
    torch.testing.assert_close(
        both, one.delta(residual, category) + other.delta(residual, category)
    )
    for vectors in (one, bias, *make_forms().values()):
        doubled = vectors.scaled(2.0).delta(residual, category)
        torch.testing.assert_close(doubled, 2 * vectors.delta(residual, category))
    similar = one.similarity(one.scaled(3.0))
    torch.testing.assert_close(similar.diagonal(), torch.ones(4))
    assert one.similarity().shape == (4, 4)
    summed = (one + bias).bias
    assert summed is not None
    assert torch.equal(summed, random(32, seed=3))
    with pytest.raises(SteeringError, match="cannot add vectors"):
        _ = one + make_vectors()


def test_static_vectors_are_exported_as_gguf_and_read_back(tmp_path: Path) -> None:
    from gguf import GGUFReader

    vectors = make_forms()["bias"]
    paths = export_gguf(tmp_path / "out", vectors)
    assert [path.name for path in paths] == [f"category-{i}.gguf" for i in range(4)]
    for category, path in enumerate(paths):
        reader = GGUFReader(path)
        assert reader.fields["general.architecture"].contents() == "controlvector"
        assert reader.fields["controlvector.model_hint"].contents() == "llama-0"
        (tensor,) = reader.tensors
        assert tensor.name == "direction.1"
        expected = vectors.delta(torch.zeros(1, 32), torch.tensor([category]))[0]
        torch.testing.assert_close(torch.tensor(tensor.data), expected)


def test_what_gguf_cannot_say_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SteeringError, match=r"depend on the residual \(Network\)"):
        export_gguf(tmp_path, make_vectors())
    with pytest.raises(SteeringError, match="layer 0 cannot be exported"):
        export_gguf(tmp_path, replace(make_forms()["linear"], layer=0))
