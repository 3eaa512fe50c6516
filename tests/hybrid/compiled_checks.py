"""Compiled passes: one graph per shape, none made twice, and the same answers.

Run by `test_compiled.py` in a process of its own, without run-time type checks: these cannot be
compiled.
"""

import gc
import weakref
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from weakref import WeakSet

import pytest
import torch
from torch._dynamo.utils import counters

from howwhen.errors import SettingsError
from howwhen.hybrid import deciding
from howwhen.hybrid.choice import Base
from howwhen.hybrid.context import Action, DecisionContext, emit
from howwhen.hybrid.decoder import LiveBatch, decode
from howwhen.hybrid.notes import Watch
from howwhen.hybrid.places import Places
from howwhen.hybrid.streams import open_streams
from howwhen.lm import compiled
from howwhen.lm.compiled import columns_of, size_of
from howwhen.lm.upper import upper_blocks
from howwhen.settings import Compilation, HybridSettings
from howwhen.zoo.tally import tally_problems
from tests.conftest import ARCHITECTURES, MakeModel
from tests.factories import make_models
from tests.hybrid.every_rung import EVERY_RUNG, expect_equal
from tests.oracles.naive import next_logits

QUICK = ("takeover", "guardrail", "steer", "sweep", "self-gate", "positions")
PROBLEMS = tally_problems(7, seed=8)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """No graphs of other tests, which count towards the limit of a process."""
    torch._dynamo.reset()
    counters.clear()
    deciding._graphs.cache_clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def decision_shapes() -> set[Hashable]:
    return {shape for one in deciding._DECISIONS for shape in one._shapes}


def test_shapes_are_rounded_up() -> None:
    assert [size_of(n) for n in (1, 2, 4, 5, 16, 17)] == [1, 4, 4, 16, 16, None]
    assert [columns_of(n) for n in (1, 512, 513, 3000)] == [512, 512, 2048, 8192]


