"""One rung of every kind, and what equal answers are."""

import pytest

from howwhen.hybrid.choice import (
    Base,
    Guardrail,
    RandomCategory,
    RandomPositions,
    Rung,
    SelfGated,
    Steer,
    Takeover,
    Thinking,
)
from howwhen.hybrid.strength import sweep
from howwhen.records import HybridTrace
from tests.factories import make_gate, make_probe, make_vectors

EVERY_RUNG: dict[str, Rung] = {
    "base": Base(),
    "thinking": Thinking(),
    "guardrail": Guardrail(3),
    "takeover": Takeover(),
    "positions": RandomPositions(make_gate(), make_vectors(), rate=0.2),
    "category": RandomCategory(make_gate(), make_vectors()),
    "steer": Steer(make_gate(), make_vectors()),
    "sweep": Steer(make_gate(), make_vectors(), sweep([0.3, 1.0], [1, 3, "answer"])),
    "self-gate": SelfGated(make_probe(0.0), make_vectors()),
}


def expect_equal(traces: list[HybridTrace], expected: list[HybridTrace]) -> None:
    """The same tokens for the same reasons; log-probabilities up to the last digit kept."""
    for trace, other in zip(traces, expected, strict=True):
        assert trace.text == other.text
        assert len(trace.tokens) == len(other.tokens)
        for token, wanted in zip(trace.tokens, other.tokens, strict=True):
            ours, theirs = (
                [[one.strength, one.window, one.id] for one in t.candidates]
                for t in (token, wanted)
            )
            assert ours == theirs
            assert token[:4] == wanted[:4]
            assert token[5:7] == wanted[5:7]
            for value, number in zip(
                (token[4], *token[7:9]), (wanted[4], *wanted[7:9]), strict=True
            ):
                assert (value is None) == (number is None)
                assert value is None or value == pytest.approx(number, abs=2e-4)
