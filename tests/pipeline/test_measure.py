"""Steps 4 and 5 over a run folder: chosen rungs, knock-outs, samples, a judge, comparisons."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from howwhen import Pipeline, Reporter, find_pair, make_settings, open_run
from howwhen.cli import app
from howwhen.errors import SettingsError
from howwhen.measure.audit import Audit
from howwhen.measure.grade import Item, grade_answers
from howwhen.measure.judge import JudgedAnswer
from howwhen.pipeline.compare import compare
from howwhen.pipeline.measure import AUDIT
from howwhen.pipeline.store import RunFolder
from howwhen.records import Finish, Grade, HybridTrace, Measurement
from howwhen.settings import MeasureSettings
from howwhen.zoo.tally import tally_problems
from tests.judge.endpoint import KEY, Answer, Endpoint, completion
from tests.killed_run import SETTINGS

FEW: dict[str, Any] = {"rungs": ("takeover",), "max_new_tokens": 100, "batch_size": 16}


def go_on(folder: Path, *steps: str, measure: Any = None, **hybrid: Any) -> Measurement | None:
    """Do some steps with these settings of the hybrid's step, again if they differ."""
    elicit: dict[str, Any] = {"on_policy_rounds": 0, "steps": 60, "seeds": (0,)}
    own = {"elicit": elicit, "hybrid": {**FEW, **hybrid}, "measure": measure or {}}
    settings = make_settings(SETTINGS, {"collect": {"max_new_tokens": 100}}, own)
    with open_run(folder) as run:
        pipeline = Pipeline(find_pair("tally-rl"), settings, run, Reporter(), redo=True)
        for step in steps:
            pipeline.do(step)  # type: ignore[arg-type]
        return pipeline.measurement() if "measure" in steps else None


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its first three steps."""
    folder = tmp_path_factory.mktemp("measuring") / "run"
    go_on(folder, "collect", "discover", "elicit")
    return folder


def passes(folder: Path) -> list[str]:
    names: list[str] = json.loads((folder / "4-hybrid" / "passes.json").read_text())
    return names


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in (folder / "4-hybrid/traces").glob("*")}


def test_chosen_rungs_stand_between_the_ends_and_more_are_added_beside_them(
    run_folder: Path,
) -> None:
    few = go_on(run_folder, "hybrid", "measure")
    assert few is not None
    assert list(few.rungs) == ["base", "hybrid", "takeover", "thinking"]
    before = times(run_folder)
    more = go_on(run_folder, "hybrid", "measure", rungs=("takeover", "self-gate"))
    assert more is not None
    assert list(more.rungs) == ["base", "hybrid", "self-gate", "takeover", "thinking"]
    assert more.rungs["takeover"] == few.rungs["takeover"]
    again = go_on(run_folder, "hybrid", "measure")
    assert again == few
    assert times(run_folder).items() >= before.items()  # untouched


def test_a_rung_that_the_run_does_not_have_is_refused_before_anything_is_decoded(
    run_folder: Path,
) -> None:
    with pytest.raises(SettingsError, match="this run has no rung bias-only; expected some of"):
        go_on(run_folder, "hybrid", rungs=("bias-only",), max_new_tokens=30)
    assert not (run_folder / "4-hybrid" / "traces").exists()


def test_knock_outs_are_the_hybrid_with_some_decisions_left_out(run_folder: Path) -> None:
    measurement = go_on(run_folder, "hybrid", "measure", "present", knock_outs=True)
    assert measurement is not None
    step = RunFolder(run_folder).step("hybrid")
    counts = step.read_json("provenance.json")["counts"]["decisions_per_category"]
    assert [knock_out.category for knock_out in measurement.knock_outs] == [
        n for n, c in enumerate(counts) if c
    ]
    for knock_out in measurement.knock_outs:
        for rung, wanted in (("without-category", False), ("one-category", True)):
            name = f"traces/{rung}-0-category{knock_out.category}.jsonl"
            assert name in passes(run_folder)
            traces = step.read_records(name, HybridTrace)
            used = {t.category for trace in traces for t in trace.tokens if t.is_decision}
            assert all((category == knock_out.category) is wanted for category in used)
            assert {trace.category for trace in traces} == {knock_out.category}
    report = (run_folder / "6-present" / "report.md").read_text()
    assert "## What each category contributes" in report


@pytest.mark.slow
def test_samples_are_drawn_anew_and_measured_together(run_folder: Path) -> None:
    measurement = go_on(run_folder, "hybrid", "measure", samples=2, temperature=1.0)
    assert measurement is not None
    step = RunFolder(run_folder).step("hybrid")
    first, second = (
        step.read_records(f"traces/base-0{end}.jsonl", HybridTrace) for end in ("", "-sample1")
    )
    assert {trace.sample for trace in second} == {1}
    assert [trace.text for trace in first] != [trace.text for trace in second]
    assert measurement.rungs["base"].samples == 2
    assert set(measurement.rungs["base"].pass_at_k) == {1, 2}
    with pytest.raises(SettingsError, match="would all be equal"):
        go_on(run_folder, "hybrid", samples=2)


def test_a_judge_stands_beside_the_rules(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    pytest.importorskip("tenacity")
    monkeypatch.setenv("MY_KEY", KEY)
    reply = completion('{"final_answer": "5", "verdict": "correct"}')
    with Endpoint(lambda *_: Answer(reply)) as endpoint:
        judge = {
            "judge_url": endpoint.url, "judge_model": "m", "judge_key_variable": "MY_KEY",
            "judge_repeats": 1,
        }  # fmt: skip
        go_on(run_folder, "hybrid", "measure", "present", measure=judge)
    judged = json.loads((run_folder / "5-measure" / "judge.json").read_text())
    flexible = judged["agreement"]["flexible"]
    assert flexible["compared"] == 4 * 12
    assert flexible["judge_only"] + flexible["both_correct"] == 4 * 12
    assert judged["usage"]["requests"] <= 4 * 12
    report = (run_folder / "6-present" / "report.md").read_text()
    assert "| flexible |" in report
    assert f"of the judge m: {judged['usage']['requests']} requests" in report
    assert KEY not in "".join(
        path.read_text(errors="ignore") for path in run_folder.rglob("*.json")
    )


def test_the_judge_is_asked_about_the_answer_that_was_graded(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge that grades by our rules agrees with them, whatever the order of the rungs."""
    pytest.importorskip("openai")
    pytest.importorskip("tenacity")
    monkeypatch.setenv("MY_KEY", KEY)

    def judge(_: int, body: Any) -> Answer:
        asked = body["messages"][0]["content"]
        gold, text = (
            re.search(rf"<<<{part} \w+>>>\n(.*?)\n<<<end", asked, re.DOTALL)
            for part in ("correct answer", "text")
        )
        assert gold is not None
        assert text is not None
        finish = Finish.LENGTH if "The text was broken off" in asked else Finish.STOP
        (grade,) = grade_answers([Item(text[1], gold[1], "", finish)])
        verdict = "correct" if grade is Grade.CORRECT else "wrong"
        return Answer(completion(json.dumps({"final_answer": "", "verdict": verdict})))

    with Endpoint(judge) as endpoint:
        settings = {
            "judge_url": endpoint.url, "judge_model": "k", "judge_key_variable": "MY_KEY",
            "judge_repeats": 1,
        }  # fmt: skip
        rungs = ("takeover", "random-category", "random-positions")
        go_on(run_folder, "hybrid", "measure", measure=settings, rungs=rungs, random_seeds=(0, 1))
    judged = json.loads((run_folder / "5-measure" / "judge.json").read_text())
    assert judged["agreement"]["flexible"]["compared"] == 8 * 12
    assert judged["agreement"]["flexible"]["kappa"] == 1.0
    for rung in ("takeover", "random-category"):
        step = run_folder / "5-measure"
        judged, graded = (
            (step / kind / f"{rung}.jsonl").read_text().splitlines()
            for kind in ("judged", "grades")
        )
        assert len(judged) == len(graded)


