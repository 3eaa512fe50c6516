"""What is published: the wheel works without the sources, the citation is of this version."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_citation_is_of_this_version_and_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["title"] == PROJECT["name"]
    assert str(citation["version"]) == PROJECT["version"]
    [paper] = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Venhoff", "Arcuschin", "Torr", "Conmy", "Nanda",
    ]  # fmt: skip
    assert paper["identifiers"][0]["value"] == "arXiv:2510.07364"


def test_every_python_that_is_named_is_allowed() -> None:
    named = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    assert named == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == ">=3.11"


def test_every_package_of_an_extra_is_pinned_for_the_tests() -> None:
    pins = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    pinned = {_canonical(name) for name in pins}
    wanted = {
        _canonical(re.split(r"[<>=\[]", requirement)[0])
        for requirement in PROJECT["optional-dependencies"]["dev"]
    }
    assert wanted <= pinned


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-")


@pytest.mark.slow
def test_the_wheel_does_the_main_job_where_the_sources_are_not(tmp_path: Path) -> None:
    """A fresh environment that holds the wheel, and sees the libraries of this one."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT)]
    subprocess.run([*pip, *build], check=True)
    [wheel] = tmp_path.glob("howwhen-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    install = ["--python", str(python), "install", "-q", "--no-deps", str(wheel)]
    subprocess.run([*pip, *install], check=True)
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    folder = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True)
    libraries = Path(folder.stdout.strip()) / "libraries.pth"
    libraries.write_text(sysconfig.get_paths()["purelib"] + "\n")
    found = subprocess.run(
        [python, "-c", "import howwhen; print(howwhen.__file__)"],
        capture_output=True, text=True, check=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert Path(found.stdout.strip()).is_relative_to(tmp_path / "env")
    run = [
        str(python.with_name("howwhen")),
        "run",
        "tally-rl",
        "--preset",
        "smoke",
        "--out",
        "runs/x",
    ]
    done = subprocess.run(
        run, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    assert "takeover" in done.stdout
    assert "The hybrid recovers" in done.stdout
    assert (tmp_path / "runs" / "x" / "6-present" / "report.html").stat().st_size > 50_000
