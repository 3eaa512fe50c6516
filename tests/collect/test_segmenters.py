import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from howwhen.collect.rollouts import collect_rollouts
from howwhen.collect.segmenters import find_segmenter
from howwhen.collect.sentences import cut_sentences
from howwhen.errors import MissingExtraError, ModelError
from howwhen.settings import CollectSettings
from howwhen.zoo.tally import tally_problems
from tests.conftest import MakeModel


def test_the_rule_is_the_default() -> None:
    assert find_segmenter(CollectSettings()) is cut_sentences


def test_the_model_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "wtpsplit":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'howwhen\[sat\]'"):
        find_segmenter(CollectSettings(segmenter="sat", sat_model="nothing"))


@pytest.fixture
def sat_folder(tmp_path: Path) -> Path:
    """A random model of the SaT family with a tokenizer of one token per byte."""
    library = pytest.importorskip("wtpsplit.models", reason="type pip install 'howwhen[sat]'")
    special = {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>"}
    names = [*dict.fromkeys(special.values()), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    folder = tmp_path / "sat-tiny-sm"
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    config = library.SubwordXLMConfig(
        vocab_size=len(names), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=520, num_labels=1, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    library.SubwordXLMForTokenClassification(config).save_pretrained(folder)
    return folder


def test_a_model_from_a_folder_cuts_without_a_network(
    sat_folder: Path, make_model: MakeModel
) -> None:
    settings = CollectSettings(segmenter="sat", sat_model=str(sat_folder), max_new_tokens=20)
    segmenter = find_segmenter(settings)
    assert find_segmenter(settings) is segmenter
    for text in ("", " \n ", "\x00", "One two.\n\nné → 😀 three", "ab " * 700):
        assert "".join(text[start:end] for start, end in segmenter(text)) == text
    for rollout in collect_rollouts(make_model(), tally_problems(2, 0), settings):
        spans = rollout.spans
        assert "".join(rollout.sentences()) == rollout.text[: spans[-1].end_char]
        assert (spans[0].start_token, spans[-1].end_token) == (0, len(rollout.ids))


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("wtpsplit")
    with pytest.raises(
        ModelError, match=r"(?s)cannot load the sentence model .*--collect\.sat-model"
    ):
        find_segmenter(CollectSettings(segmenter="sat", sat_model=str(tmp_path)))
