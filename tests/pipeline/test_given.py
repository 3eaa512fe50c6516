"""Runs with a taxonomy and vectors of another run, or of files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from howwhen import Pipeline, Reporter, find_pair, load, make_settings, open_run
from howwhen.errors import SettingsError
from howwhen.formats.safetensors import load_vectors, save_vectors
from howwhen.pipeline.plan import find_changes
from howwhen.pipeline.store import RunFolder, StepFolder
from howwhen.records import HybridTrace, Measurement, Problem, Split
from howwhen.settings import Overrides, merge
from howwhen.vectors import VectorSet
from tests.killed_run import SETTINGS

UNUSED: Overrides = {"discover": {"layers": None}, "elicit": {"on_policy_rounds": 0}}
"""Settings of a search and of a training, which have no place where their outcome is given."""


def taken(folder: Path, *changes: Overrides, redo: bool = False) -> RunFolder:
    with open_run(folder) as run:
        settings = make_settings(SETTINGS, *changes)
        Pipeline(find_pair("tally-rl"), settings, run, Reporter(), redo).run()
    return run


def both(source: Path) -> Overrides:
    given: Overrides = {"discover": {"taxonomy": str(source)}, "elicit": {"vectors": str(source)}}
    return merge(UNUSED, given)


@pytest.fixture(scope="module")
def again(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that takes everything from the finished one."""
    folder = tmp_path_factory.mktemp("given") / "again"
    taken(folder, both(finished))
    return folder


def test_taking_everything_gives_the_same_answers(finished: Path, again: Path) -> None:
    steps = [StepFolder(folder / "1-collect", "collect") for folder in (finished, again)]
    before, now = (step.read_records("problems.jsonl", Problem) for step in steps)
    assert now == [problem for problem in before if problem.split is Split.TEST]
    assert (again / "1-collect" / "rollouts.jsonl").read_bytes() == b""
    names = sorted(path.name for path in (finished / "4-hybrid" / "traces").iterdir())
    assert names == sorted(path.name for path in (again / "4-hybrid" / "traces").iterdir())
    for name in names:
        one, other = (
            StepFolder(folder / "4-hybrid", "hybrid").read_records(f"traces/{name}", HybridTrace)
            for folder in (finished, again)
        )
        # What a probe or a rank says may differ in its last bits with the batch.
        assert [trace.ids for trace in one] == [trace.ids for trace in other], name
        assert [trace.decisions for trace in one] == [trace.decisions for trace in other]
    first, second = (
        StepFolder(folder / "5-measure", "measure").read_record("measurement.json", Measurement)
        for folder in (finished, again)
    )
    assert first.rungs.keys() == second.rungs.keys()
    assert first.rungs["hybrid"].accuracy == second.rungs["hybrid"].accuracy


def test_pages_say_where_it_was_taken_from(finished: Path, again: Path) -> None:
    report = (again / "6-present" / "report.md").read_text()
    assert (
        f"- taken as they are from {finished}. The rest of this list is of the training" in report
    )
    assert "Given, so no other was tried." in report
    page = (again / "6-present" / "report.html").read_text()
    assert f"given as {finished}" in page
    assert "The grid" not in page
    assert "What leads to what" not in page  # there is no sentence
    assert load(again).vectors.titles == load(finished).vectors.titles


def test_a_taxonomy_alone_is_taken_and_vectors_are_trained(finished: Path, tmp_path: Path) -> None:
    given = finished / "2-discover" / "taxonomy.safetensors"
    discover = {"taxonomy": str(given), "layers": None}
    folder = taken(tmp_path / "run", {"discover": discover}).root
    old, new = (StepFolder(one / "2-discover", "discover") for one in (finished, folder))
    name = "annotations.jsonl"
    assert (new.path / name).read_bytes() == (old.path / name).read_bytes()
    trained, before = (
        load_vectors(f / "3-elicit" / "vectors.safetensors") for f in (folder, finished)
    )
    assert torch.equal(trained.vectors, before.vectors)
    page = (folder / "2-discover" / "taxonomy.html").read_text()
    assert "What leads to what" in page
    assert "taxonomy.safetensors" in page


def test_a_file_of_vectors_has_neither_probe_nor_shared_vector(
    finished: Path, tmp_path: Path
) -> None:
    taxonomy = finished / "2-discover" / "taxonomy.safetensors"
    trained = load_vectors(finished / "3-elicit" / "vectors.safetensors").vectors
    save_vectors(tmp_path / "v.safetensors", VectorSet("tally/base", 2, torch.zeros_like(trained)))
    given = both(taxonomy)
    given["elicit"] |= {"vectors": str(tmp_path / "v.safetensors")}
    given["hybrid"] = {"rungs": ("all",)}
    run = taken(tmp_path / "run", given)
    measured = run.step("measure").read_record("measurement.json", Measurement)
    missing = {"shared-vector", "self-gate", "entropy-gate"}
    assert not missing & measured.rungs.keys()
    assert measured.rungs["hybrid"].accuracy == measured.rungs["base"].accuracy  # vectors of zero
    report = (run.root / "6-present" / "report.md").read_text()
    assert "self-gate" not in report.partition("## Vectors")[2]
    with pytest.raises(SettingsError, match="this run has no rung self-gate"):
        taken(tmp_path / "run", given, {"hybrid": {"rungs": ("self-gate",)}})


