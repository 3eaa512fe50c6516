from dataclasses import replace

import pytest
import torch

from howwhen.elicit.examples import Decisions, SoftTargets
from howwhen.elicit.gates import (
    GateSite,
    LabelledDecisions,
    choose_gate,
    find_site,
    gate_sentence_agreement,
    make_gate,
    next_sentence_categories,
)
from howwhen.elicit.report import GateAgreement
from howwhen.elicit.self_gate import LabelledAnswer, label_positions, train_self_gate
from howwhen.errors import SteeringError
from howwhen.records import Finish, Rollout, SentenceSpan
from howwhen.settings import ElicitSettings
from tests.conftest import MakeModel
from tests.factories import make_gate as random_gate
from tests.factories import make_taxonomy, random


def decided(states: torch.Tensor, first: int = 3) -> Decisions:
    count = len(states)
    soft = SoftTargets(torch.zeros(count, 1, dtype=torch.long), torch.ones(count, 1))
    positions = tuple(range(first, first + count))
    ids = tuple(range(first + count + 2))
    return Decisions(ids, first + 1, positions, (5,) * count, states, soft, (0.0,) * count, 0)


def test_the_taxonomys_gate_names_what_the_taxonomy_names() -> None:
    taxonomy, states = make_taxonomy(), random(50, 32)
    assert torch.equal(taxonomy.gate().categorise(states), taxonomy.categorise(states))


def test_the_next_category_is_that_of_the_sentence_holding_the_next_token() -> None:
    spans = (SentenceSpan(0, 4, 0, 3), SentenceSpan(4, 9, 3, 5))
    rollout = Rollout("p", (7, 7, 7, 7, 7, 2), "abcdefghi", Finish.STOP, spans)
    one = replace(decided(random(6, 32)), prompt=4)  # positions 3..8 lead to tokens 0..5
    assert next_sentence_categories([rollout], [one], [8, 9]) == [[8, 8, 8, 9, 9, -1]]


def planted() -> tuple[torch.Tensor, list[int]]:
    """States around four centres that the taxonomy does not know, with their categories."""
    centres = random(4, 32, seed=5) * 3
    categories = [number % 4 for number in range(80)]
    return centres[categories] + 0.3 * random(80, 32, seed=6), categories


def own_site() -> GateSite:
    taxonomy = make_taxonomy()
    return find_site(taxonomy, taxonomy.model, taxonomy.layer, [])


def test_where_another_model_read_the_sentences_a_gate_reads_the_thinking_model() -> None:
    states, next_categories = planted()
    found = [decided(states)]
    site = find_site(make_taxonomy(), "thinking", 7, found)
    assert (site.model, site.layer, site.size) == ("thinking", 7, 4)
    torch.testing.assert_close(site.mean, states.mean(0))
    probe = make_gate("probe", make_taxonomy(), site, found, [next_categories], 0)
    assert (probe.model, probe.layer) == ("thinking", 7)
    assert probe.categorise(states).tolist() == next_categories
    with pytest.raises(SteeringError, match="taxonomy reads random, .* --elicit.gate probe"):
        make_gate("taxonomy", make_taxonomy(), site, found, [next_categories], 0)


def test_a_probe_learns_the_next_category_and_the_taxonomy_does_not_know_it() -> None:
    states, next_categories = planted()
    found = [decided(states)]
    agreements = {
        kind: gate_sentence_agreement(
            make_gate(kind, make_taxonomy(), own_site(), found, [next_categories], 0),
            found,
            [next_categories],
        ).share
        for kind in ("taxonomy", "probe")
    }
    assert agreements["probe"] == 1.0
    assert agreements["taxonomy"] is not None
    assert agreements["taxonomy"] < 0.6


