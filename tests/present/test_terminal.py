import io

from rich.console import Console

from howwhen.present.terminal import Painter, show, style, summary
from howwhen.records import Candidate, HybridToken
from howwhen.zoo.tally.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()
IDS = TOKENIZER("Ann starts with 7 pens.", add_special_tokens=False)["input_ids"]
PLAIN = [HybridToken(i, i, i, None, None, 0, False, -0.1, -0.1) for i in IDS]
STEERED = HybridToken(
    IDS[1], IDS[2], IDS[1], 1, 1.5, 1, True, -2.0, -0.1, (Candidate(0.5, 1, IDS[2], -3.0),)
)
OWN = HybridToken(IDS[3], IDS[4], IDS[3], None, None, 0, True, -2.0, -0.1)
TOKENS = [PLAIN[0], STEERED, PLAIN[2], OWN, *PLAIN[4:]]


def test_every_token_comes_as_text_with_its_style() -> None:
    painter = Painter(TOKENIZER, ("recall", "check"))
    pieces = [piece for _, piece in painter.pieces(TOKENS)]
    assert "".join(piece.plain for piece in pieces) == TOKENIZER.decode(IDS)
    assert [bool(piece.style) for piece in pieces[:4]] == [False, True, False, True]
    assert "underline" in style(STEERED)
    ended = [*TOKENS, PLAIN[0]._replace(id=TOKENIZER.eos_token_id)]
    ending = Painter(TOKENIZER, (), frozenset({TOKENIZER.eos_token_id})).pieces(ended)
    assert "".join(piece.plain for _, piece in ending) == TOKENIZER.decode(IDS)
    assert "underline" not in style(STEERED._replace(base_id=STEERED.id))
    assert style(STEERED) != style(STEERED._replace(category=0))


def test_why_has_a_row_per_decision_with_titles_and_candidates() -> None:
    console = Console(file=io.StringIO(), width=160, record=True)
    show(console, Painter(TOKENIZER, ("recall", "check")), TOKENS, is_why=True)
    text = console.export_text()
    assert TOKENIZER.decode(IDS).strip() in text.replace("\n", " ")
    assert summary(TOKENS) in text
    assert f"{len(TOKENS)} tokens, 2 disagreements" in text
    rows = [line for line in text.splitlines() if "check" in line and "1.50" in line]
    assert len(rows) == 1
    assert "0.5:" in rows[0]