@pytest.mark.parametrize(
    "policy", ["transient", pytest.param("persistent", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "kind",
    [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in EVERY_RUNG],
)
def test_compiled_passes_give_the_same_answers(
    make_model: MakeModel, kind: str, policy: str
) -> None:
    models, rung = make_models(make_model), EVERY_RUNG[kind]
    how = HybridSettings(max_new_tokens=24, block_tokens=8).model_copy(
        update={"cache_policy": policy}
    )
    expected = decode(models, PROBLEMS, rung, how, seed=2)
    traced = how.model_copy(update={"compile": "trace"})
    expect_equal(decode(models, PROBLEMS, rung, traced, seed=2, slots=3), expected)
    made = graphs()
    # Passes of two models and decisions of every size; steered passes of one window and 1 or 2
    # candidates.
    assert 0 < made <= 3 * len(compiled.SIZES) + 2
    assert bool(decision_shapes()) == (not rung.reads_host)
    expect_equal(decode(models, PROBLEMS, rung, traced, seed=2, slots=3), expected)
    assert graphs() == made  # and none for a second session


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_step_makes_another_graph(make_model: MakeModel, architecture: str) -> None:
    model = make_model(architecture)
    has_upper = upper_blocks(model.model, 1) is not None
    texts = [[3, 9, 14, 27], [5, 11], [8]]
    streams = open_streams(model, texts, (0,), 1, "trace")
    read = torch.tensor([[text[-1]] for text in texts])
    with torch.no_grad():
        for step in range(12):
            streams.extend(read)
            for row, text in enumerate(texts):
                torch.testing.assert_close(
                    streams.logits[row, -1], next_logits(model, text), atol=3e-4, rtol=3e-4
                )
            for text in texts:
                text.append(4 + step)
            if step % 4 == 3:  # unequal lengths, and eager passes in between
                streams.rollback([step % 3, 0, 1])
                texts = [
                    text[: len(text) - n] for text, n in zip(texts, (step % 3, 0, 1), strict=True)
                ]
                places = Places([0, 2], [streams.lengths[0] - 1, streams.lengths[2] - 1], [1, 1],
                                streams.device)  # fmt: skip
                streams.branch(places, torch.zeros(2, 3, 1, 32))
                streams.forget_branches()
            read = torch.tensor([[text[-1]] for text in texts])
            # The first token was read with the prompt; the other graph is the steered pass.
            assert graphs() == min(step, 1) + (has_upper and step >= 3)


def test_several_tokens_are_read_with_the_graph_for_more(make_model: MakeModel) -> None:
    model = make_model()
    with torch.no_grad():
        streams = open_streams(model, [[3, 9], [5, 11, 7]], compilation="trace")
        plain = open_streams(model, [[3, 9], [5, 11, 7]])
        tokens = torch.tensor([[9, 4, 6], [7, 8, 5]])
        for one in (streams, plain):
            one.extend(tokens)
            one.rollback([1, 2])
            one.extend(tokens[:, :1])
        torch.testing.assert_close(streams.logits, plain.logits, atol=1e-4, rtol=1e-4)
        assert streams.lengths == plain.lengths
        assert graphs() == 2
        streams.extend(torch.full((2, 20), 5))  # longer than any graph
        assert graphs() == 2


@pytest.mark.parametrize("kind", ["guardrail", "steer"])
def test_sampled_answers_are_the_same(make_model: MakeModel, kind: str) -> None:
    models, rung = make_models(make_model), EVERY_RUNG[kind]
    how = HybridSettings(max_new_tokens=12, block_tokens=4, temperature=0.8, top_p=0.9)
    expected = decode(models, PROBLEMS, rung, how, watch=Watch(divergence=True))
    traced = how.model_copy(update={"compile": "trace"})
    found = decode(models, PROBLEMS, rung, traced, watch=Watch(divergence=True))
    expect_equal(found, expected)
    assert decision_shapes()
    for trace, other in zip(found, expected, strict=True):
        for token, wanted in zip(trace.tokens, other.tokens, strict=True):
            assert token.divergence == pytest.approx(wanted.divergence, abs=2e-4)


class Unsure(Base):
    """Looks at what only the host has, and does not say so."""

    def act(self, context: DecisionContext) -> Action:
        return emit(context.base.token, context.uniforms[:, 0] < 0)


@dataclass(frozen=True)
class Listed(Base):
    """Holds what cannot be compared."""

    tokens: set[int] = field(default_factory=set)


def test_a_rung_that_holds_anything_is_decided_without_a_graph(make_model: MakeModel) -> None:
    how = HybridSettings(max_new_tokens=6, block_tokens=4, compile="trace")
    found, plain = (decode(make_models(make_model), PROBLEMS[:2], rung, how)
                    for rung in (Listed({3}), Base()))  # fmt: skip
    assert [trace.ids for trace in found] == [trace.ids for trace in plain]


def test_a_rung_that_cannot_be_compiled_says_what_to_do(make_model: MakeModel) -> None:
    how = HybridSettings(max_new_tokens=6, block_tokens=4, compile="trace")
    with pytest.raises(SettingsError, match="reads_host = True"):
        decode(make_models(make_model), PROBLEMS[:2], Unsure(), how)


def test_steering_with_a_graph_is_steering(make_model: MakeModel) -> None:
    """Some streams only, several candidates, two passes of one round, and one that is kept."""
    model, texts = make_model(), [[3, 9, 14], [5, 11], [8, 2, 6]]
    delta = torch.randn(2, 3, 1, 32, generator=torch.Generator().manual_seed(0))
    logits = []
    with torch.no_grad():
        for how in (None, "trace"):
            streams = open_streams(model, texts, (), 1, how)
            read = torch.tensor([[text[-1]] for text in texts])
            streams.extend(read)
            places = Places([0, 2], [2, 2], [1, 1], streams.device)
            first = streams.branch(places, delta)
            second = streams.branch(places, -delta, 3 if how else 0)
            streams.commit(second, 1, 2)
            streams.forget_branches()
            streams.extend(read)
            logits.append([first.logits, second.logits, streams.logits])
    for traced, plain in zip(*logits, strict=True):
        torch.testing.assert_close(traced, plain, atol=1e-5, rtol=1e-5)
    assert len([one for one in compiled._ALL if (3, 3, 512) in one._shapes]) == 1


def test_compiled_models_can_be_freed(make_model: MakeModel) -> None:
    models = make_models(make_model)
    how = HybridSettings(max_new_tokens=6, block_tokens=4, compile="trace")
    decode(models, PROBLEMS[:2], EVERY_RUNG["steer"], how)
    held = weakref.ref(models.base.model)
    del models
    torch._dynamo.reset()
    gc.collect()
    assert held() is None


def test_beyond_the_most_graphs_passes_are_not_compiled(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "MAX_GRAPHS", 5)
    monkeypatch.setattr(compiled, "_ALL", WeakSet())
    models, rung = make_models(make_model), EVERY_RUNG["takeover"]
    how = HybridSettings(max_new_tokens=6, block_tokens=4)
    for count in range(1, 6):
        expected = decode(models, PROBLEMS[:count], rung, how)
        traced = how.model_copy(update={"compile": "trace"})
        expect_equal(decode(models, PROBLEMS[:count], rung, traced), expected)
    assert 0 < graphs() <= 5 + 5  # of passes, and of decisions


@pytest.mark.slow
@pytest.mark.parametrize("how", ["inductor", "graphs"])
def test_generated_code_gives_the_same_answers(make_model: MakeModel, how: Compilation) -> None:
    models, rung = make_models(make_model), EVERY_RUNG["steer"]
    settings = HybridSettings(max_new_tokens=16, block_tokens=2)
    expected = decode(models, PROBLEMS[:3], rung, settings)
    batch = LiveBatch(models, rung, settings.model_copy(update={"compile": how}))
    batch.add(PROBLEMS[:3])
    answers: list[list[int]] = [[] for _ in expected]
    while not batch.is_done:
        for number, tokens in batch.advance().items():
            answers[number] += [token.id for token in tokens]
    assert [tuple(answer) for answer in answers] == [trace.ids for trace in expected]