def test_an_audit_is_printed_kept_and_reported(run_folder: Path) -> None:
    go_on(run_folder, "hybrid", "measure", "present", measure={"audit": True})
    step = RunFolder(run_folder).step("measure")
    audit = step.read_record(AUDIT, Audit)
    measurement = step.read_record("measurement.json", Measurement)
    assert audit.unequal_golds == ()
    assert audit.rungs.keys() == measurement.rungs.keys()
    for name, rung in measurement.rungs.items():
        assert audit.rungs[name].accuracy == pytest.approx(rung.flexible_accuracy)
        assert audit.rungs[name].lowest <= rung.flexible_accuracy <= audit.rungs[name].highest
        unread = rung.counts["no_answer"] + rung.counts["truncated"]
        assert sum(rung.read_by.values()) + unread == 12
    for file in ("report.md", "report.html"):
        shown = (run_folder / "6-present" / file).read_text()
        assert "Every answer was read twice" in shown
    shutil.rmtree(run_folder / "6-present")
    go_on(run_folder, "present")  # without the flag: what was measured is reported
    for file in ("report.md", "report.html"):
        shown = (run_folder / "6-present" / file).read_text()
        assert "Every answer was read twice" in shown
        assert "are graded as right against themselves" in shown


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (["tally-rl", "--audit"], "PAIR 'tally-rl'"),
        ([], "flags of a run"),
        (["--audit", "--out", "x"], "flags of a run"),
        (["--audit", "--base", "x"], "flags of a run"),
        (["--audit", "--measure.seed", "3"], "--measure.seed"),
        (["--audit", "--limit", "3"], "settings of collect"),
    ],
)
def test_files_are_audited_with_no_flags_of_a_run(
    flags: list[str], found: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=f"found --files with {found}; expected --audit"):
        app(["measure", *flags, "--files", str(tmp_path / "a.jsonl")], exit_on_error=False)


