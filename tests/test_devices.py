"""The whole path on devices that say `cuda:N`: nothing meets across devices, nothing changes."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from howwhen import Pipeline, Reporter, find_pair, make_settings, open_run
from howwhen.collect.rollouts import collect_rollouts
from howwhen.discover.activations import ReaderInput, sentence_means
from howwhen.elicit.decisions import Decisions, ProbeDraw, find_decisions
from howwhen.elicit.gates import GateSite, LabelledDecisions, make_gate
from howwhen.elicit.self_gate import ProbeData, train_self_gate
from howwhen.elicit.states import PrefixCache
from howwhen.elicit.trainer import Training
from howwhen.elicit.training import new_vectors, split_examples, train_vectors
from howwhen.hybrid.choice import (
    Base,
    Guardrail,
    Rung,
    SelfGated,
    Steer,
    Takeover,
    Thinking,
)
from howwhen.hybrid.controls import (
    RandomCategory,
    RandomPositions,
    RandomVectors,
    SharedVector,
    WithoutCategory,
    randomise,
)
from howwhen.hybrid.decoder import LiveBatch, decode
from howwhen.hybrid.guesses import Phrases
from howwhen.hybrid.ledger import Round
from howwhen.hybrid.load_check import check_streams
from howwhen.hybrid.session import Session
from howwhen.hybrid.streams import Streams
from howwhen.hybrid.strength import sweep
from howwhen.lm.alignment import ModelPair
from howwhen.lm.models import LanguageModel
from howwhen.lm.placement import Role
from howwhen.pipeline.files import STEPS
from howwhen.probes import SelfGate
from howwhen.records import Rollout
from howwhen.serve.engine import Engine, GenerationRequest
from howwhen.settings import (
    CollectSettings,
    DiscoverSettings,
    ElicitSettings,
    HybridSettings,
)
from howwhen.zoo.pairs import Pair
from howwhen.zoo.tally import tally_problems
from tests import factories, killed_run, pretend_gpu
from tests.conftest import MakeModel
from tests.serve.clients import Inbox

PROBLEMS = tally_problems(5, seed=3)
FIRST, SECOND, THIRD = (torch.device(f"cuda:{number}") for number in range(3))
SETTINGS = HybridSettings(max_new_tokens=8, block_tokens=4)
SAMPLED = HybridSettings(max_new_tokens=6, temperature=0.8, top_p=0.9)
PERSISTENT = HybridSettings(max_new_tokens=6, cache_policy="persistent")
ELICIT = ElicitSettings(steps=4, validate_every=2, batch_size=2, probe_steps=20, seeds=(0,))


def on_one(models: ModelPair) -> None:
    for model in (models.base, models.thinking):
        pretend_gpu.put(model.model, FIRST)


def on_two(models: ModelPair) -> None:
    pretend_gpu.put(models.base.model, FIRST)
    pretend_gpu.put(models.thinking.model, SECOND)


def split_over_three(models: ModelPair) -> None:
    """The base's upper half shares a device with the thinking model's lower half."""
    pretend_gpu.split(models.base, FIRST, SECOND)
    pretend_gpu.split(models.thinking, SECOND, THIRD)


PUT: dict[str, Callable[[ModelPair], None]] = {
    "one": on_one,
    "two": on_two,
    "split": split_over_three,
}


def rungs(architecture: str) -> dict[str, tuple[Rung, HybridSettings]]:
    gate, vectors = factories.make_gate(), factories.make_vectors(model=f"{architecture}-0")
    steer = Steer(gate, vectors)
    candidates = sweep([0.3, 1.0], [1, 4, "answer", "everything"])
    low_rank = replace(factories.make_forms()["low-rank"], model=vectors.model)
    probe = SelfGate(
        model=vectors.model,
        layers=(0, 2),
        mean=torch.zeros(64),
        scale=torch.ones(64),
        hidden=factories.random(8, 64, seed=11),
        hidden_bias=torch.zeros(8),
        outputs=factories.random(5, 8, seed=12),
        outputs_bias=torch.zeros(5),
        threshold=0.0,
    )
    return {
        "base": (Base(), SETTINGS),
        "thinking": (Thinking(), SETTINGS),
        "takeover": (Takeover(), SETTINGS),
        "guardrail": (Guardrail(5), SETTINGS),
        "hybrid": (steer, SETTINGS),
        "persistent": (steer, PERSISTENT),
        "sampled sweep": (replace(steer, strength=candidates), SAMPLED),
        "persistent sweep": (replace(steer, strength=candidates), PERSISTENT),
        "low-rank": (replace(steer, vectors=low_rank), SETTINGS),
        "shared": (SharedVector(gate, factories.make_vectors(1, model=vectors.model)), SETTINGS),
        "random category": (RandomCategory(gate, vectors), SETTINGS),
        "random positions": (RandomPositions(gate, vectors, rate=0.2), SETTINGS),
        "random vectors": (RandomVectors(gate, randomise(vectors, 0)), SETTINGS),
        "without category": (WithoutCategory(gate, vectors, category=1), SETTINGS),
        "self-gate": (SelfGated(probe, vectors), SETTINGS),
    }


@pytest.fixture
def placed(
    make_model: MakeModel, request: pytest.FixtureRequest
) -> Iterator[tuple[ModelPair, ModelPair]]:
    """A pair on the CPU, and the same pair on pretend devices."""
    architecture, where = request.param
    plain = factories.make_models(make_model, architecture)
    moved = factories.make_models(make_model, architecture)
    with pretend_gpu.pretending():
        PUT[where](moved)
        yield plain, moved


EVERYWHERE = pytest.mark.parametrize(
    "placed",
    [
        ("llama", "one"),
        ("llama", "split"),
        pytest.param(("llama", "two"), marks=pytest.mark.slow),
        pytest.param(("qwen2", "split"), marks=pytest.mark.slow),
    ],
    ids=lambda pair: "-".join(pair),
    indirect=True,
)


@EVERYWHERE
def test_every_rung_writes_the_same_tokens(placed: tuple[ModelPair, ModelPair]) -> None:
    plain, moved = placed
    architecture = plain.base.name.removesuffix("-0")
    steered = 0
    for name, (rung, settings) in rungs(architecture).items():
        expected = decode(plain, PROBLEMS[:4], rung, settings)
        assert decode(moved, PROBLEMS[:4], rung, settings) == expected, name
        steered += sum(token.category is not None for trace in expected for token in trace.tokens)
    assert steered > 50


@EVERYWHERE
def test_models_are_checked(placed: tuple[ModelPair, ModelPair]) -> None:
    for model in (placed[1].base, placed[1].thinking):
        model.check_steering(1)
        check_streams(model, 1)


@EVERYWHERE
def test_a_live_batch_writes_the_same_tokens(placed: tuple[ModelPair, ModelPair]) -> None:
    rung, settings = rungs(placed[0].base.name.removesuffix("-0"))["hybrid"]

    def written(models: ModelPair) -> list[list[int]]:
        batch = LiveBatch(models, rung, settings)
        batch.add(PROBLEMS)
        ids: list[list[int]] = [[] for _ in PROBLEMS]
        while not batch.is_done:
            for number, new in batch.advance().items():
                ids[number] += [token.id for token in new]
        return ids

    assert written(placed[1]) == written(placed[0])


@EVERYWHERE
def test_a_server_answers_the_same(
    placed: tuple[ModelPair, ModelPair], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, moved = placed
    ladder = rungs(plain.base.name.removesuffix("-0"))
    work = Engine._work

    def work_on_the_devices(engine: Engine) -> None:
        """Each thread has its own modes."""
        with pretend_gpu.PretendMode():
            work(engine)

    monkeypatch.setattr(Engine, "_work", work_on_the_devices)
    engine = Engine(moved, lambda name, _: ladder[name][0], batch_size=2)
    names = [name for name in ladder if ladder[name][1] is SETTINGS] * 2
    assert len(names) > 20
    inboxes = [Inbox() for _ in names]
    for number, (name, inbox) in enumerate(zip(names, inboxes, strict=True)):
        question = PROBLEMS[number % len(PROBLEMS)].question
        engine.submit(GenerationRequest(question, name, SETTINGS), inbox)
    engine.start()
    for number, (name, inbox) in enumerate(zip(names, inboxes, strict=True)):
        problem = replace(PROBLEMS[number % len(PROBLEMS)], id="0")
        (expected,) = decode(plain, [problem], ladder[name][0], SETTINGS)
        assert inbox.wait() == expected.finish, name
        assert [token.id for token in inbox.tokens] == [token.id for token in expected.tokens]
    engine.close()


def collected(model: LanguageModel, temperature: float = 0.0) -> list[Rollout]:
    settings = CollectSettings(max_new_tokens=24, temperature=temperature)
    return collect_rollouts(model, PROBLEMS, settings)


@EVERYWHERE
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_rollouts_and_activations_are_the_same(
    placed: tuple[ModelPair, ModelPair], temperature: float
) -> None:
    plain, moved = (models.thinking for models in placed)
    rollouts = collected(plain, temperature)
    assert collected(moved, temperature) == rollouts
    inputs = [
        ReaderInput(plain.prompt_ids(problem.question), rollout.ids, [(0, 4), (4, 9)], [True, True])
        for problem, rollout in zip(PROBLEMS, rollouts, strict=True)
    ]
    expected = sentence_means(plain, inputs, [0, 2], DiscoverSettings())
    found = sentence_means(moved, inputs, [0, 2], DiscoverSettings())
    for layer, means in expected.items():
        assert torch.equal(found[layer], means)


def trained(models: ModelPair, found: list[Decisions], settings: ElicitSettings) -> Training:
    gate = factories.make_gate()
    examples = [answer.example(gate) for answer in found]
    data = split_examples(examples, examples[:2], settings)
    start = new_vectors(models.base.name, 1, 32, gate.size, "network", settings, 0)
    states = PrefixCache(models.base, 1, settings.states_gib)
    return train_vectors(start, data, states, settings, 0, lambda _: None)


TIGHT = ELICIT.model_copy(
    update={"positions_per_pass": 1, "logits_gib": 1e-9, "activations_gib": 1e-9}
)


@EVERYWHERE
def test_vectors_and_gates_are_the_same(placed: tuple[ModelPair, ModelPair]) -> None:
    plain, moved = placed
    rollouts = collected(plain.thinking)
    questions = [problem.question for problem in PROBLEMS]
    draw = ProbeDraw.of((0, 2), [len(rollout.ids) for rollout in rollouts], 40)
    expected = find_decisions(plain, 1, rollouts, questions, ELICIT, probe=draw)
    found = find_decisions(moved, 1, rollouts, questions, ELICIT, probe=draw)
    for own, other in zip(found, expected, strict=True):
        assert (own.ids, own.positions, own.targets) == (other.ids, other.positions, other.targets)
        assert torch.equal(own.states, other.states)
        assert torch.equal(own.soft.probs, other.soft.probs)
        assert torch.equal(own.base_losses, other.base_losses)
        assert torch.equal(own.probe.features, other.probe.features)
    assert sum(len(answer.positions) for answer in expected) > 20
    for settings in (ELICIT, TIGHT, TIGHT.model_copy(update={"states_gib": 1e-9})):
        before, after = (trained(models, expected, settings) for models in (plain, moved))
        assert after.validation_losses == before.validation_losses
        assert before.validation_losses[-1] != before.validation_losses[0]
        for name, tensor in before.vectors.tensors().items():
            assert torch.equal(after.vectors.tensors()[name], tensor)
    gate = factories.make_gate()
    data = ProbeData.of(found, gate)
    _, scores = train_self_gate(moved.base.name, (0, 2), 4, data, data, ELICIT)
    assert scores.positions == 40
    site = GateSite(gate.model, 1, gate.mean, gate.titles)
    following = [[0] * len(answer.positions) for answer in found]
    drawn = LabelledDecisions.draw(found, following, 30)
    clusters = make_gate("clusters", factories.make_taxonomy(), site, drawn, 0)
    assert clusters.size == 4


RUN = {**killed_run.SETTINGS, "discover": {"sizes": (4,), "ks": (1,), "steps": 20, "layers": (2,)}}
NOT_COMPARED = ("provenance.json", "run.json", "described.json")
"""Times, versions of packages, and the device that a model was on when it read."""
PUT_ROLE: dict[str, dict[Role, Callable[[LanguageModel], None]]] = {
    "two": {
        "base": lambda model: pretend_gpu.put(model.model, FIRST),
        "thinking": lambda model: pretend_gpu.put(model.model, SECOND),
    },
    "split": {
        "base": lambda model: pretend_gpu.split(model, FIRST, SECOND),
        "thinking": lambda model: pretend_gpu.split(model, SECOND, THIRD),
    },
}


def files_of_run(folder: Path) -> dict[str, bytes]:
    """What the first four steps of a run wrote, but for when and with which packages."""
    with open_run(folder) as opened:
        pipeline = Pipeline(find_pair("tally-rl"), make_settings(RUN), opened, Reporter())
        for name in STEPS[:4]:
            pipeline.do(name)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in NOT_COMPARED
    }


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return files_of_run(tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.slow
@pytest.mark.parametrize("where", PUT_ROLE)
def test_a_whole_run_writes_the_same_files(
    plain_run: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The outlines stay on the CPU, so that keys are the same."""
    really = Pair._open
    moved: list[Role] = []

    def open_elsewhere(
        pair: Pair, role: Role, source: str | None = None, *, is_outline: bool
    ) -> LanguageModel:
        model = really(pair, role, source, is_outline=is_outline)
        if not is_outline:
            PUT_ROLE[where][role](model)
            moved.append(role)
        return model

    monkeypatch.setattr(Pair, "_open", open_elsewhere)
    with pretend_gpu.pretending():
        found = files_of_run(tmp_path / "run")
    assert set(moved) == {"base", "thinking"}
    assert found.keys() == plain_run.keys()
    assert [name for name in plain_run if found[name] != plain_run[name]] == []
    assert sum(name.startswith("4-hybrid/traces/") for name in found) > 9


