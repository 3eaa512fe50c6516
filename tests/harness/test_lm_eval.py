"""lm-eval: its command line finds what the rung itself answers; unsupported requests fail."""

import json
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from howwhen.errors import HowwhenError, ModelError, SettingsError
from howwhen.lm.placement import Placement
from howwhen.pipeline.live import LoadedRung, open_rung
from howwhen.records import Finish
from tests.harness import FEW, PROBLEMS, QUESTIONS, accuracy, run_offline, small_run, write_problems

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install -e '.[eval]'")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model, model_registry

from howwhen.harness.lm_eval import HowwhenLM, OnlyGenerationError, main

pytestmark = pytest.mark.slow

TASK = r"""
task: tally_local
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
{rest}
"""
GENERATION = r"""
doc_to_target: "{{answer}}"
generation_kwargs:
  until: []
  do_sample: false
filter_list:
  - name: last-number
    filter:
      - function: regex
        regex_pattern: "(-?[0-9]+)"
        group_select: -1
      - function: take_first
metric_list:
  - metric: exact_match
"""
CHOICE = """
doc_to_target: 0
doc_to_choice: ["{{answer}}", "nothing"]
"""
MODULE = "howwhen.harness.lm_eval"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def ready(run: Path) -> LoadedRung:
    return open_rung("tally-rl", run)


@pytest.fixture(scope="module")
def model(run: Path) -> HowwhenLM:
    return HowwhenLM(pair="tally-rl", out=run, batch_size=4)


def write_task(folder: Path, kind: str, rest: str) -> None:
    write_problems(folder / "problems.jsonl")
    file = folder / "problems.jsonl"
    (folder / "task.yaml").write_text(TASK.format(file=file, kind=kind, rest=rest))


def command(run: Path, folder: Path, *more: str) -> list[str]:
    arguments = f"pair=tally-rl,out={run}"
    return [
        "--model", "howwhen", "--model_args", arguments, "--tasks", "tally_local",
        "--include_path", str(folder), *more,
    ]  # fmt: skip


def ask(model: HowwhenLM, questions: list[str], **generation: object) -> list[str]:
    instances = [
        Instance("generate_until", {}, (question, generation), 0, ("task", n, 1))
        for n, question in enumerate(questions)
    ]
    return list(model.generate_until(instances))


def test_the_command_line_finds_the_texts_and_the_accuracy_of_the_rung(
    run: Path, ready: LoadedRung, tmp_path: Path
) -> None:
    write_task(tmp_path, "generate_until", GENERATION)
    more = ("--batch_size", "64", "--output_path", str(tmp_path / "found"), "--log_samples")
    done = run_offline(tmp_path, sys.executable, "-m", MODULE, *command(run, tmp_path, *more))
    assert done.returncode == 0, done.stderr
    direct = [trace.text for trace in ready.answer(QUESTIONS)]
    (samples,) = (tmp_path / "found").rglob("samples_*.jsonl")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    assert [row["resps"][0][0] for row in rows] == direct
    (results,) = (tmp_path / "found").rglob("results_*.json")
    scores = json.loads(results.read_text())["results"]["tally_local"]
    assert scores["exact_match,last-number"] == pytest.approx(accuracy(direct))
    assert 0 < accuracy(direct) < 1


def test_the_text_ends_before_the_first_of_the_stops(model: HowwhenLM, ready: LoadedRung) -> None:
    whole = [trace.text for trace in ready.answer(FEW)]
    cut = ask(model, FEW, until=["So the", "", " plus"])
    assert cut == [text.split(" plus")[0].split("So the")[0] for text in whole]
    assert ask(model, FEW, until="Nowhere") == whole


def test_the_number_of_tokens_is_capped(model: HowwhenLM, ready: LoadedRung) -> None:
    settings = ready.settings.model_copy(update={"max_new_tokens": 9})
    direct = ready.answer(FEW, settings)
    assert {trace.finish for trace in direct} == {Finish.LENGTH}
    for name in ("max_gen_toks", "max_new_tokens"):
        assert ask(model, FEW, until=[], **{name: 9}) == [trace.text for trace in direct]


def test_more_tokens_than_a_context_holds_are_taken_off(
    model: HowwhenLM, ready: LoadedRung
) -> None:
    whole = [trace.text for trace in ready.answer(FEW)]
    assert ask(model, FEW, until=[], max_gen_toks=100_000) == whole


def test_sampling_follows_the_seed_and_repeats_differ(model: HowwhenLM, ready: LoadedRung) -> None:
    questions = [FEW[0]] * 6
    sampling: dict[str, Any] = {"temperature": 2.0, "top_p": 0.9, "seed": 3}
    settings = ready.settings.model_copy(update=sampling)
    direct = [trace.text for trace in ready.answer(questions, settings)]
    assert ask(model, questions, until=[], do_sample=True, **sampling) == direct
    assert len(set(direct)) > 1
    greedy = ask(model, questions[:2], until=[], do_sample=False, **sampling)
    assert greedy == [ready.answer(questions[:1])[0].text] * 2


