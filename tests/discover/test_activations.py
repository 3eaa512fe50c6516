import pytest
import torch

from howwhen.collect.rollouts import collect_rollouts
from howwhen.discover.activations import sentence_means
from howwhen.residual import reading
from howwhen.settings import CollectSettings
from howwhen.zoo.tally import tally_problems
from tests.conftest import ARCHITECTURES, MakeModel

PROBLEMS = tally_problems(5, seed=31)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_means_of_padded_batches_equal_means_of_single_sentences(
    make_model: MakeModel, architecture: str
) -> None:
    model = make_model(architecture)
    rollouts = collect_rollouts(model, PROBLEMS, CollectSettings(max_new_tokens=60))
    prompts = [model.prompt_ids(problem.question) for problem in PROBLEMS]
    means = sentence_means(model, rollouts, prompts, [0, 2], batch_size=3)
    number = 0
    for rollout, prompt in zip(rollouts, prompts, strict=True):
        with reading(model.model, [0, 2]) as seen:
            model.model(input_ids=torch.tensor([[*prompt, *rollout.ids]]))
        for span in rollout.spans:
            rows = slice(len(prompt) + span.start_token, len(prompt) + span.end_token)
            for layer in (0, 2):
                expected = seen[layer][0, rows].mean(0)
                torch.testing.assert_close(means[layer][number], expected, atol=1e-4, rtol=1e-4)
            number += 1
    assert number == len(means[0]) >= len(PROBLEMS)
