"""A Top-K autoencoder trained the plain way: one cell, autograd, every reconstruction formed."""

import torch
from torch import Tensor
from torch.nn import functional

from howwhen.discover.sae import RATE, Shape
from howwhen.probes import Sae
from howwhen.settings import DiscoverSettings


def train_plainly(
    inputs: Tensor, start: Tensor, shape: Shape, settings: DiscoverSettings, seed: int
) -> Sae:
    """What `train_grid` does for one shape, from these first latents."""
    encoder, decoder = start.clone().requires_grad_(), start.clone().requires_grad_()
    encoder_bias = torch.zeros(shape.size, requires_grad=True)
    decoder_bias = inputs.mean(0).clone().requires_grad_()
    parameters = [encoder, encoder_bias, decoder, decoder_bias]
    rate = settings.learning_rate or RATE
    optimizer = torch.optim.Adam(parameters, lr=rate)
    generator = torch.Generator().manual_seed(seed)
    count = min(settings.sentences_per_step, len(inputs))
    for step in range(settings.steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / settings.steps)
        batch = inputs[torch.randint(len(inputs), (count,), generator=generator)]
        optimizer.zero_grad()
        sae = Sae(encoder, encoder_bias, decoder, decoder_bias, shape.k)
        torch.autograd.backward(loss_of(sae, batch))
        optimizer.step()
        with torch.no_grad():
            decoder.copy_(functional.normalize(decoder, dim=1))
    plain = (one.detach() for one in parameters)
    return Sae(next(plain), next(plain), next(plain), next(plain), shape.k)


def loss_of(sae: Sae, batch: Tensor) -> Tensor:
    """Fraction of variance unexplained."""
    scores = sae.scores(batch)
    kept = scores.topk(sae.k, dim=1)
    code = torch.zeros_like(scores).scatter(1, kept.indices, kept.values)
    error = batch - (code @ sae.decoder + sae.decoder_bias)
    return error.square().sum() / (batch - batch.mean(0)).square().sum()
