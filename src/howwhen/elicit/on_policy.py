"""Vectors at disagreements (second version), trained on the hybrid's own answers too.

A hybrid comes to places that no answer of the thinking model leads to. On-policy rounds collect
them: train, let the hybrid answer the training problems, label every position of its answers with
what the thinking model wants there, add that to the data, train again. This is DAgger (Ross, Gordon
and Bagnell, 2011) with the thinking model as the expert.
"""

from collections.abc import Callable, Sequence

from howwhen.elicit.examples import TrainingExample
from howwhen.elicit.training import DataSplit, Fit, split_examples
from howwhen.settings import ElicitSettings
from howwhen.vectors import VectorSet

OnPolicyRound = Callable[[int, VectorSet], Sequence[TrainingExample]]
"""Lets the hybrid answer the training problems, from the number of the round and its vectors, and
returns where the thinking model wants something else in its answers."""


def train_at_disagreements(
    size: int,
    train: Sequence[TrainingExample],
    selection: Sequence[TrainingExample],
    settings: ElicitSettings,
    fit: Fit,
    on_policy: OnPolicyRound,
) -> DataSplit:
    """Train a vector per category, and a shared one, where the base would go elsewhere.

    Args:
        size: number of categories.
        train: disagreements of the training rollouts.
        selection: those of the rollouts that choose among the seeds.
        settings: number of rounds, apart from what `fit` needs.
        fit: trains, under the names `vectors`, `shared` and `before-on-policy-N`.
        on_policy: finds those of the hybrid's own answers.

    Returns:
        What the vectors were trained on.
    """
    examples = list(train)
    for number in range(settings.on_policy_rounds):
        name = f"before-on-policy-{number}"
        vectors = fit(split_examples(examples, selection, settings), {name: size})[name]
        examples += on_policy(number, vectors)
    data = split_examples(examples, selection, settings)
    fit(data, {"vectors": size, "shared": 1})
    return data
