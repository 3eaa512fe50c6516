import re
from dataclasses import replace
from typing import Any

from howwhen.present.html import headline, make_html
from tests.discover.pages import Tags
from tests.present.planted import given


def test_the_page_is_whole_and_asks_nothing_of_any_network() -> None:
    page = make_html(given())
    tags = Tags(re.sub(r"<\?xml.*?\?>|<!DOCTYPE svg.*?>", "", page))
    assert not tags.open
    for tag, attributes in tags.seen:
        assert tag not in ("link", "img", "iframe", "object")
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert "default-src 'none'" in page
    ids = [attributes["id"] for _, attributes in tags.seen if "id" in attributes]
    targets = re.findall(r'<a[^>]* href="#([^"]+)"', page)
    assert targets
    assert set(targets) <= set(ids)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


def test_the_answer_comes_first_with_its_interval_and_controls() -> None:
    page = make_html(given())
    assert page.index("<strong>67%</strong>") < page.index("recovers 67% of a gap of 60.0%")
    assert page.index("recovers 67%") < page.index("The ladder of controls")
    assert '<tr class="own"><th scope="row" class="name">hybrid</th>' in page
    assert "<td>collect.limit</td>" not in page
    assert re.search(r'class="name">collect.limit</th><td class="words">60<', page)


def test_what_is_between_backticks_is_code() -> None:
    page = make_html(given())
    assert "<code>strict</code> takes only an answer" in page
    assert "`" not in page.split('<section id="grades">')[1].split("</section>")[0]


def test_texts_of_models_stay_texts() -> None:
    page = make_html(given())
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_norms_and_cosines_of_the_vectors_are_shown() -> None:
    page = make_html(given())
    row = re.search(r"0 · recall</th><td>4</td><td>([\d.]+)</td>(.*?)</tr>", page)
    assert row is not None
    assert row[1] == "5.00"
    assert re.findall(r">(-?\d+)</td>", row[2]) == ["100", "0"]


def test_without_a_gap_the_page_says_so() -> None:
    page_input = given(thinking=10)
    assert headline(page_input.report.measurement) == "no gap"
    page = make_html(page_input)
    assert "No gap to recover" in page
    assert 'aria-label="Accuracy of each rung, with' in page
    assert "accuracy" in page_input.charts.ladder


def test_what_is_not_there_is_not_shown() -> None:
    page = make_html(given())
    assert 'id="carries"' not in page
    assert "This page holds the first" not in make_html(
        replace(given(), viewer=given().viewer._replace(problems=50))
    )
    assert "This page holds the first 30 of 50 problems" in page
    whole = make_html(given(has_knock_outs=True))
    assert 'id="carries"' in whole
    assert "1: check | it" in whole


def test_charts_take_the_colour_of_the_page() -> None:
    page = make_html(given())
    charts: list[Any] = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(charts) >= 2
    assert not any("#000000" in chart for chart in charts)
    assert any("currentColor" in chart for chart in charts)
