from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from howwhen.collect.rollouts import collect_rollouts
from howwhen.elicit.examples import find_decisions
from howwhen.elicit.objective import PrefixCache
from howwhen.elicit.on_policy import OnPolicy, train_at_disagreements
from howwhen.elicit.training import DataSplit, Report, Training, new_vectors, train_seeds
from howwhen.records import Rollout
from howwhen.settings import CollectSettings, ElicitSettings, Form
from howwhen.vectors import VectorSet
from howwhen.zoo.tally import tally_problems
from tests.conftest import MakeModel
from tests.factories import make_gate, make_models, make_vectors

PROBLEMS = tally_problems(5, seed=11)
QUESTIONS = [problem.question for problem in PROBLEMS]
GATE = make_gate()


def test_every_round_adds_what_the_thinking_model_wants_in_the_hybrids_answers(
    make_model: MakeModel,
) -> None:
    """The decoder is a stand-in that returns other answers in every round (DAgger)."""
    models = make_models(make_model)
    lengths = (15, 8, 9)
    rollouts, *answers = (
        collect_rollouts(model, PROBLEMS, CollectSettings(max_new_tokens=length))
        for model, length in zip((models.thinking, models.base, models.base), lengths, strict=True)
    )
    train = find_decisions(models, GATE.layer, rollouts, QUESTIONS, 2)
    asked: list[tuple[int, VectorSet]] = []
    fitted: dict[str, DataSplit] = {}
    returned: dict[str, VectorSet] = {}

    def decode(number: int, vectors: VectorSet) -> Sequence[Rollout]:
        asked.append((number, vectors))
        return answers[number]

    def fit(
        name: str, data: DataSplit, /, bias: Tensor | None = None, form: Form | None = None
    ) -> VectorSet:
        fitted[name] = data
        return returned.setdefault(name, make_vectors(data.size))

    settings = ElicitSettings(on_policy_rounds=2, batch_size=2)
    on_policy = OnPolicy(models, QUESTIONS, decode)
    data, found = train_at_disagreements(GATE, train, train[:2], settings, fit, on_policy)
    names = ["before-on-policy-0", "before-on-policy-1", "vectors", "shared"]
    assert list(fitted) == names
    assert [number for number, _ in asked] == [0, 1]
    assert all(vectors is returned[f"before-on-policy-{number}"] for number, vectors in asked)
    expected = [
        decisions
        for batch in answers
        for decisions in find_decisions(models, GATE.layer, batch, QUESTIONS, 2, is_own=False)
    ]
    assert [(one.ids, one.targets) for one in found] == [(one.ids, one.targets) for one in expected]
    sizes = [len(fitted[name].train) + len(fitted[name].validation) for name in names]
    assert sizes[0] < sizes[1] < sizes[2] == sizes[3]
    assert data is fitted["vectors"]
    assert fitted["shared"].size == 1


def test_a_finished_seed_is_loaded_and_only_the_others_are_trained(make_model: MakeModel) -> None:
    models = make_models(make_model)
    rollouts = collect_rollouts(models.thinking, PROBLEMS, CollectSettings(max_new_tokens=15))
    found = find_decisions(models, GATE.layer, rollouts, QUESTIONS, 2)
    examples = [decisions.example(GATE) for decisions in found]
    data = DataSplit(examples, examples[:2], examples[:2], GATE.size)
    settings = ElicitSettings(steps=4, validate_every=2, seeds=(3, 4), batch_size=2)
    saved: dict[int, Training] = {}
    opened: list[int] = []

    def run() -> list[Training]:
        def save(training: Training) -> None:
            saved[training.seed] = training

        def start(seed: int) -> VectorSet:
            return new_vectors("llama-0", 1, 32, GATE.size, "network", settings, seed)

        def progress(seed: int) -> AbstractContextManager[Report]:
            opened.append(seed)
            return nullcontext(lambda _: None)

        states = PrefixCache(models.base, 1)
        return train_seeds(
            start, data, states, settings, load=saved.get, save=save, progress=progress
        )

    first = run()
    assert [training.seed for training in first] == opened == [3, 4]
    del saved[4]
    again = run()
    assert opened == [3, 4, 4]
    assert again[0] is first[0]
    assert again[1].notes == first[1].notes
