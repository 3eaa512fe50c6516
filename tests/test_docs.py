"""What the pages in docs/ say was measured is what docs/measurements holds."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
ROOT = Path(__file__).parents[1]
SMOL = (ROOT / "docs" / "smol.md").read_text()
FIGURES = runpy.run_path(str(ROOT / "docs" / "figures.py"))


def test_the_ladder_of_smol_is_the_measured_one() -> None:
    [command] = re.findall(r"^python docs/figures\.py smol (.+)$", SMOL, re.MULTILINE)
    measured = {Path(one).stem: FIGURES["read"](ROOT / one) for one in shlex.split(command)}
    assert "smol-decision" in measured
    for row in FIGURES["table"](measured).splitlines()[2:]:
        assert row in SMOL


def test_the_gains_the_readme_tells_of_are_the_measured_ones() -> None:
    guardrail = FIGURES["read"](ROOT / "docs" / "measurements" / "smol-sft-decision.json").rungs[
        "guardrail-only"
    ]
    told = re.search(
        r"the guardrail recovers (\d+) % of the gap with (\d+) of these (\d+) problems",
        (ROOT / "README.md").read_text(),
    )
    assert told is not None
    share = round(100 * guardrail.gap_recovered)
    assert tuple(map(int, told.groups())) == (share, *guardrail.gains)
