"""The bodies of requests: fields of OpenAI's API, and the field `howwhen`.

Fields of OpenAI's API that are not supported are refused if they would change the answer, and
ignored otherwise.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from howwhen.errors import InputError

_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0, 0.0),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "n": (1,),
    "presence_penalty": (0, 0.0),
    "response_format": ({"type": "text"},),
    "stop": ([],),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (),
}
"""Unsupported fields. Null and the values listed here have no effect and are accepted."""


def _check_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{error.reason}; expected text that UTF-8 can hold") from error
    return text


Text = Annotated[str, AfterValidator(_check_text)]
"""Text without lone surrogates, which JSON can hold and a tokenizer cannot."""


class Extension(BaseModel):
    """The field `howwhen` of a request."""

    model_config = ConfigDict(extra="forbid")
    rung: str | None = None
    strength: float | None = Field(default=None, ge=-100, le=100)
    details: bool = True
    """Whether the reply has the details of every token."""


class StreamOptions(BaseModel):
    """OpenAI's `stream_options`."""

    include_usage: bool = False


class _Common(BaseModel):
    """What both kinds of request share."""

    model_config = ConfigDict(extra="ignore")
    model: str
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Defaults to 0, greedy decoding."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    """The same seed and question give the same sampled answer. Without a seed, answers vary."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    howwhen: Extension = Extension()

    @model_validator(mode="before")
    @classmethod
    def _check_supported(cls, body: Any) -> Any:
        """Refuse unsupported fields that would change the answer."""
        for name, values in _UNSUPPORTED.items() if isinstance(body, dict) else ():
            given = body.get(name)
            if given is not None and not any(
                type(given) is type(value) and given == value for value in values
            ):
                expected = " or ".join(["null", *map(repr, values)])
                raise ValueError(f"{name} is not supported; expected {expected}")
        return body


class TextPart(BaseModel):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class ChatMessage(BaseModel):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]


class ChatRequest(_Common):
    """Body of `/v1/chat/completions`: one question, since the pair's prompts hold only one."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)

    @property
    def requested_max_tokens(self) -> int | None:
        """Maximum length of the answer, by the new name of the field or the old one."""
        return self.max_completion_tokens or self.max_tokens

    def question(self) -> str:
        """The user's message."""
        if len(self.messages) != 1 or self.messages[0].role != "user":
            roles = ", ".join(message.role for message in self.messages)
            raise InputError(
                f"messages from {roles}; expected a single user message, since each model is "
                "asked with its own prompt, which holds one question"
            )
        content = self.messages[0].content
        return content if isinstance(content, str) else "".join(part.text for part in content)


class TextRequest(_Common):
    """Body of `/v1/completions`: `prompt` is the question, asked in the pair's own prompts."""

    prompt: Text

    def question(self) -> str:
        """The prompt."""
        return self.prompt

    @property
    def requested_max_tokens(self) -> int | None:
        """Maximum length of the answer."""
        return self.max_tokens


Body = ChatRequest | TextRequest


class RefusedError(Exception):
    """A request that is refused."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def error_body(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's format."""
    message = message.encode(errors="backslashreplace").decode()  # it may quote a lone surrogate
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
