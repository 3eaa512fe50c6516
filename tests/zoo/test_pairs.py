from pathlib import Path

import pytest

from howwhen.errors import InputError, ModelError, PairError
from howwhen.lm.alignment import check_pair
from howwhen.lm.models import load_model
from howwhen.lm.prompts import check_prompt
from howwhen.settings import PRESETS, make_settings
from howwhen.zoo.pairs import find_pair, list_pairs, own_pair
from tests.conftest import MakeModel

PUBLISHED = [pair for pair in list_pairs() if "published" in pair.summary]


def test_the_nine_published_pairs_carry_their_layers_and_sizes() -> None:
    assert len(PUBLISHED) == 9
    pair = find_pair("r1-math1.5b")
    assert pair.base_source == "Qwen/Qwen2.5-Math-1.5B"
    assert (pair.steer_layer, pair.taxonomy_layers, pair.taxonomy_sizes) == (10, (4,), (15,))


def test_a_pairs_own_sizes_beat_the_preset_and_yield_to_flags() -> None:
    pair = find_pair("orz-7b")
    assert make_settings(PRESETS["small"], pair.overrides).discover.sizes == (10,)
    flags = {"discover": {"sizes": (7,)}}
    assert make_settings(PRESETS["small"], pair.overrides, flags).discover.sizes == (7,)
    assert not find_pair("tally-rl").overrides


def test_tally_loads_and_passes_its_own_checks() -> None:
    pair = find_pair("tally-rl")
    pair.check()
    assert pair.base.layer_count == 4
    assert pair.base.fingerprint != pair.thinking.fingerprint
    assert pair.chosen_steer_layer == 2


def test_a_pair_of_ones_own_reads_spread_layers_and_steers_the_middle(
    make_model: MakeModel, tmp_path: Path
) -> None:
    made = make_model()
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    pair = own_pair(str(tmp_path), str(tmp_path), "chat", "chat")
    assert pair.chosen_taxonomy_layers == (0, 1, 2)
    assert pair.chosen_steer_layer == 1
    with pytest.raises(PairError, match="there is no pair 'own'"):
        find_pair("own")


def test_vocabularies_may_differ_in_special_tokens_only(make_model: MakeModel) -> None:
    base, thinking = make_model(seed=0), make_model(seed=1)
    check_pair(base, thinking)
    thinking.tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
    check_pair(base, thinking)


@pytest.mark.parametrize("prompt", ["no field", "{other}", "{", "{}"])
def test_prompts_that_never_show_the_question_are_refused(prompt: str) -> None:
    with pytest.raises(InputError, match="prompt"):
        check_prompt(prompt)


def test_a_chat_prompt_needs_a_template(make_model: MakeModel) -> None:
    model = make_model()
    model.tokenizer.chat_template = None
    with pytest.raises(ModelError, match="has no chat template"):
        model.prompt_ids("Q?")


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot load a causal language model"):
        load_model(tmp_path)


def test_a_pair_is_called_by_its_name_and_one_of_ones_own_by_its_thinking_model() -> None:
    assert find_pair("tally-rl").title == "tally-rl"
    assert own_pair("models/plain", "maker/Thinker-1B", "chat", "chat").title == "Thinker-1B"


def test_every_pair_has_a_question_for_an_example() -> None:
    assert find_pair("tally-rl").example.endswith("?")
    assert own_pair("models/plain", "maker/Thinker-1B", "chat", "chat").example == "What is 2 + 2?"
