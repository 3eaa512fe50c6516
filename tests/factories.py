"""Random gates, vectors and pairs of width 32 that several tests use."""

from dataclasses import replace

import torch

from howwhen.lm.alignment import ModelPair
from howwhen.probes import Gate, Sae, SelfGate, Taxonomy
from howwhen.vectors import LinearCoefficient, LowRank, Network, VectorSet
from tests.conftest import MakeModel


def random(*shape: int, seed: int = 7) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_gate(size: int = 4, layer: int = 1) -> Gate:
    titles = tuple(f"c{i}" for i in range(size))
    weights = random(size, 32, seed=1)
    return Gate("taxonomy", "random", layer, random(32) * 0.1, weights, torch.zeros(size), titles)


def make_vectors(
    size: int = 4, scale: float = 3.0, layer: int = 1, model: str = "llama-0"
) -> VectorSet:
    network = Network(
        random(8, 32, seed=2) * 0.2,
        random(8, seed=4) * 0.2,
        random(size, 8, seed=3) * 0.2,
        torch.zeros(size),
    )
    return VectorSet(model, layer, random(size, 32, seed=8) * scale, modulation=network)


def make_forms() -> dict[str, VectorSet]:
    learned = make_vectors()
    static = replace(learned, modulation=None)
    gates = LinearCoefficient(random(4, 32, seed=4), torch.zeros(4))
    maps = LowRank(random(4, 2, 32, seed=5) * 0.3, random(4, 2, 32, seed=6))
    return {
        "network": learned,
        "linear": static,
        "bias": replace(static, bias=random(32, seed=9)),
        "gated": replace(static, modulation=gates),
        "low-rank": replace(static, modulation=maps, bias=random(32, seed=9)),
    }


def make_probe(threshold: float = 0.0) -> SelfGate:
    return SelfGate(
        model="llama-0",
        layers=(0, 2),
        mean=torch.zeros(64),
        scale=torch.ones(64),
        hidden=random(6, 64, seed=11),
        hidden_bias=torch.zeros(6),
        outputs=random(5, 6, seed=12),
        outputs_bias=torch.zeros(5),
        threshold=threshold,
    )


def make_models(make_model: MakeModel, architecture: str = "llama") -> ModelPair:
    return ModelPair(make_model(architecture, seed=0), make_model(architecture, seed=1))


def make_taxonomy(size: int = 4, layer: int = 1) -> Taxonomy:
    rows = torch.nn.functional.normalize(random(size, 32, seed=1), dim=1)
    sae = Sae(rows, random(size, seed=2) * 0.1, rows, random(32, seed=3) * 0.1, k=1)
    titles = tuple(f"c{i}" for i in range(size))
    return Taxonomy("random", layer, random(32, seed=4) * 0.1, sae, titles)
