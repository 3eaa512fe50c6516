"""Guesses of what comes next: where they come from, what is learnt of them, what they change."""

import math
import random as randoms
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from howwhen.errors import SettingsError
from howwhen.hybrid import pass_costs
from howwhen.hybrid.choice import Base, Rung, SelfGated, Steer, Takeover, Thinking
from howwhen.hybrid.deciding import Reading
from howwhen.hybrid.decoder import LiveBatch, decode
from howwhen.hybrid.drafting import Draft
from howwhen.hybrid.guesses import ORDERS, Guess, Guesser, Phrases, Text
from howwhen.hybrid.pass_costs import PassCosts
from howwhen.hybrid.session import Session, _Plan
from howwhen.hybrid.steering import Steered
from howwhen.hybrid.strength import sweep
from howwhen.settings import HybridSettings
from howwhen.zoo.tally import tally_problems
from tests import pretend_gpu
from tests.conftest import VOCABULARY, MakeModel
from tests.factories import make_gate, make_models, make_probe, make_vectors
from tests.hybrid.every_rung import watch_drafts


def test_phrases_are_counted_over_all_answers_by_the_longest_that_occurred() -> None:
    answers = [[1, 2, 3, 4], [9, 2, 3, 4], [7, 2, 3, 5], [1, 2]]
    phrases = Phrases(answers)
    order, token, share = phrases.longest([8, 8, 2, 3]) or (0, 0, 0.0)
    assert (order, token) == (2, 4)
    assert share == pytest.approx(2 / 3)
    assert phrases.longest([7, 2, 3]) == (3, 5, 1.0)
    assert phrases.longest([2, 1]) is None
    assert phrases.longest([3]) is None
    assert Phrases([]).longest([1, 2, 3]) is None


def test_phrases_equal_a_count_by_hand() -> None:
    rng = randoms.Random(0)
    answers = [[rng.randrange(4) for _ in range(rng.randrange(30))] for _ in range(40)]
    phrases = Phrases(answers)
    for _ in range(200):
        last = [rng.randrange(4) for _ in range(9)]
        expected = None
        for order in ORDERS:
            following = [
                answer[end]
                for answer in answers
                for end in range(order, len(answer))
                if answer[end - order : end] == last[-order:]
            ]
            if following:
                best = max(set(following), key=lambda token: (following.count(token), -token))
                expected = (order, best, following.count(best) / len(following))
                break
        found = phrases.longest(last)
        assert (found is None) == (expected is None)
        if found and expected:
            assert found[:2] == expected[:2]
            assert found[2] == pytest.approx(expected[2])


def test_a_text_is_guessed_to_go_on_as_it_did_before() -> None:
    guesser, text = Guesser(), Text([1, 2, 3])
    assert [one.token for one in guesser.guess(Text([5, 6, 7, 8, 9, 5, 6]), 4)] == [7, 8, 9, 5]
    assert guesser.guess(text, 4) == []
    text.extend([4, 1, 2])
    assert [guess.token for guess in guesser.guess(text, 2)] == [3, 4]
    assert [guess.token for guess in guesser.guess(text, 1, ahead=[3])] == [4]
    text.extend([9, 1, 2])  # what followed last counts
    assert [guess.token for guess in guesser.guess(text, 1)] == [9]


def test_kinds_of_guesses_that_fail_are_believed_less() -> None:
    guesser, text = Guesser(Phrases([[5, 6, 8]] * 3)), Text([5, 6, 7, 5, 6])
    kinds = {guess.kind for guess in guesser.guess(text, 1)}
    first = guesser.guess(text, 1)[0]
    before = guesser.rate(first.kind)
    for _ in range(30):
        guesser.learn([first], [0])
    assert guesser.rate(first.kind) < before / 3
    assert guesser.guess(text, 1)[0].kind not in kinds  # the other source is asked then
    right = Guess(1, ("text", 3, 0))
    for _ in range(30):
        guesser.learn([right, right], [1, 1])
    assert guesser.chances([right, right]) == pytest.approx([0.98, 0.97], abs=0.02)
    guesser.learn([right, Guess(2, ("text", 5, 0))], [7, 2])  # nothing is learnt beyond a mistake
    assert ("text", 5, 0) not in guesser.rates


