"""Token ids as the text that each of them adds."""

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class IncrementalDetokenizer:
    """Turns the tokens of one answer into text, one token at a time.

    A character that takes several tokens is returned with the last of them.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", silent: Collection[int] = ()) -> None:
        """Start an answer.

        Args:
            tokenizer: of the model that wrote the tokens.
            silent: tokens that have no text, such as end tokens.
        """
        from tokenizers.decoders import DecodeStream

        self._tokenizer, self._silent = tokenizer, silent
        self._stream = DecodeStream(skip_special_tokens=False)

    def add(self, token: int) -> str:
        """The text that a token adds; empty for the silent ones."""
        if token in self._silent:
            return ""
        return self._stream.step(self._tokenizer.backend_tokenizer, token) or ""
