"""A taxonomy together with its vectors: published files to a run's folder and back."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from howwhen.errors import InputError, SettingsError
from howwhen.formats.bundle import Bundle, read_bundle, write_published
from howwhen.formats.convert import FileInfo
from howwhen.formats.published import read_titles
from howwhen.pipeline.bundles import convert_bundle, read_run, write_run
from howwhen.pipeline.store import StepFolder
from howwhen.probes import Clusters, Sae, Taxonomy
from howwhen.vectors import VectorSet

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "published"
needs_published = pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="the authors' artifacts are not in this checkout"
)


def bundle(size: int = 4) -> Bundle:
    generator = torch.Generator().manual_seed(0)
    encoder, decoder = (torch.randn(size, 8, generator=generator) for _ in range(2))
    decoder = decoder / decoder.norm(dim=1, keepdim=True)
    sae = Sae(encoder, torch.randn(size, generator=generator), decoder, torch.ones(8), 2)
    titles = tuple(f"title {number}" for number in range(size))
    taxonomy = Taxonomy("org/Thinking", 3, torch.ones(8) / 3, sae, titles)
    vectors = torch.randn(size, 6, generator=generator)
    return Bundle(taxonomy, VectorSet("org/Base", 2, vectors, torch.ones(6)))


def test_a_run_becomes_published_files_and_these_a_run(tmp_path: Path) -> None:
    given = bundle()
    run = tmp_path / "run"
    assert write_run(run, given) == [
        str(run / "2-discover" / "taxonomy.safetensors"),
        str(run / "3-elicit" / "vectors.safetensors"),
    ]
    lines = convert_bundle([run], tmp_path / "files", FileInfo(), "published", None)
    assert lines[0].endswith("sae_thinking_layer3_clusters4.pt")
    assert lines[1] == f"5 vectors for layer 2: {tmp_path / 'files' / 'vectors'}"
    files, back = tmp_path / "files", tmp_path / "back"
    info = FileInfo(titles=files / "titles.json", mean=files / "mean.safetensors")
    convert_bundle([files], back, info, "run", ("org/Base", "org/Thinking"))
    found = read_run(back)
    assert isinstance(found.taxonomy.scorer, Sae)
    assert isinstance(given.taxonomy.scorer, Sae)
    for name in ("encoder", "encoder_bias", "decoder", "decoder_bias"):
        assert torch.equal(
            getattr(found.taxonomy.scorer, name), getattr(given.taxonomy.scorer, name)
        )
    assert (found.taxonomy.scorer.k, found.taxonomy.layer) == (2, 3)
    assert found.taxonomy.titles == given.taxonomy.titles
    assert torch.equal(found.taxonomy.mean, given.taxonomy.mean)
    assert torch.equal(found.vectors.vectors, given.vectors.vectors)
    assert found.vectors.bias is not None
    assert found.vectors.bias.tolist() == [1.0] * 6
    assert (found.vectors.layer, found.vectors.model) == (2, "org/Base")


@needs_published
def test_the_authors_files_become_a_run(tmp_path: Path) -> None:
    stem = "deepseek-r1-distill-qwen-1.5b_layer4_clusters15"
    found = read_bundle(
        [PUBLISHED / f"sae_{stem}_tensors.pt", PUBLISHED / "vectors"],
        "Qwen/Qwen2.5-Math-1.5B",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        read_titles(PUBLISHED / f"taxonomy_{stem}.json"),
    )
    assert (found.taxonomy.layer, found.taxonomy.size, found.vectors.layer) == (4, 15, 10)
    norms = found.vectors.vectors.norm(dim=1)
    assert 73 < float(norms.min()) < 74
    assert 103 < float(norms.max()) < 105
    assert found.vectors.bias is not None
    assert round(float(found.vectors.bias.norm()), 1) == 51.6


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    files = tmp_path / "files"
    write_published(files, bundle())
    vectors = files / "vectors"
    with pytest.raises(InputError, match="found 0 SAEs and 5 vectors"):
        read_bundle([vectors], "b", "t")
    sae = next(files.glob("sae_*.pt"))
    with pytest.raises(InputError, match="found 1 SAEs and 0 vectors"):
        read_bundle([sae], "b", "t")
    (vectors / "base_idx3_linear.pt").unlink()
    with pytest.raises(InputError, match="found 3 vectors for 4 categories"):
        read_bundle([files, vectors], "b", "t")
    with pytest.raises(InputError, match="is there already"):
        write_run(files, bundle())
    with pytest.raises(InputError, match="lacks 2-discover/taxonomy.safetensors and 3-elicit"):
        read_run(files)


def test_vectors_of_another_gate_are_not_the_saes(tmp_path: Path) -> None:
    write_run(tmp_path / "run", bundle())
    gate = replace(bundle().taxonomy.gate(), kind="clusters")
    StepFolder(tmp_path / "run" / "3-elicit", "elicit").write_gate("gate.safetensors", gate)
    with pytest.raises(InputError, match="belong to a gate of kind clusters"):
        read_run(tmp_path / "run")


def test_what_the_published_layout_cannot_hold_is_refused(tmp_path: Path) -> None:
    plain = bundle()
    clusters = Clusters(torch.zeros(4, 8), torch.zeros(4), "kmeans")
    taxonomy = Taxonomy("t", 3, torch.zeros(8), clusters, plain.taxonomy.titles)
    with pytest.raises(InputError, match="method kmeans and vectors that are static"):
        write_published(tmp_path, Bundle(taxonomy, plain.vectors))


@pytest.mark.parametrize(
    ("to", "names", "info", "message"),
    [
        ("run", None, FileInfo(), "--to run without --pair"),
        ("gguf", ("b", "t"), FileInfo(), "--to gguf with --pair"),
        ("run", ("b", "t"), FileInfo(layer=3), "leave out --layer"),
        ("published", None, FileInfo(model="m"), "leave out --model"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    tmp_path: Path, to: str, names: tuple[str, str] | None, info: FileInfo, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        convert_bundle([tmp_path], tmp_path / "out", info, to, names)  # type: ignore[arg-type]