def test_another_rung_and_another_strength(run: Path, ready: LoadedRung) -> None:
    base = HowwhenLM(pair="tally-rl", out=run, rung="base", batch_size="auto")
    weak = HowwhenLM.create_from_arg_string(
        f"pair=tally-rl,out={run},strength=0.2", {"batch_size": 1, "device": "cuda:0"}
    )
    whole = [trace.text for trace in ready.answer(FEW)]
    for model, rung in (
        (base, open_rung("tally-rl", run, "base")),
        (weak, ready.at_strength(0.2)),
    ):
        texts = ask(model, FEW, until=[])
        assert texts == [trace.text for trace in rung.answer(FEW)] != whole


def test_model_arguments_win_over_flags(run: Path) -> None:
    arguments = {"pair": "tally-rl", "out": run, "batch_size": 5}
    made = HowwhenLM.create_from_arg_obj(arguments, {"batch_size": "1", "device": None})
    assert made.ready.settings.batch_size == 5


def test_a_device_is_checked_and_the_default_means_what_is_there(run: Path) -> None:
    arguments = {"pair": "tally-rl", "out": run}
    with pytest.raises(ModelError, match="there is no cuda:31"):
        HowwhenLM.create_from_arg_obj(arguments, {"device": "cuda:31"})
    made = HowwhenLM.create_from_arg_obj(arguments, {"device": "cuda:0"})
    assert made.ready.models.base.device == Placement().find_device()


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ({"top_k": 5}, "asks for {'top_k': 5}.*--gen_kwargs top_k=None"),
        ({"num_beams": 4}, "num_beams"),
        ({"temperature": -1}, "hybrid.temperature"),
        ({"max_gen_toks": 0}, "hybrid.max_new_tokens"),
    ],
)
def test_settings_that_a_hybrid_does_not_know_are_refused(
    model: HowwhenLM, generation: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        ask(model, FEW, until=[], **generation)
    harmless = {"num_beams": 1, "top_k": None}
    assert len(ask(model, FEW[:1], until=[], **harmless)) == 1


def test_a_question_without_room_is_refused_before_any_is_decoded(
    model: HowwhenLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoadedRung, "answer", None)
    with pytest.raises(HowwhenError, match="exceed the 256 tokens"):
        ask(model, [FEW[0], "Ann has 2 pens. " * 80], until=[])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rnug": "base"}, "rnug.*The arguments are pair, out, rung, strength, preset, batch_size"),
        ({"rung": "bais"}, "model argument rung"),
        ({"rung": "base", "strength": 1}, "does not steer"),
        ({"batch_size": 0}, "model argument batch_size.*found 0"),
        ({"pair": "tally-xl"}, "there is no pair 'tally-xl'"),
    ],
)
def test_bad_arguments_are_explained(run: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(HowwhenError, match=message):
        HowwhenLM(**{"pair": "tally-rl", "out": run, **arguments})


@pytest.mark.parametrize("method", ["loglikelihood", "loglikelihood_rolling"])
def test_scoring_is_refused(model: HowwhenLM, method: str) -> None:
    instance = Instance("loglikelihood", {}, ("2 plus 2 is", " 4"), 0, ("hellaswag", 0, 1))
    with pytest.raises(OnlyGenerationError, match="hellaswag wants loglik.*generate_until"):
        getattr(model, method)([instance])
    assert issubclass(OnlyGenerationError, NotImplementedError)


@pytest.mark.parametrize(
    ("kind", "rest", "more", "message"),
    [
        ("multiple_choice", CHOICE, (), "the task tally_local wants loglikelihood"),
        ("generate_until", GENERATION, ("--apply_chat_template",), "without --apply_chat_template"),
    ],
    ids=["scoring", "chat template"],
)
def test_the_command_line_refuses_in_one_paragraph(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    rest: str,
    more: tuple[str, ...],
    message: str,
) -> None:
    write_task(tmp_path, kind, rest)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["lm-eval", *command(run, tmp_path, *more)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("howwhen: ")
    assert message in last


def test_the_entry_point_for_later_versions_is_the_model() -> None:
    (entry_point,) = entry_points(group="lm_eval.models", name="howwhen")
    model_registry.register("as later versions do", target=entry_point)
    assert get_model("as later versions do") is HowwhenLM


def test_the_answers_are_graded_by_the_problems(ready: LoadedRung) -> None:
    """The comparison above means something: the hybrid steers and its texts have numbers."""
    traces = ready.answer(QUESTIONS)
    assert sum(trace.changed for trace in traces) > 0
    assert len({problem.answer for problem in PROBLEMS}) > 5
