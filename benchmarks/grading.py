"""Grading under attack, and the throughput of plain numeric answers."""

import os
import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.timing import Result, timed
from howwhen.measure.grade import Item, open_grader
from howwhen.records import Finish, Grade

DEADLINE_SECONDS = 0.5
GRADINGS = 10_000


def results() -> Iterator[Result]:
    """Hostile answers, then plain ones."""
    yield from hostile()
    yield numeric()


def hostile() -> Iterator[Result]:
    """Answers that try to hang, or to use up memory or the stack. One in twenty always hangs."""
    rng = random.Random(0)
    longest, counts, memory = 0.0, dict.fromkeys(Grade, 0), []
    with open_grader(DEADLINE_SECONDS) as grader:
        for number in range(GRADINGS):
            item = Item(_hostile_text(rng, number), "\\sqrt{8}", "", Finish.STOP)
            started = time.perf_counter()
            (graded,) = grader.grade([item])
            longest = max(longest, time.perf_counter() - started) if number else 0.0
            counts[graded.grade] += 1
            if number % 500 == 0:
                memory.append(_megabytes())
        alive = grader.grade([Item("\\boxed{2\\sqrt{2}}", "\\sqrt{8}")])[0].grade
    shown = ", ".join(f"{grade.value} {count}" for grade, count in counts.items() if count)
    yield Result(
        "hostile gradings: longest, in seconds",
        round(longest, 2),
        DEADLINE_SECONDS + 1,
        longest <= DEADLINE_SECONDS + 1 and alive is Grade.CORRECT,
        f"at most the deadline of {DEADLINE_SECONDS} s and 1 s; {GRADINGS} gradings: {shown}; "
        f"afterwards the workers {'live' if alive is Grade.CORRECT else 'are DEAD'}",
    )
    growth = round(memory[-1] / memory[2], 2)
    yield Result(
        "hostile gradings: memory at the end over memory after 1,000",
        growth,
        1.1,
        growth <= 1.1,
        f"at most 1.1; {memory[2]:.0f} and {memory[-1]:.0f} MB, this process and its workers",
    )


def numeric() -> Result:
    """Plain numeric answers in prose."""
    rng = random.Random(0)
    items = [
        Item(f"She counts them. {n} + 5 makes a lot. So she has {rng.randrange(9999)} pens.", "12")
        for n in range(20_000)
    ]
    with open_grader() as grader:
        seconds = timed(lambda: grader.grade(items))
    rate = round(len(items) / seconds)
    return Result(
        "plain numeric answers graded per second",
        rate,
        300,
        rate >= 300,
        f"at least 300; {len(items)} answers in {seconds:.2f} s, in one process",
    )


def _hostile_text(rng: random.Random, number: int) -> str:
    base, kind = rng.randrange(2, 9999), number % 20
    if kind == 0:  # these hang, and only the deadline ends them
        return f"\\boxed{{{base}^{{9^{{9^{{9}}}}}}}}"
    if kind == 1:
        return "\\boxed{" + "(" * rng.randrange(150) + f"{base}x" + ")" * rng.randrange(150) + "}"
    if kind == 2:
        return "\\boxed{" + "\\frac{" * 12 + str(base) + "}{2}" * 12 + "}"
    if kind == 3:
        return "\\boxed{" * rng.randrange(9000) + str(base)
    if kind == 4:
        return f"The answer is {str(base) * 9000}"
    if kind == 5:
        return f"{base}" + " #### $ \\( = so" * 3000
    if kind == 6:
        return "".join(chr(rng.randrange(1, 0xD7FF)) for _ in range(400))
    if kind == 7:
        return f"\\boxed{{9**9**9**{base}}}"
    if kind == 8:
        return "\\boxed{\\sqrt{" * 20 + str(base) + "}" * 40
    return f"\\boxed{{{base}\\sqrt{{{rng.randrange(2, 99)}}} + x^{{{rng.randrange(99)}}}}}"


def _megabytes() -> float:
    """Resident memory of this process and of all its descendants, in MB."""
    pages = resource.getpagesize() / 1e6
    statm = [_read(Path("/proc") / str(pid) / "statm") for pid in _descendants()]
    return sum(int(text.split()[1]) * pages for text in statm if text)


def _descendants() -> list[int]:
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if text := _read(folder / "stat"):
            parents[int(folder.name)] = int(text.rpartition(")")[2].split()[1])
    pids = [os.getpid()]
    for pid in pids:
        pids += [child for child, parent in parents.items() if parent == pid]
    return pids


def _read(path: Path) -> str:
    """A file of /proc; empty if its process has ended meanwhile."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
