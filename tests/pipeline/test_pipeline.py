import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

from howwhen import Pipeline, Reporter, find_pair, make_settings, open_run
from howwhen.cli import app
from howwhen.elicit.report import ElicitReport
from howwhen.errors import SettingsError, SteeringError, StoreError
from howwhen.formats.saelens import read_saelens
from howwhen.hybrid.choice import Guardrail, Steer
from howwhen.hybrid.strength import fixed
from howwhen.pipeline.budgets import SHARES, budget_thresholds
from howwhen.pipeline.doctor import examine_run
from howwhen.pipeline.files import STEPS
from howwhen.pipeline.live import open_rungs
from howwhen.pipeline.plan import step_settings
from howwhen.pipeline.store import StepFolder
from howwhen.records import LADDER, OPTIONAL_RUNGS, Grade, HybridTrace, Measurement
from howwhen.serve.launch import make_service
from tests.discover.judges import items_of, judging, kind_of
from tests.killed_run import MOMENTS, SETTINGS
from tests.pipeline.conftest import run_until

SaveFolder = Callable[..., Path]
UNAVAILABLE = ("base-step-by-step", "bias-only")
"""Tally's base cannot be asked for steps, and `decision` has no bias vector."""


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_a_run_killed_in_every_step_ends_with_the_same_files(
    finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    codes, said = run_until(folder, *MOMENTS, "never")
    assert codes == [*[-signal.SIGKILL] * len(MOMENTS), 0]
    assert said.count("layer 1: 2 taxonomies trained") == 1  # kept, though layer 2 was killed
    whole, resumed = contents(finished), contents(folder)
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if whole[name] != resumed[name]] == []


@pytest.mark.slow
def test_ctrl_c_in_any_step_is_a_line_and_loses_no_whole_batch(
    finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "interrupted"
    codes, said = run_until(folder, *MOMENTS, "never", name="INT")
    assert codes == [*[130] * len(MOMENTS), 0]
    assert said.count("howwhen: interrupted; the same command resumes from here") == len(MOMENTS)
    assert "Traceback" not in said
    whole, resumed = contents(finished), contents(folder)
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if whole[name] != resumed[name]] == []


