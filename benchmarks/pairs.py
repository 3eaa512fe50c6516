"""Two pairs to time on: tally with a long context, and random weights of SmolLM2-135M's shape."""

from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from howwhen.lm.alignment import ModelPair
from howwhen.lm.models import LanguageModel, wrap_model
from howwhen.probes import Gate, SelfGate
from howwhen.records import Problem
from howwhen.vectors import Network, VectorSet
from howwhen.zoo.pairs import find_pair
from howwhen.zoo.tally import tally_problems

VOCABULARY = 49_152
NOISE = 0.1
"""Between the two models of random weights, in standard deviations of each weight."""


@dataclass(frozen=True)
class Bench:
    """A pair with problems, a gate and faint vectors: steering costs what it costs anywhere."""

    name: str
    models: ModelPair
    problems: list[Problem]
    gate: Gate
    vectors: VectorSet

    def probe(self, threshold: float = 0.0) -> SelfGate:
        """A random self-gate over two layers."""
        base = self.models.base
        layers = (self.vectors.layer, base.layer_count - 1)
        width = 2 * base.model.config.hidden_size
        return SelfGate(
            base.name,
            layers,
            torch.zeros(width),
            torch.ones(width),
            _noise(128, width) / width**0.5,
            torch.zeros(128),
            _noise(1 + self.vectors.size, 128) / 128**0.5,
            torch.zeros(1 + self.vectors.size),
            threshold,
        )


def tally() -> Bench:
    """tally-rl, allowed answers of any length."""
    pair = find_pair("tally-rl")
    models = ModelPair(_without_ends(pair.base), _without_ends(pair.thinking))
    return bench_of("tally", models, tally_problems(64, seed=1))


def smol_shape(dtype: torch.dtype = torch.float32) -> Bench:
    """Random weights of SmolLM2-135M's shape, twice the same model with a little noise between."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=0,
    )
    pair = random_pair("shape", config)
    text = " ".join(f"w{number}" for number in range(100, 180))
    problems = [Problem(str(n), f"w{n + 2} {text}", "0") for n in range(64)]
    for model in (pair.base, pair.thinking):
        model.model.to(dtype)
    name = "135M shape" if dtype == torch.float32 else f"135M shape, {str(dtype)[6:]}"
    return bench_of(name, pair, problems)


def random_pair(name: str, config: PretrainedConfig) -> ModelPair:
    """Two models of random weights, the second the first with a little noise.

    They are made on torch's default device, in its default type of number.
    """
    words = {f"w{number}": number for number in range(config.vocab_size)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w1"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="w1", eos_token="w0")
    base, thinking = (AutoModelForCausalLM.from_config(config) for _ in range(2))
    base.requires_grad_(False)
    thinking.requires_grad_(False)
    for ours, theirs in zip(base.parameters(), thinking.parameters(), strict=True):
        theirs.copy_(ours + NOISE * ours.std() * torch.randn_like(ours))
    return ModelPair(
        wrap_model(base, tokenizer, prompt="{question}", name=f"{name}-base"),
        wrap_model(thinking, tokenizer, prompt="{question}", name=f"{name}-thinking"),
    )


def bench_of(name: str, pair: ModelPair, problems: list[Problem]) -> Bench:
    """A pair with a random gate and random vectors."""
    config = pair.base.model.config
    width, layer = config.hidden_size, config.num_hidden_layers // 2
    titles = tuple("abcd")
    gate = Gate(
        "taxonomy", "any", layer, torch.zeros(width), _noise(4, width), torch.zeros(4), titles
    )
    hidden = _noise(64, width) / width**0.5
    network = Network(hidden, torch.zeros(64), _noise(4, 64) / 8, torch.zeros(4))
    vectors = VectorSet(pair.base.name, layer, 1e-3 * _noise(4, width), modulation=network)
    return Bench(name, pair, problems, gate, vectors)


def _without_ends(model: LanguageModel) -> LanguageModel:
    """The model with padding as its end token, which it never writes, and room for any answer."""
    model.model.config.max_position_embeddings = 1024
    model.model.generation_config.eos_token_id = None
    tokenizer = deepcopy(model.tokenizer)
    tokenizer.eos_token = tokenizer.pad_token
    return replace(model, tokenizer=tokenizer)


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))
