"""What the README shows must be what the program does."""

import re
import shlex
from pathlib import Path

import pytest

from howwhen.cli import app
from howwhen.pipeline.files import STEPS
from howwhen.records import LADDER, OPTIONAL_RUNGS
from tests.finished_run import make_run
from tests.serve.conftest import Serve, serve  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^howwhen .+$", README, re.MULTILINE)


def test_it_shows_the_two_commands_and_they_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^make (\w+)", README, re.MULTILINE))
    assert {"demo", "test", "smol"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_parse(command: str) -> None:
    _, bound, _ = app.parse_args(
        shlex.split(command, comments=True)[1:], exit_on_error=False, print_error=False
    )
    assert bound.arguments


BLOCKS = re.findall(r"^```python\n(.+?)^```", README, re.MULTILINE | re.DOTALL)
ELSEWHERE = ("import openai", "hw.load")
"""What is in a block that needs a server or a run."""


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if not any(part in block for part in ELSEWHERE)]
)
def test_its_python_runs(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    for line in re.findall(r"print\(.*\)  # (.+)", block) or ["14"]:
        assert line in printed


def test_its_first_lines_print_what_they_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over a planted run, so with other numbers."""
    [block] = [block for block in BLOCKS if "hw.load" in block]
    make_run(tmp_path / "runs" / "demo")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    [shown] = re.findall(r"print\(.*\)  # (.+)", block)
    assert re.sub(r"\d+", "N", capsys.readouterr().out).strip() == re.sub(r"\d+", "N", shown)


def test_its_first_lines_show_the_run_of_the_table() -> None:
    [shown] = re.findall(r"print\(run\)  # .*hybrid recovers (\d+)% .* (\d+) problems", README)
    assert re.findall(r"^The hybrid recovers (\d+)%", README, re.MULTILINE) == [shown[0]]
    assert re.findall(r"^(\d+) problems$", README, re.MULTILINE) == [shown[1]]


def test_its_client_gets_an_answer(
    serve: Serve,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The block for the server, sent to one over tiny models."""
    [block] = [one for one in BLOCKS if "openai" in one]
    running = serve(name="tally-rl")
    assert "http://127.0.0.1:8000" in block
    exec(compile(block.replace("http://127.0.0.1:8000", running.url), "README.md", "exec"), {})
    assert "'base_log_prob'" in capsys.readouterr().out
    assert running.service.engine.stats.answered == 1


def test_its_harness_commands_are_those_the_harness_tests_run() -> None:
    """tests/harness runs both in a subprocess, with these flags."""
    lm_eval, inspect = re.findall(r"^(?:python -m howwhen\.harness|inspect eval).+$", README, re.M)
    for flag in ("howwhen.harness.lm_eval", "--model howwhen", "--model_args", "--include_path"):
        assert flag in lm_eval
    for flag in ("--model howwhen/tally-rl", "-M out=", "-M rung=hybrid"):
        assert flag in inspect
    tests = "".join(path.read_text() for path in (ROOT / "tests" / "harness").glob("*.py"))
    for part in ("howwhen.harness.lm_eval", "--model_args", "--include_path", "howwhen/tally-rl"):
        assert part in tests


def test_it_names_every_step_and_every_rung() -> None:
    for name in (*STEPS, *LADDER):
        assert f"| `{name}` |" in README


def test_there_is_an_example_of_every_step() -> None:
    """`make examples`, a part of CI, runs them."""
    found = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
    assert found == [f"{number}_{step}.py" for number, step in enumerate(STEPS, 1)]


def test_its_table_has_every_rung_in_order() -> None:
    table = README.partition("<!-- demo table -->")[2].partition("<!-- end of demo table -->")[0]
    without = ("base-step-by-step", "bias-only")  # tally cannot be asked so; decision has no bias
    expected = [rung for rung in LADDER if rung not in (*without, *OPTIONAL_RUNGS)]
    assert re.findall(r"^│ ([a-z-]+) ", table, re.MULTILINE) == expected


def test_the_changelog_is_about_this_version() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"', project, re.MULTILINE)
    assert version is not None
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text()
