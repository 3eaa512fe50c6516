import sys
from pathlib import Path

import pytest

from howwhen.cli import app
from howwhen.doctor import Finding, examine_machine, examine_packages
from howwhen.errors import ModelError
from howwhen.zoo.pairs import Pair


def test_what_an_extra_lacks_comes_with_what_to_type() -> None:
    found = examine_packages(
        [
            "torch>=2",
            'numpy>=1; extra == "whole"',
            'no-such-package>=3; extra == "bare"',
            'numpy<1,>=0.5; python_version > "3" and extra == "old"',
            'no-such-tool; extra == "dev"',
        ]
    )
    packages, *extras = found
    assert packages.found.startswith("all there (torch 2.")
    assert extras == [
        Finding("extra whole", "all there"),
        Finding("extra bare", "missing: no-such-package>=3", "pip install 'howwhen[bare]'"),
        Finding("extra old", "missing: numpy<1,>=0.5", "pip install 'howwhen[old]'"),
    ]


def test_a_package_that_is_needed_and_missing_is_broken() -> None:
    [found] = examine_packages(["torch>=99", "numpy"])
    assert (found.is_broken, found.found) == (True, "missing: torch>=99")


def test_this_machine_runs_the_embedded_pairs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOWWHEN_CACHE", str(tmp_path))
    app(["doctor"], result_action="return_value")
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("loads, aligns and can be steered") == 2
    assert "howwhen zoo build smollm2" in shown
    assert f"Python {sys.version.split()[0]}" in shown


def test_a_pair_that_does_not_load_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Pair) -> None:
        raise ModelError("its weights are cut off")

    monkeypatch.setattr(Pair, "check", refuse)
    broken = [one for one in examine_machine() if one.is_broken]
    assert [(one.what, one.found) for one in broken] == [
        ("tally-rl", "its weights are cut off"),
        ("tally-sft", "its weights are cut off"),
    ]
