"""The unsteered states: what is kept, and in which order training goes through the answers."""

from itertools import islice

import pytest
import torch

from howwhen.elicit.examples import SteeredWindow, TrainingExample
from howwhen.elicit.states import Chapter, PrefixCache
from tests.conftest import MakeModel

LENGTHS = (9, 12, 15, 18, 21, 24, 27, 30)


def examples() -> list[TrainingExample]:
    return [
        TrainingExample(
            tuple(range(3, 3 + length)),
            (SteeredWindow(2, 4, 0), SteeredWindow(length - 3, length - 1, 1)),
            (5, 6, 7, 8),
        )
        for length in LENGTHS
    ]


def nbytes(cache: PrefixCache) -> int:
    return sum(states.nbytes for _, states in cache.kept.values())


def cache_of(make_model: MakeModel, fraction: float) -> PrefixCache:
    """With a budget of a share of what all examples take."""
    base = make_model("llama")
    return PrefixCache(base, 1, PrefixCache(base, 1).size(examples()) * fraction / 2**30)


def test_the_size_of_states_is_known_before_they_are_computed(make_model: MakeModel) -> None:
    cache = PrefixCache(make_model("llama"), 1)
    for example in examples():
        assert cache.size([example]) == cache.get(example).nbytes
    assert not cache.kept


def test_the_size_of_a_text_steered_from_its_start(make_model: MakeModel) -> None:
    """Nothing comes before its window, so it says nothing about texts of which something does."""
    cache = PrefixCache(make_model("llama"), 1)
    start = TrainingExample((4, 5, 6), (SteeredWindow(0, 2, 0),), (5, 6))
    for example in (start, *examples(), start):
        assert cache.size([example]) == cache.get(example).nbytes


def test_all_that_fits_is_computed_once_and_stays(make_model: MakeModel) -> None:
    cache, texts = cache_of(make_model, 1.01), examples()
    (chapter,) = cache.chapters(texts[:6], texts[6:], 2, 0)
    assert chapter == Chapter(texts[:6], None, [*texts[6:], *texts[:6]])
    cache.enter(chapter)
    assert not cache.kept
    first = [cache.get(text) for text in texts]
    assert all(cache.get(text) is found for text, found in zip(texts, first, strict=True))
    assert list(cache.groups(texts)) == [texts]
    assert nbytes(cache) <= cache.budget


@pytest.mark.parametrize("fraction", [0.5, 0.8])
def test_chapters_go_through_every_answer_and_fit_in_the_budget(
    make_model: MakeModel, fraction: float
) -> None:
    cache, texts = cache_of(make_model, fraction), examples()
    train, others = texts[1:], texts[:1]  # the one held out takes less than half of the budget
    seen: list[TrainingExample] = []
    count = 0
    for chapter in cache.chapters(train, others, 2, 0):
        assert not chapter.is_one_batch
        assert chapter.steps == max(1, round(len(chapter.examples) / 2))
        cache.enter(chapter)
        assert nbytes(cache) <= cache.budget
        assert set(cache.kept) == {id(text) for text in (*chapter.examples, *others)}
        seen += chapter.examples
        count += 1
        if len(seen) >= 2 * len(train):
            break
    assert count > 2
    half = len(train)
    assert {id(text) for text in seen[:half]} == {id(text) for text in train}
    assert {id(text) for text in seen[half : 2 * half]} == {id(text) for text in train}
    again = cache.chapters(train, others, 2, 0)
    assert [one for chapter in islice(again, count) for one in chapter.examples] == seen


def test_what_is_evaluated_is_not_held_where_it_would_take_most_of_the_budget(
    make_model: MakeModel,
) -> None:
    cache, texts = cache_of(make_model, 0.5), examples()
    for chapter in islice(cache.chapters(texts[:4], texts[4:], 2, 0), 4):
        cache.enter(chapter)
        assert set(cache.kept) == {id(text) for text in chapter.examples}
        groups = []
        for group in cache.groups(texts[4:]):
            assert nbytes(cache) <= cache.budget or len(group) == 1
            groups.append(group)
        assert [text for group in groups for text in group] == texts[4:]
        assert set(cache.kept) == {id(text) for text in chapter.examples}


@pytest.mark.parametrize("fraction", [0.2, 1e-9])
def test_a_batch_that_does_not_fit_comes_in_parts(make_model: MakeModel, fraction: float) -> None:
    cache, texts = cache_of(make_model, fraction), examples()
    seen: list[TrainingExample] = []
    for chapter in islice(cache.chapters(texts, [], 4, 0), 2):
        assert chapter.is_one_batch
        assert chapter.steps == 1
        assert len(chapter.examples) == 4
        cache.enter(chapter)
        for group in cache.groups(chapter.examples):
            assert {id(text) for text in group} == set(cache.kept)
            assert nbytes(cache) <= cache.budget or len(group) == 1
            seen += group
        assert not cache.kept
    assert {id(text) for text in seen} == {id(text) for text in texts}


def test_states_are_kept_in_the_models_precision_on_the_cpu(make_model: MakeModel) -> None:
    base = make_model("llama")
    whole = PrefixCache(base, 1).get(examples()[0])
    base.model.to(torch.bfloat16)
    half = PrefixCache(base, 1).get(examples()[0])
    assert half.residual.dtype == torch.bfloat16
    assert half.nbytes * 2 == whole.nbytes
    torch.testing.assert_close(half.residual.float(), whole.residual, atol=0.1, rtol=0.1)
