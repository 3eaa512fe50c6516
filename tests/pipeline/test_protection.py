"""A run folder protects what it holds: other pairs, changed settings, full disks, two processes."""

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.prompt import Confirm

from howwhen.cli import main
from howwhen.pipeline.files import STEPS
from howwhen.pipeline.folders import OWNER
from howwhen.pipeline.store import open_run
from howwhen.settings import make_settings
from tests.killed_run import SETTINGS

TypeCommand = Callable[..., tuple[int, str]]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> TypeCommand:
    """Runs a command line in this process: exit code, and what it wrote to standard error."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["howwhen", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run; its settings are in `settings.yaml` next to it."""
    shutil.copytree(finished, tmp_path / "run")
    settings = make_settings(SETTINGS).model_dump(mode="json")
    (tmp_path / "settings.yaml").write_text(json.dumps(settings))
    return tmp_path / "run"


def arguments(run: Path, step: str = "run", pair: str = "tally-rl") -> list[object]:
    return [step, pair, "--out", run, "--config", run.with_name("settings.yaml")]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("step", ["run", "hybrid", "measure"])
def test_a_run_of_another_pair_is_refused(typed: TypeCommand, run: Path, step: str) -> None:
    before = contents(run)
    code, error = typed(*arguments(run, step, "tally-sft"))
    assert code == 2
    assert error.count("\n") == 1
    assert "holds a run of tally-rl (base tally/base, thinking model tally/rl)" in error
    assert "but tally-sft (base tally/base, thinking model tally/sft) was asked for" in error
    assert contents(run) == before


def test_chat_refuses_the_run_of_another_pair(typed: TypeCommand, run: Path) -> None:
    code, error = typed("chat", "How many?", "--pair", "tally-sft", "--out", run)
    assert code == 2
    assert "holds a run of tally-rl" in error


def test_a_run_of_an_earlier_version_is_refused(typed: TypeCommand, run: Path) -> None:
    (run / OWNER).unlink()
    code, error = typed(*arguments(run))
    assert code == 2
    assert "an earlier version of howwhen wrote it" in error


@pytest.mark.parametrize("content", ["{", "[]", '{"pair": "tally-rl"}', '{"format": 9}'])
def test_a_damaged_owner_is_refused(typed: TypeCommand, run: Path, content: str) -> None:
    (run / OWNER).write_text(content)
    code, error = typed(*arguments(run))
    assert code == 2
    assert OWNER in error


CHANGES = {
    "collect": ("--collect.limit", "31", "collect.limit was 30, now 31"),
    "discover": ("--discover.steps", "21", "discover.steps was 20, now 21"),
    "elicit": ("--elicit.steps", "5", "elicit.steps was 4, now 5"),
    "hybrid": ("--hybrid.temperature", "0.5", "hybrid.temperature was 0.0, now 0.5"),
}


@pytest.mark.parametrize("step", CHANGES)
def test_finished_work_is_not_replaced_because_a_flag_changed(
    typed: TypeCommand, run: Path, step: str
) -> None:
    flag, value, what = CHANGES[step]
    before = contents(run)
    for command in ("run", step):
        code, error = typed(*arguments(run, command), flag, value)
        assert code == 2
        assert error.count("\n") == 1
        assert what in error
        assert "add --redo" in error
    assert contents(run) == before


@pytest.mark.slow
def test_with_redo_the_former_files_are_kept_aside_for_one_generation(
    typed: TypeCommand, run: Path
) -> None:
    former = contents(run / "4-hybrid")
    code, said = typed(*arguments(run), "--hybrid.max-new-tokens", "10", "--redo")
    assert code == 0
    assert "hybrid.max_new_tokens was 80, now 10" in said
    assert contents(run / "4-hybrid.replaced") == former
    second = contents(run / "4-hybrid")
    assert second["traces/hybrid-0.jsonl"] != former["traces/hybrid-0.jsonl"]
    assert "already done" in typed(*arguments(run), "--hybrid.max-new-tokens", "10")[1]
    code, _ = typed(*arguments(run), "--hybrid.max-new-tokens", "20", "--redo")
    assert code == 0
    assert contents(run / "4-hybrid.replaced") == second


