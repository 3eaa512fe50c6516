"""What flags, files and configs show to be wrong is refused before anything heavy is imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "sklearn", "scipy", "numpy", "matplotlib", "huggingface_hub")
CHILD = """
import contextlib, io, json, sys
from howwhen.cli import main
results = []
for line in sys.stdin:
    sys.argv = ["howwhen", *json.loads(line)]
    error, code = io.StringIO(), 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    heavy = [name for name in {heavy!r} if name in sys.modules]
    results.append((code, error.getvalue(), heavy))
print(json.dumps(results))
"""


def type_all(commands: list[list[str]]) -> list[tuple[int, str, list[str]]]:
    """Each command in one light process: exit code, standard error, heavy libraries imported."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD.replace("{heavy!r}", repr(HEAVY))],
        input="".join(json.dumps(command) + "\n" for command in commands),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [(code, error, heavy) for code, error, heavy in json.loads(done.stdout)]


def test_refusals_need_nothing_heavy(tmp_path: Path) -> None:
    empty, config = tmp_path / "empty.jsonl", tmp_path / "c.yaml"
    empty.write_text("")
    config.write_text("collect:\n  limits: 3\n")
    thinking = tmp_path / "model"
    thinking.mkdir()
    (thinking / "config.json").write_text(json.dumps({"num_hidden_layers": 3}))
    out = ["--out", str(tmp_path / "out")]
    run = ["run", "tally-rl", *out]
    models = ["--base", str(thinking), "--thinking", str(thinking)]
    judge = ["--measure.judge-url", "http://localhost:1/v1", "--measure.judge-model", "m"]
    unset = ["--measure.judge-key-variable", "HOWWHEN_TEST_NO_KEY"]
    refusals = {
        "no command or flag": ([*run, "--collect.limt", "3"], "--collect.limit"),
        "a number": ([*run, "--collect.limit", "zero"], "setting collect.limit"),
        "a pair": (["run", "tally-xl", *out], "there is no pair 'tally-xl'"),
        "a file": ([*run, "--config", str(config)], "unknown setting 'collect.limits'"),
        "problems": ([*run, "--problems", str(empty)], "holds no problems"),
        "no problems": (["run", *models, *out], "has no problems of its own"),
        "traces": ([*run, "--traces", str(empty)], "no trace of role"),
        "a folder": (["run", "--base", "./no", "--thinking", "./no", *out, "--problems", "x"],
                     "cannot read problems"),
        "a model": ([*run, "--discover.reader", "/no/reader"], "there is no model folder"),
        "a steered layer": ([*run, "--elicit.layer", "99"], "--elicit.layer takes layers 0 to 3"),
        "a read layer": ([*run, "--discover.layers", "1", "9"], "--discover.layers takes layers"),
        "a gate": ([*run, "--discover.reader", str(thinking)], "--elicit.gate probe"),
        "a judge": ([*run, *judge, *unset], "HOWWHEN_TEST_NO_KEY is not set"),
        "a later step": (["measure", "tally-rl", *out], "there is no run folder"),
        "a build": (["zoo", "build", "x"], "nothing to build for 'x'"),
    }  # fmt: skip
    results = type_all([command for command, _ in refusals.values()])
    for (what, (_, message)), (code, error, heavy) in zip(refusals.items(), results, strict=True):
        assert message in error, what
        assert (code, heavy) == (2, []), what
        assert error.count("\n") == 1, what
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"], ["--version"], ["zoo", "list"]])
def test_help_needs_nothing_heavy(command: list[str]) -> None:
    [(code, error, heavy)] = type_all([command])
    assert (code, error, heavy) == (0, "", [])


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys; import howwhen; print([n for n in sys.modules if n[:8] == 'howwhen.'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_every_public_name_is_loaded_when_it_is_asked_for() -> None:
    code = "import howwhen\nfor name in howwhen.__all__: getattr(howwhen, name)\nhowwhen.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip().endswith("module 'howwhen' has no attribute 'nothing'")
    assert "nothing" in done.stderr.splitlines()[-1]


def test_flags_that_were_renamed_still_work(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("elicit:\n  practice_rounds: -1\n")
    results = type_all(
        [
            ["run", "tally-rl", "--collect.cutter", "wtp"],
            ["run", "tally-rl", "--elicit.practice-rounds=-1"],
            ["run", "tally-rl", "--config", str(config)],
        ]
    )
    assert "setting collect.segmenter" in results[0][1]
    assert "setting elicit.on_policy_rounds" in results[1][1]
    assert "setting elicit.on_policy_rounds" in results[2][1]
