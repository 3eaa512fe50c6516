from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from howwhen.collect.rollouts import collect_rollouts
from howwhen.discover import activations
from howwhen.discover.activations import Passage, read_activations, sentence_means
from howwhen.discover.passages import read_as_written, read_by_another
from howwhen.errors import InputError, StoreError
from howwhen.models import LanguageModel
from howwhen.records import Rollout
from howwhen.residual import reading
from howwhen.settings import CollectSettings
from howwhen.store import StepFolder, open_run
from howwhen.zoo.tally import tally_problems
from tests.conftest import ARCHITECTURES, MakeModel

PROBLEMS = tally_problems(5, seed=31)


def answers(model: LanguageModel) -> tuple[list[Rollout], list[Passage]]:
    rollouts = collect_rollouts(model, PROBLEMS, CollectSettings(max_new_tokens=60))
    prompts = [model.prompt_ids(problem.question) for problem in PROBLEMS]
    passages = [
        read_as_written(model, rollout, prompt, [True] * len(rollout.spans))
        for rollout, prompt in zip(rollouts, prompts, strict=True)
    ]
    return rollouts, passages


@pytest.mark.parametrize("batch_tokens", [1, 400])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_means_of_padded_batches_equal_means_of_single_sentences(
    make_model: MakeModel, architecture: str, batch_tokens: int
) -> None:
    model = make_model(architecture)
    rollouts, passages = answers(model)
    means = sentence_means(model, passages, [0, 2], batch_tokens)
    number = 0
    for rollout, passage in zip(rollouts, passages, strict=True):
        with reading(model.model, [0, 2]) as seen:
            model.model(input_ids=torch.tensor([[*passage.prompt, *rollout.ids]]))
        for span in rollout.spans:
            shift = len(passage.prompt)
            rows = slice(shift + span.start_token, shift + span.end_token)
            for layer in (0, 2):
                expected = seen[layer][0, rows].mean(0)
                torch.testing.assert_close(means[layer][number], expected, atol=1e-4, rtol=1e-4)
            number += 1
    assert number == len(means[0]) >= len(PROBLEMS)


@pytest.fixture
def step(tmp_path: Path) -> StepFolder:
    with open_run(tmp_path / "run") as folder:
        step = folder.step("discover")
        step.path.mkdir(parents=True)
        return step


def read(
    step: StepFolder, model: LanguageModel, passages: list[Passage]
) -> activations.Activations:
    return read_activations(step, model, passages, [0, 2], 400, lambda _: None)


def test_shards_hold_everything_with_its_place_and_are_not_read_twice(
    make_model: MakeModel, step: StepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "SHARD_TEXTS", 2)
    model = make_model()
    rollouts, passages = answers(model)
    passages[1] = passages[1]._replace(is_trained=[False] * len(rollouts[1].spans))
    found = read(step, model, passages)
    whole = sentence_means(model, passages, [0, 2], 400)
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
    again = read(step, model, passages)
    assert torch.equal(again.rows(2), found.rows(2))
    monkeypatch.setattr(activations, "sentence_means", refuse)
    assert torch.equal(read(step, model, passages).rows(0), found.rows(0))


def test_a_damaged_shard_and_one_of_another_reading_are_refused(
    make_model: MakeModel, step: StepFolder
) -> None:
    model = make_model()
    _, passages = answers(model)
    read(step, model, passages)
    with pytest.raises(StoreError, match=r"layer 0, expected \d+ sentences. Delete"):
        read(step, model, passages[:3])
    path = step.path / "activations/00000.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StoreError, match="cannot read"):
        read(step, model, passages)
    save_file({"other": torch.zeros(1)}, path)
    with pytest.raises(StoreError, match="holds nothing for layer 0"):
        read(step, model, passages)


def test_answers_beyond_the_readers_context_are_refused(
    make_model: MakeModel, step: StepFolder
) -> None:
    model = make_model()
    long = Passage([1] * 200, [1] * 100, [(0, 100)], [True])
    with pytest.raises(InputError, match="300 tokens in the words of llama-0, .* attend to 256"):
        read(step, model, [long])
    with pytest.raises(InputError, match="not one sentence"):
        read(step, model, [long._replace(spans=[], is_trained=[])])


def test_the_deepest_layer_read_is_the_last_one_computed(make_model: MakeModel) -> None:
    model = make_model()
    _, passages = answers(model)
    ran = []
    handle = model.model.model.layers[2].register_forward_hook(lambda *_: ran.append(1))
    try:
        sentence_means(model, passages, [0, 1], 400)
    finally:
        handle.remove()
    assert not ran


def test_another_reader_reads_the_same_sentences_in_its_own_tokens(make_model: MakeModel) -> None:
    model = make_model()
    rollouts, _ = answers(model)
    for rollout in rollouts:
        whole = replace(rollout, text=rollout.text + " and more")
        passage = read_by_another(model, whole, [5], [True] * len(rollout.spans))
        assert len(passage.spans) == len(rollout.spans)
        for (start, end), span in zip(passage.spans, rollout.spans, strict=True):
            text = model.tokenizer.decode(passage.ids[start:end])
            assert text.split() == rollout.text[span.start_char : span.end_char].split()
