"""An audit of files: gold answers of problem files against themselves, answers of any origin."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from howwhen.collect.problems import file_rows
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
        paths: JSONL files, plain or gzipped. Rows have a gold answer (`gold` or `answer`); those
            with a `text` too are answers, and may have `question`, `dataset`, `finish` and `role`.
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
                item, role = _read_row(row, f"{path}, line {number}", path)
                golds[item.gold, item.dataset] = None
                if item.text:
                    name = f"{path.name.partition('.jsonl')[0]} {role}".strip()
                    items.setdefault(name, []).append(item)
            files.append(FileAudit(path.name, len(golds), tuple(unequal_golds(golds, grader))))
            for name, rows in items.items():
                pairs = zip(rows, grader.grade(rows), strict=True)
                answers.setdefault(name, []).extend(pairs)  # files in two folders, of one name
        return files, audit_answers(answers, grader).audit


def _read_row(row: object, place: str, path: Path) -> tuple[Item, str]:
    found = row if isinstance(row, dict) else {}
    gold = found.get("gold", found.get("answer"))
    text, finish = found.get("text") or "", found.get("finish")
    if gold is None or not isinstance(text, str) or finish not in (None, *Finish):
        raise ProblemError(
            f"{place} has no gold answer, a text that is none, or an unknown finish; expected an "
            "object with gold (or answer), and for answers text, maybe question, dataset, role, "
            f"finish ({' or '.join(Finish)}); found {str(row)[:80]}"
        )
    dataset = str(found.get("dataset") or path.name.partition(".")[0])
    item = Item(
        text,
        str(gold),
        dataset,
        None if finish is None else Finish(finish),
        question=None if found.get("question") is None else str(found["question"]),
    )
    return item, str(found.get("role") or "")
