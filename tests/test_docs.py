"""Tables and figures that docs/smol.md and the README tell are those of docs/measurements."""

import ast
import inspect
import re
import runpy
import shlex
from pathlib import Path

import pytest
from pydantic import TypeAdapter

import howwhen as hw
from howwhen.cli import app
from howwhen.present.verdict import explain
from howwhen.records import Measurement, RungName
from tests.conftest import MakeModel
from tests.finished_run import make_run

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
SMOL = (ROOT / "docs" / "smol.md").read_text()
PYTHON = (ROOT / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"^```python\n(.+?)^```", PYTHON, re.MULTILINE | re.DOTALL)


def read(file: str) -> Measurement:
    return TypeAdapter(Measurement).validate_json((ROOT / file).read_bytes())


def test_the_ladder_of_smol_is_the_measured_one() -> None:
    pytest.importorskip("matplotlib")
    table = runpy.run_path(str(ROOT / "docs" / "figures.py"))["table"]
    [command] = re.findall(r"^python docs/figures\.py smol (.+)$", SMOL, re.MULTILINE)
    measured = {Path(one).stem: read(one) for one in shlex.split(command)}
    shown = SMOL[SMOL.index("| rung |") :].partition("\n\n")[0].splitlines()
    assert shown[1:] == table(measured).splitlines()[1:]


def test_the_gains_that_are_told_are_the_measured_ones() -> None:
    told = re.findall(r"^\| the same, ([a-z -]+) \| (.+) \| (.+) \|$", SMOL, re.MULTILINE)
    names = {"guardrail only": "guardrail-only", "one shared vector": "shared-vector"}
    assert len(told) == 3
    for name, *cells in told:
        for cell, pair in zip(cells, ("smol", "smol-sft"), strict=True):
            gains = (
                read(f"docs/measurements/{pair}-decision.json").rungs[names.get(name, name)].gains
            )
            assert gains is not None
            assert gains.elsewhere is not None
            assert cell == f"{gains.shared:.0%}, {gains.elsewhere:.0%}"


def test_the_guardrail_does_on_smol_sft_what_the_readme_says() -> None:
    guardrail = read("docs/measurements/smol-sft-decision.json").rungs["guardrail-only"]
    told = re.search(
        r"recovers (\d+) % of the gap, but is right on\s(\d+) % of the (\d+) problems .*?"
        r"and on (\d+) % of all others",
        (ROOT / "README.md").read_text(),
        re.DOTALL,
    )
    assert told is not None
    assert guardrail.gains is not None
    found = (guardrail.gap_recovered, guardrail.gains.shared, guardrail.gains.elsewhere)
    share, gained, elsewhere = (round(100 * (one or 0)) for one in found)
    assert tuple(map(int, told.groups())) == (share, gained, guardrail.gains.problems, elsewhere)


def test_the_two_methods_are_the_measured_ones() -> None:
    pytest.importorskip("matplotlib")
    drawn = runpy.run_path(str(ROOT / "docs" / "figures.py"))
    page = (ROOT / "docs" / "two-methods.md").read_text()
    [command] = re.findall(r"^python docs/figures\.py two-methods (.+)$", page, re.MULTILINE)
    measured = {Path(one).stem: read(one) for one in shlex.split(command)}
    shown = page[page.index("| rung |") :].partition("\n\n")[0].splitlines()
    assert shown[2:] == drawn["brief_table"](measured).splitlines()[2:]
    gates = re.findall(
        r"^\| .*`(clusters|probe|taxonomy)`[^|]* \| (.+) \| \d+ % \|$", page, re.MULTILINE
    )
    assert len(gates) == 3
    for gate, cells in gates:
        rungs = read(f"docs/measurements/tally-rl-linear-{gate}.json").rungs
        names: tuple[RungName, ...] = (
            "hybrid",
            "shared-vector",
            "random-category",
            "random-vectors",
        )
        assert cells.split(" | ") == [drawn["_brief"](name, rungs[name]) for name in names]
    maps = read("docs/measurements/tally-rl-span-low-rank.json").rungs
    flat = " ".join(page.split())
    assert drawn["_brief"]("shared-vector", maps["shared-vector"]) in flat
    assert drawn["_brief"]("hybrid", maps["hybrid"]) in flat


def test_the_calibration_is_the_measured_one() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "calibration.py"))
    page = (ROOT / "docs" / "calibration.md").read_text()
    assert made["filled"](page) == page
    found = made["measured"]()
    assert {"tally-rl", "tally-cross", "tally-which", "tally-sft"} <= set(found)
    assert all(one.n >= 300 for one in found.values())
    # What did not come out as expected is told.
    assert set(made["surprises"](found)) == {("tally-which", "early-only")}
    assert page.count("**not so**") == 1
    assert "`early-only` on `tally-which`" in page


@pytest.mark.parametrize(
    ("pair", "cause"),
    [
        ("tally-rl", "when"),
        ("tally-cross", "when"),
        ("tally-which", "which"),
        ("tally-sft", "nothing"),
    ],
)
def test_the_verdict_knows_the_organisms(pair: str, cause: str) -> None:
    assert explain(read(f"docs/measurements/{pair}.json")).cause == cause


@pytest.mark.parametrize(
    "command",
    [line for path in DOCS for line in re.findall(r"^howwhen .+$", path.read_text(), re.MULTILINE)],
)
def test_commands_of_the_docs_parse(command: str) -> None:
    _, bound, _ = app.parse_args(
        shlex.split(command, comments=True)[1:], exit_on_error=False, print_error=False
    )
    assert bound.arguments


def test_the_python_of_the_docs_runs(
    make_model: MakeModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Over a planted run, whose vectors are as wide as the tiny model."""
    make_run(tmp_path / "runs" / "demo")
    monkeypatch.chdir(tmp_path)
    lines = [line for block in BLOCKS for line in block.splitlines(keepends=True)]
    code = "".join(line for line in lines if not re.search(r"hw\.(run|answer)\(", line))
    tiny = make_model()
    values = {"tiny": tiny}
    exec(compile(code.replace("run.pair.base", "tiny"), "docs/python.md", "exec"), values)
    assert "The hybrid recovers" in capsys.readouterr().out
    assert values["output"].shape[1] > values["prompt"].input_ids.shape[1]  # type: ignore[attr-defined]


def test_the_calls_of_the_docs_have_arguments_that_exist() -> None:
    calls = [node for node in ast.walk(ast.parse("".join(BLOCKS))) if isinstance(node, ast.Call)]
    functions = [ast.unparse(call.func) for call in calls]
    assert {"hw.run", "hw.load", "hw.answer"} <= set(functions)
    for call, function in zip(calls, functions, strict=True):
        if function.startswith("hw."):
            named = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
            signature = inspect.signature(getattr(hw, function.removeprefix("hw.")))
            signature.bind(*call.args, **named)
            assert named.keys() <= signature.parameters.keys()
