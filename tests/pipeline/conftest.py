"""One finished run that all tests of the pipeline read or copy, whichever process they are in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]


def run_until(folder: Path, *moments: str, name: str = "KILL") -> tuple[list[int], str]:
    """How every run ended, each a process ended at a moment, or never; what all of them wrote."""
    command = [sys.executable, "-m", "tests.killed_run", name, str(folder), *moments]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, env=one_thread
    )
    return [int(line) for line in done.stdout.split()], done.stderr


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of all six steps, with the settings of `tests.killed_run`."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder = shared / "finished" / "whole"
    with FileLock(shared / "finished.lock"):
        if not folder.exists():
            codes, _ = run_until(folder.with_name("making"), "never")
            assert codes == [0]
            folder.with_name("making").rename(folder)
    return folder
