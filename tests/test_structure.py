"""The layout is the table of contents: steps import only what comes before them."""

import ast
import re
from itertools import pairwise
from pathlib import Path

import howwhen
from howwhen.pipeline.store import STEPS

SOURCE = Path(howwhen.__file__).parent
SHARED = {
    "alignment", "artifacts", "convert", "errors", "judging", "latex", "memory", "models",
    "progress", "prompts", "records", "replies", "residual", "saelens", "settings", "store",
    "unpickle",
}  # fmt: skip
MAY_IMPORT_ANYTHING = {
    "answering", "cli", "doctor", "harness", "pipeline", "serving", "steps", "zoo", "__main__",
    "__init__",
}  # fmt: skip


def imports_of(file: Path) -> set[str]:
    """First part below `howwhen` of everything a file imports."""
    tree = ast.parse(file.read_text())
    names = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    return {name.split(".")[1] for name in names if name.startswith("howwhen.")}


def test_no_step_imports_a_later_one() -> None:
    checked = 0
    for file in SOURCE.rglob("*.py"):
        part = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        if part in MAY_IMPORT_ANYTHING:
            continue
        earlier = set(STEPS[: STEPS.index(part) + 1]) if part in STEPS else set()
        assert imports_of(file) <= SHARED | earlier, file
        checked += 1
    assert checked > 20


def test_steps_folders_and_tests_have_the_same_names_in_alphabetical_order() -> None:
    assert list(STEPS) == sorted(STEPS)
    tests = Path(__file__).parent
    for step in STEPS:
        assert (SOURCE / step).is_dir()
        assert (tests / step).is_dir()
        assert all(name in (howwhen.__doc__ or "") for name in STEPS)


def test_functions_stay_short() -> None:
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 60, f"{file.name}: {node.name} has {length} lines"


def test_files_are_read_and_written_in_few_places() -> None:
    """Only the store, the command line, and what loads problems, models and weights touch files."""
    allowed = {
        "artifacts.py", "cli.py", "convert.py", "judging.py", "models.py", "pipeline.py",
        "problems.py", "published.py", "saelens.py", "settings.py", "store.py", "unpickle.py",
    }  # fmt: skip
    for file in SOURCE.rglob("*.py"):
        text = file.read_text()
        touches = re.search(
            r"(?<!step)\.(?:read_text|read_bytes|write_text)\(|(?<!\w)open\(|\.open\(", text
        )
        if touches and "zoo" not in file.parts:
            assert file.name in allowed, file


def test_the_public_names_are_what_the_package_lists() -> None:
    assert len(howwhen.__all__) <= 20
    assert list(howwhen.__all__) == sorted(howwhen.__all__)
    for name in howwhen.__all__:
        assert hasattr(howwhen, name)
    assert all(one <= two for one, two in pairwise(howwhen.__all__))
