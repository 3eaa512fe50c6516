"""Problems from files and published sets, and their split into disjoint sets.

A source is a JSONL file, the name of a published set (`gsm8k`, `math500`, `aime24`, `aime25`,
`mmlu_pro`, `svamp`, `multiarith`), or `hub:ID` with an optional `/CONFIG` and `@SPLIT`. Published
sets are downloaded from the Hugging Face hub. Files need no network.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from howwhen.collect.latex import closing_brace
from howwhen.errors import MissingExtraError, ProblemError
from howwhen.lm.prompts import LETTERS, with_options
from howwhen.records import Problem, Split
from howwhen.settings import CollectSettings

PUBLISHED = {
    "gsm8k": "hub:openai/gsm8k/main@test",
    "gsm8k_train": "hub:openai/gsm8k/main@train",
    "math500": "hub:HuggingFaceH4/MATH-500@test",
    "aime24": "hub:math-ai/aime24@test",
    "aime25": "hub:math-ai/aime25@test",
    "mmlu_pro": "hub:TIGER-Lab/MMLU-Pro@test",
    "svamp": "hub:ChilleD/SVAMP@test",
    "multiarith": "hub:ChilleD/MultiArith@test",
}
"""Published problem sets by name, with their source."""
_HUB = re.compile(r"hub:(?P<id>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")
_SLICE = re.compile(r"(.+)\[(\d*):(\d*)\]", re.DOTALL)
"""Some of a source's problems: `gsm8k[:500]`, `math500[100:200]`."""
_QUESTIONS = ("question", "problem", "Question", "problem_text")
_ANSWERS = ("answer", "final_ans", "Answer", "gold", "reference_answer", "answer_number")
_MARK = "####"
_BOX = "\\boxed{"


def sliced(source: str) -> tuple[str, int, int | None]:
    """A source of problems, and which of them are meant: the first, and where they end.

    Raises:
        ProblemError: brackets that mean no problems.
    """
    if not source.endswith("]") or Path(source).exists():
        return source, 0, None
    match = _SLICE.fullmatch(source)
    first, last = (match[2], match[3]) if match else ("", "0")
    if match is None or (last and int(last) <= int(first or 0)):
        raise ProblemError(
            f"found problems {source!r}; expected the numbers of the first problem and of the one "
            "after the last, from 0, such as gsm8k[:500] or math500[100:200]"
        )
    return match[1], int(first or 0), int(last) if last else None


def read_problems(
    source: str | Path, limit: int | None = None, *, options: bool = True
) -> list[Problem]:
    """The first `limit` problems of a file, a published set or a set on the hub.

    `SOURCE[100:200]` means the problems 100 to 199 of a source, from 0, whatever the limit.

    A row is an object with a question (`question` or `problem`, after a `Body` if there is one) and
    a gold answer (`answer` or `gold`, text or number), and optionally `id` and `options`. If the
    answer has `####`, as in GSM8K, only what follows is kept. If there is no answer, the last box
    in `solution` is taken. Other fields are ignored.

    Args:
        source: of the problems.
        limit: how many at most.
        options: whether a question is asked with its options.

    Raises:
        ProblemError: the source is missing, empty or not JSONL, a row has no question or no answer,
            or an id occurs twice. The message names the line.
        MissingExtraError: the set is on the hub, and the library that reads it is not installed.
    """
    name, first, last = sliced(str(source))
    source = Path(name)
    rows: Iterable[tuple[int, Any]]
    is_file = source.exists() or not (name in PUBLISHED or name.startswith("hub:"))
    rows = file_rows(source, "problems") if is_file else _hub_rows(PUBLISHED.get(name, name))
    dataset = source.name.split(".")[0] if is_file else name
    end = first + limit if last is None and limit is not None else last
    problems = [
        _make_problem(name, dataset, number, row, options)
        for number, row in islice(rows, first, end)
    ]
    if not problems:
        raise ProblemError(
            f"{name} holds no problems{f' from number {first} on' if first else ''}; expected one "
            'JSON object per line, such as {"id": "1", "question": "What is 2 + 2?", "answer": "4"}'
        )
    refuse_repeated_ids(name, problems)
    return problems


