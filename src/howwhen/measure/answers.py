r"""Reading the final answer out of a text: the rules, in the order in which they are tried.

Strict mode takes only an answer that is marked as one: in a box, after `####`, or in a short
statement such as `the answer is 12`. Flexible mode also reads the sentence that concludes. The
rules know the question and what kind of answer is wanted, never the gold answer's value. All of
them take time linear in the text.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from howwhen.measure.conclusions import TAIL, conclude
from howwhen.measure.endings import (
    LABEL,
    SENTENCE_END,
    breaks_off_in_a_box,
    split_sentences,
    thinks_aloud,
    without_last_sentence,
)
from howwhen.measure.equality import OPTION
from howwhen.measure.grammar import MATH
from howwhen.measure.kinds import Kind, Wanted
from howwhen.measure.marks import (
    Answer,
    Rule,
    last_mark,
    said_answers,
    value_at,
)
from howwhen.measure.numbers import NUMBER, as_number, trim_unit
from howwhen.measure.parts import MAX_ANSWER_LENGTH, MAX_TAIL, Parts
from howwhen.measure.questions import Asked, plain_number, plain_sentence


class Reader(NamedTuple):
    """What a rule may look at."""

    parts: Parts
    final: str
    """The final part, up to where another problem begins; without the last sentence of a text that
    was cut off."""
    wanted: Wanted
    asked: Asked
    is_complete: bool
    """Whether the text ended by itself."""


def _marked_in_final(reader: Reader) -> Answer | None:
    marked = last_mark(reader.final, reader.wanted)
    if marked and not reader.is_complete and _WITHDRAWN.search(_after_last_box(reader.final)):
        return None
    return marked


def _after_last_box(text: str) -> str:
    return text[max(text.rfind("\\boxed"), text.rfind("answer"), 0) :]


def _concluded_in_final(reader: Reader) -> Answer | None:
    if not reader.is_complete or not reader.final.strip():
        return None
    return _concluded(reader.final, reader.wanted, reader.asked)


def _marked_in_closed_thinking(reader: Reader) -> Answer | None:
    """A model that closed its thinking and was cut off in its answer had made up its mind."""
    if reader.parts.is_open:
        return None
    return last_mark(reader.parts.thinking, reader.wanted)


def _of_open_thinking(reader: Reader) -> Answer | None:
    """A text that ended by itself in the middle of its thinking concludes there."""
    if not (reader.parts.is_open and reader.is_complete):
        return None
    thinking = reader.parts.thinking
    marked = last_mark(thinking, reader.wanted)
    return marked or _concluded(thinking, reader.wanted, reader.asked)


def _called_in_cut_final(reader: Reader) -> Answer | None:
    if reader.is_complete or thinks_aloud(reader.final):
        return None
    return _called_answer(reader.final, reader.wanted, reader.asked)


def _checked_in_cut_final(reader: Reader) -> Answer | None:
    """A text that was cut off while it checks an answer has settled on it."""
    if reader.is_complete or thinks_aloud(reader.final):
        return None
    check = _CHECKED_AFTER.search(reader.final)
    head = reader.final[: check.start()] if check else _before_repetition(reader.final)
    if reader.wanted.kind not in (Kind.NUMBER, Kind.EXPRESSION) or not head:
        return None
    value = conclude(head, reader.wanted, reader.asked, least=SETTLED)
    return Answer(value, Rule.CONCLUDED) if value else None


def _before_repetition(text: str) -> str:
    """A text up to where it begins to repeat its paragraphs; empty if it does not."""
    seen: set[str] = set()
    place = 0
    for paragraph in text.split("\n\n"):
        if len(paragraph) > MIN_REPEATED and paragraph in seen:
            return text[:place]
        seen.add(paragraph)
        place += len(paragraph) + 2
    return ""


MIN_REPEATED = 40
"""Shorter paragraphs may occur twice."""


def _repeated_in_cut_text(reader: Reader) -> Answer | None:
    if reader.is_complete or reader.parts.is_open:
        return None
    headings = [match.end() for match in _HEADING.finditer(reader.parts.final)]
    final = reader.final[headings[-1] :] if headings else reader.final  # no result of earlier steps
    return _repeated(f"{reader.parts.thinking}\n{final}", reader.wanted, reader.asked)


STRICT_RULES: tuple[Callable[[Reader], Answer | None], ...] = (_marked_in_final,)
"""Nothing is read out of thinking, closed or not."""
RULES: tuple[Callable[[Reader], Answer | None], ...] = (
    _marked_in_final,
    _concluded_in_final,
    _of_open_thinking,
    _marked_in_closed_thinking,
    _called_in_cut_final,
    _checked_in_cut_final,
    _repeated_in_cut_text,
)
"""The flexible mode, in order: the first rule that finds an answer decides."""
_ANOTHER_PROBLEM = re.compile(
    r"\n\s{0,4}(?:\*\*|#{1,4} )?(?:(?:Next|New|Another|Second|Third|Bonus|Similar|Extra) )?"
    r"(?i:Question|Problem|Exercise|Task|Instruction|Human|User|Q)\s?\d{0,3}(?:\*\*)?:"
    r"|\n\s{0,4}You are an AI assistant"
    r"|\n\s{0,4}(?:\*\*|#{1,4} )?Step 1\b"
)
_CUE = re.compile(
    r"^\W*(?:therefore|thus|hence|so|in conclusion|conclusion|consequently|altogether|in total|"
    r"finally|final|answer|as a result|overall|in summary)\b",
    re.IGNORECASE,
)
_ANSWER = re.compile(r"\banswer\b", re.IGNORECASE)
_DIGIT = re.compile(r"\d")
_NEXT_LABEL = re.compile(r"\n[^\n]{0,30}\b(?:answer|solution):\s*$", re.IGNORECASE)
"""Announces what was written again."""
_WEIGHTY = re.compile(
    r"\b(?:total|altogether|in all|correct|therefore|thus|overall)\b", re.IGNORECASE
)
_UNFINISHED = re.compile(r"(?:\b(?:is|are|equals|after|to|of|the|a)|=|answer:)\s*$", re.IGNORECASE)
_GIVES_UP = re.compile(
    r"\b(?:cannot|can't|can not|could not|couldn't|not able to|unable to|impossible to"
    r"|(?:isn't|not) possible to) (?:be )?"
    r"(?:give|decided?|say|said|determined?|tell|told|settled?|found|find|solved?|concluded?)\b"
    r"|\bnot sure\b|\bdo(?:es)?(?: not|n't) (?:know|give enough)|\bmore information is needed",
    re.IGNORECASE,
)
_PARTS_OF_GIVING_UP = ("can", "could", "able", "possible", "not sure", "know", "enough", "needed")
"""A text without any of these does not give up."""
_WITHDRAWN = re.compile(
    r"\blet me (?:redo|start over)|\bthat ignores|\bthat(?:'s| is) (?:wrong|incorrect|not right)"
    r"|\bi (?:forgot|made an? (?:mistake|error))|\bstart over|\bscratch that",
    re.IGNORECASE,
)
"""In a text that was cut off: its last mark no longer stands."""


def read_answer(
    parts: Parts, wanted: Wanted, asked: Asked, is_complete: bool, *, is_strict: bool
) -> Answer | None:
    """The answer that a text gives, by the first rule that finds one; None if none does."""
    if is_strict:
        wanted = wanted._replace(parts=1)  # results in several places are not one marked answer
    parts = parts._replace(final=_mended(parts.final), thinking=_mended(parts.thinking))
    final = _first_problem(parts.final, wanted, asked)
    if len(final) < len(parts.final):  # it goes on after its answer
        is_complete, final = True, _NEXT_LABEL.sub("", final)
    if not is_complete:
        if breaks_off_in_a_box(final):
            return None
        final = without_last_sentence(final)
    reader = Reader(parts, final, wanted, asked, is_complete)
    for rule in STRICT_RULES if is_strict else RULES:
        if answer := rule(reader):
            return answer
    return None


def _mended(text: str) -> str:
    """A text with boxes that lost their braces, or their backslash to an escape."""
    if "oxed" not in text:
        return text
    return re.sub(r"\\boxed\s+(\w+)", r"\\boxed{\1}", text.replace("\x08oxed", "\\boxed"))


def _first_problem(text: str, wanted: Wanted, asked: Asked) -> str:
    """The text up to where it goes on to another problem or starts again after its answer."""
    if bare := _bare_answer(text, wanted, asked):
        return bare
    for index, match in enumerate(_ANOTHER_PROBLEM.finditer(text)):
        head = text[: match.start()]
        if index == 8:
            break
        if "Step 1" in match[0] and "Step 1" not in head:
            continue
        if "assistant" in match[0] and head.strip():
            return head
        if last_mark(head, wanted) or _called_answer(head, wanted, asked) or _ends_in_cue(head):
            return head
        line = text[match.end() : match.end() + MAX_PROBLEM].strip().partition("\n")[0]
        has_numbers = len(NUMBER.findall(line)) > 1
        if "Step 1" in match[0] or not has_numbers or _is_asked(line, asked):
            continue  # the same problem goes on
        if _is_bare(head, wanted) or _answers(head, wanted, asked):
            return head
    return text


SHORT, MAX_PROBLEM = 40, 300
"""Characters of a text that may still be a heading, and those of a problem that are looked at."""
_ITEM = re.compile(r"\W*\d{1,2}\W*[.):]\W*")
_GOES_ON_ASKING = re.compile(r"(?:but|wait|hmm|so|now|then)\b", re.IGNORECASE)


def _is_asked(line: str, asked: Asked) -> bool:
    """Whether a line says the question again, or a sentence of it."""
    plain = plain_sentence(line)
    return any(plain.endswith(sentence) for sentence in asked.sentences if sentence)


def _answers(head: str, wanted: Wanted, asked: Asked) -> bool:
    """Whether the text before another problem answers the first one."""
    found = _concluded(head, wanted, asked)
    if found is None or len(head) > SHORT:
        return found is not None
    if head.rstrip().endswith(":"):
        return False
    return wanted.kind is Kind.NUMBER and plain_number(found.text) not in asked.givens


def _is_bare(line: str, wanted: Wanted) -> bool:
    """Whether a line is nothing but a number, maybe with a unit."""
    plain = line.strip().rstrip(".")
    is_short = wanted.kind in (Kind.NUMBER, Kind.EXPRESSION) and 0 < len(plain) <= SHORT
    return is_short and as_number(plain) is not None and not _ITEM.fullmatch(line.strip())


def _bare_answer(text: str, wanted: Wanted, asked: Asked) -> str | None:
    """A bare answer that a text begins with, if its next paragraph is a problem without a label."""
    line, _, rest = text.lstrip().partition("\n")
    following = rest.lstrip()
    if not _is_bare(line, wanted) or "\n" not in rest[: len(rest) - len(following)]:
        return None
    problem = following.partition("\n")[0].strip()[-MAX_PROBLEM:]
    if not problem.endswith("?") or _is_asked(problem, asked) or _GOES_ON_ASKING.match(problem):
        return None
    return line if len(problem) > SHORT and len(NUMBER.findall(problem)) > 1 else None


def _ends_in_cue(text: str) -> bool:
    sentences = split_sentences(text[-TAIL:])
    return bool(sentences) and bool(_CUE.search(sentences[-1]))


def _called_answer(text: str, wanted: Wanted, asked: Asked) -> Answer | None:
    """What a text calls its answer in some sentence."""
    for match in said_answers(text):
        rest = text[match.end() : match.end() + MAX_ANSWER_LENGTH].lstrip(" *_:\n")
        sentence = SENTENCE_END.split(rest, maxsplit=1)[0]
        if LABEL.sub("", sentence) != sentence or not sentence:
            continue
        if value := _of_sentence(f"It is {sentence}", wanted, asked):
            return Answer(value, Rule.CONCLUDED)
    return None


def _concluded(text: str, wanted: Wanted, asked: Asked) -> Answer | None:
    """The answer in the sentence that concludes a text that ended by itself."""
    if "```" in text:
        text = _CODE.sub(_result_of, text)
    if first := _EXPLAINED_AFTER.match(text):
        text = first["first"]
    if _gives_up(text[-200:]) or _UNFINISHED.search(text[-200:].rstrip("*_$ \n")):
        return None
    if called := _called_answer(text, wanted, asked):
        return called
    if wanted.kind is Kind.EXPRESSION and (plain := _plain_expression(text, wanted)):
        return Answer(plain, Rule.CONCLUDED)
    if wanted.kind in (Kind.NUMBER, Kind.EXPRESSION):
        value = conclude(text, wanted, asked)
        return Answer(value, Rule.CONCLUDED) if value else None
    for sentence in reversed(split_sentences(text[-TAIL:])[-6:]):
        if not sentence.endswith("?") and (value := _of_sentence(sentence, wanted, asked)):
            return Answer(value, Rule.CONCLUDED)
    return None


_LAST_ASIDE = re.compile(r"\([^()]*\)\s*$")
_EXPLAINED_AFTER = re.compile(
    r"\s*(?P<first>[^\n]{5,300}?[.!])\**\s+\**(?:here(?:'s| is| are) (?:why|how|the (?:reason|steps"
    r"|explanation|work))|explanation\b|reasoning\b|justification\b|why\?|this is because\b)",
    re.IGNORECASE,
)
"""A text that says its answer first."""
_CHECKED_AFTER = re.compile(
    r"\n[ \t]*(?:(?:now,? |wait,? )?let(?:'s| me| us) (?:quickly )?(?:verify|check|double|confirm)"
    r"|to (?:verify|check|double)|(?:\*\*|#+ )?(?:verification|check)\b|```)",
    re.IGNORECASE,
)
_HEADING = re.compile(
    r"\n[ \t]*(?:#{1,4} |\*\*)?(?:Step\s+\d+|[A-Z][^\n.]{2,60}:\*\*|\*\*[^\n*]{2,80}\*\*)"
)
_CODE = re.compile(
    r"```(?:python|py|c\+\+|cpp|c|java|javascript|js|r|matlab|julia|sql)\d?[ \t]*\n"
    r"(?P<code>[^`]*)```",
    re.IGNORECASE,
)
"""A block of code; one that holds its output often has no name, or another."""
_OUTPUT = re.compile(r"(?:#|//)[ \t]*(?P<result>\D{0,20}\d[\d,.]*)\s*$")


def _result_of(block: re.Match[str]) -> str:
    """What a block of code says of its result: a bare number, or a comment at its end."""
    code = block["code"].strip()
    if as_number(code) is not None:
        return code
    output = _OUTPUT.search(code[-80:])
    return output["result"] if output else ""


SETTLED = 10.0
"""Points with which a cut text has settled on an answer, before it checks it."""


def _gives_up(end: str) -> bool:
    end = _LAST_ASIDE.sub("", end)
    lower = end.lower()
    return any(part in lower for part in _PARTS_OF_GIVING_UP) and bool(_GIVES_UP.search(end))


_VERB = re.compile(
    r"(?:\b(?:is|are|was|were|be|equals?|becomes?|gives|makes)\b|[=≈:])"
    r"(?:\s(?:equal to|indeed|then))*\s*"
)


def _plain_expression(text: str, wanted: Wanted) -> str | None:
    """An expression without LaTeX, after the last verb of a sentence that has no LaTeX either."""
    for sentence in reversed(split_sentences(text[-TAIL:])[-4:]):
        if MATH.search(sentence) or sentence.endswith("?"):
            return None
        for verb in reversed(list(_VERB.finditer(sentence))):
            value = value_at(sentence[verb.end() :], wanted)
            if value and as_number(value) is None and (len(value) > 1 or not value.isalnum()):
                return trim_unit(value)
        if _DIGIT.search(sentence):
            return None
    return None


_DENIED_OPTION = re.compile(r"\b(?:not|n't|never|cannot be)\s+(?:option\s+)?\(?[A-J]\b\)?")


def _of_sentence(sentence: str, wanted: Wanted, asked: Asked) -> str | None:
    """The answer within a sentence of prose."""
    if wanted.kind is Kind.LETTER:
        options = OPTION.findall(_DENIED_OPTION.sub("", sentence))
        return options[-1] if options else _of_options(sentence, asked)
    if wanted.kind is Kind.WORDS:
        return sentence.removeprefix("It is ").strip(" .*_")[:MAX_ANSWER_LENGTH] or None
    if wanted.kind is Kind.EXPRESSION and (
        value := value_at(sentence.removeprefix("It is "), wanted)
    ):
        return trim_unit(value)
    return conclude(sentence, wanted, asked)


def _of_options(sentence: str, asked: Asked) -> str | None:
    """The option whose text a sentence names, if it names just one."""
    named = [letter for letter, text in asked.options if text.lower() in sentence.lower()]
    return named[0] if len(named) == 1 else None


def _repeated(text: str, wanted: Wanted, asked: Asked) -> Answer | None:
    """What a cut text concludes most often.

    In a text that thinks aloud, a sentence about an answer has weight 2, and one that only goes on
    with `so` has weight 0.5. Percentages count as steps there, not as answers. The winner needs a
    weight of at least 4 and 1.5 times that of the next.
    """
    text = text[-MAX_TAIL:]
    is_thinking = thinks_aloud(text)
    weights: dict[object, float] = {}
    texts: dict[object, str] = {}
    known: dict[str, str | None] = {}  # a text that repeats itself is read once
    is_numeric = wanted.kind is Kind.NUMBER
    for sentence in split_sentences(text):
        weight = _weight(sentence) if is_thinking else float(bool(_CUE.search(sentence)))
        if not weight or (is_numeric and not _DIGIT.search(sentence)):
            continue
        if sentence not in known:
            known[sentence] = _of_sentence(sentence, wanted, asked)
        value = known[sentence]
        if value is not None and not (is_thinking and "%" in value):
            number = as_number(value)
            key = value if number is None else number
            weights[key] = weights.pop(key, 0.0) + weight  # ties: the last one wins
            texts[key] = value
    best = max(reversed(weights), key=lambda key: weights[key], default=None)
    if best is None:
        return None
    rest = max((weight for key, weight in weights.items() if key != best), default=0.0)
    if is_thinking and (weights[best] < 4 or weights[best] < 1.5 * rest):
        return None
    return Answer(texts[best], Rule.REPEATED)


def _weight(sentence: str) -> float:
    if _ANSWER.search(sentence):
        return 2.0
    return 1.0 if _WEIGHTY.search(sentence) else 0.5 * bool(_CUE.search(sentence))
