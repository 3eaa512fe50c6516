import io
import json
import os
import subprocess
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError
from safetensors.torch import save_file

from howwhen.cli import app
from howwhen.errors import HowwhenError, InputError, SettingsError, SteeringError, StoreError
from howwhen.formats import unpickle
from howwhen.formats.convert import FileInfo, read_any
from howwhen.formats.gguf import export_gguf
from howwhen.formats.pickles import read_pickled_tensors
from howwhen.formats.published import (
    as_taxonomy,
    read_published_sae,
    read_published_vectors,
    read_titles,
)
from howwhen.formats.safetensors import load_taxonomy, load_vectors, save_taxonomy, save_vectors
from howwhen.probes import Clusters, Sae
from tests.conftest import DATA, needs_data
from tests.factories import make_forms, make_taxonomy, make_vectors, random

PUBLISHED = DATA / "published"
SAE_NAME = "sae_deepseek-r1-distill-qwen-1.5b_layer4_clusters15"
TITLES = PUBLISHED / "taxonomy_deepseek-r1-distill-qwen-1.5b_layer4_clusters15.json"


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/howwhen-was-here",)


@pytest.fixture
def unpickled_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the script that reads `.pt` files in this process; another takes two seconds."""

    def run(command: Sequence[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        written, said = io.TextIOWrapper(io.BytesIO()), io.StringIO()
        with redirect_stdout(written), redirect_stderr(said):
            code = unpickle.main(list(command[3:]))
        output = written.detach().getvalue()
        return subprocess.CompletedProcess(command, code, output, said.getvalue().encode())

    monkeypatch.setattr("howwhen.formats.pickles.subprocess.run", run)


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
def test_the_published_sae_becomes_a_taxonomy() -> None:
    path = PUBLISHED / f"{SAE_NAME}_tensors.pt"
    titles = read_titles(TITLES)
    taxonomy = read_published_sae(path, "deepseek-ai/R1", titles=titles)
    assert (taxonomy.model, taxonomy.layer, taxonomy.size) == ("deepseek-ai/R1", 4, 15)
    assert taxonomy.titles == tuple(json.loads(TITLES.read_text())["final_titles"])
    sae = taxonomy.scorer
    assert isinstance(sae, Sae)
    assert (sae.encoder.shape, sae.decoder.shape, sae.k) == ((15, 1536), (15, 1536), 3)
    assert torch.equal(taxonomy.mean, torch.zeros(1536))

    raw = torch.load(path, weights_only=True)
    residual = random(300, 1536) * 5
    unit = residual / residual.norm(dim=1, keepdim=True)
    by_hand = (unit - raw["b_dec"]) @ raw["encoder_weight"].T + raw["encoder_bias"]
    torch.testing.assert_close(taxonomy.scores(residual), by_hand, atol=1e-5, rtol=1e-5)
    assert torch.equal(taxonomy.categorise(residual), by_hand.argmax(1))
    assert len(set(by_hand.argmax(1).tolist())) > 3

    mean = random(1536, seed=5)
    centred = read_published_sae(path, "m", 4, mean=mean)
    assert centred.titles[14] == "latent 14"
    torch.testing.assert_close(centred.scores(residual + mean), by_hand, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("unpickled_here")
def test_a_layer_is_read_only_from_the_sheets_that_bear_the_vectors_names(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours / "vectors", ours / "hyperparams", theirs / "deep"):
        folder.mkdir(parents=True)
    vector = ours / "vectors" / "m_idx0.pt"
    torch.save({"idx0": torch.ones(4)}, vector)
    (theirs / "deep" / "x_hyperparams_m_idx0.json").write_text('{"hyperparameters": {"layer": 7}}')
    with pytest.raises(InputError, match="0 layers are named in the 0 hyperparameter files"):
        read_published_vectors([vector], "m")
    sheet = ours / "hyperparams" / "x_hyperparams_m_idx0.json"
    sheet.write_text('{"hyperparameters": {"layer": 5}}')
    assert read_published_vectors([vector], "m").layer == 5
    for broken in ("{}", "[[", '{"hyperparameters": {"layer": "five"}}'):
        sheet.write_text(broken)
        with pytest.raises(InputError, match="--layer N"):
            read_published_vectors([vector], "m")


def sae_content(**other: object) -> dict[str, object]:
    """What a published SAE file holds, for 3 latents of width 8; None leaves a key out."""
    rows = torch.nn.functional.normalize(random(3, 8), dim=1)
    content: dict[str, object] = {
        "encoder_weight": random(3, 8, seed=1),
        "encoder_bias": random(3, seed=2),
        "decoder_weight": rows,
        "b_dec": random(8, seed=3),
        "input_dim": 8,
        "num_latents": 3,
        "topk": 2,
        "loss": 0.7,
        "cluster_labels": torch.zeros(5, dtype=torch.uint8),
        "cluster_centers": rows,
    }
    return {key: value for key, value in {**content, **other}.items() if value is not None}


def write_sae(path: Path, **other: object) -> Path:
    torch.save(sae_content(**other), path)
    return path


MALFORMED: list[tuple[str, dict[str, object]]] = [
    (r"the encoder has shape \(24,\); expected", {"encoder_weight": torch.ones(24)}),
    (r"the encoder bias has shape \(4,\); expected \(3,\)", {"encoder_bias": torch.ones(4)}),
    (r"the decoder has shape \(8, 3\); expected \(3, 8\)", {"decoder_weight": torch.ones(8, 3)}),
    (r"the decoder bias has shape \(3,\); expected \(8,\)", {"b_dec": torch.ones(3)}),
    ("the encoder holds .*not finite", {"encoder_weight": torch.full((3, 8), torch.nan)}),
    ("decoder rows have norms from 1.414 to 1.414", {"decoder_weight": torch.eye(3, 8) * 2**0.5}),
    ("lacks encoder_bias, topk and has unknown keys", {"encoder_bias": None, "topk": None}),
    ("lacks no key and has unknown keys threshold", {"threshold": torch.ones(3)}),
    ("k is 0; expected a whole number from 1 to 3", {"topk": 0}),
    ("k is 4; expected a whole number from 1 to 3", {"topk": 4}),
    ("k is 1.5; expected a whole number", {"topk": 1.5}),
    (r"k is \[1, 2\]; expected a whole number", {"topk": torch.tensor([1, 2])}),
    ("num_latents is 4, but the encoder says 3", {"num_latents": 4}),
    ("input_dim is 9, but the encoder says 8", {"input_dim": 9}),
]


def test_malformed_saes_are_refused(tmp_path: Path) -> None:
    """One child process reads them all: each would take two seconds to start."""
    paths = [
        write_sae(tmp_path / f"sae{i}_layer1.pt", **other) for i, (_, other) in enumerate(MALFORMED)
    ]
    contents = read_pickled_tensors(paths)
    for path, content, (message, _) in zip(paths, contents, MALFORMED, strict=True):
        with pytest.raises(InputError, match=f"{path.name}.* {message}"):
            as_taxonomy(path, content, "m", 1, None, None)


@pytest.mark.usefixtures("unpickled_here")
def test_an_sae_says_its_layer_once(tmp_path: Path) -> None:
    named, bare = write_sae(tmp_path / "a_layer4_x.pt"), write_sae(tmp_path / "sae.pt")
    assert read_published_sae(named, "m", 4).layer == 4
    assert read_published_sae(bare, "m", 9).layer == 9
    with pytest.raises(InputError, match="--layer is 5, but .*says layer 4"):
        read_published_sae(named, "m", 5)
    with pytest.raises(InputError, match="does not say whose block's output.*type --layer N"):
        read_published_sae(bare, "m")


def convert(*arguments: object) -> None:
    app(
        ["convert", *map(str, arguments)],
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
    )


def refuse(message: str, *arguments: object) -> None:
    with pytest.raises(HowwhenError, match=message) as caught:
        convert(*arguments)
    assert len(str(caught.value)) < 700


def test_the_command_converts_a_taxonomy_there_and_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sae, out = write_sae(tmp_path / "sae_layer4.pt"), tmp_path / "t.safetensors"
    titles, mean = tmp_path / "titles.json", tmp_path / "mean.safetensors"
    titles.write_text('["plan", "compute", "check"]')
    save_file({"mean": random(8, seed=4)}, mean)
    told = ("--model", "m", "--titles", titles)
    convert(sae, *told, "--mean", mean, "--out", out)
    assert capsys.readouterr().out == f"3 categories of width 8 at layer 4: {out}\n"
    taxonomy = load_taxonomy(out)
    assert taxonomy.titles == ("plan", "compute", "check")
    assert torch.equal(taxonomy.mean, random(8, seed=4))

    convert(out, "--to", "saelens", "--out", tmp_path / "folder")
    convert(tmp_path / "folder", "--out", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == out.read_bytes()
    convert(sae, *told, "--out", tmp_path / "uncentred.safetensors")
    said = capsys.readouterr().out
    assert said.count("Its corpus mean is 0, since none was given") == 1
    assert "--mean FILE.safetensors" in said
    assert "taxonomy.safetensors of a run" in said


@needs_data
def test_the_command_reads_the_published_sae_and_refuses_its_pickle(tmp_path: Path) -> None:
    out, told = tmp_path / "t.safetensors", ("--model", "R1", "--titles", TITLES)
    refuse(
        "clusters15.pt: its pickle asks for numpy._core.multiarray._reconstruct, which is no tensor"
        ".*ask for a safetensors file, or save the tensors alone",
        PUBLISHED / f"{SAE_NAME}.pt", *told, "--out", out,
    )  # fmt: skip
    assert not out.exists()
    convert(PUBLISHED / f"{SAE_NAME}_tensors.pt", *told, "--out", out)
    assert load_taxonomy(out).titles[3] == "Reevaluation"


def test_impossible_conversions_say_what_to_type(tmp_path: Path) -> None:
    out, sae = tmp_path / "out", write_sae(tmp_path / "sae_layer4.pt")
    taxonomy, vectors = tmp_path / "t.safetensors", tmp_path / "v.safetensors"
    save_taxonomy(taxonomy, make_taxonomy())
    save_vectors(vectors, make_forms()["linear"])
    clusters = tmp_path / "c.safetensors"
    found = Clusters(random(4, 32), torch.zeros(4), "kmeans")
    save_taxonomy(clusters, replace(make_taxonomy(), scorer=found))
    refuse("only reads residuals; type --to safetensors", taxonomy, "--to", "gguf", "--out", out)
    refuse("these are steering vectors; type --to", vectors, "--to", "saelens", "--out", out)
    refuse("found by kmeans", clusters, "--to", "saelens", "--out", out)
    refuse("says all of it itself; leave out --model, --layer", taxonomy,
           "--model", "m", "--layer", "2", "--out", out)  # fmt: skip
    refuse("is a folder; type --out", taxonomy, "--out", tmp_path)
    refuse("is a file; for --to saelens", taxonomy, "--to", "saelens", "--out", vectors)
    refuse("expected .*t.safetensors alone", taxonomy, vectors, "--out", out)
    refuse("whose residuals does this SAE read", sae, "--out", out)
    refuse("howwhen did not write it. Expected vectors or a taxonomy", save_plain(tmp_path),
           "--out", out)  # fmt: skip
    refuse("found no .pt file in .*empty", empty(tmp_path), "--model", "m", "--out", out)
    assert not out.exists()


def save_plain(folder: Path) -> Path:
    save_file({"W_enc": torch.ones(2)}, folder / "plain.safetensors")
    return folder / "plain.safetensors"


def empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


@pytest.mark.usefixtures("unpickled_here")
def test_what_is_told_of_vectors_and_saes_is_used_or_refused(tmp_path: Path) -> None:
    vectors, titles = write(tmp_path / "vectors", idx0=torch.ones(4)), tmp_path / "titles.json"
    sae, mean = write_sae(tmp_path / "sae_layer4.pt"), tmp_path / "mean.safetensors"
    titles.write_text('["one"]')
    save_file({"average": torch.ones(8)}, mean)
    with pytest.raises(SettingsError, match="no titles or mean; leave out --titles"):
        read_any([vectors], FileInfo("m", 3, titles=titles))
    with pytest.raises(InputError, match="found 1 titles for 3 latents"):
        read_any([sae], FileInfo("m", titles=titles))
    with pytest.raises(InputError, match="an SAE among 2 files"):
        read_any([sae, vectors], FileInfo("m"))
    with pytest.raises(InputError, match="holds average; expected the key `mean`"):
        read_any([sae], FileInfo("m", mean=mean))
    for text, message in (('{"titles": ["a"]}', "holds no titles; expected"), ("a", "cannot read")):
        titles.write_text(text)
        with pytest.raises(InputError, match=message):
            read_any([sae], FileInfo("m", titles=titles))


def write(folder: Path, **tensors: torch.Tensor) -> Path:
    folder.mkdir(exist_ok=True)
    for key, tensor in tensors.items():
        torch.save({key: tensor}, folder / f"{key}.pt")
    return folder


@pytest.mark.usefixtures("unpickled_here")
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
