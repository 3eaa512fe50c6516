"""Batched generation with one model, and a check that prompts leave room for their answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)

from howwhen.errors import InputError, LengthError
from howwhen.lm.models import LanguageModel
from howwhen.lm.noise import gumbel_noise
from howwhen.lm.padding import pad
from howwhen.lm.residual import input_device


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled."""

    max_new_tokens: int
    temperature: float = 0.0
    """0 is greedy."""
    seed: int = 0
    """Seed of the samples. The global random state is left as it was."""


class _CommonNoise(LogitsProcessor):  # type: ignore[misc]
    """Makes the likeliest token a sampled one, with noise that depends on seed, name and place."""

    def __init__(self, sampling: Sampling, names: Sequence[str], prompt: int) -> None:
        self.sampling, self.names, self.prompt = sampling, list(names), prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        places = [input_ids.shape[1] - self.prompt] * len(self.names)
        size, device = scores.shape[1], scores.device
        noise = gumbel_noise(self.sampling.seed, self.names, places, size, device)
        return scores.float() / self.sampling.temperature + noise


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    end_ids: frozenset[int],
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    names: Sequence[str] | None = None,
) -> list[tuple[int, ...]]:
    """Answer a batch of prompts with a key-value cache.

    Args:
        model: a causal language model.
        end_ids: tokens that end an answer.
        prompts: token ids.
        sampling: temperature, length and seed. Equal arguments give equal answers.
        names: of the prompts. With them, samples are a function of seed, name and place, on every
            device and in every batch; without, of torch's random numbers.

    Returns:
        Token ids of each answer, up to and including its end token.
    """
    device = input_device(model)
    batch = pad(prompts, left=True, device=device)
    # Set explicitly, since the model's own generation config would fill the gaps.
    sampled = {"temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    is_drawn = sampling.temperature > 0 and names is None
    processors = LogitsProcessorList()
    if sampling.temperature > 0 and names is not None:
        processors.append(_CommonNoise(sampling, names, batch.ids.shape[1]))
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=is_drawn,
        repetition_penalty=1.0,
        eos_token_id=sorted(end_ids),
        pad_token_id=min(end_ids),
        **(sampled if is_drawn else {}),
    )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(sampling.seed)
        output = model.generate(
            batch.ids,
            attention_mask=batch.mask,
            generation_config=config,
            logits_processor=processors,
        )
    return [_to_end(row, end_ids) for row in output[:, batch.ids.shape[1] :].tolist()]


def check_lengths(
    model: LanguageModel, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> None:
    """Refuse prompts that leave no room for an answer.

    Raises:
        InputError: a prompt is empty.
        LengthError: a prompt and its answer exceed the model's context.
    """
    longest = max(len(prompt) for prompt in prompts)
    if min(len(prompt) for prompt in prompts) == 0:
        raise InputError(
            f"a problem gives {model.name} an empty prompt; expected at least one token"
        )
    if model.context is not None and longest + max_new_tokens > model.context:
        raise LengthError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the "
            f"{model.context} tokens that {model.name} can attend to; lower max_new_tokens to at "
            f"most {model.context - longest} or leave the problem out"
        )


def _to_end(ids: list[int], end_ids: frozenset[int]) -> tuple[int, ...]:
    ends = (index for index, token in enumerate(ids) if token in end_ids)
    return tuple(ids[: next(ends, len(ids)) + 1])
