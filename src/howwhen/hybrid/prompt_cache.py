"""Prompts that were read once, for several rungs."""

from collections.abc import Sequence
from dataclasses import replace

from howwhen.hybrid.streams import Streams, open_streams
from howwhen.lm.models import LanguageModel
from howwhen.settings import Compilation

PROMPT_BYTES = 2**30
"""Most memory spent on keeping prompts."""


class PromptCache:
    """Prompts that a model has read, kept so that another rung need not read them again."""

    def __init__(self, max_bytes: int = PROMPT_BYTES) -> None:
        self._bytes_left = max_bytes
        self._opened: dict[tuple[int, tuple[tuple[int, ...], ...]], Streams] = {}

    def streams(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        layers: tuple[int, ...] = (),
        steer_layer: int | None = None,
        compilation: Compilation | None = None,
    ) -> Streams:
        """As `open_streams`."""
        key = id(model.model), tuple(tuple(prompt) for prompt in prompts)
        opened = self._opened.get(key)
        if opened is None or steer_layer not in (None, opened.steer_layer):
            before = 0 if opened is None else opened.nbytes
            opened = open_streams(model, prompts, layers, steer_layer, compilation).copy()
            if opened.nbytes - before <= self._bytes_left:
                self._bytes_left -= opened.nbytes - before
                self._opened[key] = opened
        own = opened.copy()
        history = None if steer_layer is None else own.history
        return replace(own, layers=layers, steer_layer=steer_layer, history=history)
