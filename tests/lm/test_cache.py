import torch
from torch import Tensor
from transformers import DynamicCache

from howwhen.lm.cache import Columns, growing_cache
from tests.conftest import MakeModel
from tests.factories import random


def test_columns_grow_in_place_and_copy_only_when_they_must() -> None:
    columns, first = Columns(), random(2, 3, 4)
    grown = columns.append(columns.append(None, first), random(2, 1, 4, seed=1))
    assert torch.equal(grown[:, :3], first)
    again = columns.append(grown, random(2, 1, 4, seed=2))
    assert again.data_ptr() == grown.data_ptr()  # there was room
    cut = columns.append(again[:, :2], random(2, 2, 4, seed=3))
    assert cut.data_ptr() == grown.data_ptr()
    torch.testing.assert_close(cut, torch.cat([first[:, :2], random(2, 2, 4, seed=3)], 1))
    one = again[[1]]  # selected rows are another tensor
    selected = columns.append(one, random(1, 1, 4, seed=4))
    assert torch.equal(selected[:, :-1], one)


def test_first_rows_alone_are_not_taken_for_the_whole_buffer() -> None:
    columns = Columns()
    whole = columns.append(None, random(2, 3, 4))
    part = columns.append(whole[:1], random(1, 1, 4, seed=1))
    assert part.shape == (1, 4, 4)
    assert torch.equal(part[:, :3], whole[:1])


def test_a_growing_cache_changes_no_logit(make_model: MakeModel) -> None:
    model = make_model().model
    ids = torch.randint(3, 60, (3, 60), generator=torch.Generator().manual_seed(0))
    outputs: list[list[Tensor]] = []
    for cache in (DynamicCache(), growing_cache()):
        logits = [model(ids[:, :10], past_key_values=cache).logits]
        logits += [model(ids[:, n : n + 1], past_key_values=cache).logits for n in range(10, 55)]
        cache.crop(-20)
        cache.batch_select_indices(torch.tensor([2, 0]))
        logits += [model(ids[[2, 0], n : n + 1], past_key_values=cache).logits for n in range(9)]
        outputs.append(logits)
    for dynamic, growing in zip(*outputs, strict=True):
        torch.testing.assert_close(dynamic, growing)


def test_states_given_to_a_cache_are_never_written_to(make_model: MakeModel) -> None:
    model = make_model().model
    filled = growing_cache()
    model(torch.tensor([[3, 4, 5]]), past_key_values=filled)
    states = [(layer.keys, layer.values) for layer in filled.layers]
    before = [keys.clone() for keys, _ in states]
    for token in (6, 7):
        model(torch.tensor([[token]]), past_key_values=growing_cache(states))
        assert all(torch.equal(a, b) for a, (b, _) in zip(before, states, strict=True))
