import torch
from transformers import LlamaConfig, LlamaForCausalLM

from howwhen.collect.rollouts import collect_rollouts
from howwhen.elicit.decisions import find_decisions
from howwhen.hybrid.choice import Base, Guardrail, Steer, Takeover, Thinking
from howwhen.hybrid.decoder import decode
from howwhen.lm.alignment import ModelPair
from howwhen.lm.models import LanguageModel, wrap_model
from howwhen.probes import Gate
from howwhen.settings import CollectSettings, ElicitSettings, HybridSettings
from howwhen.zoo.tally import tally_problems
from howwhen.zoo.tally.tokenizer import build_tokenizer
from tests.conftest import MakeModel
from tests.factories import make_vectors, random

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


def differing(hidden: int, layers: int, padding: int, seed: int) -> LanguageModel:
    """A model of any size, whose vocabulary is padded with rows that it would love to write."""
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer) + padding, hidden_size=hidden, intermediate_size=2 * hidden,
        num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2, bos_token_id=1,
        eos_token_id=2, pad_token_id=0, max_position_embeddings=256,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)
        model.get_output_embeddings().weight[len(tokenizer) :] *= 100
    return wrap_model(model, tokenizer, name=f"{hidden} wide")


def test_models_of_other_sizes_and_paddings_are_a_pair_that_writes_no_padding() -> None:
    """As Qwen2.5 1.5B with 7B: other widths, other numbers of blocks, other rows."""
    base, thinking = differing(32, 3, 5, seed=0), differing(64, 4, 20, seed=1)
    pair, size = ModelPair(base, thinking), len(base.tokenizer)
    assert pair.alignment.shared == size + 5
    assert pair.alignment.banned.tolist() == list(range(size, size + 5))
    gate = Gate(
        "taxonomy", "random", 3, random(64) * 0.1, random(4, 64), torch.zeros(4), tuple("abcd")
    )
    vectors = make_vectors(model=base.name)
    rungs = (Base(), Thinking(), Takeover(), Guardrail(5), Steer(gate, vectors))
    written = {
        rung.name: [t.id for trace in decode(pair, PROBLEMS, rung, SETTINGS) for t in trace.tokens]
        for rung in rungs
    }
    assert all(max(ids) < size for ids in written.values())
    assert written["takeover"] == written["thinking"]
    assert len({tuple(ids) for ids in written.values()}) == len(rungs) - 1
    rollouts = collect_rollouts(thinking, PROBLEMS, CollectSettings(max_new_tokens=12))
    assert all(max(rollout.ids) < size for rollout in rollouts)
    questions = [problem.question for problem in PROBLEMS]
    found = find_decisions(pair, 3, rollouts, questions, ElicitSettings(), is_own=True)
    assert all(max(decisions.targets) < size for decisions in found)
    assert sum(len(decisions.positions) for decisions in found) > 0
    assert {decisions.states.shape[1] for decisions in found} == {64}
