"""Inspect: its command line finds what the rung itself answers, and batches requests."""

import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

import pytest

from howwhen.errors import HowwhenError, InputError
from howwhen.hybrid.decoder import LiveBatch
from howwhen.pipeline.live import LoadedRung, open_rung
from howwhen.records import Finish, HybridTrace, Problem
from howwhen.serve.engine import Engine
from tests.harness import QUESTIONS, accuracy, run_offline, small_run, write_problems

pytest.importorskip("inspect_ai", reason="inspect-ai is not installed: pip install -e '.[eval]'")

import anyio
from inspect_ai.log import read_eval_log
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentImage,
    GenerateConfig,
    ModelOutput,
    get_model,
)
from inspect_ai.tool import ToolInfo

from howwhen.harness import inspect

pytestmark = pytest.mark.slow

TASK = """
from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import FieldSpec, json_dataset
from inspect_ai.scorer import match
from inspect_ai.solver import generate


@task
def tally() -> Task:
    file = Path(__file__).parent / "problems.jsonl"
    problems = json_dataset(str(file), FieldSpec(input="question", target="answer"))
    return Task(dataset=problems, solver=generate(), scorer=match(numeric=True))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def ready(run: Path) -> LoadedRung:
    return open_rung("tally-rl", run)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Of all answers that begin in this test: longest answer, how many begin, how many then run."""
    seen: list[tuple[int, int, int]] = []
    unwatched = LiveBatch.add

    def watched(batch: LiveBatch, problems: Sequence[Problem]) -> list[int]:
        numbers = unwatched(batch, problems)
        seen.append((batch._opener.settings.max_new_tokens, len(problems), batch.running))
        return numbers

    monkeypatch.setattr(LiveBatch, "add", watched)
    return seen


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    """The engines that are started in this test."""
    started: list[Engine] = []
    start = inspect._start

    def watched(ready: LoadedRung) -> Engine:
        started.append(start(ready))
        return started[-1]

    monkeypatch.setattr(inspect, "_start", watched)
    return started


def make(run: Path, **arguments: Any) -> inspect.HowwhenAPI:
    made = get_model("howwhen/tally-rl", memoize=False, out=str(run), **arguments)
    return cast(inspect.HowwhenAPI, made.api)


def ask(model: inspect.HowwhenAPI, questions: Sequence[str], **config: Any) -> list[ModelOutput]:
    """Ask all questions at once."""
    outputs: dict[int, ModelOutput] = {}

    async def ask_one(place: int) -> None:
        message = ChatMessageUser(content=questions[place])
        outputs[place] = await model.generate([message], [], "auto", GenerateConfig(**config))

    async def all_at_once() -> None:
        async with anyio.create_task_group() as group:
            for place in range(len(questions)):
                group.start_soon(ask_one, place)

    anyio.run(all_at_once)
    return [outputs[place] for place in range(len(questions))]


