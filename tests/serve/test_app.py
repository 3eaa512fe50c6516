"""The server as its clients see it: the official client of OpenAI, and plain requests."""

import base64
import contextlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from howwhen.serve.requests import Limits
from howwhen.serve.responses import Reply
from tests.serve.clients import QUESTION, expected, wait_until_idle
from tests.serve.conftest import Running, Serve, kept_busy

CHAT = "/v1/chat/completions"


def client(running: Running, key: str = "unused") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)


def asked(question: str = QUESTION, **more: Any) -> dict[str, Any]:
    return {
        "model": "tiny", "max_tokens": 24, "messages": [{"role": "user", "content": question}],
        **more,
    }  # fmt: skip


def test_the_official_client_finds_every_rung_as_a_model(serve: Serve) -> None:
    models = list(client(serve()).models.list())
    ids = [model.id for model in models]
    told = [(model.model_extra or {})["howwhen"]["starts_in_thinking"] for model in models]
    assert told == [False] * len(models)
    assert ids == ["tiny", "tiny/base", "tiny/hybrid", "tiny/takeover", "tiny/thinking"]


@pytest.mark.parametrize("rung", ["base", "hybrid", "takeover", "thinking"])
def test_the_official_client_gets_each_rungs_own_answer(serve: Serve, rung: str) -> None:
    running = serve()
    trace = expected(running, rung)
    reply = client(running).chat.completions.create(
        model=f"tiny/{rung}", messages=[{"role": "user", "content": QUESTION}], max_tokens=24
    )
    assert reply.choices[0].message.content == trace.text
    assert reply.choices[0].finish_reason == trace.finish.value
    assert reply.usage is not None
    assert reply.usage.completion_tokens == len(trace.tokens)
    extra = reply.model_extra
    assert extra is not None
    ids = [token["id"] for token in extra["howwhen"]["tokens"]]
    assert ids == [token.id for token in trace.tokens]


def test_the_official_client_streams_with_every_token_explained(serve: Serve) -> None:
    running = serve()
    trace = expected(running, "hybrid")
    text, tokens, finish, usage = "", [], None, None
    for chunk in client(running).chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": QUESTION}],
        max_completion_tokens=24, stream=True, stream_options={"include_usage": True},
    ):  # fmt: skip
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
        tokens += (chunk.model_extra or {}).get("howwhen", {}).get("tokens", [])
        usage = chunk.usage or usage
    assert (text, finish) == (trace.text, trace.finish.value)
    assert usage is not None
    assert usage.completion_tokens == len(trace.tokens) == len(tokens)
    assert [token["category"] for token in tokens] == [token.category for token in trace.tokens]
    assert any(token["is_decision"] for token in tokens)
    steered = next(token for token in tokens if token["category"] is not None)
    assert steered["title"]
    assert steered["strength"] > 0


def test_completions_take_a_prompt(serve: Serve) -> None:
    running = serve()
    trace = expected(running, "takeover")
    reply = client(running).completions.create(
        model="tiny/takeover", prompt=QUESTION, max_tokens=24
    )
    assert reply.choices[0].text == trace.text
    chunks = client(running).completions.create(
        model="tiny/takeover", prompt=QUESTION, max_tokens=24, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == trace.text


def test_rung_and_strength_are_chosen_per_request(serve: Serve) -> None:
    running = serve()
    replies = [
        httpx.post(f"{running.url}{CHAT}", json=asked(howwhen={"strength": strength})).json()
        for strength in (0.5, 3.0)
    ]
    first = [
        next(
            token["strength"]
            for token in reply["howwhen"]["tokens"]
            if token["category"] is not None
        )
        for reply in replies
    ]
    assert first[1] == pytest.approx(6 * first[0], rel=1e-3)
    contents = [reply["choices"][0]["message"]["content"] for reply in replies]
    assert contents[0] != contents[1]
    body = asked(howwhen={"rung": "thinking", "details": False})
    reply = httpx.post(f"{running.url}{CHAT}", json=body).json()
    assert reply["choices"][0]["message"]["content"] == expected(running, "thinking").text
    assert "howwhen" not in reply


def text_of(running: Running, body: dict[str, Any]) -> str:
    reply = httpx.post(f"{running.url}{CHAT}", json=body)
    return str(reply.json()["choices"][0]["message"]["content"])


def test_sampled_answers_follow_their_seed_whatever_else_is_served(serve: Serve) -> None:
    running = serve()
    bodies = [asked(temperature=1.0, seed=seed) for seed in (1, 1, 2, 3)]
    alone = [text_of(running, body) for body in bodies]
    assert alone[0] == alone[1] != alone[2]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda body: text_of(running, body), [*bodies, *bodies]))
    assert together == alone * 2


