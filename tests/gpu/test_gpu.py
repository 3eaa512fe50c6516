"""What only a card can show: `make test-gpu`. HOWWHEN_GPU=cpu tries the tests themselves.

A float32 sum in another order can differ in its last bits, so two answers may part where the first
choice of a model is within rounding of its second, and nowhere else.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch

from benchmarks.pairs import Bench, bench_of
from howwhen import Pipeline, Reporter, find_pair, make_settings, open_run
from howwhen.collect.rollouts import collect_rollouts
from howwhen.elicit.decisions import find_decisions
from howwhen.elicit.states import PrefixCache
from howwhen.elicit.trainer import Training
from howwhen.elicit.training import new_vectors, split_examples, train_vectors
from howwhen.errors import HowwhenError
from howwhen.hybrid.choice import Base, Rung, SelfGated, Steer, Takeover, Thinking
from howwhen.hybrid.decoder import decode
from howwhen.lm.models import LanguageModel
from howwhen.lm.padding import pad
from howwhen.pipeline.files import STEPS
from howwhen.pipeline.hardware import state_bytes, weight_bytes
from howwhen.records import HybridTrace
from howwhen.settings import (
    CollectSettings,
    Compilation,
    ElicitSettings,
    HybridSettings,
    ModelSettings,
    Precision,
)
from howwhen.zoo.pairs import Pair
from howwhen.zoo.smol.problems import smol_problems
from howwhen.zoo.tally import tally_problems
from tests.killed_run import SETTINGS as RUN

DEVICE = os.environ.get("HOWWHEN_GPU", "cuda:0")
CARDS = torch.cuda.device_count() if torch.cuda.is_available() else 0
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE != "cpu" and not CARDS, reason="this torch finds no GPU"),
]
PROBLEMS = tally_problems(24, seed=8)
SETTINGS = HybridSettings(max_new_tokens=80)
ELICIT = ElicitSettings(steps=6, validate_every=3, batch_size=8, seeds=(0,))
ROUNDING = 1e-3
"""Margin in nats below which float32 sums in another order may choose otherwise."""
PLACES = {
    "one": (DEVICE, DEVICE),
    "base on the CPU": ("cpu", DEVICE),
    "thinking model on the CPU": (DEVICE, "cpu"),
}
if CARDS > 1:
    PLACES["two cards"] = ("cuda:0", "cuda:1")


@cache
def tally_on(base: str, thinking: str, dtype: Precision = "float32") -> Bench:
    settings = ModelSettings(base_device=base, thinking_device=thinking, dtype=dtype)
    pair = find_pair("tally-rl").placed(settings)
    return bench_of("tally", pair.models(), PROBLEMS)


def rungs(bench: Bench) -> dict[str, Rung]:
    return {
        "base": Base(),
        "thinking": Thinking(),
        "takeover": Takeover(),
        "hybrid": Steer(bench.gate, bench.vectors),
        "self-gate": SelfGated(bench.probe(), bench.vectors),
    }


def check_same(found: Sequence[HybridTrace], expected: Sequence[HybridTrace]) -> None:
    """Equal up to the first token at which a model's choice is within rounding."""
    compared = parted = 0
    for own, other in zip(found, expected, strict=True):
        for ours, theirs in zip(own.tokens, other.tokens, strict=False):
            margins = (theirs.base_margin, theirs.thinking_margin)
            if ours.id != theirs.id or ours.is_decision != theirs.is_decision:
                assert min(m for m in margins if m is not None) < ROUNDING
                parted += 1
                break
            compared += 1
    assert compared > 0.7 * sum(len(other.tokens) for other in expected)
    assert parted <= len(expected) / 8


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("block_tokens", [1, 8])
def test_a_card_writes_what_the_cpu_writes(where: str, block_tokens: int) -> None:
    plain, moved = tally_on("cpu", "cpu"), tally_on(*PLACES[where])
    settings = SETTINGS.model_copy(update={"block_tokens": block_tokens})
    there = rungs(moved)
    for name, rung in rungs(plain).items():
        expected = decode(plain.models, PROBLEMS, rung, settings)
        check_same(decode(moved.models, PROBLEMS, there[name], settings), expected)


@pytest.mark.parametrize("how", ["inductor", "graphs"])
def test_compiled_passes_write_the_same_without_type_checks(how: str) -> None:
    """In a process of its own, since run-time type checks cannot be compiled."""
    program = (
        "import sys; from tests.gpu import test_gpu as gpu; "
        "gpu.check_compiled(sys.argv[1]); print('the same')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, how], capture_output=True, text=True, check=False
    )
    assert done.stdout.endswith("the same\n"), done.stderr[-3000:]


def check_compiled(how: Compilation) -> None:
    bench = tally_on(DEVICE, DEVICE)
    settings = SETTINGS.model_copy(update={"block_tokens": 4})  # few graphs, since each takes long
    rung = rungs(bench)["hybrid"]
    expected = decode(bench.models, PROBLEMS, rung, settings)
    compiled = settings.model_copy(update={"compile": how})
    check_same(decode(bench.models, PROBLEMS, rung, compiled), expected)


@pytest.mark.skipif(CARDS < 2, reason="needs two GPUs")
def test_a_model_over_two_cards_writes_the_same() -> None:
    pair = find_pair("tally-rl").placed(ModelSettings(device_map="auto", dtype="float32"))
    split, plain = bench_of("tally", pair.models(), PROBLEMS), tally_on("cpu", "cpu")
    expected = decode(plain.models, PROBLEMS, rungs(plain)["hybrid"], SETTINGS)
    check_same(decode(split.models, PROBLEMS, rungs(split)["hybrid"], SETTINGS), expected)