def test_clusters_find_the_planted_centres() -> None:
    states, truth = planted()
    gate = make_gate("clusters", make_taxonomy(), own_site(), [decided(states)], [[]], 0)
    named = gate.categorise(states).tolist()
    assert len(set(zip(named, truth, strict=True))) == 4
    centres = torch.nn.functional.normalize(states - gate.mean, dim=1)
    nearest = torch.cdist(centres, gate.weights).argmin(1).tolist()
    assert nearest == named


def test_a_probe_of_two_categories_names_both() -> None:
    states, next_categories = planted()
    two = [category % 2 for category in next_categories]
    gate = make_gate("probe", make_taxonomy(), own_site(), [decided(states)], [two], 0)
    assert gate.categorise(states).tolist() == two


def test_a_probe_without_anything_to_predict_is_refused() -> None:
    with pytest.raises(SteeringError, match="at least 2 categories; found 0"):
        make_gate("probe", make_taxonomy(), own_site(), [decided(random(4, 32))], [[-1] * 4], 0)


def test_agreement_by_hand() -> None:
    gate, states = random_gate(), random(4, 32)
    named = gate.categorise(states).tolist()
    next_categories = [[named[0], (named[1] + 1) % 4, named[2], -1]]
    found = gate_sentence_agreement(gate, [decided(states)], next_categories)
    assert found == GateAgreement(2 / 3, 3)


def test_labelled_answers_cover_every_position() -> None:
    gate, states = random_gate(), random(2, 32)
    one = replace(decided(states), ids=tuple(range(9)), prompt=3, positions=(4, 6))
    named = gate.categorise(states).tolist()
    assert label_positions([one], gate) == [
        LabelledAnswer(one.ids, 2, (-1, -1, named[0], -1, named[1], -1))
    ]


SETTINGS = ElicitSettings(probe_steps=400, probe_hidden=32, seeds=(0,))


def answers(start: int, count: int) -> list[LabelledAnswer]:
    """A decision of category 0 after token 9, of category 1 after token 11, and no other."""
    generator = torch.Generator().manual_seed(start)
    made = []
    for _ in range(count):
        ids = torch.randint(8, 13, (20,), generator=generator).tolist()
        named = tuple({9: 0, 11: 1}.get(i, -1) for i in ids[4:19])
        made.append(LabelledAnswer(tuple(ids), 4, named))
    return made


def test_a_self_gate_learns_planted_decisions_and_refuses_answers_without_any(
    make_model: MakeModel,
) -> None:
    base = make_model()
    probe, scores = train_self_gate(base, (0, 2), 2, answers(0, 40), answers(99, 10), SETTINGS)
    assert scores.precision > 0.9
    assert scores.recall > 0.9
    assert scores.category_accuracy > 0.9
    assert probe.read(random(3, 64)).shape == (3, 3)
    silent = [replace(one, categories=(-1,) * 15) for one in answers(1, 3)]
    with pytest.raises(SteeringError, match="the training answers hold no decision"):
        train_self_gate(base, (0, 2), 2, silent, answers(99, 3), SETTINGS)


def test_the_chosen_gate_is_kept_and_all_are_compared_on_what_is_held_out() -> None:
    states, categories = planted()
    train = LabelledDecisions([decided(states[:40])], [categories[:40]])
    heldout = LabelledDecisions([decided(states[40:])], [categories[40:]])
    gate, agreement = choose_gate("probe", make_taxonomy(), own_site(), train, heldout, 0)
    assert gate.kind == "probe"
    assert agreement["probe"] == GateAgreement(1.0, 40)
    assert list(agreement) == ["taxonomy", "probe", "clusters"]
    silent = LabelledDecisions([decided(states[:40])], [[-1] * 40])
    gate, agreement = choose_gate("clusters", make_taxonomy(), own_site(), silent, heldout, 0)
    assert gate.kind == "clusters"
    assert agreement["probe"].share is None
    assert "at least 2 categories; found 0" in (agreement["probe"].why or "")
    with pytest.raises(SteeringError, match="at least 2 categories; found 0"):
        choose_gate("probe", make_taxonomy(), own_site(), silent, heldout, 0)