def test_sampled_answers_without_a_seed_differ(serve: Serve) -> None:
    running = serve()
    texts = {text_of(running, asked(temperature=1.0)) for _ in range(3)}
    assert len(texts) == 3
    assert len({text_of(running, asked()) for _ in range(3)}) == 1
    coldest = text_of(running, asked(temperature=1e-40, seed=1))
    assert coldest == expected(running, "hybrid").text


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"model": "gpt"}, 404, "there is no model 'gpt'"),
        ({"model": "tiny/best"}, 404, "expected tiny, or tiny/RUNG"),
        ({"howwhen": {"rung": "best"}}, 400, "no rung 'best'"),
        ({"howwhen": {"strenght": 1}}, 400, "howwhen.strenght"),
        ({"howwhen": {"rung": "base", "strength": 1}}, 400, "has no strength"),
        ({"howwhen": {"strength": 0}}, 400, "steers nothing"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, 400, "single user message"),
        ({"messages": [{"role": "user", "content": QUESTION * 40}]}, 413, "can attend to"),
        ({"max_tokens": 25}, 413, "expected at most 24"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"temperature": 3}, 400, "temperature"),
        ({"n": 2}, 400, "n is not supported; expected null or 1"),
        ({"stop": ["."]}, 400, "stop is not supported"),
        ({"tools": [{"type": "function"}]}, 400, "tools is not supported"),
        ({"logprobs": True}, 400, "logprobs is not supported"),
        ({"logprobs": 0}, 400, "logprobs is not supported"),
        ({"presence_penalty": 1}, 400, "presence_penalty is not supported"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format is not supported"),
        ({"howwhen": {"rung": "exceed the"}}, 400, "no rung 'exceed the'"),
        ({"stream": True, "model": "gpt"}, 404, "there is no model"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_the_reason(
    serve: Serve, changes: dict[str, Any], status: int, message: str
) -> None:
    running = serve()
    reply = httpx.post(f"{running.url}{CHAT}", json={**asked(), **changes})
    assert reply.status_code == status
    assert message in reply.json()["error"]["message"]
    assert running.service.engine.stats.asked == 0


def test_null_and_empty_ask_for_nothing(serve: Serve) -> None:
    running = serve()
    nothing: dict[str, Any] = {
        "temperature": None, "top_p": None, "seed": None, "stream": None, "n": None, "tools": [],
        "stop": [], "logprobs": False, "frequency_penalty": 0, "response_format": {"type": "text"},
    }  # fmt: skip
    reply = httpx.post(f"{running.url}{CHAT}", json=asked(**nothing))
    assert reply.json()["choices"][0]["message"]["content"] == expected(running, "hybrid").text


@pytest.mark.parametrize(
    "body",
    [
        r'{"model": "tiny", "messages": [{"role": "user", "content": "a\ud800b"}]}',
        r'{"model": "\ud800", "messages": [{"role": "user", "content": "a"}]}',
        r'{"model": "tiny", "howwhen": {"\ud800": 1}, "messages": []}',
    ],
)
def test_half_a_character_is_refused(serve: Serve, body: str) -> None:
    headers = {"Content-Type": "application/json"}
    reply = httpx.post(f"{serve().url}{CHAT}", content=body, headers=headers)
    assert reply.status_code in (400, 404), reply.text
    assert reply.json()["error"]["message"]


def test_a_bug_is_reported_in_the_same_form_and_logged(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    running = serve()
    monkeypatch.setattr(Reply, "explain", break_)
    reply = httpx.post(f"{running.url}{CHAT}", json=asked())
    assert (reply.status_code, reply.json()["error"]["message"]) == (500, "no words")
    wait_until_idle(running)
    deadline = time.monotonic() + 10
    while "ZeroDivisionError" not in caplog.text:  # it is logged after the reply is sent
        assert time.monotonic() < deadline, caplog.text
        time.sleep(0.02)


def test_no_page_runs_anybody_elses_script(serve: Serve) -> None:
    running = serve()
    for path in ("/docs", "/redoc"):
        assert httpx.get(f"{running.url}{path}").status_code == 404


def test_bodies_and_prompts_over_the_limits_are_refused(serve: Serve) -> None:
    running = serve(Limits(body_bytes=2000, prompt_tokens=60))
    long = httpx.post(f"{running.url}{CHAT}", json=asked(QUESTION * 5))
    assert long.status_code == 413
    assert "expected at most 60" in long.json()["error"]["message"]
    big = httpx.post(f"{running.url}{CHAT}", content=b"x" * 2001)
    assert (big.status_code, big.json()["error"]["code"]) == (413, "body_too_large")
    unreported = httpx.post(f"{running.url}{CHAT}", content=(b"x" * 500 for _ in range(9)))
    assert unreported.status_code == 413
    assert httpx.post(f"{running.url}{CHAT}", content=b"{").status_code == 400
    assert httpx.get(f"{running.url}/v1/nothing").json()["error"]["message"] == "Not Found"


@pytest.mark.parametrize("streams", [False, True])
def test_too_many_requests_at_once_are_asked_to_retry(serve: Serve, streams: bool) -> None:
    for running, status in (
        (serve(Limits(running_per_client=0)), 429),
        (serve(max_waiting=0), 503),
    ):
        reply = httpx.post(f"{running.url}{CHAT}", json=asked(stream=streams))
        assert (reply.status_code, reply.headers["retry-after"]) == (status, "1")
        assert running.service.engine.stats.asked == 0


def test_a_client_that_has_been_answered_may_ask_again(serve: Serve) -> None:
    running = serve(Limits(running_per_client=1))
    for streams in (False, True, False):
        reply = httpx.post(f"{running.url}{CHAT}", json=asked(stream=streams))
        assert reply.status_code == 200


def test_every_route_asks_for_the_key(serve: Serve) -> None:
    running = serve(key="sesame")
    for path in ("/", "/health", "/metrics", "/v1/models", "/openapi.json", "/nothing"):
        for headers in ({}, {"Authorization": "Bearer open"}, {"Authorization": "Basic %%"}):
            assert httpx.get(f"{running.url}{path}", headers=headers).status_code == 401, path
    assert httpx.post(f"{running.url}{CHAT}", json=asked()).status_code == 401
    assert len(list(client(running, "sesame").models.list())) == 5
    basic = base64.b64encode(b"anyone:sesame").decode()
    page = httpx.get(running.url, headers={"Authorization": f"Basic {basic}"})
    assert page.status_code == 200
    assert "who answers, and when" in page.text


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "["])
def test_a_page_that_names_this_machine_otherwise_gets_nothing(serve: Serve, host: str) -> None:
    running = serve()
    reply = httpx.get(f"{running.url}/v1/models", headers={"Host": host})
    assert reply.status_code == 403, reply.text
    assert reply.json()["error"]["code"] == "wrong_host"
    assert repr(host) in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:9", "127.0.0.1:9", "[::1]:9", "LOCALHOST"]
)
def test_this_machine_is_reached_by_each_of_its_names(serve: Serve, host: str) -> None:
    reply = httpx.get(f"{serve().url}/v1/models", headers={"Host": host})
    assert reply.status_code == 200, reply.text


