"""Answers in OpenAI's format, complete or streamed, with details of every token."""

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
    """One answer in OpenAI's format, complete or streamed."""

    service: Service
    body: Body
    rung: str
    prompt_tokens: int
    id: str = field(default_factory=lambda: f"howwhen-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    tokens: int = 0

    def __post_init__(self) -> None:
        self._detokenizer = IncrementalDetokenizer(
            self.service.tokenizer, self.service.engine.models.end_ids
        )

    @property
    def is_chat(self) -> bool:
        """Whether it answers a chat request."""
        return isinstance(self.body, ChatRequest)

    def explain(self, tokens: Sequence[HybridToken]) -> tuple[str, list[dict[str, Any]]]:
        """The text that tokens add, and which model wanted what at each of them."""
        self.tokens += len(tokens)
        texts = [self._detokenizer.add(token.id) for token in tokens]
        pairs = zip(tokens, texts, strict=True) if self.body.howwhen.details else ()
        return "".join(texts), [self._details(token, text) for token, text in pairs]

    def _details(self, token: HybridToken, text: str) -> dict[str, Any]:
        titles = titles_of(self.rung, self.service.titles)
        return {
            "text": text,
            "id": token.id,
            "base_id": token.base_id,
            "is_decision": token.is_decision,
            "base": self._word(token.base_id),
            "thinking": self._word(token.thinking_id),
            "category": token.category,
            "title": "" if token.category is None else titles[token.category],
            "strength": token.coefficient,
            "window": token.window,
            "base_log_prob": token.base_log_prob,
            "thinking_log_prob": token.thinking_log_prob,
            "candidates": [
                {**candidate._asdict(), "text": self._word(candidate.id)}
                for candidate in token.candidates
            ],
        }

    def _word(self, token: int | None) -> str | None:
        return None if token is None else str(self.service.tokenizer.decode([token]))

    def chunk(
        self, text: str, details: Sequence[Mapping[str, Any]], finish: Finish | None = None
    ) -> dict[str, Any]:
        """One chunk of a streamed answer."""
        delta = {"delta": {"content": text}} if self.is_chat else {"text": text}
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        choice = {"index": 0, **delta, "finish_reason": finish and finish.value, "logprobs": None}
        extension = {"howwhen": {"tokens": details}} if details else {}
        return {**self._head(kind), "choices": [choice], **extension}

    def opening(self) -> dict[str, Any]:
        """The first chunk, sent when the request is accepted."""
        chunk = self.chunk("", [])
        if self.is_chat:
            chunk["choices"][0]["delta"]["role"] = "assistant"
        return chunk

    def complete(
        self, text: str, details: Sequence[Mapping[str, Any]], finish: Finish
    ) -> dict[str, Any]:
        """An answer that is not streamed."""
        content = (
            {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        )
        kind = "chat.completion" if self.is_chat else "text_completion"
        choice = {"index": 0, **content, "finish_reason": finish.value, "logprobs": None}
        extension = {"howwhen": {"tokens": details}} if details else {}
        return {**self._head(kind), "choices": [choice], "usage": self.usage(), **extension}

    def usage(self) -> dict[str, int]:
        """Tokens of the prompt and of the answer."""
        total = self.prompt_tokens + self.tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": total,
        }

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk, sent if `include_usage` is set."""
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return {**self._head(kind), "choices": [], "usage": self.usage()}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.body.model}
