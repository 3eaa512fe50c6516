"""The playground in a real browser: ask, watch three answers come, see who wanted what, stop."""

import pytest

from tests.browser.conftest import Open
from tests.serve.clients import expected, wait_until_idle
from tests.serve.conftest import QUESTIONS, Serve, kept_busy


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_three_answers_come_side_by_side(open_tab: Open, serve: Serve, scheme: str) -> None:
    running = serve()
    tab = open_tab(f"{running.url}/", color_scheme=scheme)
    page = tab.page
    assert page.input_value("#question") == "What is 2 + 2 ?"
    page.fill("#question", QUESTIONS[0])
    page.click("#ask")
    page.wait_for_selector("#ask:not([disabled])")
    for pane, rung in {"base": "base", "thinking": "thinking", "third": "hybrid"}.items():
        trace = expected(running, rung, QUESTIONS[0])
        shown = page.locator(f"#pane-{pane} .tokens").text_content()
        assert shown.replace("⏎", "") == trace.text
        note = page.inner_text(f"#pane-{pane} .why-grade")
        plural = "" if trace.decisions == 1 else "s"
        decisions = f"{trace.decisions} disagreement{plural}, " if trace.decisions else ""
        assert note.startswith(f"{len(trace.tokens)} tokens, {decisions}")
        assert ("disagreement" in note) == (trace.decisions > 0)
    assert page.locator("#legend li").count() > 0
    page.focus("#pane-third button.token")
    page.keyboard.press("ArrowRight")
    why = page.inner_text("#why")
    assert "a disagreement" in why
    assert "thinking model wanted" in why
    assert page.inner_text("#status").startswith(
        f"base: {len(expected(running, 'base', QUESTIONS[0]).tokens)} tokens, "
    )
    assert tab.violations() == []
    assert tab.told == []
    assert all(request.startswith((running.url, "data:")) for request in tab.requests)


def test_rung_and_strength_are_switched_and_a_refusal_is_shown(
    open_tab: Open, serve: Serve
) -> None:
    running = serve()
    tab = open_tab(f"{running.url}/")
    page = tab.page
    page.fill("#question", QUESTIONS[1])
    page.select_option("#rung", "takeover")
    page.click("#ask")
    page.wait_for_selector("#ask:not([disabled])")
    trace = expected(running, "takeover", QUESTIONS[1])
    shown = page.locator("#pane-third .tokens").text_content()
    assert shown.replace("⏎", "") == trace.text
    page.fill("#strength", "2")
    page.click("#ask")
    page.wait_for_selector("#pane-third .error")
    assert "does not steer" in page.inner_text("#pane-third .error")
    page.wait_for_selector("#ask:not([disabled])")
    assert "does not steer" in page.inner_text("#status")
    wait_until_idle(running)
    assert running.service.engine.stats.failed == 0


def test_answers_are_stopped(open_tab: Open, serve: Serve) -> None:
    running = serve(max_batches=1)
    engine = running.service.engine
    page = open_tab(f"{running.url}/").page
    with kept_busy(engine):
        page.click("#ask")
        assert page.inner_text("#status") == "Generating three answers."
        page.click("#stop")
        page.wait_for_selector("#ask:not([disabled])")
        assert page.inner_text("#pane-third .why-grade") == "stopped after 0 tokens"
    wait_until_idle(running)
    assert (engine.stats.answered, engine.stats.cancelled) == (1, 3)
