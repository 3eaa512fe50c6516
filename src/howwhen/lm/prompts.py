"""Prompts of models, and the tags around their thinking, in one place for all pairs."""

from collections.abc import Sequence
from typing import Any

from howwhen.errors import InputError

CHAT = "chat"
"""The prompt that uses the tokenizer's chat template; published thinking models have one."""
PLAIN = "Question: {question}\nAnswer:"
"""The minimal prompt for a base model."""
STEP_BY_STEP = f"{PLAIN} Let's think step by step."
"""The minimal prompt, asking for reasoning (Kojima et al. 2022)."""
LETTERS = "ABCDEFGHIJ"
ThinkTags = tuple[str, str]
"""The texts that open and close the thinking part of an answer."""
THINK_TAGS: ThinkTags = ("<think>", "</think>")
"""The tags of most published thinking models."""


def with_options(question: str, options: Sequence[str]) -> str:
    """A question with its options under letters; the gold answer is a letter."""
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False)]
    return "\n".join([question, *lines, "Answer with the letter of the right option."])


def check_think_tags(value: ThinkTags) -> None:
    """Refuse think tags that would be found everywhere.

    Raises:
        InputError: a tag is empty or blank.
    """
    if not all(tag.strip() for tag in value):
        raise InputError(
            f"think tags {value!r} hold an empty text, which is found everywhere; expected "
            f"what opens and what closes the thinking, such as {' '.join(THINK_TAGS)}"
        )


def check_prompt(value: str) -> str:
    """A usable prompt: `chat`, or a format string with exactly the field `{question}`.

    Raises:
        InputError: the question would not appear in the prompt.
    """
    if value == CHAT:
        return value
    try:
        shown: Any = value.format(question="\0")
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"prompt {value!r} is no format string with {{question}}: {error}"
        ) from error
    if "\0" not in shown:
        raise InputError(f"prompt {value!r} never shows the question; expected {{question}} in it")
    return value