def test_tensors_on_two_devices_cannot_meet() -> None:
    with pretend_gpu.pretending():
        here, there = torch.ones(2, device=FIRST), torch.ones(2, device=SECOND)
        with pytest.raises(pretend_gpu.DeviceError, match="same device"):
            here + there
        with pytest.raises(pretend_gpu.DeviceError, match="same device"):
            here + torch.ones(2)
        with pytest.raises(pretend_gpu.DeviceError, match="same device"):
            torch.ones(2)[torch.tensor([0], device=FIRST)]
        with pytest.raises(pretend_gpu.DeviceError, match="numpy"):
            here.numpy()
        assert (here + torch.tensor(1.0)).tolist() == [2.0, 2.0]
        assert (here + there.to(FIRST)).device == FIRST


WAITS_PER_ROUND = {"base": 8, "takeover": 16, "hybrid": 31, "self-gate": 19}
"""Points of a round at which the host may wait for a device, whatever the batch."""
READS_PER_ROUND = 2
"""Those at which the host reads a result: once what was decided, once what came of steering."""
LAUNCHES_PER_ROUND = {"base": 160, "takeover": 350, "hybrid": 520, "self-gate": 340}
"""Kernels of a round, those of the models (3 blocks each) included, whatever the batch."""


@pytest.mark.parametrize("where", ["one", "two"])
@pytest.mark.parametrize("count", [1, 4, 16])
@pytest.mark.parametrize("name", WAITS_PER_ROUND)
def test_a_round_stays_within_its_budget(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, name: str, count: int, where: str
) -> None:
    rounds = 0
    unwatched = Session.round

    def watched(session: Session, length: int | None = None) -> Round:
        nonlocal rounds
        rounds += 1
        return unwatched(session, length)

    monkeypatch.setattr(Session, "round", watched)
    models = factories.make_models(make_model, "llama")
    rung, _ = rungs("llama")[name]
    settings = HybridSettings(max_new_tokens=24, block_tokens=1)
    with pretend_gpu.pretending() as ledger:
        PUT[where](models)
        decode(models, PROBLEMS[:1], rung, settings)  # what is tried out once per model
        ledger.clear()
        rounds = 0
        traces = decode(models, tally_problems(16, seed=5)[-count:], rung, settings)
    assert rounds == max(len(trace.tokens) for trace in traces) > 10
    assert ledger.reads.total() / rounds <= READS_PER_ROUND, ledger.reads.most_common(9)
    assert ledger.waits.total() / rounds <= WAITS_PER_ROUND[name], ledger.waits.most_common(9)
    assert ledger.launches / rounds <= LAUNCHES_PER_ROUND[name]


