"""Every record prints as one short line, and stays the value it was."""

import inspect
from dataclasses import is_dataclass, replace
from typing import Any

import pytest

from howwhen import probes, records, vectors
from howwhen.records import (
    Finish,
    HybridToken,
    HybridTrace,
    Interval,
    Measurement,
    Problem,
    Rollout,
    SentenceSpan,
    split_by_rollout,
)
from tests.factories import make_forms, make_gate, make_taxonomy

LONG = "One line.\n" * 500
SPAN = SentenceSpan(0, 9, 0, 3)
TOKEN = HybridToken(5, 5, -1, -1, 0.0, 0, False, -0.5, 0.0)


def prints_as_one_line(kind: type) -> bool:
    method: Any = inspect.unwrap(vars(kind)["__repr__"])
    return method.__name__ == "one_line" or "one_line" in method.__code__.co_names


@pytest.mark.parametrize("module", [records, probes, vectors])
def test_every_record_has_the_repr_of_one_line(module: object) -> None:
    found = [
        kind
        for kind in vars(module).values()
        if inspect.isclass(kind)
        and kind.__module__ == module.__name__  # type: ignore[attr-defined]
        and (is_dataclass(kind) or hasattr(kind, "_fields"))
    ]
    assert found
    assert [kind.__name__ for kind in found if not prints_as_one_line(kind)] == []


@pytest.mark.parametrize(
    "record",
    [
        Problem("a", LONG, "3"),
        Rollout("a", tuple(range(5000)), LONG, Finish.STOP, (SPAN,) * 500),
        HybridTrace("a", "hybrid", 0, LONG, Finish.LENGTH, (TOKEN,) * 5000),
        Measurement(3, "strict", 0.5, Interval(0.1, 0.9), {}),
        make_taxonomy(),
        make_gate(),
        *make_forms().values(),
    ],
    ids=lambda record: type(record).__name__,
)
def test_long_texts_tuples_and_tensors_are_shortened(record: object) -> None:
    assert "\n" not in repr(record)
    assert len(repr(record)) < 300


def test_what_is_short_is_shown_whole_and_defaults_are_left_out() -> None:
    assert repr(SPAN) == "SentenceSpan(start_char=0, end_char=9, start_token=0, end_token=3)"
    assert repr(Problem("a", "Two?", "2")) == "Problem(id='a', question='Two?', answer='2')"
    trace = HybridTrace("a", "base", 0, "x" * 61, Finish.STOP, (TOKEN,) * 5, sample=2)
    assert repr(trace) == (
        f"HybridTrace(problem_id='a', rung='base', seed=0, text={'x' * 60!r}..., finish='stop', "
        "tokens=<5 items>, sample=2)"
    )
    assert "vectors=<4x32>" in repr(make_forms()["linear"])


def test_records_that_print_alike_are_still_told_apart() -> None:
    one = Problem("a", "x" * 61, "2")
    other = replace(one, question="x" * 62)
    assert repr(one) == repr(other)
    assert one != other
    assert hash(one) != hash(other)


def test_a_column_is_split_into_the_sentences_of_each_rollout() -> None:
    spans = [SentenceSpan(0, 1, 0, 1)]
    rollouts = [Rollout("1", (), "", Finish.STOP, tuple(spans * n)) for n in (2, 0, 1)]
    assert split_by_rollout(rollouts, "abc") == ["ab", "", "c"]
    assert split_by_rollout([], []) == []
    with pytest.raises(ValueError, match="a column of 2 items .* into 3 sentences"):
        split_by_rollout(rollouts, "ab")
