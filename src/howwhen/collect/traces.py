"""Answers that were written elsewhere, read from files instead of asked of the thinking model.

A row is an object with `question` and `text` (the answer as it was written, thinking included), and
optionally `id`, `gold` or `answer`, `model`, `role`, `dataset` and `finish` (`stop` or `length`).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from howwhen.collect.problems import file_rows
from howwhen.errors import ProblemError
from howwhen.records import Finish, Problem

ROLE = "thinking"
"""The role of rows that are read; those of another one are passed over."""


@dataclass(frozen=True)
class Trace:
    """One answer with the question it answers."""

    problem: Problem
    """Its gold answer is empty where the row has none."""
    text: str
    """As it was written."""
    finish: Finish | None
    """Why it ended, where the row says so."""
    model: str
    """Who wrote it, where the row says so."""
    place: str
    """File and line, for messages."""


@dataclass(frozen=True)
class Traces:
    """What some files hold."""

    kept: tuple[Trace, ...]
    rows: int
    """All rows of all files."""
    passed_over: Counter[str]
    """Rows of another role than the thinking model's, by role."""
    beyond_limit: int
    """Rows of the thinking model's role that the limit left out."""


def read_traces(paths: Sequence[str | Path], limit: int | None = None, seed: int = 0) -> Traces:
    """Answers of the role `thinking` (or of none) in all files, in their order.

    Where there are more than `limit`, as many are drawn at random, so that every file has its
    share. A row's problem has its own id where that is unique over all files, else `model/id`.

    Raises:
        ProblemError: a file that cannot be read, a row that cannot be used, two rows that no id
            tells apart, or no row at all.
    """
    found: list[Trace] = []
    passed_over: Counter[str] = Counter()
    for path in map(Path, paths):
        for number, row in file_rows(path, "traces"):
            trace = _read_row(path, number, row)
            if isinstance(trace, Trace):
                found.append(trace)
            else:
                passed_over[trace] += 1
    if not found:
        passed = ", ".join(f"{count} of role {role!r}" for role, count in passed_over.items())
        raise ProblemError(
            f"{', '.join(map(str, paths))}: no trace of role {ROLE!r} or without a role (found "
            f"{passed or 'no rows'}); expected one JSON object per line, such as "
            '{"question": "What is 2 + 2?", "text": "<think>2 + 2 is 4.</think>4"}'
        )
    kept = tuple(_with_unique_ids(found))
    rows = len(kept) + passed_over.total()
    drawn: Sequence[int] = range(len(kept))
    if limit is not None and limit < len(kept):
        drawn = sorted(Random(f"traces-{seed}").sample(drawn, limit))
    chosen = tuple(kept[number] for number in drawn)
    return Traces(chosen, rows, passed_over, len(kept) - len(chosen))


def _read_row(path: Path, number: int, row: Any) -> Trace | str:
    """The trace of a row, or the other role it has."""
    place = f"{path}, line {number}"
    fields: Mapping[str, Any] = row if isinstance(row, dict) else {}
    role = fields.get("role")
    if role is not None and role != ROLE:
        return str(role)
    name = path.name.split(".")[0]
    dataset, model = (_text(fields, key, place, "") for key in ("dataset", "model"))
    problem = Problem(
        id=_text(fields, "id", place, f"{name}-{number}"),
        question=_text(fields, "question", place),
        answer=_text(fields, "gold" if "gold" in fields else "answer", place, ""),
        dataset=dataset or name,
    )
    finish = _finish(fields.get("finish"), place)
    return Trace(problem, _text(fields, "text", place), finish, model, place)


def _text(fields: Mapping[str, Any], key: str, place: str, missing: str | None = None) -> str:
    """A field as text; `missing` stands for one that is not there or null."""
    value = fields.get(key)
    if value is None and missing is not None:
        return missing
    usable = isinstance(value, str | int | float) and not isinstance(value, bool)
    if not usable or (missing is None and not str(value).strip()):
        raise ProblemError(
            f"{place} has {key} {_short(value)}; expected a text. Every row needs a question and "
            "a text. Fix or remove the line"
        )
    if any("\ud800" <= character <= "\udfff" for character in str(value)):
        raise ProblemError(
            f"{place} has a {key} with half a character (a lone surrogate); expected valid "
            "Unicode. Fix or remove the line"
        )
    return str(value)


def _finish(value: Any, place: str) -> Finish | None:
    if value is None:
        return None
    if value not in list(Finish):
        raise ProblemError(
            f"{place} has finish {_short(value)}; expected {' or '.join(Finish)}, or no such field"
        )
    return Finish(value)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) < 60 else f"{shown[:60]}..."


def _with_unique_ids(traces: Iterable[Trace]) -> Iterator[Trace]:
    everything = list(traces)
    common = Counter(trace.problem.id for trace in everything)
    seen: dict[str, str] = {}
    for trace in everything:
        own = trace.problem.id
        name = own if common[own] == 1 else f"{trace.model}/{own}"
        if name in seen:
            raise ProblemError(
                f"{trace.place} and {seen[name]} both hold the trace {own!r} of model "
                f"{trace.model!r}; ids must differ within a model. Leave one of the two out"
            )
        seen[name] = trace.place
        yield replace(trace, problem=replace(trace.problem, id=name))
