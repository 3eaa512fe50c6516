"""Which quantity a text concludes with: every quantity of its last sentences gets points.

The points say how a careful reader weighs what a quantity is in its sentence, whether it is what
the question asks for, and where its sentence stands. They were rounded from weights fitted on half
of the worked solutions of GSM8K's training set and on model answers, and set by hand where these
have no examples (LOG.md).
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from howwhen.measure.grammar import (
    CUES,
    RESULTING,
    TOTALS,
    Quantity,
    Reading,
    Role,
    Sentence,
    read_sentence,
    sentences_of,
)
from howwhen.measure.kinds import Wanted, split_list
from howwhen.measure.questions import Asked, plain_number, plain_sentence, stems

TAIL = 2000
"""Characters at the end of a text that are searched for its conclusion."""
SENTENCES = 8
"""Sentences and lines at the end that are read first; all of the tail if they hold no quantity."""

ROLES = {
    Role.COMPUTED: 20, Role.RELATIVE: 18, Role.STATED: 14, Role.OBJECT: 12, Role.SUBJECT: 9,
    Role.CONSEQUENCE: 8, Role.MODIFIER: 2, Role.CONDITION: 4, Role.ASIDE: 2, Role.OPERAND: -12,
}  # fmt: skip
"""Points for what a quantity is in its sentence."""
STEPS_BACK = (0, -25, -32, -37)
"""Points for how many concluding sentences follow; earlier ones are not read."""
ASKED_UNIT, ASKED_NOUN, ASKED_WORD = 15, 10, 5
"""It has the unit that is asked for; it has none, but its clause names it; its clause has a word of
the question."""
MAX_ASKED_WORDS = 3
MORE_OF_UNIT = 6
"""For each further word of the unit: `red marbles` and not just `marbles`."""
OTHER_UNIT = -5
"""It has another unit than the one that is asked for."""
OTHER_SUBJECT = -10
"""Nothing in its clause is in the question."""
GIVEN = -13
"""The question states the same number."""
TOTAL = 8
"""`In total`, `altogether` or the like follows it."""
NUMERAL = -25
"""It is written as a word."""
LAST_PART = 12
"""It follows `so` or `therefore` within its sentence."""
BEFORE_ANOTHER = {Role.COMPUTED: -18}
BEFORE_ANY = -4
"""Another quantity of the same role follows in its sentence."""
CUE_WITHOUT_QUESTION = 36
"""Its sentence opens so, nothing is computed after it, and no question tells what is asked."""
CUE, ANSWER, CHECK, REMARK, SETUP = 8, 20, -12, -14, -6
"""Its sentence opens with `therefore` or the like; names the answer; checks; remarks; plans."""

_CUE = re.compile(
    r"\W*(?:therefore|thus|hence|so|in conclusion|conclusion|consequently|altogether|in total|"
    r"in all|finally|final|as a result|overall|in summary|in the end|ultimately|accordingly)\b",
    re.IGNORECASE,
)
_ANSWER = re.compile(
    r"\banswer\b(?:\s+\w+){0,6}?\s*(?:\bis\b|\bare\b|=|:)|\bis the (?:\w+ )?answer\b", re.IGNORECASE
)
_CHECK = re.compile(
    r"\b(?:verif|check|correct|consistent|includes?\b|match(?:es)? |indeed\b|satisf|agrees"
    r"|as it should|as expected)"
    r"|\bconfirm(?!\w* that)",
    re.IGNORECASE,
)
_REMARK = re.compile(
    r"\W*(?:(?:this|these)\s(?!(?:\w+\s)?(?:gives?|makes?|leaves?|means?|brings?|equals?|comes)\b"
    r"|(?:\w+\s)?(?:is|are)\W(?:about|approximately|exactly|equal to|a total of)?\W{0,4}\d)"
    r"|note\b|let's|let us|"
    r"remember|please|thank|yes\b|you\b|i\b|we can see|it's|for example|recall|if you|"
    r"the (?:problem|calculation|reasoning|solution|step)s?\b|"
    r"(?:that|this|it)(?:'s| is| was) (?:almost|nearly|just|roughly|close|more than|less than)\b|"
    r"(?:for (?:comparison|reference|fun)|by the way|incidentally|interestingly|in other words|"
    r"as an? (?:decimal|aside|side note)|at (?:this|that|his|her|its|their) (?:rate|pace))\b)",
    re.IGNORECASE,
)
_UNREAL = re.compile(r"\bwould have (?:\w+ )?\w+", re.IGNORECASE)
_SETUP = re.compile(
    r"\W*(?:let\b|first\b|next\b|given\b|initially\b|suppose\b|we know|we have|we need|"
    r"to (?:find|solve|determine|calculate|get)\b)",
    re.IGNORECASE,
)


_TOTALS = TOTALS | {"all"}
_OPENING = CUES | RESULTING
"""Words that open a part within a sentence."""


class Candidate(NamedTuple):
    """A quantity that may be the answer."""

    points: int
    quantity: Quantity
    reading: Reading
    """Of its sentence."""


def conclude(text: str, wanted: Wanted, asked: Asked, least: float = -math.inf) -> str | None:
    """The quantity that a text concludes with; None if it names none with at least such points."""
    near = _nearest(text) or _last_sentences(text)
    search = _Search(text, wanted, asked)
    search.read_back(sentences_of(text, near))
    if near and search.may_be_beaten():
        far = min(near, _last_sentences(text))
        if search.may_change(far, near):
            search.read_back(sentences_of(text, far, near))
        if search.best is None and far:
            search.read_back(sentences_of(text, max(0, len(text) - TAIL), far))
    best = search.best
    if best is None or best.points < least:
        return None
    return _with_its_like(best, wanted) if wanted.parts > 1 else best.quantity.text


def _with_its_like(best: Candidate, wanted: Wanted) -> str:
    """Where several results are wanted, those of a sentence with the same role."""
    like = [one.text for one in best.reading.quantities if one.role is best.quantity.role]
    if len(split_list(best.quantity.text)) > 1 or len(like) < 2:
        return best.quantity.text
    return ", ".join(like[-wanted.parts :])


class _Search:
    """Reads sentences from the last one back; those that cannot win are put off."""

    def __init__(self, text: str, wanted: Wanted, asked: Asked) -> None:
        self.text, self.wanted, self.asked = text, wanted, asked
        self.best: Candidate | None = None
        self.steps = 0
        """Conclusions read so far."""
        self.denied: set[str] = set()
        self.put_off: list[Sentence] = []
        self.cue = CUE_WITHOUT_QUESTION if asked.is_empty else CUE
        self.most = max(ROLES.values())
        """Most points of a quantity, but for what the words of its sentence show."""
        if not asked.is_empty:
            self.most += ASKED_WORD * MAX_ASKED_WORDS + ASKED_UNIT
            self.most += MORE_OF_UNIT * max(0, len(asked.nouns) - 1)

    def read_back(self, sentences: Sequence[Sentence]) -> None:
        """Read sentences, the last one first, until those before count no more."""
        for sentence in reversed(sentences):
            if self.steps == len(STEPS_BACK):
                return
            if sentence.is_question or self._is_asked(sentence):
                continue
            if not self._may_win(sentence):
                self.put_off.append(sentence)
                continue
            for one in (*self.put_off, sentence):  # what is denied after a sentence counts in it
                self._read(one)
                if self.steps == len(STEPS_BACK):
                    return
            self.put_off.clear()

    def may_be_beaten(self) -> bool:
        """Whether any sentence before those that were read could win."""
        if self.best is None:
            return True
        most = self.most + self.cue + ANSWER + TOTAL + LAST_PART
        return self.steps < len(STEPS_BACK) and most + STEPS_BACK[self.steps] > self.best.points

    def may_change(self, start: int, end: int) -> bool:
        """Whether anything in a part of the text, before all that was read, may win."""
        if self.best is None:
            return True
        part = self.text[start:end].lower()
        most = self.most + STEPS_BACK[self.steps] + self.cue + ANSWER * ("answer" in part)
        if any(word in part for word in _TOTALS):
            most += TOTAL
        if most <= self.best.points:
            return False
        if any(word in part for word in _OPENING):
            most += LAST_PART
        return most > self.best.points

    def _is_asked(self, sentence: Sentence) -> bool:
        """Whether the question says the same."""
        if not self.asked.sentences:
            return False
        words = self.text[sentence.tokens[0].start : sentence.tokens[-1].end]
        return plain_sentence(words) in self.asked.sentences

    def _may_win(self, sentence: Sentence) -> bool:
        if self.best is None:
            return True
        words = {token.text for token in sentence.tokens}
        most = self.most + STEPS_BACK[self.steps] + TOTAL * (not words.isdisjoint(_TOTALS))
        most += LAST_PART * (not words.isdisjoint(_OPENING))
        is_named = "answer" in words or "answer" in sentence.label
        if most + self.cue + ANSWER * is_named <= self.best.points:
            return False
        return most + _place(self.text, sentence, self.cue)[0] > self.best.points

    def _read(self, sentence: Sentence) -> None:
        reading = read_sentence(self.text, sentence, self.wanted)
        self.denied.update(reading.denied)
        if not reading.quantities:
            return
        place, is_conclusion = _place(self.text, sentence, self.cue)
        if any(quantity.role is Role.COMPUTED for quantity in reading.quantities):
            self.cue = CUE
        place += STEPS_BACK[self.steps]
        clauses = [stems(clause) for clause in reading.clauses]
        for index, quantity in enumerate(reading.quantities):
            if quantity.text in self.denied:
                continue
            points = place + _points(reading, index, clauses, self.asked)
            if self.best is None or points > self.best.points:
                self.best = Candidate(points, quantity, reading)
        self.steps += is_conclusion


_BREAK = re.compile(r"[.!?]\s+(?=\S)|\n\s*(?=\S)")


def _last_sentences(text: str) -> int:
    """Where the last few sentences of a text begin."""
    start = max(0, len(text) - TAIL)
    ends = [match.end() for match in _BREAK.finditer(text, start)]
    return ends[-SENTENCES] if len(ends) >= SENTENCES else start


NEAR = 600
"""Characters at the end of a text in which the sentences that are read first begin."""
_SOME_BREAK = re.compile(r"[.!?]\s+(?=[A-Z])|\n\s{0,3}\n(?=[A-Z*#])")
_ENDS_CLEARLY = re.compile(
    r"(?:[a-z]{3}|[a-z\d]\)|(?:[^\n]\d|[,}])\d)[.!?]$"
    r"|(?<!\bis)(?<!\bare)(?<!equals)(?<=[a-z\d.!?*)%$}\]])\n$"
)
"""The last characters of a sentence that ends without a doubt."""


def _nearest(text: str) -> int:
    """Where the last two sentences of a text begin; 0 if that is not clear."""
    breaks = _SOME_BREAK.finditer(text, max(0, len(text) - NEAR))
    clear = [
        match.end()
        for match in breaks
        if _ENDS_CLEARLY.search(text, max(0, match.start() - 8), match.start() + 1)
    ]
    return clear[-min(2, len(clear))] if clear else 0


def _place(text: str, sentence: Sentence, cue: int) -> tuple[int, bool]:
    """Points of a sentence, and whether it can conclude anything."""
    words = text[sentence.tokens[0].start : sentence.tokens[-1].end]
    points = cue if _CUE.match(words) else 0
    if "answer" in sentence.label or _ANSWER.search(words):
        points += ANSWER
    is_check = bool(_CHECK.search(words))
    is_remark = words[0] == "(" or bool(_REMARK.match(words) or _UNREAL.search(words))
    points += CHECK * is_check + REMARK * is_remark
    if _SETUP.match(words):
        points += SETUP
    return points, not (is_check or is_remark)


def _points(reading: Reading, index: int, clauses: list[frozenset[str]], asked: Asked) -> int:
    quantity = reading.quantities[index]
    role, text = quantity.role, quantity.text
    points = ROLES[role]
    if role is not Role.OPERAND and any(
        other.role is role for other in reading.quantities[index + 1 :]
    ):
        points += BEFORE_ANOTHER.get(role, BEFORE_ANY)
    if 0 < quantity.part == reading.quantities[-1].part:
        points += LAST_PART
    if text[0].isalpha() and not any(character.isdigit() for character in text):
        points += NUMERAL
    points += TOTAL * quantity.is_total
    if asked.is_empty:
        return points
    if plain_number(text) in asked.givens:
        points += GIVEN
    return points + _match(quantity, clauses[quantity.clause], asked)


def _match(quantity: Quantity, clause: frozenset[str], asked: Asked) -> int:
    """Points for how well a quantity is what the question asks for."""
    unit = stems(quantity.unit)
    is_money = "$" in quantity.text or not unit.isdisjoint(("dollar", "cent"))
    is_percentage = "%" in quantity.text or "percent" in quantity.text.replace("per c", "perc")
    words = len(asked.words & clause)
    points = ASKED_WORD * min(MAX_ASKED_WORDS, words)
    if (
        not asked.nouns.isdisjoint(unit)
        or (asked.is_money and is_money and "cent" not in asked.nouns)
        or (asked.is_percentage and is_percentage)
    ):
        return points + ASKED_UNIT + MORE_OF_UNIT * max(0, len(asked.nouns & unit) - 1)
    is_named = not asked.nouns.isdisjoint(clause)
    if (unit or is_money) and asked.wants_unit and asked.words.isdisjoint(unit):
        return points + OTHER_UNIT
    if is_named:
        return points + ASKED_NOUN
    if quantity.role is Role.STATED and not words and clause - _NEUTRAL:
        points += OTHER_SUBJECT
    return points


_NEUTRAL = frozenset(["answer", "result", "sum", "difference", "final", "get", "solution", "x"])
"""Stems that fit every question."""
