from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from howwhen.collect.rollouts import collect_rollouts
from howwhen.discover.activations import ReaderInput, sentence_means
from howwhen.discover.reader_inputs import _token_ranges, own_tokens, retokenized
from howwhen.errors import InputError, StoreError
from howwhen.lm.models import LanguageModel
from howwhen.lm.residual import capture_residuals
from howwhen.pipeline import shards
from howwhen.pipeline.shards import read_activations
from howwhen.pipeline.store import StepFolder, open_run
from howwhen.records import Finish, Rollout, SentenceSpan
from howwhen.settings import CollectSettings, DiscoverSettings
from howwhen.zoo.tally import tally_problems
from tests.conftest import ARCHITECTURES, MakeModel

HOW = DiscoverSettings(batch_tokens=400)
PROBLEMS = tally_problems(5, seed=31)


def answers(model: LanguageModel) -> tuple[list[Rollout], list[ReaderInput]]:
    rollouts = collect_rollouts(model, PROBLEMS, CollectSettings(max_new_tokens=60))
    prompts = [model.prompt_ids(problem.question) for problem in PROBLEMS]
    reader_inputs = [
        own_tokens(model, rollout, prompt, [True] * len(rollout.spans))
        for rollout, prompt in zip(rollouts, prompts, strict=True)
    ]
    return rollouts, reader_inputs


@pytest.mark.parametrize("batch_tokens", [1, 400])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_means_of_padded_batches_equal_means_of_single_sentences(
    make_model: MakeModel, architecture: str, batch_tokens: int
) -> None:
    model = make_model(architecture)
    rollouts, reader_inputs = answers(model)
    means = sentence_means(
        model, reader_inputs, [0, 2], HOW.model_copy(update={"batch_tokens": batch_tokens})
    )
    number = 0
    for rollout, reader_input in zip(rollouts, reader_inputs, strict=True):
        with capture_residuals(model.model, [0, 2]) as seen:
            model.model(input_ids=torch.tensor([[*reader_input.prompt, *rollout.ids]]))
        for span in rollout.spans:
            shift = len(reader_input.prompt)
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
    step: StepFolder, model: LanguageModel, reader_inputs: list[ReaderInput]
) -> activations.Activations:
    return read_activations(step, model, reader_inputs, [0, 2], HOW, lambda _: None)


def test_shards_hold_everything_with_its_place_and_are_not_read_twice(
    make_model: MakeModel, step: StepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_TEXTS", 2)
    model = make_model()
    rollouts, reader_inputs = answers(model)
    reader_inputs[1] = reader_inputs[1]._replace(is_trained=[False] * len(rollouts[1].spans))
    found = read(step, model, reader_inputs)
    whole = sentence_means(model, reader_inputs, [0, 2], HOW)
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


def test_a_sentence_that_no_token_ends_in_shares_the_token_across_it(
    make_model: MakeModel,
) -> None:
    """As `?\\n!` in the words of many tokenizers: the end of one sentence and of the next."""
    model = make_model()
    rollout = Rollout(
        "1", (), "Ann has?!", Finish.STOP, (SentenceSpan(0, 7, 0, 2), SentenceSpan(7, 8, 2, 3),
        SentenceSpan(8, 9, 3, 4)),
    )  # fmt: skip
    ids, ends = [5, 6, 7], [3, 7, 9]
    ranges = _token_ranges(rollout, ends)
    assert ranges == [(0, 2), (2, 3), (2, 3)]
    means = sentence_means(model, [ReaderInput([4], ids, ranges, [True] * 3)], [1], HOW)[1]
    assert means.isfinite().all()
    assert torch.equal(means[1], means[2])


def test_a_shard_without_a_sentence_is_a_shard(
    make_model: MakeModel, step: StepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_TEXTS", 1)
    model = make_model()
    reader_inputs = [ReaderInput([4], [5, 6], [(0, 2)], [True]), ReaderInput([4], [], [], [])]
    found = read(step, model, reader_inputs)
    assert (len(found), found.counts) == (1, (1, 0))
    assert found.mean(0).isfinite().all()


def test_bfloat16_reads_nearly_the_same_directions(make_model: MakeModel) -> None:
    model = make_model()
    _, reader_inputs = answers(model)
    exact = sentence_means(model, reader_inputs, [2], HOW)[2]
    rough = sentence_means(model, reader_inputs, [2], HOW.model_copy(update={"bfloat16": True}))[2]
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert functional.cosine_similarity(rough, exact, dim=1).min() > 0.99


def test_the_deepest_layer_read_is_the_last_one_computed(make_model: MakeModel) -> None:
    model = make_model()
    _, reader_inputs = answers(model)
    ran = []
    handle = model.model.model.layers[2].register_forward_hook(lambda *_: ran.append(1))
    try:
        sentence_means(model, reader_inputs, [0, 1], HOW)
    finally:
        handle.remove()
    assert not ran


def test_another_reader_reads_the_same_sentences_in_its_own_tokens(make_model: MakeModel) -> None:
    model = make_model()
    rollouts, _ = answers(model)
    for rollout in rollouts:
        whole = replace(rollout, text=rollout.text + " and more")
        reader_input = retokenized(model, whole, [5], [True] * len(rollout.spans))
        assert len(reader_input.spans) == len(rollout.spans)
        for (start, end), span in zip(reader_input.spans, rollout.spans, strict=True):
            text = model.tokenizer.decode(reader_input.ids[start:end])
            assert text.split() == rollout.text[span.start_char : span.end_char].split()
