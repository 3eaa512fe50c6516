"""Prompts of models, and the tags around their thinking, in one place for all pairs.

Nothing heavy is imported: tokenizers come as arguments.
"""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from howwhen.errors import InputError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT = "chat"
"""The prompt that uses the tokenizer's chat template; published thinking models have one."""
CHAT_OF = f"{CHAT}:"
"""Begins a prompt that uses the chat template with a message of one's own, in which the question
is: `chat:{question} Think step by step.`"""
FIELD = "{question}"
"""What a prompt has in the place of the question; other braces are as they are."""
PLAIN = "Question: {question}\nAnswer:"
"""The minimal prompt for a base model."""
STEP_BY_STEP = f"{PLAIN} Let's think step by step."
"""The minimal prompt, asking for reasoning (Kojima et al. 2022)."""
LETTERS = "ABCDEFGHIJ"
ThinkTags = tuple[str, str]
"""The texts that open and close the thinking part of an answer."""
THINK_TAGS: ThinkTags = ("<think>", "</think>")
"""The tags of most published thinking models."""
TemplateArguments = Mapping[str, Any]
"""What a chat template is called with beside the messages, such as `enable_thinking`."""
OWN_TEMPLATE = "chat_template"
"""The argument that replaces the tokenizer's chat template, or chooses one of several by name."""
_OF_THE_LIBRARY = ("tools", "documents", OWN_TEMPLATE)
"""Arguments that need not be named in a template."""
_RESERVED = (
    "conversation", "messages", "tokenize", "add_generation_prompt", "continue_final_message",
    "return_dict", "return_tensors", "return_assistant_tokens_mask", "padding", "truncation",
    "max_length", "tokenizer_kwargs",
)  # fmt: skip
"""Arguments that howwhen sets itself."""


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


def is_chat(prompt: str) -> bool:
    """Whether a prompt uses the tokenizer's chat template."""
    return prompt == CHAT or prompt.startswith(CHAT_OF)


def ask(prompt: str, question: str) -> str:
    """A prompt's text with the question in it; of a chat, the user's message."""
    if prompt == CHAT:
        return question
    return prompt.removeprefix(CHAT_OF).replace(FIELD, question)


def check_prompt(value: str) -> str:
    """A usable prompt: `chat`, or a text with `{question}`, perhaps after `chat:`.

    Raises:
        InputError: the question would not appear in the prompt.
    """
    if value != CHAT and FIELD not in value:
        raise InputError(
            f"prompt {value!r} never shows the question; expected {FIELD} in it, or {CHAT!r} alone"
        )
    return value


def check_template_arguments(prompt: str, arguments: TemplateArguments) -> None:
    """Refuse template arguments that no chat template would see.

    Raises:
        InputError: the prompt is no chat template, or howwhen sets an argument itself.
    """
    if arguments and not is_chat(prompt):
        raise InputError(
            f"template arguments {dict(arguments)} with the prompt {prompt!r}; expected them with "
            f"the prompt {CHAT!r}, as only a chat template takes arguments"
        )
    if reserved := sorted(arguments.keys() & set(_RESERVED)):
        raise InputError(
            f"template argument {reserved[0]!r} is set by howwhen itself; leave it away"
        )


def prompt_text(
    tokenizer: "PreTrainedTokenizerBase",
    question: str,
    prompt: str = CHAT,
    arguments: TemplateArguments | None = None,
) -> str:
    """The text that asks a question, without a token that the tokenizer would put before it.

    Raises:
        ModelError: the prompt is `chat` and the tokenizer has no chat template, or the template
            fails or never uses one of the arguments.
    """
    arguments = arguments or {}
    if not is_chat(prompt):
        return ask(prompt, question)
    if tokenizer.chat_template is None and OWN_TEMPLATE not in arguments:
        raise ModelError(
            "it should be prompted in its chat format, but its tokenizer has no chat template; set "
            'another prompt, such as "Question: {question}\\nAnswer:"'
        )
    from jinja2 import TemplateError

    try:
        template = str(tokenizer.get_chat_template(arguments.get(OWN_TEMPLATE)))
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": ask(prompt, question)}],
            tokenize=False,
            add_generation_prompt=True,
            **arguments,
        )
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        given = f" with the arguments {dict(arguments)}" if arguments else ""
        raise ModelError(
            f"its chat template fails{given}: {error}. Give other template arguments, or a prompt "
            "with {question} in it"
        ) from error
    _check_used(template, arguments)
    return str(text)


def _check_used(template: str, arguments: TemplateArguments) -> None:
    words = set(re.findall(r"[A-Za-z_]\w*", template))
    for name in arguments:
        if name not in words and name not in _OF_THE_LIBRARY:
            near = get_close_matches(name, words, n=1)
            raise ModelError(
                f"the chat template never uses the argument {name!r}"
                f"{f'; did you mean {near[0]!r}?' if near else ''}. Leave it away, or choose "
                "another template with the argument chat_template"
            )


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Token ids of a prompt, with what the tokenizer itself puts before a text, exactly once.

    That is the token that begins a text (BOS), where there is one. A template or prompt may write
    it too.
    """
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    opening = _opening_ids(tokenizer)
    while ids and ids[0] in opening:
        del ids[0]
    return [*opening, *ids]


def _opening_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    plain = list(tokenizer("1", add_special_tokens=False)["input_ids"])
    framed = list(tokenizer("1")["input_ids"])
    starts = range(len(framed) - len(plain) + 1)
    return next((framed[:i] for i in starts if framed[i : i + len(plain)] == plain), [])
