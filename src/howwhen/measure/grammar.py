r"""A small grammar of sentences about numbers: which quantity a sentence gives as its result.

A text is cut into sentences of words, numbers, LaTeX and marks. A reader walks along a sentence and
gives each quantity a role: what is computed, what something *is*, what somebody has, or a mere
condition, an operand, a rate. Nothing here knows the question or the gold answer.
"""

import re
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

from howwhen.measure.kinds import Kind, Wanted
from howwhen.measure.numbers import NUMBER, as_number
from howwhen.measure.numerals import NUMERAL, NUMERAL_WORDS
from howwhen.measure.units import COMPOUND, UNITS, as_quantities


class Role(StrEnum):
    """What a quantity is in its sentence."""

    COMPUTED = "computed"
    """After the last equals sign of a computation."""
    STATED = "stated"
    """What something is, equals or costs, in a main clause."""
    RELATIVE = "relative"
    """After `which is`, `which equals` and the like."""
    OBJECT = "object"
    """After another verb of a main clause: `she has 12`."""
    SUBJECT = "subject"
    """Before the verb: `12 are left`."""
    CONSEQUENCE = "consequence"
    """After `which means that`."""
    ASIDE = "aside"
    """In brackets, or another name for what was said before."""
    CONDITION = "condition"
    """After a preposition, or in a clause with if, when, since, because."""
    MODIFIER = "modifier"
    """A factor, a rate or part of a name: `3 times as many`, `the 400-meter race`, `step 2`."""
    OPERAND = "operand"
    """What is computed with."""


class Token(NamedTuple):
    """A piece of a text."""

    kind: str
    """`word`, `number`, `numeral`, `math`, `equals`, `operator`, `mark` or `stop`."""
    text: str
    """Words in lower case."""
    start: int
    end: int


class Sentence(NamedTuple):
    """A sentence as tokens."""

    tokens: list[Token]
    label: str
    """What numbers it, such as `step 4:`, in lower case."""

    @property
    def is_question(self) -> bool:
        """Whether it asks. A computation with a question mark at its end only doubts."""
        return self.tokens[-1].text.startswith("?") and not any(
            token.kind == "equals" for token in self.tokens
        )


class Quantity(NamedTuple):
    """A number or a formula in a sentence."""

    text: str
    role: Role
    unit: tuple[str, ...]
    """Words that follow it, in lower case."""
    clause: int
    """Index of its clause."""
    part: int
    """Index of its part; `so`, `therefore` and the like open a part."""
    is_total: bool = False
    """Whether `in total`, `altogether` and the like follow it."""


class Reading(NamedTuple):
    """What a sentence says of quantities."""

    quantities: list[Quantity]
    denied: list[str]
    """Quantities that it says are not so."""
    clauses: list[set[str]]
    """Words of each clause, in lower case."""


_PROSE = r"(?<![\\A-Za-z{])[A-Za-z]{3,}\s"
MATH = re.compile(
    r"\$\$(?P<display>.+?)\$\$|\\\[(?P<bracket>.+?)\\\]|\\\((?P<paren>.+?)\\\)"
    r"|(?<![\\\w])\$(?!\d[\d,.]*(?:\s|[.,;]\s|$))"
    rf"(?P<inline>(?=\s)(?:(?!{_PROSE})(?:\\\$|[^$\n])){{1,400}}?|(?:(?!{_PROSE})(?:\\\$|[^$\n])){{1,400}}?(?<!\s))"
    r"(?<!\\)\$(?!\d)",
    re.DOTALL,
)
"""LaTeX between its delimiters. A dollar sign before a price is none."""
_TOKEN = re.compile(
    r"(?P<word>[A-Za-z]+(?:['\u2019-][A-Za-z]+)*)"
    rf"|(?P<math>{MATH.pattern})"
    rf"|(?P<number>{NUMBER.pattern})"
    r"|(?P<stop>[.!?…]+(?=[\s\"'*_)\]}`]|$)(?!(?<=\d!)\s?[=+\u00d7*/]))"
    r"|(?P<mark>[,;:()\[\]])"
    r"|(?P<break>[ \t]*\n\s*)"
    r"|(?P<equals>[=≈≃≅→]|\\approx\b|->)"
    r"|(?P<operator>[+/\u00d7÷^\u2212]|(?<!\*)\*(?=\s?[\d$(\\.])|-(?=\s?[\d$(])|\\(?:times|cdot|div)\b)",
    re.DOTALL,
)
_LABEL = re.compile(
    r"[ \t>*#_-]*(?P<label>(?:step|part)\s*\d+\s*[:.)]|\(?\d{1,3}[.)](?=[ \t*])"
    r"|(?:final\s)?answer\s*:)[*_]*",
    re.IGNORECASE,
)
ABBREVIATIONS = {"mr", "mrs", "ms", "dr", "st", "vs", "e.g", "i.e", "approx", "no", "jr"}
_NUMBER_IN_WORDS = re.compile(rf"{NUMBER.pattern}|{NUMERAL.pattern}", re.IGNORECASE)
_OPENS_DISPLAY = re.compile(r"\$\$|\\\[|\\begin|[=≈]")


