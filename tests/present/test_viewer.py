import base64
import gzip
import json
from typing import Any

import pytest

from howwhen.measure.marks import Rule
from howwhen.present.viewer import PackedViewer, pack_viewer, reason
from howwhen.records import Grade
from tests.present.planted import IDS, PROBLEMS, TOKENIZER, graded, viewer


def unpack(packed: PackedViewer) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(packed.text)))


def test_a_packed_viewer_holds_every_token_and_every_decision() -> None:
    packed = pack_viewer(viewer(), TOKENIZER)
    found = unpack(packed)
    assert packed.problems == len(found["problems"]) == 30
    assert found["rungs"] == ["base", "shared-vector", "hybrid"]
    assert found["titles"]["hybrid"] == ["recall", "check"]
    assert found["titles"]["shared-vector"] == ["one vector for all"]
    first = found["problems"][7]
    assert (first["id"], first["question"], first["gold"]) == ("p7", "Ann has 7 pens?", "7")
    answer = first["answers"]["hybrid"]
    words = [found["pieces"][piece] for piece in answer["tokens"]]
    assert "".join(words) == TOKENIZER.decode(IDS)
    assert words[-1] == ""
    [decision] = answer["decisions"]
    place, wrote, base, thinking, *rest = decision
    assert place == 3
    assert found["pieces"][wrote] == TOKENIZER.decode([IDS[3]])
    assert found["pieces"][base] == TOKENIZER.decode([IDS[4]])
    assert thinking is None
    assert rest == [1, 1.5, 2, -200, -25, [[0.5, 1, base, -300]]]
    assert answer["reason"] == "read 7 (stated), which equals 7"
    assert len(answer["base"]) == len(answer["thinking"]) == len(words)
    assert answer["base"][0] == -12


def test_there_is_room_for_as_many_problems_as_fit() -> None:
    whole = pack_viewer(viewer(), TOKENIZER)
    half = pack_viewer(viewer(), TOKENIZER, max_characters=len(whole.text) - 50)
    assert 0 < half.problems < 30
    assert len(half.text) <= len(whole.text) - 50
    assert [problem["id"] for problem in unpack(half)["problems"]] == [
        f"p{n}" for n in range(half.problems)
    ]
    assert pack_viewer(viewer(), TOKENIZER, max_characters=1).problems == 0


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "read 7 (stated), which equals 3"),
        (
            {"flexible": Grade.WRONG, "rule": Rule.REPEATED},
            "read 7 (repeated), which is not 3",
        ),
        (
            {"flexible": Grade.TRUNCATED, "answer": None, "rule": None},
            "cut off before it stated an answer",
        ),
        (
            {"flexible": Grade.NO_ANSWER, "answer": None, "rule": None},
            "no answer could be read from it",
        ),
        ({"flexible": Grade.TIMED_OUT}, "the grader did not finish in time"),
    ],
)
def test_a_grade_has_its_reason(changes: dict[str, Any], text: str) -> None:
    assert reason(graded(PROBLEMS[3], **changes), PROBLEMS[3]) == text
