"""Rows 1 to 6 of the speed table of DESIGN.md: the hybrid decoder against its floor and others."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from transformers import DynamicCache

from benchmarks.pairs import Bench
from benchmarks.timing import Result, Run, compare, compare_pairs, timed
from howwhen.hybrid.choice import RandomPositions, Rung, SelfGated, Steer, Takeover
from howwhen.hybrid.decoder import decode
from howwhen.hybrid.sampling import uniform_numbers
from howwhen.hybrid.streams import PromptCache
from howwhen.hybrid.strength import LEARNED, sweep
from howwhen.lm.alignment import ModelPair
from howwhen.lm.models import LanguageModel
from howwhen.lm.residual import residuals
from howwhen.probes import SelfGate
from howwhen.records import Problem
from howwhen.settings import HybridSettings
from tests.oracles.naive import NaiveHybrid


def results(bench: Bench, is_small: bool) -> Iterator[Result]:
    """Every ratio on one pair; `is_small` allows more tokens."""
    tokens = 256 if is_small else 48
    yield from stepwise_against_floor(bench, tokens)
    yield against_reference(bench, tokens if is_small else 4)
    yield from block_against_stepwise(bench, tokens)
    yield sweep_against_single_passes(bench, 64 if is_small else 12)
    yield batch_against_one(bench, 96 if is_small else 16)
    yield self_gate_against_base(bench, tokens)
    yield near_ties(bench, 96 if is_small else 16)


@torch.no_grad()
def plain_greedy(model: LanguageModel, problem: Problem, tokens: int) -> list[int]:
    """The floor: one model, its cache, argmax, and nothing else."""
    cache, ids = DynamicCache(), torch.tensor([model.prompt_ids(problem.question)])
    answer: list[int] = []
    for _ in range(tokens):
        logits = model.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        ids = logits[:, -1].argmax(1, keepdim=True)
        answer.append(int(ids))
    return answer


def settings(tokens: int, block: int = 1) -> HybridSettings:
    """Greedy, so many tokens, stepwise by default."""
    return HybridSettings(max_new_tokens=tokens, block_tokens=block)


def rare(bench: Bench, rate: float) -> Rung:
    """Steers at random positions at a known rate; the gate is read, the thinking model run."""
    return RandomPositions(bench.gate, bench.vectors, LEARNED, rate=rate)


@torch.no_grad()
def plain_in_step(models: ModelPair, problem: Problem, tokens: int) -> None:
    """The same floor with both models in turn, token by token, as any stepwise hybrid runs them."""
    both = [models.base, models.thinking]
    caches = [DynamicCache(), DynamicCache()]
    ids = [torch.tensor([model.prompt_ids(problem.question)]) for model in both]
    for _ in range(tokens):
        for n, model in enumerate(both):
            output = model.model(
                ids[n], past_key_values=caches[n], use_cache=True, logits_to_keep=1
            )
            ids[n] = output.logits[:, -1].argmax(1, keepdim=True)


def stepwise_against_floor(bench: Bench, tokens: int) -> Iterator[Result]:
    """Row 1. Models that do not fit into a processor's cache together are slower in turn."""
    problem, models = bench.problems[0], bench.models
    floors: dict[str, Callable[[], object]] = {
        "both models alone, one after the other": lambda: [
            plain_greedy(model, problem, tokens) for model in (models.base, models.thinking)
        ],
        "both models alone, in turn": lambda: plain_in_step(models, problem, tokens),
    }
    for words, floor in floors.items():
        yield compare(
            f"{bench.name}: stepwise hybrid over {words}",
            lambda: decode(models, [problem], rare(bench, 0.05), settings(tokens)),
            floor,
            "at most",
            1.15,
            f"{tokens} tokens, 5 % of them steered, and {words}",
            repeats=5,
        )


def against_reference(bench: Bench, tokens: int) -> Result:
    """Row 2: the semantics without cache, one forward per model, token and candidate."""
    if bench.name == "tally":
        problem = bench.problems[0]
    else:  # the last tokens of an answer of 256, since one whole answer takes half an hour
        long = " ".join(f"w{number}" for number in range(1000, 1256 - tokens))
        problem = Problem("long", long, "0")
    how, strength = settings(tokens), sweep([round(0.1 * n, 1) for n in range(1, 11)])
    rung = Steer(bench.gate, bench.vectors, strength)
    naive = NaiveHybrid(bench.models, bench.gate, bench.vectors, how, strength)
    trace = decode(bench.models, [problem], rung, how)[0]
    fast = _decoding(bench, [problem], rung, tokens)
    answers: list[list[int]] = []

    @torch.no_grad()
    def reference() -> None:
        answers.append([token.id for token in naive.answer(problem)])

    result = compare_pairs(
        f"{bench.name}: uncached semantics over the stepwise hybrid",
        lambda: (timed(reference), timed(fast)),
        "at least",
        20.0,
        f"{len(trace.tokens)} tokens (to 256 of a text), {trace.decisions} disagreements with 10 "
        "candidates, the hybrid without reading the prompt",
        repeats=3,
    )
    is_same = all(answer == list(trace.ids) for answer in answers)
    detail = f"{result.detail}; tokens {'identical' if is_same else 'DIFFERENT'}"
    return replace(result, ok=result.ok and is_same, detail=detail)


def _decoding(bench: Bench, problems: list[Problem], rung: Rung, tokens: int) -> Run:
    """Writes so many tokens of each answer; the prompts have been read already."""
    prompts = PromptCache()
    decode(bench.models, problems, rung, settings(1), prompts=prompts)
    return lambda: decode(bench.models, problems, rung, settings(tokens), prompts=prompts)


