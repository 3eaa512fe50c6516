"""A language model as judge, behind any endpoint that speaks OpenAI's chat completions.

`JudgeClient` sends messages and returns texts; the caller reads their meaning.
It keeps every reply on disk, tries again where that may help, and counts what it used. Nothing
that fails becomes a reply: after a bounded number of attempts it raises `JudgeError`.
"""

import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast, runtime_checkable
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, JsonValue, ValidationError

from howwhen.errors import HowwhenError, MissingExtraError, SettingsError
from howwhen.judge.cache import Reply, digest, open_cache
from howwhen.progress import Reporter
from howwhen.settings import JudgeSettings

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

Message = Mapping[str, str]
"""One turn of a conversation: `role` and `content`."""


class JudgeError(HowwhenError):
    """A judge that gave no reply; the message says what was tried."""


class Request(NamedTuple):
    """One question to the judge."""

    messages: Sequence[Message]
    repeat: int = 0
    """Number of the draw; each draw of the same messages is asked for and cached separately."""


class Prices(NamedTuple):
    """What an endpoint charges, per million tokens, in any currency."""

    prompt: float
    completion: float


class Usage(NamedTuple):
    """What a client has used since it was made."""

    requests: int
    """Requests sent; every attempt counts."""
    failed: int
    """Requests that brought no reply."""
    hits: int
    """Replies taken from the cache; they sent nothing."""
    damaged: int
    """Cache files that could not be read and were asked for again."""
    cut: int
    """Replies that ended at the token limit."""
    unreported: int
    """Replies whose tokens the endpoint did not count; they are in no sum below."""
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    """At full price, in the currency of the prices; None without prices, or where `unreported` is
    above 0."""


@runtime_checkable
class Judge(Protocol):
    """What replies to questions: a model behind an endpoint, or one on this machine."""

    @property
    def model(self) -> str:
        """What the judge is called."""

    @property
    def usage(self) -> Usage:
        """What it has used so far."""

    def ask_many(self, requests: Sequence[Request]) -> list[str]:
        """The replies in the order of the requests.

        Raises:
            JudgeError: a request that gets no reply.
        """


