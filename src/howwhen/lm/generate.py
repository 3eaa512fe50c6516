"""Batched generation with one model, and a check that prompts leave room for their answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from howwhen.errors import InputError, LengthError, ModelError
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
    top_k: int = 0
    """Only so many of the likeliest tokens are drawn; 0 for all."""
    top_p: float = 1.0
    """Only the likeliest tokens with this total probability are drawn."""
    min_p: float = 0.0
    """Only tokens at least so likely, relative to the likeliest, are drawn."""
    repetition_penalty: float = 1.0
    """Logits of tokens that prompt or answer hold already are divided by it, or multiplied where
    they are negative."""


_OTHER_SAMPLERS: dict[str, Any] = {
    "bad_words_ids": None, "begin_suppress_tokens": None, "constraints": None,
    "encoder_no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1, "epsilon_cutoff": 0,
    "eta_cutoff": 0, "exponential_decay_length_penalty": None, "force_words_ids": None,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "guidance_scale": 1, "min_length": 0,
    "min_new_tokens": 0, "no_repeat_ngram_size": 0, "num_beams": 1, "penalty_alpha": 0,
    "sequence_bias": None, "stop_strings": None, "suppress_tokens": None, "top_h": None,
    "typical_p": 1, "watermarking_config": None,
}  # fmt: skip
"""What in a generation config would change what is written and is not taken over, with the value
that changes nothing. None, False, 0 and what is empty change nothing either."""


def own_sampling(model: LanguageModel, max_new_tokens: int, seed: int = 0) -> Sampling:
    """How a model's own generation config samples; greedy where it does not.

    Raises:
        ModelError: it samples in a way that howwhen does not know.
    """
    config = model.model.generation_config
    unknown = [
        name
        for name, idle in _OTHER_SAMPLERS.items()
        if (value := getattr(config, name, None)) and value != idle
    ]
    if unknown:
        raise ModelError(
            f"the generation config of {model.name} sets {', '.join(unknown)}, which howwhen does "
            "not know; give --collect.temperature a number"
        )

    def setting(name: str, default: Any) -> Any:
        value = getattr(config, name, None)
        return default if value is None else value

    penalty = float(setting("repetition_penalty", 1.0))
    if not getattr(config, "do_sample", None):  # a penalty is for greedy decoding too
        return Sampling(max_new_tokens, seed=seed, repetition_penalty=penalty)
    return Sampling(
        max_new_tokens,
        temperature=float(setting("temperature", 1.0)),
        seed=seed,
        top_k=max(0, int(setting("top_k", 50))),  # the library's default
        top_p=float(setting("top_p", 1.0)),
        min_p=float(setting("min_p", 0.0)),
        repetition_penalty=penalty,
    )


def greedy_warning(model: LanguageModel, flag: str) -> str | None:
    """What to say where a model is made to be sampled from and would be decoded greedily.

    Args:
        model: the model.
        flag: what to type to sample.
    """
    config = model.model.generation_config
    if not getattr(config, "do_sample", None):
        return None
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    values = {name: getattr(config, name, None) for name in names}
    shown = ", ".join(f"{name} {value:g}" for name, value in values.items() if value is not None)
    return (
        f"{model.name} is made to be sampled from{f' ({shown})' if shown else ''}, and is decoded "
        f"greedily here, which makes some models repeat themselves; to sample, type {flag}"
    )


class _CommonNoise(LogitsProcessor):  # type: ignore[misc]
    """Makes the likeliest token a sampled one, with noise that depends on seed, name and place."""

    def __init__(self, seed: int, names: Sequence[str], prompt: int) -> None:
        self.seed, self.names, self.prompt = seed, list(names), prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        places = [input_ids.shape[1] - self.prompt] * len(self.names)
        size, device = scores.shape[1], scores.device
        return scores.float() + gumbel_noise(self.seed, self.names, places, size, device)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    end_ids: frozenset[int],
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    names: Sequence[str] | None = None,
    suppressed: Sequence[int] = (),
) -> list[tuple[int, ...]]:
    """Answer a batch of prompts with a key-value cache.

    Args:
        model: a causal language model.
        end_ids: tokens that end an answer.
        prompts: token ids.
        sampling: temperature, length and seed. Equal arguments give equal answers.
        names: of the prompts. With them, samples are a function of seed, name and place, on every
            device and in every batch; without, of torch's random numbers.
        suppressed: ids that are never written.

    Returns:
        Token ids of each answer, up to and including its end token.
    """
    device = input_device(model)
    batch = pad(prompts, left=True, device=device)
    is_drawn = sampling.temperature > 0 and names is None
    # Set explicitly, since the model's own generation config would fill the gaps.
    plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if is_drawn else {}
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=is_drawn,
        repetition_penalty=sampling.repetition_penalty,
        eos_token_id=sorted(end_ids),
        pad_token_id=min(end_ids),
        **plain,
    )
    # A penalty looks at masked padding too: a token that the prompt holds anyway changes nothing.
    firsts = torch.tensor([[prompt[0]] for prompt in prompts], device=device)
    ids = torch.where(batch.mask.bool(), batch.ids, firsts)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(sampling.seed)
        output = model.generate(
            ids,
            attention_mask=batch.mask,
            generation_config=config,
            logits_processor=_processors(sampling, names, ids, suppressed),
        )
    return [_to_end(row, end_ids) for row in output[:, batch.ids.shape[1] :].tolist()]


def _processors(
    sampling: Sampling, names: Sequence[str] | None, prompts: Tensor, suppressed: Sequence[int]
) -> LogitsProcessorList:
    found = LogitsProcessorList()
    if suppressed:
        found.append(SuppressTokensLogitsProcessor(list(suppressed), device=prompts.device))
    if sampling.temperature > 0:
        if sampling.temperature != 1.0:
            found.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            found.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1.0:
            found.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p:
            found.append(MinPLogitsWarper(sampling.min_p))
        if names is not None:
            found.append(_CommonNoise(sampling.seed, names, prompts.shape[1]))
    return found


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
