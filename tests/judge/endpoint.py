"""A real HTTP server on this machine that speaks chat completions, and a client of it."""

import json
import sys
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Self

from howwhen.judge.endpoint import JudgeClient

KEY = "sk-test-0123456789"
LONG_SECONDS = 10.0
"""A server that hangs is let go at the end of its test, and in any case after this long."""


class Answer(NamedTuple):
    """What the server answers."""

    body: object
    """Bytes as they are, anything else as JSON."""
    status: int = 200
    headers: Mapping[str, str] = MappingProxyType({})
    after_seconds: float = 0.0


def completion(text: str | None, finish: str = "stop", tokens: tuple[int, int] = (100, 10)) -> Any:
    message = {"role": "assistant", "content": text}
    return {
        "id": "x",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": dict(zip(("prompt_tokens", "completion_tokens"), tokens, strict=True)),
    }


class Endpoint:
    """A server; `script` makes the answer to the n-th request (from 0) and its body."""

    def __init__(self, script: Callable[[int, Any], Answer]) -> None:
        self.bodies: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        lock, at_once, released = threading.Lock(), [0], threading.Event()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else every answer waits 40 ms

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(endpoint.bodies)
                    endpoint.bodies.append(body)
                    endpoint.headers.append({k.lower(): v for k, v in self.headers.items()})
                    at_once[0] += 1
                    endpoint.most_at_once = max(endpoint.most_at_once, at_once[0])
                answer = script(number, body)
                released.wait(answer.after_seconds)
                with lock:
                    at_once[0] -= 1
                self.reply(answer)

            def reply(self, answer: Answer) -> None:
                body = answer.body
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(answer.status)
                fixed = {"Content-Type": "application/json", "Content-Length": str(len(content))}
                for name, value in {**fixed, **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, address: object) -> None:
                if not isinstance(sys.exception(), ConnectionError):  # a client that went away
                    raise

        self._server = Server(("127.0.0.1", 0), Handler)
        self._released = released
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def answering(*answers: Answer) -> Endpoint:
    """A server that gives these answers in turn, and the last one for ever."""
    return Endpoint(lambda number, _: answers[min(number, len(answers) - 1)])


def connect(endpoint: Endpoint | str, **settings: Any) -> JudgeClient:
    """A client without patience."""
    url = endpoint if isinstance(endpoint, str) else endpoint.url
    quick = {"attempts": 4, "first_wait_seconds": 0.001, "timeout_seconds": 5.0}
    return JudgeClient(url, settings.pop("model", "judge-1"), **{**quick, **settings})
