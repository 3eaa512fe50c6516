"""What a model reads of a rollout: the tokens as they were written, or its own of the same text."""

from collections.abc import Sequence

from howwhen.collect.sentences import text_tokens
from howwhen.discover.activations import ReaderInput
from howwhen.lm.models import LanguageModel
from howwhen.records import Rollout


def own_tokens(
    _reader: LanguageModel, rollout: Rollout, prompt: Sequence[int], is_trained: Sequence[bool]
) -> ReaderInput:
    """The answer's own tokens, for the model that wrote it."""
    spans = [(span.start_token, span.end_token) for span in rollout.spans]
    read = rollout.ids[: spans[-1][1]] if spans else ()
    return ReaderInput(prompt, read, spans, is_trained)


def retokenized(
    reader: LanguageModel, rollout: Rollout, prompt: Sequence[int], is_trained: Sequence[bool]
) -> ReaderInput:
    """The reader's own tokens of the answer's text, with the same sentences."""
    ids, ends = text_tokens(reader.tokenizer, _thinking(rollout))
    return ReaderInput(prompt, ids, _token_ranges(rollout, ends), is_trained)


def _thinking(rollout: Rollout) -> str:
    """The text up to the end of the last sentence: nothing after it is looked at."""
    return rollout.text[: rollout.spans[-1].end_char] if rollout.spans else ""


def _token_ranges(rollout: Rollout, ends: Sequence[int]) -> list[tuple[int, int]]:
    """Tokens that end inside each sentence; one that no token ends in has the token across it."""
    ranges, token = [], 0
    for span in rollout.spans:
        while token < len(ends) and ends[token] <= span.start_char:
            token += 1
        first = token
        while token < len(ends) and ends[token] <= span.end_char:
            token += 1
        across = min(first, len(ends) - 1)
        ranges.append((first, token) if token > first else (across, across + 1))
    return ranges
