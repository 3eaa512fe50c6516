"""Checks every request first: its host, its key and the length of its body."""

import base64
import binascii
import secrets
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from howwhen.serve.schemas import error_body


@dataclass(frozen=True)
class AccessMiddleware:
    """Refuses requests without the key, and requests whose body is too long.

    A server without a key serves this machine only. It refuses every other host name, since a web
    page could otherwise reach it by DNS rebinding.
    """

    app: ASGIApp
    max_bytes: int
    key: str | None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, then pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1")
        if self.key is None and not is_loopback(_name_in(host)):
            text = (
                f"the request names the host {host!r}, but a server without a key accepts only "
                "localhost; start it with a key to use other names"
            )
            await _refusal(403, text, "wrong_host")(scope, receive, send)
            return
        if not self._is_authorized(headers.get(b"authorization", b"")):
            challenge = {"WWW-Authenticate": 'Basic realm="howwhen", charset="UTF-8"'}
            text = "the key is missing or wrong"
            refusal = _refusal(401, text, "invalid_api_key", headers=challenge)
            await refusal(scope, receive, send)
            return
        body = await self._read(headers.get(b"content-length", b"0"), receive)
        if body is None:
            text = f"the body has more than {self.max_bytes} bytes"
            await _refusal(413, text, "body_too_large")(scope, receive, send)
            return
        await self.app(scope, _replay(body, receive), send)

    def _is_authorized(self, given: bytes) -> bool:
        """Whether the key is right, compared in constant time."""
        if self.key is None:
            return True
        kind, _, value = given.partition(b" ")
        if kind.lower() == b"basic":
            value = _password(value)
        return secrets.compare_digest(value, self.key.encode())

    async def _read(self, length: bytes, receive: Receive) -> bytes | None:
        """The body; None if it is too long."""
        if not length.isdigit() or int(length) > self.max_bytes:
            return None
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return body
            body += bytes(message.get("body", b""))
            if len(body) > self.max_bytes:
                return None
            if not message.get("more_body"):
                return body


def is_loopback(host: str) -> bool:
    """Whether a name or address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _name_in(host: str) -> str:
    """The name or address in a Host header, without the port; empty if it cannot be parsed."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _refusal(status: int, text: str, code: str, **options: Any) -> JSONResponse:
    content = error_body(text, "invalid_request_error", code)
    return JSONResponse(content, status_code=status, **options)


def _password(value: bytes) -> bytes:
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns a body already read, then what comes after it."""
    is_sent = False

    async def next_message() -> Message:
        nonlocal is_sent
        if is_sent:
            return await receive()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message
