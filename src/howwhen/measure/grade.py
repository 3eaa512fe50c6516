"""Five-way grading: exact arithmetic for plain numbers, Math-Verify in a worker for the rest.

Math-Verify can hang and, off the main thread or past its own time limit, says "wrong" when it means
"do not know". Here it runs in a process of its own, with its time limits off, and is killed at our
deadline.
"""

import logging
import multiprocessing
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from howwhen.errors import HowwhenError
from howwhen.measure.answers import last_number, stated_answer
from howwhen.records import Finish, Grade

START_SECONDS = 60.0
"""Longest time the worker may take to import Math-Verify."""
_SPAWN = multiprocessing.get_context("spawn")


def as_number(text: str) -> Fraction | None:
    """The exact value of a plain number such as `1,234`, `-3.50`, `$7`, `3/4` or `50%`."""
    plain = re.sub(r"[\s,$]|\\[$!,]", "", text).rstrip(".")
    is_percent = plain.endswith("%")
    if not re.fullmatch(r"-?\d+(?:\.\d+)?(?:/\d+)?", plain.rstrip("\\%")):
        return None
    numerator, _, denominator = plain.rstrip("\\%").partition("/")
    if denominator and int(denominator) == 0:
        return None
    value = Fraction(numerator) / int(denominator or 1)
    return value / 100 if is_percent else value


@dataclass
class Grader:
    """Grades answers; holds a worker process once one is needed. Made by `open_grader`."""

    deadline_seconds: float
    _worker: SpawnProcess | None = field(default=None, init=False)
    _pipe: Connection | None = field(default=None, init=False)

    def grade(self, text: str, finish: Finish, gold: str) -> Grade:
        """Grade one answer text.

        An answer that is stated counts even in a truncated text. A text that ended without
        stating one is read by its last number where the gold answer is a number.
        """
        answer = stated_answer(text)
        if answer is None and finish is Finish.LENGTH:
            return Grade.TRUNCATED
        if answer is None and as_number(gold) is not None:
            answer = last_number(text)
        return Grade.NO_ANSWER if answer is None else self.compare(answer, gold)

    def compare(self, answer: str, gold: str) -> Grade:
        """Whether two answers mean the same: correct, wrong or timed out."""
        if _squeeze(answer) == _squeeze(gold):
            return Grade.CORRECT
        ours, theirs = as_number(answer), as_number(gold)
        if ours is not None and theirs is not None:
            is_percent_of = ("%" in answer) != ("%" in gold) and ours in (
                theirs / 100,
                theirs * 100,
            )
            return Grade.CORRECT if ours == theirs or is_percent_of else Grade.WRONG
        return self._ask(answer, gold)

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.kill()
            self._worker.join()
        if self._pipe is not None:
            self._pipe.close()
        self._worker = self._pipe = None

    def _ask(self, answer: str, gold: str) -> Grade:
        pipe = self._pipe or self._start()
        pipe.send((answer, gold))
        if not pipe.poll(self.deadline_seconds):
            self.close()
            return Grade.TIMED_OUT
        verdict = pipe.recv()
        if isinstance(verdict, bool):
            return Grade.CORRECT if verdict else Grade.WRONG
        raise HowwhenError(
            f"Math-Verify failed on answer {answer!r} and gold answer {gold!r}: {verdict}"
        )

    def _start(self) -> Connection:
        ours, theirs = _SPAWN.Pipe()
        self._worker = _SPAWN.Process(target=_serve, args=(theirs,), daemon=True)
        self._worker.start()
        theirs.close()
        if not ours.poll(START_SECONDS):
            self.close()
            raise HowwhenError(f"the grading process did not start within {START_SECONDS:.0f} s")
        ours.recv()
        self._pipe = ours
        return ours


@contextmanager
def open_grader(deadline_seconds: float) -> Iterator[Grader]:
    """A grader whose worker ends with the block."""
    grader = Grader(deadline_seconds)
    try:
        yield grader
    finally:
        grader.close()


def _squeeze(answer: str) -> str:
    """LaTeX without what does not change its meaning: blanks, sizes, dollars, final stops."""
    text = re.sub(r"\\(?:left|right|!|,|;|\s)|[\s$]", "", answer)
    return text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").rstrip(".")


def _serve(pipe: Connection) -> None:
    """The worker: import once, then answer pairs until killed."""
    from math_verify import parse, verify

    logging.disable(logging.WARNING)  # it warns that its time limits are off; ours is the parent's
    pipe.send("ready")
    while True:
        answer, gold = pipe.recv()
        try:
            ours, theirs = (
                parse(f"\\boxed{{{text}}}", parsing_timeout=None, raise_on_error=True)
                for text in (answer, gold)
            )
            verdict = verify(theirs, ours, timeout_seconds=None, raise_on_error=True)
            pipe.send(bool(verdict))
        except Exception as error:  # noqa: BLE001 - any failure is sent to the parent, which raises
            pipe.send(f"{type(error).__name__}: {error}")
