"""The layout is the table of contents: every file imports only what stands below it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import howwhen
from howwhen.pipeline.files import STEPS

SOURCE = Path(howwhen.__file__).parent
FLOORS: tuple[set[str], ...] = (
    {"cache_folder", "errors", "progress", "settings", "records", "probes", "vectors"},
    {"lm", "judge", "formats"},
    *({str(step)} for step in STEPS),
    {"zoo"},
    {"pipeline"},
    {"serve", "harness"},
    {"cli"},
    {"__init__", "__main__"},
)
"""Files and folders of the package from the ground up; those of one floor may use each other."""
SCRIPTS = ("formats/unpickle.py", "measure/verify.py")
"""Run in processes of their own, so they import nothing of the package."""


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def module_of(file: Path) -> str:
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> int:
    part = [*module.split("."), "__init__"][1]
    return next(number for number, floor in enumerate(FLOORS) if part in floor)


def imports_of(file: Path) -> Iterator[str]:
    """Modules of the package that a file imports anywhere, for type checkers or at run time."""
    modules = {module_of(one) for one in files()}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else str(node.module)


def test_every_file_belongs_to_a_floor() -> None:
    for file in files():
        assert floor_of(module_of(file)) >= 0
    top = {path.name.removesuffix(".py") for path in SOURCE.iterdir() if path.name[0] != "_"}
    assert top - {"py.typed"} == set().union(*FLOORS[:-1])


def test_nothing_is_imported_from_a_floor_above() -> None:
    upwards = [
        f"{module_of(file)} -> {module}"
        for file in files()
        for module in imports_of(file)
        if floor_of(module) > floor_of(module_of(file))
    ]
    assert upwards == []


def test_no_imports_go_in_a_circle() -> None:
    below = {module_of(file): set(imports_of(file)) - {module_of(file)} for file in files()}
    while free := {module for module, needs in below.items() if not needs}:
        below = {module: needs - free for module, needs in below.items() if module not in free}
    assert below == {}


def test_scripts_import_nothing_of_the_package() -> None:
    for script in SCRIPTS:
        assert list(imports_of(SOURCE / script)) == []


def test_records_and_settings_need_no_torch() -> None:
    for name in ("errors", "progress", "settings", "records"):
        assert not re.search(
            r"^\s*(?:import|from) torch", (SOURCE / f"{name}.py").read_text(), re.M
        )


def test_steps_folders_and_tests_have_the_same_names_in_alphabetical_order() -> None:
    assert list(STEPS) == sorted(STEPS)
    tests = Path(__file__).parent
    for step in STEPS:
        assert (SOURCE / step).is_dir()
        assert (SOURCE / "pipeline" / f"{step}.py").is_file()
        assert (tests / step).is_dir()
    assert all(name in (howwhen.__doc__ or "") for name in STEPS)


def test_functions_stay_short() -> None:
    for file in files():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 60, f"{file.name}: {node.name} has {length} lines"


TOUCHES = re.compile(r"(?<!step)\.(?:read_text|read_bytes|write_text)\(|(?<!\w)open\(|\.open\(")
MAY_TOUCH = {
    "collect/problems.py", "formats/files.py", "formats/published.py", "formats/saelens.py",
    "hybrid/pass_costs.py",
    "judge/cache.py", "lm/checkpoint.py", "measure/published.py", "pipeline/export.py",
    "pipeline/files.py", "pipeline/folders.py", "pipeline/hardware.py", "pipeline/plan.py",
    "settings.py",
}  # fmt: skip


def test_files_are_read_and_written_in_few_places() -> None:
    """Only the store, the command line, and what loads problems, models and weights touch files."""
    found = {
        file.relative_to(SOURCE).as_posix()
        for file in files()
        if "zoo" not in file.parts and TOUCHES.search(file.read_text())
    }
    assert found <= MAY_TOUCH
    assert found >= MAY_TOUCH, "a file that is listed touches none"


def test_the_public_names_are_what_the_package_lists() -> None:
    assert len(howwhen.__all__) <= 24
    assert list(howwhen.__all__) == sorted(howwhen.__all__)
    for name in howwhen.__all__:
        assert hasattr(howwhen, name)


def test_no_test_module_imports_from_another_one() -> None:
    tests = Path(__file__).parent
    names = {".".join(file.relative_to(tests.parent).with_suffix("").parts): file
             for file in tests.rglob("test_*.py")}  # fmt: skip
    for file in names.values():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.module not in names, f"{file.name} imports from {node.module}"
