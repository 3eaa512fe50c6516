"""How models are asked, and how they mark what they think: one place for every pair."""

from collections.abc import Sequence

CHAT = "chat"
"""The prompt that uses the tokenizer's chat template; published thinking models bring their own."""
PLAIN = "Question: {question}\nAnswer:"
"""The minimal prompt for a base model."""
STEP_BY_STEP = f"{PLAIN} Let's think step by step."
"""The same, asking for reasoning (Kojima et al. 2022)."""
LETTERS = "ABCDEFGHIJ"
Markers = tuple[str, str]
"""What opens and what closes the thinking part of an answer."""
THINK: Markers = ("<think>", "</think>")
"""The markers of most published thinking models."""


def with_options(question: str, options: Sequence[str]) -> str:
    """A question with its options under letters; the gold answer is a letter."""
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False)]
    return "\n".join([question, *lines, "Answer with the letter of the right option."])
