"""Run a small pipeline again and again, each time killed, as `kill -9` does, at another moment.

Usage: python -m tests.killed_run FOLDER MOMENT..., where a MOMENT is a key of `MOMENTS` or `never`.
Every run is a process of its own, forked from this one, which has only imported what they need.
Prints how each of them ended, as `os.waitstatus_to_exitcode` tells it.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from howwhen import Pipeline, Reporter, find_pair, make_settings, open_run
from howwhen.pipeline import collect, discover, elicit, files, hybrid, measure, present

SETTINGS = {
    "collect": {"limit": 30, "max_new_tokens": 40, "batch_size": 4},
    "discover": {"sizes": (4, 6), "ks": (1,), "steps": 20, "layers": (1, 2)},
    "elicit": {
        "seeds": (0, 1),
        "steps": 4,
        "validate_every": 2,
        "probe_steps": 20,
        "on_policy_rounds": 1,
    },
    "hybrid": {"max_new_tokens": 80, "batch_size": 6, "random_seeds": (0,)},
    "measure": {"bootstrap_samples": 100},
}
MOMENTS: dict[str, tuple[Any, str, int]] = {
    "collect": (collect, "collect_rollouts", 3),
    "inside a line": (files, "_lines", 4),
    "grid": (discover, "discover_layer", 2),
    "discover": (discover, "choose", 1),
    "elicit": (elicit, "train_vectors", 2),
    "on-policy": (elicit, "decode", 2),
    "self-gate": (elicit, "train_self_gate", 1),
    "hybrid": (hybrid, "decode", 4),
    "before a rename": (files, "_hash", 4),
    "measure": (measure, "measure_ladder", 1),
    "present": (present, "make_report", 1),
}


def main(folder: Path, moments: list[str]) -> None:
    for moment in moments:
        child = os.fork()
        if not child:
            run(folder, moment)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def run(folder: Path, moment: str) -> None:
    if moment != "never":
        module, name, calls = MOMENTS[moment]
        setattr(module, name, _kill_at(getattr(module, name), calls, moment))
    with open_run(folder) as opened:
        Pipeline(find_pair("tally-rl"), make_settings(SETTINGS), opened, Reporter()).run()


def _kill_at(real: Callable[..., Any], calls: int, moment: str) -> Callable[..., Any]:
    left = [calls]

    def counting(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] > 0:
            return real(*args, **kwargs)
        if moment == "inside a line":
            rollouts = next(Path(sys.argv[1]).rglob("rollouts.jsonl"))
            with rollouts.open("ab") as file:
                file.write(real(*args, **kwargs)[:-30])
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    return counting


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
