"""Peak memory of the pieces that grow at the paper's scale, on growing inputs.

`python -m benchmarks.memory` writes `benchmarks/results/memory.json`. With the name of a piece and
a size, it measures that piece once, in this process, and prints the bytes that it took at its peak.
Sizes are answers or sentences; models have random weights, on the CPU in float32. Budgets are
small, so that inputs of minutes exceed them as those of days exceed the defaults.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import LlamaConfig

from benchmarks.pairs import random_pair
from howwhen.discover.taxonomy import LayerSentences, discover_layer, scoring_sample
from howwhen.elicit.examples import SteeredWindow, TrainingExample
from howwhen.elicit.self_gate import ProbeData
from howwhen.elicit.states import PrefixCache
from howwhen.elicit.training import DataSplit, new_vectors, train_vectors
from howwhen.lm.alignment import ModelPair
from howwhen.pipeline.decisions import Comparison, read_decisions
from howwhen.pipeline.shards import Activations
from howwhen.pipeline.store import StepFolder
from howwhen.probes import Gate, normalise_in_place
from howwhen.records import Finish, Rollout
from howwhen.settings import DiscoverSettings, ElicitSettings

RESULTS = Path(__file__).parent / "results" / "memory.json"
TOKENS = 400
"""Of an answer."""
WIDTH = 512
"""Of a sentence's activation."""
BUDGETS = ElicitSettings(
    positions_per_pass=1000,
    logits_gib=0.1,
    activations_gib=0.05,
    states_gib=0.02,
    probe_positions=4000,
    gate_decisions=1000,
)
Piece = Callable[[], object]
"""What is measured, made ready to run."""


def memory_of(piece: Piece) -> int:
    """Bytes that a call takes at its peak, above what the process has before it."""
    before = _kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
    piece()
    return 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def small_pair() -> ModelPair:
    """Eight blocks of width 256, and a vocabulary of 32,000."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=0,
    )
    return random_pair("small", config)


def rollouts(count: int) -> list[Rollout]:
    """Answers of random tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 32_000, (count, TOKENS), generator=generator).tolist()
    return [Rollout(str(n), tuple(row), "", Finish.STOP, ()) for n, row in enumerate(ids)]


def comparing(size: int) -> Piece:
    """Both models compared on `size` answers, and the self-gate's data."""
    pair, settings = small_pair(), BUDGETS.model_copy(update={"batch_size": 8})
    compared = Comparison(rollouts(size), ["w5 w6"] * size, 4, (4, 7), settings)
    gate = Gate("taxonomy", "any", 4, torch.zeros(256), torch.zeros(4, 256), torch.zeros(4), ())

    def run() -> None:
        with TemporaryDirectory() as folder:
            step = StepFolder(Path(folder), "elicit")
            found = read_decisions(
                step, "decisions", pair, lambda: pair, compared, lambda done: None
            )
            ProbeData.of(found, gate)

    return run


def training(size: int, *, is_answer: bool) -> Piece:
    """Three steps on batches of `size` answers, steered everywhere or at every tenth position."""
    pair, settings = small_pair(), BUDGETS.model_copy(update={"steps": 3, "batch_size": size})
    examples = []
    for rollout in rollouts(size + 2):
        places = [(0, TOKENS - 1)] if is_answer else [(p, p + 1) for p in range(5, TOKENS - 1, 10)]
        windows = tuple(SteeredWindow(start, end, 0) for start, end in places)
        targets = tuple(rollout.ids[p + 1] for start, end in places for p in range(start, end))
        examples.append(TrainingExample(rollout.ids, windows, targets, prompt=1))
    data = DataSplit(examples[2:], examples[:1], examples[1:2])
    start = new_vectors(pair.base.name, 4, 256, 1, "linear", settings, 0)
    states = PrefixCache(pair.base, 4, settings.states_gib)
    return lambda: train_vectors(start, data, states, settings, 0, lambda step: None)


def discovering(size: int) -> Piece:
    """One layer of `size` sentences read, trained on and scored; texts are left out."""
    folder = TemporaryDirectory()
    step = StepFolder(Path(folder.name), "discover")
    generator = torch.Generator().manual_seed(0)
    counts = [4000] * (size // 4000)
    for number, count in enumerate(counts):
        rows = torch.randn(count, WIDTH, generator=generator)
        step.write_tensors(f"activations/{number:05}.safetensors", {"layer.3": rows}, {})
    activations = Activations(step, "reader", (3,), tuple(counts))
    settings = DiscoverSettings(
        sizes=(5, 10), ks=(1,), steps=20, sentences_per_step=256, seeds=(0, 1)
    )

    def run() -> None:
        mean = torch.zeros(WIDTH)
        inputs = normalise_in_place(activations.rows(3, range(size)), mean)
        sentences = LayerSentences(
            layer=3,
            mean=mean,
            inputs=inputs,
            texts=["a few words"] * size,
            labels={},
            sample_rows=scoring_sample(size, 0)[:500],
        )
        discover_layer("reader", sentences, settings, lambda text: None)
        folder.cleanup()

    return run


PIECES: dict[str, tuple[Callable[[int], Piece], tuple[int, ...]]] = {
    "comparing": (comparing, (20, 80, 320)),
    "training on answers": (lambda size: training(size, is_answer=True), (4, 8, 16)),
    "training at decisions": (lambda size: training(size, is_answer=False), (8, 16, 32)),
    "discovering": (discovering, (60_000, 120_000, 240_000)),
}
"""What is measured, at which sizes."""


def measure(name: str, size: int) -> int:
    """Bytes at the peak of one piece, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", name, str(size)]
    # Whatever is large is given back when it is freed, so that the peak is what is held at a time.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return int(done.stdout.split()[-1])


def main(words: list[str]) -> None:
    """Measure one piece here, or all of them."""
    if words:
        make, size = PIECES[words[0]][0], int(words[1])
        print(memory_of(make(size)))
        return
    rows = []
    for name, (_, sizes) in PIECES.items():
        for size in sizes:
            rows.append({"piece": name, "size": size, "bytes": measure(name, size)})
            print(rows[-1], flush=True)
            RESULTS.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
