"""Rows 1 to 6 of the speed table of DESIGN.md: the hybrid decoder against its floor and others."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from benchmarks.pairs import Bench, smol_shape
from benchmarks.timing import Result, Run, compare, compare_pairs, timed
from howwhen.collect.rollouts import collect_rollouts
from howwhen.hybrid.choice import Rung, SelfGated, Steer, Takeover
from howwhen.hybrid.controls import RandomPositions
from howwhen.hybrid.decoder import decode
from howwhen.hybrid.guesses import Phrases
from howwhen.hybrid.prompt_cache import PromptCache
from howwhen.hybrid.sampling import uniform_numbers
from howwhen.hybrid.streams import open_streams
from howwhen.hybrid.strength import LEARNED, sweep
from howwhen.lm.alignment import ModelPair
from howwhen.lm.models import LanguageModel
from howwhen.lm.residual import residuals
from howwhen.probes import SelfGate
from howwhen.records import HybridTrace, Problem
from howwhen.settings import CollectSettings, HybridSettings
from howwhen.zoo.pairs import DrawProblems, find_pair
from howwhen.zoo.smol.problems import smol_problems
from howwhen.zoo.tally import tally_problems
from tests.oracles.naive import NaiveHybrid


def results(bench: Bench, is_small: bool) -> Iterator[Result]:
    """Every ratio on one pair; `is_small` allows more tokens."""
    tokens = 256 if is_small else 48
    yield from stepwise_against_floor(bench, tokens)
    yield against_thinking(bench, 0.05, tokens)
    if bench.name == "tally":
        yield against_thinking_on_its_own_answers("tally-rl", tally_problems, 400, 24, 160)
    yield against_reference(bench, tokens if is_small else 4)
    yield from block_against_stepwise(bench, tokens)
    yield sweep_against_single_passes(bench, 64 if is_small else 12)
    yield batch_against_one(bench, 96 if is_small else 16)
    for block in (1, 16):
        yield self_gate_against_base(bench, tokens, block)
    yield near_ties(bench, 96 if is_small else 16)


@torch.no_grad()
def plain_greedy(model: LanguageModel, problem: Problem, tokens: int) -> list[int]:
    """The floor: one model, the cache that the hybrid uses, argmax, and nothing else."""
    prompt = model.prompt_ids(problem.question)
    streams = open_streams(model, [prompt])
    ids, answer = torch.tensor([prompt[-1:]]), []
    with streams.capturing():
        for _ in range(tokens):
            streams.extend(ids)
            ids = streams.logits[:, -1].argmax(1, keepdim=True)
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
    prompts = [model.prompt_ids(problem.question) for model in both]
    streams = [open_streams(model, [ids]) for model, ids in zip(both, prompts, strict=True)]
    ids = [torch.tensor([prompt[-1:]]) for prompt in prompts]
    with streams[0].capturing(), streams[1].capturing():
        for _ in range(tokens):
            for n, own in enumerate(streams):
                own.extend(ids[n])
                ids[n] = own.logits[:, -1].argmax(1, keepdim=True)


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
            1.08,
            f"{tokens} tokens, 5 % of them steered, and {words}",
            repeats=7,
        )


def against_thinking(bench: Bench, rate: float, tokens: int, target: float = 0.9) -> Result:
    """The hybrid against the thinking model alone, writing as many tokens."""
    problem, models, rung = bench.problems[0], bench.models, rare(bench, rate)
    seed = _typical_seed(rung, problem, tokens)
    step, block = (
        decode(models, [problem], rung, settings(tokens, length), seed)[0] for length in (1, 16)
    )
    result = compare(
        f"{bench.name}: hybrid tokens/s over the thinking model's",
        lambda: plain_greedy(models.thinking, problem, tokens),
        lambda: decode(models, [problem], rung, settings(tokens, 16), seed),
        "at least",
        target,
        f"{_same(step, block)}, {tokens} of them, {step.decisions / len(step.tokens):.1%} "
        "steered, and the thinking model alone",
        repeats=7,
    )
    return replace(result, ok=result.ok and step.ids == block.ids)


def _same(step: HybridTrace, block: HybridTrace) -> str:
    return f"tokens {'identical' if step.ids == block.ids else 'DIFFERENT'}"


def half_results() -> Iterator[Result]:
    """Rows of the 135M shape in bfloat16, where the processor multiplies in it."""
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        bench = smol_shape(torch.bfloat16)
        yield against_thinking(bench, 0.05, 48, 1.0)
        yield batch_against_one(bench, 16)


def smol_results() -> Iterator[Result]:
    """The row on smol's own answers; its weights are made first."""
    yield against_thinking_on_its_own_answers("smol", smol_problems, 128, 4, 400)


