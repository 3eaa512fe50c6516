"""A cache with a length per text, attention in groups, and the upper blocks as a model."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from howwhen.lm.attention import attention_of, fitted_mask, grouped_attention
from howwhen.lm.models import LanguageModel
from howwhen.lm.residual import capture_residuals
from howwhen.lm.slots import SlotCache
from howwhen.lm.upper import upper_blocks
from tests.conftest import ARCHITECTURES, MakeModel
from tests.factories import random

TEXTS = torch.tensor([[3, 9, 14, 27], [5, 11, 8, 30]])


def read(model: LanguageModel, cache: SlotCache, tokens: torch.Tensor, lengths: list[int]) -> None:
    """Read tokens of texts with lengths of their own."""
    count = tokens.shape[1]
    columns = torch.tensor(lengths)[:, None] + torch.arange(count)
    width = max(lengths) + count
    cache.board.put_at(columns, width)
    allowed = torch.arange(width) <= columns[..., None]
    with attention_of(model):
        model.model(
            tokens,
            past_key_values=cache,
            position_ids=columns,
            attention_mask=fitted_mask(allowed, model),
        )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_states_are_those_of_texts_read_alone(make_model: MakeModel, architecture: str) -> None:
    model = make_model(architecture)
    cache = SlotCache(model.layer_count)
    read(model, cache, TEXTS, [0, 0])
    read(model, cache, torch.tensor([[7, 6], [7, 6]]), [4, 2])  # over two tokens of the second
    for row, text in enumerate(([3, 9, 14, 27, 7, 6], [5, 11, 7, 6])):
        alone = SlotCache(model.layer_count)
        alone.board.put(0, len(text))
        model.model(torch.tensor([text]), past_key_values=alone)
        for ours, theirs in zip(cache.layers, alone.layers, strict=True):
            for states, expected in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
                found = states[row, :, : len(text)]
                torch.testing.assert_close(found, expected[0, :, : len(text)], atol=1e-4, rtol=1e-4)


def test_a_copy_and_selected_texts_are_independent(make_model: MakeModel) -> None:
    model = make_model()
    cache = SlotCache(model.layer_count)
    read(model, cache, TEXTS, [0, 0])
    before = cache.layers[0].keys.clone()
    copied = cache.copy()
    read(model, copied, torch.tensor([[7], [8]]), [1, 1])
    assert torch.equal(cache.layers[0].keys, before)
    cache.select(torch.tensor([1, 1, 0]))
    assert torch.equal(cache.layers[0].keys, before[[1, 1, 0]])
    assert cache.nbytes == 2 * model.layer_count * cache.layers[0].keys.nbytes


@pytest.mark.parametrize("rows", [[0], [1, 2], [2, 3, 0]])
def test_texts_take_the_place_of_others_or_come_behind_them(
    make_model: MakeModel, rows: list[int]
) -> None:
    model = make_model()
    cache, other = SlotCache(model.layer_count), SlotCache(model.layer_count)
    read(model, cache, TEXTS, [0, 0])
    old = cache.layers[1].values.clone()
    read(model, other, TEXTS[:1].repeat(len(rows), 12), [0] * len(rows))
    count = max(2, max(rows) + 1)
    cache.put(other, torch.tensor(rows), count)
    found = cache.layers[1].values
    assert len(found) == count
    for number, row in enumerate(rows):
        assert torch.equal(found[row, :, :48], other.layers[1].values[number, :, :48])
    for row in {0, 1} - set(rows):
        assert torch.equal(found[row, :, :4], old[row, :, :4])
    cache.put(SlotCache(model.layer_count), torch.tensor([count]), count + 1)  # nothing was read
    assert len(cache.layers[1].values) == count + 1
    assert torch.equal(cache.layers[1].values[:count], found)


def test_room_grows_without_a_copy_for_every_token(make_model: MakeModel) -> None:
    model = make_model()
    cache = SlotCache(model.layer_count)
    read(model, cache, TEXTS, [0, 0])
    places = set()
    for place in range(4, 60):
        read(model, cache, torch.tensor([[7], [8]]), [place, place])
        places.add(cache.layers[0].keys.data_ptr())
    assert len(places) == 2  # 36 columns at first, then all
    assert not cache.layers[0].keys[:, :, 60:].any()  # and nothing that is no number


@pytest.mark.parametrize("count", [1, 3])
def test_attention_in_groups_equals_attention_with_copies(count: int) -> None:
    query, key, value = (
        random(2, 6, count, 8),
        random(2, 2, 5, 8, seed=1),
        random(2, 2, 5, 8, seed=2),
    )
    allowed = torch.rand(2, count, 5, generator=torch.Generator().manual_seed(0)) < 0.6
    allowed[:, :, 0] = True
    expected = nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(3, 1), value.repeat_interleave(3, 1), allowed[:, None]
    ).transpose(1, 2)
    for mask in (allowed.repeat(1, 3, 1)[:, None], allowed[:, None]):
        found, _ = grouped_attention(nn.Module(), query, key, value, mask)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_upper_blocks_go_on_where_a_model_was_left(
    make_model: MakeModel, architecture: str
) -> None:
    model = make_model(architecture).model
    with capture_residuals(model, [1]) as residual:
        expected = model(TEXTS).logits
    upper = upper_blocks(model, 1)
    if architecture == "gpt2":  # it adds positions between its embeddings and the first block
        assert upper is None
        return
    assert upper is not None
    assert torch.equal(upper(inputs_embeds=residual[1]).logits, expected)
    own = {id(parameter) for parameter in model.parameters()}
    assert all(id(parameter) in own for parameter in upper.parameters())
    assert upper_blocks(model, 1) is upper


def test_a_model_whose_forward_is_replaced_has_no_upper_blocks(make_model: MakeModel) -> None:
    model = make_model().model
    original: Callable[..., object] = model.forward
    model.forward = lambda *args, **kwargs: original(*args, **kwargs)
    assert upper_blocks(model, 1) is None