def word_set(text: str) -> frozenset[str]:
    """The words of a text that has nothing but words."""
    return frozenset(text.split())


CUES = word_set(
    "therefore thus hence so consequently altogether finally overall then accordingly ultimately"
)
_CLOSING = word_set("altogether overall finally")
"""Cues that may also stand at the end of a clause."""
_IF = word_set(
    "if when whenever since because although though given assuming once until unless where suppose "
    "considering provided while whereas let knowing"
)
_AT = word_set(
    "with by in at on from than during within under through against among into between off out "
    "without beyond across above below over for of via around per every each like except after "
    "before"
)
_IS = word_set(
    "is are was were be equals equal becomes become became equaling totals totaling totalling "
    "yields gives give gave costs cost remains reaches it's that's there's"
)
_HAS = word_set(
    "has have had gets get got needs need spends spend spent earns earn earned paid pays pay made "
    "makes make sold sells sell takes take took will can would must should could may do does did "
    "bought buys walked left leaves eats ate used uses saved saves receives received he'll she'll "
    "they'll we'll"
)
_NOT = word_set(
    "not never cannot neither nor isn't aren't can't doesn't don't didn't won't wasn't weren't "
    "wouldn't couldn't shouldn't hasn't haven't isn\u2019t aren\u2019t can\u2019t doesn\u2019t"
)
_WRONG = word_set("wrong incorrect false impossible ruled excluded rejected")
_PRONOUNS = word_set("he she they it we you there i")
_PRONOUN_OBJECTS = word_set("him her them us me it you")
_ABOUT = word_set("about approximately roughly approx")
_STARTS = word_set("the this these he she they it we you there i his her their each")
_NEARLY = word_set(
    "about approximately roughly exactly only just still also now a an the therefore thus indeed "
    "simply currently precisely then nearly almost actually worth equal clearly always really "
    "least most both in fact his her its their our your my so x hence up even either"
)
_LABELS = word_set(
    "step day week month problem example method equation line option case part figure question "
    "page chapter year round group grade room bus stage phase number no fig item row column table"
)
_MEANS = word_set("means meant implies implying mean meaning")
_RELATIVES = word_set(
    "is are was were equals gives leaves totals comes becomes makes yields amounts rounds works "
    "adds simplifies reduces evaluates results turns brings"
)
_CLAUSE_VERBS = word_set("costs cost has have can will is are was were weigh weighs had")
RESULTING = word_set("leaving giving making bringing totaling totalling yielding resulting")
_REPORTS = word_set(
    "means mean know see find found conclude conclusion get shows show determine determined so "
    "implies imply say says note given such is know answer tells meaning conclude"
)
_ADVERBIAL = word_set(
    "total all fact conclusion summary average least most course end addition turn short words "
    "first last sum effect general particular other"
)
_COMPARATIVES = word_set(
    "lower higher greater larger smaller cheaper taller shorter longer older younger faster slower "
    "farther further heavier lighter differ differs more less fewer exceeds"
)
"""With `by`, they announce a difference."""
_ATTRIBUTIVE = word_set("a an the these those all both his her its their our my this")
"""A number between one of them and a noun describes what is known."""
_MULTIPLIED = word_set(
    "as more less the that what his her their its larger greater bigger older longer faster higher"
)
"""After `3 times`: a factor and not a count."""
_PARTITIVES = word_set("out each all half most some one none any many few both third quarter")
_OPERATIONS = word_set("times x plus minus divided multiplied over")
SPAN = 8
"""How many words after a quantity an operator still takes it as its left operand."""
REACH = 4
"""How many words before a number a preposition still governs it."""


