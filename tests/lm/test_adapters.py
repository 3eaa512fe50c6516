"""LoRA adapters on another model's weights."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import howwhen as hw
from howwhen.errors import ModelError
from howwhen.lm.adapters import ignore_deprecated_names
from howwhen.lm.models import LanguageModel
from howwhen.settings import ModelSettings
from howwhen.zoo.pairs import Pair, own_pair
from howwhen.zoo.tally import TALLY_WEIGHTS
from tests.conftest import MakeModel

IDS = torch.tensor([[3, 9, 14, 27, 5]])


def make_adapter(model: LanguageModel, folder: Path, **how: object) -> LanguageModel:
    """Write a random adapter, and return the model merged with it."""
    torch.manual_seed(3)
    settings = {"r": 4, "target_modules": ["q_proj", "down_proj"], **how}
    with ignore_deprecated_names():
        adapted = get_peft_model(deepcopy(model.model), LoraConfig(**settings))
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    parameter.normal_(0, 0.3)
        adapted.save_pretrained(folder)
        merged = adapted.merge_and_unload().eval()
    (folder / "README.md").unlink(missing_ok=True)
    merged.generation_config = model.model.generation_config
    return LanguageModel("merged", "", merged, model.tokenizer, model.prompt)


@pytest.fixture
def saved(make_model: MakeModel, tmp_path: Path) -> Path:
    made = make_model()
    made.model.save_pretrained(tmp_path / "base")
    made.tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path


def pair_of(root: Path) -> Pair:
    return own_pair(str(root / "base"), str(root / "adapter"), "chat", "chat")


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["lm_head", "v_proj"]},
    ],
)
def test_an_adapter_shares_the_weights_of_its_base_which_stays_as_it_is(
    make_model: MakeModel, saved: Path, how: dict[str, object]
) -> None:
    merged = make_adapter(make_model(), saved / "adapter", **how)
    alone = make_model().model(IDS).logits
    pair = pair_of(saved)
    base, thinking = pair.base, pair.thinking
    assert torch.equal(base.model(IDS).logits, alone)
    torch.testing.assert_close(
        thinking.model(IDS).logits, merged.model(IDS).logits, atol=1e-4, rtol=1e-4
    )
    assert not torch.allclose(thinking.model(IDS).logits, alone, atol=0.1)
    assert torch.equal(base.model(IDS).logits, alone)  # also after the adapted model has run
    own = {parameter.data_ptr() for parameter in base.model.parameters()}
    theirs = dict(thinking.model.named_parameters())
    beside = [name for name, parameter in theirs.items() if parameter.data_ptr() not in own]
    assert beside
    assert all("lora_" in name or "modules_to_save" in name for name in beside)
    assert own <= {parameter.data_ptr() for parameter in theirs.values()}
    assert thinking.fingerprint == pair.thinking_outline.fingerprint != base.fingerprint
    pair.check()


def test_a_base_may_be_the_adapter_and_both_may_not(make_model: MakeModel, saved: Path) -> None:
    merged = make_adapter(make_model(), saved / "adapter")
    turned = own_pair(str(saved / "adapter"), str(saved / "base"), "chat", "chat")
    torch.testing.assert_close(
        turned.base.model(IDS).logits, merged.model(IDS).logits, atol=1e-4, rtol=1e-4
    )
    assert torch.equal(turned.thinking.model(IDS).logits, make_model().model(IDS).logits)
    both = own_pair(str(saved / "adapter"), str(saved / "adapter"), "chat", "chat")
    with pytest.raises(ModelError, match="are both adapters"):
        _ = both.base_outline


def test_what_an_adapter_is_on_is_kept_as_long_as_the_adapter_is(
    make_model: MakeModel, saved: Path
) -> None:
    make_adapter(make_model(), saved / "adapter")
    pair = pair_of(saved)
    base = pair.thinking and pair.base
    pair.release("thinking")
    assert pair.base is base
    pair.release("base")
    assert pair.base is base
    pair.release()
    assert pair.base is not base


def test_a_fingerprint_tells_adapters_apart(make_model: MakeModel, saved: Path) -> None:
    make_adapter(make_model(), saved / "adapter")
    first = pair_of(saved).thinking_outline.fingerprint
    file = saved / "adapter" / "adapter_config.json"
    config = json.loads(file.read_bytes())
    file.write_text(json.dumps({**config, "base_model_name_or_path": "moved/elsewhere"}))
    assert pair_of(saved).thinking_outline.fingerprint == first
    file.write_text(json.dumps({**config, "lora_alpha": 99}))
    assert pair_of(saved).thinking_outline.fingerprint != first


def test_adapters_that_would_change_or_miss_weights_are_refused(
    make_model: MakeModel, saved: Path
) -> None:
    make_adapter(make_model(), saved / "adapter")
    file, weights = (
        saved / "adapter" / name for name in ("adapter_config.json", "adapter_model.safetensors")
    )
    config, tensors = json.loads(file.read_bytes()), load_file(weights)

    def refused(match: str, tensors: dict[str, torch.Tensor] = tensors, **changes: object) -> None:
        file.write_text(json.dumps({**config, **changes}))
        save_file(tensors, weights)
        with pytest.raises(ModelError, match=match):
            _ = pair_of(saved).thinking

    refused("of the kind IA3; expected LORA", peft_type="IA3")
    refused("changes the weights it is on .bias 'all'", bias="all")
    refused("changes the weights it is on .init_lora_weights 'pissa_niter_4'",
            init_lora_weights="pissa_niter_4")  # fmt: skip
    refused("does not fit .* has the shape .4, 32., expected .8, 32.", r=8)
    less = {name: tensor for name, tensor in tensors.items() if "layers.2" not in name}
    refused("it lacks 4 weights, such as base_model.model.model.layers.2", less)
    more = {**tensors, "base_model.model.model.embed_tokens.weight": torch.zeros(2, 2)}
    refused("it has 1 weights too many, such as base_model.model.model.embed_tokens", more)
    refused("Target modules .* not found", target_modules=["c_attn"])
    placed = pair_of(saved).placed(ModelSettings(thinking_device="cpu"))
    with pytest.raises(ModelError, match="leave --thinking-device away"):
        _ = placed.thinking_outline


def test_an_adapter_as_a_reader_is_refused(make_model: MakeModel, saved: Path) -> None:
    make_adapter(make_model(), saved / "adapter")
    pair = own_pair(str(saved / "base"), str(saved / "base"), "chat", "chat")
    with pytest.raises(ModelError, match=r"is an adapter \(PEFT\), not a model of its own"):
        pair.reader_outline(str(saved / "adapter"))


def test_a_run_with_an_adapter_writes_what_a_run_with_merged_weights_writes(
    tmp_path: Path,
) -> None:
    """On tally's base, with a random adapter."""
    base = hw.find_pair("tally-rl").base
    merged = make_adapter(base, tmp_path / "adapter", r=2)
    merged.model.save_pretrained(tmp_path / "merged")
    base.tokenizer.save_pretrained(tmp_path / "merged")
    texts = {}
    for name in ("adapter", "merged"):
        run = hw.run(
            base=str(TALLY_WEIGHTS / "base"),
            thinking=str(tmp_path / name),
            base_prompt="chat",
            problems=_problems(tmp_path),
            preset="smoke",
            limit=40,
            out=tmp_path / f"run-{name}",
            hybrid={"rungs": ["takeover"]},
        )
        rungs = ("base", "takeover", "thinking")
        texts[name] = [run.trace(rung, place).text for rung in rungs for place in range(10)]
    assert texts["adapter"] == texts["merged"]


def _problems(folder: Path) -> Path:
    file = folder / "problems.jsonl"
    drawn = hw.find_pair("tally-rl").draw_problems
    assert drawn is not None
    rows = [{"question": p.question, "answer": p.answer} for p in drawn(40, 1)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
