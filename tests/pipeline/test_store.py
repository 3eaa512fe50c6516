import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from howwhen.errors import StoreError
from howwhen.pipeline.files import Key
from howwhen.pipeline.store import RunFolder, StepFolder, open_run
from howwhen.records import Problem, Split
from tests.factories import make_taxonomy, make_vectors

KEY = Key({"a": 1}, {}, {})


@pytest.fixture
def step(tmp_path: Path) -> StepFolder:
    step = RunFolder(tmp_path).step("collect")
    step.begin(KEY)
    return step


def test_step_folders_sort_in_the_order_of_the_steps(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.step("collect").path.name == "1-collect"
    assert folder.step("present").path.name == "6-present"


def test_records_and_tensors_survive_the_round_trip(step: StepFolder) -> None:
    problems = [Problem("a", "Q\u2028?", "1", Split.TRAIN), Problem("b", "R?", "\\frac12")]
    step.write_records("problems.jsonl", problems)
    assert step.read_records("problems.jsonl", Problem) == problems
    taxonomy, vectors = make_taxonomy(), make_vectors()
    step.write_taxonomy(taxonomy)
    step.write_vectors("v.safetensors", vectors)
    residual = torch.randn(20, 32)
    again, same = step.read_taxonomy(), step.read_vectors("v.safetensors")
    assert (again.model, again.layer, again.titles, again.scorer.method) == (
        "random",
        1,
        taxonomy.titles,
        "sae",
    )
    assert torch.equal(again.categorise(residual), taxonomy.categorise(residual))
    category = again.categorise(residual)
    assert torch.equal(same.delta(residual, category), vectors.delta(residual, category))


def test_a_step_is_done_only_under_its_own_key(step: StepFolder) -> None:
    assert step.digest is None
    step.write_json("data.json", [1])
    step.finish(KEY, {"kept": 1})
    assert step.digest == KEY.digest
    step.check()
    step.begin(KEY)
    assert step.state(KEY) == "resumable"
    assert (step.path / "data.json").exists()
    other = Key({"a": 2}, {}, {})
    assert step.state(other) == "other"
    step.set_aside()
    step.begin(other)
    assert not (step.path / "data.json").exists()
    assert (step.aside / "data.json").exists()
    assert step.digest is None


def test_provenance_holds_hashes_versions_and_counts(step: StepFolder) -> None:
    step.write_json("data.json", [1])
    step.finish(KEY, {"kept": 1})
    provenance = json.loads((step.path / "provenance.json").read_text())
    assert set(provenance["outputs"]) == {"data.json", "settings.json"}
    assert set(provenance["versions"]) == {"howwhen", "torch", "transformers"}
    assert provenance["counts"] == {"kept": 1}


@pytest.mark.parametrize("harm", ["change", "truncate", "remove"])
def test_damage_is_noticed(step: StepFolder, harm: str) -> None:
    step.write_vectors("v.safetensors", make_vectors())
    step.finish(KEY, {})
    file = step.path / "v.safetensors"
    if harm == "remove":
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(content[:-40] if harm == "truncate" else content[:-1] + b"!")
    with pytest.raises(StoreError, match=r"v\.safetensors is damaged.*run the same command again"):
        step.check()


def test_truncated_tensors_are_an_error_of_ours(step: StepFolder) -> None:
    step.write_vectors("v.safetensors", make_vectors())
    file = step.path / "v.safetensors"
    for keep in (0, 5, 100, file.stat().st_size - 1):
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(StoreError, match="cannot read"):
            step.read_vectors("v.safetensors")


def test_an_unfinished_step_names_the_command(step: StepFolder) -> None:
    with pytest.raises(StoreError, match="type `howwhen collect PAIR --out"):
        step.check()


def _grow(step: StepFolder, made: list[list[int]]) -> list[Problem]:
    def make(batch: Sequence[int]) -> list[Problem]:
        made.append(list(batch))
        return [Problem(str(one), "Q?", "1") for one in batch]

    return step.grow_records("p.jsonl", Problem, [1, 2, 3, 4, 5], 2, make, lambda _: None)


@pytest.mark.parametrize("cut", [0, 1, 60, 150, 230, 10_000])
def test_growing_resumes_with_whole_batches_after_any_cut(step: StepFolder, cut: int) -> None:
    batches = [[1, 2], [3, 4], [5]]
    whole = _grow(step, [])
    content = (step.path / "p.jsonl").read_bytes()
    (step.path / "p.jsonl").write_bytes(content[:cut])
    made: list[list[int]] = []
    assert _grow(step, made) == whole
    assert (step.path / "p.jsonl").read_bytes() == content
    assert made == batches[len(batches) - len(made) :]


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    with open_run(tmp_path / "r"):
        with pytest.raises(StoreError, match="another howwhen process"), open_run(tmp_path / "r"):
            pass
    with open_run(tmp_path / "r"):
        pass


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(StoreError, match="is a file"), open_run(tmp_path / "f"):
        pass
