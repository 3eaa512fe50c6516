from dataclasses import replace

import pytest
import torch

from howwhen.elicit.decisions import Decisions, ProbeDraw, ProbeRows
from howwhen.elicit.examples import SoftTargets
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
from howwhen.elicit.self_gate import ProbeData, train_self_gate
from howwhen.errors import SteeringError
from howwhen.lm.models import LanguageModel
from howwhen.lm.residual import residuals
from howwhen.probes import ROWS_AT_A_TIME, SelfGate
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
    probe = ProbeRows((), torch.zeros(0, 0))
    targets, losses = (5,) * count, torch.zeros(count)
    return Decisions(ids, first + 1, positions, targets, states, soft, losses, 0, probe)


def labelled(states: torch.Tensor, next_categories: list[int]) -> LabelledDecisions:
    return LabelledDecisions(states, next_categories)


def test_the_taxonomys_gate_names_what_the_taxonomy_names() -> None:
    taxonomy, states = make_taxonomy(), random(50, 32)
    assert torch.equal(taxonomy.gate().categorise(states), taxonomy.categorise(states))


def test_the_next_category_is_that_of_the_sentence_holding_the_next_token() -> None:
    spans = (SentenceSpan(0, 4, 0, 3), SentenceSpan(4, 9, 3, 5))
    rollout = Rollout("p", (7, 7, 7, 7, 7, 2), "abcdefghi", Finish.STOP, spans)
    assert next_sentence_categories([rollout], [range(6)], [8, 9]) == [[8, 8, 8, 9, 9, -1]]
    assert next_sentence_categories([rollout], [[2, 3]], [8, 9]) == [[8, 9]]


def planted() -> tuple[torch.Tensor, list[int]]:
    """States around four centres that the taxonomy does not know, with their categories."""
    centres = random(4, 32, seed=5) * 3
    categories = [number % 4 for number in range(80)]
    return centres[categories] + 0.3 * random(80, 32, seed=6), categories


def own_site() -> GateSite:
    taxonomy = make_taxonomy()
    return find_site(taxonomy, taxonomy.model, taxonomy.layer, torch.zeros(0, 32))


def test_where_another_model_read_the_sentences_a_gate_reads_the_thinking_model() -> None:
    states, next_categories = planted()
    found = labelled(states, next_categories)
    site = find_site(make_taxonomy(), "thinking", 7, states)
    assert (site.model, site.layer, site.size) == ("thinking", 7, 4)
    torch.testing.assert_close(site.mean, states.mean(0))
    probe = make_gate("probe", make_taxonomy(), site, found, 0)
    assert (probe.model, probe.layer) == ("thinking", 7)
    assert probe.categorise(states).tolist() == next_categories
    with pytest.raises(SteeringError, match="taxonomy reads random, .* --elicit.gate probe"):
        make_gate("taxonomy", make_taxonomy(), site, found, 0)


def test_a_probe_learns_the_next_category_and_the_taxonomy_does_not_know_it() -> None:
    states, next_categories = planted()
    found = labelled(states, next_categories)
    agreements = {
        kind: gate_sentence_agreement(
            make_gate(kind, make_taxonomy(), own_site(), found, 0), found
        ).share
        for kind in ("taxonomy", "probe")
    }
    assert agreements["probe"] == 1.0
    assert agreements["taxonomy"] is not None
    assert agreements["taxonomy"] < 0.6


def test_clusters_find_the_planted_centres() -> None:
    states, truth = planted()
    gate = make_gate("clusters", make_taxonomy(), own_site(), labelled(states, truth), 0)
    named = gate.categorise(states).tolist()
    assert len(set(zip(named, truth, strict=True))) == 4
    centres = torch.nn.functional.normalize(states - gate.mean, dim=1)
    nearest = torch.cdist(centres, gate.weights).argmin(1).tolist()
    assert nearest == named


def test_a_probe_of_two_categories_names_both() -> None:
    states, next_categories = planted()
    two = [category % 2 for category in next_categories]
    gate = make_gate("probe", make_taxonomy(), own_site(), labelled(states, two), 0)
    assert gate.categorise(states).tolist() == two


def test_a_probe_without_anything_to_predict_is_refused() -> None:
    with pytest.raises(SteeringError, match="at least 2 categories; found 0"):
        make_gate("probe", make_taxonomy(), own_site(), labelled(random(4, 32), [-1] * 4), 0)


def test_agreement_by_hand() -> None:
    gate, states = random_gate(), random(4, 32)
    named = gate.categorise(states).tolist()
    next_categories = [named[0], (named[1] + 1) % 4, named[2], -1]
    found = gate_sentence_agreement(gate, labelled(states, next_categories))
    assert found == GateAgreement(2 / 3, 3)


