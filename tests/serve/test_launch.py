"""`howwhen serve`: which addresses need a key, and the settings of the server."""

import sys

import pytest
import uvicorn

from howwhen.cli import app
from howwhen.errors import MissingExtraError, SettingsError
from howwhen.serve.launch import check_address, check_packages, run_server
from tests.conftest import MakeModel
from tests.serve.conftest import make_service


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_this_machines_own_addresses_need_no_key(host: str) -> None:
    check_address(host, None, "HOWWHEN_KEY")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org"])
def test_other_addresses_need_a_key(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_address(host, "sesame", "HOWWHEN_KEY")
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(SettingsError, match="export MY_KEY="):
        app(["serve", "--host", host, "--key-variable", "MY_KEY"],
            result_action="return_value", exit_on_error=False, print_error=False)  # fmt: skip


def test_without_its_packages_the_server_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_packages()
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'howwhen\[serve\]'"):
        app(["serve", "--out", "nowhere"],
            result_action="return_value", exit_on_error=False, print_error=False)  # fmt: skip


def test_a_header_does_not_make_another_client_of_one(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise `X-Forwarded-For` would get round the limit per client."""
    configs: list[uvicorn.Config] = []
    monkeypatch.setattr(uvicorn, "run", lambda *a, **k: configs.append(uvicorn.Config(*a, **k)))
    run_server(make_service(make_model), "127.0.0.1", 8000, None)
    assert not configs[0].proxy_headers
