import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from howwhen.errors import BusyError, SteeringError
from howwhen.hybrid.choice import BaseStepByStep, Rung
from howwhen.hybrid.decoder import decode
from howwhen.hybrid.session import Session
from howwhen.records import Finish, Problem
from howwhen.serve.engine import Engine, Event, GenerationRequest, PendingRequest
from tests.conftest import MakeModel
from tests.serve.clients import Inbox
from tests.serve.conftest import QUESTIONS, SETTINGS, make_service


def ask(question: str = QUESTIONS[0], rung: str = "hybrid") -> GenerationRequest:
    return GenerationRequest(question, rung, SETTINGS)


def wait_until(engine: Engine, **wanted: int) -> None:
    deadline = time.monotonic() + 10
    while any(getattr(engine.stats, name) != value for name, value in wanted.items()):
        assert time.monotonic() < deadline, engine.stats
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("batch_size", "max_batches"),
    [(32, 4)] + [pytest.param(*size, marks=pytest.mark.slow) for size in ((3, 2), (1, 1))],
)
def test_many_requests_at_once_are_each_answered_as_if_alone(
    make_model: MakeModel, batch_size: int, max_batches: int
) -> None:
    engine = make_service(make_model, batch_size=batch_size, max_batches=max_batches).engine
    requests = [ask(question, rung) for question in QUESTIONS[:5] for rung in ("hybrid", "base")]
    alone = [
        decode(
            engine.models,
            [Problem("0", request.question, "unknown")],
            engine.find_rung(request.rung, None),
            SETTINGS,
        )[0]
        for request in requests
    ]
    inboxes = [Inbox() for _ in requests]
    for request, inbox in zip(requests, inboxes, strict=True):
        engine.submit(request, inbox)
    engine.start()
    for trace, inbox in zip(alone, inboxes, strict=True):
        assert inbox.wait() == trace.finish
        received, decoded = (
            [(token.id, token.category, token.is_decision) for token in tokens]
            for tokens in (inbox.tokens, trace.tokens)
        )
        assert received == decoded
    wait_until(engine, answered=len(requests), running=0, batches=0, waiting=0)
    engine.close()


def test_cancelled_requests_leave_nothing_running(make_model: MakeModel) -> None:
    engine = make_service(make_model, batch_size=2).engine
    inboxes = [Inbox() for _ in range(5)]
    tickets = [engine.submit(ask(), inbox) for inbox in inboxes]
    for ticket in tickets[1:]:
        engine.cancel(ticket)
    engine.start()
    assert isinstance(inboxes[0].wait(), Finish)
    wait_until(engine, answered=1, cancelled=4, running=0, waiting=0, batches=0)
    assert not any(inbox.events for inbox in inboxes[1:])
    engine.close()


def test_a_request_cancelled_while_it_waits_makes_room_at_once(make_model: MakeModel) -> None:
    engine = make_service(make_model, max_waiting=2).engine
    for _ in range(5):
        engine.cancel(engine.submit(ask(), Inbox()))
    assert (engine.stats.waiting, engine.stats.cancelled) == (0, 5)
    engine.close()


def test_a_prompt_is_measured_as_the_rung_asks_it(make_model: MakeModel) -> None:
    engine = make_service(make_model).engine
    prompt = "Question: {question} Answer: 1 2 3 4"
    longer = BaseStepByStep(prompt)
    plain = engine.check(ask(rung="base"))
    engine.find_rung = lambda rung, strength: longer
    base = replace(engine.models.base, prompt=prompt)
    assert engine.check(ask(rung="base")) == len(base.prompt_ids(QUESTIONS[0])) > plain
    engine.close()


def test_a_request_cancelled_on_its_way_stops_its_batch(make_model: MakeModel) -> None:
    engine = make_service(make_model).engine
    started = threading.Event()
    tickets: list[PendingRequest] = []

    def stop_at_once(event: Event) -> None:
        assert started.wait(5)
        engine.cancel(tickets[0])

    tickets.append(engine.submit(ask(), stop_at_once))
    started.set()
    engine.start()
    wait_until(engine, cancelled=1, running=0, batches=0)
    assert 0 < engine.stats.tokens < SETTINGS.max_new_tokens
    engine.close()


def test_a_failure_is_reported_to_its_client_and_the_others_are_answered(
    make_model: MakeModel,
) -> None:
    engine = make_service(make_model).engine
    choose = engine.find_rung

    def choose_badly(rung: str, strength: float | None) -> Rung:
        if rung == "base":
            raise SteeringError("no such vectors")
        return choose(rung, strength)

    engine.find_rung = choose_badly
    broken, whole = Inbox(), Inbox()
    engine.submit(ask(rung="base"), broken)
    engine.submit(ask(), whole)
    engine.start()
    assert isinstance(broken.wait(), SteeringError)
    assert isinstance(whole.wait(), Finish)
    assert engine.stats.failed == 1
    engine.close()


def test_a_full_queue_and_a_closed_engine_take_no_more(make_model: MakeModel) -> None:
    engine = make_service(make_model, max_waiting=2).engine
    inboxes = [Inbox(), Inbox()]
    for inbox in inboxes:
        engine.submit(ask(), inbox)
    with pytest.raises(BusyError, match="2 requests are waiting"):
        engine.submit(ask(), Inbox())
    engine.start()
    engine.close()
    assert all(isinstance(inbox.wait(), Finish | BusyError) for inbox in inboxes)
    with pytest.raises(BusyError):
        engine.submit(ask(), Inbox())


def test_a_batch_that_fails_while_it_is_joined_fails_for_all_and_the_engine_goes_on(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_service(make_model).engine
    join, first, second, third = Session.put, Inbox(), Inbox(), Inbox()
    entered = threading.Event()

    def fail(session: Session, opened: Session) -> None:
        raise MemoryError("full")

    def hold(event: Event) -> None:
        first(event)
        entered.wait(5)  # until the second has asked

    monkeypatch.setattr(Session, "put", fail)
    engine.submit(ask(), hold)
    engine.start()
    wait_until(engine, running=1)
    engine.submit(ask(QUESTIONS[1]), second)
    entered.set()
    assert isinstance(first.wait(), MemoryError)
    assert isinstance(second.wait(), MemoryError)
    monkeypatch.setattr(Session, "put", join)
    engine.submit(ask(), third)
    assert isinstance(third.wait(), Finish)
    wait_until(engine, failed=2, answered=1, running=0, batches=0)
    engine.close()


def test_a_rung_that_waits_for_a_batch_comes_before_those_that_ask_later(
    make_model: MakeModel,
) -> None:
    engine = make_service(make_model, batch_size=2, max_batches=1).engine
    order: list[str] = []

    def note(name: str) -> Callable[[Event], None]:
        return lambda event: order.append(name) if isinstance(event, Finish) else None

    asked = ["hybrid", "hybrid", "base", "hybrid", "hybrid"]
    for number, rung in enumerate(asked):
        engine.submit(ask(QUESTIONS[number], rung), note(f"{rung} {number}"))
    engine.start()
    wait_until(engine, answered=5, running=0)
    engine.close()
    assert order.index("base 2") == 2