def test_decisions_are_drawn_over_all_answers_and_keep_their_categories() -> None:
    states, first = random(60, 32), 0
    found, categories = [], []
    for count in (10, 0, 20, 30):
        found.append(decided(states[first : first + count]))
        categories.append(list(range(first, first + count)))
        first += count
    whole = LabelledDecisions.draw(found, categories, 60)
    assert torch.equal(whole.states, states)
    assert list(whole.next_categories) == list(range(60))
    drawn = LabelledDecisions.draw(found, categories, 25)
    assert len(drawn.next_categories) == 25
    assert torch.equal(drawn.states, states[list(drawn.next_categories)])
    assert {number // 10 for number in drawn.next_categories} == {0, 1, 2, 3, 4, 5}


def test_a_drawn_position_is_due_the_category_that_the_gate_names() -> None:
    gate, states, features = random_gate(), random(2, 32), random(4, 6, seed=1)
    one = replace(
        decided(states),
        ids=tuple(range(9)),
        prompt=3,
        positions=(4, 6),
        probe=ProbeRows((0, 2, 3, 4), features),
    )
    named = gate.categorise(states).tolist()
    data = ProbeData.of([one, decided(states)], gate)
    assert data.labels.tolist() == [-1, named[0], -1, named[1]]
    assert torch.equal(data.inputs, features)
    assert data.decisions == 2
    both = data + data
    assert both.labels.tolist() == 2 * data.labels.tolist()
    nothing = ProbeData.of([], gate)
    assert torch.equal((data + nothing).inputs, features)
    assert torch.equal((nothing + data).inputs, features)


def test_positions_are_drawn_with_equal_chances_and_no_more_than_wanted() -> None:
    assert ProbeDraw.of((1,), [0, 0], 10).steps == [[], []]
    assert ProbeDraw.of((1,), [3, 0, 2], 99).steps == [[0, 1, 2], [], [0, 1]]
    drawn = ProbeDraw.of((1,), [1000, 500, 0, 2500], 400).steps
    assert [len(steps) for steps in drawn] == [100, 50, 0, 250]
    assert all(list(steps) == sorted(set(steps)) for steps in drawn)
    assert max(drawn[3]) > 2000


def test_clusters_of_nothing_are_refused() -> None:
    nothing = labelled(torch.zeros(0, 32), [])
    with pytest.raises(SteeringError, match="no disagreement to cluster; collect more"):
        make_gate("clusters", make_taxonomy(), own_site(), nothing, 0)


def test_moments_and_readings_do_not_depend_on_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    data = ProbeData(100 + random(50, 6), torch.zeros(50, dtype=torch.long))
    probe = SelfGate(
        model="base",
        layers=(0,),
        mean=random(6, seed=2),
        scale=random(6, seed=3),
        hidden=random(8, 6, seed=4),
        hidden_bias=random(8, seed=5),
        outputs=random(3, 8, seed=6),
        outputs_bias=random(3, seed=8),
        threshold=0.0,
    )
    whole = data.read(probe)
    for rows in (7, ROWS_AT_A_TIME):
        monkeypatch.setattr("howwhen.probes.ROWS_AT_A_TIME", rows)
        mean, deviation = data.moments()
        torch.testing.assert_close(mean, data.inputs.mean(0))
        torch.testing.assert_close(deviation, data.inputs.std(0))
        torch.testing.assert_close(data.read(probe), whole)


SETTINGS = ElicitSettings(probe_steps=400, probe_hidden=32, seeds=(0,))


def answers(base: LanguageModel, start: int, count: int) -> ProbeData:
    """A decision of category 0 after token 9, of category 1 after token 11, and no other."""
    generator = torch.Generator().manual_seed(start)
    ids = torch.randint(8, 13, (count, 20), generator=generator)
    read = residuals(base.model, (0, 2), input_ids=ids)
    features = torch.cat([read[layer][:, 4:19] for layer in (0, 2)], dim=2)
    due = torch.full((13,), -1)
    due[9], due[11] = 0, 1
    return ProbeData(features.flatten(0, 1), due[ids[:, 4:19]].flatten())


def test_a_self_gate_learns_planted_decisions_and_refuses_answers_without_any(
    make_model: MakeModel,
) -> None:
    base = make_model()
    held_out = answers(base, 99, 10)
    probe, scores = train_self_gate(base.name, (0, 2), 2, answers(base, 0, 40), held_out, SETTINGS)
    assert scores.precision > 0.9
    assert scores.recall > 0.9
    assert scores.category_accuracy > 0.9
    assert probe.read(random(3, 64)).shape == (3, 3)
    silent = replace(held_out, labels=torch.full_like(held_out.labels, -1))
    for train, chosen, name in ((silent, held_out, "training"), (held_out, silent, "selection")):
        with pytest.raises(SteeringError, match=f"the {name} answers hold no decision"):
            train_self_gate(base.name, (0, 2), 2, train, chosen, SETTINGS)


def test_a_self_gate_learns_from_half_precision(make_model: MakeModel) -> None:
    base = make_model()
    whole, held_out = answers(base, 0, 40), answers(base, 99, 10)
    half = replace(whole, inputs=whole.inputs.to(torch.bfloat16))
    _, scores = train_self_gate(base.name, (0, 2), 2, half, held_out, SETTINGS)
    assert scores.precision > 0.9
    assert scores.recall > 0.9


def test_the_chosen_gate_is_kept_and_all_are_compared_on_what_is_held_out() -> None:
    states, categories = planted()
    train = labelled(states[:40], categories[:40])
    heldout = labelled(states[40:], categories[40:])
    gate, agreement = choose_gate("probe", make_taxonomy(), own_site(), train, heldout, 0)
    assert gate.kind == "probe"
    assert agreement["probe"] == GateAgreement(1.0, 40)
    assert list(agreement) == ["taxonomy", "probe", "clusters"]
    silent = labelled(states[:40], [-1] * 40)
    gate, agreement = choose_gate("clusters", make_taxonomy(), own_site(), silent, heldout, 0)
    assert gate.kind == "clusters"
    assert agreement["probe"].share is None
    assert "at least 2 categories; found 0" in (agreement["probe"].why or "")
    with pytest.raises(SteeringError, match="at least 2 categories; found 0"):
        choose_gate("probe", make_taxonomy(), own_site(), silent, heldout, 0)
