"""Tiny models and pairs that every test may use; nothing is downloaded."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
)

from howwhen.lm.models import LanguageModel
from howwhen.lm.prompts import CHAT
from howwhen.zoo.tally.tokenizer import build_tokenizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["HOWWHEN_PASS_COSTS"] = "1,1.1,1.2,1.3,1.5"  # nothing is timed, here or in commands
settings.register_profile("howwhen", derandomize=True, database=None, deadline=None)
settings.load_profile("howwhen")
torch.set_num_threads(1)  # two only get in each other's way on models of this size

TESTS = Path(__file__).parent
SLOWEST_FILES = (
    "pipeline/test_pipeline.py",
    "pipeline/test_protection.py",
    "pipeline/test_measure.py",
    "hybrid/test_decoder.py",
    "harness/test_inspect.py",
    "harness/test_lm_eval.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the slowest files first, so that no worker is left with one of them at the end."""
    ranks = {TESTS / name: rank for rank, name in enumerate(SLOWEST_FILES)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


DATA = Path(os.environ.get("HOWWHEN_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
"""Real problems and answers, kept beside the checkout; not part of the project."""
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no test data at {DATA}")


def read_traces(path: Path) -> list[dict[str, str]]:
    """Rows of a JSONL file, gzipped or not."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    return [json.loads(line) for line in text.splitlines()]


VOCABULARY = len(build_tokenizer())
WINDOW = 64
"""Of the architecture `mistral`, which is not among `ARCHITECTURES`."""
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,  # tied and random, a model repeats its last token for ever
}


def _config(architecture: str) -> PretrainedConfig:
    match architecture:
        case "llama":
            return LlamaConfig(**_SIZES, num_key_value_heads=2)
        case "qwen2":
            return Qwen2Config(**_SIZES, num_key_value_heads=2)
        case "gemma":
            return GemmaConfig(**_SIZES, num_key_value_heads=2, head_dim=8)
        case "gpt_neox":
            return GPTNeoXConfig(**_SIZES)
        case "mistral":
            return MistralConfig(**_SIZES, num_key_value_heads=2, sliding_window=WINDOW)
        case _:
            return GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=32,
                n_layer=3,
                n_head=4,
                n_positions=256,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                tie_word_embeddings=False,
            )


ARCHITECTURES = ("llama", "qwen2", "gemma", "gpt_neox", "gpt2")
MakeModel = Callable[..., LanguageModel]


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """Makes a random model with tally's tokenizer; the same seed gives the same weights."""

    def make(architecture: str = "llama", seed: int = 0, name: str | None = None) -> LanguageModel:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(_config(architecture), dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(8.0)  # so that context, not the last token alone, decides
        model.eval().requires_grad_(False)
        title = name or f"{architecture}-{seed}"
        tokenizer = build_tokenizer()
        return LanguageModel(title, title, model, tokenizer, CHAT)

    return make


@pytest.fixture
def save_folder(make_model: MakeModel, tmp_path: Path) -> Callable[..., Path]:
    """Writes a random model as a folder and returns its path."""

    def save(name: str, **how: object) -> Path:
        made = make_model(**how)
        made.model.save_pretrained(tmp_path / name)
        made.tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save