def trained(bench: Bench, settings: ElicitSettings) -> Training:
    answers = collect_rollouts(
        tally_on("cpu", "cpu").models.thinking, PROBLEMS, CollectSettings(max_new_tokens=80)
    )
    questions = [problem.question for problem in PROBLEMS]
    found = find_decisions(bench.models, bench.gate.layer, answers, questions, settings)
    examples = [one.example(bench.gate) for one in found]
    base, layer = bench.models.base, bench.vectors.layer
    width = base.model.config.hidden_size
    start = new_vectors(base.name, layer, width, bench.gate.size, "network", settings, 0)
    states = PrefixCache(base, layer, settings.states_gib)
    data = split_examples(examples, examples[:4], settings)
    return train_vectors(start, data, states, settings, 0, lambda step: None)


@pytest.mark.parametrize(
    "budget",
    [{}, {"activations_gib": 1e-9, "logits_gib": 1e-5, "positions_per_pass": 300}],
    ids=["plenty", "tight"],
)
def test_vectors_trained_on_a_card_have_the_same_losses(budget: dict[str, float]) -> None:
    settings = ELICIT.model_copy(update=budget)
    plain, moved = (
        trained(tally_on("cpu", "cpu"), ELICIT),
        trained(tally_on(*PLACES["one"]), settings),
    )
    assert moved.validation_losses == pytest.approx(plain.validation_losses, rel=1e-3)
    assert moved.validation_losses[-1] < moved.validation_losses[0]


def teacher_forced(model: LanguageModel, texts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits of every position, (text, position, vocabulary), in float32 on the CPU."""
    batch = pad(texts, device=model.device)
    with torch.no_grad():
        logits: torch.Tensor = model.model(**batch.inputs()).logits.float().cpu()
    return logits


def test_bfloat16_chooses_otherwise_only_where_it_is_close() -> None:
    whole, half = tally_on("cpu", "cpu"), tally_on(*PLACES["one"], "bfloat16")
    answers = collect_rollouts(whole.models.thinking, PROBLEMS, CollectSettings(max_new_tokens=80))
    for role in ("base", "thinking"):
        plain, other = getattr(whole.models, role), getattr(half.models, role)
        texts = [
            [*plain.prompt_ids(problem.question), *answer.ids]
            for problem, answer in zip(PROBLEMS, answers, strict=True)
        ]
        expected, found = teacher_forced(plain, texts), teacher_forced(other, texts)
        real = pad(texts).mask.bool()
        top = expected[real].topk(2, dim=1)
        differs = found[real].argmax(1) != top.indices[:, 0]
        margins = top.values[:, 0] - top.values[:, 1]
        size = top.values[:, 0].abs()
        assert float(differs.float().mean()) < 0.03
        # Blocks round too, so the bound is some roundings of the logit and not one.
        assert (margins[differs] <= 8 * other.rounding * size[differs]).all()


@pytest.mark.skipif(DEVICE == "cpu", reason="the CPU does not count its memory")
def test_decoding_takes_the_memory_that_doctor_tells() -> None:
    bench = tally_on(*PLACES["one"])
    models = (bench.models.base, bench.models.thinking)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    traces = decode(bench.models, PROBLEMS, Steer(bench.gate, bench.vectors), SETTINGS)
    taken = torch.cuda.max_memory_allocated() - before
    assert before >= sum(map(weight_bytes, models))
    longest = max(
        len(bench.models.base.prompt_ids(problem.question)) + len(trace.tokens)
        for problem, trace in zip(PROBLEMS, traces, strict=True)
    )
    states = sum(map(state_bytes, models)) * longest * len(PROBLEMS)
    assert states / 2 <= taken <= 4 * states + 2**29


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole small run, on the device."""
    folder = tmp_path_factory.mktemp("gpu") / "run"
    placing = {"base_device": DEVICE, "thinking_device": DEVICE}
    settings = make_settings(RUN, {"models": placing})
    with open_run(folder) as opened:
        Pipeline(find_pair("tally-rl"), settings, opened, Reporter()).run()
    return folder


def test_a_whole_run_finishes_on_the_card(ran: Path) -> None:
    assert all(
        (ran / f"{n}-{name}" / "provenance.json").exists() for n, name in enumerate(STEPS, 1)
    )
    started = (ran / "4-hybrid" / "started.json").read_text()
    assert f'"device": "{torch.device(DEVICE).type}"' in started


def test_smol_writes_what_the_cpu_writes() -> None:
    problems = smol_problems(4, seed=3)

    def models(device: str) -> Pair:
        placed = ModelSettings(base_device=device, thinking_device=device, dtype="float32")
        return find_pair("smol").placed(placed)

    try:
        plain = bench_of("smol", models("cpu").models(), problems)
    except HowwhenError as error:  # its weights are built from a package
        pytest.skip(f"smol is not built here: {error}")
    moved = bench_of("smol", models(DEVICE).models(), problems)
    settings = SETTINGS.model_copy(update={"max_new_tokens": 40})
    expected = decode(plain.models, problems, rungs(plain)["hybrid"], settings)
    check_same(decode(moved.models, problems, rungs(moved)["hybrid"], settings), expected)