def against_thinking_on_its_own_answers(
    name: str, draw: DrawProblems, rollouts: int, answers: int, tokens: int
) -> Result:
    """The same on answers that end, with phrases of the thinking model's other answers."""
    pair = find_pair(name)
    models = pair.models()
    collected = collect_rollouts(
        pair.thinking, draw(rollouts, 7), CollectSettings(max_new_tokens=tokens)
    )
    phrases = Phrases(rollout.ids for rollout in collected)
    problems, rung, how = draw(answers, 1), Takeover(), settings(tokens, 16)
    step = [decode(models, [one], rung, settings(tokens, 1))[0] for one in problems]
    lengths = [len(trace.tokens) for trace in step]

    def hybrid() -> list[HybridTrace]:
        return [decode(models, [one], rung, how, phrases=phrases)[0] for one in problems]

    is_same = [trace.ids for trace in hybrid()] == [trace.ids for trace in step]
    decisions = sum(trace.decisions for trace in step) / sum(lengths)
    result = compare(
        f"{name.removesuffix('-rl')}: hybrid tokens/s over the thinking model's, its own answers",
        lambda: [
            plain_greedy(pair.thinking, one, length)
            for one, length in zip(problems, lengths, strict=True)
        ],
        hybrid,
        "at least",
        1.0,
        f"tokens {'identical' if is_same else 'DIFFERENT'}, {sum(lengths)} of {len(step)} answers, "
        f"{decisions:.1%} disagreements, phrases of {len(collected)} other answers",
        repeats=5 if name == "tally-rl" else 3,
    )
    return replace(result, ok=result.ok and is_same)


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
    """Row 3, at random positions and, with trained models, at the disagreements."""
    for rate in (0.0, 0.1, 0.2, 0.5):
        target = 1.3 if rate == 0.1 else 0.98
        words = f"{rate:.0%} random positions"
        yield _block_against_stepwise(bench, tokens, words, rare(bench, rate), target)
    if bench.name == "tally":
        yield _block_against_stepwise(bench, tokens, "its own disagreements", Takeover(), 0.98)


def _block_against_stepwise(
    bench: Bench, tokens: int, words: str, rung: Rung, target: float
) -> Result:
    problem, models = bench.problems[0], bench.models
    seed = _typical_seed(rung, problem, tokens)
    step, block = (
        decode(models, [problem], rung, settings(tokens, length), seed)[0] for length in (1, 16)
    )
    result = compare(
        f"{bench.name}: stepwise over block, {words}",
        lambda: decode(models, [problem], rung, settings(tokens, 1), seed),
        lambda: decode(models, [problem], rung, settings(tokens, 16), seed),
        "at least",
        target,
        f"{_same(step, block)}, {step.decisions / len(step.tokens):.1%} disagreements, stepwise "
        "and in drafts of up to 16",
        repeats=7,
    )
    return replace(result, ok=result.ok and step.ids == block.ids)


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
    """Row 5: throughput of 64 streams."""
    rung = rare(bench, 0.05)
    alone = _decoding(bench, bench.problems[:1], rung, tokens)
    together = _decoding(bench, bench.problems, rung, tokens)
    return compare_pairs(
        f"{bench.name}: tokens/s of 64 streams over one",
        lambda: (64 * timed(alone), timed(together)),
        "at least",
        14.0 if bench.name == "tally" else 20.0,
        f"{tokens} tokens of each stream, stepwise, without reading the prompts",
    )


def self_gate_against_base(bench: Bench, tokens: int, block: int) -> Result:
    """Row 6, token by token and as it runs by default."""
    problem, models = bench.problems[0], bench.models
    rung, how = SelfGated(_probe_at(bench, 0.05, tokens), bench.vectors), settings(tokens, block)
    step = decode(models, [problem], rung, settings(tokens))[0]
    is_same = decode(models, [problem], rung, how)[0].ids == step.ids
    result = compare(
        f"{bench.name}: self-gated hybrid over plain base decode"
        + ("" if block == 1 else ", guesses allowed"),
        lambda: decode(models, [problem], rung, how),
        lambda: plain_greedy(models.base, problem, tokens),
        "at most",
        1.05 if bench.name == "tally" else 1.03,
        f"tokens {'identical' if is_same else 'DIFFERENT'}, {tokens} of them, "
        f"{step.decisions / len(step.tokens):.1%} steered, and the base alone, token by token",
        repeats=5,
    )
    return replace(result, ok=result.ok and is_same)


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
