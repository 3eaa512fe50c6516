"""Speed as ratios, both sides in one run: `make bench` writes `benchmarks/results/*.json`.

Each file is a list of `{name, ratio, target, ok, detail, spread}`. The detail says which way the
target binds, the spread is the lowest and the highest reading. `python -m benchmarks startup` runs
one of them.
"""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from benchmarks import decoding, discovering, fuzzing, grading, serving, startup, training
from benchmarks.pairs import smol_shape, tally
from benchmarks.timing import Result

RESULTS = Path(__file__).parent / "results"
BENCHES: dict[str, Callable[[], Iterable[Result]]] = {
    "decoding-tally": lambda: decoding.results(tally(), True),
    "decoding-135m": lambda: decoding.results(smol_shape(), False),
    "decoding-135m-bfloat16": decoding.half_results,
    "decoding-smol": decoding.smol_results,
    "training-tally": lambda: training.results(tally(), True),
    "training-135m": lambda: training.results(smol_shape(), False),
    "sae-grid": discovering.grid_results,
    "reading": discovering.reading_results,
    "grading": grading.results,
    "fuzzing": fuzzing.results,
    "serving": serving.results,
    "startup": startup.results,
}


def main(names: list[str]) -> None:
    """Run the named benchmarks, or all, and write their results as they come."""
    RESULTS.mkdir(exist_ok=True)
    for name in names or BENCHES:
        done: list[Result] = []
        for result in BENCHES[name]():
            done.append(result)
            text = json.dumps([asdict(row) for row in done], indent=2) + "\n"
            (RESULTS / f"{name}.json").write_text(text)
            print(f"{result.verdict:8} {result.name}: {result.ratio} ({result.detail})")


if __name__ == "__main__":
    main(sys.argv[1:])
