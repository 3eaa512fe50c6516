"""Training of an autoencoder as the paper's code does it: from random directions, epoch by epoch.

Encoder uniform in +-1/sqrt(d) with biases of 0, decoder rows a copy at unit norm, decoder bias 0;
Adam at a constant rate; the fraction of variance unexplained of a batch as its loss; until the mean
loss of an epoch has not fallen for some epochs, and the best epoch is kept (first version,
section 3). `sae.train_grids` starts from clusters instead, and trains a whole grid at once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from howwhen.probes import Sae
from howwhen.settings import DiscoverSettings

RATE, LATENTS = 2e-4, 2**14
"""The rate of an autoencoder with so many latents; it falls with the root of their number."""


def paper_rate(size: int) -> float:
    """Adam's rate for an autoencoder of that many latents."""
    return RATE / math.sqrt(size / LATENTS)


@dataclass(frozen=True)
class Sentences:
    """What is trained on: (n, d), normalised."""

    count: int
    width: int
    rows: Callable[[Tensor], Tensor]
    """Some of them by their numbers."""


def train_as_paper(
    sentences: Sentences, size: int, k: int, settings: DiscoverSettings, seed: int
) -> Sae:
    """Train one autoencoder.

    Args:
        sentences: what it is trained on.
        size: latents.
        k: latents kept per sentence.
        settings: sentences in a batch, rate, epochs and patience.
        seed: of the start and of the order of the sentences.
    """
    generator, width = torch.Generator().manual_seed(seed), sentences.width
    encoder = (2 * torch.rand(size, width, generator=generator) - 1) / math.sqrt(width)
    decoder = functional.normalize(encoder, dim=1)
    parameters = [encoder, torch.zeros(size), decoder, torch.zeros(width)]
    for tensor in parameters:
        tensor.requires_grad_()
    rate = settings.learning_rate or paper_rate(size)
    optimizer = torch.optim.Adam(parameters, lr=rate)
    best, lowest, waited = _copy(parameters), math.inf, 0
    for _ in range(settings.epochs):
        order = torch.randperm(sentences.count, generator=generator)
        total = 0.0
        for numbers in torch.split(order, settings.sentences_per_step):
            if len(numbers) == 1 < sentences.count:
                continue  # a single sentence has no variance to explain
            loss = _loss(sentences.rows(numbers), parameters, k)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            with torch.no_grad():
                parameters[2].copy_(functional.normalize(parameters[2], dim=1))
            total += len(numbers) * float(loss.detach())
        waited = 0 if total < lowest else waited + 1
        if total < lowest:
            best, lowest = _copy(parameters), total
        if waited >= settings.patience:
            break
    encoder, encoder_bias, decoder, decoder_bias = best
    return Sae(encoder, encoder_bias, decoder, decoder_bias, k)


def _loss(rows: Float[Tensor, "n d"], parameters: Sequence[Tensor], k: int) -> Float[Tensor, ""]:
    """Fraction of the variance of some sentences that is left unexplained."""
    encoder, encoder_bias, decoder, decoder_bias = parameters
    scores = (rows - decoder_bias) @ encoder.T + encoder_bias
    kept = scores.topk(k, dim=1)
    codes = torch.zeros_like(scores).scatter(1, kept.indices, kept.values)
    error = (codes @ decoder + decoder_bias - rows).square().sum()
    return error / (rows - rows.mean(0)).square().sum().clamp(min=1e-12)


def _copy(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]
