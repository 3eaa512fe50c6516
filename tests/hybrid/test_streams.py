from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    GPTNeoConfig,
    MambaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
)

from howwhen.errors import ModelError
from howwhen.hybrid.load_check import check_streams
from howwhen.hybrid.places import Places
from howwhen.hybrid.streams import open_streams
from howwhen.lm.models import LanguageModel, wrap_model
from howwhen.zoo.tally.tokenizer import build_tokenizer
from tests.conftest import ARCHITECTURES, VOCABULARY, MakeModel
from tests.factories import random
from tests.oracles.naive import next_logits, next_logits_with, residual_at

TEXTS = [[3, 9, 14, 27], [5, 11], [8]]


def expect_last(logits: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(logits, expected, atol=3e-4, rtol=3e-4)


def windowed(kind: str, attention: str) -> LanguageModel:
    """A model with windows of 24 tokens on some or all of its layers."""
    sizes: dict[str, int] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64,
        "max_position_embeddings": 256, "sliding_window": 24, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    configs: dict[str, Callable[[], PretrainedConfig]] = {
        "mistral": lambda: MistralConfig(**sizes),
        "gemma3": lambda: Gemma3TextConfig(**sizes, sliding_window_pattern=2),
        "qwen2": lambda: Qwen2Config(**sizes, use_sliding_window=True, max_window_layers=1),
        "gpt_neo": lambda: GPTNeoConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            intermediate_size=64,
            attention_types=[[["global", "local"], 1]],
            window_size=24,
            max_position_embeddings=256,
            bos_token_id=1,
            eos_token_id=2,
        ),
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        configs[kind](), dtype=torch.float32, attn_implementation=attention
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)  # so that context, not the last token alone, decides
    return wrap_model(model, build_tokenizer(), name=kind)


@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        *((kind, how) for kind in ("mistral", "gemma3", "qwen2") for how in ("sdpa", "eager")),
        ("gpt_neo", "eager"),
    ],
)
def test_a_model_with_windows_is_read_up_to_its_window_and_checked_there(
    kind: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = windowed(kind, attention)
    assert model.context == model.window == 24
    check_streams(model, 1)
    text = [3 + place % 50 for place in range(24)]
    streams = open_streams(model, [text, [5, 6]])
    streams.extend(torch.tensor([[text[-1]], [6]]))
    expect_last(streams.logits[0, -1], next_logits(model, text))
    monkeypatch.setattr(LanguageModel, "context", 256)  # as if its config did not show the window
    with pytest.raises(ModelError, match="gives other logits with a masked cache"):
        check_streams(model, 1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reading_and_taking_back_in_any_order_equals_reading_what_is_left(
    make_model: MakeModel, architecture: str
) -> None:
    model = make_model(architecture)
    texts = [list(text) for text in TEXTS]
    streams = open_streams(model, texts)
    streams.extend(torch.tensor([[text[-1]] for text in texts]))
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        count = int(torch.randint(1, 5, (1,), generator=generator))
        fresh = torch.randint(3, 60, (3, count), generator=generator)
        streams.extend(fresh)
        back = torch.randint(0, count + 1, (3,), generator=generator)
        for row, text in enumerate(texts):
            text.extend(fresh[row].tolist())
            expect_last(streams.logits[row, -1], next_logits(model, text))
            del text[len(text) - int(back[row]) :]
        streams.rollback(back.tolist())
        assert streams.lengths == [len(text) for text in texts]
    streams.select([2, 0])
    streams.extend(torch.tensor([[7], [9]]))
    expect_last(streams.logits[0, -1], next_logits(model, [*texts[2], 7]))
    expect_last(streams.logits[1, -1], next_logits(model, [*texts[0], 9]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_branch_equals_steering_from_scratch_and_leaves_the_cache_alone(
    make_model: MakeModel, architecture: str
) -> None:
    model = make_model(architecture)
    streams = open_streams(model, TEXTS[:2], steer_layer=1)
    streams.extend(torch.tensor([[27, 4, 5], [11, 6, 7]]))
    streams.rollback([0, 1])
    texts = [[3, 9, 14, 27, 4, 5], [5, 11, 6]]
    reach, delta = [3, 2], 2 * random(2, 4, 3, 32)
    steered = Places([0, 1], [5, 2], reach, model.device)
    branch = streams.branch(steered, delta)
    for row, text in enumerate(texts):
        expect_last(
            streams.residuals_at(steered)[row][-reach[row] :],
            residual_at(model, text, 1)[-reach[row] :],
        )
        for candidate in range(4):
            own = delta[row, candidate, 3 - reach[row] :]
            places = range(len(text) - reach[row], len(text))
            expected = next_logits_with(model, text, 1, dict(zip(places, own, strict=True)))
            expect_last(branch.logits[row, candidate], expected)
    streams.extend(torch.tensor([[8], [8]]))
    for row, text in enumerate(texts):
        expect_last(streams.logits[row, -1], next_logits(model, [*text, 8]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_passes_the_check_at_load(
    make_model: MakeModel, architecture: str
) -> None:
    for layer in range(3):
        check_streams(make_model(architecture), layer)


def test_a_model_that_ignores_its_mask_is_refused(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    forward = model.model.forward

    def deaf(*args: object, **kwargs: object) -> object:
        return forward(*args, **{**kwargs, "attention_mask": None})

    monkeypatch.setattr(model.model, "forward", deaf)
    with pytest.raises(ModelError, match="other logits with a masked cache than without"):
        check_streams(model, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernels_that_round_otherwise_for_few_rows_pass_and_a_missing_mask_does_not(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """GPUs sum in parts where there are few rows; here all products with up to four do."""
    model = make_model()
    model.model.to(dtype)
    whole = functional.linear

    def in_parts(
        x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        if x.numel() // x.shape[-1] > 4:
            return whole(x, w, bias)
        pairs = zip(x.chunk(4, -1), w.chunk(4, -1), strict=True)
        total = torch.stack([(part @ own.T).float() for part, own in pairs]).sum(0)
        return (total * 1.03).to(x.dtype)  # a coarse kernel, to exceed what float32 may be off

    monkeypatch.setattr(functional, "linear", in_parts)
    check_streams(model, 1)
    forward = model.model.forward
    monkeypatch.setattr(
        model.model, "forward", lambda *args, **kw: forward(*args, **{**kw, "attention_mask": None})
    )
    with pytest.raises(ModelError, match="other logits with a masked cache than without"):
        check_streams(model, 1)


@pytest.mark.parametrize("config", [BloomConfig, MambaConfig])
def test_a_model_that_cannot_be_read_so_is_refused_in_words(
    make_model: MakeModel, config: type[PretrainedConfig]
) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 32, "n_layer": 2, "num_hidden_layers": 2, "n_head": 4}
    model = AutoModelForCausalLM.from_config(config(**sizes)).eval()
    with pytest.raises(ModelError, match="masked cache"):
        check_streams(replace(make_model(), model=model), 0)
