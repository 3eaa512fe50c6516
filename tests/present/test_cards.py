import re
from dataclasses import replace

from howwhen.present.cards import trace_card
from howwhen.records import Grade, HybridToken, Problem
from tests.discover.pages import HOSTILE, Tags
from tests.present.planted import IDS, PROBLEMS, TOKENIZER, graded, trace

TITLES = ("recall", "check")


def tokens(card: str) -> list[tuple[str, str, str]]:
    """Attributes, details and text of every token."""
    view = card.split('<div class="tokens">')[1].split("</div>")[0]
    return re.findall(r'<span([^>]*) title="([^"]*)">([^<]*)</span>', view)


def test_a_card_has_every_token_of_the_answer_and_is_well_formed() -> None:
    card = trace_card(trace(PROBLEMS[7]), TOKENIZER, TITLES)
    assert "".join(text for _, _, text in tokens(card)) == TOKENIZER.decode(IDS)
    assert len(tokens(card)) == len(IDS) + 1
    assert not Tags(card).open


def test_a_disagreement_says_who_wanted_what() -> None:
    attributes, details, _ = tokens(trace_card(trace(PROBLEMS[7]), TOKENIZER, TITLES))[3]
    assert 'class="decision"' in attributes
    assert "--own:var(--c1)" in attributes
    wrote, base = TOKENIZER.decode([IDS[3]]), TOKENIZER.decode([IDS[4]])
    assert details.replace("&#39;", "'").splitlines() == [
        "token 4: a disagreement",
        f"written: {wrote!r}",
        f"wanted by the base: {base!r}",
        "steered with: 1 check, coefficient 1.5, last 2 positions",
        "log-probability: -2.00 base, -0.25 thinking model (nats)",
        f"tried: 0.5 on 1: {base!r}",
    ]


def test_a_token_without_disagreement_has_no_mark() -> None:
    attributes, details, _ = tokens(trace_card(trace(PROBLEMS[7]), TOKENIZER, TITLES))[0]
    assert not attributes.strip()
    assert "as the base chose" in details
    reverse = replace(trace(PROBLEMS[7]), rung="reverse-takeover")
    assert "as the thinking model chose" in tokens(trace_card(reverse, TOKENIZER, TITLES))[0][1]
    unread = replace(
        trace(PROBLEMS[7]),
        tokens=(HybridToken(IDS[0], IDS[0], None, None, None, 0, False, -1.0, None),),
    )
    [(_, details, _)] = tokens(trace_card(unread, TOKENIZER, TITLES))
    assert details.endswith("log-probability: -1.00 base (nats)")


def test_a_kept_token_is_marked_and_an_end_has_a_sign() -> None:
    end = TOKENIZER.eos_token_id
    kept = HybridToken(end, end, end, None, None, 0, True, -1.0, -1.0)
    card = trace_card(replace(trace(PROBLEMS[7]), tokens=(kept,)), TOKENIZER, TITLES)
    [(attributes, details, text)] = tokens(card)
    assert 'class="decision kept"' in attributes
    assert "style" not in attributes
    assert "base&#39;s own choice after all" in details
    assert text == "⏎"


def test_grades_come_with_their_reason() -> None:
    card = trace_card(trace(PROBLEMS[7]), TOKENIZER, TITLES, PROBLEMS[7], graded(PROBLEMS[7]))
    assert "✓ correct" in card
    assert "Read 7 (stated), which equals 7" in card
    assert "Gold answer: 7" in card
    truncated = graded(PROBLEMS[7], flexible=Grade.TRUNCATED, strict=Grade.NO_ANSWER)
    card = trace_card(trace(PROBLEMS[7]), TOKENIZER, TITLES, PROBLEMS[7], truncated)
    assert "? truncated (strict mode: no answer)" in card


def test_a_question_without_a_gold_answer_has_no_grade() -> None:
    card = trace_card(trace(PROBLEMS[7]), TOKENIZER, TITLES, Problem("0", "How many?", ""))
    assert "How many?" in card
    assert "Gold answer" not in card
    assert 'class="grade' not in card


def test_hostile_texts_stay_texts() -> None:
    problem = Problem("0", HOSTILE, HOSTILE)
    shown = trace_card(
        trace(problem), TOKENIZER, ("recall", HOSTILE), problem, graded(problem, answer=HOSTILE)
    )
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") >= 5
    assert not Tags(shown).open


def test_a_card_asks_nothing_of_any_network_and_runs_no_script() -> None:
    card = trace_card(trace(PROBLEMS[7]), TOKENIZER, TITLES, PROBLEMS[7], graded(PROBLEMS[7]))
    assert not re.search(r"https?:|url\(|@import|<script|\son\w+=|\ssrc=|\shref=", card)
    styled = re.search(r"<style>(.*?)</style>", card, re.S)
    assert styled is not None
    rules = re.sub(r"@media[^{]*{(.*?})\s*}", r"\1", styled[1])
    selectors = re.findall(r"(?:^|})\s*([^{}]+){", rules)
    assert selectors
    for selector in selectors:
        assert all(
            part.strip().startswith(".howwhen-cell") for part in re.split(r",\s*(?=\.)", selector)
        )
