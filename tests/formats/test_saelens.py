"""SAELens folders: what we write is what sae-lens reads, and what we read is what was written."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from howwhen.errors import InputError
from howwhen.formats.saelens import export_saelens, read_saelens
from howwhen.probes import Clusters, Sae, Taxonomy
from tests.factories import make_taxonomy, random


def with_k(k: int) -> Taxonomy:
    taxonomy = make_taxonomy()
    assert isinstance(taxonomy.scorer, Sae)
    return replace(taxonomy, scorer=replace(taxonomy.scorer, k=k))


def sae_of(taxonomy: Taxonomy) -> Sae:
    assert isinstance(taxonomy.scorer, Sae)
    return taxonomy.scorer


@pytest.fixture
def load_foreign() -> Callable[[Path], Any]:
    reason = "sae-lens is not installed; type: pip install 'howwhen[sae]'"
    load: Callable[[Path], Any] = pytest.importorskip("sae_lens", reason=reason).SAE.load_from_disk
    return load


@pytest.mark.parametrize("k", [1, 2, 3])
def test_sae_lens_itself_agrees_with_what_we_wrote(
    tmp_path: Path, load_foreign: Callable[[Path], Any], k: int
) -> None:
    taxonomy = with_k(k)
    foreign = load_foreign(export_saelens(tmp_path / "sae", taxonomy))
    residual = random(400, 32, seed=11)
    mean = load_file(tmp_path / "sae" / foreign.cfg.metadata.normaliser)["mean"]
    inputs = (residual - mean) / (residual - mean).norm(dim=1, keepdim=True)
    sae, (_, cache) = sae_of(taxonomy), foreign.run_with_cache(inputs)
    scores = taxonomy.scores(residual)
    torch.testing.assert_close(cache["hook_sae_acts_pre"], scores)
    assert torch.equal(cache["hook_sae_acts_pre"].argmax(1), taxonomy.categorise(residual))

    codes, kept = foreign.encode(inputs), scores.topk(k)
    torch.testing.assert_close(codes.gather(1, kept.indices), kept.values.clamp(min=0))
    assert bool(((codes != 0).sum(1) <= k).all())
    has_positive = scores.max(1).values > 0
    assert torch.equal(codes.argmax(1)[has_positive], taxonomy.categorise(residual)[has_positive])
    agree = (kept.values > 0).all(1)
    assert 0 < int(agree.sum()) < 400, "inputs of both kinds, or the test says little"
    decoded, ours = foreign.decode(codes), sae.reconstruct(taxonomy.normalise(residual))
    torch.testing.assert_close(decoded[agree], ours[agree])
    assert not torch.allclose(decoded[~agree], ours[~agree])


def test_sae_lens_saves_what_we_read_again(
    tmp_path: Path, load_foreign: Callable[[Path], Any]
) -> None:
    taxonomy = with_k(2)
    foreign = load_foreign(export_saelens(tmp_path / "sae", taxonomy))
    foreign.save_model(tmp_path / "theirs")
    with pytest.raises(InputError, match="has no normaliser.safetensors.*type --mean"):
        read_saelens(tmp_path / "theirs")
    check_equal(read_saelens(tmp_path / "theirs", mean=taxonomy.mean), taxonomy)


def check_equal(found: Taxonomy, expected: Taxonomy) -> None:
    assert (found.model, found.layer, found.titles) == (
        expected.model, expected.layer, expected.titles
    )  # fmt: skip
    assert sae_of(found).k == sae_of(expected).k
    assert torch.equal(found.mean, expected.mean)
    for name, tensor in vars(expected.scorer).items():
        if isinstance(tensor, Tensor):
            assert torch.equal(getattr(found.scorer, name), tensor), name


def test_the_round_trip_is_exact(tmp_path: Path) -> None:
    for layer in (0, 7):
        taxonomy = replace(with_k(2), layer=layer, titles=("häufig", "b", "c", "d"))
        check_equal(read_saelens(export_saelens(tmp_path / str(layer), taxonomy)), taxonomy)
    again = read_saelens(
        tmp_path / "7", model="other", titles=["1", "2", "3", "4"], mean=torch.ones(32)
    )
    assert (again.model, again.titles) == ("other", ("1", "2", "3", "4"))
    assert torch.equal(again.mean, torch.ones(32))


def change(folder: Path, tensors: dict[str, Tensor] | None = None, **config: object) -> Path:
    """Write changed tensors and config entries over a folder's own; None removes an entry."""
    path = folder / "cfg.json"
    merged = {**json.loads(path.read_text()), **config}
    path.write_text(json.dumps({key: v for key, v in merged.items() if v is not None}))
    weights = folder / "sae_weights.safetensors"
    save_file({**load_file(weights), **(tensors or {})}, weights)
    return folder