def test_a_step_made_from_other_steps_than_those_there_are_is_refused(
    finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    told = run / "2-discover" / "provenance.json"
    provenance = json.loads(told.read_text())
    told.write_text(json.dumps({**provenance, "key": "of another choice"}))
    with open_run(run) as opened:
        pipeline = Pipeline(find_pair("tally-rl"), make_settings(SETTINGS), opened, Reporter())
        with pytest.raises(StoreError, match=r"3-elicit was made from another discover step"):
            pipeline.do("measure")


def told_by_doctor(run: Path) -> dict[str, str]:
    return {one.what: one.found.partition(" (")[0] for one in examine_run(run)}


def test_the_doctor_finds_what_of_a_run_is_not_what_the_steps_wrote(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(finished)
    assert told_by_doctor(finished) == dict.fromkeys(STEPS, "whole")
    assert contents(finished) == before
    run = tmp_path / "a run"
    shutil.copytree(finished, run)
    with (run / "3-elicit" / "vectors.safetensors").open("ab") as file:
        file.write(b"x")
    (run / "5-measure" / "provenance.json").write_text("{}")
    (run / "6-present" / "provenance.json").unlink()
    with pytest.raises(SystemExit) as ended:
        app(["doctor", str(run)], result_action="return_value")
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert ended.value.code == 1
    assert shown.count("BROKEN: ") == 2
    assert "is damaged: expected the content with hash" in shown
    assert "does not say what was made from what" in shown
    assert shown.count("whole (") == 2
    assert "hybrid whole, but out of date" in shown
    assert "present waits for elicit" in shown


def test_a_run_that_is_not_done_or_out_of_date_is_not_broken(
    finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "a run"
    shutil.copytree(finished, run)
    (run / "2-discover" / "provenance.json").unlink()
    app(["doctor", str(run)], result_action="return_value")
    assert examine_run(run)[1].advice == f"howwhen discover PAIR --out '{run}'"
    late = "whole, but out of date: made from other steps than there are now"
    assert told_by_doctor(run) == {
        "collect": "whole", "discover": "not done yet", **dict.fromkeys(STEPS[2:], late),
    }  # fmt: skip


def test_the_measurement_has_every_rung_and_adds_up(finished: Path) -> None:
    measurement = json.loads((finished / "5-measure" / "measurement.json").read_text())
    assert measurement["n"] == 12
    without = {*UNAVAILABLE, *OPTIONAL_RUNGS}
    assert tuple(measurement["rungs"]) == tuple(r for r in LADDER if r not in without)
    for rung in measurement["rungs"].values():
        assert set(rung) >= {
            "accuracy", "accuracy_ci", "counts", "steered_fraction", "changed_fraction",
            "gap_recovered", "gap_recovered_ci",
        }  # fmt: skip
        assert sum(rung["counts"].values()) == 12
        assert set(rung["counts"]) == {grade.value for grade in Grade}


def test_the_scores_list_every_cell_and_choose_one(finished: Path) -> None:
    cells = json.loads((finished / "2-discover" / "scores.json").read_text())
    assert {(cell["layer"], cell["size"], cell["k"]) for cell in cells} == {
        (1, 4, 1), (1, 6, 1), (2, 4, 1), (2, 6, 1)
    }  # fmt: skip
    assert sum(cell["chosen"] for cell in cells) == 1
    assert all(
        0 <= cell["nmi_behaviour"] <= 1 and 0 < cell["purity_behaviour"] <= 1 for cell in cells
    )
    assert all(0 < cell["fvu"] < 1 for cell in cells)


def test_the_chosen_autoencoder_is_a_saelens_folder_too(finished: Path) -> None:
    step = finished / "2-discover"
    ours, theirs = StepFolder(step, "discover").read_taxonomy(), read_saelens(step / "saelens")
    assert (theirs.model, theirs.layer, theirs.titles) == (ours.model, ours.layer, ours.titles)
    assert torch.equal(theirs.mean, ours.mean)
    assert torch.equal(theirs.scorer.weights, ours.scorer.weights)


def test_counts_kept_and_dropped_add_up(finished: Path) -> None:
    counts = {
        step: json.loads((finished / f"{i}-{step}" / "provenance.json").read_text())["counts"]
        for i, step in enumerate(STEPS, start=1)
    }
    assert sum(counts["collect"]["problems"].values()) == 30
    assert counts["collect"]["rollouts"] == 18
    discovered = counts["discover"]
    kept, short = discovered["sentences_trained_on"], discovered["sentences_too_short"]
    assert kept + short == discovered["sentences"] == counts["collect"]["sentences"]
    assert sum(counts["elicit"]["decisions_per_category"]) == counts["elicit"]["decisions"]


def test_the_report_shows_the_ladder(finished: Path) -> None:
    report = (finished / "6-present" / "report.md").read_text()
    for rung in set(LADDER) - {*UNAVAILABLE, *OPTIONAL_RUNGS}:
        assert f"| {rung} |" in report
    assert "purity" in report
    page = (finished / "6-present" / "report.html").read_text()
    assert "The ladder of controls" in page
    counts = json.loads((finished / "6-present" / "provenance.json").read_text())["counts"]
    assert counts["problems_in_viewer"] == 12
    assert counts["page_bytes"] == len(page.encode())


def _pipeline(folder: Path, changes: dict[str, object], redo: bool = False) -> None:
    with open_run(folder) as run:
        settings = make_settings(SETTINGS, changes)
        Pipeline(find_pair("tally-rl"), settings, run, Reporter(), redo).run()


def test_all_rungs_are_added_to_a_finished_run(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(finished), str(folder)], check=True)
    before = contents(folder)
    _pipeline(folder, {"hybrid": {"rungs": ("all",)}})
    after = contents(folder)
    assert all(after[name] == before[name] for name in before if "traces/" in name)
    measurement = TypeAdapter(Measurement).validate_json(after["5-measure/measurement.json"])
    assert tuple(measurement.rungs) == tuple(rung for rung in LADDER if rung not in UNAVAILABLE)
    assert json.loads(after["4-hybrid/entropy_gate.json"])["threshold"] > 0
    rungs = json.loads(after["5-measure/measurement.json"])["rungs"]
    when, which, what = ({name: rung["bits"][n] for name, rung in rungs.items()} for n in range(3))
    for rung in ("base", "self-gate"):
        assert when[rung] == which[rung] == what[rung] == 0
    assert min(when["hybrid"], which["hybrid"], what["takeover"], what["thinking"]) > 0
    assert which["shared-vector"] == when["entropy-gate"] == what["hybrid"] == 0
    often = {name: rung["interventions_per_answer"] for name, rung in rungs.items()}
    assert 0 < often["early-only"] < often["hybrid"]
    for rung in ("random-positions", "random-positions-anywhere", "reverse-takeover"):
        assert often[rung] > 0
    fitted = {name: rung["fitted"] for name, rung in rungs.items()}
    parameters = json.loads(after["5-measure/measurement.json"])["base_parameters"]
    assert parameters > fitted["hybrid"] > fitted["shared-vector"] > fitted["base"] == 0
    assert "Left out" not in (folder / "6-present" / "report.md").read_text()


def test_budget_curves_are_added_to_a_finished_run(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(finished), str(folder)], check=True)
    before = contents(folder)
    _pipeline(folder, {"hybrid": {"budgets": True}})
    after = contents(folder)
    assert all(after[name] == before[name] for name in before if "traces/" in name)
    measurement = TypeAdapter(Measurement).validate_json(after["5-measure/measurement.json"])
    assert measurement.rungs.keys() == {*LADDER} - {*UNAVAILABLE, *OPTIONAL_RUNGS}
    curves = {
        rung: [point for point in measurement.budgets if point.rung == rung]
        for rung in ("hybrid", "self-gate", "takeover")
    }
    assert sum(map(len, curves.values())) == len(measurement.budgets)
    for rung, points in curves.items():
        assert [point.budget for point in points] == [*SHARES, 1.0]
        assert points[-1].threshold is None
        thresholds = [point.threshold for point in points[:-1] if point.threshold is not None]
        assert thresholds == sorted(thresholds, reverse=True)
        assert len(thresholds) == len(SHARES)
        full = measurement.rungs[rung]  # type: ignore[index]
        assert points[-1].steered_fraction == full.steered_fraction
        assert points[-1].gap_recovered == full.gap_recovered
        assert points[0].interventions_per_answer < points[-1].interventions_per_answer
    report = (folder / "6-present" / "report.md").read_text()
    assert "## Smaller budgets" in report
    assert "## Where the two models differ" in report
    with open_run(folder) as run:
        passes = run.step("hybrid").read_json("passes.json")
    assert len(passes) == len(set(passes))


def test_controls_of_every_sample_are_matched_to_the_same_sample(
    finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(finished), str(folder)], check=True)
    how = {"temperature": 1.0, "samples": 2, "rungs": ("early-only",), "budgets": True}
    _pipeline(folder, {"elicit": {"on_policy_rounds": 0}, "hybrid": how}, redo=True)
    step = StepFolder(folder / "4-hybrid", "hybrid")
    passes: list[str] = step.read_json("passes.json")
    assert len(passes) == len(set(passes))
    counts: list[list[int]] = []
    for sample in ("", "-sample1"):
        hybrid, early = (
            [
                one.decisions
                for one in step.read_records(f"traces/{name}-0{sample}.jsonl", HybridTrace)
            ]
            for name in ("hybrid", "early-only")
        )
        # It goes the hybrid's way up to its last intervention.
        assert early == [-(-count // 2) for count in hybrid]
        counts.append(hybrid)
    assert counts[0] != counts[1]
    measurement = TypeAdapter(Measurement).validate_json(
        (folder / "5-measure" / "measurement.json").read_bytes()
    )
    assert {rung.samples for rung in measurement.rungs.values()} == {2}
    budgets = [name for name in passes if "-budget" in name]
    assert len(budgets) == 2 * 3 * len(SHARES)


def test_the_thinking_model_can_be_sampled_in_its_own_way(finished: Path, tmp_path: Path) -> None:
    """As in the paper's second version: it is sampled three times, all others are greedy."""
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(finished), str(folder)], check=True)
    own = {"thinking_temperature": 1.0, "thinking_top_p": 0.9, "thinking_samples": 3}
    _pipeline(folder, {"hybrid": {"rungs": ("takeover",), **own}}, redo=True)
    measurement = TypeAdapter(Measurement).validate_json(
        (folder / "5-measure" / "measurement.json").read_bytes()
    )
    samples = {name: rung.samples for name, rung in measurement.rungs.items()}
    assert samples == {"base": 1, "takeover": 1, "hybrid": 1, "thinking": 3}
    assert set(measurement.rungs["thinking"].pass_at_k) == {1, 2}
    step, before = (StepFolder(one / "4-hybrid", "hybrid") for one in (folder, finished))
    sampled = [
        [one.ids for one in step.read_records(f"traces/thinking-0{name}.jsonl", HybridTrace)]
        for name in ("", "-sample1", "-sample2")
    ]
    assert sampled[0] != sampled[1] != sampled[2] != sampled[0]
    greedy = "traces/takeover-0.jsonl"
    assert [one.ids for one in step.read_records(greedy, HybridTrace)] == [
        one.ids for one in before.read_records(greedy, HybridTrace)
    ]
    changed = make_settings({"elicit": {"on_policy_rounds": 1}, "hybrid": own})
    plain = make_settings({"elicit": {"on_policy_rounds": 1}})
    pair = find_pair("tally-rl")
    assert step_settings(pair, changed, "elicit") == step_settings(pair, plain, "elicit")