POLICIES: list[Literal["transient", "persistent"]] = ["transient", "persistent"]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["base", "thinking", "takeover", "hybrid", "self-gate"])
def test_guesses_change_no_token_on_any_rung(
    make_model: MakeModel,
    name: str,
    policy: Literal["transient", "persistent"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models, vectors = make_models(make_model), make_vectors()
    rung: Rung = {
        "base": Base(), "thinking": Thinking(), "takeover": Takeover(),
        "hybrid": Steer(make_gate(), vectors), "self-gate": SelfGated(make_probe(), vectors),
    }[name]  # fmt: skip
    problems = tally_problems(5, seed=8)
    how = HybridSettings(max_new_tokens=40, block_tokens=1, cache_policy=policy)
    step = decode(models, problems, rung, how)
    others = decode(models, tally_problems(9, seed=9), rung, how)
    phrases = Phrases([trace.ids for trace in (*others, *step[:2])])
    drafts = watch_drafts(monkeypatch)
    how = how.model_copy(update={"block_tokens": 16})
    for known in (None, phrases):
        found = decode(models, problems, rung, how, phrases=known)
        assert [[t[:4] for t in a.tokens] for a in found] == [
            [t[:4] for t in a.tokens] for a in step
        ]
    assert sum(source == "guesses" and length > 1 for source, length in drafts) > 5


def test_a_single_stream_may_be_guessed_too(make_model: MakeModel) -> None:
    models, rung = make_models(make_model), Takeover()
    how = HybridSettings(max_new_tokens=30, block_tokens=8)
    expected = decode(models, tally_problems(1, seed=2), rung, how)[0]
    batch = LiveBatch(models, rung, how, phrases=Phrases([expected.ids]))
    batch.add(tally_problems(1, seed=2))
    rounds = []
    while not batch.is_done:
        rounds.append(batch.advance()[0])
    assert [token.id for fresh in rounds for token in fresh] == list(expected.ids)
    assert len(rounds[0]) == 1
    assert len(rounds) < len(expected.ids) / 2


def timed_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let costs be timed, none of which is known, and kept in a folder."""
    monkeypatch.delenv("HOWWHEN_PASS_COSTS")
    monkeypatch.setenv("HOWWHEN_CACHE", str(folder))
    monkeypatch.setattr(pass_costs, "_TIMED", {})


def test_costs_are_timed_once_and_kept(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed_in(tmp_path, monkeypatch)
    models = make_models(make_model)
    costs = pass_costs.pass_costs(models, 3, needs_thinking=True)
    assert all(0 < seconds < 1 for seconds in (*costs.base, *costs.thinking))
    monkeypatch.setattr(pass_costs, "_TIMED", {})
    assert pass_costs.pass_costs(models, 4, needs_thinking=True) == costs  # 3 count as 4
    alone = pass_costs.pass_costs(models, 4, needs_thinking=False)
    assert alone.thinking == (0.0,) * 5
    assert alone.of_both(4) == alone.of_base(4) > 0
    files = sorted((tmp_path / "pass-costs").iterdir())
    assert len(files) == 2  # with and without the thinking model
    files[0].write_text("{")
    monkeypatch.setattr(pass_costs, "_TIMED", {})
    mended = [pass_costs.pass_costs(models, 4, needs_thinking=how) for how in (True, False)]
    monkeypatch.setattr(pass_costs, "_TIMED", {})
    again = [pass_costs.pass_costs(models, 4, needs_thinking=how) for how in (True, False)]
    assert again == mended  # a damaged file is timed and written once more
    assert not list((tmp_path / "pass-costs").glob("*.partial"))


def test_models_on_two_devices_are_timed_side_by_side_too(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed_in(tmp_path, monkeypatch)
    draft = make_model(seed=5)
    models = replace(make_models(make_model), draft=draft)
    with pretend_gpu.pretending():
        pretend_gpu.put(models.base.model, torch.device("cuda:0"))
        pretend_gpu.put(models.thinking.model, torch.device("cuda:1"))
        pretend_gpu.put(draft.model, torch.device("cuda:0"))
        costs = pass_costs.pass_costs(models, 2, needs_thinking=True)
    assert costs.both is not None
    assert costs.draft is not None
    assert costs.of_both(4) == costs.both[2] > 0
    assert 0 < costs.of_draft(2) == costs.draft[1]


def test_without_a_folder_costs_are_timed_by_every_process(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    timed_in(tmp_path / "file", monkeypatch)
    assert pass_costs.pass_costs(make_models(make_model), 1, needs_thinking=False).base[0] > 0


def test_costs_may_be_given(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    models = make_models(make_model)
    monkeypatch.setenv("HOWWHEN_PASS_COSTS", "1,2,3,4,5")
    given = pass_costs.pass_costs(models, 1, needs_thinking=True)
    assert given == PassCosts((1.0, 2.0, 3.0, 4.0, 5.0), (1.0, 2.0, 3.0, 4.0, 5.0))
    for wrong in ("1,2,3", "1,2,3,4,x", "0,1,1,1,1", "1,1,1,1,inf"):
        monkeypatch.setenv("HOWWHEN_PASS_COSTS", wrong)
        with pytest.raises(SettingsError, match=f"found HOWWHEN_PASS_COSTS='{wrong}'; expected"):
            pass_costs.pass_costs(models, 1, needs_thinking=True)


def test_phrases_that_only_the_thinking_model_can_read_are_not_guessed(
    make_model: MakeModel,
) -> None:
    models = make_models(make_model)
    models.thinking.model.resize_token_embeddings(VOCABULARY + 8)
    how = HybridSettings(max_new_tokens=20)
    rung = Steer(make_gate(), make_vectors())
    problems = tally_problems(3, seed=4)
    expected = decode(models, problems, rung, how)
    strange = [[*trace.ids[:n], VOCABULARY + 3] for trace in expected for n in range(2, 20)]
    known = [[[*trace.ids[:6], VOCABULARY + 5, 7]] for trace in expected]
    for more in ({"phrases": Phrases(strange)}, {"known": known}):
        found = decode(models, problems, rung, how, **more)
        assert [trace.ids for trace in found] == [trace.ids for trace in expected]


def test_a_candidate_that_overflows_spoils_nothing(make_model: MakeModel) -> None:
    models = make_models(make_model)
    rung = Steer(make_gate(), make_vectors(), sweep([0.3, 1e38]))
    for length in (1, 16):
        how = HybridSettings(max_new_tokens=24, block_tokens=length)
        for trace in decode(models, tally_problems(3, seed=0), rung, how):
            for token in trace.tokens:
                assert math.isfinite(token.base_margin or 0.0)
                assert math.isfinite(token.base_log_prob or 0.0)


def test_guesses_steer_no_more_than_a_place_that_is_left_per_stream_and_round(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, rung = make_models(make_model), Steer(make_gate(), make_vectors())
    problems = tally_problems(6, seed=8)
    step = decode(models, problems, rung, HybridSettings(max_new_tokens=40, block_tokens=1))
    kept = sum(trace.decisions for trace in step)
    places: list[int] = []
    unwatched = Session._steer

    def watched(
        session: Session, draft: Draft, verdict: Reading | None, plan: _Plan
    ) -> dict[tuple[int, int], Steered]:
        steered = unwatched(session, draft, verdict, plan)
        places.append(len(steered))
        return steered

    monkeypatch.setattr(Session, "_steer", watched)
    phrases = Phrases([trace.ids for trace in step])
    found = decode(models, problems, rung, HybridSettings(max_new_tokens=40), phrases=phrases)
    assert [trace.ids for trace in found] == [trace.ids for trace in step]
    assert kept <= sum(places) < 1.3 * kept