def sentences_of(text: str, start: int = 0, until: int | None = None) -> list[Sentence]:
    """The sentences of a text between two positions, in order."""
    found: list[Sentence] = []
    tokens: list[Token] = []
    label = ""

    behind = start
    if label_match := _LABEL.match(text, start):
        label, behind = label_match["label"].lower(), label_match.end()
    for match in _TOKEN.finditer(text, behind, len(text) if until is None else until):
        first, end = match.span()
        if first < behind:
            continue
        kind, found_text = match.lastgroup or "", match[0]
        if kind == "word":
            found_text = found_text.lower()
            if found_text in NUMERAL_WORDS and (longer := _number_in_words(text, first, tokens)):
                kind, found_text, behind = "numeral", longer[0], longer.end()
                end = behind
            tokens.append(Token(kind, found_text, first, end))
        elif kind == "break":
            if tokens and not _goes_on(text, tokens[-1], end):
                found.append(Sentence(tokens, label))
                tokens, label = [], ""
            if not tokens and (label_match := _LABEL.match(text, end)):
                label, behind = label_match["label"].lower(), label_match.end()
        elif kind == "stop":
            if not (tokens and found_text == "." and tokens[-1].text in ABBREVIATIONS):
                tokens.append(Token(kind, found_text, first, end))
                found.append(Sentence(tokens, label))
                tokens, label = [], ""
        else:
            tokens.append(Token(kind, found_text, first, end))
    found.append(Sentence(tokens, label))
    return [one for one in found if any(token.kind not in _EMPTY_KINDS for token in one.tokens)]


TOTALS = word_set("altogether total combined overall")
_DETERMINERS = word_set(
    "the each that this which every no any another these those both his her their its"
)


def _number_in_words(text: str, start: int, before: list[Token]) -> re.Match[str] | None:
    """A number in words at a position; `the two` only names what is known."""
    if before and before[-1].text in _DETERMINERS:
        return None
    return _NUMBER_IN_WORDS.match(text, start)


_EMPTY_KINDS = frozenset(["stop", "mark"])


def _goes_on(text: str, last: Token, following: int) -> bool:
    """Whether a sentence goes on after a line break."""
    if last.text in (":", ",") or last.kind == "equals" or last.text in _IS:
        return True
    return last.kind != "stop" and _OPENS_DISPLAY.match(text, following) is not None


def inside_math(piece: str) -> str:
    """LaTeX without its delimiters and the marks at its end."""
    inside = piece.strip("$") if piece.startswith("$") else piece[2:-2]
    return inside.strip().rstrip(".,;").strip()


_RELATION = re.compile(r"=|≈|\\approx(?![A-Za-z])|\\equiv(?![A-Za-z])|\\Rightarrow|\\implies")
_SIGN = re.compile(r"[<>≤≥]|\\(?:le|ge|leq|geq|lt|gt|neq|ne)(?![A-Za-z])")
_NAME = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([A-Za-z]\))?")


def last_side(formula: str) -> str:
    """What follows the last equals sign; what precedes it if a name follows."""
    sides = [
        re.sub(r"(?:\\\\|[\s&,.;])+$", "", side).lstrip(" &") for side in _RELATION.split(formula)
    ]
    sides = [side for side in sides if side]
    if len(sides) < 2:
        return sides[0] if sides else formula
    if _NAME.fullmatch(sides[-1]) and as_number(sides[-2]) is not None:
        return sides[-2]
    return sides[-1]


_GRAMMATICAL = frozenset().union(
    _OPERATIONS, CUES, RESULTING, _NOT, _IF, _AT, _IS, _HAS, _WRONG, _NEARLY,
    word_set("which meaning who whose whom that instead rather but and or as to"),
)  # fmt: skip
"""Words that say how a sentence is built. Any other one is just content."""


