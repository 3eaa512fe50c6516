"""What tests of the sentence activations read."""

from howwhen.collect.rollouts import collect_rollouts
from howwhen.discover.activations import ReaderInput
from howwhen.discover.reader_inputs import own_tokens
from howwhen.lm.models import LanguageModel
from howwhen.records import Rollout
from howwhen.settings import CollectSettings, DiscoverSettings
from howwhen.zoo.tally import tally_problems

SETTINGS = DiscoverSettings(batch_tokens=400)
PROBLEMS = tally_problems(5, seed=31)


def answers(model: LanguageModel) -> tuple[list[Rollout], list[ReaderInput]]:
    rollouts = collect_rollouts(model, PROBLEMS, CollectSettings(max_new_tokens=60))
    prompts = [model.prompt_ids(problem.question) for problem in PROBLEMS]
    reader_inputs = [
        own_tokens(model, rollout, prompt, [True] * len(rollout.spans))
        for rollout, prompt in zip(rollouts, prompts, strict=True)
    ]
    return rollouts, reader_inputs