def split_problems(
    problems: Sequence[Problem],
    settings: CollectSettings,
    test_problems: Sequence[Problem] | None = None,
    selection_problems: Sequence[Problem] | None = None,
) -> list[Problem]:
    """Shuffle by `settings.seed` and mark each problem train, selection or test.

    Problems with the same question stay together.

    Args:
        problems: the problems to split.
        settings: fractions and seed.
        test_problems: a separate test set, which may be empty. `problems` are then for training and
            selection only. By default, the test set is a share of `problems`.
        selection_problems: a separate selection set. By default a share of `problems` too.

    Raises:
        ProblemError: there are too few questions for every set to have one, or the training and
            test sets overlap.
    """
    shuffled = _by_question(problems)
    Random(f"split-{settings.seed}").shuffle(shuffled)
    is_separate = test_problems is not None
    test = 0 if is_separate else max(1, round(len(shuffled) * settings.test_fraction))
    selection = 0
    if selection_problems is None:
        selection = max(1, round(len(shuffled) * settings.selection_fraction))
    if len(shuffled) - test - selection < 2:
        raise ProblemError(
            f"{len(shuffled)} problems cannot be split into training, selection and test sets "
            f"({test} for test, {selection} for selection, at least 2 to train on); "
            "raise --collect.limit or give a longer file"
        )
    _refuse_common([*problems, *(selection_problems or ())], test_problems or ())
    _refuse_common(problems, selection_problems or (), "selection")
    return [
        *(replace(problem, split=Split.TEST) for problem in test_problems or ()),
        *(replace(problem, split=Split.SELECTION) for problem in selection_problems or ()),
        *(
            replace(problem, split=_split_at(index, test, selection))
            for index, group in enumerate(shuffled)
            for problem in group
        ),
    ]


def _by_question(problems: Iterable[Problem]) -> list[list[Problem]]:
    """Problems grouped by question, in order of the first of each group."""
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(_canonical(problem.question), []).append(problem)
    return list(groups.values())


def _refuse_common(
    problems: Sequence[Problem], test_problems: Sequence[Problem], name: str = "test"
) -> None:
    """Refuse training problems and others, by default test problems, that overlap."""
    questions = {_canonical(problem.question): problem.id for problem in problems}
    ids = {problem.id for problem in problems}
    for problem in test_problems:
        if (twin := questions.get(_canonical(problem.question))) is not None:
            raise ProblemError(
                f"{name} problem {problem.id} asks the same as training problem {twin}; take it "
                "out of one of the two sets"
            )
        if problem.id in ids:
            raise ProblemError(
                f"the id {problem.id!r} is in the training and in the {name} set; ids must differ"
            )


def _canonical(question: str) -> str:
    """A question in lower case, without punctuation, with single blanks."""
    plain = re.sub(r"[?!;:\"'\u2018-\u201d]|(?<!\d)[.,]|[.,](?!\d)", " ", question.lower())
    return " ".join(plain.split())


def _split_at(index: int, test: int, selection: int) -> Split:
    if index < test:
        return Split.TEST
    return Split.SELECTION if index < test + selection else Split.TRAIN


