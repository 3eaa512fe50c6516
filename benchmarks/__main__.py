"""Speed as ratios, both sides in one run: `make bench` writes `benchmarks/results/*.json`.

Each file is a list of `{name, ratio, target, ok, detail}`; the detail says which way the target
binds. `python -m benchmarks decoding-tally` runs one of them.
"""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from benchmarks import decoding, discovering, fuzzing, grading, serving, training
from benchmarks.pairs import smol_shape, tally
from benchmarks.timing import Result

RESULTS = Path(__file__).parent / "results"


BENCHES: dict[str, Callable[[], Iterable[Result]]] = {
    "decoding-tally": lambda: decoding.results(tally(), True),
    "decoding-135m": lambda: decoding.results(smol_shape(), False),
    "training-tally": lambda: training.results(tally(), True),
    "training-135m": lambda: training.results(smol_shape(), False),
    "sae-grid": discovering.grid_results,
    "reading": discovering.reading_results,
    "grading": grading.results,
    "fuzzing": fuzzing.results,
    "serving": serving.results,
}


def main(names: list[str]) -> None:
    """Run the named benchmarks, or all, and write their results as they come."""
    RESULTS.mkdir(exist_ok=True)
    for name in names or BENCHES:
        done: list[Result] = []
        for result in BENCHES[name]():
            done.append(result)
            text = json.dumps([asdict(one) for one in done], indent=2) + "\n"
            (RESULTS / f"{name}.json").write_text(text)
            mark = "ok    " if result.ok else "MISSED"
            print(f"{mark} {result.name}: {result.ratio} ({result.detail})")


if __name__ == "__main__":
    main(sys.argv[1:])
