"""Top-K sparse autoencoders, a whole grid of sizes and ks at once (paper, section 3).

All cells of one layer share their batches and are trained together as one stack of matrices,
padded to the largest size. A cell's result does not depend on which other cells are in the grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.cluster import kmeans_plusplus
from torch import Tensor, nn
from torch.nn import functional

from howwhen.errors import InputError
from howwhen.records import Sae
from howwhen.settings import DiscoverSettings


@dataclass(frozen=True)
class Shape:
    """One cell of the grid: number of latents, and latents kept per sentence."""

    size: int
    k: int


class _Stack(nn.Module):
    """The weights of all cells, padded to the largest size; padding latents never fire."""

    def __init__(self, inputs: Float[Tensor, "n d"], shapes: Sequence[Shape], seed: int) -> None:
        super().__init__()
        widest = max(shape.size for shape in shapes)
        rows = torch.zeros(len(shapes), widest, inputs.shape[1])
        for cell, shape in enumerate(shapes):
            rows[cell, : shape.size] = _spread_rows(inputs, shape, seed)
        self.decoder = nn.Parameter(rows)
        self.encoder = nn.Parameter(rows.clone())
        self.encoder_bias = nn.Parameter(torch.zeros(len(shapes), widest))
        self.decoder_bias = nn.Parameter(inputs.mean(0).expand(len(shapes), -1).clone())
        sizes = torch.tensor([shape.size for shape in shapes])
        ks = torch.tensor([shape.k for shape in shapes])
        self.is_latent: Bool[Tensor, "cell latent"] = torch.arange(widest) < sizes[:, None]
        self.is_kept: Bool[Tensor, "cell rank"] = torch.arange(int(ks.max())) < ks[:, None]

    def unexplained(self, inputs: Float[Tensor, "n d"]) -> Float[Tensor, " cell"]:
        """Fraction of variance unexplained by each cell on these inputs."""
        centred = inputs - self.decoder_bias[:, None]
        raw = centred @ self.encoder.mT + self.encoder_bias[:, None]
        raw = raw.masked_fill(~self.is_latent[:, None], -torch.inf)
        top = raw.topk(self.is_kept.shape[1], dim=2)
        values = top.values.masked_fill(~self.is_kept[:, None], 0)
        code = torch.zeros_like(raw).scatter(2, top.indices, values)
        error = inputs - (code @ self.decoder + self.decoder_bias[:, None])
        return error.square().sum((1, 2)) / (inputs - inputs.mean(0)).square().sum()

    @torch.no_grad()
    def normalise_decoders(self) -> None:
        """Give every decoder row unit norm (padding rows stay zero)."""
        self.decoder.copy_(functional.normalize(self.decoder, dim=2))


def train_grid(
    inputs: Float[Tensor, "n d"], shapes: Sequence[Shape], settings: DiscoverSettings
) -> list[Sae]:
    """Train one autoencoder per shape on normalised sentence activations.

    Raises:
        InputError: fewer sentences than latents, or a k above its size.
    """
    for shape in shapes:
        _check(shape, len(inputs))
    stack = _Stack(inputs, shapes, settings.seed)
    optimizer = torch.optim.Adam(stack.parameters(), lr=settings.learning_rate)
    generator = torch.Generator().manual_seed(settings.seed)
    for step in range(settings.steps):
        decay = 1 - step / settings.steps
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * decay
        rows = torch.randint(
            len(inputs), (min(settings.sentences_per_step, len(inputs)),), generator=generator
        )
        loss = stack.unexplained(inputs[rows]).sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        stack.normalise_decoders()
    return [_cut_out(stack, cell, shape) for cell, shape in enumerate(shapes)]


def unexplained(sae: Sae, inputs: Float[Tensor, "n d"]) -> float:
    """Fraction of variance unexplained (FVU): squared error over squared deviation."""
    error = (inputs - sae.reconstruct(inputs)).square().sum()
    return float(error / (inputs - inputs.mean(0)).square().sum())


def _check(shape: Shape, sentences: int) -> None:
    if shape.k > shape.size:
        raise InputError(f"an autoencoder of {shape.size} latents cannot keep k={shape.k} of them")
    if sentences < shape.size:
        raise InputError(
            f"{sentences} sentences cannot train an autoencoder of {shape.size} latents; give "
            "more problems (--collect.limit) or smaller sizes (--discover.sizes)"
        )


def _spread_rows(inputs: Float[Tensor, "n d"], shape: Shape, seed: int) -> Float[Tensor, "k d"]:
    """Sentences far from each other (greedy k-means++), so that few latents start dead."""
    rows = functional.normalize(inputs - inputs.mean(0), dim=1)
    own_seed = [seed, shape.size, shape.k]
    state = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(own_seed)))
    _, chosen = kmeans_plusplus(rows.numpy(), shape.size, random_state=state)
    return rows[torch.from_numpy(chosen)]


def _cut_out(stack: _Stack, cell: int, shape: Shape) -> Sae:
    return Sae(
        encoder=stack.encoder[cell, : shape.size].detach().clone(),
        encoder_bias=stack.encoder_bias[cell, : shape.size].detach().clone(),
        decoder=stack.decoder[cell, : shape.size].detach().clone(),
        decoder_bias=stack.decoder_bias[cell].detach().clone(),
        k=shape.k,
    )
