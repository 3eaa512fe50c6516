"""Logits of models in half precision: float32 sums, so that equal logits are rare."""

import torch

from howwhen.lm.head import multiply_in_float32
from howwhen.lm.residual import capture_residuals
from tests import pretend_gpu
from tests.conftest import ARCHITECTURES, MakeModel

IDS = torch.arange(3, 40)[None]


def test_logits_are_sums_in_float32_of_factors_in_half_precision(make_model: MakeModel) -> None:
    for architecture in ARCHITECTURES:
        model = make_model(architecture).model.to(torch.bfloat16)
        halved = model(input_ids=IDS).logits
        multiply_in_float32(model)
        head = model.get_output_embeddings()
        hidden = model.base_model(input_ids=IDS).last_hidden_state
        logits = model(input_ids=IDS).logits
        assert (halved.dtype, logits.dtype) == (torch.bfloat16, torch.float32)
        assert torch.equal(logits, hidden.float() @ head.weight.float().T)
        torch.testing.assert_close(logits, halved.float(), rtol=0.01, atol=0.05)
        assert logits.unique().numel() > 3 * halved.unique().numel()


def test_a_float32_head_and_one_that_is_no_plain_product_are_left_alone(
    make_model: MakeModel,
) -> None:
    plain, other = make_model().model, make_model().model.to(torch.bfloat16)
    other.set_output_embeddings(torch.nn.Sequential(other.get_output_embeddings()))
    for model in (plain, other):
        multiply_in_float32(model)
        assert "forward" not in vars(model.get_output_embeddings())


def test_a_weight_that_was_changed_is_multiplied_as_it_is_now(make_model: MakeModel) -> None:
    model = make_model().model.to(torch.bfloat16)
    multiply_in_float32(model)
    before = model(input_ids=IDS).logits
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(2)
    hidden = model.base_model(input_ids=IDS).last_hidden_state
    after = model(input_ids=IDS).logits
    assert torch.equal(after, hidden.float() @ model.get_output_embeddings().weight.float().T)
    assert not torch.equal(after, before)


def test_a_gpus_kernel_gives_the_same_logits_and_gradients(make_model: MakeModel) -> None:
    gradients, found = [], []
    with pretend_gpu.pretending():
        for place in (None, torch.device("cuda:0")):
            model = make_model().model.to(torch.bfloat16)
            multiply_in_float32(model)
            ids = IDS
            if place is not None:
                pretend_gpu.put(model, place)
                ids = IDS.to(place)
            head = model.get_output_embeddings()
            with capture_residuals(model, [2]) as captured:
                found.append(model(input_ids=ids).logits.cpu())
            hidden = captured[2].detach().requires_grad_()
            loss = head(hidden).square().mean()
            gradients.append(torch.autograd.grad(loss, hidden)[0].cpu())
    assert torch.equal(found[0], found[1])
    assert gradients[0].dtype == gradients[1].dtype == torch.bfloat16
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.02, atol=1e-3)
