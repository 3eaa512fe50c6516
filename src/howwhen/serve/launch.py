"""Starts the server for a loaded run. Its packages are imported when it is started."""

from importlib import import_module
from typing import TYPE_CHECKING

from howwhen.errors import MissingExtraError, SettingsError

if TYPE_CHECKING:
    from howwhen.pipeline.live import LoadedRungs
    from howwhen.serve.requests import Service


def check_address(host: str, key: str | None, key_variable: str) -> None:
    """Refuse an address that other machines can reach if there is no key.

    Raises:
        SettingsError: no key.
    """
    from howwhen.serve.access import is_loopback

    if key is None and not is_loopback(host):
        raise SettingsError(
            f"host {host} can be reached from other machines, and {key_variable} holds no key; "
            f"type: export {key_variable}=$(openssl rand -hex 32), or leave --host out"
        )


def check_packages() -> None:
    """Check that the server's packages are installed.

    Raises:
        MissingExtraError: they are not installed.
    """
    try:
        for name in ("uvicorn", "howwhen.serve.app"):
            import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"the server needs packages that are not installed ({error}); type: "
            "pip install 'howwhen[serve]'"
        ) from error


def make_service(ready: "LoadedRungs") -> "Service":
    """The service of a loaded run."""
    from howwhen.serve.engine import Engine
    from howwhen.serve.requests import Service

    pair = ready.pair
    return Service(
        name=pair.name,
        engine=Engine(
            ready.models,
            lambda rung, strength: ready.rung(rung, strength).rung,
            phrases=ready.phrases,
        ),
        tokenizer=pair.tokenizer,
        rungs=tuple(ready.rungs),
        titles=ready.gate.titles,
        settings=ready.settings,
        example=pair.example,
    )


def run_server(service: "Service", host: str, port: int, key: str | None) -> None:
    """Serve until interrupted."""
    import uvicorn

    from howwhen.serve.app import make_app

    app = make_app(service, key=key)
    # Trusting X-Forwarded-For would let a client evade its limit.
    uvicorn.run(app, host=host, port=port, log_level="warning", proxy_headers=False)
