"""Speed and memory on one card: `make bench-gpu` writes `benchmarks/results/gpu-CARD.json`.

Pairs have random weights in the shapes of published models, made on the card in bfloat16, so no
download is needed and times are those of the real models; what is written is not. Every figure is
a median of repeats with the lowest and the highest. `python -m benchmarks.gpu 0.5B` runs one shape;
`HOWWHEN_GPU=cpu python -m benchmarks.gpu tiny` tries the script without a card and writes nothing.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from transformers import LlamaConfig, PretrainedConfig, Qwen2Config

from benchmarks.pairs import Bench, bench_of, random_pair
from howwhen.discover.activations import ReaderInput, sentence_means
from howwhen.elicit.decisions import find_decisions
from howwhen.elicit.states import PrefixCache
from howwhen.elicit.training import DataSplit, new_vectors, train_vectors
from howwhen.hybrid.choice import Steer
from howwhen.hybrid.decoder import decode
from howwhen.lm.generate import Sampling, generate
from howwhen.pipeline.hardware import state_bytes, weight_bytes
from howwhen.records import Finish, Problem, Rollout
from howwhen.settings import Compilation, DiscoverSettings, ElicitSettings, HybridSettings

DEVICE = torch.device(os.environ.get("HOWWHEN_GPU", "cuda:0"))
RESULTS = Path(__file__).parent / "results"
REPEATS = 3
BATCHES = (1, 32, 128)
WAYS: tuple[tuple[int, Compilation | None], ...] = (
    (1, None), (16, None), (1, "graphs"), (16, "graphs")
)  # fmt: skip
"""Longest draft, and how passes are compiled."""
NEW_TOKENS = 64
ANSWERS, ANSWER_TOKENS = 16, 512
"""Size at which the other steps are timed."""


def _qwen(
    width: int, inner: int, layers: int, heads: int, shared: int, *, tied: bool
) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=151_936,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        tie_word_embeddings=tied,
        max_position_embeddings=32_768,
        eos_token_id=0,
    )


SHAPES: dict[str, Callable[[], PretrainedConfig]] = {
    "0.5B": lambda: _qwen(896, 4864, 24, 14, 2, tied=True),
    "1.5B": lambda: _qwen(1536, 8960, 28, 12, 2, tied=True),
    "7B": lambda: _qwen(3584, 18_944, 28, 28, 4, tied=False),
    "8B": lambda: LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=32_768,
        eos_token_id=0,
    ),
}
"""Qwen2.5 (0.5B, 1.5B, 7B) and Llama 3.1 (8B)."""
TINY = "tiny"


@dataclass(frozen=True)
class Figure:
    """One measurement."""

    shape: str
    what: str
    batch: int
    """Texts at a time."""
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    """Lowest and highest of the repeats; None for what is not timed."""
    peak_gib: float | None = None
    """Most memory that was allocated, weights included."""


def timed(shape: str, what: str, batch: int, run: Callable[[], int], unit: str) -> Figure:
    """A rate: what one call returns, in a second. The first call only warms up."""
    run()
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats(DEVICE)
    rates = []
    for _ in range(REPEATS):
        _settle()
        started = time.perf_counter()
        count = run()
        _settle()
        rates.append(count / (time.perf_counter() - started))
    peak = torch.cuda.max_memory_allocated(DEVICE) / 2**30 if DEVICE.type == "cuda" else None
    return Figure(shape, what, batch, median(rates), unit, min(rates), max(rates), peak)


def _settle() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize(DEVICE)


def bandwidth() -> float:
    """Bytes a second that the memory gives and takes: a large copy, the best of some."""
    size = 2**30 if DEVICE.type == "cuda" else 2**26
    source = torch.zeros(size, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(2 + REPEATS):
        _settle()
        started = time.perf_counter()
        target.copy_(source)
        _settle()
        seconds.append(time.perf_counter() - started)
    return 2 * size / min(seconds)


def make(shape: str) -> Bench:
    """The pair of a shape, with 128 problems."""
    torch.manual_seed(0)
    config = (
        LlamaConfig(vocab_size=500, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
                    num_attention_heads=4, num_key_value_heads=2, eos_token_id=0)
        if shape == TINY
        else SHAPES[shape]()
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(DEVICE):
            pair = random_pair(shape, config)
    finally:
        torch.set_default_dtype(before)
    text = " ".join(f"w{number}" for number in range(100, 180))
    problems = [Problem(str(n), f"w{n + 2} {text}", "0") for n in range(max(BATCHES))]
    return bench_of(shape, pair, problems)


def decoding(bench: Bench, bytes_a_second: float) -> Iterator[Figure]:
    """The hybrid and transformers' own `generate`, beside what reading the weights allows."""
    models = bench.models
    weights = weight_bytes(models.base), weight_bytes(models.thinking)
    rung = Steer(bench.gate, bench.vectors)
    for batch in BATCHES:
        problems = bench.problems[:batch]
        for block_tokens, how in WAYS:
            if how is not None and block_tokens > 1 < batch:
                continue  # many graphs, each of which takes a while to be made
            settings = HybridSettings(
                max_new_tokens=NEW_TOKENS, batch_size=batch, block_tokens=block_tokens, compile=how
            )

            def hybrid(problems: list[Problem] = problems, how: HybridSettings = settings) -> int:
                return sum(len(one.tokens) for one in decode(models, problems, rung, how))

            what = f"hybrid, drafts of up to {block_tokens}, {how or 'eager'}"
            yield timed(bench.name, what, batch, hybrid, "tokens/s")
        prompts = [models.base.prompt_ids(problem.question) for problem in problems]

        def plain(prompts: list[list[int]] = prompts) -> int:
            found = generate(models.base.model, models.base.end_ids, prompts, Sampling(NEW_TOKENS))
            return sum(map(len, found))

        yield timed(bench.name, "generate of transformers, base alone", batch, plain, "tokens/s")
        floor = batch * bytes_a_second / sum(weights)
        yield Figure(bench.name, "floor: both weights once a token", batch, floor, "tokens/s")
    states = state_bytes(models.base) + state_bytes(models.thinking)
    yield Figure(bench.name, "weights of both", 1, sum(weights) / 2**30, "GiB")
    yield Figure(bench.name, "states of both per token", 1, states / 2**10, "KiB")


