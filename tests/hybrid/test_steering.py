from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from howwhen.errors import SteeringError
from howwhen.hybrid.steering import apply_vectors
from howwhen.vectors import VectorSet
from tests.conftest import ARCHITECTURES, MakeModel
from tests.factories import make_forms, make_vectors, random
from tests.oracles.naive import next_logits_with, residual_at

IDS = [3, 9, 14, 27, 5]


def last_logits(model: PreTrainedModel) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=torch.tensor([IDS])).logits[0, -1]
    return logits


@pytest.mark.parametrize("form", make_forms())
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_applied_vectors_steer_any_model_of_their_width(
    make_model: MakeModel, architecture: str, form: str
) -> None:
    model, vectors = make_model(architecture), make_forms()[form]
    residual = residual_at(model, IDS, 1)
    added = 0.7 * vectors.delta(residual, torch.full((len(IDS),), 2))
    before = last_logits(model.model)
    for target in (model, model.model):
        with apply_vectors(target, vectors, 2, 0.7):
            steered = last_logits(model.model)
        expected = next_logits_with(model, IDS, 1, dict(enumerate(added)))
        torch.testing.assert_close(steered, expected, atol=3e-4, rtol=3e-4)
    with apply_vectors(model, vectors, category=2, coefficient=0.7, positions=slice(-1, None)):
        steered = last_logits(model.model)
    expected = next_logits_with(model, IDS, 1, {len(IDS) - 1: added[-1]})
    torch.testing.assert_close(steered, expected, atol=3e-4, rtol=3e-4)
    assert torch.equal(last_logits(model.model), before)


def test_a_model_is_as_before_even_after_an_error(make_model: MakeModel) -> None:
    model = make_model().model
    before = last_logits(model)

    def fail() -> None:
        with apply_vectors(model, make_vectors()):
            assert not torch.equal(last_logits(model), before)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(last_logits(model), before)


def test_steered_generation_goes_on_from_its_cache(make_model: MakeModel) -> None:
    model, vectors = make_model().model, make_vectors()
    with apply_vectors(model, vectors, 1):
        written = model.generate(torch.tensor([IDS]), max_new_tokens=6, do_sample=False)[0].tolist()
        for end in range(len(IDS), len(written)):
            logits = model(input_ids=torch.tensor([written[:end]])).logits[0, -1]
            assert int(logits.argmax()) == written[end]


WRONG: dict[str, tuple[Callable[[], VectorSet], int, str]] = {
    "width": (lambda: VectorSet("x", 1, random(4, 16)), 0, "width 16 cannot steer LlamaFor"),
    "layer": (lambda: make_vectors(layer=9), 0, "cannot steer LlamaFor.*layer 9 is out of range"),
    "category": (make_vectors, 4, "no category 4: .* the categories 0 to 3"),
    "negative": (make_vectors, -1, "no category -1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_vectors_that_do_not_fit_are_refused(make_model: MakeModel, case: str) -> None:
    make, category, message = WRONG[case]
    with (
        pytest.raises(SteeringError, match=message),
        apply_vectors(make_model().model, make(), category),
    ):
        pytest.fail("the model was steered all the same")
