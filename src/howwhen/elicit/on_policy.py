"""Vectors at disagreements (second version), trained on the hybrid's own answers too.

A hybrid comes to places that no answer of the thinking model leads to. On-policy rounds collect
them: train, let the hybrid answer the training problems, label every position of its answers with
what the thinking model wants there, add that to the data, train again. This is DAgger (Ross, Gordon
and Bagnell, 2011) with the thinking model as the expert.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from howwhen.elicit.examples import Decisions, find_decisions
from howwhen.elicit.training import DataSplit, Fit, split_examples
from howwhen.lm.alignment import ModelPair
from howwhen.probes import Gate
from howwhen.records import Rollout
from howwhen.settings import ElicitSettings
from howwhen.vectors import VectorSet

Decode = Callable[[int, VectorSet], Sequence[Rollout]]
"""The hybrid's answers to the training problems, from the number of the round and its vectors."""


@dataclass(frozen=True)
class OnPolicy:
    """What on-policy rounds need."""

    models: ModelPair
    questions: Sequence[str]
    """Those that `decode` answers, in order."""
    decode: Decode


def train_at_disagreements(
    gate: Gate,
    train: Sequence[Decisions],
    selection: Sequence[Decisions],
    settings: ElicitSettings,
    fit: Fit,
    on_policy: OnPolicy,
) -> tuple[DataSplit, list[Decisions]]:
    """Train a vector per category, and a shared one, where the base would go elsewhere.

    Args:
        gate: names the disagreements.
        train: disagreements of the training rollouts.
        selection: those of the rollouts that choose among the seeds.
        settings: number of rounds and batch size, apart from what `fit` needs.
        fit: trains, under the names `vectors`, `shared` and `before-on-policy-N`.
        on_policy: writes the hybrid's own answers.

    Returns:
        What the vectors were trained on, and the disagreements found on policy.
    """
    examples = [decisions.example(gate) for decisions in train]
    chosen = [decisions.example(gate) for decisions in selection]
    found: list[Decisions] = []
    for number in range(settings.on_policy_rounds):
        data = split_examples(examples, chosen, gate.size, settings)
        vectors = fit(f"before-on-policy-{number}", data)
        answers = on_policy.decode(number, vectors)
        labelled = find_decisions(
            on_policy.models,
            gate.layer,
            answers,
            on_policy.questions,
            settings.batch_size,
            is_own=False,
        )
        found += labelled
        examples += [decisions.example(gate) for decisions in labelled]
    data = split_examples(examples, chosen, gate.size, settings)
    shared = split_examples(examples, chosen, 1, settings)
    fit("vectors", data)
    fit("shared", shared)
    return data, found
