"""Sampled answers of smol's models during training, and the outcome reward."""

import re
from collections.abc import Sequence

import torch

from howwhen.hybrid.streams import open_streams
from howwhen.lm.models import LanguageModel

MAX_ANSWER_TOKENS = 140
SAMPLES_AT_A_TIME = 192
_CONCLUSION = re.compile(r"The answer is (\d+)\.$")


def sample(
    model: LanguageModel, prompts: Sequence[Sequence[int]], temperature: float, seed: int
) -> list[tuple[int, ...]]:
    """Answer prompts in batches, each up to its end token. Temperature 0 is greedy."""
    generator = torch.Generator().manual_seed(seed)
    answers: list[tuple[int, ...]] = []
    for start in range(0, len(prompts), SAMPLES_AT_A_TIME):
        batch = prompts[start : start + SAMPLES_AT_A_TIME]
        answers += _sample_batch(model, batch, temperature, generator)
    return answers


@torch.no_grad()
def _sample_batch(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    temperature: float,
    generator: torch.Generator,
) -> list[tuple[int, ...]]:
    distinct = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    streams = open_streams(model, distinct)  # a repeated prompt is read once
    row_of = {prompt: row for row, prompt in enumerate(distinct)}
    streams.select([row_of[tuple(prompt)] for prompt in prompts])
    answers: list[list[int]] = [[] for _ in prompts]
    unfinished = list(range(len(prompts)))
    token = torch.tensor([prompt[-1] for prompt in prompts])
    while unfinished:
        streams.extend(token[:, None])
        logits = streams.logits[:, -1]
        if temperature:
            probabilities = (logits / temperature).softmax(-1)
            token = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        else:
            token = logits.argmax(-1)
        for index, token_id in zip(unfinished, token.tolist(), strict=True):
            answers[index].append(token_id)
        kept = [
            row
            for row, index in enumerate(unfinished)
            if answers[index][-1] not in model.end_ids and len(answers[index]) < MAX_ANSWER_TOKENS
        ]
        if kept and len(kept) < len(unfinished):
            streams.select(kept)
            token = token[kept]
        unfinished = [unfinished[row] for row in kept]
    return [tuple(answer) for answer in answers]


def is_right(model: LanguageModel, ids: Sequence[int], gold: int) -> bool:
    """The outcome reward: the answer ends with an end token and concludes with the right number."""
    if not ids or ids[-1] not in model.end_ids:
        return False
    conclusion = _CONCLUSION.search(model.tokenizer.decode(ids, skip_special_tokens=True))
    return conclusion is not None and int(conclusion[1]) == gold
