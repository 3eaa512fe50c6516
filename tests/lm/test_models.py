from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import enable_progress_bar, is_progress_bar_enabled

from howwhen.lm.models import LanguageModel, fingerprint, load_model
from howwhen.lm.padding import pad
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
    made, other = make_model(), make_model()
    mark = fingerprint(made.model, made.tokenizer)
    assert mark == fingerprint(other.model, build_tokenizer())
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    assert load_model(tmp_path).fingerprint == mark
    asked, wider = build_tokenizer(), build_tokenizer()
    asked.chat_template = "{{ messages[0].content }}"
    wider.add_tokens(["<think>"])
    other.model.config.rms_norm_eps = 1e-3
    others = [
        fingerprint(make_model(seed=1).model, made.tokenizer),
        fingerprint(made.model, asked),
        fingerprint(made.model, wider),
        fingerprint(other.model, made.tokenizer),
    ]
    assert len({mark, *others}) == 5


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
