from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from howwhen.discover.activations import ReaderInput, sentence_means
from howwhen.errors import InputError, StoreError
from howwhen.lm.models import LanguageModel
from howwhen.pipeline import shards
from howwhen.pipeline.shards import Activations, read_activations
from howwhen.pipeline.store import StepFolder, open_run
from tests.conftest import MakeModel
from tests.discover.reading import SETTINGS, answers


@pytest.fixture
def step(tmp_path: Path) -> StepFolder:
    with open_run(tmp_path / "run") as folder:
        step = folder.step("discover")
        step.path.mkdir(parents=True)
        return step


def read(step: StepFolder, model: LanguageModel, reader_inputs: list[ReaderInput]) -> Activations:
    return read_activations(step, model, reader_inputs, [0, 2], SETTINGS, lambda _: None)


def test_shards_hold_everything_with_its_place_and_are_not_read_twice(
    make_model: MakeModel, step: StepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_TEXTS", 2)
    model = make_model()
    rollouts, reader_inputs = answers(model)
    reader_inputs[1] = reader_inputs[1]._replace(is_trained=[False] * len(rollouts[1].spans))
    found = read(step, model, reader_inputs)
    whole = sentence_means(model, reader_inputs, [0, 2], SETTINGS)
    counts = [len(rollout.spans) for rollout in rollouts]
    assert len(found) == sum(counts)
    torch.testing.assert_close(found.rows(2), whole[2], atol=1e-5, rtol=1e-5)
    wanted = [0, counts[0], len(found) - 1]
    torch.testing.assert_close(found.rows(0, wanted), whole[0][wanted], atol=1e-5, rtol=1e-5)
    kept = [n for n in range(len(found)) if not counts[0] <= n < counts[0] + counts[1]]
    torch.testing.assert_close(found.mean(0), whole[0][kept].mean(0), atol=1e-5, rtol=1e-5)
    tensors, _ = step.read_tensors("activations/00002.safetensors")
    assert tensors["rollout"].tolist() == [4] * counts[4]
    assert tensors["span"].tolist() == list(range(counts[4]))

    def refuse(*_: object) -> None:
        raise AssertionError("read twice")

    (step.path / "activations/00001.safetensors").unlink()
    again = read(step, model, reader_inputs)
    assert torch.equal(again.rows(2), found.rows(2))
    monkeypatch.setattr(shards, "sentence_means", refuse)
    assert torch.equal(read(step, model, reader_inputs).rows(0), found.rows(0))


def test_another_reading_takes_the_place_of_the_shards(
    make_model: MakeModel, step: StepFolder
) -> None:
    model = make_model()
    _, reader_inputs = answers(model)
    whole = read(step, model, reader_inputs).rows(2)
    part = read(step, model, reader_inputs[:3]).rows(2)
    torch.testing.assert_close(part, whole[: len(part)], atol=1e-5, rtol=1e-5)
    other = read(step, make_model(seed=1), reader_inputs[:3]).rows(2)
    assert not torch.allclose(other, part)


def test_a_damaged_shard_is_refused(make_model: MakeModel, step: StepFolder) -> None:
    model = make_model()
    _, reader_inputs = answers(model)
    read(step, model, reader_inputs)
    path = step.path / "activations/00000.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StoreError, match="cannot read"):
        read(step, model, reader_inputs)
    save_file({"other": torch.zeros(1)}, path)
    with pytest.raises(StoreError, match="holds nothing for layer 0"):
        read(step, model, reader_inputs)


def test_answers_beyond_the_readers_context_are_refused(
    make_model: MakeModel, step: StepFolder
) -> None:
    model = make_model()
    long = ReaderInput([1] * 200, [1] * 100, [(0, 100)], [True])
    with pytest.raises(InputError, match="300 tokens in the words of llama-0, .* attend to 256"):
        read(step, model, [long])
    with pytest.raises(InputError, match="not one sentence"):
        read(step, model, [long._replace(spans=[], is_trained=[])])


def test_a_shard_without_a_sentence_is_a_shard(
    make_model: MakeModel, step: StepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_TEXTS", 1)
    model = make_model()
    reader_inputs = [ReaderInput([4], [5, 6], [(0, 2)], [True]), ReaderInput([4], [], [], [])]
    found = read(step, model, reader_inputs)
    assert (len(found), found.counts) == (1, (1, 0))
    assert found.mean(0).isfinite().all()
