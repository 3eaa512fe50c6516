"""Top-K sparse autoencoders, a whole grid of sizes and ks at once (paper, section 3).

All cells of one layer share their batches. Their latents stand one below the other in one matrix,
so that a step costs two large products whatever the number of cells, and the loss and its gradient
go through Gram matrices: no reconstruction is ever formed. A cell's result does not depend on which
other cells are in the grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.cluster.hierarchy import cut_tree, ward
from torch import Tensor
from torch.nn import functional

from howwhen.errors import InputError
from howwhen.probes import Sae
from howwhen.settings import DiscoverSettings

MAX_MERGED = 4096
"""Sentences in the hierarchy that the first latents are cut from, at most (every pair counts)."""
SHARE_MERGED = 0.8
"""Share of few sentences that are in it, so that another seed starts elsewhere."""


@dataclass(frozen=True)
class Shape:
    """One cell of the grid: number of latents, and latents kept per sentence."""

    size: int
    k: int


@dataclass(frozen=True)
class SaeMetrics:
    """How well an autoencoder does on the sentences it was trained on."""

    fvu: float
    """Fraction of variance unexplained: squared error over squared deviation from the mean."""
    l0: float
    """Mean number of latents that are not zero in a sentence's code."""
    dead: int
    """Latents that are in no sentence's code."""


def train_grid(
    inputs: Float[Tensor, "n d"], shapes: Sequence[Shape], settings: DiscoverSettings, seed: int
) -> list[Sae]:
    """Train one autoencoder per shape on normalised sentence activations.

    Adam with a step size that falls linearly to 0; the loss of a cell is the fraction of variance
    that it leaves unexplained in a batch; decoder rows keep unit norm.

    Raises:
        InputError: fewer sentences than latents, or a k above its size.
    """
    for shape in shapes:
        _check(shape, len(inputs))
    if not shapes:
        return []
    grid = _Grid(inputs, shapes, seed)
    optimizer = torch.optim.Adam(grid.parameters(), lr=settings.learning_rate, fused=True)
    generator = torch.Generator().manual_seed(seed)
    count = min(settings.sentences_per_step, len(inputs))
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * (1 - step / settings.steps)
        rows = torch.randint(len(inputs), (count,), generator=generator)
        grid.fill_gradients(inputs[rows])
        optimizer.step()
        grid.normalise_decoders()
    return grid.to_saes()


@torch.no_grad()
def evaluate(sae: Sae, inputs: Float[Tensor, "n d"]) -> SaeMetrics:
    """FVU, L0 and dead latents on these sentences."""
    kept = sae.scores(inputs).topk(sae.k, dim=1)
    error = (inputs - sae.reconstruct(inputs)).square().sum()
    uses = kept.indices[kept.values != 0].bincount(minlength=len(sae.encoder))
    return SaeMetrics(
        fvu=float(error / (inputs - inputs.mean(0)).square().sum()),
        l0=float((kept.values != 0).sum(1).float().mean()),
        dead=int((uses == 0).sum()),
    )


