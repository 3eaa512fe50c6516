from pathlib import Path
from types import MappingProxyType

import pytest

from howwhen.errors import SettingsError
from howwhen.settings import PRESETS, RunSettings, make_settings, merge, read_config


def test_later_layers_win_and_leave_the_rest() -> None:
    made = make_settings(
        PRESETS["small"],
        {"collect": {"limit": 7}},
        {"collect": {"seed": 3}, "elicit": {"layer": 1}},
    )
    assert (made.collect.limit, made.collect.seed, made.elicit.layer) == (7, 3, 1)
    assert made.discover.sizes == PRESETS["small"]["discover"]["sizes"]


def test_merging_does_not_change_its_inputs() -> None:
    lower = {"a": {"b": 1}}
    assert merge(lower, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}
    assert lower == {"a": {"b": 1}}


WRONG = [
    ({"colect": {}}, "unknown setting 'colect'; expected one of: collect, discover"),
    ({"collect": {"limits": 3}}, r"unknown setting 'collect\.limits'; expected one of: problems"),
    ({"collect": {"limit": 0}}, r"collect\.limit: .*greater than 0.*found 0"),
    ({"collect": {"limit": "many"}}, r"collect\.limit.*found 'many'"),
    ({"collect": {"test_fraction": 0.9, "selection_fraction": 0.1}}, "leave no problems to train"),
    ({"elicit": {"method": "span", "gate": "clusters"}}, "gate clusters groups disagreements"),
    ({"elicit": {"method": "span", "on_policy_rounds": 1}}, "span has neither on_policy_rounds"),
    ({"discover": {"judge_url": "http://a/v1"}}, "judge_url without judge_model"),
    ({"measure": {"judge_url": "http://a/v1"}}, "judge_url without judge_model"),
    ({"measure": {"judge_repeats": 2}}, "judge_repeats 2 may end in a tie"),
    (
        {"discover": {"judge_url": "http://a/v1", "judge_model": "m", "judge_local": "n"}},
        "both judge_url and judge_local name a judge",
    ),
    ({"discover": {"judge_prices": (1.0, -1.0)}}, r"judge_prices\.1: .*greater than or equal"),
    ({"measure": {"judge_model": "m"}}, "judge_model without judge_url"),
    ({"discover": {"judge_prices": (1.0, 1.0)}}, "judge_prices without judge_url"),
    ({"discover": {"judge_local": "n", "judge_model": "m"}}, "judge_model without judge_url"),
    ({"discover": {"seeds": (0, 0)}}, r"seeds \[0, 0\]; expected one or more, each once"),
    ({"discover": {"layers": ()}}, r"layers \[\]; expected one or more"),
    ({"discover": {"sizes": (5, 10, 5)}}, r"sizes \[5, 10, 5\]; expected"),
    ({"discover": {"chosen_size": 7}}, r"chosen_size 7 is not in the grid; expected one of \[5, 1"),
    ({"discover": {"chosen_method": "kmeans"}}, "chosen_method kmeans is not in the grid"),
    ({"models": {"reader_device": "cpu"}}, "reader_device is set, but no model is named by disc"),
    ({"models": {"judge_revision": "x"}}, "judge_revision is set, but .* discover.judge_local"),
    ({"models": {"base_device": "mps"}}, "expected cpu, cuda or cuda:N"),
    ({"hybrid": {"cache_policy": "none"}}, "'transient' or 'persistent'"),
]


@pytest.mark.parametrize(("layer", "message"), WRONG)
def test_wrong_settings_are_refused(layer: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make_settings(layer)


@pytest.mark.parametrize("text", ["none", "None", ""])
def test_an_endpoint_may_want_no_key(text: str) -> None:
    assert (
        make_settings({"discover": {"judge_key_variable": text}}).discover.judge_key_variable
        is None
    )


def test_every_field_is_documented() -> None:
    for section in RunSettings.model_fields:
        for name, field in type(getattr(RunSettings(), section)).model_fields.items():
            assert field.description, f"{section}.{name}"


def test_every_preset_is_valid() -> None:
    for preset in PRESETS.values():
        made = make_settings(preset)
        for section, values in preset.items():
            for name, value in values.items():
                assert getattr(getattr(made, section), name) == value


@pytest.mark.parametrize("content", ["- 1\n", "a: [", ""])
def test_files_that_are_no_yaml_mapping_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(SettingsError, match=r"c\.yaml"):
        read_config(path)


def test_an_empty_section_overrides_nothing_and_one_of_another_kind_is_refused() -> None:
    settings = make_settings(PRESETS["smoke"], {"collect": None, "hybrid": None, "present": None})
    assert settings == make_settings(PRESETS["smoke"])
    for content in (5, [1], "x"):
        with pytest.raises(SettingsError, match="setting collect: found .* expected settings"):
            make_settings(PRESETS["smoke"], {"collect": content}, {"collect": {}})
    frozen = MappingProxyType({"temperature": 0.3})
    assert make_settings(PRESETS["smoke"], {"hybrid": frozen}).hybrid.max_new_tokens == 160


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("elicit", "seeds", []),
        ("elicit", "seeds", [-1]),
        ("measure", "seed", -1),
        ("hybrid", "strengths", []),
        ("hybrid", "windows", []),
        ("hybrid", "windows", [0]),
        ("hybrid", "windows", [-3]),
        ("hybrid", "windows", ["text-0"]),
        ("hybrid", "windows", ["all"]),
        ("hybrid", "temperature", float("inf")),
        ("elicit", "weight_decay", float("nan")),
    ],
)
def test_what_no_step_could_use_is_refused(section: str, name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=f"{section}.{name}"):
        make_settings({section: {name: value}})


def test_more_samples_need_a_temperature() -> None:
    for name in ("samples", "thinking_samples"):
        with pytest.raises(SettingsError, match=f"{name} 2 with .*temperature 0 would all be"):
            make_settings({"hybrid": {name: 2}})
    chosen = make_settings({"hybrid": {"thinking_samples": 2, "thinking_temperature": 0.6}}).hybrid
    assert (chosen.samples_of("thinking"), chosen.samples_of("base")) == (2, 1)
    assert (chosen.of_rung("thinking").temperature, chosen.of_rung("base").temperature) == (0.6, 0)
    own = make_settings({"hybrid": {"temperature": 0.6, "samples": 3, "thinking_temperature": 0}})
    assert own.hybrid.samples_of("thinking") == 1
    with pytest.raises(SettingsError, match="expected thinking_temperature above 0"):
        make_settings({"hybrid": {"thinking_top_p": 0.9}})
    with pytest.raises(SettingsError, match="expected part answer with them"):
        make_settings({"elicit": {"part": "thinking", "on_policy_rounds": 1}})
