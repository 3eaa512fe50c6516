"""Math-Verify in separate processes, each killed when it passes the deadline.

A process runs `verify.py` as a script, so it imports neither the caller's main module nor howwhen.
Questions and verdicts are lines of JSON.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Literal, NamedTuple

from howwhen.errors import HowwhenError

Verdict = Literal["same", "different", "unreadable", "too long"]
Pair = tuple[str, str]
"""An answer and a gold answer, both in LaTeX."""


class Extracted(NamedTuple):
    """What Math-Verify reads out of a whole text by itself."""

    verdict: Verdict
    """Against the gold answer."""
    answer: str
    """What it read; empty if nothing."""


QUESTIONS_PER_CHILD = 1000
"""After so many questions a new child takes over, since SymPy's caches grow with every question."""
START_SECONDS = 120.0
"""Longest time a process may take to import Math-Verify."""


class Workers:
    """A few processes, started when first needed, that compare answers."""

    def __init__(
        self,
        deadline_seconds: float,
        count: int,
        questions_per_child: int = QUESTIONS_PER_CHILD,
    ) -> None:
        self.deadline_seconds = deadline_seconds
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        self._processes = [_Process(questions_per_child) for _ in range(count)]
        for process in self._processes:
            self._idle.put(process)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.end()

    def ask(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Compare pairs, as many at a time as there are processes.

        Raises:
            HowwhenError: a process does not start.
        """
        return [reply.verdict for reply in self._ask_all(pairs)]

    def extract(self, pairs: Sequence[Pair]) -> list[Extracted]:
        """Read whole texts with Math-Verify's own rules, and compare with the gold answers.

        Args:
            pairs: a text, and a gold answer in LaTeX.

        Raises:
            HowwhenError: a process does not start.
        """
        return self._ask_all([(*pair, "text") for pair in pairs])

    def _ask_all(self, questions: Sequence[tuple[str, ...]]) -> list[Extracted]:
        waiting: SimpleQueue[tuple[int, tuple[str, ...]]] = SimpleQueue()
        for item in enumerate(questions):
            waiting.put(item)
        replies: list[Extracted | None] = [None] * len(questions)
        failures: list[BaseException] = []
        threads = [
            threading.Thread(target=self._work, args=(waiting, replies, failures))
            for _ in self._processes[: len(questions)]
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return [reply for reply in replies if reply is not None]

    def _work(
        self,
        waiting: SimpleQueue[tuple[int, tuple[str, ...]]],
        replies: list[Extracted | None],
        failures: list[BaseException],
    ) -> None:
        process = self._idle.get()
        try:
            while not failures:
                index, question = waiting.get_nowait()
                replies[index] = process.ask(question, self.deadline_seconds)
        except Empty:
            return
        except Exception as error:  # noqa: BLE001 - raised again in the caller's thread
            failures.append(error)
        finally:
            self._idle.put(process)


class _Process:
    """One process that runs `verify.py`, which keeps a child that answers."""

    def __init__(self, questions_per_child: int) -> None:
        self._questions_per_child = questions_per_child
        self._running: subprocess.Popen[str] | None = None
        self._child: int | None = None
        self._asked = 0

    def ask(self, question: Sequence[str], deadline_seconds: float) -> Extracted:
        """Ask a question. At the deadline the child is killed, and another one takes over."""
        running = self._running or self._start()
        self._asked += 1
        with self._alarm(deadline_seconds) as alarm:
            self._write(running, [self._asked, *question])
            while True:
                reply = self._read(running)
                if len(reply) == 1:  # a new child, after one was killed or retired
                    self._child = reply[0]
                    if alarm.has_rung:
                        return Extracted("too long", "")
                elif reply[0] == self._asked:
                    return Extracted(reply[1], reply[2])

    def _start(self) -> "subprocess.Popen[str]":
        script = str(Path(__file__).with_name("verify.py"))
        self._running = running = subprocess.Popen(
            [sys.executable, "-P", script, str(self._questions_per_child)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        alarm = threading.Timer(START_SECONDS, running.kill)
        alarm.start()
        (self._child,) = self._read(running)
        alarm.cancel()
        return running

    @contextmanager
    def _alarm(self, seconds: float) -> "Iterator[_Alarm]":
        """Kill the child after so many seconds, unless the block has ended."""
        alarm = _Alarm(seconds, self._kill_child)
        alarm.timer.start()
        try:
            yield alarm
        finally:
            alarm.stop()

    def _write(self, running: "subprocess.Popen[str]", question: list[int | str]) -> None:
        if running.stdin is None:
            raise RuntimeError("the process has no input")
        running.stdin.write(json.dumps(question) + "\n")
        running.stdin.flush()

    def _read(self, running: "subprocess.Popen[str]") -> list[Any]:
        line = running.stdout.readline() if running.stdout else ""
        if not line:
            self.end()
            raise HowwhenError(
                "the grading process ended, or did not start within "
                f"{START_SECONDS:.0f} s; try `{sys.executable} -c 'import math_verify'`"
            )
        reply: list[Any] = json.loads(line)
        return reply

    def end(self) -> None:
        """End the process and its child."""
        running, self._running = self._running, None
        if running is None:
            return
        running.kill()
        self._kill_child()
        running.communicate()

    def _kill_child(self) -> None:
        if self._child is not None:
            with suppress(ProcessLookupError):  # it has ended by itself
                os.kill(self._child, signal.SIGKILL)


class _Alarm:
    """Calls a function after some seconds, once, unless it is stopped before."""

    def __init__(self, seconds: float, act: Callable[[], None]) -> None:
        self.has_rung = False
        self._is_over = False
        self._lock = threading.Lock()
        self._act = act
        self.timer = threading.Timer(seconds, self._ring)

    def _ring(self) -> None:
        with self._lock:
            if not self._is_over:
                self.has_rung = True
                self._act()

    def stop(self) -> None:
        with self._lock:
            self._is_over = True
        self.timer.cancel()