def test_seeds_can_be_chosen_by_what_the_hybrid_recovers(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(finished), str(folder)], check=True)
    how = {"choose_by": "gap", "on_policy_rounds": 0, "seeds": (0, 1, 2)}
    _pipeline(folder, {"elicit": how, "hybrid": {"rungs": ("takeover",)}}, redo=True)
    step = StepFolder(folder / "3-elicit", "elicit")
    found = step.read_object("selection.json")
    assert list(found) == ["base", "thinking", "0", "1", "2"]
    report = step.read_record("training.json", ElicitReport)
    summary, shared = report.vectors, report.shared
    assert summary is not None
    assert shared is not None
    gap = abs(found["thinking"] - found["base"]) or 1.0
    assert summary.gaps == pytest.approx([(found[n] - found["base"]) / gap for n in "012"])
    best = max(summary.gaps)
    tied = [one for one, own in zip(summary.seeds, summary.gaps, strict=True) if own == best]
    assert summary.chosen_seed == min(tied, key=lambda one: one.selection_loss).seed
    kept = step.read_vectors("vectors.safetensors")
    part = step.read_vectors(f"parts/vectors-{summary.chosen_seed}.safetensors")
    assert torch.equal(kept.vectors, part.vectors)
    assert shared.gaps == ()
    text = (folder / "6-present" / "report.md").read_text()
    assert f"kept seed {summary.chosen_seed}, by the gap that its hybrid recovers on" in text
    pair = find_pair("tally-rl")
    longer = {"max_new_tokens": 99}
    keys = [
        step_settings(
            pair, make_settings({"elicit": {"choose_by": by}, "hybrid": hybrid}), "elicit"
        )
        for by in ("loss", "gap")
        for hybrid in ({}, longer)
    ]
    assert keys[0] == keys[1]
    assert keys[2] != keys[3]


