"""Run a small pipeline again and again, each time ended by a signal at another moment.

Usage: python -m tests.killed_run SIGNAL FOLDER MOMENT..., where SIGNAL is `KILL` or `INT` and a
MOMENT is a key of `MOMENTS` or `never`. Every run is a process of its own, forked from this one,
which has only imported what they need. With `INT` (Ctrl-C) a run is typed as a command. Prints how
each of them ended, as `os.waitstatus_to_exitcode` reports it.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from howwhen import Pipeline, Reporter, find_pair, make_settings, open_run
from howwhen.cli import main as command
from howwhen.elicit import training
from howwhen.pipeline import (
    collect,
    decisions,
    discover,
    elicit,
    files,
    hybrid,
    measure,
    present,
)

SETTINGS = {
    "collect": {"limit": 30, "max_new_tokens": 40, "batch_size": 4},
    "discover": {"sizes": (4, 6), "ks": (1,), "steps": 20, "layers": (1, 2)},
    "elicit": {
        "seeds": (0, 1),
        "steps": 4,
        "validate_every": 2,
        "batch_size": 8,
        "probe_steps": 20,
        "on_policy_rounds": 1,
    },
    "hybrid": {"max_new_tokens": 80, "batch_size": 2, "random_seeds": (0,)},
    "measure": {"bootstrap_samples": 100},
}
MOMENTS: dict[str, tuple[Any, str, int]] = {
    "collect": (collect, "collect_rollouts", 3),
    "inside a line": (files, "_lines", 4),
    "grid": (discover, "discover_layer", 2),
    "discover": (discover, "choose", 1),
    "decisions": (decisions, "find_decisions", 2),
    "elicit": (training, "_look", 2),
    "on-policy": (elicit, "decode", 2),
    "self-gate": (elicit, "train_self_gate", 1),
    "hybrid": (hybrid, "decode", 4),
    "before a rename": (files, "content_hash", 4),
    "measure": (measure, "measure_ladder", 1),
    "present": (present, "make_report", 1),
}


def main(name: str, folder: Path, moments: list[str]) -> None:
    number = signal.Signals[f"SIG{name}"]
    for moment in moments:
        child = os.fork()
        if not child:
            run(number, folder, moment)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def run(number: signal.Signals, folder: Path, moment: str) -> None:
    if moment != "never":
        module, name, calls = MOMENTS[moment]
        setattr(module, name, _end_at(number, getattr(module, name), calls, moment, folder))
    if number is signal.SIGINT:
        # A shell starts what it puts in the background with SIGINT ignored; this is the foreground.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _type_command(folder)
        return
    with open_run(folder) as opened:
        Pipeline(find_pair("tally-rl"), make_settings(SETTINGS), opened, Reporter()).run()


def _type_command(folder: Path) -> None:
    config = folder.with_name(f"{folder.name}.yaml")
    settings = make_settings(SETTINGS).model_dump(mode="json")  # all of them, whatever the preset
    config.write_text(json.dumps(settings))  # JSON is YAML
    sys.argv = ["howwhen", "run", "tally-rl", "--config", str(config), "--out", str(folder)]
    sys.stdout = sys.stderr
    try:
        command()
    except SystemExit as ended:
        sys.stderr.flush()
        os._exit(int(ended.code or 0))


def _end_at(
    number: signal.Signals, real: Callable[..., Any], calls: int, moment: str, folder: Path
) -> Callable[..., Any]:
    left = [calls]

    def counting(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] > 0:
            return real(*args, **kwargs)
        if moment == "inside a line":
            rollouts = next(folder.rglob("rollouts.jsonl"))
            with rollouts.open("ab") as file:
                file.write(real(*args, **kwargs)[:-30])
        os.kill(os.getpid(), number)
        return None

    return counting


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