def block_against_stepwise(bench: Bench, tokens: int) -> Iterator[Result]:
    """Row 3, at ten per cent random positions and, with trained models, at the disagreements."""
    rungs: dict[str, Rung] = {"10 % random positions": rare(bench, 0.1)}
    if bench.name == "tally":
        rungs["its own disagreements"] = Takeover()
    for words, rung in rungs.items():
        yield _block_against_stepwise(bench, tokens, words, rung)


def _block_against_stepwise(bench: Bench, tokens: int, words: str, rung: Rung) -> Result:
    problem, models = bench.problems[0], bench.models
    seed = _typical_seed(rung, problem, tokens)
    step, block = (
        decode(models, [problem], rung, settings(tokens, length), seed)[0] for length in (1, 8)
    )
    same = [token[:4] for token in step.tokens] == [token[:4] for token in block.tokens]
    result = compare(
        f"{bench.name}: stepwise over block, {words}",
        lambda: decode(models, [problem], rung, settings(tokens, 1), seed),
        lambda: decode(models, [problem], rung, settings(tokens, 8), seed),
        "at least",
        1.3,
        f"tokens {'identical' if same else 'DIFFERENT'}, {step.decisions / len(step.tokens):.1%} "
        "disagreements, stepwise and in blocks of up to 8",
        repeats=5,
    )
    return replace(result, ok=result.ok and same)


def _typical_seed(rung: Rung, problem: Problem, tokens: int) -> int:
    """A seed under which a random rung steers about as often as its rate says."""
    if not isinstance(rung, RandomPositions):
        return 0
    rate = rung.rate

    def off(seed: int) -> float:
        draws = uniform_numbers(rung.name, seed, problem.id, tokens)
        return abs(float((draws[:, 1] < rate).float().mean()) - rate)

    return min(range(50), key=off)


def sweep_against_single_passes(bench: Bench, tokens: int) -> Result:
    """Row 4: ten candidates in one pass, against ten answers with one candidate each."""
    strengths = [round(0.1 * n, 1) for n in range(1, 11)]
    always = RandomPositions(bench.gate, bench.vectors, LEARNED, rate=1.0)
    never = _decoding(bench, bench.problems[:1], replace(always, rate=0.0), tokens)
    single = _decoding(bench, bench.problems[:1], always, tokens)
    swept = _decoding(bench, bench.problems[:1], replace(always, strength=sweep(strengths)), tokens)

    def seconds() -> tuple[float, float]:
        unsteered = timed(never)
        return 10 * (timed(single) - unsteered), timed(swept) - unsteered

    return compare_pairs(
        f"{bench.name}: ten single candidates over a sweep of ten",
        seconds,
        "at least",
        2.0,
        f"(ours; one pass was asked for) steering {tokens} tokens, beyond the unsteered decode",
    )


def batch_against_one(bench: Bench, tokens: int) -> Result:
    """Row 5: throughput of 32 streams."""
    rung = rare(bench, 0.05)
    alone = _decoding(bench, bench.problems[:1], rung, tokens)
    together = _decoding(bench, bench.problems, rung, tokens)
    return compare_pairs(
        f"{bench.name}: tokens/s of 32 streams over one",
        lambda: (32 * timed(alone), timed(together)),
        "at least",
        8.0,
        f"{tokens} tokens of each stream, stepwise, without reading the prompts",
    )


def self_gate_against_base(bench: Bench, tokens: int) -> Result:
    """Row 6."""
    problem, models = bench.problems[0], bench.models
    rung = SelfGated(_probe_at(bench, 0.05, tokens), bench.vectors)
    trace = decode(models, [problem], rung, settings(tokens))[0]
    return compare(
        f"{bench.name}: self-gated hybrid over plain base decode",
        lambda: decode(models, [problem], rung, settings(tokens)),
        lambda: plain_greedy(models.base, problem, tokens),
        "at most",
        1.1,
        f"{tokens} tokens, {trace.decisions / len(trace.tokens):.1%} of them steered, and the base "
        "alone",
        repeats=5,
    )


def _probe_at(bench: Bench, rate: float, tokens: int) -> SelfGate:
    """The bench's probe with a threshold that it passes at about `rate` of an answer's tokens."""
    base, probe = bench.models.base, bench.probe()
    answer = plain_greedy(base, bench.problems[0], tokens)
    ids = torch.tensor([base.prompt_ids(bench.problems[0].question) + answer])
    captured = residuals(base.model, probe.layers, input_ids=ids)
    features = torch.cat([captured[layer][0, -tokens:] for layer in probe.layers], dim=1)
    return replace(probe, threshold=float(probe.read(features)[:, 0].quantile(1 - rate)))


def near_ties(bench: Bench, tokens: int) -> Result:
    """In bfloat16 a block sums in another order than a step, which may decide near-ties."""
    models = bench.models
    for model in (models.base, models.thinking):
        model.model.to(torch.bfloat16)
    step, block = (
        decode(models, bench.problems, Takeover(), settings(tokens, length)) for length in (1, 8)
    )
    for model in (models.base, models.thinking):
        model.model.to(torch.float32)
    compared = differing = 0
    for stepwise, drafted in zip(step, block, strict=True):
        pairs = list(zip(stepwise.ids, drafted.ids, strict=False))
        same = next((n for n, (a, b) in enumerate(pairs) if a != b), len(pairs))
        compared += min(same + 1, len(pairs))
        differing += same < len(pairs)
    rate = round(differing / compared, 5)
    return Result(
        f"{bench.name}: bfloat16 tokens at which block and stepwise part ways",
        rate,
        0.01,
        rate <= 0.01,
        f"at most 0.01 (ours); {differing} of {compared} tokens, in {len(step)} answers",
    )
