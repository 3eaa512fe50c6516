import torch

from howwhen.hybrid.choice import Base, Takeover, Thinking
from howwhen.hybrid.decoder import decode
from howwhen.lm.alignment import ModelPair
from howwhen.lm.models import LanguageModel
from howwhen.settings import HybridSettings
from howwhen.zoo.tally import tally_problems
from tests.conftest import MakeModel

PROBLEMS = tally_problems(4, seed=3)
SETTINGS = HybridSettings(max_new_tokens=12)


def pair_with_think_token(make_model: MakeModel) -> tuple[LanguageModel, LanguageModel, int]:
    """Both models embed one more token, which only the thinking model knows, and loves."""
    base, thinking = make_model(seed=0), make_model(seed=1)
    thinking.tokenizer.add_special_tokens({"additional_special_tokens": ["</think>"]})
    number = int(thinking.tokenizer.convert_tokens_to_ids("</think>"))
    for model in (base, thinking):
        model.model.resize_token_embeddings(number + 1, mean_resizing=False)
    with torch.no_grad():
        thinking.model.get_output_embeddings().weight[number] *= 100
    return base, thinking, number


def test_a_token_only_one_tokenizer_knows_is_banned_unless_allowed(make_model: MakeModel) -> None:
    base, thinking, number = pair_with_think_token(make_model)
    banned, allowed = ModelPair(base, thinking), ModelPair(base, thinking, "allow")
    assert banned.alignment.banned.tolist() == [number]
    assert banned.alignment.examples == ("</think>",)
    assert not len(allowed.alignment.banned)
    said = {
        name: {t.id for trace in decode(pair, PROBLEMS, choice, SETTINGS) for t in trace.tokens}
        for name, pair, choice in (
            ("banned", banned, Takeover()),
            ("allowed", allowed, Takeover()),
            ("thinking", banned, Thinking()),
            ("base", banned, Base()),
        )
    }
    assert number not in said["banned"]
    assert number in said["allowed"]
    assert number in said["thinking"]  # the thinking model's own answers are its own
    assert number not in said["base"]


def test_the_thinking_rung_may_write_what_the_base_cannot_read(make_model: MakeModel) -> None:
    base, thinking, number = pair_with_think_token(make_model)
    base.model.resize_token_embeddings(number, mean_resizing=False)
    pair = ModelPair(base, thinking)
    assert pair.alignment.shared == number
    traces = decode(pair, PROBLEMS, Thinking(), SETTINGS)
    tokens = [token for trace in traces for token in trace.tokens]
    assert number in {token.id for token in tokens}
    assert {t.base_log_prob for t in tokens if t.id == number} == {None}
    for trace in traces:  # the base's tokenizer has no text for it
        own = [token.id for token in trace.tokens if token.id not in pair.end_ids]
        assert trace.text == thinking.tokenizer.decode(own)
    assert any("</think>" in trace.text for trace in traces)
    for trace in decode(pair, PROBLEMS, Takeover(), SETTINGS):
        assert max(token.id for token in trace.tokens) < number


def test_end_tokens_of_both_models_end_an_answer_and_are_never_banned(
    make_model: MakeModel,
) -> None:
    base, thinking, number = pair_with_think_token(make_model)
    thinking.model.generation_config.eos_token_id = [2, number]
    pair = ModelPair(base, thinking)
    assert pair.end_ids == {2, number}
    assert not len(pair.alignment.banned)
    for trace in decode(pair, PROBLEMS, Takeover(), SETTINGS):
        assert all(token.id not in pair.end_ids for token in trace.tokens[:-1])
