"""The discover rows of the speed table: SAE grid, activation pass, and the memory of a reading."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.pairs import Bench, smol_shape, tally
from benchmarks.timing import Result, compare
from howwhen.discover.activations import ReaderInput, _batches, sentence_means
from howwhen.discover.sae import Shape, Training, evaluate, init_latents, train_grid
from howwhen.lm.models import LanguageModel
from howwhen.lm.padding import pad
from howwhen.lm.residual import find_blocks
from howwhen.pipeline.shards import read_activations
from howwhen.pipeline.store import StepFolder
from howwhen.probes import Sae
from howwhen.settings import DiscoverSettings
from tests.oracles.sae import train_plainly

SIZES = range(5, 55, 5)
SETTINGS = DiscoverSettings()
SENTENCE_TOKENS = 12
SENTENCES_PER_TEXT = 25


def grid_results() -> Iterator[Result]:
    """A grid of ten sizes at the width of tally and of SmolLM2-135M."""
    yield grid_against_one_by_one(192, steps=1000)
    yield grid_against_one_by_one(576, steps=500)


def grid_against_one_by_one(width: int, steps: int) -> Result:
    """Ten sizes at once against ten plain trainings, of the same FVU within 2 %."""
    inputs = clustered_sentences(4000, width)
    shapes = [Shape(size, 3) for size in SIZES]
    settings = DiscoverSettings(steps=steps)
    starts = init_latents(Training(inputs, 0), list(SIZES))  # only the grid's own time counts them
    apart: list[Sae] = []
    together: list[Sae] = []

    def one_by_one() -> None:
        apart[:] = [
            train_plainly(inputs, start, shape, settings, 0)
            for start, shape in zip(starts, shapes, strict=True)
        ]

    def at_once() -> None:
        together[:] = train_grid(inputs, shapes, settings, 0)

    found = compare(
        f"SAE grid, width {width}: ten sizes one by one over all at once",
        one_by_one,
        at_once,
        "at least",
        4.0,
        f"{steps} steps of {settings.sentences_per_step} sentences",
    )
    ratios = [
        evaluate(ours, inputs).fvu / evaluate(theirs, inputs).fvu
        for ours, theirs in zip(together, apart, strict=True)
    ]
    worst = max(abs(ratio - 1) for ratio in ratios)
    detail = f"{found.detail}; FVUs differ by {worst:.2%} at most"
    return replace(found, ok=found.ok and worst <= 0.02, detail=detail)


def clustered_sentences(count: int, width: int) -> torch.Tensor:
    """Normalised vectors around thirty centres."""
    noise = torch.Generator().manual_seed(0)
    centres = torch.randn(30, width, generator=noise)
    own = torch.randint(30, (count,), generator=noise)
    rows = centres[own] + torch.randn(count, width, generator=noise)
    return torch.nn.functional.normalize(rows - rows.mean(0), dim=1)


def reading_results() -> Iterator[Result]:
    """The pass against plain forwards on two models, and its memory."""
    yield pass_against_forward(tally(), texts=256, layers=(0, 1, 2, 3))
    yield pass_against_forward(smol_shape(), texts=24, layers=(5, 10, 15))
    yield memory_of_reading()


def pass_against_forward(bench: Bench, texts: int, layers: tuple[int, ...]) -> Result:
    """Sentence means of all layers against bare blocks up to the deepest, on the same batches."""
    model = bench.models.thinking
    reader_inputs = make_passages(model, texts)
    bare = cut_after(model, max(layers))

    @torch.no_grad()
    def forward() -> None:
        for batch in _batches(reader_inputs, SETTINGS.batch_tokens):
            chosen = [reader_inputs[number] for number in batch]
            ids = pad([[*one.prompt, *one.ids] for one in chosen]).ids
            bare(input_ids=ids, use_cache=False)

    tokens = sum(reader_input.length for reader_input in reader_inputs)
    return compare(
        f"{bench.name}: reading sentences at {len(layers)} layers over a plain forward to the last",
        lambda: sentence_means(model, reader_inputs, layers, SETTINGS),
        forward,
        "at most",
        1.1,
        f"{tokens} tokens, {texts * SENTENCES_PER_TEXT} sentences",
        repeats=7,
    )


def make_passages(model: LanguageModel, texts: int) -> list[ReaderInput]:
    """Random texts of 15 to 35 sentences, with a prompt."""
    rng, size = Random(0), model.model.config.vocab_size
    reader_inputs = []
    for _ in range(texts):
        ends = [0]
        for _ in range(rng.randint(SENTENCES_PER_TEXT - 10, SENTENCES_PER_TEXT + 10)):
            ends.append(ends[-1] + rng.randint(SENTENCE_TOKENS - 8, SENTENCE_TOKENS + 8))
        prompt, ids = ([rng.randrange(3, size) for _ in range(n)] for n in (40, ends[-1]))
        spans = list(pairwise(ends))
        reader_inputs.append(ReaderInput(prompt, ids, spans, [True] * len(spans)))
    return reader_inputs


def cut_after(model: LanguageModel, layer: int) -> PreTrainedModel:
    """The model's blocks up to `layer`, without a head."""
    bare = deepcopy(model.model.model)
    bare.layers = find_blocks(model.model)[: layer + 1]
    return bare


def memory_of_reading() -> Result:
    """Peak memory of a process that reads ten times as many sentences, over that of one."""
    sentences = (1_000, 10_000)
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        few, many = pool.map(peak_of_reading, sentences, chunksize=1)
    ratio = round(many / few, 2)
    return Result(
        "peak memory of a process that reads 10,000 sentences over one that reads 1,000",
        ratio,
        1.1,
        ratio <= 1.1,
        f"at most 1.1; width 576, 4 blocks, 3 layers read: {many:.0f} MB, {few:.0f} MB",
    )


def shallow_reader() -> LanguageModel:
    """Random weights as wide as SmolLM2-135M, so few that the reading makes the peak."""
    config = LlamaConfig(
        vocab_size=200,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    tokenizer = tally().models.base.tokenizer
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    return LanguageModel("shallow", "random", model, tokenizer, "{question}")


def peak_of_reading(sentences: int) -> float:
    """Peak resident memory of this process in MB, after reading so many sentences into shards."""
    model = shallow_reader()
    reader_inputs = make_passages(model, sentences // SENTENCES_PER_TEXT)
    with TemporaryDirectory() as folder:
        step = StepFolder(Path(folder), "discover")
        read_activations(step, model, reader_inputs, (1, 2, 3), SETTINGS, lambda _: None)
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