def test_what_other_saes_do_differently_is_folded_in(
    tmp_path: Path, load_foreign: Callable[[Path], Any]
) -> None:
    """Decoder rows of any norm that rank as if of unit norm, and a bias that is not subtracted."""
    folder = export_saelens(tmp_path / "sae", with_k(2))
    norms = torch.tensor([0.5, 1.0, 2.0, 3.0])
    rows = sae_of(with_k(2)).decoder * norms[:, None]
    metadata = {
        "model_name": "theirs",
        "hook_name": "blocks.3.hook_resid_pre",
        "sae_lens_version": "6.0.0",
    }
    change(
        folder,
        {"W_dec": rows},
        rescale_acts_by_decoder_norm=True,
        apply_b_dec_to_input=False,
        metadata=metadata,
    )
    found = read_saelens(folder)
    assert (found.model, found.layer) == ("theirs", 2)
    assert found.titles == ("latent 0", "latent 1", "latent 2", "latent 3")
    inputs = found.normalise(random(200, 32, seed=12))
    foreign = load_foreign(folder)
    codes, kept = foreign.encode(inputs), sae_of(found).scores(inputs).topk(2)
    torch.testing.assert_close(codes.gather(1, kept.indices), kept.values.clamp(min=0))
    agree = (kept.values > 0).all(1)
    assert agree.any()
    torch.testing.assert_close(
        foreign.decode(codes)[agree], sae_of(found).reconstruct(inputs)[agree]
    )


CONFIGS: list[tuple[str, dict[str, object]]] = [
    ("architecture 'jumprelu', expected 'topk'", {"architecture": "jumprelu"}),
    ("architecture 'none', expected 'topk'.*sae-lens 6", {"architecture": None}),
    ("normalize_activations 'layer_norm'", {"normalize_activations": "layer_norm"}),
    ("reshape_activations 'hook_z'", {"reshape_activations": "hook_z"}),
    ("k is 5; expected a whole number from 1 to 4", {"k": 5}),
    ("k is None; expected", {"k": None}),
    ("says d_in 31 and d_sae 4", {"d_in": 31}),
    ("names no model; type --model", {"metadata": {"hook_name": "blocks.1.hook_resid_post"}}),
    ("whose block's output", {"metadata": {"model_name": "m", "hook_name": "blocks.1.hook_z"}}),
    ("type --layer N", {"metadata": {"model_name": "m", "hook_name": "blocks.0.hook_resid_pre"}}),
    ("no metadata that is an object", {"metadata": "m"}),
]


@pytest.mark.parametrize(("message", "config"), CONFIGS)
def test_a_config_that_does_not_fit_is_refused(
    tmp_path: Path, message: str, config: dict[str, object]
) -> None:
    folder = export_saelens(tmp_path, make_taxonomy())
    with pytest.raises(InputError, match=message):
        read_saelens(change(folder, None, **config))


TENSORS: list[tuple[str, dict[str, Tensor]]] = [
    ("decoder rows have norms from 2 to 2; expected unit norm", {"W_dec": torch.eye(4, 32) * 2}),
    ("the encoder bias holds values that are not finite", {"b_enc": torch.full((4,), torch.nan)}),
    ("has shapes", {"W_enc": torch.ones(4, 32)}),
    ("holds W_dec, W_enc, b_dec, b_enc, threshold; expected", {"threshold": torch.ones(4)}),
]


@pytest.mark.parametrize(("message", "tensors"), TENSORS)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, message: str, tensors: dict[str, Tensor]
) -> None:
    folder = export_saelens(tmp_path, make_taxonomy())
    with pytest.raises(InputError, match=message):
        read_saelens(change(folder, tensors))


def test_what_is_told_must_fit(tmp_path: Path) -> None:
    folder = export_saelens(tmp_path / "sae", make_taxonomy())
    with pytest.raises(InputError, match="--layer is 2, but .*says layer 1"):
        read_saelens(folder, layer=2)
    with pytest.raises(InputError, match="found 1 titles for 4 latents"):
        read_saelens(folder, titles=["one"])
    with pytest.raises(InputError, match=r"the mean has shape \(3,\)"):
        read_saelens(folder, mean=torch.ones(3))
    save_file({"average": torch.ones(32)}, folder / "normaliser.safetensors")
    with pytest.raises(InputError, match="holds average; expected the key `mean`"):
        read_saelens(folder)
    (folder / "sae_weights.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match="cannot read .*sae_weights.safetensors"):
        read_saelens(folder)
    (folder / "cfg.json").write_text("[]")
    with pytest.raises(InputError, match="cannot read .*cfg.json"):
        read_saelens(folder)
    with pytest.raises(InputError, match="cannot read .*expected a folder that SAELens"):
        read_saelens(tmp_path / "nothing")


def test_clusters_are_no_sae(tmp_path: Path) -> None:
    clusters = Clusters(random(4, 32), torch.zeros(4), "kmeans")
    with pytest.raises(InputError, match="categories were found by kmeans; type --to safetensors"):
        export_saelens(tmp_path / "sae", replace(make_taxonomy(), scorer=clusters))
    assert not (tmp_path / "sae").exists()
