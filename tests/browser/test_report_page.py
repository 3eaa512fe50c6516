"""The report in a real browser: every view clicked through, rules of accessibility, no network."""

from dataclasses import replace
from pathlib import Path

import pytest

from howwhen.measure.grade import Mode
from howwhen.present.html import make_html
from howwhen.present.viewer import GradedAnswer, Viewer, pack_viewer
from howwhen.records import Grade, RungName
from tests.browser.conftest import Open, Tab
from tests.present.planted import IDS, PROBLEMS, TOKENIZER, given, graded, trace


@pytest.fixture
def report(tmp_path: Path) -> Path:
    file = tmp_path / "report.html"
    file.write_text(make_html(given(has_knock_outs=True)))
    return file


def opened(open_tab: Open, report: Path, place: str = "", **options: object) -> Tab:
    tab = open_tab(f"{report.as_uri()}{place}", **options)
    tab.page.wait_for_selector("#problems option")
    return tab


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_breaks_no_rule_says_nothing_and_asks_for_nothing(
    open_tab: Open, report: Path, scheme: str
) -> None:
    tab = opened(open_tab, report, color_scheme=scheme)
    tab.page.focus("#pane-third button.token")
    assert tab.violations() == []
    assert tab.told == []
    assert tab.requests == [report.as_uri()]


def test_an_answer_is_shown_token_by_token(open_tab: Open, report: Path) -> None:
    page = opened(open_tab, report).page
    assert page.inner_text("#pane-third .who") == "hybrid"
    assert page.text_content("#pane-third .tokens") == TOKENIZER.decode(IDS)
    assert "read 7 (stated), which equals 0" in page.inner_text("#pane-third .why-grade")
    assert page.inner_text("#pane-third .grade") == "✓ correct"
    assert "this rung has no answer here" in page.inner_text("#pane-thinking")
    assert page.inner_text("#legend").strip() == "1 check"


def test_a_disagreement_shows_which_model_wanted_what(open_tab: Open, report: Path) -> None:
    page = opened(open_tab, report).page
    page.focus("#pane-third button.token")
    why = page.inner_text("#why")
    wrote, base = (TOKENIZER.decode([IDS[place]]) for place in (3, 4))
    assert "hybrid, token 4: a disagreement" in why
    assert f'"{wrote}"' in why
    assert f'"{base}"' in why
    assert "coefficient 1.5, last 2 positions" in why
    assert "-2.00 base" in why
    assert "0.5 on 1" in why
    assert page.get_attribute("#pane-third button.token", "aria-pressed") == "true"
    page.hover("#pane-third .tokens span")
    assert "-0.12 base, -0.50 thinking model" in page.inner_text("#why")


def test_every_token_is_reached_by_keys(open_tab: Open, report: Path) -> None:
    page = opened(open_tab, report).page
    page.focus("#pane-third .tokens")
    page.keyboard.press("Shift+ArrowRight")
    assert "hybrid, token 1\n" in page.inner_text("#why")
    page.keyboard.press("Shift+ArrowRight")
    assert "hybrid, token 2\n" in page.inner_text("#why")
    page.keyboard.press("ArrowRight")
    assert "hybrid, token 4: a disagreement" in page.inner_text("#why")
    page.keyboard.press("ArrowRight")  # there is no other
    assert "hybrid, token 4: a disagreement" in page.inner_text("#why")
    page.keyboard.press("Shift+ArrowLeft")
    assert "hybrid, token 3\n" in page.inner_text("#why")


def test_any_rung_takes_the_third_place(open_tab: Open, report: Path) -> None:
    page = opened(open_tab, report).page
    page.select_option("#rung", "shared-vector")
    assert page.inner_text("#pane-third .who") == "shared-vector"
    assert page.get_attribute("#pane-third", "aria-label") == "shared-vector"
    page.focus("#pane-third button.token")
    assert "shared-vector, token 4: a disagreement" in page.inner_text("#why")


def test_the_page_prints_without_its_controls(open_tab: Open, report: Path) -> None:
    page = opened(open_tab, report).page
    assert page.is_visible("#problems")
    page.emulate_media(media="print")
    assert not page.is_visible("#problems")
    assert not page.is_visible("nav")
    assert page.is_visible("#pane-third .tokens")


def test_marks_and_filters_go_by_the_runs_own_mode(open_tab: Open, tmp_path: Path) -> None:
    changes: dict[RungName, dict[str, Grade]] = {
        "base": {"strict": Grade.NO_ANSWER},
        "hybrid": {"flexible": Grade.WRONG},
    }
    shown: dict[Mode, tuple[str, int, int]] = {"flexible": ("✓✗", 0, 30), "strict": ("?✓", 30, 0)}
    for mode, (marks, gained, lost) in shown.items():
        answers = {
            rung: {one.id: GradedAnswer(trace(one), graded(one, **how)) for one in PROBLEMS}
            for rung, how in changes.items()
        }
        viewer = Viewer(PROBLEMS, answers, ("recall", "check"), mode)
        file = tmp_path / f"{mode}.html"
        file.write_text(make_html(replace(given(), viewer=pack_viewer(viewer, TOKENIZER))))
        page = opened(open_tab, file, "#problem=%").page
        assert page.locator("#problems option").first.inner_text().startswith(f"{marks} ")
        for name, count in {"gained": gained, "lost": lost, "missed": 0, "none": 0}.items():
            page.select_option("#filter", name)
            assert page.locator("#problems option").count() == count, (mode, name)
        page.select_option("#filter", "all")
        other = "strict grade: no answer" if mode == "flexible" else "flexible grade: correct"
        assert other in page.inner_text("#pane-base .why-grade")


def test_keys_go_from_problem_to_problem(open_tab: Open, report: Path) -> None:
    page = opened(open_tab, report).page
    page.focus("#filter")
    page.keyboard.press("j")
    assert page.input_value("#problems") == "p0"
    page.focus("#pane-third .tokens")
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.input_value("#problems") == "p2"
    page.keyboard.press("k")
    assert page.input_value("#problems") == "p1"
    assert page.url.endswith("#problem=p1")


def test_problems_are_filtered_searched_and_linked_to(open_tab: Open, report: Path) -> None:
    page = opened(open_tab, report, "#problem=p5").page
    assert "Ann has 5 pens?" in page.inner_text("#question")
    page.select_option("#filter", "gained")
    assert page.locator("#problems option").count() == 0
    assert page.inner_text("#count").startswith("0 of 30 problems")
    assert page.inner_text("#question") == ""
    page.select_option("#filter", "steered")
    page.fill("#search", "HAS 12")
    assert page.locator("#problems option").all_inner_texts() == ["✓✓ Ann has 12 pens?"]
    assert "Ann has 12 pens?" in page.inner_text("#question")


def test_nothing_is_wider_than_a_phone(open_tab: Open, report: Path) -> None:
    tab = opened(open_tab, report)
    tab.page.set_viewport_size({"width": 390, "height": 800})
    width = tab.page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390
    assert tab.violations() == []