def test_thresholds_hold_the_share_that_they_are_made_for(finished: Path) -> None:
    step = StepFolder(finished / "4-hybrid", "hybrid")
    for rung in ("hybrid", "takeover", "self-gate"):
        traces = step.read_records(f"traces/{rung}-0.jsonl", HybridTrace)
        tokens = [token for trace in traces for token in trace.tokens if token.is_decision]
        weights = [one.log_odds if rung == "self-gate" else one.divergence for one in tokens]
        found = budget_thresholds(traces)
        assert tuple(found) == SHARES
        for share, threshold in found.items():
            reached = sum(weight is not None and weight >= threshold for weight in weights)
            assert 0 < reached <= share * len(weights) + 1
    assert budget_thresholds([]) == {}


def test_a_changed_setting_redoes_exactly_what_depends_on_it(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(finished), str(folder)], check=True)
    before = contents(folder)
    _pipeline(folder, {"measure": {"confidence": 0.5}})
    said = capsys.readouterr().err
    assert said.count("already done") == 4
    assert "5/6 measure: settings or input changed" in said
    assert "6/6 present: settings or input changed" in said
    after = contents(folder)
    assert all(after[name] == before[name] for name in before if name[0] in "1234")
    assert after["5-measure/measurement.json"] != before["5-measure/measurement.json"]


