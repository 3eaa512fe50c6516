"""What controls are matched to, on answers with known contents."""

import math
from collections.abc import Sequence

import pytest

from howwhen.hybrid.choice import Rung
from howwhen.hybrid.controls import EntropyGate
from howwhen.hybrid.strength import LEARNED
from howwhen.pipeline.entropy import LOWEST, TRIALS, choose_threshold
from howwhen.pipeline.matching import Matched, sentence_ends_of
from howwhen.pipeline.rungs import Rungs
from howwhen.records import Finish, HybridToken, HybridTrace
from howwhen.settings import HybridSettings
from howwhen.zoo.pairs import find_pair
from tests.conftest import MakeModel
from tests.factories import make_gate, make_probe, make_vectors

END = 9


def trace(problem: str, tokens: Sequence[tuple[int, bool]], rung: str = "hybrid") -> HybridTrace:
    made = tuple(HybridToken(i, i, i, None, None, 0, steered, -1.0, -1.0) for i, steered in tokens)
    return HybridTrace(problem, "base" if rung == "base" else "hybrid", 0, "", Finish.STOP, made)


HYBRID = [
    # Starts: the first token, and the one after an end.
    trace("a", [(1, True), (2, False), (END, True), (3, True), (4, False)]),
    trace("b", [(1, False), (2, False)]),
]
BASE = [
    trace("a", [(1, False), (END, False), (3, False)], "base"),
    trace("b", [(1, False)] * 4, "base"),
]
MATCHED = Matched.of(HYBRID, BASE, frozenset({END}))


def test_interventions_are_counted_by_answer_and_kind_of_place() -> None:
    assert MATCHED.rate == pytest.approx(3 / 7)
    assert MATCHED.steered == {"a": (2, 1), "b": (0, 0)}
    assert MATCHED.places == {"a": (2, 1), "b": (1, 3)}
    assert MATCHED.per_answer == 1.5
    assert MATCHED.limits(0.5) == {"a": 2, "b": 0}
    assert MATCHED.limits(1.0) == {"a": 3, "b": 0}
    assert MATCHED.limit == 2
    assert Matched(0.05).limit == 1


def test_as_many_places_are_drawn_as_the_hybrid_steers() -> None:
    drawn = MATCHED.draw(0, by_kind=True)
    assert (drawn["a"].starts, drawn["a"].others) == (frozenset({0, 1}), frozenset({0}))
    assert (drawn["b"].starts, drawn["b"].others) == (frozenset(), frozenset())
    anywhere = MATCHED.draw(0, by_kind=False)
    assert anywhere["a"] == (frozenset(), frozenset({0, 1, 2}))


def test_draws_depend_on_seed_and_problem_and_are_even() -> None:
    steered = {f"p{n}": (1, 2) for n in range(400)}
    matched = Matched(0.1, steered, dict.fromkeys(steered, (4, 10)), frozenset({END}))
    first, again, other = (matched.draw(seed, by_kind=True) for seed in (0, 0, 1))
    assert first == again != other
    assert all((len(one.starts), len(one.others)) == (1, 2) for one in first.values())
    counts = [sum(n in one.others for one in first.values()) for n in range(10)]
    assert sum(counts) == 800
    assert min(counts) > 50
    assert max(counts) < 110


def test_where_the_base_has_too_few_places_the_first_ones_are_taken() -> None:
    matched = Matched(0.1, {"p": (3, 0)}, {"p": (1, 5)}, frozenset({END}))
    assert matched.draw(0, by_kind=True)["p"].starts == frozenset({0, 1, 2})


def test_tokens_that_end_sentences_are_found_by_their_text(make_model: MakeModel) -> None:
    model = make_model()
    ends = sentence_ends_of(model)
    texts = {model.tokenizer.decode([number]).strip() for number in ends}
    assert "." in texts
    assert "7" not in texts
    assert all(text.endswith((".", "!", "?", ";")) for text in texts)


def rungs() -> Rungs:
    vectors = make_vectors()
    pair = find_pair("tally-rl")
    return Rungs(pair, make_gate(), vectors, vectors, make_probe(), LEARNED, HybridSettings())


def test_the_entropy_threshold_steers_as_often_as_the_hybrid() -> None:
    asked: list[str] = []

    def answer(rung: Rung) -> list[HybridTrace]:
        asked.append(rung.name)
        count = 7  # of 40 tokens, on the hybrid
        if isinstance(rung, EntropyGate):
            entropies = [0.1 * n for n in range(40)]
            count = sum(entropy >= rung.threshold for entropy in entropies)
        tokens = [(1, n < count) for n in range(40)]
        return [trace(name, tokens) for name in "abc"]

    chosen = choose_threshold(rungs(), 100, answer)
    assert chosen.per_answer == chosen.hybrid_per_answer == 7
    assert 3.2 < chosen.threshold <= 3.3
    assert asked == ["hybrid", *["entropy-gate"] * TRIALS]


def test_a_threshold_that_cannot_be_reached_is_the_nearest() -> None:
    def answer(rung: Rung) -> list[HybridTrace]:
        steered = 5 if rung.name == "hybrid" else 1
        return [trace("a", [(1, n < steered) for n in range(9)])]

    chosen = choose_threshold(rungs(), 100, answer)
    assert (chosen.per_answer, chosen.hybrid_per_answer) == (1, 5)
    assert LOWEST < chosen.threshold < math.log(100)
