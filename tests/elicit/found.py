"""Disagreements of two tiny models, and vectors to train on them."""

from howwhen.collect.rollouts import collect_rollouts
from howwhen.elicit.decisions import Decisions, find_decisions
from howwhen.elicit.examples import TrainingExample
from howwhen.elicit.training import new_vectors
from howwhen.lm.alignment import ModelPair
from howwhen.records import Rollout
from howwhen.settings import CollectSettings, ElicitSettings, Form
from howwhen.vectors import VectorSet
from howwhen.zoo.tally import tally_problems
from tests.conftest import MakeModel
from tests.factories import make_gate, make_models

PROBLEMS = tally_problems(5, seed=11)
QUESTIONS = [problem.question for problem in PROBLEMS]
GATE = make_gate()
READING = ElicitSettings(batch_size=2)
Found = tuple[ModelPair, list[Rollout], list[Decisions]]


def find(make_model: MakeModel, architecture: str = "llama") -> Found:
    models = make_models(make_model, architecture)
    rollouts = collect_rollouts(models.thinking, PROBLEMS, CollectSettings(max_new_tokens=15))
    return models, rollouts, find_decisions(models, GATE.layer, rollouts, QUESTIONS, READING)


def examples_of(found: list[Decisions]) -> list[TrainingExample]:
    return [one.example(GATE) for one in found]


SETTINGS = ElicitSettings(steps=60, validate_every=10, patience=9, seeds=(0,), batch_size=4)


def fresh(size: int, form: Form = "network", settings: ElicitSettings = SETTINGS) -> VectorSet:
    return new_vectors("llama-0", 1, 32, size, form, settings, 0)
