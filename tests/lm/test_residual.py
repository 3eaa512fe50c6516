import pytest
import torch
from torch import nn

from howwhen.errors import ModelError
from howwhen.lm.residual import (
    add_to_residual,
    capture_residuals,
    check_layer,
    check_steerable,
    find_blocks,
    residuals,
    resume_from_layer,
)
from tests.conftest import ARCHITECTURES, MakeModel

IDS = torch.tensor([[5, 17, 33, 60]])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_residual_of_last_block_is_last_hidden_state_before_the_norm(
    make_model: MakeModel, architecture: str
) -> None:
    model = make_model(architecture).model
    kept: dict[str, torch.Tensor] = {}
    norm = next(
        m
        for n, m in model.named_modules()
        if (n.endswith(("ln_f", "norm")) and "." in n and "layers" not in n and ".h." not in n)
        or n.endswith("final_layer_norm")
    )
    handle = norm.register_forward_pre_hook(lambda _, args: kept.update(x=args[0]))
    with capture_residuals(model, [2]) as seen:
        model(input_ids=IDS)
    handle.remove()
    torch.testing.assert_close(seen[2], kept["x"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_stopping_at_the_deepest_layer_changes_no_residual(
    make_model: MakeModel, architecture: str
) -> None:
    model = make_model(architecture).model
    with capture_residuals(model, [0, 1]) as whole:
        model(input_ids=IDS)
    stopped = residuals(model, [0, 1], input_ids=IDS)
    assert set(stopped) == {0, 1}
    for layer in (0, 1):
        torch.testing.assert_close(stopped[layer], whole[layer])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adding_takes_effect_at_the_layer_read_and_comes_off(
    make_model: MakeModel, architecture: str
) -> None:
    model = make_model(architecture).model
    before = model(input_ids=IDS).logits
    plain = residuals(model, [1], input_ids=IDS)[1]
    push = torch.zeros(32)
    push[3] = 2.0
    with (
        add_to_residual(model, 1, lambda hidden: push.expand_as(hidden)),
        capture_residuals(model, [1]) as seen,
    ):
        during = model(input_ids=IDS).logits
    torch.testing.assert_close(seen[1], plain + push)
    assert not torch.equal(before, during)
    assert torch.equal(before, model(input_ids=IDS).logits)


def test_an_error_inside_the_block_still_restores_the_model(make_model: MakeModel) -> None:
    model = make_model().model
    before = model(input_ids=IDS).logits
    with pytest.raises(RuntimeError, match="inside"), add_to_residual(model, 1, torch.ones_like):
        raise RuntimeError("inside")
    assert torch.equal(before, model(input_ids=IDS).logits)


def test_a_layer_out_of_range_is_refused_with_the_range(make_model: MakeModel) -> None:
    with pytest.raises(ModelError, match="layer 3 is out of range.*layers 0 to 2"):
        check_layer(make_model().model, 3)
    with pytest.raises(ModelError, match="layer -1 is out of range"):
        check_layer(make_model().model, -1)


def test_a_model_without_clear_blocks_is_refused_with_what_was_found() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="found none"):
        find_blocks(model)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_layer_of_every_architecture_is_steerable(
    make_model: MakeModel, architecture: str
) -> None:
    for layer in range(3):
        check_steerable(make_model(architecture).model, layer)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_resuming_from_a_layer_gives_the_same_logits_and_leaves_the_model_alone(
    make_model: MakeModel, architecture: str
) -> None:
    model = make_model(architecture).model
    before = model(input_ids=IDS).logits
    for layer in range(3):
        residual = residuals(model, [layer], input_ids=IDS)[layer]
        causal = torch.full((1, 1, 4, 4), torch.finfo(torch.float32).min).triu(1)
        with resume_from_layer(model, layer, residual):
            resumed = model(
                input_ids=torch.zeros_like(IDS),
                attention_mask=causal,
                position_ids=torch.arange(4)[None],
            ).logits
        torch.testing.assert_close(resumed, before, atol=1e-4, rtol=1e-4)
    assert torch.equal(before, model(input_ids=IDS).logits)
    with pytest.raises(RuntimeError, match="inside"), resume_from_layer(model, 1, residual):
        raise RuntimeError("inside")
    assert torch.equal(before, model(input_ids=IDS).logits)
