"""Forward passes in two parts: logits of chosen positions are those of the whole pass."""

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from howwhen.errors import ModelError
from howwhen.lm.logits import check_split_forward, chunks, split_forward
from tests.conftest import ARCHITECTURES, MakeModel

IDS = torch.arange(3, 40)[None]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_of_some_positions_are_those_of_the_whole_pass(
    make_model: MakeModel, architecture: str
) -> None:
    model = make_model(architecture).model
    whole = model(input_ids=IDS).logits[0]
    hidden, head = split_forward(model, input_ids=IDS)
    rows = [3, 17, 30]
    torch.testing.assert_close(head(hidden[0, rows]), whole[rows])
    assert "forward" not in vars(model.get_decoder())
    assert torch.equal(model(input_ids=IDS).logits[0], whole)
    check_split_forward(model)


def test_scaling_and_soft_caps_of_the_models_own_forward_are_kept() -> None:
    sizes = {
        "vocab_size": 60,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    nested = OPTForCausalLM(
        OPTConfig(
            vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48,
            word_embed_proj_dim=32, max_position_embeddings=64,
        )
    ).eval()  # fmt: skip
    check_split_forward(nested)
    capped = Gemma2ForCausalLM(Gemma2Config(**sizes, final_logit_softcapping=0.05)).eval()
    scaled = GraniteForCausalLM(GraniteConfig(**sizes, logits_scaling=7.0)).eval()
    with torch.no_grad():
        for model in (capped, scaled):
            hidden, head = split_forward(model, input_ids=IDS)
            plain = hidden[0] @ model.get_output_embeddings().weight.T
            logits = head(hidden[0])
            torch.testing.assert_close(logits, model(input_ids=IDS).logits[0])
            assert not torch.allclose(logits, plain)


def test_a_head_that_looks_at_other_positions_is_refused(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("llama").model
    plain = type(model).forward

    def shifted(self: object, **inputs: torch.Tensor) -> object:
        output = plain(self, **inputs)
        return type(output)(logits=output.logits + output.logits.sum(1, keepdim=True))

    def by_token(self: object, **inputs: torch.Tensor) -> object:
        output = plain(self, **inputs)
        return type(output)(logits=output.logits * (1 + inputs["input_ids"][..., None]))

    for forward in (shifted, by_token):
        monkeypatch.setattr(type(model), "forward", forward)
        with pytest.raises(ModelError, match="are not a function of what its backbone"):
            check_split_forward(model)


def test_chunks_cover_every_position_within_the_budget() -> None:
    mib = 2**20
    parts = list(chunks(1000, 1000, mib / 2**30))
    assert [position for rows in parts for position in range(1000)[rows]] == list(range(1000))
    assert {rows.stop - rows.start for rows in parts[:-1]} == {mib // 16_000}
    assert len(list(chunks(3, 10**9, 1e-9))) == 3
    assert list(chunks(0, 10, 1.0)) == []
