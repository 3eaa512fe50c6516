"""Answers in OpenAI's form, whole or in chunks, every token explained."""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from howwhen.present.detokenize import IncrementalDetokenizer
from howwhen.records import Finish, HybridToken, titles_of
from howwhen.serve.requests import Service
from howwhen.serve.schemas import Body, ChatRequest


@dataclass
class Reply:
    """One answer in OpenAI's form, whole or in chunks."""

    service: Service
    body: Body
    rung: str
    prompt_tokens: int
    id: str = field(default_factory=lambda: f"howwhen-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    tokens: int = 0

    def __post_init__(self) -> None:
        self._text = IncrementalDetokenizer(
            self.service.tokenizer, self.service.engine.models.end_ids
        )

    @property
    def is_chat(self) -> bool:
        """Whether messages are exchanged."""
        return isinstance(self.body, ChatRequest)

    def explain(self, tokens: Sequence[HybridToken]) -> tuple[str, list[dict[str, Any]]]:
        """The text that tokens add, and who wanted what."""
        self.tokens += len(tokens)
        texts = [self._text.add(token.id) for token in tokens]
        told = zip(tokens, texts, strict=True) if self.body.howwhen.details else ()
        return "".join(texts), [self._details(token, text) for token, text in told]

    def _details(self, token: HybridToken, text: str) -> dict[str, Any]:
        titles = titles_of(self.rung, self.service.titles)
        return {
            "text": text,
            "id": token.id,
            "base_id": token.base_id,
            "is_decision": token.is_decision,
            "base": self._alone(token.base_id),
            "thinking": self._alone(token.thinking_id),
            "category": token.category,
            "title": "" if token.category is None else titles[token.category],
            "strength": token.coefficient,
            "window": token.window,
            "base_log_prob": token.base_log_prob,
            "thinking_log_prob": token.thinking_log_prob,
            "candidates": [
                {**one._asdict(), "text": self._alone(one.id)} for one in token.candidates
            ],
        }

    def _alone(self, token: int | None) -> str | None:
        return None if token is None else str(self.service.tokenizer.decode([token]))

    def chunk(
        self, text: str, details: Sequence[Mapping[str, Any]], finish: Finish | None = None
    ) -> dict[str, Any]:
        """A piece of a streamed answer."""
        delta = {"delta": {"content": text}} if self.is_chat else {"text": text}
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        choice = {"index": 0, **delta, "finish_reason": finish and finish.value, "logprobs": None}
        told = {"howwhen": {"tokens": details}} if details else {}
        return {**self._head(kind), "choices": [choice], **told}

    def opening(self) -> dict[str, Any]:
        """The first chunk: the request is taken."""
        chunk = self.chunk("", [])
        if self.is_chat:
            chunk["choices"][0]["delta"]["role"] = "assistant"
        return chunk

    def whole(
        self, text: str, details: Sequence[Mapping[str, Any]], finish: Finish
    ) -> dict[str, Any]:
        """An answer that is not streamed."""
        said = (
            {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        )
        kind = "chat.completion" if self.is_chat else "text_completion"
        choice = {"index": 0, **said, "finish_reason": finish.value, "logprobs": None}
        told = {"howwhen": {"tokens": details}} if details else {}
        return {**self._head(kind), "choices": [choice], "usage": self.usage(), **told}

    def usage(self) -> dict[str, int]:
        """What was read and written, in tokens."""
        total = self.prompt_tokens + self.tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": total,
        }

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk, where `include_usage` asks for it."""
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return {**self._head(kind), "choices": [], "usage": self.usage()}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.body.model}
