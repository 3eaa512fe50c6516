"""`hw.run`, `hw.load` and `hw.answer` on a small run of the embedded pair."""

import inspect
from pathlib import Path
from typing import Any

import pytest

import howwhen as hw
from howwhen.cli import app
from howwhen.errors import InputError, PairError, RedoError, SettingsError, StoreError
from howwhen.pipeline.live import open_rung
from howwhen.pipeline.results import RunResults
from howwhen.records import HybridTrace

QUESTION = "Ann has 3 pens. Ann buys 2 packs. How many pens does Ann have?"
SECTIONS: dict[str, dict[str, Any]] = {
    "collect": {"batch_size": 15},
    "discover": {"sizes": (4, 6), "ks": (1,), "steps": 20, "layers": (1, 2)},
    "elicit": {"seeds": (0,), "steps": 4, "validate_every": 2, "probe_steps": 20},
    "hybrid": {"batch_size": 12, "random_seeds": (0,), "rungs": ("random-vectors", "takeover")},
    "measure": {"bootstrap_samples": 100},
}


class Lines(hw.Reporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def make(out: Path, reporter: hw.Reporter | None = None, **changes: Any) -> RunResults:
    settings = {**SECTIONS, **changes}
    return hw.run(
        "tally-rl",
        preset="smoke",
        limit=30,
        max_new_tokens=60,
        out=out,
        reporter=reporter or Lines(),
        **settings,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    return make(tmp_path_factory.mktemp("notebook") / "run")


def test_a_run_holds_what_its_six_steps_made(run: RunResults) -> None:
    assert run.reader.finished_steps() == [
        "collect", "discover", "elicit", "hybrid", "measure", "present",
    ]  # fmt: skip
    assert list(run.ladder.index) == ["base", "random-vectors", "hybrid", "takeover", "thinking"]
    traces = run.reader.finished("hybrid").read_records("traces/hybrid-0.jsonl", HybridTrace)
    assert len(run.tokens[run.tokens["rung"] == "hybrid"]) == sum(len(t.tokens) for t in traces)
    assert run.trace("hybrid", 2).trace == traces[2]
    assert "</" not in run.trace("hybrid", 2).text
    assert run.report.is_file()
    assert run.settings.collect.limit == 30
    assert run.settings.hybrid.max_new_tokens == 60
    assert len(run.problems) == 30
    trained = sum(run.vectors.counts)
    assert (
        trained
        == run.reader.files.step("elicit").read_json("provenance.json")["counts"]["decisions"]
    )
    sizes = [category.sentences for category in run.taxonomy.categories]
    assert sum(sizes) == len(run.sentences)
    counts = run.sentences.groupby("category").size()
    assert {int(number): int(count) for number, count in counts.items()} == {
        number: size for number, size in enumerate(sizes) if size
    }


def test_the_same_call_again_does_nothing(run: RunResults) -> None:
    reporter = Lines()
    again = make(run.folder, reporter)
    assert [line.rpartition(": ")[2] for line in reporter.lines] == ["already done"] * 6
    assert again.measurement == run.measurement == hw.load(run.folder).measurement


@pytest.mark.slow
def test_a_run_goes_on_where_the_command_stopped(
    run: RunResults, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--limit", "30", "--max-new-tokens", "60", "--preset", "smoke", "--out", str(tmp_path)]
    app(["collect", "tally-rl", "--collect.batch-size", "15", *flags], result_action="return_value")
    reporter = Lines()
    resumed = make(tmp_path, reporter)
    assert reporter.lines[0] == "1/6 collect: already done"
    assert resumed.measurement == run.measurement


def test_finished_work_is_redone_only_if_asked(run: RunResults) -> None:
    with pytest.raises(RedoError, match="elicit.steps"):
        make(run.folder, elicit={**SECTIONS["elicit"], "steps": 6})


def test_a_folder_of_another_pair_is_refused(run: RunResults) -> None:
    with pytest.raises(StoreError, match="holds a run of tally-rl"):
        hw.run("tally-sft", preset="smoke", out=run.folder)
    with pytest.raises(StoreError, match="holds a run of tally-rl"):
        hw.answer("tally-sft", QUESTION, out=run.folder)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"pair": None}, SettingsError, "expected either a pair"),
        ({"pair": None, "base": "x"}, SettingsError, "expected either a pair"),
        ({"pair": "tally-rl", "base": "x"}, SettingsError, "expected either a pair"),
        ({"pair": "tally"}, PairError, "there is no pair 'tally'"),
        ({"hybird": {"samples": 2}}, SettingsError, "unknown setting 'hybird'"),
        ({"hybrid": {"sample": 2}}, SettingsError, "unknown setting 'hybrid.sample'"),
        ({"problems": "no-such-file.jsonl"}, InputError, "no-such-file.jsonl"),
        ({"discover": {"layers": (9,)}}, InputError, "layer 9 is out of range"),
    ],
)
def test_what_cannot_be_run_is_refused_before_a_model_is_loaded(
    tmp_path: Path,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("howwhen.lm.models.load_model", refuse)
    with pytest.raises(error, match=message):
        hw.run(**{"pair": "tally-rl", "out": tmp_path / "run", **arguments})
    assert not (tmp_path / "run").exists()


def test_names_that_do_not_exist_are_refused(run: RunResults, tmp_path: Path) -> None:
    unchecked = inspect.unwrap(hw.run)  # as it is outside of tests, which check types
    with pytest.raises(SettingsError, match="no preset 'tiny'; expected one of smoke, small, pap"):
        unchecked("tally-rl", preset="tiny", out=tmp_path / "run")
    with pytest.raises(SettingsError, match="there is no rung 'hybird'; expected one of base"):
        inspect.unwrap(hw.answer)("tally-rl", QUESTION, rung="hybird", out=run.folder)


def test_a_question_is_answered_as_the_runs_rung_answers_it(run: RunResults) -> None:
    for rung in ("hybrid", "base"):
        answer = hw.answer("tally-rl", QUESTION, rung=rung, out=run.folder)
        [expected] = open_rung("tally-rl", run.folder, rung).answer([QUESTION])
        assert answer.trace.tokens == expected.tokens
        assert answer.problem.question == QUESTION
        assert answer.graded is None
        assert QUESTION in answer._repr_html_()
    short = hw.answer("tally-rl", QUESTION, out=run.folder, max_new_tokens=5)
    assert len(short.trace.tokens) == 5


def test_another_coefficient_is_used(run: RunResults) -> None:
    plain = hw.answer("tally-rl", QUESTION, out=run.folder)
    steered = [token for token in plain.trace.tokens if token.coefficient is not None]
    assert steered, "the question has no disagreement, so it tests nothing"
    double = hw.answer("tally-rl", QUESTION, out=run.folder, coefficient=2.0)
    first = next(token for token in double.trace.tokens if token.coefficient is not None)
    assert first.coefficient == pytest.approx(2 * (steered[0].coefficient or 0), rel=1e-3)


def test_models_stay_loaded_from_question_to_question(
    run: RunResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    hw.answer("tally-rl", QUESTION, out=run.folder)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded again")

    monkeypatch.setattr("howwhen.lm.models.load_model", refuse)
    answer = hw.answer("tally-rl", QUESTION, rung="takeover", out=run.folder)
    assert answer.trace.rung == "takeover"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"question": " \n"}, "expected a text that asks something"),
        ({"max_new_tokens": 0}, "expected at least 1"),
        ({"coefficient": float("nan")}, "expected a finite number"),
    ],
)
def test_answers_refuse_what_cannot_work_before_a_folder_is_made(
    tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    given = {"question": "How many?", "out": tmp_path / "run", **wrong}
    with pytest.raises(InputError, match=message):
        hw.answer("tally-rl", **given)
    assert not (tmp_path / "run").exists()
