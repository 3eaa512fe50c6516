from collections.abc import Mapping, Sequence

from torch import Tensor

from howwhen.elicit.examples import SteeredWindow, TrainingExample
from howwhen.elicit.on_policy import train_at_disagreements
from howwhen.elicit.training import DataSplit
from howwhen.settings import ElicitSettings, Form
from howwhen.vectors import VectorSet
from tests.factories import make_vectors


def texts(first: int, count: int) -> list[TrainingExample]:
    return [
        TrainingExample((number, 1, 2, 3), (SteeredWindow(1, 2, 0),), (2,), prompt=1)
        for number in range(first, first + count)
    ]


def test_every_round_adds_what_the_thinking_model_wants_in_the_hybrids_answers() -> None:
    """Decoding and training are stand-ins (DAgger)."""
    train, selection = texts(0, 5), texts(90, 2)
    answers = [texts(10, 3), texts(20, 4)]
    asked: list[tuple[int, VectorSet]] = []
    fitted: list[tuple[dict[str, int], DataSplit]] = []
    returned: dict[str, VectorSet] = {}

    def answer(number: int, vectors: VectorSet) -> Sequence[TrainingExample]:
        asked.append((number, vectors))
        return answers[number]

    def fit(
        data: DataSplit,
        sizes: Mapping[str, int],
        /,
        bias: Tensor | None = None,
        form: Form | None = None,
    ) -> Mapping[str, VectorSet]:
        fitted.append((dict(sizes), data))
        made = {name: make_vectors(size) for name, size in sizes.items()}
        returned.update(made)
        return made

    settings = ElicitSettings(on_policy_rounds=2, batch_size=2)
    data = train_at_disagreements(4, train, selection, settings, fit, answer)
    assert [sizes for sizes, _ in fitted] == [
        {"before-on-policy-0": 4},
        {"before-on-policy-1": 4},
        {"vectors": 4, "shared": 1},
    ]
    assert [number for number, _ in asked] == [0, 1]
    assert all(vectors is returned[f"before-on-policy-{number}"] for number, vectors in asked)
    used = [{one.ids[0] for one in (*split.train, *split.validation)} for _, split in fitted]
    assert used == [
        set(range(5)),
        {*range(5), *range(10, 13)},
        {*range(5), *range(10, 13), *range(20, 24)},
    ]
    assert all(split.selection == selection for _, split in fitted)
    assert data is fitted[-1][1]
