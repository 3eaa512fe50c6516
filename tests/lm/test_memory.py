import os
import subprocess
import sys

import pytest

from howwhen.lm import memory

SCRIPT = """
import resource, runpy, sys
import numpy
runpy.run_path(sys.argv[1])["keep_freed_memory"]()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numpy.ones(25_000_000)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment: str) -> tuple[int, int]:
    """Pages faulted in by the first 200 MB that a process takes, and by the next."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, memory.__file__],
        capture_output=True, text=True, check=True, env={**others, **environment},
    )  # fmt: skip
    first, second = map(int, done.stdout.split())
    return first, second


@pytest.mark.skipif(sys.platform != "linux", reason="tells glibc, which only Linux has")
def test_freed_memory_is_used_again_unless_the_environment_says_otherwise() -> None:
    first, second = faults()
    assert second < first / 20
    first, second = faults(MALLOC_TRIM_THRESHOLD_="131072")
    assert second > first / 2
