"""What a request may say: OpenAI's fields, and one of ours.

Fields of OpenAI's API that would change the answer and are not served are refused, others ignored.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from howwhen.errors import InputError


class Extension(BaseModel):
    """The field `howwhen` of a request."""

    model_config = ConfigDict(extra="forbid")
    rung: str | None = None
    strength: float | None = Field(default=None, ge=-100, le=100)
    details: bool = True
    """Whether every token is explained."""


class StreamOptions(BaseModel):
    """OpenAI's `stream_options`."""

    include_usage: bool = False


class _Common(BaseModel):
    """What both kinds of requests share."""

    model_config = ConfigDict(extra="ignore")
    model: str
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=-(2**63), lt=2**63)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    stop: None = None
    tools: None = None
    logprobs: Literal[False] | None = None
    howwhen: Extension = Extension()


class TextPart(BaseModel):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]


class ChatRequest(_Common):
    """Body of `/v1/chat/completions`: one question, as the pair's prompts have room for no more."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)

    @property
    def most_tokens(self) -> int | None:
        """Longest answer asked for, by its new name or its old one."""
        return self.max_completion_tokens or self.max_tokens

    def question(self) -> str:
        """The user's message."""
        if len(self.messages) != 1 or self.messages[0].role != "user":
            roles = ", ".join(message.role for message in self.messages)
            raise InputError(
                f"messages of {roles}; expected a single user message, as both models are asked "
                "in their own prompts, which hold one question"
            )
        content = self.messages[0].content
        return content if isinstance(content, str) else "".join(part.text for part in content)


class TextRequest(_Common):
    """Body of `/v1/completions`: `prompt` is the question, asked in the pair's own prompts."""

    prompt: str

    def question(self) -> str:
        """The prompt."""
        return self.prompt

    @property
    def most_tokens(self) -> int | None:
        """Longest answer asked for."""
        return self.max_tokens


Body = ChatRequest | TextRequest


class RefusedError(Exception):
    """A request that is not answered."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def error_body(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
