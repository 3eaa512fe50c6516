"""The judge's client against a real HTTP server on this machine that speaks chat completions."""

import json
import re
import sys
import time
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from howwhen.errors import HowwhenError, MissingExtraError, SettingsError, StoreError
from howwhen.judge.endpoint import (
    JudgeClient,
    JudgeError,
    Prices,
    Request,
    describe_usage,
    open_endpoint,
)
from howwhen.settings import JudgeSettings
from tests.judge.endpoint import KEY, LONG_SECONDS, Answer, Endpoint, answering, completion, connect

pytest.importorskip("openai")
pytest.importorskip("tenacity")


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


FINE = Answer(completion("fine"))


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_a_question_gets_its_reply_and_everything_is_counted() -> None:
    with answering(FINE) as endpoint:
        client = connect(
            endpoint, sampling={"temperature": 0.5, "top_k": 3}, prices=Prices(2.0, 8.0)
        )
        assert client.ask(ask("really?")) == "fine"
        assert client.ask(ask("really?")) == "fine"  # no cache, so it is asked again
    sent = {"model": "judge-1", "messages": ask("really?"), "temperature": 0.5, "top_k": 3}
    assert endpoint.bodies == [sent, sent]
    assert endpoint.headers[0]["authorization"] == f"Bearer {KEY}"
    usage = client.usage
    assert (usage.requests, usage.failed, usage.hits, usage.unreported) == (2, 0, 0, 0)
    assert (usage.prompt_tokens, usage.completion_tokens) == (200, 20)
    assert usage.cost == pytest.approx((200 * 2 + 20 * 8) / 1e6)


def test_what_is_not_known_is_not_counted_as_nothing() -> None:
    silent = completion("fine")
    del silent["usage"]
    answers = (
        Answer(silent),
        Answer({**silent, "usage": {}}),
        Answer(completion(None, finish="length")),
    )
    with answering(*answers) as endpoint:
        client = connect(endpoint, prices=Prices(1.0, 1.0))
        replies = [client.ask(ask("a"), repeat) for repeat in range(3)]
        without_prices = connect(endpoint)
        without_prices.ask(ask("a"))
    assert replies == ["fine", "fine", ""]
    assert (client.usage.unreported, client.usage.cut, client.usage.prompt_tokens) == (2, 1, 100)
    assert client.usage.cost is None
    assert without_prices.usage.cost is None


