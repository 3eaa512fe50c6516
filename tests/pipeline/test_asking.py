"""How a run asks its models: template arguments, samplers, prompts that open the thinking."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import howwhen as hw
from howwhen import Pipeline, cli, open_run
from howwhen.errors import InputError, RedoError, SettingsError
from howwhen.lm.alignment import ModelPair
from howwhen.pipeline.reader import read_run
from howwhen.progress import Reporter
from howwhen.records import LADDER, Rollout
from howwhen.settings import PRESETS, make_settings

OTHER = (
    "{{ bos_token }}<user>{% if hurry %}How many? {% endif %}{{ messages[0]['content'] }}"
    "<assistant>"
)
"""Tally's template, with a question before the question if the argument `hurry` is set."""


def collect(root: Path, pair: hw.Pair, **settings: object) -> tuple[list[Rollout], list[str]]:
    """The rollouts of a small run's first step, and what it said."""
    told = StringIO()
    chosen = make_settings(PRESETS["smoke"], {"collect": {"limit": 20, **settings}})
    with open_run(root) as folder:
        Pipeline(pair, chosen, folder, Reporter(Console(file=told, width=1000))).do("collect")
    rollouts = read_run(root, pair).finished("collect").read_records("rollouts.jsonl", Rollout)
    return rollouts, told.getvalue().splitlines()


def test_template_arguments_are_part_of_what_a_run_is_made_with(tmp_path: Path) -> None:
    plain = hw.find_pair("tally-rl")
    hurried = plain.asked(thinking_template={"chat_template": OTHER, "hurry": True})
    slow = plain.asked(thinking_template={"chat_template": OTHER, "hurry": False})
    texts = {
        name: [rollout.text for rollout in collect(tmp_path / name, pair)[0]]
        for name, pair in (("plain", plain), ("slow", slow), ("hurried", hurried))
    }
    assert texts["slow"] == texts["plain"] != texts["hurried"]
    with pytest.raises(RedoError, match="the thinking model's template was .*now {}"):
        collect(tmp_path / "hurried", plain)
    again = hw.load(tmp_path / "hurried").pair
    assert again.thinking_template == hurried.thinking_template
    assert again.name == "tally-rl"


def test_flags_ask_a_pair_with_a_name_in_another_way(tmp_path: Path) -> None:
    file = tmp_path / "arguments.json"
    file.write_text(json.dumps({"chat_template": OTHER, "hurry": True}))
    asked = cli.PairOptions(
        thinking_template=f"@{file}", base_prompt="Q: {question}", think_tags=("[A]", "[B]")
    ).pair("tally-rl")
    assert asked.thinking_template == {"chat_template": OTHER, "hurry": True}
    assert (asked.base_prompt, asked.think_tags) == ("Q: {question}", ("[A]", "[B]"))
    assert asked.step_by_step_prompt is None
    with pytest.raises(InputError, match="only a chat template takes arguments"):
        cli.PairOptions(base_template='{"a": 1}', base_prompt="Q: {question}").pair("tally-rl")
    with pytest.raises(SettingsError, match="cannot read template arguments"):
        cli.PairOptions(base_template="{a: 1}").pair("tally-rl")


Changed = Callable[..., hw.Pair]


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> Changed:
    """A pair whose thinking model is made to be sampled from."""

    def make(**sampler: object) -> hw.Pair:
        pair = hw.find_pair("tally-rl")
        for model in (pair.thinking, pair.thinking_outline):
            for name, value in {"do_sample": True, **sampler}.items():
                setattr(model.model.generation_config, name, value)
        monkeypatch.setattr(type(pair), "release", lambda *_: None)  # the changes would be lost
        return pair

    return make


def test_a_model_made_to_be_sampled_from_is_sampled_if_that_is_asked(
    tmp_path: Path, sampled: Changed
) -> None:
    pair = sampled(temperature=2.0, top_p=0.9, top_k=0)
    greedy, said = collect(tmp_path / "greedy", pair)
    [warning] = [line for line in said if "WARNING" in line]
    assert "tally/rl is made to be sampled from (temperature 2, top_k 0, top_p 0.9)" in warning
    assert warning.endswith("type --collect.temperature model")
    drawn, said = collect(tmp_path / "drawn", pair, temperature="model")
    assert not any("WARNING" in line for line in said)
    assert [rollout.ids for rollout in drawn] != [rollout.ids for rollout in greedy]
    by_hand, _ = collect(tmp_path / "hand", pair, temperature=2.0)
    assert [rollout.ids for rollout in by_hand] != [rollout.ids for rollout in drawn]  # no top_p
    pair.thinking_outline.model.generation_config.top_p = 0.5
    with pytest.raises(RedoError, match=r"collect.sampler.top_p was 0.9, now 0.5"):
        collect(tmp_path / "drawn", pair, temperature="model")


def test_the_prompt_of_the_model_that_writes_says_where_an_answer_begins() -> None:
    opened = {"chat_template": "{{ messages[0]['content'] }}<assistant><think>\n"}
    pair = hw.find_pair("tally-rl").asked(thinking_template=opened)
    models = ModelPair(pair.base_outline, pair.thinking_outline)
    begins = {rung for rung in LADDER if models.starts_in_thinking(rung)}
    assert begins == {"thinking", "reverse-takeover"}
    both = pair.asked(base_template=opened)
    models = ModelPair(both.base_outline, both.thinking_outline)
    assert models.starts_in_thinking("hybrid")
    assert not models.starts_in_thinking("base-step-by-step")