@dataclass(eq=False)
class JudgeClient:
    """Asks a model behind an OpenAI-compatible endpoint; safe to use from several threads.

    Raises:
        SettingsError: a base URL, key or number that cannot work.
        MissingExtraError: the packages of `howwhen[judge]` are not installed.
        StoreError: a cache folder that cannot be made.
    """

    base_url: str
    """Address below which `/chat/completions` is found, such as `https://api.openai.com/v1`."""
    model: str
    """The endpoint's name of the model."""
    key_variable: str | None = "OPENAI_API_KEY"
    """Environment variable that holds the key; None where the endpoint wants none."""
    sampling: Mapping[str, JsonValue] = field(default_factory=dict)
    """Sent as they are (`temperature`, `max_tokens`, ...); the endpoint decides what is absent."""
    cache: Path | None = None
    """Folder of replies; None keeps none."""
    threads: int = 8
    """Requests under way at once in `ask_many`."""
    timeout_seconds: float = 60.0
    """Longest silence of the endpoint."""
    attempts: int = 6
    """Requests sent at most for one reply."""
    first_wait_seconds: float = 1.0
    """Wait after the first failure; it doubles with each, plus up to this much at random."""
    longest_wait_seconds: float = 60.0
    """Longest wait; an endpoint that asks for a longer one (Retry-After) is given up at once."""
    prices: Prices | None = None
    say: Callable[[str], None] = field(default_factory=lambda: Reporter().say, repr=False)
    """Told about damaged cache files."""

    def __post_init__(self) -> None:
        self._check()
        try:
            import tenacity  # noqa: F401 - so that it is missed here and not at the first failure
            from openai import OpenAI
        except ImportError as error:
            raise MissingExtraError(
                "a judge needs the packages openai and tenacity; type: pip install 'howwhen[judge]'"
            ) from error
        self._openai = OpenAI(
            base_url=self.base_url,
            api_key=self._read_key(),
            timeout=self.timeout_seconds,
            max_retries=0,
        )
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._replies = None if self.cache is None else open_cache(self.cache)

    @property
    def usage(self) -> Usage:
        """What was used so far."""
        with self._lock:
            counts = self._counts.copy()
        cost = None
        if self.prices is not None and not counts["unreported"]:
            prompt, completion = counts["prompt_tokens"], counts["completion_tokens"]
            cost = (self.prices.prompt * prompt + self.prices.completion * completion) / 1e6
        return Usage(**{name: counts[name] for name in Usage._fields[:-1]}, cost=cost)

    def ask(self, messages: Sequence[Message], repeat: int = 0) -> str:
        """The judge's reply to a conversation; empty where the model wrote nothing.

        Args:
            messages: the turns, oldest first.
            repeat: number of the draw, see `Request`.

        Raises:
            JudgeError: no reply after all attempts, or a refusal that no attempt can change.
            StoreError: the reply cannot be kept.
        """
        return self._answer(Request(messages, repeat), threading.Event())

    def ask_many(self, requests: Sequence[Request]) -> list[str]:
        """The judge's replies in the order of the requests; equal requests are sent once.

        The first failure stops the rest; what was replied until then is in the cache.

        Raises:
            JudgeError: as `ask`.
            StoreError: as `ask`.
        """
        digests = [digest(self._body(request)) for request in requests]
        unique = dict(zip(digests, requests, strict=True))
        halt = threading.Event()
        with ThreadPoolExecutor(self.threads) as pool:
            futures = {
                digest: pool.submit(self._answer, request, halt)
                for digest, request in unique.items()
            }
            try:
                done, _ = wait(futures.values(), return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            finally:
                halt.set()
                for future in futures.values():
                    future.cancel()
        return [futures[digest].result() for digest in digests]

    def _answer(self, request: Request, halt: threading.Event) -> str:
        """A reply from the cache, or else from the endpoint."""
        body = self._body(request)
        kept = self._recall(body)
        if kept is not None:
            self._count(hits=1)
            return kept.text
        reply = self._request_with_retries(request, halt)
        self._count(
            cut=reply.finish_reason == "length",
            unreported=reply.prompt_tokens is None or reply.completion_tokens is None,
            prompt_tokens=reply.prompt_tokens or 0,
            completion_tokens=reply.completion_tokens or 0,
        )
        if self._replies is not None:
            self._replies.write(body, reply)
        return reply.text

    def _recall(self, body: dict[str, JsonValue]) -> Reply | None:
        """The cached reply; None if there is none, or a damaged one, which is reported."""
        if self._replies is None:
            return None
        try:
            return self._replies.read(body)
        except (OSError, ValueError) as error:  # pydantic's errors are ValueErrors
            self._count(damaged=1)
            self.say(
                f"the judge's cache file {self._replies.path(body)} is damaged and asked for "
                f"again: {self._shorten(str(error))}"
            )
            return None

    def _request_with_retries(self, request: Request, halt: threading.Event) -> Reply:
        """Ask the endpoint until it replies, fails for good, or has failed too often.

        The wait grows exponentially, and is never shorter than what the endpoint asks for.
        """
        from tenacity import (
            Retrying,
            retry_if_exception,
            sleep_using_event,
            stop_after_attempt,
            wait_exponential,
            wait_random,
        )

        failures: list[_AttemptError] = []
        started = time.monotonic()

        def attempt() -> Reply:
            if failures and halt.is_set():  # nobody wants the reply any more
                raise failures[-1]
            self._count(requests=1)
            try:
                return self._send(request)
            except _AttemptError as error:
                self._count(failed=1)
                failures.append(error)
                raise

        first, longest = self.first_wait_seconds, self.longest_wait_seconds
        backoff = wait_exponential(multiplier=first, max=longest) + wait_random(0, first)
        retrying = Retrying(
            retry=retry_if_exception(self._is_transient),
            stop=stop_after_attempt(self.attempts),
            wait=lambda state: max(failures[-1].asked_seconds, min(backoff(state), longest)),
            sleep=sleep_using_event(halt),
            reraise=True,
        )
        try:
            return retrying(attempt)
        except _AttemptError as error:
            raise JudgeError(
                f"the judge {self.model} at {self.base_url} gave no reply in "
                f"{time.monotonic() - started:.1f} s, {len(failures)} of at most {self.attempts} "
                f"attempts: {_summary(failures)}. {self._advice(error)}"
            ) from error

    def _send(self, request: Request) -> Reply:
        """Send one request.

        Raises:
            _AttemptError: it brought no reply. What caused it is cut off, since it may quote the
                key.
        """
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        try:
            raw = self._openai.chat.completions.with_raw_response.create(
                model=self.model,
                messages=[
                    cast("ChatCompletionMessageParam", dict(one)) for one in request.messages
                ],
                extra_body=dict(self.sampling),
            )
        except APITimeoutError:
            raise _AttemptError(f"nothing for {self.timeout_seconds:g} s", passes=True) from None
        except APIConnectionError as error:
            what = f"no connection ({self._shorten(str(error.__cause__ or error))})"
            raise _AttemptError(what, passes=True) from None
        except APIStatusError as error:
            raise _AttemptError(
                f"status {error.status_code}, {self._shorten(error.response.text)}",
                passes=error.status_code in (408, 429) or error.status_code >= 500,
                asked_seconds=_retry_after_seconds(error.response.headers.get("retry-after", "")),
            ) from None
        content = raw.http_response.content
        try:
            return _read_completion(content)
        except ValidationError:
            start = self._shorten(content.decode("utf-8", "replace"))
            raise _AttemptError(f"no chat completion, {start}", passes=True) from None

    def _is_transient(self, error: BaseException) -> bool:
        return (
            isinstance(error, _AttemptError)
            and error.passes
            and error.asked_seconds <= self.longest_wait_seconds
        )

    def _advice(self, error: "_AttemptError") -> str:
        kept = "" if self.cache is None else f"; replies until then are kept in {self.cache}"
        if not error.passes:
            key = f"the key in {self.key_variable}" if self.key_variable else "whether it wants one"
            return f"Check the address, the name of the model and {key}{kept}"
        if error.asked_seconds > self.longest_wait_seconds:
            return (
                f"It asks to wait {error.asked_seconds:.0f} s, longer than the "
                f"{self.longest_wait_seconds:g} s that are waited here: try again then{kept}"
            )
        return (
            "Check the address, try again later, or set fewer judge_threads or a longer "
            f"judge_timeout_seconds{kept}"
        )

    def _shorten(self, text: str) -> str:
        """One line of what an endpoint said, without the key that it may quote."""
        key = self._openai.api_key
        hidden = text.replace(key, "[key]") if len(key) >= SECRET_CHARACTERS else text
        line = " ".join(hidden.split())
        return f"{line[:SHOWN_CHARACTERS]}..." if len(line) > SHOWN_CHARACTERS else line or "empty"

    def _count(self, **more: int) -> None:
        with self._lock:
            self._counts.update(more)

    def _body(self, request: Request) -> dict[str, JsonValue]:
        """Everything a reply depends on."""
        return {
            "base_url": self.base_url,
            "model": self.model,
            "messages": [dict(message) for message in request.messages],
            "sampling": dict(self.sampling),
            "repeat": request.repeat,
        }

    def _read_key(self) -> str:
        if self.key_variable is None:
            return "none-needed"
        key = os.environ.get(self.key_variable, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            found = "holds characters that no key has" if key else "is not set"
            raise SettingsError(
                f"the environment variable {self.key_variable} {found}; it should hold the key of "
                f"{self.base_url}; type: export {self.key_variable}=... (an endpoint without keys: "
                "set judge_key_variable to none)"
            )
        return key

    def _check(self) -> None:
        try:
            url = urlsplit(self.base_url)
            is_url = url.scheme in ("http", "https") and url.hostname and url.port != 0
        except ValueError:  # a port that is no number
            is_url = False
        if not is_url:
            raise SettingsError(
                f"base_url is {self.base_url!r}; expected an address such as "
                "http://localhost:8000/v1"
            )
        if url.username is not None or url.password is not None:
            raise SettingsError(
                "base_url holds a user name or password, which would be shown in messages; put the "
                "key into an environment variable and name it in judge_key_variable"
            )
        if own := {"model", "messages", "stream", "n"} & set(self.sampling):
            raise SettingsError(
                f"sampling holds {', '.join(sorted(own))}, which the client sets itself; "
                "leave it out"
            )
        for name in ("threads", "attempts", "timeout_seconds"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} is {getattr(self, name)}; expected more than 0")
        if not 0 <= self.first_wait_seconds <= self.longest_wait_seconds:
            raise SettingsError(
                f"first_wait_seconds is {self.first_wait_seconds} and longest_wait_seconds "
                f"{self.longest_wait_seconds}; expected 0 <= first <= longest"
            )


def open_endpoint(
    settings: JudgeSettings, cache: Path | None, say: Callable[[str], None]
) -> JudgeClient | None:
    """The judge behind the endpoint of a step's settings; None where they name none.

    Args:
        settings: of the step.
        cache: folder of replies; None keeps none.
        say: told about damaged cache files.

    Raises:
        SettingsError: an address or key that cannot work.
        MissingExtraError: the packages of `howwhen[judge]` are not installed.
    """
    if settings.judge_url is None or settings.judge_model is None:
        return None
    return JudgeClient(
        base_url=settings.judge_url,
        model=settings.judge_model,
        key_variable=settings.judge_key_variable,
        cache=cache,
        threads=settings.judge_threads,
        timeout_seconds=settings.judge_timeout_seconds,
        prices=None if settings.judge_prices is None else Prices(*settings.judge_prices),
        say=say,
    )


def describe_usage(judge: Judge) -> str:
    """What a judge has used so far, in one line."""
    return usage_line(judge.model, judge.usage)


def usage_line(model: str, used: Usage) -> str:
    """What a judge of that name has used, in one line."""
    tokens = f"{used.prompt_tokens:,} + {used.completion_tokens:,} tokens"
    parts = [
        f"{used.requests:,} requests" + (f" ({used.failed:,} failed)" if used.failed else ""),
        f"{used.hits:,} replies from the cache",
        f"at least {tokens} ({used.unreported:,} replies uncounted)" if used.unreported else tokens,
        *([f"{used.cut:,} replies cut at the token limit"] if used.cut else []),
        "cost unknown" if used.cost is None else f"cost {used.cost:.4f}",
    ]
    return f"judge {model}: {', '.join(parts)}"


SHOWN_CHARACTERS = 200
"""So much of what an endpoint said is shown in a message."""
SECRET_CHARACTERS = 8
"""A shorter key, such as `x` for a local server, is no secret but may be part of a word."""


class _AttemptError(Exception):
    """One request that brought no reply."""

    def __init__(self, what: str, *, passes: bool, asked_seconds: float = 0.0) -> None:
        super().__init__(what)
        self.what = what
        self.passes = passes
        """Whether trying again may help."""
        self.asked_seconds = asked_seconds
        """The wait that the endpoint asks for."""


def _summary(failures: Sequence[_AttemptError]) -> str:
    counts = Counter(failure.what for failure in failures)
    return "; ".join(f"{what} ({n} times)" if n > 1 else what for what, n in counts.items())


class _Tokens(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Written(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Written
    finish_reason: str | None = None


class _Completion(BaseModel):
    """As much of a chat completion as is read; endpoints differ in the rest."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Tokens | None = None


def _read_completion(content: bytes) -> Reply:
    completion = _Completion.model_validate_json(content)
    choice, tokens = completion.choices[0], completion.usage or _Tokens()
    return Reply(
        text=choice.message.content or "",
        finish_reason=choice.finish_reason,
        prompt_tokens=tokens.prompt_tokens,
        completion_tokens=tokens.completion_tokens,
    )


def _retry_after_seconds(header: str) -> float:
    """The wait that a Retry-After header asks for: seconds or a date; 0 where it says neither."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
