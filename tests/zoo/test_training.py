"""What both trainings of the zoo are made of."""

import contextlib
from pathlib import Path
from random import Random

import pytest
import torch

from howwhen.errors import ModelError, OutOfTimeError
from howwhen.zoo.documents import IGNORED, Document, chain_batches, pad_documents
from howwhen.zoo.training import Fit, Workspace, sample_right_answers


def quiet(_: str) -> None: ...


def test_right_answers_are_offered_once_and_sorted_and_the_share_counts_all_samples() -> None:
    answers = [(9,), (4,), (9,), (0,), (5,), (0,), (0,), (0,)]
    offered: list[list[tuple[int, ...]]] = []

    def choose(right: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        offered.append(right)
        return right[-1:]

    documents, share = sample_right_answers(
        prompts=[[1, 2], [3]],
        samples=4,
        sample=lambda prompts: answers if prompts == [[1, 2]] * 4 + [[3]] * 4 else [],
        is_right=lambda index, answer: answer[0] > 4 * (1 - index),
        choose=choose,
    )
    assert offered == [[(9,)], [(5,)]]
    assert documents == [Document((1, 2, 9), 2), Document((3, 5), 1)]
    assert share == 3 / 8
    with pytest.raises(ModelError, match="nothing to reinforce; train the base longer"):
        sample_right_answers([[1]], 2, lambda _: [(7,), (8,)], lambda *_: False, choose)


def test_targets_are_the_ids_that_count() -> None:
    documents = [Document((5, 6, 7, 8), 1, frozenset({2})), Document((9,), 0)]
    batch, targets = pad_documents(documents)
    assert batch.ids.tolist() == [[5, 6, 7, 8], [9, 0, 0, 0]]
    assert targets.tolist() == [[IGNORED, 6, IGNORED, 8], [9, IGNORED, IGNORED, IGNORED]]
    assert pad_documents(documents, multiple=3)[1].shape == (2, 6)


def test_batches_of_groups_are_numbered_through() -> None:
    groups = [[[Document((number,), 0)]] * (number + 1) for number in range(3)]
    batch = chain_batches(groups.__getitem__)
    assert [batch(step)[0].ids for step in (4, 0, 1, 2)] == [(2,), (0,), (1,), (1,)]


def test_a_round_that_is_stopped_while_training_is_not_sampled_again(tmp_path: Path) -> None:
    """And ends with the weights of one that was not stopped."""

    def run(folder: Path, deadline: float) -> torch.nn.Linear:
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 1)
        folder.mkdir(exist_ok=True)
        workspace = Workspace(folder, quiet, deadline)

        def fit(number: int, documents: list[Document]) -> None:
            scale = float(documents[0].ids[0])
            size = Fit(3, 1e-2)
            workspace.fit(
                f"rl-{number}", model, lambda step: model(torch.ones(1, 2)).mean() * scale, size
            )

        def sample(number: int) -> tuple[list[Document], float]:
            samplings.append(number)
            return [Document((Random(number).randrange(1, 9), 2), 1)], 0.5

        workspace.reinforce(model, 2, sample, fit)
        return model

    samplings: list[int] = []
    expected = run(tmp_path / "whole", float("inf"))
    stops = 0
    samplings.clear()
    while not (tmp_path / "parts" / "rl-round-1.safetensors").exists():
        with contextlib.suppress(OutOfTimeError):
            run(tmp_path / "parts", 0.0)
        stops += 1
    assert (stops, samplings) == (6 + 1, [0, 1])
    assert torch.equal(run(tmp_path / "parts", 0.0).weight, expected.weight)
