"""Rollouts: sampled from the thinking model in batches, or made of answers written elsewhere."""

from collections.abc import Sequence

from howwhen.collect.segmenters import find_segmenter
from howwhen.collect.sentences import (
    Segmenter,
    cut_sentences,
    sentence_spans,
    text_tokens,
    thinking_part,
    token_ends,
)
from howwhen.collect.traces import Trace
from howwhen.errors import InputError, LengthError
from howwhen.lm.generate import Sampling, check_lengths, generate, own_sampling
from howwhen.lm.models import LanguageModel
from howwhen.records import Finish, Problem, Rollout
from howwhen.settings import CollectSettings


def collect_rollouts(
    thinking: LanguageModel, problems: Sequence[Problem], settings: CollectSettings
) -> list[Rollout]:
    """The thinking model's answers to one batch of problems.

    Random numbers depend on the seed, the problem and the place in the answer alone.
    """
    prompts = [thinking.prompt_ids(problem.question) for problem in problems]
    check_lengths(thinking, prompts, settings.max_new_tokens)
    sampling = rollout_sampling(thinking, settings)
    names = [problem.id for problem in problems]
    suppressed = thinking.padding_ids.tolist()
    answers = generate(thinking.model, thinking.end_ids, prompts, sampling, names, suppressed)
    segmenter = find_segmenter(settings)
    return [
        make_rollout(thinking, problem, ids, segmenter)
        for problem, ids in zip(problems, answers, strict=True)
    ]


def rollout_sampling(thinking: LanguageModel, settings: CollectSettings) -> Sampling:
    """How the thinking model's answers are sampled.

    Raises:
        ModelError: it should be sampled as its own generation config says, in an unknown way.
    """
    if settings.temperature == "model":
        return own_sampling(thinking, settings.max_new_tokens, settings.seed)
    return Sampling(
        settings.max_new_tokens, settings.temperature, settings.seed, top_p=settings.top_p
    )


def make_rollout(
    thinking: LanguageModel,
    problem: Problem,
    ids: Sequence[int],
    segmenter: Segmenter = cut_sentences,
) -> Rollout:
    """A rollout of token ids: with its text, finish reason and sentences."""
    text, ends = token_ends(thinking.tokenizer, ids)
    stopped = bool(ids) and ids[-1] in thinking.end_ids
    ends = ends[:-1] if stopped else ends  # the end token belongs to no sentence
    answer = text[: ends[-1]] if ends else ""
    spans = sentence_spans(
        answer, ends, thinking.think_tags, segmenter, thinking.starts_in_thinking
    )
    finish = Finish.STOP if stopped else Finish.LENGTH
    return Rollout(problem.id, tuple(ids), text, finish, spans)


def trace_rollout(
    thinking: LanguageModel, trace: Trace, segmenter: Segmenter = cut_sentences
) -> Rollout:
    """A rollout of an answer written elsewhere, tokenized for the thinking model.

    If the trace has no finish reason, it counts as cut off when its thinking is opened, by the
    answer or by the prompt, and never closed.

    Raises:
        InputError: the tokenizer makes no token of the answer.
        LengthError: prompt and answer exceed the model's context.
    """
    ids, ends = text_tokens(thinking.tokenizer, trace.text)
    _check_trace(thinking, trace, len(ids))
    is_begun = thinking.starts_in_thinking
    spans = sentence_spans(trace.text, ends, thinking.think_tags, segmenter, is_begun)
    start, end = thinking_part(trace.text, thinking.think_tags, is_begun)
    is_open = (start > 0 or is_begun) and end == len(trace.text)
    finish = trace.finish or (Finish.LENGTH if is_open else Finish.STOP)
    return Rollout(trace.problem.id, tuple(ids), trace.text, finish, spans)


def _check_trace(thinking: LanguageModel, trace: Trace, length: int) -> None:
    prompt = len(thinking.prompt_ids(trace.problem.question))
    if length == 0:
        raise InputError(
            f"{trace.place}: the tokenizer of {thinking.name} makes no token of the text "
            f"{trace.text[:40]!r}; leave the row out"
        )
    if thinking.context is not None and prompt + length > thinking.context:
        raise LengthError(
            f"{trace.place}: a prompt of {prompt} tokens and an answer of {length} exceed the "
            f"{thinking.context} tokens that {thinking.name} can attend to; leave the row out, "
            "or take a model of longer context"
        )
