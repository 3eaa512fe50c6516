"""What a request may say: OpenAI's fields, and one of ours.

Fields of OpenAI's API that would change the answer and are not served are refused, others ignored.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from howwhen.errors import InputError

_UNSERVED: dict[str, tuple[Any, ...]] = {
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
"""What is not served, and the values, beside null, by which nothing is asked for."""


def _check_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{error.reason}; expected text that UTF-8 can hold") from error
    return text


Text = Annotated[str, AfterValidator(_check_text)]
"""JSON can hold half a character (a lone surrogate), a tokenizer cannot."""


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
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Greedy where absent."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    """Sampled answers of one seed and question are the same; without one each is drawn anew."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    howwhen: Extension = Extension()

    @model_validator(mode="before")
    @classmethod
    def _is_served(cls, told: Any) -> Any:
        """Refuse what would change the answer."""
        for name, values in _UNSERVED.items() if isinstance(told, dict) else ():
            found = told.get(name)
            if found is not None and not any(
                type(found) is type(value) and found == value for value in values
            ):
                expected = " or ".join(["null", *map(repr, values)])
                raise ValueError(f"{name} is not served; expected {expected}")
        return told


class TextPart(BaseModel):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class ChatMessage(BaseModel):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]


class ChatRequest(_Common):
    """Body of `/v1/chat/completions`: one question, as the pair's prompts have room for no more."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)

    @property
    def max_tokens_asked(self) -> int | None:
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

    prompt: Text

    def question(self) -> str:
        """The prompt."""
        return self.prompt

    @property
    def max_tokens_asked(self) -> int | None:
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
    message = message.encode(errors="backslashreplace").decode()  # may repeat half a character
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
