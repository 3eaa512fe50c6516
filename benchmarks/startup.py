"""How long a command takes to start, in starts of Python itself.

Every side is a process of its own. The targets are seconds on two cores (0.7 s for help, 0.3 s for
the import), over the time that `python -c pass` takes there; they are checked in seconds as well.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.timing import Result, Run, compare_pairs, timed

HOWWHEN = [str(Path(sys.executable).with_name("howwhen"))]
COMMANDS: dict[str, tuple[list[str], float]] = {
    "import howwhen": ([sys.executable, "-c", "import howwhen"], 0.3),
    "--help": ([*HOWWHEN, "--help"], 0.7),
    "run --help": ([*HOWWHEN, "run", "--help"], 0.7),
    "--version": ([*HOWWHEN, "--version"], 0.7),
    "zoo list": ([*HOWWHEN, "zoo", "list"], 0.7),
    "a flag that does not exist": ([*HOWWHEN, "run", "tally-rl", "--collect.limt", "3"], 0.7),
    "a pair that does not exist": ([*HOWWHEN, "run", "tally-xl"], 0.7),
    "a layer that does not exist": ([*HOWWHEN, "run", "tally-rl", "--elicit.layer", "99"], 0.7),
    "doctor": ([*HOWWHEN, "doctor"], 3.0),
}
"""Each with the seconds it may take."""


def results() -> Iterator[Result]:
    """Every command over a Python that does nothing."""
    nothing = _process([sys.executable, "-c", "pass"])
    timed(nothing)
    for name, (command, seconds) in COMMANDS.items():
        run = _process(command)
        timed(run)
        floor = min(timed(nothing) for _ in range(5))
        yield compare_pairs(
            f"start: {name}",
            lambda run=run: (timed(run), timed(nothing)),  # type: ignore[misc]
            "at most",
            round(seconds / floor, 1),
            f"{seconds} s over a Python that does nothing",
        )


def _process(command: list[str]) -> Run:
    return lambda: subprocess.run(command, capture_output=True, check=False)