def test_files_are_audited_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "It is 12.", "answer": 12}')
    for flags in (["--audit"], ["--measure.audit", "--measure.deadline-seconds", "20"]):
        app(
            ["measure", *flags, "--files", str(file)],
            exit_on_error=False,
            result_action="return_value",
        )
        assert "100.0%" in capsys.readouterr().out


def test_a_judge_may_be_asked_about_disputed_answers_and_a_sample_only(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai")
    pytest.importorskip("tenacity")
    monkeypatch.setenv("MY_KEY", KEY)
    reply = completion('{"final_answer": "5", "verdict": "correct"}')
    judge = {
        "judge_model": "m", "judge_key_variable": "MY_KEY", "judge_repeats": 1,
        "judge_disputed": True, "judge_sample": 7,
    }  # fmt: skip
    with Endpoint(lambda *_: Answer(reply)) as endpoint:
        settings = {**judge, "judge_url": endpoint.url}
        go_on(run_folder, "hybrid", "measure", "present", measure=settings)
    step = RunFolder(run_folder).step("measure")
    asked = step.read_records("judged.jsonl", JudgedAnswer)
    audit = step.read_record(AUDIT, Audit)
    disputed = [answer for answer in asked if answer.is_disputed]
    assert len(disputed) == sum(r.rules_only + r.second_only for r in audit.rungs.values())
    assert len(asked) <= len(disputed) + 7
    told = json.loads((step.path / "judge.json").read_text())
    assert (told["sample"], told["agreement"]["flexible"]["compared"]) == (7, 7)
    assert told["disputed"]["compared"] == len(disputed)
    for rung in audit.rungs.values():
        assert rung.judged_accuracy == rung.highest  # this judge finds everything right
    report = (run_folder / "6-present" / "report.md").read_text()
    assert "on a random sample of 7" in report
    assert "disputed by the judge" in report


def test_two_rungs_or_two_runs_are_compared(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go_on(run_folder, "hybrid", "measure")
    settings = MeasureSettings(bootstrap_samples=100)
    compared = compare("takeover", "base", run_folder, settings)
    assert compared.n == 12
    assert compared.comparison.difference == pytest.approx(
        compared.accuracies[0] - compared.accuracies[1]
    )
    same = compare("base", f"{run_folder}:base", run_folder, settings)
    assert (same.comparison.p_value, same.comparison.difference) == (1.0, 0.0)
    with pytest.raises(SettingsError, match="'self-gate' was not measured there; expected one of"):
        compare("base", "self-gate", run_folder, settings)
    with pytest.raises(SettingsError, match="'one-category' is a pass for every category"):
        compare("base", "one-category", run_folder, settings)
    with pytest.raises(SettingsError, match="'best' is no rung"):
        compare("base", "best", run_folder, settings)
    command = f"measure tally-rl --out {run_folder} --compare takeover base"
    with pytest.raises(SystemExit, match="0"):
        app(command.split(), exit_on_error=False, print_error=False)
    assert "McNemar's exact p = " in capsys.readouterr().out


@pytest.mark.slow
def test_runs_over_other_problems_cannot_be_compared(run_folder: Path, tmp_path: Path) -> None:
    go_on(run_folder, "hybrid", "measure")
    other = tmp_path / "other"
    train, test = tally_problems(30, 5), tally_problems(12, 6)
    for name, problems in (("train", train), ("test", test)):
        rows = [
            {"id": f"{name}-{p.id}", "question": p.question, "answer": p.answer} for p in problems
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = make_settings(
        SETTINGS,
        {
            "collect": {
                "problems": str(tmp_path / "train.jsonl"),
                "test_problems": str(tmp_path / "test.jsonl"),
            },
            "elicit": {"on_policy_rounds": 0, "seeds": (0,)},
            "hybrid": FEW,
        },
    )
    with open_run(other) as run:
        pipeline = Pipeline(find_pair("tally-rl"), settings, run, Reporter())
        for step in ("collect", "discover", "elicit", "hybrid", "measure"):
            pipeline.do(step)
        assert pipeline.measurement().n == 12
    with pytest.raises(SettingsError, match=r"different problems \(12 and 12, 0 in common\)"):
        compare("base", f"{other}:base", run_folder, MeasureSettings())
