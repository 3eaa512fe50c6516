"""An audit of files: gold answers of problem files against themselves, answers of any origin."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from howwhen.collect.problems import file_rows, read_gold
from howwhen.errors import ProblemError
from howwhen.measure.audit import Audit, audit_answers, unequal_golds
from howwhen.measure.grade import Graded, Item, open_grader
from howwhen.records import Finish


@dataclass(frozen=True)
class FileAudit:
    """What a file holds, and which of its gold answers are not right against themselves."""

    name: str
    golds: int
    """Different gold answers."""
    unequal: tuple[str, ...]


def audit_files(paths: Sequence[Path], deadline_seconds: float) -> tuple[list[FileAudit], Audit]:
    """Read files of problems or of answers twice.

    Args:
        paths: JSONL files, plain or gzipped. Rows have a gold answer, as `read_problems` reads
            it; those with a `text` too are answers, and may have `question`, `dataset`, `finish`
            and `role`.
        deadline_seconds: longest time for one comparison.

    Returns:
        The files, and the audit of all answers, by file and role.

    Raises:
        ProblemError: a file that cannot be read, or a row that cannot be used.
    """
    files: list[FileAudit] = []
    answers: dict[str, list[tuple[Item, Graded]]] = {}
    with open_grader(deadline_seconds) as grader:
        for path in paths:
            golds: dict[tuple[str, str], None] = {}
            items: dict[str, list[Item]] = {}
            for number, row in file_rows(path, "answers"):
                item, role = _read_row(row, number, path)
                golds[item.gold, item.dataset] = None
                if item.text:
                    name = f"{path.name.partition('.jsonl')[0]} {role}".strip()
                    items.setdefault(name, []).append(item)
            files.append(FileAudit(path.name, len(golds), tuple(unequal_golds(golds, grader))))
            for name, rows in items.items():
                pairs = zip(rows, grader.grade(rows), strict=True)
                answers.setdefault(name, []).extend(pairs)  # files in two folders, of one name
        return files, audit_answers(answers, grader).audit


def _read_row(row: object, number: int, path: Path) -> tuple[Item, str]:
    found = row if isinstance(row, dict) else {}
    text, finish, role = found.get("text") or "", found.get("finish"), found.get("role") or ""
    question = found.get("question")
    if text and found.get("gold") is not None:
        found = {**found, "answer": found["gold"]}  # `answer` may then be the model's
    gold = read_gold(str(path), number, found)
    texts = (text, role, "" if question is None else question)
    if not all(isinstance(one, str) for one in texts) or finish not in (None, *Finish):
        raise ProblemError(
            f"{path}, line {number} has a text, question or role that is no text, or an unknown "
            f"finish; expected texts, and {' or '.join(Finish)}; found {str(row)[:80]}"
        )
    dataset = str(found.get("dataset") or path.name.partition(".")[0])
    finished = None if finish is None else Finish(finish)
    return Item(text, gold, dataset, finished, question), role
