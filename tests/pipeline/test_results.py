"""A run read back: what it shows, and that reading neither locks, changes nor loads anything."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import howwhen as hw
from howwhen.errors import SettingsError, SteeringError, StoreError
from howwhen.formats.safetensors import load_vectors, save_vectors
from howwhen.pipeline.files import StepName
from howwhen.pipeline.folders import RunFiles
from howwhen.pipeline.frames import RunTables
from howwhen.pipeline.reader import read_run
from howwhen.pipeline.results import RunResults
from howwhen.pipeline.store import open_run
from howwhen.zoo.pairs import Pair
from tests.conftest import MakeModel
from tests.finished_run import PROBLEMS, TITLES, make_run, make_trace


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("results") / "run").root


@pytest.fixture
def run(root: Path) -> RunResults:
    return hw.load(root)


class _Outside(HTMLParser):
    """Collects what a fragment would load or run, and the texts it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "iframe", "img", "object"):
            self.loads.append(tag)
        self.loads += [name for name, _ in attrs if name in ("src", "href") or name[:2] == "on"]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def shown_text(html: str) -> str:
    """The text of a fragment, after a check that it loads nothing and runs nothing."""
    parser = _Outside()
    parser.feed(html)
    assert parser.loads == []
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", html)
    return " ".join(" ".join(parser.texts).split())


def test_a_run_shows_its_verdict_and_ladder(run: RunResults) -> None:
    text = shown_text(run._repr_html_())
    assert run.verdict in text
    for rung in run.measurement.rungs:
        assert f"{rung} " in text
    assert "67%" in text
    assert repr(run) == (
        f"<run of tally-rl in {run.folder}: hybrid recovers 67% of the gap, 3 problems>"
    )


def test_an_unfinished_run_shows_what_is_missing_and_how_to_go_on(tmp_path: Path) -> None:
    make_run(tmp_path / "run", "collect", "discover")
    run = hw.load(tmp_path / "run")
    assert repr(run) == f"<run of tally-rl in {run.folder}: finished collect, discover>"
    text = shown_text(run._repr_html_())
    assert "Finished: collect, discover. Missing: elicit, hybrid, measure, present." in text
    assert f"howwhen run tally-rl --out {run.folder}" in text
    assert run.taxonomy.titles == TITLES
    with pytest.raises(StoreError, match="the step measure .* is not finished"):
        _ = run.measurement
    with pytest.raises(StoreError, match="the step elicit .* is not finished"):
        _ = run.vectors


def test_a_folder_that_holds_no_run_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(StoreError, match="there is no run in .* type `howwhen run tally-rl"):
            hw.load(folder)
    (tmp_path / "1-collect").mkdir()
    with pytest.raises(StoreError, match="earlier version of howwhen"):
        hw.load(tmp_path)


def test_reading_takes_no_lock_and_changes_nothing(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with open_run(root):
        run = hw.load(root)
        for name in ("ladder", "grades", "tokens", "sentences", "problems"):
            run.table(name)
        run._repr_html_()
        run.trace("hybrid", 0)._repr_html_()
        run.taxonomy._repr_html_()
        run.vectors._repr_html_()
    after = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.name != ".lock"}
    assert after == before


