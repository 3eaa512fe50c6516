"""Shared by the tests of the harnesses: a small run, problems, commands without network."""

import json
import os
import re
import subprocess
from functools import cache
from pathlib import Path

from howwhen import Pipeline, Reporter, find_pair, make_settings, open_run
from howwhen.zoo.tally import tally_problems

PROBLEMS = tally_problems(24, 7)
QUESTIONS = [problem.question for problem in PROBLEMS]
FEW = QUESTIONS[:6]
"""Enough where only equality matters."""
SETTINGS = {
    "collect": {"limit": 40, "max_new_tokens": 100},
    "discover": {"sizes": (4,), "ks": (1,), "steps": 20, "layers": (2,)},
    "elicit": {"seeds": (0,), "steps": 60, "validate_every": 20, "probe_steps": 10},
}
_NOWHERE = "http://127.0.0.1:9"


@cache
def small_run(session: Path) -> Path:
    """A run with its first three steps, in the session's folder: made once, in four seconds."""
    folder = session / "harness-run"
    with open_run(folder) as run:
        pipeline = Pipeline(find_pair("tally-rl"), make_settings(SETTINGS), run, Reporter())
        for step in ("collect", "discover", "elicit"):
            pipeline.do(step)
    return folder


def write_problems(file: Path) -> None:
    rows = ({"question": problem.question, "answer": problem.answer} for problem in PROBLEMS)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def last_number(text: str) -> str:
    """The answer, as the harnesses are configured to read it."""
    numbers: list[str] = re.findall("-?[0-9]+", text)
    return numbers[-1] if numbers else ""


def accuracy(texts: list[str]) -> float:
    """Share of the problems whose last number is the answer."""
    pairs = zip(texts, PROBLEMS, strict=True)
    return sum(last_number(text) == problem.answer for text, problem in pairs) / len(PROBLEMS)


def run_offline(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with fresh caches and without network access."""
    closed = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), _NOWHERE)
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            **closed,
            "HF_HOME": str(folder / "cache"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        },
    )
