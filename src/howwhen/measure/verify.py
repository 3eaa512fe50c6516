"""A script that compares answers with Math-Verify: a line of JSON in, a line of JSON out.

It imports nothing from howwhen, so it starts fast. The process imports Math-Verify and then forks a
child that answers. If the child was killed, or has answered enough, the process forks another one.
So a deadline costs milliseconds, and memory does not grow.
"""

import cmath
import json
import logging
import os
import resource
import sys
from typing import Any

MEMORY_BYTES = 2 * 2**30
DONE = 0
"""Exit code of a child whose input ended."""
RETIRED = 3
"""Exit code of a child that has answered enough."""


def main(questions_per_child: int) -> None:
    """Fork children, one at a time, until the input ends."""
    import math_verify

    logging.disable(logging.WARNING)  # it warns that its time limits are off; ours is the parent's
    while True:
        child = os.fork()
        if child == 0:
            os._exit(_answer(math_verify, questions_per_child))
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) == DONE:
            return


def _answer(library: Any, max_questions: int) -> int:
    """Write `[pid]`, then reply to each question.

    `[number, answer, gold]` is answered with `[number, verdict, ""]`, and `[number, text, gold,
    "text"]`, for a whole text, with `[number, verdict, what was read]`.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    print(json.dumps([os.getpid()]), flush=True)
    for _ in range(max_questions):
        line = sys.stdin.readline()
        if not line:
            return DONE
        number, answer, gold, *is_text = json.loads(line)
        shown = ""
        try:
            if is_text:
                verdict, shown = _read(answer, gold, library)
            else:
                verdict = _compare([answer, gold], library)
        except MemoryError:
            verdict = "too long"
        except Exception:  # noqa: BLE001 - whatever it is, the answer could not be read
            verdict = "unreadable"
        print(json.dumps([number, verdict, shown]), flush=True)
    return RETIRED


def _read(text: str, gold: str, library: Any) -> tuple[str, str]:
    """What Math-Verify itself reads out of a text, against the gold answer."""
    ours = library.parse(text, parsing_timeout=None, raise_on_error=True)
    theirs = library.parse(f"\\boxed{{{gold}}}", parsing_timeout=None, raise_on_error=True)
    if not ours or not theirs:
        return "unreadable", ""
    same = library.verify(theirs, ours, timeout_seconds=None, raise_on_error=True)
    return "same" if same else "different", str(ours[-1])


def _compare(pair: list[str], library: Any) -> str:
    ours, theirs = (
        library.parse(f"\\boxed{{{text}}}", parsing_timeout=None, raise_on_error=True)
        for text in pair
    )
    if not ours or not theirs:
        return "unreadable"
    same = library.verify(
        theirs, ours, timeout_seconds=None, raise_on_error=True, allow_set_relation_comp=True
    )
    alike = _is_alike(ours[0], theirs[0])
    return "same" if (same if alike is None else alike) else "different"


def _is_alike(ours: Any, theirs: Any) -> bool | None:
    """Whether two expressions have the same values wherever their variables are positive.

    It decides where Math-Verify's rounding is too coarse (values below 1e-6), and where it does not
    know that variables are positive or that `i` is the imaginary unit. None if it cannot tell.
    """
    import sympy

    if not all(isinstance(side, sympy.Expr) for side in (ours, theirs)):
        return None
    sides = [
        side.subs({name: sympy.I for name in side.free_symbols if str(name) == "i"})
        for side in (ours, theirs)
    ]
    names = sides[0].free_symbols | sides[1].free_symbols
    if sides[0].free_symbols != sides[1].free_symbols or len(names) > 4:
        return None
    if not names and all(side.is_Rational for side in sides):
        return None if max(abs(side) for side in sides) > 1e-3 else bool(sides[0] == sides[1])
    for place in range(3):
        values = {
            name: sympy.Rational(3 * index + 2 * place + 5, 7)
            for index, name in enumerate(sorted(names, key=str))
        }
        try:
            first, second = (complex(side.subs(values).evalf(30)) for side in sides)
        except TypeError:  # it has no value, such as f(x)
            return None
        if not (cmath.isfinite(first) and cmath.isfinite(second)):
            return None
        scale = max(abs(first), abs(second))
        if not scale or abs(first - second) > 1e-12 * scale:
            return False if (names or scale < 1e-3) and scale else None
    return True


if __name__ == "__main__":
    main(int(sys.argv[1]))