def test_problems_that_were_trained_on_are_no_tests(finished: Path, tmp_path: Path) -> None:
    message = r"\d+ test problems were trained on in .*; expected others: leave --limit and"
    with pytest.raises(SettingsError, match=message):
        taken(tmp_path / "run", both(finished), {"collect": {"limit": 24}})


def test_other_files_are_a_change_that_needs_redo(
    finished: Path, again: Path, tmp_path: Path
) -> None:
    pair = find_pair("tally-rl")
    plain = make_settings(SETTINGS)
    changes = find_changes(pair, plain, RunFolder(again))
    assert changes["collect"] == ["collect.only_tests was true, now null"]
    assert 'discover.taxonomy was "given", now null' in changes["discover"]
    moved = tmp_path / "moved"
    moved.symlink_to(finished)
    assert not find_changes(pair, make_settings(SETTINGS, both(moved)), RunFolder(again))
    copy = tmp_path / "v.safetensors"
    copy.write_bytes((finished / "3-elicit" / "vectors.safetensors").read_bytes())
    other = make_settings(SETTINGS, both(finished), {"elicit": {"vectors": str(copy)}})
    found = find_changes(pair, other, RunFolder(again))
    assert list(found) == ["elicit"]
    assert "the vectors files changed" in found["elicit"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"discover": {"taxonomy": "nowhere"}},
            r"--discover.taxonomy nowhere: there is no nowhere",
        ),
        ({"elicit": {"vectors": "{folder}"}}, r"there is no .*3-elicit/vectors.safetensors and no"),
        (
            {"elicit": {"vectors": "{run}", "method": "span", "on_policy_rounds": 0}},
            r"trained by method decision, but",
        ),
        (
            {"elicit": {"vectors": "{run}/1.safetensors"}},
            r"come without a gate, so the taxonomy they were trained with",
        ),
        (
            {"elicit": {"vectors": "{run}/1.safetensors"}, "discover": {"taxonomy": "{run}"}},
            r"has 1 vectors, but the gate \d categ",
        ),
        (
            {"elicit": {"vectors": "{run}/wide.safetensors"}, "discover": {"taxonomy": "{run}"}},
            r"are of width 3 for layer 2 of tally",
        ),
        (
            {"elicit": {"vectors": "{run}/bias.safetensors"}, "discover": {"taxonomy": "{run}"}},
            r"hold a bias vector, as those of the paper's first version do; type --elicit.method",
        ),
        (
            {"elicit": {"vectors": "{run}/other.safetensors"}, "discover": {"taxonomy": "{run}"}},
            r"were trained in elsewhere, but the base is tally/base",
        ),
        ({"elicit": {"vectors": "{run}", "layer": 1}}, r"vectors .* with layer; expected one of"),
        (
            {"discover": {"taxonomy": "{run}", "judge_local": "m"}},
            r"taxonomy .* with judge_local; expected one of them",
        ),
        (
            {
                "discover": {"taxonomy": "{run}", "reader": "tally/base"},
                "elicit": {"gate": "probe"},
            },
            r"reads tally/rl \(width 192\), but this run reads tally/base",
        ),
        (
            {"discover": {"taxonomy": "{run}", "chosen_layer": 2}},
            r"taxonomy .* with chosen_layer; expected one of them",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    finished: Path, tmp_path: Path, changes: Overrides, message: str
) -> None:
    save_vectors(tmp_path / "1.safetensors", VectorSet("tally/base", 2, torch.zeros(1, 192)))
    size = load_vectors(finished / "3-elicit" / "vectors.safetensors").size
    fitting = VectorSet("tally/base", 2, torch.zeros(size, 192))
    save_vectors(tmp_path / "bias.safetensors", replace(fitting, bias=torch.ones(192)))
    save_vectors(tmp_path / "other.safetensors", replace(fitting, model="elsewhere"))
    save_vectors(tmp_path / "wide.safetensors", VectorSet("tally/base", 2, torch.zeros(size, 3)))
    places = {"{run}/": f"{tmp_path}/", "{run}": str(finished), "{folder}": str(tmp_path)}

    def placed(value: object) -> object:
        text = str(value)
        for name, place in places.items():
            text = text.replace(name, place)
        return text

    filled: Overrides = {
        section: {
            name: placed(value) if isinstance(value, str) else value for name, value in own.items()
        }
        for section, own in changes.items()
    }
    with pytest.raises(SettingsError, match=message):
        taken(tmp_path / "run", merge(UNUSED, filled))
