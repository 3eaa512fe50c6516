"""One rung of every kind, what equal answers are, and a look at drafts."""

from dataclasses import replace

import pytest
from torch import Tensor

from howwhen.hybrid.ablations import (
    BaseGuardrail,
    LeastSimilarCategory,
    RandomCategoryNotTop3,
    RandomGuardrail,
)
from howwhen.hybrid.choice import (
    Base,
    Guardrail,
    Rung,
    SelfGated,
    Steer,
    Takeover,
    Thinking,
)
from howwhen.hybrid.controls import (
    EarlyOnly,
    EntropyGate,
    LogitDifference,
    Places,
    RandomCategory,
    RandomPositions,
    ReverseTakeover,
)
from howwhen.hybrid.drafting import Draft, Drafter, OpenAnswer, Source
from howwhen.hybrid.strength import sweep
from howwhen.records import HybridTrace
from tests.factories import make_gate, make_probe, make_vectors

PLACES = {f"tally-{n}": Places(frozenset({0, 2}), frozenset({0, 3, 4, 9, 11})) for n in range(9)}
EVERY_RUNG: dict[str, Rung] = {
    "base": Base(),
    "thinking": Thinking(),
    "guardrail": Guardrail(3),
    "takeover": Takeover(),
    "positions": RandomPositions(make_gate(), make_vectors(), rate=0.2),
    "drawn positions": RandomPositions(
        make_gate(), make_vectors(), places=PLACES, sentence_ends=frozenset(range(0, 60, 4))
    ),
    "category": RandomCategory(make_gate(), make_vectors()),
    "logit difference": LogitDifference(0.6),
    "entropy": EntropyGate(make_gate(), make_vectors(), threshold=4.0),
    "early": EarlyOnly(make_gate(), make_vectors(), limit=3),
    "reverse takeover": ReverseTakeover(limit=3),
    "steer": Steer(make_gate(), make_vectors()),
    "sweep": Steer(make_gate(), make_vectors(), sweep([0.3, 1.0], [1, 3, "answer"])),
    "random guardrail": RandomGuardrail(
        make_gate(), make_vectors(), replace(sweep([0.3, 1.0, 2.0]), picked_by="random")
    ),
    "base guardrail": BaseGuardrail(
        make_gate(), make_vectors(), replace(sweep([0.3, 1.0, 2.0]), picked_by="base")
    ),
    "not top 3": RandomCategoryNotTop3(make_gate(), make_vectors()),
    "least similar": LeastSimilarCategory(make_gate(), make_vectors(), instead=(2, 3, 0, 1)),
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


def watch_drafts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Source, int]]:
    """Source and length of every draft, as they are made."""
    found: list[tuple[Source, int]] = []
    unwatched = Drafter.draft

    def watched(
        drafter: Drafter, answers: list[OpenAnswer], first: Tensor, length: int | None
    ) -> Draft:
        draft = unwatched(drafter, answers, first, length)
        found.append((draft.source, draft.length))
        return draft

    monkeypatch.setattr(Drafter, "draft", watched)
    return found
