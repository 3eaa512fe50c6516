"""The first thing a request meets: whom it was meant for, the key, and the length of its body."""

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
    """Lets no request through without the key, nor one whose body is too long.

    Without a key only this machine is served, and a name that is not this machine's is refused:
    it is how a page of somebody else's would come in (DNS rebinding).
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
                f"asked for the host {host!r}; a server without a key answers to localhost only "
                "(start it with a key to have it answer to other names)"
            )
            await _refusal(403, text, "wrong_host")(scope, receive, send)
            return
        if not self._is_known(headers.get(b"authorization", b"")):
            asked = {"WWW-Authenticate": 'Basic realm="howwhen", charset="UTF-8"'}
            refusal = _refusal(401, "no key, or a wrong one", "invalid_api_key", headers=asked)
            await refusal(scope, receive, send)
            return
        body = await self._read(headers.get(b"content-length", b"0"), receive)
        if body is None:
            text = f"a body of more than {self.max_bytes} bytes"
            await _refusal(413, text, "body_too_large")(scope, receive, send)
            return
        await self.app(scope, _again(body, receive), send)

    def _is_known(self, given: bytes) -> bool:
        """Whether the key is right, found out in the same time for every wrong one."""
        if self.key is None:
            return True
        kind, _, value = given.partition(b" ")
        if kind.lower() == b"basic":
            value = _password(value)
        return secrets.compare_digest(value, self.key.encode())

    async def _read(self, length: bytes, receive: Receive) -> bytes | None:
        """The body, or None where it is too long."""
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
    """Whether a name or address is this machine's, and reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _name_in(host: str) -> str:
    """The name or address in a Host header, without the port; empty where it is no such header."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _refusal(status: int, text: str, code: str, **how: Any) -> JSONResponse:
    content = error_body(text, "invalid_request_error", code)
    return JSONResponse(content, status_code=status, **how)


def _password(value: bytes) -> bytes:
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _again(body: bytes, receive: Receive) -> Receive:
    """A receive that tells a body already read, and then what comes after it."""
    is_told = False

    async def next_message() -> Message:
        nonlocal is_told
        if is_told:
            return await receive()
        is_told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message