@pytest.mark.slow
def test_what_was_kept_aside_can_be_put_back(typed: TypeCommand, run: Path) -> None:
    before = contents(run)
    assert typed(*arguments(run), "--discover.steps", "21", "--redo")[0] == 0
    for step in ("2-discover", "3-elicit", "4-hybrid", "5-measure", "6-present"):
        shutil.rmtree(run / step)
        (run / f"{step}.replaced").rename(run / step)
    assert contents(run) == before
    code, said = typed(*arguments(run))
    assert code == 0
    assert said.count("already done") == len(STEPS)


def interrupt_redo(typed: TypeCommand, run: Path, *flags: object) -> None:
    """Redo the hybrid step with other settings, and stop while the first rung is written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("howwhen.pipeline.hybrid.decode", interrupt)
        assert typed(*arguments(run, "hybrid"), *flags, "--redo")[0] == 130


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_redo_never_displaces_the_finished_step(
    typed: TypeCommand, run: Path
) -> None:
    finished = contents(run / "4-hybrid")
    for temperature in ("0.5", "0.6", "0.7"):
        interrupt_redo(typed, run, "--hybrid.temperature", temperature)
        assert contents(run / "4-hybrid.replaced") == finished
    assert b"0.6" in (run / "4-hybrid.unfinished" / "settings.json").read_bytes()


def test_a_finished_step_is_taken_back_after_an_interrupted_redo(
    typed: TypeCommand, run: Path
) -> None:
    finished = contents(run / "4-hybrid")
    interrupt_redo(typed, run, "--hybrid.temperature", "0.5")
    code, error = typed(*arguments(run, "hybrid"))
    assert code == 2
    assert "A finished step is in" in error
    assert "--redo takes it back" in error
    code, error = typed(*arguments(run, "hybrid"), "--redo")
    assert code == 0
    assert "taken back from" in error
    assert contents(run / "4-hybrid") == finished
    assert not (run / "4-hybrid.replaced").exists()
    assert typed(*arguments(run))[0] == 0


def test_a_run_killed_between_two_renames_takes_the_finished_step_back(
    typed: TypeCommand, run: Path
) -> None:
    finished = contents(run / "4-hybrid")
    (run / "4-hybrid").rename(run / "4-hybrid.replaced")
    (run / "4-hybrid").mkdir()
    (run / "4-hybrid" / "started.json.partial").write_text("{")
    code, error = typed(*arguments(run, "hybrid"))
    assert code == 0
    assert "taken back from" in error
    assert contents(run / "4-hybrid") == finished


def test_a_step_folder_that_is_a_link_can_be_redone_again_and_again(
    typed: TypeCommand, run: Path, tmp_path: Path
) -> None:
    (run / "5-measure").rename(tmp_path / "elsewhere")
    (run / "5-measure").symlink_to(tmp_path / "elsewhere")
    for seed in (1, 2, 3):
        assert typed(*arguments(run, "measure"), "--measure.seed", seed)[0] == 0


def test_half_a_step_is_protected_too(typed: TypeCommand, run: Path) -> None:
    (run / "4-hybrid" / "provenance.json").unlink()
    before = contents(run)
    code, error = typed(*arguments(run), "--hybrid.temperature", "0.5")
    assert code == 2
    assert "hybrid.temperature was 0.0, now 0.5" in error
    assert contents(run) == before


def test_more_rungs_or_seeds_need_no_permission(typed: TypeCommand, run: Path) -> None:
    traces = contents(run / "4-hybrid" / "traces")
    code, said = typed(*arguments(run), "--hybrid.random-seeds", "0", "1")
    assert code == 0
    assert "settings or input changed" in said  # the report and the measurement only
    assert "4-hybrid.replaced" not in said
    more = contents(run / "4-hybrid" / "traces")
    assert more.items() >= traces.items()
    assert "random-category-1.jsonl" in more


@pytest.mark.parametrize("answer", [True, False])
def test_on_a_terminal_the_question_is_asked(
    typed: TypeCommand, run: Path, monkeypatch: pytest.MonkeyPatch, answer: bool
) -> None:
    asked: list[str] = []

    def ask(question: str, **_: object) -> bool:
        asked.append(question)
        return answer

    monkeypatch.setattr(Confirm, "ask", ask)
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    code, said = typed(*arguments(run, "present"), "--present.examples", "2")
    assert (code, asked) == (0, [])  # made again in seconds, so nobody is asked
    code, said = typed(*arguments(run, "hybrid"), "--hybrid.max-new-tokens", "30")
    assert asked == ["Redo these steps?"]
    assert "hybrid.max_new_tokens was 80, now 30" in said
    assert code == (0 if answer else 2)
    assert (run / "4-hybrid.replaced").exists() is answer


def test_two_processes_cannot_work_in_one_folder(typed: TypeCommand, run: Path) -> None:
    with open_run(run):
        code, error = typed(*arguments(run))
    assert code == 2
    assert error.count("\n") == 1
    assert "another howwhen process is working in" in error


def test_a_folder_that_cannot_be_written_is_a_paragraph(typed: TypeCommand, run: Path) -> None:
    code, error = typed(*arguments(run)[:2], "--preset", "smoke", "--out", "/proc/howwhen/run")
    assert code == 2
    assert error.splitlines()[-1].startswith("howwhen: cannot write /proc/howwhen/run: ")


@pytest.mark.parametrize(
    "calls", [6, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3, 9, 14, 20))]
)
def test_a_full_disk_is_a_paragraph_and_leaves_nothing_half_written(
    typed: TypeCommand, run: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """The disk is full at the Nth file that is written."""
    before = contents(run)
    for step in ("4-hybrid", "5-measure", "6-present"):
        shutil.rmtree(run / step)
    left = [calls]
    real = os.fsync

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    code, error = typed(*arguments(run))
    assert code == 2
    assert "No space left on device. Make room" in error.splitlines()[-1]
    assert not list(run.rglob("*.partial"))
    for path in run.rglob("*.jsonl"):
        assert not path.read_bytes() or path.read_bytes().endswith(b"\n")
    monkeypatch.setattr(os, "fsync", real)
    assert typed(*arguments(run))[0] == 0
    assert contents(run) == before


def test_a_question_that_is_left_with_ctrl_d_is_a_no(
    typed: TypeCommand, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(*_: object, **__: object) -> bool:
        raise EOFError

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(Confirm, "ask", leave)
    before = contents(run)
    code, error = typed(*arguments(run, "hybrid"), "--hybrid.temperature", "0.5")
    assert code == 2
    assert "add --redo" in error
    assert contents(run) == before


def test_every_step_that_would_run_again_is_named(typed: TypeCommand, run: Path) -> None:
    error = typed(*arguments(run), "--collect.limit", "31")[1]
    assert "(1-collect, 2-discover, 3-elicit, 4-hybrid)" in error
    assert "the other steps likewise" in error


def test_rungs_of_another_pairs_run_are_not_compared(typed: TypeCommand, run: Path) -> None:
    command = [*arguments(run, "measure", "tally-sft"), "--compare", "hybrid", "takeover"]
    code, error = typed(*command)
    assert code == 2
    assert "holds a run of tally-rl" in error


def test_models_that_changed_in_place_do_not_answer(
    typed: TypeCommand, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = json.loads((run / "3-elicit" / "started.json").read_bytes())
    begun["models"]["thinking"]["fingerprint"] = "0123456789abcdef"
    (run / "3-elicit" / "started.json").write_text(json.dumps(begun))
    code, error = typed("chat", "How many?", "--out", run)
    assert code == 2
    assert "was made with other models or prompts: the thinking model's fingerprint was" in error


@pytest.mark.parametrize("content", ["[]", "null", "1", '"x"', "[" * 100_000])
@pytest.mark.parametrize("name", ["settings.json", "started.json", "provenance.json"])
def test_files_of_another_shape_are_one_paragraph(
    typed: TypeCommand, run: Path, name: str, content: str
) -> None:
    (run / "4-hybrid" / name).write_text(content)
    code, error = typed(*arguments(run, "hybrid"), "--rungs", "takeover")
    assert code == 2
    assert error.count("\n") == 1
    assert name in error


def test_a_step_whose_place_is_taken_by_a_file_is_one_paragraph(
    typed: TypeCommand, run: Path
) -> None:
    shutil.rmtree(run / "4-hybrid")
    (run / "4-hybrid").write_text("hi")
    code, error = typed(*arguments(run, "hybrid"))
    assert code == 2
    assert error.splitlines()[-1].startswith("howwhen: cannot use")
    assert "4-hybrid" in error


@pytest.mark.parametrize("flag", ["--out", "--problems"])
def test_a_name_that_is_too_long_is_one_paragraph(typed: TypeCommand, flag: str) -> None:
    code, error = typed("collect", "tally-rl", flag, "x" * 300)
    assert code == 2
    assert error.count("\n") == 1
    assert "File name too long" in error
