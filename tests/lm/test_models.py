from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2ForCausalLM
from transformers.utils.logging import enable_progress_bar, is_progress_bar_enabled

from howwhen.errors import ModelError
from howwhen.lm.alignment import align
from howwhen.lm.checkpoint import model_folder, weights_digest
from howwhen.lm.models import LanguageModel, load_model, outline_model
from howwhen.lm.padding import pad
from howwhen.lm.placement import Placement
from howwhen.zoo.tally.tokenizer import build_tokenizer
from tests.conftest import MakeModel


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt_neox", "gpt2"])
def test_the_vocabulary_is_multiplied_once_for_a_batch_and_not_for_every_sequence(
    make_model: MakeModel, tmp_path: Path, architecture: str
) -> None:
    made = make_model(architecture)
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    model = load_model(tmp_path).model
    seen: list[bool] = []
    head = model.get_output_embeddings()
    assert head is not None
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    batch = pad([[5, 6, 7], [8, 9, 10]])
    last = model(**batch.inputs(), logits_to_keep=1).logits
    assert seen == [True]
    torch.testing.assert_close(last, made.model(**batch.inputs()).logits[:, -1:])


@pytest.mark.parametrize("is_tied", [False, True])
def test_an_embedding_that_is_only_looked_up_multiplies_nothing(is_tied: bool) -> None:
    config = LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, tie_word_embeddings=is_tied,
    )  # fmt: skip
    model = LanguageModel("tiny", "", LlamaForCausalLM(config), build_tokenizer())
    # four square maps of the attention, three of the MLP, three norms, the output embedding
    assert model.matmul_params == 4 * 8 * 8 + 3 * 8 * 16 + 3 * 8 + 20 * 8


def test_a_fingerprint_tells_whatever_decides_an_answer_and_nothing_else(
    make_model: MakeModel, tmp_path: Path
) -> None:
    def mark(name: str, change: Callable[[LanguageModel], object], **how: object) -> str:
        made = make_model(**how)
        change(made)
        made.model.save_pretrained(tmp_path / name)
        made.tokenizer.save_pretrained(tmp_path / name)
        return load_model(tmp_path / name).fingerprint

    same = mark("plain", lambda _: None)
    assert outline_model(tmp_path / "plain").fingerprint == same == mark("again", lambda _: None)
    assert mark("other", lambda _: None, seed=1) != same
    changes: dict[str, Callable[[LanguageModel], object]] = {
        "template": lambda m: setattr(m.tokenizer, "chat_template", "{{ messages[0].content }}"),
        "vocabulary": lambda m: m.tokenizer.add_tokens(["<think>"]),
        "config": lambda m: setattr(m.model.config, "rms_norm_eps", 1e-3),
        "ends": lambda m: setattr(m.model.generation_config, "eos_token_id", [2, 3]),
    }
    marks = [mark(name, change) for name, change in changes.items()]
    assert len({same, *marks}) == 1 + len(changes)


def test_a_fingerprint_is_of_the_weights_however_they_are_spread_over_files(
    make_model: MakeModel, tmp_path: Path
) -> None:
    made = make_model()
    for name, size in (("one", "5GB"), ("many", "20KB")):
        made.model.save_pretrained(tmp_path / name, max_shard_size=size)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert weights_digest(tmp_path / "many") == weights_digest(tmp_path / "one")


def test_an_outline_says_what_the_loaded_model_says(make_model: MakeModel, tmp_path: Path) -> None:
    made = make_model("qwen2")
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    outline, loaded = outline_model(tmp_path), load_model(tmp_path)
    for name in (
        "name", "fingerprint", "layer_count", "matmul_params", "end_ids", "context", "numerics",
        "prompt", "revision", "think_tags",
    ):  # fmt: skip
        assert getattr(outline, name) == getattr(loaded, name), name
    assert outline.prompt_ids("How many?") == loaded.prompt_ids("How many?")
    assert all(parameter.is_meta for parameter in outline.model.parameters())
    assert align(outline, outline).shared == align(loaded, loaded).shared


def test_a_model_is_put_where_and_as_it_is_wanted(make_model: MakeModel, tmp_path: Path) -> None:
    made = make_model("qwen2")
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    half = Placement(device="cpu", dtype="bfloat16", attention="eager")
    for found in (outline_model(tmp_path, placement=half), load_model(tmp_path, placement=half)):
        assert found.numerics == {"device": "cpu", "dtype": "bfloat16", "attention": "eager"}
        assert found.model.dtype == torch.bfloat16
    assert load_model(tmp_path).numerics == {
        "device": "cpu", "dtype": "float32", "attention": "sdpa",
    }  # fmt: skip
    with pytest.raises(ModelError, match="there is no cuda:7"):
        load_model(tmp_path, placement=Placement(device="cuda:7"))
    with pytest.raises(ModelError, match="is a folder, so there is no revision 'v2' of it"):
        load_model(tmp_path, placement=Placement(revision="v2"))


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_a_model_that_does_not_fit_on_the_gpus_is_refused(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    made = make_model("qwen2")
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    spread = {"model.layers.0": 0, "model.layers.1": place}
    monkeypatch.setattr(Qwen2ForCausalLM, "hf_device_map", spread, raising=False)
    with pytest.raises(ModelError, match=f"does not fit on the GPUs: .* parts of it on {place}"):
        load_model(tmp_path)


def test_on_a_gpu_the_checkpoints_own_numbers_are_the_default(
    monkeypatch: pytest.MonkeyPatch, make_model: MakeModel, tmp_path: Path
) -> None:
    made = make_model("qwen2")
    made.model.to(torch.bfloat16).save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    assert outline_model(tmp_path).numerics["dtype"] == "float32"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for placement in (Placement(), Placement(device="cuda"), Placement(device="cuda:0")):
        outline = outline_model(tmp_path, placement=placement)
        assert outline.numerics == {"device": "cuda", "dtype": "bfloat16", "attention": "sdpa"}
    with pytest.raises(ModelError, match="there is no cuda:1: .* finds cuda:0 here"):
        outline_model(tmp_path, placement=Placement(device="cuda:1"))


def test_a_hub_id_is_its_snapshot_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, make_model: MakeModel, tmp_path: Path
) -> None:
    commit, made = "0123456789abcdef0123456789abcdef01234567", make_model()
    repository = tmp_path / "models--maker--tiny"
    snapshot = repository / "snapshots" / commit
    made.model.save_pretrained(snapshot)
    made.tokenizer.save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    loaded = load_model("maker/tiny")
    assert (loaded.name, loaded.revision) == ("maker/tiny", commit)
    assert model_folder("maker/tiny", commit) == snapshot
    with pytest.raises(ModelError, match="cannot get 'maker/tiny' from the hub"):
        load_model("maker/tiny", placement=Placement(revision="no-such-branch"))
    with pytest.raises(ModelError, match="cannot get 'maker/none' from the hub"):
        load_model("maker/none")


def test_loading_a_folder_shows_no_bar_and_leaves_the_librarys_bars_as_they_were(
    make_model: MakeModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = make_model()
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    capfd.readouterr()
    enable_progress_bar()
    load_model(tmp_path)
    assert "it/s" not in capfd.readouterr().err
    assert is_progress_bar_enabled()