class _Grid:
    """The weights of all cells, their latents one below the other.

    With x a sentence minus the cell's decoder bias, a code c (zero but for the kept scores),
    decoder rows D and G = D D^T, a cell's squared error is |x|^2 - 2 c.(D x) + c.(G c). So

    - its slope in the kept scores is 2 (G c - D x),
    - in the encoder the slopes times x^T, in the decoder 2 (c c^T D - c x^T),
    - in the decoder bias -2 (x - D^T c) minus the slopes times the encoder,

    and everything but products of a cell with itself is one product of all rows with the batch.
    """

    def __init__(self, inputs: Float[Tensor, "n d"], shapes: Sequence[Shape], seed: int) -> None:
        sizes = torch.tensor([shape.size for shape in shapes])
        ends = sizes.cumsum(0).tolist()
        self.ks = [shape.k for shape in shapes]
        self.cells = [slice(end - shape.size, end) for end, shape in zip(ends, shapes, strict=True)]
        self.owner = torch.arange(len(shapes)).repeat_interleave(sizes)
        starts = torch.cat(init_latents(inputs, [shape.size for shape in shapes], seed))
        self.rows = torch.stack([starts, starts])
        """Encoders, then decoders: (2, latent, d)."""
        self.encoder_bias = torch.zeros(len(starts))
        self.decoder_bias = inputs.mean(0).repeat(len(shapes), 1)
        for parameter in self.parameters():
            parameter.grad = torch.empty_like(parameter)

    def parameters(self) -> list[Tensor]:
        """Everything that is trained."""
        return [self.rows, self.encoder_bias, self.decoder_bias]

    @torch.no_grad()
    def fill_gradients(self, batch: Float[Tensor, "n d"]) -> None:
        """Set the gradients of the sum of all cells' FVUs on one batch."""
        encoder, decoder = self.rows
        bias = self.decoder_bias[self.owner]
        offset = (self.rows * bias).sum(2)
        offset[0] -= self.encoder_bias
        scores, overlaps = (self.rows.flatten(0, 1) @ batch.T - offset.view(-1, 1)).chunk(2)
        work = scores.new_empty(3, *scores.shape)
        slopes, codes, kept = work
        for cell, k in zip(self.cells, self.ks, strict=True):
            _mark_highest(scores[cell], k, out=kept[cell])
        torch.mul(scores, kept, out=codes)
        grams, products = decoder @ decoder.T, decoder.new_zeros(len(decoder), len(decoder))
        for cell in self.cells:
            torch.mm(grams[cell, cell], codes[cell], out=slopes[cell])
            products[cell, cell] = codes[cell] @ codes[cell].T
        slopes.sub_(overlaps).mul_(kept)
        own = products @ decoder
        sums = work[:2].sum(2)
        gradient = torch.matmul(work[:2], batch) - sums[:, :, None] * bias
        gradient[1] = own - gradient[1]
        in_bias = sums[1, :, None] * decoder - sums[0, :, None] * encoder
        total = batch.sum(0)
        pulled = len(batch) * self.decoder_bias - total
        pulled.index_add_(0, self.owner, in_bias)
        scale = 2 / (batch.square().sum() - total.square().sum() / len(batch)).clamp(min=1e-12)
        self._set_gradients(gradient * scale, sums[0] * scale, pulled * scale)

    def _set_gradients(self, *gradients: Tensor) -> None:
        for parameter, gradient in zip(self.parameters(), gradients, strict=True):
            parameter.grad = gradient

    @torch.no_grad()
    def normalise_decoders(self) -> None:
        """Give every decoder row unit norm."""
        self.rows[1] = functional.normalize(self.rows[1], dim=1)

    def to_saes(self) -> list[Sae]:
        """Every cell's own weights."""
        encoder, decoder = self.rows
        return [
            Sae(
                encoder=encoder[cell].clone(),
                encoder_bias=self.encoder_bias[cell].clone(),
                decoder=decoder[cell].clone(),
                decoder_bias=self.decoder_bias[number].clone(),
                k=self.ks[number],
            )
            for number, cell in enumerate(self.cells)
        ]


def _mark_highest(
    scores: Float[Tensor, "latent n"], k: int, out: Float[Tensor, "latent n"]
) -> None:
    """Set `out` to 1 where a sentence's k highest scores are, else to 0.

    k maxima are far faster than a sort, and numbers far faster to work with than truth values.
    """
    rest = scores
    for _ in range(k - 1):
        torch.ge(rest, rest.amax(0), out=out)
        rest = torch.add(rest, out, alpha=-_FAR)
    torch.ge(scores, rest.amax(0), out=out)


_FAR = 1e30
"""More than any two scores are apart."""


def _check(shape: Shape, sentences: int) -> None:
    if shape.k > shape.size:
        raise InputError(f"an autoencoder of {shape.size} latents cannot keep k={shape.k} of them")
    if shape.size > max_latents(sentences):
        raise InputError(
            f"{sentences} sentences can start an autoencoder of {max_latents(sentences)} latents "
            f"at most, not of {shape.size}; give more problems (--collect.limit) or smaller sizes "
            "(--discover.sizes)"
        )


def max_latents(sentences: int) -> int:
    """Latents that so many sentences can start, at most."""
    return min(MAX_MERGED, int(SHARE_MERGED * sentences))


def init_latents(
    inputs: Float[Tensor, "n d"], sizes: Sequence[int], seed: int
) -> list[Float[Tensor, "latent d"]]:
    """Directions to start from, for every size: the clusters of Ward's hierarchy of a sample.

    All sizes are cuts of one hierarchy. Against draws of k-means++ this left less unexplained,
    other seeds agreed more, and no latent started dead.
    """
    drawn = np.random.default_rng(seed).permutation(len(inputs))[: max_latents(len(inputs))]
    sample = inputs[torch.from_numpy(drawn)]
    merges = ward(torch.pdist(sample).double().numpy())
    cuts = sorted(set(sizes))
    labels = torch.from_numpy(cut_tree(merges, n_clusters=cuts))
    away = sample - inputs.mean(0)
    sums = {
        size: torch.zeros(size, away.shape[1]).index_add_(0, own, away)
        for size, own in zip(cuts, labels.unbind(1), strict=True)
    }
    return [functional.normalize(sums[size], dim=1) for size in sizes]
