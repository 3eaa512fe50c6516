from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from howwhen.discover.activations import ReaderInput, sentence_means
from howwhen.discover.reader_inputs import _token_ranges, retokenized
from howwhen.lm.residual import capture_residuals
from howwhen.records import Finish, Rollout, SentenceSpan
from tests.conftest import ARCHITECTURES, MakeModel
from tests.discover.reading import PROBLEMS, SETTINGS, answers


@pytest.mark.parametrize("batch_tokens", [1, 400])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_means_of_padded_batches_equal_means_of_single_sentences(
    make_model: MakeModel, architecture: str, batch_tokens: int
) -> None:
    model = make_model(architecture)
    rollouts, reader_inputs = answers(model)
    means = sentence_means(
        model, reader_inputs, [0, 2], SETTINGS.model_copy(update={"batch_tokens": batch_tokens})
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
    means = sentence_means(model, [ReaderInput([4], ids, ranges, [True] * 3)], [1], SETTINGS)[1]
    assert means.isfinite().all()
    assert torch.equal(means[1], means[2])


def test_bfloat16_reads_nearly_the_same_directions(make_model: MakeModel) -> None:
    model = make_model()
    _, reader_inputs = answers(model)
    exact = sentence_means(model, reader_inputs, [2], SETTINGS)[2]
    rough = sentence_means(
        model, reader_inputs, [2], SETTINGS.model_copy(update={"bfloat16": True})
    )[2]
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert functional.cosine_similarity(rough, exact, dim=1).min() > 0.99


def test_the_deepest_layer_read_is_the_last_one_computed(make_model: MakeModel) -> None:
    model = make_model()
    _, reader_inputs = answers(model)
    ran = []
    handle = model.model.model.layers[2].register_forward_hook(lambda *_: ran.append(1))
    try:
        sentence_means(model, reader_inputs, [0, 1], SETTINGS)
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