def test_the_ladder_is_shown_without_torch_and_without_pandas(root: Path) -> None:
    code = (
        "import sys, howwhen as hw; run = hw.load(sys.argv[1]); run._repr_html_(); repr(run); "
        "print(sorted({'torch', 'transformers', 'pandas', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_no_model_is_loaded_to_look_at_a_run(
    run: RunResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("howwhen.lm.models.load_model", refuse)
    assert len(run.tokens)
    run.trace("hybrid", 1)._repr_html_()
    run.taxonomy._repr_html_()
    run.vectors._repr_html_()


def test_an_answer_is_found_by_number_and_by_id(run: RunResults) -> None:
    answer = run.trace("hybrid", 1)
    assert answer.trace == make_trace("hybrid", PROBLEMS[3])
    assert run.trace("hybrid", "p3").trace == answer.trace
    assert run.trace("random-vectors", "p2", seed=1).trace.seed == 1
    assert answer.graded is not None
    assert answer.graded.problem_id == "p3"
    count = len(answer.trace.tokens)
    assert repr(answer) == f"<hybrid on p3: {count} tokens, 1 steered, 1 changed, correct>"


def test_an_answer_shows_its_tokens_and_the_category_that_steered(run: RunResults) -> None:
    text = shown_text(run.trace("hybrid", "p2")._repr_html_())
    assert PROBLEMS[2].question in text
    assert TITLES[1] in text
    assert "3 pens" in text.replace("  ", " ")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("hybrid", 3), "no test problem 3; expected 0 to 2, or an id such as 'p2'"),
        (("hybrid", -1), "no test problem -1"),
        (("hybrid", "p0"), "no test problem 'p0'"),
        (("self-gate", 0), "'self-gate' was not run .* expected one of hybrid, base"),
        (("hybrid", 0, 7), "hybrid has no answer to p2 with seed 7"),
    ],
)
def test_an_answer_that_is_not_there_is_refused(run: RunResults, asked: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        run.trace(*asked)


def test_a_runs_taxonomy_is_one_and_shows_typical_sentences(run: RunResults) -> None:
    plain, residual = run.reader.taxonomy(), torch.randn(20, 32)
    assert isinstance(run.taxonomy, hw.Taxonomy)
    assert torch.equal(run.taxonomy.categorise(residual), plain.categorise(residual))
    text = shown_text(run.taxonomy._repr_html_())
    for title in TITLES:
        assert f"{title} & sentence 0" in text
        assert f"{title} & sentence 3" not in text
    assert "4 categories" in text


def test_a_runs_vectors_are_a_vector_set_and_show_norms_and_cosines(
    run: RunResults, tmp_path: Path
) -> None:
    vectors = run.vectors
    assert isinstance(vectors, hw.VectorSet)
    save_vectors(tmp_path / "vectors.safetensors", vectors)
    again = load_vectors(tmp_path / "vectors.safetensors")
    assert torch.equal(again.vectors, vectors.vectors)
    assert type(vectors.scaled(2.0)) is type(vectors)
    text = shown_text(vectors._repr_html_())
    assert f"{vectors.vectors[2].norm():.2f}" in text
    assert f"{100 * vectors.similarity()[0, 1]:.0f}" in text
    assert vectors.counts == (7, 5, 0, 3)
    for title in TITLES:
        assert title in text


def test_vectors_steer_any_model_of_their_width(run: RunResults, make_model: MakeModel) -> None:
    model, ids = make_model("gpt2", seed=5).model, torch.tensor([[3, 4, 5, 6]])
    before = model(ids).logits
    with run.vectors.apply(model, category=1, coefficient=2.0):
        steered = model(ids).logits
    assert not torch.allclose(steered, before)
    with run.vectors.apply(model, category=1, coefficient=0.0):
        assert torch.equal(model(ids).logits, before)
    assert torch.equal(model(ids).logits, before)
    with pytest.raises(SteeringError, match="no category 4"), run.vectors.apply(model, category=4):
        pass


def test_two_models_of_ones_own_are_found_again_with_their_prompts(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", "collect")
    (folder.root / "run.json").write_text(
        '{"format": 2, "pair": "own", "base": "/models/b", "thinking": "/models/t"}'
    )
    started = folder.step("collect").path / "started.json"
    started.write_text(
        '{"models": {"thinking": {"prompt": "Q: {question}", "think_tags": ["<a>", "</a>"]}}}'
    )
    run = hw.load(tmp_path / "run")
    expected: Pair = hw.own_pair("/models/b", "/models/t", run.pair.base_prompt, "Q: {question}")
    assert (run.pair.base_source, run.pair.thinking_source) == ("/models/b", "/models/t")
    assert run.pair.thinking_prompt == expected.thinking_prompt
    assert run.pair.think_tags == ("<a>", "</a>")
    assert "--base /models/b --thinking /models/t" in run.reader.how_to_go_on()


def test_settings_are_those_of_the_steps_that_were_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", "collect")
    folder.step("collect").write_json("settings.json", {"limit": 7, "pair": "tally-rl"})
    run = hw.load(tmp_path / "run")
    assert run.settings.collect.limit == 7
    assert run.settings.hybrid == hw.RunSettings().hybrid
    assert run.folder == RunFiles(tmp_path / "run").root


@pytest.mark.parametrize("name", ["discover", "hybrid"])
def test_steps_made_from_others_than_those_there_are_now_are_not_shown(
    tmp_path: Path, name: StepName
) -> None:
    step = make_run(tmp_path / "run").step(name)
    step.write_json("provenance.json", {**step.read_json("provenance.json"), "key": "another"})
    reader = read_run(tmp_path / "run")
    assert name in reader.finished_steps()
    assert "measure" not in reader.finished_steps()
    assert ("elicit" in reader.finished_steps()) == (name == "hybrid")
    with pytest.raises(StoreError, match=f"made from another {name} step .* --redo"):
        reader.measurement()


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("4-hybrid/traces/hybrid-0.jsonl", "tokens"),
        ("1-collect/rollouts.jsonl", "sentences"),
        ("2-discover/annotations.jsonl", "sentences"),
        ("1-collect/problems.jsonl", "problems"),
        ("5-measure/grades/hybrid.jsonl", "grades"),
    ],
)
def test_a_file_that_lost_a_line_is_damaged(tmp_path: Path, name: str, table: str) -> None:
    make_run(tmp_path / "run")
    file = tmp_path / "run" / name
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(StoreError, match="is damaged"):
        list(RunTables(read_run(tmp_path / "run")).batches(table))
