"""Tables and figures that docs/smol.md and the README tell are those of docs/measurements."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from howwhen.records import Measurement

ROOT = Path(__file__).parents[1]
SMOL = (ROOT / "docs" / "smol.md").read_text()


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