def steps(bench: Bench) -> Iterator[Figure]:
    """The other steps, at a stated size."""
    models, settings = bench.models, ElicitSettings(steps=4, validate_every=4, seeds=(0,))
    base = models.base
    size = int(base.model.config.vocab_size)
    generator = torch.Generator().manual_seed(0)
    length = ANSWER_TOKENS if bench.name != TINY else 64
    ids = torch.randint(2, size, (ANSWERS, length), generator=generator).tolist()
    rollouts = [Rollout(str(n), tuple(row), "", Finish.STOP, ()) for n, row in enumerate(ids)]
    questions = [problem.question for problem in bench.problems[:ANSWERS]]
    spans = [(start, start + 16) for start in range(0, length, 16)]
    inputs = [ReaderInput([1, 2], row, spans, [True] * len(spans)) for row in ids]
    tokens = ANSWERS * length

    def read() -> int:
        sentence_means(models.thinking, inputs, [bench.gate.layer], DiscoverSettings())
        return tokens

    def compare() -> int:
        find_decisions(models, bench.gate.layer, rollouts, questions, settings)
        return tokens

    yield timed(bench.name, "discover: sentences read", ANSWERS, read, "tokens/s")
    yield timed(bench.name, "elicit: both models compared", ANSWERS, compare, "tokens/s")
    found = find_decisions(models, bench.gate.layer, rollouts, questions, settings)
    examples = [one.example(bench.gate) for one in found]
    layer = bench.vectors.layer
    start = new_vectors(
        base.name, layer, base.model.config.hidden_size, bench.gate.size, "network", settings, 0
    )
    data = DataSplit(examples, examples[:1], examples[:1])

    def train() -> int:
        cache = PrefixCache(base, layer, settings.states_gib)
        train_vectors(start, data, cache, settings, 0, lambda step: None)
        return settings.steps

    yield timed(bench.name, "elicit: training steps, states included", ANSWERS, train, "steps/s")


def main(names: list[str]) -> None:
    """Measure some shapes, or all of them, and write the figures as they come."""
    is_card = DEVICE.type == "cuda"
    card = torch.cuda.get_device_name(DEVICE) if is_card else "no card"
    file = RESULTS / f"gpu-{re.sub('[^a-z0-9]+', '-', card.lower()).strip('-')}.json"
    rate = bandwidth()
    done = [Figure("", "bandwidth of a copy", 1, rate / 1e9, "GB/s")]
    for name in names or SHAPES:
        bench = make(name)
        for part in (decoding(bench, rate), steps(bench)):
            for figure in part:
                done.append(figure)
                print(asdict(figure), flush=True)
                if is_card:
                    about = {"card": card, "torch": torch.__version__, "dtype": "bfloat16"}
                    content = {**about, "figures": [asdict(one) for one in done]}
                    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        del bench
        if is_card:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main(sys.argv[1:])