@pytest.mark.parametrize("block_tokens", [1, 8])
def test_two_models_on_two_devices_read_the_same_tokens_without_waiting_for_each_other(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, block_tokens: int
) -> None:
    models = factories.make_models(make_model, "llama")
    rung, _ = rungs("llama")["takeover"]
    settings = HybridSettings(max_new_tokens=24, block_tokens=block_tokens)
    passes: list[tuple[str, int, int]] = []
    unwatched = Streams.extend

    def watched(streams: Streams, tokens: Tensor) -> None:
        name, before = streams.model.name, ledger.reads.total()
        unwatched(streams, tokens)
        assert ledger.reads.total() == before
        passes.append((name, tokens.shape[1], before))

    monkeypatch.setattr(Streams, "extend", watched)
    with pretend_gpu.pretending() as ledger:
        PUT["two"](models)
        expected = decode(models, PROBLEMS[:2], rung, settings)
        passes.clear()
        # What was written is guessed to come next, so that both models read several tokens at once.
        phrases = Phrases([trace.ids for trace in expected])
        decode(models, PROBLEMS[:2], rung, settings, phrases=phrases)
    together = [
        (first, second)
        for first, second in itertools.pairwise(passes)
        if first[0] == models.base.name and second[0] == models.thinking.name
    ]
    assert len(together) > 3
    for first, second in together:
        if first[1] == second[1]:  # both read what was there before
            assert first[2] == second[2]
    assert any(first[1] == second[1] for first, second in together)
