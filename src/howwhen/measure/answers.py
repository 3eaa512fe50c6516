r"""Reading the final answer out of a text, by rule.

In order: the last `\\boxed{...}`, the last `answer is ...`, the last `#### ...`. Only a text that
ended by itself and states its answer in none of these ways is read by its last number.
"""

import re

_STATED = re.compile(r"answer(?: is|:)\s*:?\s*(?P<answer>[^\n]*)", re.IGNORECASE)
_MARKED = re.compile(r"####\s*(?P<answer>[^\n]+)")
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?")
_CLOSE = "</think>"


def stated_answer(text: str) -> str | None:
    """The answer a text states, as text; None where it states none.

    After `</think>` only what follows counts, unless nothing is stated there.
    """
    final = text.rpartition(_CLOSE)[2]
    return _stated(final) or (_stated(text) if _CLOSE in text else None)


def last_number(text: str) -> str | None:
    """The last number written in a text."""
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def _stated(text: str) -> str | None:
    if boxed := _last_boxed(text):
        return boxed
    for pattern in (_STATED, _MARKED):
        if found := list(pattern.finditer(text)):
            return _tidy(found[-1]["answer"]) or None
    return None


def _tidy(answer: str) -> str:
    """Cut at the end of the sentence; where it starts with a number, keep just that number."""
    answer = answer.strip().strip("*$ ")
    if number := _NUMBER.match(answer):
        rest = answer[number.end() :]
        if not re.match(r"\s*[\\^_/*+=(-]", rest):
            return number[0]
    return re.split(r"(?<!\d)\.(?:\s|$)|\.$", answer)[0].strip("*$ ")


def _last_boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for index in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : index].strip() or None
    return None
