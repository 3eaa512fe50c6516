"""Answers of smol's models while they are trained, and the outcome that is rewarded."""

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
    """Answer prompts in batches, each answer up to its end token; greedy at temperature 0."""
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
    different = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    streams = open_streams(model, different)  # a prompt that is asked several times is read once
    place = {prompt: row for row, prompt in enumerate(different)}
    streams.select(torch.tensor([place[tuple(prompt)] for prompt in prompts]))
    answers: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    token = torch.tensor([prompt[-1] for prompt in prompts])
    while going:
        streams.extend(token[:, None])
        logits = streams.logits[:, -1]
        if temperature:
            chances = (logits / temperature).softmax(-1)
            token = torch.multinomial(chances, 1, generator=generator)[:, 0]
        else:
            token = logits.argmax(-1)
        for answer, one in zip(going, token.tolist(), strict=True):
            answers[answer].append(one)
        kept = [
            row
            for row, answer in enumerate(going)
            if answers[answer][-1] not in model.end_ids and len(answers[answer]) < MAX_ANSWER_TOKENS
        ]
        if kept and len(kept) < len(going):
            streams.select(torch.tensor(kept))
            token = token[kept]
        going = [going[row] for row in kept]
    return [tuple(answer) for answer in answers]


def is_right(model: LanguageModel, ids: Sequence[int], gold: int) -> bool:
    """The outcome reward: the answer ended by itself and concludes with the right number."""
    if not ids or ids[-1] not in model.end_ids:
        return False
    concluded = _CONCLUSION.search(model.tokenizer.decode(ids, skip_special_tokens=True))
    return concluded is not None and int(concluded[1]) == gold
