"""What the doctor says of processors, GPUs, and the memory that a pair takes."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from howwhen.collect.rollouts import collect_rollouts
from howwhen.elicit.decisions import ProbeDraw, find_decisions
from howwhen.elicit.objective import training_bytes
from howwhen.lm.head import multiply_in_float32
from howwhen.pipeline import hardware
from howwhen.pipeline.hardware import (
    examine_hardware,
    examine_need,
    probe_bytes,
    state_bytes,
    weight_bytes,
)
from howwhen.settings import CollectSettings, ElicitSettings
from howwhen.zoo.pairs import find_pair
from howwhen.zoo.tally import tally_problems
from tests.conftest import MakeModel


def found(what: str) -> hardware.Finding:
    return next(finding for finding in examine_hardware() if finding.what == what)


@pytest.mark.parametrize(("ratio", "advice"), [(0.3, "--dtype bfloat16"), (1.2, "")])
def test_bfloat16_is_advised_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, ratio: float, advice: str
) -> None:
    monkeypatch.setattr(hardware, "bfloat16_ratio", lambda: ratio)
    assert found("processor").advice == advice
    assert f"take {ratio} times as long" in found("processor").found


def test_the_ratio_is_measured() -> None:
    assert 0.01 < hardware.bfloat16_ratio() < 100


def test_a_card_that_this_torch_cannot_use_is_told_apart_from_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(hardware, "DRIVER", tmp_path / "version")
    assert found("GPU").found == "none; models run on the CPU"
    (tmp_path / "version").write_text("NVRM version: NVIDIA 570.1\nmore\n")
    assert "NVIDIA 570.1; torch" in found("GPU").found
    assert found("GPU").advice.startswith("pip install torch")


@pytest.mark.parametrize(("major", "advice"), [(9, ""), (7, "--dtype float16")])
def test_every_card_is_described(monkeypatch: pytest.MonkeyPatch, major: int, advice: str) -> None:
    card = SimpleNamespace(name="Card", major=major, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70 * 2**30, 80 * 2**30))
    expected = f"Card, 70 GiB of 80 GiB free, compute capability {major}.0"
    for number in range(2):
        assert found(f"cuda:{number}").found.startswith(expected)
        assert found(f"cuda:{number}").advice == advice


def test_what_a_pair_takes_is_what_its_loaded_models_take() -> None:
    pair = find_pair("tally-rl")
    findings = examine_need(pair)
    assert [finding.what.removeprefix("tally-rl: ") for finding in findings] == [
        "base",
        "thinking",
        "elicit",
        "hybrid",
    ]
    held = sum(weight.nbytes for weight in pair.base.model.parameters())
    assert weight_bytes(pair.base_outline) == held
    assert f"{held / 2**20:.3g} MiB of weights (float32, cpu)" in findings[0].found
    budgets = ElicitSettings()
    problems = tally_problems(5, seed=3)
    rollouts = collect_rollouts(pair.thinking, problems, CollectSettings(max_new_tokens=40))
    questions = [problem.question for problem in problems]
    draw = ProbeDraw.of((2, 3), [len(rollout.ids) for rollout in rollouts], 100)
    read = find_decisions(pair.models(), 2, rollouts, questions, budgets, probe=draw)
    rows = sum(len(answer.probe.features) for answer in read)
    assert rows * probe_bytes(pair.base_outline) == sum(a.probe.features.nbytes for a in read)
    told = training_bytes(pair.base_outline, 2, budgets, 2000)
    assert f"about {told / 2**20:.3g} MiB beside the base's weights" in findings[2].found
    logits = 5 * 64 * 16 * pair.base.vocabulary_size * 4
    assert f"about {logits / 2**20:.3g} MiB for logits" in findings[3].found


@pytest.mark.parametrize("architecture", ["llama", "gemma", "gpt2"])
def test_the_states_of_a_token_are_those_of_a_cache(
    make_model: MakeModel, architecture: str
) -> None:
    model = make_model(architecture)
    cache = model.model(torch.tensor([[5, 6, 7]]), use_cache=True).past_key_values
    states = [part for layer in cache.layers for part in (layer.keys, layer.values)]
    assert state_bytes(model) == sum(part.nbytes for part in states) / 3


def test_a_cpu_holds_the_output_embedding_of_half_precision_twice(
    make_model: MakeModel,
) -> None:
    model = make_model("llama")
    model.model.to(torch.bfloat16)
    held = sum(weight.nbytes for weight in model.model.parameters())
    multiply_in_float32(model.model)
    head = model.model.get_output_embeddings()
    head(torch.zeros(1, 1, 32, dtype=torch.bfloat16))
    assert weight_bytes(model) == held + head._wide_weight.nbytes
