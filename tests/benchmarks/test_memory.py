"""Peak memory of a process on growing inputs stays within the budgets that the settings state."""

import sys

import pytest

from benchmarks import memory
from howwhen.elicit.objective import training_bytes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which only Linux has"),
]
SLACK = 48 * 2**20
"""Bytes by which equal runs may differ."""


@pytest.mark.parametrize(
    ("piece", "few", "many"),
    [
        ("comparing", 10, 160),
        ("training on answers", 4, 16),
        ("training at decisions", 8, 32),
    ],
)
def test_more_input_needs_no_more_memory(piece: str, few: int, many: int) -> None:
    before, after = memory.measure(piece, few), memory.measure(piece, many)
    assert after <= 1.1 * before + SLACK


def test_a_training_step_takes_what_the_doctor_tells() -> None:
    base, held = memory.small_pair().base, memory.BUDGETS.states_gib * 2**30
    told = training_bytes(base, 4, memory.BUDGETS, memory.TOKENS, prompt=1)
    taken = memory.measure("training on answers", 8)
    assert told / 2 <= taken - held <= told + SLACK


def test_a_layer_of_sentences_is_held_once() -> None:
    """What does not grow with them is in both measurements."""
    few, many = 60_000, 180_000
    before, after = (memory.measure("discovering", size) for size in (few, many))
    assert after - before <= 1.5 * (many - few) * memory.WIDTH * 4
