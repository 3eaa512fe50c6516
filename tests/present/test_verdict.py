"""The reasons in the verdict, on ladders with known answers."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from howwhen.measure.ladder import GradedTrace, measure_ladder
from howwhen.present.verdict import Cause, explain, standing
from howwhen.records import Measurement, RungName
from tests.measure.planted import SETTINGS, traces

N = 300
ROOT = Path(__file__).parents[2]


def measured(right: Mapping[str, int], n: int = N) -> Measurement:
    """A ladder in which every rung gets so many of the first problems right."""
    ends = {"base": n // 10, "thinking": 9 * n // 10}
    ladder: dict[RungName, list[GradedTrace]] = {
        name: traces(count, n)  # type: ignore[misc]
        for name, count in {**ends, **right}.items()
    }
    return measure_ladder(ladder, SETTINGS)


def test_one_vector_that_does_as_well_means_that_the_moment_is_enough() -> None:
    found = explain(
        measured({"hybrid": 265, "shared-vector": 268, "random-positions": 40, "self-gate": 262})
    )
    assert found.cause == "when"
    assert found.text.startswith("*When* is enough: one vector for all categories")
    assert "The moment matters: the same vectors at random places recover 4%" in found.text
    assert "The thinking model need not run" in found.text
    assert "direction" not in found.text  # random vectors were not run


def test_one_vector_that_falls_behind_means_that_the_category_is_needed() -> None:
    rungs = {"hybrid": 260, "shared-vector": 110, "random-vectors": 60, "guardrail-only": 200}
    found = explain(measured(rungs))
    assert found.cause == "which"
    assert found.text.startswith("*Which* is needed: one vector for all categories")
    assert "recovers only 33%, " in found.text
    assert "The direction matters" in found.text
    assert "Vectors do more than the thinking model's pick" in found.text


def test_an_interval_from_worse_to_as_good_decides_nothing() -> None:
    found = explain(measured({"hybrid": 18, "shared-vector": 15}, n=20))
    assert found.cause == "cannot tell"
    assert "cannot be told" in found.text


def test_vectors_that_all_do_a_part_explain_no_moment() -> None:
    found = explain(measured({"hybrid": 105, "shared-vector": 104, "random-positions": 40}))
    assert found.cause == "part"
    assert "is enough" not in found.text
    assert "These vectors do a part only" in found.text


def test_a_recovery_that_may_be_none_explains_nothing() -> None:
    found = explain(measured({"hybrid": 4, "shared-vector": 4}, n=20))
    assert found.cause == "cannot tell"
    assert found.text.startswith("Whether steering recovers anything cannot be told")


def test_any_category_that_does_as_well_is_no_reason_for_categories() -> None:
    found = explain(measured({"hybrid": 260, "shared-vector": 110, "random-category": 259}))
    assert found.cause == "cannot tell"
    assert found.text.startswith("Categories drawn at random do as well as the gate's")


def test_moments_that_do_not_matter_are_no_explanation() -> None:
    found = explain(measured({"hybrid": 260, "shared-vector": 262, "random-positions": 261}))
    assert found.cause == "cannot tell"
    assert "The moment does not matter" in found.text


def test_a_thinking_model_that_is_worse_leaves_nothing_to_recover() -> None:
    assert explain(measured({"base": 200, "thinking": 20, "hybrid": 100})).cause == "no gap"


@pytest.mark.parametrize(("guardrail", "said"), [(60, "*How* is missing"), (250, "are among")])
def test_steering_that_recovers_nothing_is_said_first(guardrail: int, said: str) -> None:
    found = explain(measured({"hybrid": 32, "shared-vector": 31, "guardrail-only": guardrail}))
    assert found.cause == "nothing"
    assert found.text.startswith("Steering recovers little or nothing")
    assert said in found.text


def test_without_a_gap_there_is_nothing_to_explain() -> None:
    found = explain(measured({"hybrid": 30, "thinking": 30}))
    assert (found.cause, found.text) == ("no gap", "")


def test_controls_stand_below_as_good_or_open() -> None:
    found = measured({"hybrid": 200, "shared-vector": 195, "random-vectors": 60})
    assert standing(found, "shared-vector") == "as good"
    assert standing(found, "random-vectors") == "below"
    assert standing(found, "self-gate") == "not run"
    assert standing(found, "hybrid") == "not run"  # it is what the others are held against
    few = measured({"hybrid": 15, "self-gate": 13}, n=20)
    assert standing(few, "self-gate") == "cannot tell"


CAUSES: dict[str, Cause] = {
    "smol-decision": "when",
    "smol-sft-decision": "cannot tell",
    "smol-span": "nothing",
    "smol-span-probe": "which",
}


@pytest.mark.parametrize("name", CAUSES)
def test_the_verdicts_of_measured_pairs(name: str) -> None:
    file = ROOT / "docs" / "measurements" / f"{name}.json"
    found = TypeAdapter(Measurement).validate_json(file.read_bytes())
    assert explain(found).cause == CAUSES[name]