def file_rows(path: Path, what: str) -> Iterable[tuple[int, Any]]:
    """Numbered rows of a JSONL file, plain or gzipped.

    Raises:
        ProblemError: the file cannot be read, or is not JSONL. The message says what was expected.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        others = f", or one of {', '.join(PUBLISHED)}" if what == "problems" else ""
        raise ProblemError(
            f"cannot read {what} from {path}: {error}; expected a UTF-8 JSONL file{others}"
        ) from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ProblemError(
                    f"{path}, line {number} is not JSON ({error}); expected one object per line"
                ) from error


def _hub_rows(name: str) -> Iterable[tuple[int, Any]]:
    """Numbered rows of a set on the hub."""
    match = _HUB.fullmatch(name)
    if match is None:
        raise ProblemError(f"{name!r} is no set on the hub; expected hub:OWNER/NAME/CONFIG@SPLIT")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtraError(
            f"{name} is read with the library `datasets`; type `pip install 'howwhen[hub]'`, or "
            "give a JSONL file"
        ) from error
    try:
        rows = load_dataset(match["id"], match["config"], split=match["split"] or "test")
    except (OSError, ValueError) as error:
        raise ProblemError(f"cannot read {name} from the hub: {error}") from error
    return enumerate(rows, start=1)


def read_gold(source: str, number: int, row: Any) -> str:
    """The gold answer of a row, as `read_problems` reads it.

    Raises:
        ProblemError: the row has none. The message names the line.
    """
    fields: Mapping[str, Any] = row if isinstance(row, dict) else {}
    boxed = _boxed(fields.get("solution"))
    if boxed is not None and not any(name in fields for name in _ANSWERS):
        fields = {**fields, "answer": boxed}
    answer = _field(source, number, fields, "answer", _ANSWERS).rpartition(_MARK)[2].strip()
    is_option = bool(fields.get("options")) and re.fullmatch("[A-Z]", answer)
    return f"({answer})" if is_option else answer  # graders then know it for an option


def _make_problem(source: str, dataset: str, number: int, row: Any, with_choices: bool) -> Problem:
    fields: Mapping[str, Any] = row if isinstance(row, dict) else {}
    question = _field(source, number, fields, "question", _QUESTIONS)
    if isinstance(fields.get("Body"), str):
        question = f"{fields['Body'].strip()} {question}"
    answer = read_gold(source, number, fields)
    if given := fields.get("options"):
        options = _read_options(source, number, given)
        if with_choices:
            question = with_options(question, options)
        else:
            answer = _option_text(answer, options)
    given_id = fields.get("id")
    problem_id = f"{dataset}-{number}" if given_id is None else str(given_id)
    return Problem(problem_id, question, answer, dataset=dataset)


def _option_text(answer: str, options: Sequence[str]) -> str:
    """The gold answer of a question that is asked without its options: what a letter stands for."""
    letter = answer.removeprefix("(").removesuffix(")")
    named = dict(zip(LETTERS, options, strict=False))
    return named.get(letter, answer) if answer != letter else answer


def _boxed(solution: Any) -> str | None:
    """The content of the last box of a solution; None if there is none."""
    if not isinstance(solution, str) or (start := solution.rfind(_BOX)) < 0:
        return None
    end = closing_brace(solution, start + len(_BOX))
    return None if end is None else solution[start + len(_BOX) : end - 1]


def _read_options(source: str, number: int, options: Any) -> list[str]:
    is_list = isinstance(options, list) and all(isinstance(option, str) for option in options)
    if not is_list or len(options) > len(LETTERS):
        raise ProblemError(
            f"{source}, line {number} has options {options!r}; expected a list of up to "
            f"{len(LETTERS)} texts"
        )
    return list(options)


def _field(
    source: str, number: int, row: Mapping[str, Any], what: str, names: Sequence[str]
) -> str:
    value = next((row[name] for name in names if row.get(name) not in (None, "")), None)
    is_text = isinstance(value, str | int | float) and not isinstance(value, bool)
    if not is_text or not str(value).strip():
        raise ProblemError(
            f"{source}, line {number} is a problem without {what!r} (found {value!r}); every line "
            "needs a question and a gold answer, as text or a number. Fix or remove the line"
        )
    text = str(value)
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ProblemError(
            f"{source}, line {number} has half a character (a lone surrogate) in its {what}; "
            "write the whole character or remove the line"
        )
    return text


def refuse_repeated_ids(source: str, problems: Sequence[Problem]) -> None:
    """Refuse problems of which two have one id.

    Raises:
        ProblemError: with the id.
    """
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise ProblemError(f"{source} has the id {problem.id!r} twice; ids must differ")
        seen.add(problem.id)