class _Reader:
    """Walks along a sentence and notes the role of each quantity."""

    def __init__(self, text: str, tokens: list[Token], wanted: Wanted) -> None:
        self.text, self.tokens, self.wanted = text, tokens, wanted
        self.found: list[Quantity] = []
        self.denied: list[str] = []
        self.clauses: list[set[str]] = [set()]
        self.part = 0
        self.depth = 0
        """Of brackets."""
        self.behind = 0
        """Where the last quantity ended."""
        self.operator = -1
        """Index of the last operator that awaits its right operand."""
        self.equals = self._index_of_last = -9
        """Indices of the last equals sign and of the last quantity."""
        self.is_leading = False
        """Whether the condition opens the sentence."""
        self.is_weak = False
        """Whether the condition is a phrase and not a clause; an equation ends it."""
        self.verb_here = False
        """Whether this clause has a verb of its own."""
        self.listed = False
        """Whether the last comma came within a main clause."""
        self._open_main()

    def _open_main(self) -> None:
        self.clause = "main"
        self.has_verb = self.has_content = self.is_denied = False
        self.expected: Role | None = None
        self.governor = -9
        """Index of the last preposition that still waits for its number."""
        self.numbers = 0
        """Quantities in this clause so far."""

    def read(self) -> Reading:
        for index, token in enumerate(self.tokens):
            if token.start < self.behind:
                continue
            if token.kind == "word":
                self._word(index, token.text)
            elif token.kind in ("number", "numeral"):
                self._number(index, token)
            elif token.kind == "math":
                self._math(index, token)
            elif token.kind == "equals":
                self._equals(index)
            elif token.kind == "operator":
                self._operate(index)
            elif token.kind == "mark":
                self._mark(token.text)
        return Reading(_decided(self.found), self.denied, self.clauses)

    # Words

    def _word(self, index: int, word: str) -> None:
        self.clauses[-1].add(word)
        if word not in _GRAMMATICAL and self.clause != "condition":
            self.has_content = True
        elif word in _OPERATIONS and self._is_between_numbers(index):
            self._operate(index)
        elif word in CUES:
            self._cue(index)
        elif word in ("which", "meaning"):
            self._which(index)
        elif word in RESULTING and self._previous(index) == ",":
            self.part += bool(self.found)
            self.clause, self.expected, self.governor = "main", Role.RELATIVE, -9
            self.has_verb = True
        elif word in ("who", "whose", "whom") or (word == "that" and self._opens_clause(index)):
            self._condition(index)
        elif word in _NOT or word in ("instead", "rather"):
            self._deny(index, word)
        elif word == "but":
            self._join()
        elif word == "and":
            self.clauses.append(set())
            self.is_denied = False
        elif word == "or":
            self.clauses.append(set())
        elif word in _IF or (word == "as" and self._previous(index) in (",", "")):
            self._condition(index)
        elif word == "to":
            self._to(index)
        elif word in _AT:
            self._preposition(index, word)
        elif word in _IS:
            self._is(index)
        elif word in _HAS:
            self._verb()
        elif self.clause == "condition" and self._starts_anew(index, word):
            self._open_main()
            self.has_content = True
        elif word in _WRONG and self.found and self.numbers == 1 and self.expected:
            self.denied.append(self.found.pop().text)
        elif word not in _NEARLY:
            self.has_content = True

    def _deny(self, index: int, word: str) -> None:
        """Deny what follows, if that is what something is; `cannot place 12` denies no number."""
        following = self._next(index)
        if word in ("instead", "rather"):
            self.is_denied = following in ("of", "than")
        elif following == "be":
            self.is_denied = self._next(index + 1) != "able"
        else:
            is_a_verb = (
                word.startswith(("is", "are", "was", "were")) or self._previous(index) in _IS
            )
            after = self.tokens[index + 1].kind if following else ""
            self.is_denied = is_a_verb or after in ("number", "numeral", "math")

    def _cue(self, index: int) -> None:
        word, following = self.tokens[index].text, self._next(index)
        if word == "so" and following in ("far", "many", "much"):
            return
        if word == "so" and following == "that" and self._next(index + 1) not in _RELATIVES:
            self._condition(index)  # `so that` with an aim, not `so that makes`
            return
        if self._previous(index) == "or" or (word in _CLOSING and index):
            return
        if self.found or self.clause == "condition":
            self.part += bool(self.found)
            self.clauses.append(set())
            self._open_main()

    def _which(self, index: int) -> None:
        following = self._next(index)
        self.clauses.append(set())
        self.is_denied = False
        if self.tokens[index].text == "meaning" or following in _MEANS:
            self.clause, self.expected = "consequence", None
        elif following in _RELATIVES or following in _NEARLY:
            self.clause, self.expected, self.governor = "main", Role.RELATIVE, -9
            self.has_verb = True
        else:
            self.clause = "condition"

    def _opens_clause(self, index: int) -> bool:
        """Whether `that` opens a relative clause."""
        previous = self.tokens[index - 1] if index else None
        if previous is None or previous.kind != "word" or previous.text in _REPORTS:
            return False
        return self._next(index) in _CLAUSE_VERBS

    def _condition(self, index: int) -> None:
        word = self.tokens[index].text
        self.is_leading = not self.found and not self.has_content
        self.is_weak = word not in _IF
        self.clause, self.expected = "condition", None
        self.numbers = 0

    def _to(self, index: int) -> None:
        following = self.tokens[index + 1] if index + 1 < len(self.tokens) else None
        if following is None:
            return
        if following.kind != "word" or following.text in _NEARLY:
            if self.clause == "main" and not self.numbers:
                self.expected = self.expected or Role.STATED
                self.governor = -9
        elif self.numbers and self.clause == "main":
            self._condition(index)

    def _preposition(self, index: int, word: str) -> None:
        if word == "in" and self._next(index) == "other":
            self.expected = Role.RELATIVE
        if word == "by" and self._previous(index) in _COMPARATIVES and self.clause == "main":
            self.expected, self.governor = Role.STATED, -9
            return
        if self._next(index) in _ADVERBIAL or (word in ("out", "up") and self._next(index) == "to"):
            return
        if self.expected is Role.RELATIVE and self._previous(index) in RESULTING | _PRONOUN_OBJECTS:
            return
        if word == "of":
            previous = self.tokens[index - 1] if index else None
            is_partitive = previous is None or (
                previous.kind != "word" or previous.text in _PARTITIVES
            )
            if self._previous(index) in ("total", "sum") and self.clause == "main":
                self.expected, self.governor = Role.STATED, -9
                return
            is_attribute = bool(self.found) and index - self._index_of_last <= 3
            if not (is_partitive or is_attribute):
                return
        if (
            index == 0
            or not (self.found or self.has_content)
            or (word in ("after", "before") and self.numbers)
        ):
            self._condition(index)
        else:
            self.governor = index

    def _is(self, index: int) -> None:
        if self.clause == "condition":
            if not self._closes_condition(index):
                return
            self._open_main()
        if self.clause == "main":
            self._demote_subject()
            self.has_verb, self.verb_here, self.governor = True, True, -9
            if self.expected is not Role.RELATIVE:
                self.expected = Role.STATED

    def _demote_subject(self) -> None:
        """What stood before the verb belongs to the subject: `the length of 3 rows is 12`."""
        if self.has_verb or not self.numbers or not self.found:
            return
        last = self.found[-1]
        if last.role is Role.OBJECT and last.clause == len(self.clauses) - 1:
            self.found[-1] = last._replace(role=Role.MODIFIER)

    def _closes_condition(self, index: int) -> bool:
        """Whether a verb belongs to the main clause around a condition: `x when a is 8 is 6`."""
        return self.numbers > 0 and not self._has_comma_ahead(index)

    def _verb(self) -> None:
        if self.clause == "main":
            self.has_verb, self.verb_here, self.governor = True, True, -9
            self.expected = None

    def _starts_anew(self, index: int, word: str) -> bool:
        """Whether a subject follows a leading condition that no comma closes."""
        if not (self.is_leading and self.numbers):
            return False
        return word in _PRONOUNS or (word in _STARTS and not self._has_comma_ahead(index))

    def _is_between_numbers(self, index: int) -> bool:
        if not self.found or index + 1 >= len(self.tokens):
            return False
        following = self.tokens[index + 1]
        if following.text == "by" and index + 2 < len(self.tokens):
            following = self.tokens[index + 2]
        return following.kind in ("number", "math", "numeral") or following.text in ("(", "the")

    # Marks

    def _mark(self, mark: str) -> None:
        if mark in "([":
            self.depth += 1
        elif mark in ")]":
            self.depth = max(0, self.depth - 1)
        elif self.depth == 0 and mark == ":":
            self._colon()
        elif self.depth == 0:
            self._comma(mark)

    def _colon(self) -> None:
        """What follows a colon is what was announced."""
        if self.clause == "condition":
            self._open_main()
        self.expected, self.governor = self.expected or Role.STATED, -9

    def _comma(self, mark: str) -> None:
        self.clauses.append(set())
        self.is_denied = False
        self.verb_here, self.listed = False, self.clause == "main"
        if self.clause != "main" or mark == ";":
            self._open_main()
        self.governor = -9
        self.is_leading = False

    def _join(self) -> None:
        self.clauses.append(set())
        self.is_denied = False
        if self.clause == "condition" and not self.is_leading:
            self._open_main()

    def _operate(self, index: int) -> None:
        self.operator = index
        if self.found and index - self._index_of_last < SPAN:
            last = self.found[-1]
            self.found[-1] = last._replace(role=Role.OPERAND)

    def _equals(self, index: int) -> None:
        self.operator = -1
        self.equals = index
        if self.is_weak:
            self.clause = "main"
        if self.found and index - self._index_of_last < SPAN:
            last = self.found[-1]
            role = Role.COMPUTED if self._names(index) else Role.OPERAND
            self.found[-1] = last._replace(role=role)

    def _names(self, index: int) -> bool:
        """Whether only a name follows an equals sign: `21 = x`."""
        rest = [token for token in self.tokens[index + 1 : index + 3] if token.kind != "stop"]
        return len(rest) == 1 and rest[0].kind == "word" and len(rest[0].text) == 1

    # Quantities

    def _number(self, index: int, token: Token) -> None:
        if token.text.startswith(("minus", "Minus")) and 0 < index - self._index_of_last < REACH:
            self._operate(index)
        compound = COMPOUND.match(self.text, token.start) if token.kind == "number" else None
        text, end = token.text.strip(), token.end
        if compound and as_quantities(compound[0]):
            text, end = compound[0], compound.end()
        else:
            compound = None
        self.behind = end
        following = self._next(index)
        after = self.tokens[index + 2 : index + 3]
        is_inches = following != "in" or not (after and after[0].kind in _WORDY)
        is_unit = following.removesuffix("s") in UNITS and is_inches
        if compound is None and is_unit:
            text = f"{text} {following}"
        self._add(index, text, self._role(index, token))

    def _math(self, index: int, token: Token) -> None:
        inside = inside_math(token.text)
        side = last_side(inside)
        if not side:
            return  # nothing between the delimiters
        is_relation = bool(_RELATION.search(inside))
        is_number = as_number(side) is not None
        if self.wanted.kind is Kind.NUMBER:
            if not is_number:
                self._name(inside)
                return
            text = side
        else:
            text = inside if self.wanted.is_relation else side
        role = self._role(index, token)
        if is_relation and self.clause == "main" and role not in (Role.ASIDE, Role.CONDITION):
            role = Role.COMPUTED
        elif _SIGN.search(inside) and not self.wanted.is_relation:
            role = Role.MODIFIER
        self._add(index, text, role)

    def _name(self, formula: str) -> None:
        """A formula that stands for a word."""
        self.clauses[-1].add(re.sub(r"\s", "", formula))
        self.has_content = True

    def _add(self, index: int, text: str, role: Role) -> None:
        clause = len(self.clauses) - 1
        if self.is_denied and self.clause != "condition":
            self.denied.append(text)
        elif self._is_alternative(index) and self.found[-1].text != text:
            last = self.found[-1]
            self.found[-1] = last._replace(
                text=f"{last.text} or {text}",
                unit=self._unit(index),
                role=self._alternative_role(last.role),
            )
        else:
            is_total = self._is_total(index)
            if is_total and self._previous(index) == "," and role is not Role.OPERAND:
                role = Role.RELATIVE  # `3 of hers and 4 of his, 7 in all`
            self.found.append(Quantity(text, role, self._unit(index), clause, self.part, is_total))
        self.numbers += 1
        self._index_of_last = index
        self.governor = -9
        if role in (Role.STATED, Role.RELATIVE):
            self.expected = None

    def _alternative_role(self, role: Role) -> Role:
        """That of two alternatives; the first of two equations was taken for an operand."""
        if role is not Role.OPERAND:
            return role
        return Role.CONDITION if self.clause == "condition" else Role.STATED

    def _is_alternative(self, index: int) -> bool:
        """Whether this number is one of two between which a sentence does not decide."""
        if not self.found or self.depth:
            return False
        between = self.tokens[self._index_of_last + 1 : index]
        if len(between) > 2 and between[-1].kind == "equals":
            between = between[:-2]  # a name and its equals sign
        if not between or between[-1].text != "or":
            return False
        return not any(token.kind == "mark" for token in between)

    def _role(self, index: int, token: Token) -> Role:
        following = self.tokens[index + 1] if index + 1 < len(self.tokens) else None
        previous = self._previous(index)
        is_computed = index - self.equals < 3
        if not is_computed and self._is_modifier(token, following, previous):
            return Role.MODIFIER
        if self.operator >= 0 and index - self.operator < REACH:
            self.operator = -1
            return Role.OPERAND
        if self.depth:
            return Role.ASIDE
        if self.clause == "condition":
            return Role.CONDITION
        if self.wanted.kind is Kind.EXPRESSION and (
            previous in _ABOUT or (is_computed and self.tokens[self.equals].text in "≈≃≅\\approx")
        ):
            return Role.MODIFIER  # where an exact value is wanted
        if is_computed:
            return Role.COMPUTED
        is_next = self.found and previous == "and" and self._index_of_last == index - 2
        if is_next and self.found[-1].role is Role.CONDITION:
            return Role.CONDITION  # `for $a = 6$ and $b = 3$`
        if index - self.governor <= REACH:
            return Role.CONDITION
        if self.clause == "consequence":
            return Role.CONSEQUENCE
        if self.expected is not None:
            return self.expected
        if self._continues_a_list():
            return Role.CONDITION
        return Role.OBJECT if self.has_verb or self.has_content else Role.SUBJECT

    def _continues_a_list(self) -> bool:
        """Whether only a comma or `and` parts a number from one that a preposition governs."""
        if not self.found or self.found[-1].role is not Role.CONDITION:
            return False
        return not self.verb_here and self.found[-1].part == self.part and self.listed

    def _is_modifier(self, token: Token, following: Token | None, previous: str) -> bool:
        if previous in _ATTRIBUTIVE and following is not None and following.kind == "word":
            return True
        if previous in _LABELS and token.text.isdigit():
            return following is None or following.kind != "word" or following.text in _AT | _IS
        if self.text[token.end : token.end + 1] == "-" and self.text[token.end + 1 :][:1].isalpha():
            return True
        if following is None:
            return False
        if following.text == "times":
            after = self.text[following.end :].split(maxsplit=1)[:1]
            return bool(after) and after[0].lower() in _MULTIPLIED
        return previous == "per" and following.text != "="

    def _unit(self, index: int) -> tuple[str, ...]:
        """The words that follow a quantity, up to the next verb, preposition or mark."""
        words: list[str] = []
        start = index + 1
        if self._next(index) == "of":  # `20 of the 25 pens`
            start += 1 + sum(
                token.text in _NEARLY or token.kind == "number"
                for token in self.tokens[start + 1 : start + 3]
            )
        for token in self.tokens[start : start + 5]:
            if token.start < self.behind:
                continue
            if token.kind != "word" or len(words) == 4:
                break
            word = token.text
            if word in _IS or word in _HAS or word in _AT or word in _STOPS:
                break
            if word not in _AMOUNTS:
                words.append(word)
        return tuple(words)

    def _is_total(self, index: int) -> bool:
        words = [token.text for token in self.tokens[index + 1 : index + 5]]
        return any(word in TOTALS for word in words) or ("in", "all") in pairwise(words)

    def _previous(self, index: int) -> str:
        return self.tokens[index - 1].text if index else ""

    def _next(self, index: int) -> str:
        return self.tokens[index + 1].text if index + 1 < len(self.tokens) else ""

    def _has_comma_ahead(self, index: int) -> bool:
        return any(token.text == "," for token in self.tokens[index:])


def _decided(quantities: list[Quantity]) -> list[Quantity]:
    """Quantities without alternatives of which the sentence names one by itself."""
    if not any(" or " in one.text for one in quantities):
        return quantities
    values = {as_number(one.text) for one in quantities} - {None}
    return [
        one
        for one in quantities
        if " or " not in one.text
        or values.isdisjoint(as_number(part) for part in one.text.split(" or "))
    ]


_WORDY = frozenset(["word", "number", "numeral"])
_AMOUNTS = word_set(
    "more less fewer left remaining total altogether together extra additional apiece away "
    "combined now other again longer later earlier ago"
)
"""Words after a number that are not its unit."""
_STOPS = CUES | _IF | word_set("and or but which that to as than meaning")


def read_sentence(text: str, sentence: Sentence, wanted: Wanted) -> Reading:
    """The quantities of a sentence and their roles."""
    return _Reader(text, sentence.tokens, wanted).read()
