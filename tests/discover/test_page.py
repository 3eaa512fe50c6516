import re
from dataclasses import replace
from typing import Any

from howwhen.discover.categories import Transitions
from howwhen.discover.page import PageInput, make_page
from tests.discover.pages import HOSTILE, Tags, cell, counts, summary


def page(**changes: Any) -> str:
    given = {
        "title": "What it does",
        "source": "its maker/model",
        "reader": "reader",
        "counts": counts(),
        "rows": [cell(1, 5, 0.3), cell(1, 10, 0.5, chosen=True), cell(2, 5, 0.4)],
        "summaries": [summary(0, HOSTILE), summary(1, "second")],
        "transitions": Transitions((3, 1), ((0, 3), (1, 0)), (1, 3)),
    }
    return make_page(PageInput(**{**given, **changes}))


def test_the_page_is_whole_and_asks_for_nothing() -> None:
    made = page()
    tags = Tags(made)
    assert tags.open == []
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in tags.seen}
    assert "src=" not in made
    assert "url(" not in made
    assert "{{" not in made.replace("{{ 7 * 7 }}", "")


def test_text_of_models_is_shown_and_not_obeyed() -> None:
    made = page()
    assert "<script" not in made
    assert made.count("&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt; &amp; {{ 7 * 7 }}") >= 5


def test_the_heat_map_has_every_cell_and_frames_the_chosen_one() -> None:
    made = page()
    assert re.findall(r'<td class="shade( chosen)?" style="--s:(\d+)%" title="standard', made) == [
        ("", "0"),
        (" chosen", "60"),
        ("", "30"),
    ]
    layers = re.findall(r'<tr><th scope="row">(\d)</th>(.*)</tr>', made)
    assert [(layer, row.count("<td></td>")) for layer, row in layers] == [("1", 0), ("2", 1)]


def test_transitions_are_shares_of_their_row() -> None:
    shown = page(transitions=Transitions((4, 0), ((1, 3), (0, 0)), (2, 2)))
    assert 'title="3 of 4">75<' in shown
    assert 'title="1 of 4">25<' in shown
    assert 'title="4 of 4">100<' in shown


def test_the_truth_is_shown_where_it_is_known() -> None:
    assert "Against the truth" not in page()
    scores = {"nmi": 0.5, "purity": 0.75, "ari": 0.25, "sentences": 8}
    truth = {"scores": {"operation": scores}, "confusion": {"operation": {"add": [6, 2]}}}
    made = page(truth=truth)
    assert "NMI 0.500, purity 0.750" in made
    assert 'title="6 of 8">75<' in made


def test_methods_stand_side_by_side() -> None:
    other = cell(1, 5, 0.6)
    other = replace(other, scores=replace(other.scores, method="kmeans", metrics=None))
    made = page(rows=[cell(1, 10, 0.5, chosen=True), other])
    assert made.index("The best of each method") < made.index('class="name">kmeans')