@pytest.mark.slow
def test_another_model_reads_and_its_taxonomy_is_gated_by_what_the_pair_can_see(
    finished: Path, save_folder: SaveFolder, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(finished), str(folder)], check=True)
    reader = save_folder("reader", architecture="gpt2")
    changes: dict[str, object] = {"discover": {"reader": str(reader)}}
    with pytest.raises(SteeringError, match=r"the taxonomy reads .*reader.* --elicit\.gate probe"):
        _pipeline(folder, changes)
    assert contents(folder) == contents(finished)  # said before anything was redone
    once = {"gate": "probe", "seeds": (0,), "on_policy_rounds": 0}
    _pipeline(folder, {**changes, "elicit": once, "hybrid": {"rungs": ()}}, redo=True)
    taxonomy = StepFolder(folder / "2-discover", "discover").read_taxonomy()
    assert taxonomy.model == str(reader)
    training = json.loads((folder / "3-elicit" / "training.json").read_text())
    agreement = training["gate_sentence_agreement"]
    assert "the taxonomy reads" in agreement["taxonomy"]["why"]
    assert agreement["probe"]["share"] is not None
    hybrid = json.loads((folder / "4-hybrid" / "provenance.json").read_text())["counts"]
    assert hybrid["steered_fraction"] > 0
    assert list(hybrid["answers"]) == ["hybrid", "base", "thinking"]


