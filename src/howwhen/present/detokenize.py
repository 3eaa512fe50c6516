"""Token ids as the text that each of them adds."""

from collections.abc import Collection

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase


class IncrementalDetokenizer:
    """Turns the tokens of one answer into text as they come.

    The text of a character that takes several tokens comes with the last of them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, silent: Collection[int] = ()) -> None:
        self._tokenizer, self._silent = tokenizer, silent
        self._stream = DecodeStream(skip_special_tokens=False)

    def add(self, token: int) -> str:
        """The text that a token adds; none for the silent ones."""
        if token in self._silent:
            return ""
        return self._stream.step(self._tokenizer.backend_tokenizer, token) or ""