BROKEN = {
    "no JSON": b'{"choices": [{"mess',
    "a web page": b"<html>Bad gateway</html>",
    "nothing": b"",
    "bytes": b"\xff\xfe\x00",
    "no choices": {"choices": []},
    "an error inside": {"error": {"message": "overloaded", "code": 529}},
    "another shape": {"choices": [{"message": {"content": ["a", "b"]}}]},
    "a list": [],
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
def test_a_malformed_body_is_asked_for_again_and_never_a_reply(body: object) -> None:
    with answering(Answer(body), FINE) as endpoint:
        client = connect(endpoint)
        assert client.ask(ask("a")) == "fine"
        assert (client.usage.requests, client.usage.failed) == (2, 1)
    with answering(Answer(body)) as endpoint:
        with pytest.raises(JudgeError, match=r"4 of at most 4.*no chat completion.*4 times"):
            connect(endpoint).ask(ask("a"))
    assert len(endpoint.bodies) == 4


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_passing_failure_is_tried_again_until_the_attempts_are_used_up(status: int) -> None:
    failure = Answer({"error": {"message": "busy"}}, status)
    with answering(failure, failure, FINE) as endpoint:
        client = connect(endpoint)
        assert client.ask(ask("a")) == "fine"
        assert (client.usage.requests, client.usage.failed) == (3, 2)
    with answering(failure) as endpoint:
        with pytest.raises(
            JudgeError, match=rf"status {status}, .*busy.*4 times.*fewer judge_threads"
        ):
            connect(endpoint).ask(ask("a"))
    assert len(endpoint.bodies) == 4


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_lasting_failure_is_not_tried_again(status: int) -> None:
    body = {"error": {"message": f"we do not like\n{KEY}"}}
    with answering(Answer(body, status)) as endpoint:
        with pytest.raises(JudgeError, match=f"status {status}.*OPENAI_API_KEY") as raised:
            connect(endpoint).ask(ask("a"))
    assert len(endpoint.bodies) == 1
    assert "[key]" in str(raised.value)
    shown = raised.getrepr(style="short", showlocals=False)
    assert KEY not in str(shown)  # nor in the errors it came from


def test_retry_after_in_seconds_is_waited_for() -> None:
    busy = Answer({"error": {}}, 429, {"Retry-After": "0.4"})
    with answering(busy, FINE) as endpoint:
        started = time.monotonic()
        assert connect(endpoint).ask(ask("a")) == "fine"
    assert 0.4 <= time.monotonic() - started < 2.0


@pytest.mark.parametrize("is_date", [False, True])
def test_an_endpoint_that_wants_too_long_a_wait_is_given_up_at_once(is_date: bool) -> None:
    header = formatdate(time.time() + 3600, usegmt=True) if is_date else "3600"
    busy = Answer({"error": {}}, 429, {"Retry-After": header})
    with answering(busy) as endpoint:
        with pytest.raises(JudgeError, match=r"1 of at most 4.*asks to wait 3[56]\d\d s, longer"):
            connect(endpoint, longest_wait_seconds=1.0).ask(ask("a"))
    assert len(endpoint.bodies) == 1


@pytest.mark.parametrize("header", ["soon", "-5", "nan", "inf", formatdate(0, usegmt=True)])
def test_a_retry_after_that_says_nothing_leaves_the_usual_backoff(header: str) -> None:
    with answering(Answer({}, 503, {"Retry-After": header}), FINE) as endpoint:
        assert connect(endpoint, longest_wait_seconds=0.1).ask(ask("a")) == "fine"


def test_the_wait_grows() -> None:
    times: list[float] = []

    def fail(number: int, body: object) -> Answer:
        times.append(time.monotonic())
        return Answer({}, 500)

    with Endpoint(fail) as endpoint, pytest.raises(JudgeError):
        connect(endpoint, first_wait_seconds=0.05, attempts=4).ask(ask("a"))
    first, second, third = (later - sooner for sooner, later in pairwise(times))
    assert first >= 0.05
    assert second >= 0.1
    assert third >= 0.2


def test_a_silent_endpoint_is_asked_again() -> None:
    hanging = Answer({}, after_seconds=LONG_SECONDS)
    with answering(hanging, FINE) as endpoint:
        client = connect(endpoint, timeout_seconds=0.2)
        assert client.ask(ask("a")) == "fine"
        assert client.usage.failed == 1
    with answering(hanging) as endpoint:
        with pytest.raises(JudgeError, match=r"nothing for 0.2 s \(2 times\)"):
            connect(endpoint, timeout_seconds=0.2, attempts=2).ask(ask("a"))


def test_nobody_there() -> None:
    with answering(FINE) as endpoint:
        pass
    with pytest.raises(JudgeError, match=r"no connection \(.*refused.*Check the address"):
        connect(endpoint).ask(ask("a"))


def test_replies_are_kept_over_a_restart(tmp_path: Path) -> None:
    with answering(FINE) as endpoint:
        assert connect(endpoint, cache=tmp_path / "new" / "folder").ask(ask("ä?")) == "fine"
    again = connect(endpoint, cache=tmp_path / "new" / "folder")  # nobody is there any more
    assert again.ask(ask("ä?")) == "fine"
    assert (again.usage.requests, again.usage.hits) == (0, 1)
    assert again.usage.prompt_tokens == 0
    (path,) = (tmp_path / "new" / "folder").iterdir()
    assert re.fullmatch(r"[0-9a-f]{64}\.json", path.name)
    assert json.loads(path.read_bytes())["request"]["messages"] == ask("ä?")
    assert KEY not in path.read_text()


def test_what_changes_a_reply_changes_its_name(tmp_path: Path) -> None:
    with answering(FINE) as endpoint:
        client = connect(endpoint, cache=tmp_path)
        client.ask_many([Request(ask("a")), Request(ask("a"), 1), Request(ask("b"))])
        connect(endpoint, cache=tmp_path, model="judge-2").ask(ask("a"))
        connect(f"{endpoint.url}/", cache=tmp_path).ask(ask("a"))
        connect(endpoint, cache=tmp_path, sampling={"temperature": 0}).ask(ask("a"))
        connect(endpoint, cache=tmp_path, threads=3, timeout_seconds=9.0).ask(ask("a"))
    assert len(endpoint.bodies) == len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("content", [b"", b'{"request": {"mod', b"[]", b"\xff", b"other"])
def test_a_damaged_cache_file_is_said_and_asked_for_again(tmp_path: Path, content: bytes) -> None:
    said: list[str] = []
    with answering(FINE) as endpoint:
        first = connect(endpoint, cache=tmp_path)
        first.ask(ask("a"))
        (path,) = tmp_path.iterdir()
        first.ask(ask("b"))
        (other,) = set(tmp_path.iterdir()) - {path}
        path.write_bytes(other.read_bytes() if content == b"other" else content)
        client = connect(endpoint, cache=tmp_path, say=said.append)
        assert [client.ask(ask("a")) for _ in range(2)] == ["fine", "fine"]
    assert (client.usage.damaged, client.usage.requests, client.usage.hits) == (1, 1, 1)
    assert len(said) == 1
    assert path.name in said[0]
    assert len(list(tmp_path.iterdir())) == 2  # and no partial file


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with answering(FINE) as endpoint:
        with pytest.raises(StoreError, match="give another one"):
            connect(endpoint, cache=tmp_path / "file")
        client = connect(endpoint, cache=tmp_path / "folder")
        (tmp_path / "folder").rmdir()
        with pytest.raises(StoreError, match="make room or give another folder"):
            client.ask(ask("a"))


def test_many_are_asked_at_once_and_replied_in_order() -> None:
    def slower_first(number: int, body: Any) -> Answer:
        text = body["messages"][0]["content"]
        return Answer(completion(f"to {text}"), after_seconds=0.02 * (12 - int(text)))

    with Endpoint(slower_first) as endpoint:
        client = connect(endpoint, threads=4)
        replies = client.ask_many([Request(ask(str(n))) for n in range(12)])
    assert replies == [f"to {n}" for n in range(12)]
    assert endpoint.most_at_once == 4
    assert client.usage.requests == 12
    assert client.ask_many([]) == []


def test_equal_requests_are_sent_once() -> None:
    with Endpoint(lambda number, _: Answer(completion(str(number)))) as endpoint:
        replies = connect(endpoint).ask_many([Request(ask("a"))] * 3 + [Request(ask("a"), 1)])
    assert len(endpoint.bodies) == 2
    assert replies[0] == replies[1] == replies[2] != replies[3]


def test_the_first_failure_stops_the_rest_and_a_second_run_goes_on(tmp_path: Path) -> None:
    refused = ["7"]

    def refuse(number: int, body: Any) -> Answer:
        return Answer({}, 400) if body["messages"][0]["content"] in refused else FINE

    requests = [Request(ask(str(n))) for n in range(100)]
    with Endpoint(refuse) as endpoint:
        with pytest.raises(JudgeError, match=f"status 400.*are kept in {tmp_path}"):
            connect(endpoint, cache=tmp_path, threads=2).ask_many(requests)
        before = len(endpoint.bodies)
        assert 8 <= before < 100
        refused.clear()
        assert connect(endpoint, cache=tmp_path).ask_many(requests) == ["fine"] * 100
    assert len(endpoint.bodies) == 100 + 1  # the seventh was asked twice


def test_a_failure_does_not_wait_for_the_patience_of_others() -> None:
    def answer(number: int, body: Any) -> Answer:
        if body["messages"][0]["content"] == "bad":
            return Answer({}, 400, after_seconds=0.2)
        return Answer({}, 429, {"Retry-After": "50"})

    with Endpoint(answer) as endpoint:
        started = time.monotonic()
        with pytest.raises(JudgeError, match="status 400"):
            connect(endpoint).ask_many([Request(ask("busy")), Request(ask("bad"))])
    assert time.monotonic() - started < 5
    assert len(endpoint.bodies) == 2


@pytest.mark.parametrize(
    ("value", "found"),
    [(None, "is not set"), (" ", "is not set"), ("a\nb", "holds"), ("ß", "holds")],
)
def test_a_missing_key_is_said_before_anything_is_sent(
    value: str | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(SettingsError, match=f"JUDGE_KEY {found}.*export JUDGE_KEY="):
        connect("http://127.0.0.1:1/v1", key_variable="JUDGE_KEY")


def test_the_key_comes_from_its_variable_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-other\n")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-admin")
    with answering(FINE) as endpoint:
        named = connect(endpoint, key_variable="JUDGE_KEY")
        named.ask(ask("a"))
        connect(endpoint, key_variable=None).ask(ask("a"))
    assert endpoint.headers[0]["authorization"] == "Bearer sk-other"
    assert not any(secret in str(endpoint.headers[1]) for secret in (KEY, "sk-other", "sk-admin"))
    assert "sk-other" not in repr(named)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "localhost:8000/v1"}, "expected an address such as"),
        ({"base_url": "ftp://there"}, "expected an address such as"),
        ({"base_url": "http://"}, "expected an address such as"),
        ({"base_url": "http://there:port/v1"}, "expected an address such as"),
        ({"base_url": "http://me:hidden@there/v1"}, "user name or password"),
        ({"sampling": {"n": 2, "stream": True}}, "sampling holds n, stream"),
        ({"threads": 0}, "threads is 0"),
        ({"attempts": 0}, "attempts is 0"),
        ({"timeout_seconds": 0.0}, "timeout_seconds is 0.0"),
        ({"first_wait_seconds": 5.0, "longest_wait_seconds": 1.0}, "0 <= first <= longest"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as raised:
        JudgeClient(**{"base_url": "http://there/v1", "model": "judge-1", **settings})
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize("package", ["openai", "tenacity"])
def test_a_missing_package_is_named_with_its_cure(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'howwhen\[judge\]'"):
        connect("http://127.0.0.1:1/v1")


def test_a_judge_error_is_one_of_howwhens_own() -> None:
    assert issubclass(JudgeError, HowwhenError)


def test_the_usage_is_one_line(tmp_path: Path) -> None:
    busy = Answer({}, 503)
    with answering(busy, FINE, Answer(completion("a", finish="length"))) as endpoint:
        settings = JudgeSettings(judge_url=endpoint.url, judge_model="m", judge_prices=(2.0, 8.0))
        client = open_endpoint(settings, tmp_path, print)
        assert client is not None
        client.first_wait_seconds = 0.001
        client.ask(ask("a"))
        client.ask(ask("a"))
        client.ask(ask("b"))
    assert describe_usage(client) == (
        "judge m: 3 requests (1 failed), 1 replies from the cache, 200 + 20 tokens, 1 replies cut "
        "at the token limit, cost 0.0006"
    )
    silent = completion("fine")
    del silent["usage"]
    with answering(Answer(silent)) as endpoint:
        client = connect(endpoint)
        client.ask(ask("a"))
    line = describe_usage(client)
    assert line.endswith("at least 0 + 0 tokens (1 replies uncounted), cost unknown")


def test_no_endpoint_is_opened_where_none_is_named() -> None:
    assert open_endpoint(JudgeSettings(), None, print) is None