def test_the_command_writes_the_taxonomys_page(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, config = tmp_path / "copy", tmp_path / "settings.yaml"
    subprocess.run(["cp", "-r", str(finished), str(folder)], check=True)
    config.write_text(json.dumps(make_settings(SETTINGS).model_dump(mode="json")))
    app(
        ["discover", "tally-rl", "--out", str(folder), "--config", str(config), "--report"],
        result_action="return_value",
    )
    page = folder / "2-discover" / "taxonomy.html"
    captured = capsys.readouterr()
    assert captured.out == f"Page: {page}\n"
    assert "already done" in captured.err
    text = page.read_text()
    summaries = (folder / "2-discover" / "categories.jsonl").read_text().splitlines()
    assert text.count('class="card"') == len(summaries)
    assert "Against the truth: operation" in text


@pytest.fixture
def judged_copy(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run, where a judge on this machine can be asked."""
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(finished), str(folder)], check=True)
    return folder


def reply_of(prompt: str) -> str:
    """A judge that says little, but as it was asked to."""
    if "title has at most six words" in prompt:
        return json.dumps({"title": f"kind {len(prompt)}", "description": "They are."})
    count = len(items_of(prompt))
    if kind_of(prompt) == "belong":
        return json.dumps({"belong": list(range(1, count + 1))})
    return json.dumps(dict.fromkeys(map(str, range(1, count + 1)), 5))


def _discover_with_judge(folder: Path, url: str) -> None:
    judge = {"judge_url": url, "judge_model": "judge-1", "judge_cells": 2, "judge_repeats": 2}
    with open_run(folder) as run:
        settings = make_settings(SETTINGS, {"discover": judge})
        Pipeline(find_pair("tally-rl"), settings, run, Reporter()).do("discover")


def test_a_judge_names_and_scores_the_most_promising_taxonomies_and_is_paid_once(
    judged_copy: Path,
) -> None:
    folder = judged_copy
    with judging(reply_of) as endpoint:
        _discover_with_judge(folder, endpoint.url)
        asked = len(endpoint.bodies)
        (folder / "2-discover" / "provenance.json").unlink()  # as if killed before the end
        _discover_with_judge(folder, endpoint.url)
        assert len(endpoint.bodies) == asked > 10
    cells = json.loads((folder / "2-discover" / "scores.json").read_text())
    judged = [cell for cell in cells if "judged_score" in cell]
    best = sorted(cells, key=lambda cell: -cell["score"])[:2]
    assert sorted(judged, key=lambda cell: -cell["score"]) == best
    assert sum(cell["chosen"] for cell in judged) == 1
    assert all(cell["judged_completeness"] == 0.5 for cell in judged)
    names = (folder / "2-discover" / "categories.jsonl").read_text().splitlines()
    named = {json.loads(line)["named_by"] for line in names if json.loads(line)["sentences"]}
    assert named == {"judge-1"}
    assert "Scores of the judge" in (folder / "2-discover" / "taxonomy.html").read_text()


def test_a_judge_without_a_usable_word_is_warned_of_and_leaves_the_offline_names(
    judged_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = judged_copy
    with judging(lambda _: "I would rather not.") as endpoint:
        _discover_with_judge(folder, endpoint.url)
    assert "replies of judge-1 were unusable" in capsys.readouterr().err
    counts = json.loads((folder / "2-discover" / "provenance.json").read_text())["counts"]
    assert counts["unparsable_scores"] > 0
    assert len(counts["named_without_judge"]) >= 2
    names = (folder / "2-discover" / "categories.jsonl").read_text().splitlines()
    assert {json.loads(line)["named_by"] for line in names} == {"words"}


def test_another_grid_reads_nothing_again(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(finished), str(folder)], check=True)
    shard = folder / "2-discover" / "activations" / "00000.safetensors"
    written = shard.stat().st_mtime_ns
    for change, is_kept in (({"sizes": (4, 5)}, True), ({"layers": (0, 2)}, False)):
        settings = make_settings(SETTINGS, {"discover": change})
        with open_run(folder) as run:
            Pipeline(find_pair("tally-rl"), settings, run, Reporter(), redo=True).do("discover")
        assert (shard.stat().st_mtime_ns == written) is is_kept


def test_another_choice_trains_and_reads_nothing_again(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(finished), str(folder)], check=True)
    discover = folder / "2-discover"
    kept = [*(discover / "grid").iterdir(), *(discover / "activations").iterdir()]
    written = [path.stat().st_mtime_ns for path in kept]
    chosen = {"chosen_layer": 2, "chosen_size": 6}
    with open_run(folder) as run:
        settings = make_settings(SETTINGS, {"discover": chosen})
        Pipeline(find_pair("tally-rl"), settings, run, Reporter()).do("discover")
    assert [path.stat().st_mtime_ns for path in kept] == written
    taxonomy = StepFolder(discover, "discover").read_taxonomy()
    assert (taxonomy.layer, taxonomy.size) == (2, 6)
    assert "sae at layer 2, size 6" in (discover / "taxonomy.html").read_text()


def test_a_choice_of_clusters_leaves_no_folder_of_the_autoencoder(
    finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(finished), str(folder)], check=True)
    for method, is_there in (("sae", True), ("kmeans", False)):
        change = {"methods": ("sae", "kmeans"), "chosen_method": method}
        settings = make_settings(SETTINGS, {"discover": change})
        with open_run(folder) as run:
            Pipeline(find_pair("tally-rl"), settings, run, Reporter(), redo=True).do("discover")
        assert (folder / "2-discover" / "saelens").exists() is is_there


def test_a_damaged_step_stops_the_later_ones(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(finished), str(folder)], check=True)
    vectors = folder / "3-elicit" / "vectors.safetensors"
    vectors.write_bytes(vectors.read_bytes()[:-100])
    with pytest.raises(StoreError, match=r"vectors\.safetensors is damaged"):
        _pipeline(folder, {})


def test_a_step_without_its_input_names_the_command(tmp_path: Path) -> None:
    with open_run(tmp_path / "new") as run:
        pipeline = Pipeline(find_pair("tally-rl"), make_settings(SETTINGS), run, Reporter())
        with pytest.raises(StoreError, match="howwhen collect PAIR --out"):
            pipeline.do("discover")
    assert not (tmp_path / "new" / "2-discover").exists()


def test_the_elicit_step_accounts_for_everything(finished: Path) -> None:
    training = json.loads((finished / "3-elicit" / "training.json").read_text())
    counts = json.loads((finished / "3-elicit" / "provenance.json").read_text())["counts"]
    assert set(training["gate_sentence_agreement"]) == {"taxonomy", "probe", "clusters"}
    for name in ("vectors", "shared"):
        for seed in training[name]["seeds"]:
            assert len(seed["validation_losses"]) == len(seed["losses"]) + 1 == 3
    assert training["self_gate"]["positions"] > training["self_gate"]["decisions"] > 0
    trained = counts["positions_trained_per_category"]
    silent = [category for category, count in enumerate(trained) if not count]
    assert counts["categories_without_training"] == silent
    hybrid = json.loads((finished / "4-hybrid" / "provenance.json").read_text())["counts"]
    traces = (finished / "4-hybrid" / "traces" / "hybrid-0.jsonl").read_text().splitlines()
    tokens = [token for line in traces for token in json.loads(line)["tokens"]]
    assert hybrid["decisions_without_vector"] == sum(token[3] in silent for token in tokens)
    blocks = find_pair("tally-rl").base.layer_count
    layer = json.loads((finished / "3-elicit" / "settings.json").read_text())["layer"]
    work = hybrid["work"]
    assert work["base"] == work["thinking"] > 1_000_000
    assert work["steered"] == pytest.approx((blocks - 1 - layer) / blocks)
    assert (finished / "3-elicit" / "on-policy-0.jsonl").read_text().count("\n") > 5


@pytest.mark.slow
def test_the_span_method_runs_the_whole_ladder_with_its_bias(
    finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "span"
    subprocess.run(["cp", "-r", str(finished), str(folder)], check=True)
    how = {"method": "span", "on_policy_rounds": 0, "sentences_per_category": 8, "seeds": (0,)}
    hybrid = {"strengths": (0.5, 1.0), "windows": (1, 4), "max_new_tokens": 40}
    _pipeline(folder, {"elicit": how, "hybrid": hybrid}, redo=True)
    measurement = json.loads((folder / "5-measure" / "measurement.json").read_text())
    missing = {"base-step-by-step", *OPTIONAL_RUNGS}
    assert tuple(measurement["rungs"]) == tuple(rung for rung in LADDER if rung not in missing)
    lines = (folder / "4-hybrid" / "traces" / "hybrid-0.jsonl").read_bytes().splitlines()
    traces = [TypeAdapter(HybridTrace).validate_json(line) for line in lines]
    steered = [token for trace in traces for token in trace.tokens if token.is_decision]
    assert steered
    assert all(len(token.candidates) == 4 for token in steered)
    assert {token.window for token in steered} <= {1, 4}


def test_a_chat_answers_from_a_finished_run_without_touching_it(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(finished)
    question = "Ann has 7 pens. Ann doubles them. How many pens does Ann have?"
    for rung in ("hybrid", "self-gate", "takeover"):
        app(
            ["chat", question, "--out", str(finished), "--rung", rung, "--why"],
            result_action="return_value",
        )
        said = capsys.readouterr().out
        assert "tokens, " in said
        assert "log p" in said
    with pytest.raises(SettingsError, match="has no rung 'bias-only'; expected one of base, "):
        app(["chat", question, "--out", str(finished), "--rung", "bias-only"],
            result_action="return_value", exit_on_error=False, print_error=False)  # fmt: skip
    with pytest.raises(SettingsError, match="takeover does not steer"):
        app(["chat", question, "--out", str(finished), "--rung", "takeover", "--strength", "2"],
            result_action="return_value", exit_on_error=False, print_error=False)  # fmt: skip
    assert contents(finished) == before


def test_a_run_is_served_with_its_rungs_and_titles(finished: Path) -> None:
    ready = open_rungs("tally-rl", finished)
    service = make_service(ready)
    assert service.name == "tally-rl"
    assert {"base", "hybrid", "self-gate", "thinking"} <= set(service.rungs)
    assert service.titles == ready.gate.titles
    assert "?" in service.example
    assert service.engine.find_rung("hybrid", 2.0).name == "hybrid"
    with pytest.raises(SettingsError, match="has no rung 'best'"):
        service.engine.find_rung("best", None)


def test_what_is_served_steers_as_the_run_did(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    told = run / "4-hybrid" / "settings.json"
    chosen = {"strength": "fixed", "strengths": [0.3], "guardrail_top_k": 2, "rungs": ["takeover"]}
    told.write_text(json.dumps({**json.loads(told.read_text()), **chosen}))
    ready = open_rungs("tally-rl", run)
    assert set(ready.rungs) == set(open_rungs("tally-rl", finished).rungs)
    hybrid, guardrail = ready.rungs["hybrid"], ready.rungs["guardrail-only"]
    assert isinstance(hybrid, Steer)
    assert hybrid.strength == fixed(0.3)
    assert isinstance(guardrail, Guardrail)
    assert guardrail.top_k == 2
