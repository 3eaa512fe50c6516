"""Speed as ratios, both sides in one run: `make bench` writes `benchmarks/results/*.json`.

Each file is a list of `{name, ratio, target, ok, detail}`; a ratio above its target is good.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from howwhen.discover.sae import Shape, train_grid
from howwhen.hybrid.choice import Takeover
from howwhen.hybrid.decoder import HybridModels, decode
from howwhen.records import Sae, Taxonomy
from howwhen.settings import DiscoverSettings, HybridSettings
from howwhen.zoo.pairs import find_pair

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Result:
    """One ratio with what it is held against."""

    name: str
    ratio: float
    target: float
    ok: bool
    detail: str


def compare(
    name: str, slow: Callable[[], object], fast: Callable[[], object], target: float, what: str
) -> Result:
    """Time both sides in turn, three times each; the ratio is that of the medians."""
    times: dict[str, list[float]] = {"slow": [], "fast": []}
    for _ in range(3):
        for side, run in (("slow", slow), ("fast", fast)):
            started = time.perf_counter()
            run()
            times[side].append(time.perf_counter() - started)
    slow_seconds, fast_seconds = median(times["slow"]), median(times["fast"])
    ratio = round(slow_seconds / fast_seconds, 2)
    detail = f"{what}: {slow_seconds:.2f} s and {fast_seconds:.2f} s"
    return Result(name, ratio, target, ratio >= target, detail)


def sae_grid() -> Result:
    """Ten sizes at once and one by one."""
    inputs = torch.nn.functional.normalize(torch.randn(4000, 192), dim=1)
    shapes = [Shape(size, 3) for size in range(5, 55, 5)]
    settings = DiscoverSettings(steps=40, sentences_per_step=512)
    return compare(
        "SAE grid of ten sizes vs ten sizes one by one",
        lambda: [train_grid(inputs, [shape], settings) for shape in shapes],
        lambda: train_grid(inputs, shapes, settings),
        4.0,
        "40 steps, one by one and together",
    )


def batched_decoding() -> Result:
    """Thirty-two streams at once and one by one, per token."""
    pair = find_pair("tally-rl")
    rows = torch.eye(192)[:4]
    sae = Sae(rows, torch.zeros(4), rows, torch.zeros(192), k=1)
    taxonomy = Taxonomy("none", 2, torch.zeros(192), sae, ("a", "b", "c", "d"))
    models = HybridModels(pair.base, pair.thinking, taxonomy)
    assert pair.draw_problems is not None
    problems, settings = pair.draw_problems(32, 1), HybridSettings(max_new_tokens=160)
    return compare(
        "batch of 32 streams vs one",
        lambda: [decode(models, [problem], Takeover(), settings) for problem in problems],
        lambda: decode(models, problems, Takeover(), settings),
        8.0,
        "32 tally problems on the takeover rung, one by one and together",
    )


def main() -> None:
    """Run every benchmark and write its result."""
    RESULTS.mkdir(exist_ok=True)
    for name, bench in {"sae_grid": sae_grid, "batched_decoding": batched_decoding}.items():
        result = bench()
        (RESULTS / f"{name}.json").write_text(json.dumps([asdict(result)], indent=2) + "\n")
        print(f"{result.name}: {result.ratio}x (target {result.target}x) {result.detail}")


if __name__ == "__main__":
    main()