def test_with_a_key_the_server_answers_to_any_name(serve: Serve) -> None:
    headers = {"Host": "models.example", "Authorization": "Bearer sesame"}
    reply = httpx.get(f"{serve(key='sesame').url}/v1/models", headers=headers)
    assert reply.status_code == 200, reply.text


def test_health_and_metrics_report_what_was_done(serve: Serve) -> None:
    running = serve()
    for body in (asked(), asked(stream=True)):
        assert httpx.post(f"{running.url}{CHAT}", json=body).status_code == 200
    wait_until_idle(running)
    health = httpx.get(f"{running.url}/health").json()
    assert (health["status"], health["asked"], health["answered"]) == ("ok", 2, 2)
    assert health["tokens"] == 2 * len(expected(running, "hybrid").tokens)
    metrics = httpx.get(f"{running.url}/metrics").text
    assert 'howwhen_requests_total{kind="answered"} 2.0' in metrics
    assert "howwhen_first_token_seconds_count 1.0" in metrics
    assert 'howwhen_now{kind="running"} 0.0' in metrics


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_generation_stops_when_the_client_disconnects(
    serve: Serve, path: str, streams: bool
) -> None:
    running = serve(max_batches=1)
    engine = running.service.engine
    body = {**asked(stream=streams), "prompt": QUESTION}
    with kept_busy(engine):
        with (
            contextlib.suppress(httpx.ReadTimeout),
            httpx.Client(timeout=httpx.Timeout(20, read=0.3)) as leaving,
            leaving.stream("POST", f"{running.url}{path}", json=body) as reply,
        ):
            assert not [line for line in reply.iter_lines() if '"finish_reason":"' in line]
        deadline = time.monotonic() + 10
        while engine.stats.cancelled == 0:
            assert time.monotonic() < deadline, engine.stats
            time.sleep(0.02)
        assert engine.stats.waiting == 0
    wait_until_idle(running)
    assert (engine.stats.answered, engine.stats.failed) == (1, 0)


def break_(*_: Any) -> None:
    raise ZeroDivisionError("no words")


def test_a_stream_that_breaks_says_so_and_leaves_a_log(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    running = serve()
    monkeypatch.setattr(Reply, "explain", break_)
    with httpx.stream("POST", f"{running.url}{CHAT}", json=asked(stream=True)) as reply:
        lines = [line for line in reply.iter_lines() if line.startswith("data:")]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["message"] == "no words"
    assert "ZeroDivisionError" in caplog.text
    wait_until_idle(running)


def test_a_stream_is_made_of_server_sent_events(serve: Serve) -> None:
    running = serve()
    with httpx.stream("POST", f"{running.url}{CHAT}", json=asked(stream=True)) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in reply.iter_lines() if line.startswith("data:")]
    assert lines[-1] == "data: [DONE]"
    first = json.loads(lines[0].removeprefix("data: "))
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"]["role"] == "assistant"
