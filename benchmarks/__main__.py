"""Speed as ratios, both sides in one run: `make bench` writes `benchmarks/results/*.json`.

Each file is a list of `{name, ratio, target, ok, detail}`; the detail says which way the target
binds. `python -m benchmarks decoding-tally` runs one of them.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import decoding, fuzzing, grading, training
from benchmarks.pairs import smol_shape, tally
from benchmarks.timing import Result, compare
from howwhen.discover.sae import Shape, train_grid
from howwhen.settings import DiscoverSettings

RESULTS = Path(__file__).parent / "results"


def sae_grid() -> Iterator[Result]:
    """Ten sizes at once and one by one."""
    inputs = torch.nn.functional.normalize(torch.randn(4000, 192), dim=1)
    shapes = [Shape(size, 3) for size in range(5, 55, 5)]
    settings = DiscoverSettings(steps=40, sentences_per_step=512)
    yield compare(
        "SAE grid: ten sizes one by one over all at once",
        lambda: [train_grid(inputs, [shape], settings, 0) for shape in shapes],
        lambda: train_grid(inputs, shapes, settings, 0),
        "at least",
        4.0,
        "40 steps, one by one and together",
    )


BENCHES: dict[str, Callable[[], Iterable[Result]]] = {
    "decoding-tally": lambda: decoding.results(tally(), True),
    "decoding-135m": lambda: decoding.results(smol_shape(), False),
    "training-tally": lambda: training.results(tally(), True),
    "training-135m": lambda: training.results(smol_shape(), False),
    "sae-grid": sae_grid,
    "grading": grading.results,
    "fuzzing": fuzzing.results,
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
