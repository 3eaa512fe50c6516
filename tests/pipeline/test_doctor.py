import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from howwhen.cli import app
from howwhen.errors import ModelError, StoreError
from howwhen.pipeline.doctor import (
    check_model_files,
    examine_machine,
    examine_packages,
)
from howwhen.pipeline.hardware import Finding
from howwhen.zoo.pairs import Pair
from howwhen.zoo.tally import TALLY_WEIGHTS


def test_what_an_extra_lacks_comes_with_what_to_type() -> None:
    requirements = [
        "torch>=2",
        'no-such-package; python_version < "3"',
        'numpy>=1; extra == "whole"',
        'no-such-package>=3; extra == "bare"',
        'numpy<1,>=0.5; python_version > "3" and extra == "old"',
        'no-such-tool; extra == "dev"',
    ]
    packages, *extras = examine_packages(requirements, ["whole", "bare", "old", "dev"])
    assert packages.found.startswith("all there (torch 2.")
    assert extras == [
        Finding("extra whole", "all there"),
        Finding("extra bare", "no-such-package is missing", "pip install 'howwhen[bare]'"),
        Finding(
            "extra old",
            f"numpy is {np.__version__}, expected <1,>=0.5",
            "pip install 'howwhen[old]'",
        ),
    ]


def test_a_package_that_is_needed_and_too_old_is_broken() -> None:
    [found] = examine_packages(["torch>=99", "numpy"], [])
    assert found.is_broken
    assert found.found == f"torch is {version('torch')}, expected >=99"


def test_this_machine_runs_the_embedded_pairs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOWWHEN_CACHE", str(tmp_path))
    app(["doctor", "--load"], result_action="return_value")
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("loads, aligns and can be steered") == 2
    assert "howwhen zoo build smollm2" in shown
    assert f"Python {sys.version.split()[0]}" in shown
    assert "BROKEN" not in shown


def test_whole_models_pass_without_being_loaded() -> None:
    for name in ("base", "rl", "sft"):
        check_model_files(TALLY_WEIGHTS / name)


@pytest.mark.parametrize("harm", ["cut", "longer", "empty", "no header", "no tokenizer"])
def test_a_models_files_are_checked_without_loading_it(tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TALLY_WEIGHTS / "rl", folder)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    harmed = {"cut": content[:-10], "longer": content + b"x", "empty": b"", "no header": b"x" * 99}
    weights.write_bytes(harmed.get(harm, content))
    if harm == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=str(folder)):
        check_model_files(folder)


def test_a_folder_without_a_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(StoreError, match="there is no run in .* expected a folder like"):
            app(["doctor", str(folder)], result_action="return_value", exit_on_error=False)
    assert not list(tmp_path.iterdir())


def test_a_pair_that_does_not_load_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Pair) -> None:
        raise ModelError("its weights are cut off")

    monkeypatch.setattr(Pair, "models", refuse)
    broken = [one for one in examine_machine(load=True) if one.is_broken]
    assert [(one.what, one.found) for one in broken] == [
        ("tally-rl", "its weights are cut off"),
        ("tally-sft", "its weights are cut off"),
    ]
