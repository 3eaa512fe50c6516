"""The problems of a run, and which split each belongs to. Nothing here needs a model.

Checks and steps all ask for the problems of a run. A file is parsed once, and parsed again only
after it has changed.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from random import Random

from howwhen.collect.problems import (
    read_problems,
    refuse_repeated_ids,
    sliced,
    split_problems,
)
from howwhen.collect.traces import Traces, read_traces
from howwhen.errors import SettingsError
from howwhen.records import Problem, Split
from howwhen.settings import CollectSettings, RunSettings
from howwhen.zoo.pairs import Pair

NO_TEST = (
    "all traces are used for training, so there are no test problems for the hybrid; type "
    "--collect.test-problems FILE.jsonl, with a question and an answer per line, or the name of a "
    "published set"
)

FileState = tuple[int, int, int, int]
"""Inode, size, and times of the last change of content and of inode, in nanoseconds."""


def file_state(source: str) -> FileState | None:
    """What changes whenever a file is written; None for a source that is not a file."""
    path = Path(source)
    if not path.exists():
        return None
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def read_written(settings: CollectSettings) -> Traces | None:
    """The answers in the trace files, if the settings name any.

    Raises:
        ProblemError: a file that cannot be used.
    """
    if settings.traces is None:
        return None
    states = tuple(map(file_state, settings.traces))
    return _read_traces(settings.traces, states, settings.limit, settings.seed)


def draw_split(pair: Pair, settings: RunSettings) -> list[Problem]:
    """The run's problems, each marked train, selection or test.

    Where taxonomy and vectors are given, nothing is trained, and only the test problems are needed.

    Raises:
        SettingsError: a pair without problems of its own, and no file.
        ProblemError: problems that cannot be used, or that are trained on and tested on.
    """
    chosen, test = settings.collect, _draw_test_problems(pair, settings.collect)
    if not settings.trains and test:
        return [replace(problem, split=Split.TEST) for problem in test]
    selection = None
    if chosen.selection_problems is not None:
        selection = _read_problems(chosen.selection_problems, chosen.limit, chosen)
    problems = split_problems(_draw_problems(pair, chosen), chosen, test, selection)
    if settings.trains:
        return problems
    return [problem for problem in problems if problem.split is Split.TEST]


def check_test_problems(problems: Sequence[Problem]) -> None:
    """Refuse to go on to the hybrid without problems to test it on.

    Raises:
        SettingsError: no test problems among these.
    """
    if not any(problem.split is Split.TEST for problem in problems):
        raise SettingsError(NO_TEST)


def _draw_problems(pair: Pair, chosen: CollectSettings) -> list[Problem]:
    """A file's problems, or the pair's own, without the test problems if those are separate.

    Raises:
        SettingsError: a pair without problems of its own, and no file.
        ProblemError: a file that cannot be used.
    """
    if traces := read_written(chosen):
        return [trace.problem for trace in traces.kept]
    if chosen.problems is not None:
        return _read_problems(chosen.problems, chosen.limit, chosen)
    if pair.draw_problems is None:
        raise SettingsError(
            f"the pair {pair.name!r} has no problems of its own; type --problems FILE.jsonl "
            'with lines such as {"question": "What is 2 + 2?", "answer": "4"}'
        )
    is_separate = chosen.test_problems is None and pair.draw_test_problems is not None
    count = chosen.limit - _test_share(chosen) if is_separate else chosen.limit
    return pair.draw_problems(count, chosen.seed)


def _draw_test_problems(pair: Pair, chosen: CollectSettings) -> Sequence[Problem] | None:
    """Test problems of a file or of the pair; None if they are a share of the problems."""
    if chosen.test_problems is not None:
        limit = chosen.test_limit or chosen.limit
        return _read_problems(chosen.test_problems, limit, chosen)
    if chosen.problems is None and pair.draw_test_problems is not None:
        return pair.draw_test_problems(_test_share(chosen), chosen.seed)
    return None if chosen.traces is None else ()


def _read_problems(sources: Sequence[str], limit: int, chosen: CollectSettings) -> list[Problem]:
    """The problems of a source, or as many of a mix, drawn at random if there are more."""
    found = [
        problem
        for source in sources
        for problem in _read_problems_once(
            source,
            file_state(sliced(source)[0]),
            limit if len(sources) == 1 else None,
            chosen.options,
        )
    ]
    refuse_repeated_ids(" and ".join(sources), found)
    if len(sources) > 1 and len(found) > limit:
        kept = sorted(Random(f"mix-{chosen.seed}").sample(range(len(found)), limit))
        found = [found[number] for number in kept]
    return found


@lru_cache(maxsize=16)
def _read_problems_once(
    source: str, _state: FileState | None, limit: int | None, options: bool
) -> tuple[Problem, ...]:
    return tuple(read_problems(source, limit, options=options))


@lru_cache(maxsize=2)
def _read_traces(
    paths: tuple[str, ...], _states: tuple[FileState | None, ...], limit: int, seed: int
) -> Traces:
    return read_traces(paths, limit, seed)


def _test_share(chosen: CollectSettings) -> int:
    return max(1, round(chosen.limit * chosen.test_fraction))
