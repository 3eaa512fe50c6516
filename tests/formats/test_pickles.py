"""The child process that reads `.pt` files."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from howwhen.errors import InputError
from howwhen.formats.pickles import SCRIPT, read_pickled_tensors

PACKAGES = ("safetensors", "gguf")
"""Packages whose names modules next to the script also have."""


def test_modules_next_to_the_script_do_not_hide_packages_of_the_same_name(tmp_path: Path) -> None:
    assert all(SCRIPT.with_name(f"{package}.py").exists() for package in PACKAGES)
    torch.save({"idx0": torch.arange(3.0)}, tmp_path / "vector.pt")
    (tensors,) = read_pickled_tensors([tmp_path / "vector.pt"])
    assert torch.equal(tensors["idx0"], torch.arange(3.0))
    command = [sys.executable, str(SCRIPT), str(tmp_path / "vector.pt")]
    child = subprocess.run(command, capture_output=True, check=False, text=True)
    assert child.returncode == 1
    assert "safetensors" in child.stderr


def test_a_file_that_takes_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: Sequence[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", run)
    torch.save({"idx0": torch.ones(3)}, tmp_path / "slow.pt")
    with pytest.raises(InputError, match=r"slow\.pt did not load within 120 s"):
        read_pickled_tensors([tmp_path / "slow.pt"])