def test_the_command_line_finds_the_texts_and_the_accuracy_of_the_rung(
    run: Path, ready: LoadedRung, tmp_path: Path
) -> None:
    write_problems(tmp_path / "problems.jsonl")
    (tmp_path / "task.py").write_text(TASK)
    done = run_offline(
        tmp_path, Path(sys.executable).parent / "inspect", "eval", "task.py",
        "--model", "howwhen/tally-rl", "-M", f"out={run}", "-M", "rung=hybrid",
        "--max-tokens", "50", "--display", "plain", "--log-dir", tmp_path / "logs",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (tmp_path / "logs").iterdir()
    log = read_eval_log(str(file))
    assert log.status == "success"
    direct = ready.answer(QUESTIONS, ready.settings.model_copy(update={"max_new_tokens": 50}))
    outputs = [
        sample.output for sample in sorted(log.samples or [], key=lambda sample: int(sample.id))
    ]
    assert [output.completion for output in outputs] == [trace.text for trace in direct]
    assert log.results is not None
    measured = log.results.scores[0].metrics["accuracy"].value
    assert measured == pytest.approx(accuracy([trace.text for trace in direct]))
    assert 0 < measured < 1
    for output, trace in zip(outputs, direct, strict=True):
        check(ready, output, trace)
    assert {output.stop_reason for output in outputs} == {"stop", "max_tokens"}
    assert not (tmp_path / "runs").exists()


def check(ready: LoadedRung, output: ModelOutput, trace: HybridTrace) -> None:
    """Usage, stop reason and metadata are those of the trace."""
    problem = QUESTIONS[int(trace.problem_id)]
    usage, count = output.usage, len(trace.tokens)
    assert usage is not None
    assert usage.input_tokens == len(ready.models.base.prompt_ids(problem))
    assert usage.output_tokens == count
    assert usage.total_tokens == usage.input_tokens + count
    assert output.stop_reason == ("stop" if trace.finish is Finish.STOP else "max_tokens")
    assert output.metadata == {
        "rung": "hybrid",
        "steered_fraction": trace.decisions / count,
        "changed_fraction": trace.changed / count,
    }


def test_requests_that_wait_together_are_decoded_together(
    run: Path, ready: LoadedRung, begun: list[tuple[int, int, int]]
) -> None:
    outputs = ask(make(run, batch_size=10), QUESTIONS)
    assert sum(count for _, count, _ in begun) == len(QUESTIONS)
    assert max(running for *_, running in begun) == 10
    assert [output.completion for output in outputs] == [
        trace.text for trace in ready.answer(QUESTIONS)
    ]


def test_only_requests_with_equal_settings_share_a_batch(
    run: Path, begun: list[tuple[int, int, int]]
) -> None:
    model = make(run)

    async def ask_one(number: int) -> None:
        message = ChatMessageUser(content=QUESTIONS[number])
        config = GenerateConfig(max_tokens=5 if number < 3 else None)
        output = await model.generate([message], [], "auto", config)
        assert (output.stop_reason == "max_tokens") == (number < 3)

    async def all_at_once() -> None:
        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(ask_one, number)

    anyio.run(all_at_once)
    short = sum(count for longest, count, _ in begun if longest == 5)
    assert (short, sum(count for _, count, _ in begun)) == (3, 5)


def test_a_request_that_is_given_up_leaves_its_place_to_others(
    run: Path, engines: list[Engine]
) -> None:
    model = make(run)
    texts: list[str] = []

    async def ask_one(question: str, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            message = ChatMessageUser(content=question)
            output = await model.generate([message], [], "auto", GenerateConfig())
            texts.append(output.completion)

    async def all_at_once() -> None:
        await model.count_tokens("Ann")  # opens the rung, which nobody can give up half-way
        async with anyio.create_task_group() as group:
            for question in QUESTIONS[:4]:
                group.start_soon(ask_one, question, 0.01)
            for question in QUESTIONS[4:8]:
                group.start_soon(ask_one, question, 60)
        while engines[0].stats.running:
            await anyio.sleep(0.01)

    anyio.run(all_at_once)
    assert len(texts) == 4
    stats = engines[0].stats
    assert stats.answered == 4
    assert stats.asked == stats.answered + stats.cancelled


def test_a_model_can_be_closed_while_a_question_is_unanswered(
    run: Path, engines: list[Engine]
) -> None:
    model = make(run)
    texts: list[str] = []

    async def ask_one() -> None:
        message = ChatMessageUser(content=QUESTIONS[0])
        texts.append((await model.generate([message], [], "auto", GenerateConfig())).completion)

    async def give_up() -> None:
        await model.count_tokens("Ann")  # opens the rung
        with anyio.move_on_after(0.01):
            await ask_one()
        with anyio.fail_after(20):
            await model.aclose()
        await ask_one()

    anyio.run(give_up)
    assert [one._thread.is_alive() for one in engines if one._thread] == [False, True]
    assert len(texts) == 1


def test_the_answer_ends_before_a_stop_or_at_the_limit(run: Path) -> None:
    model = make(run)
    (cut,) = ask(model, QUESTIONS[:1], stop_seqs=[" Next"], max_tokens=20)
    (short,) = ask(model, QUESTIONS[:1], stop_seqs=["So the"], max_tokens=20)
    (whole,) = ask(model, QUESTIONS[:1], max_tokens=100_000)
    assert cut.completion == whole.completion.split(" Next")[0] != whole.completion
    assert whole.completion.startswith(short.completion)
    assert (cut.stop_reason, short.stop_reason, whole.stop_reason) == ("stop", "max_tokens", "stop")
    assert short.usage is not None
    assert short.usage.output_tokens == 20


def test_draws_are_new_without_a_seed_and_the_same_with_it(run: Path) -> None:
    model = make(run)
    questions = QUESTIONS[:1] * 4

    def texts(**config: Any) -> list[str]:
        return [output.completion for output in ask(model, questions, temperature=2.0, **config)]

    assert len(set(texts())) > 1
    assert len(set(texts(seed=1))) == 1
    assert len({texts(seed=seed)[0] for seed in range(4)}) > 1
    assert len({output.completion for output in ask(model, questions)}) == 1


def test_system_and_user_messages_make_one_question(run: Path, ready: LoadedRung) -> None:
    parts = QUESTIONS[0].split(". ", 1)
    messages: list[ChatMessage] = [
        ChatMessageSystem(content=f"{parts[0]}."),
        ChatMessageUser(content=parts[1]),
    ]
    model = make(run)

    async def generate() -> ModelOutput:
        return await model.generate(messages, [], "auto", GenerateConfig())

    joined = "\n\n".join(message.text for message in messages)
    assert anyio.run(generate).completion == ready.answer([joined])[0].text


IMAGE = ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AAAA")])
ANSWER = ChatMessageAssistant(content="4")
TOOL = ToolInfo(name="calculator", description="adds")


@pytest.mark.parametrize(
    ("messages", "tools", "config", "message"),
    [
        ([ANSWER], [], {}, "role 'assistant'.*one question"),
        ([IMAGE], [], {}, "a message of image.*only text"),
        ([], [TOOL], {}, "tools calculator.*use_tools"),
        ([], [], {"top_k": 3}, "found {'top_k': 3}.*Leave the others out"),
        ([], [], {"num_choices": 2}, "num_choices"),
        ([], [], {"temperature": -1.0}, "hybrid.temperature"),
        ([ChatMessageUser(content="Ann has 2 pens. " * 80)], [], {}, "exceed the 256 tokens"),
    ],
)
def test_what_a_hybrid_cannot_do_is_refused(
    run: Path, messages: list[Any], tools: list[Any], config: dict[str, Any], message: str
) -> None:
    model = make(run)

    async def generate() -> ModelOutput:
        asked = [ChatMessageUser(content=QUESTIONS[0]), *messages]
        return await model.generate(asked, tools, "auto", GenerateConfig(**config))

    with pytest.raises(InputError, match=message):
        anyio.run(generate)
    assert len(ask(model, QUESTIONS[:1], num_choices=1, logprobs=False)) == 1


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("howwhen/tally-xl", {}, "there is no pair 'tally-xl'"),
        ("howwhen/tally-rl", {"rnug": "base"}, "rnug.*The arguments are pair, out, rung"),
        ("howwhen/tally-rl", {"strength": "much"}, "model argument strength.*found 'much'"),
    ],
)
def test_bad_arguments_are_explained(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(HowwhenError, match=message):
        get_model(name, memoize=False, **arguments)


def test_a_model_that_is_not_asked_opens_nothing(tmp_path: Path) -> None:
    """Inspect makes models without arguments to look up their names."""
    model = make(tmp_path / "run", batch_size=3)
    assert not (tmp_path / "run").exists()
    assert model.max_connections() == 3


def test_the_entry_point_is_the_module() -> None:
    (entry_point,) = entry_points(group="inspect_ai", name="howwhen")
    assert entry_point.load() is inspect
