"""Top-K sparse autoencoders, a whole grid of sizes and ks at once (paper, section 3).

All cells of one layer share their batches. Their latents stand one below the other in one matrix,
so that a step costs two large products whatever the number of cells, and the loss and its gradient
go through Gram matrices: no reconstruction is ever formed. A cell's result does not depend on which
other cells are in the grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, product

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import ward
from torch import Tensor
from torch.nn import functional

from howwhen.discover.paper_sae import Sentences, train_as_paper
from howwhen.errors import InputError
from howwhen.probes import Sae, in_parts, mean_in_parts
from howwhen.settings import DiscoverSettings

RATE = 1e-2
"""Adam's learning rate at the start, unless the settings say otherwise."""
MAX_MERGED = 4096
"""Maximum number of sentences in the hierarchy of the first latents; it looks at every pair."""
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


@dataclass(frozen=True)
class Training:
    """What one training of the grid starts from."""

    inputs: Float[Tensor, "all d"]
    """Normalised sentence activations."""
    seed: int
    """Draws the batches and the sample that the first latents come from."""
    chosen: Int[Tensor, " n"] | None = None
    """The rows that are trained on, where not all are; they are not copied."""

    def __len__(self) -> int:
        return len(self.inputs if self.chosen is None else self.chosen)

    def rows(self, numbers: Int[Tensor, " m"]) -> Float[Tensor, "m d"]:
        """Some of the rows that are trained on."""
        return self.inputs[numbers if self.chosen is None else self.chosen[numbers]]

    def sentences(self) -> Sentences:
        """The rows that are trained on, as the paper's training takes them."""
        return Sentences(len(self), self.inputs.shape[1], self.rows)

    def mean(self) -> Float[Tensor, " d"]:
        """Mean of the rows that are trained on."""
        return mean_in_parts(self.inputs, self.chosen)


def train_grid(
    inputs: Float[Tensor, "n d"], shapes: Sequence[Shape], settings: DiscoverSettings, seed: int
) -> list[Sae]:
    """Train one autoencoder per shape, as `train_grids` does."""
    return train_grids([Training(inputs, seed)], shapes, settings)[0]


def train_grids(
    trainings: Sequence[Training], shapes: Sequence[Shape], settings: DiscoverSettings
) -> list[list[Sae]]:
    """Train one autoencoder per shape in every training.

    Adam with a step size that falls linearly to 0, or the paper's own training. The loss of a cell
    is the fraction of variance that it leaves unexplained in a batch. Decoder rows keep unit norm.

    Returns:
        For each training the autoencoders in the order of the shapes.

    Raises:
        InputError: fewer sentences than latents, or a k above its size.
    """
    for training, shape in product(trainings, shapes):
        _check(shape, len(training))
    if not shapes:
        return [[] for _ in trainings]
    if settings.trainer == "paper":
        return [
            [
                train_as_paper(one.sentences(), shape.size, shape.k, settings, one.seed)
                for shape in shapes
            ]
            for one in trainings
        ]
    sizes = [min(settings.sentences_per_step, len(training)) for training in trainings]
    saes: dict[int, list[Sae]] = {}
    for size in dict.fromkeys(sizes):
        numbers = [number for number, other in enumerate(sizes) if other == size]
        grids = _train_together([trainings[n] for n in numbers], shapes, settings, size)
        saes |= zip(numbers, grids, strict=True)
    return [saes[number] for number in range(len(trainings))]


def _train_together(
    trainings: Sequence[Training],
    shapes: Sequence[Shape],
    settings: DiscoverSettings,
    batch_size: int,
) -> list[list[Sae]]:
    """Trainings whose batches have the same number of sentences, as one stack."""
    grid = _Grid(trainings, shapes)
    rate = settings.learning_rate or RATE
    optimizer = torch.optim.Adam(grid.parameters(), lr=rate, fused=True)
    generators = [torch.Generator().manual_seed(training.seed) for training in trainings]
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / settings.steps)
        batches = [
            training.rows(torch.randint(len(training), (batch_size,), generator=generator))
            for training, generator in zip(trainings, generators, strict=True)
        ]
        grid.fill_gradients(torch.stack(batches))
        optimizer.step()
        grid.normalise_decoders()
    return grid.to_saes()


@torch.no_grad()
def evaluate(sae: Sae, inputs: Float[Tensor, "n d"]) -> SaeMetrics:
    """FVU, L0 and dead latents on these sentences."""
    mean = mean_in_parts(inputs)
    error, deviation, nonzero = inputs.new_zeros(3)
    uses = torch.zeros(len(sae.encoder), dtype=torch.long)
    for rows in in_parts(inputs):
        kept = sae.scores(rows).topk(sae.k, dim=1)
        error += (rows - sae.reconstruct(rows)).square().sum()
        deviation += (rows - mean).square().sum()
        uses += kept.indices[kept.values != 0].bincount(minlength=len(sae.encoder))
        nonzero += (kept.values != 0).sum(1).float().mean() * (len(rows) / len(inputs))
    return SaeMetrics(fvu=float(error / deviation), l0=float(nonzero), dead=int((uses == 0).sum()))


class _Grid:
    """The weights of all cells of all trainings, the latents of a training one below the other.

    With x a sentence minus the cell's decoder bias, a code c (zero except for the kept scores),
    decoder rows D and G = D D^T, a cell's squared error is |x|^2 - 2 c.(D x) + c.(G c). So

    - its slope in the kept scores is 2 (G c - D x),
    - in the encoder the slopes times x^T, in the decoder 2 (c c^T D - c x^T),
    - in the decoder bias -2 (x - D^T c) minus the slopes times the encoder,

    and everything except products of a cell with itself is one product of all rows with the batch.
    """

    def __init__(self, trainings: Sequence[Training], shapes: Sequence[Shape]) -> None:
        sizes = [shape.size for shape in shapes]
        ends = list(accumulate(sizes))
        self.ks = [shape.k for shape in shapes]
        self.cells = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        self.owner = torch.arange(len(shapes)).repeat_interleave(torch.tensor(sizes))
        starts = torch.stack([torch.cat(init_latents(training, sizes)) for training in trainings])
        self.rows = torch.stack([starts, starts], dim=1)
        """Encoders, then decoders: (training, 2, latent, d)."""
        self.encoder_bias = torch.zeros(starts.shape[:2])
        means = torch.stack([training.mean() for training in trainings])
        self.decoder_bias = means[:, None].repeat(1, len(shapes), 1)
        """(training, cell, d)."""
        self.stacks = self.rows, self.encoder_bias, self.decoder_bias
        self.gradients = [torch.empty_like(stack) for stack in self.stacks]

    def parameters(self) -> list[Tensor]:
        """Everything that is trained, as views, those of one training after those of the other.

        An optimizer steps each apart, so that a training ends with the same bits in any company.
        """
        views = list(chain.from_iterable(zip(*self.stacks, strict=True)))
        for view, gradient in zip(
            views, chain.from_iterable(zip(*self.gradients, strict=True)), strict=True
        ):
            view.grad = gradient
        return views

    @torch.no_grad()
    def fill_gradients(self, batches: Float[Tensor, "training n d"]) -> None:
        """Set the gradients of the sum of all cells' FVUs on one batch per training."""
        encoder, decoder = self.rows.unbind(1)
        bias = self.decoder_bias[:, self.owner]
        offset = (self.rows * bias[:, None]).sum(3)
        offset[:, 0] -= self.encoder_bias
        products = (self.rows.flatten(1, 2) @ batches.mT).sub_(offset.view(len(offset), -1, 1))
        scores, overlaps = products.chunk(2, dim=1)
        work = products.new_empty(len(scores), 2, *scores.shape[1:])
        slopes, codes = work.unbind(1)
        kept = torch.empty_like(scores)
        for cell, k in zip(self.cells, self.ks, strict=True):
            _mark_highest(scores[:, cell], k, out=kept[:, cell])
        torch.mul(scores, kept, out=codes)
        grams = decoder @ decoder.mT
        moments = torch.zeros_like(grams)
        for cell in self.cells:
            slopes[:, cell] = grams[:, cell, cell] @ codes[:, cell]
            moments[:, cell, cell] = codes[:, cell] @ codes[:, cell].mT
        slopes.sub_(overlaps).mul_(kept)
        sums = work.sum(3)
        gradient = work.flatten(1, 2) @ batches
        gradient = gradient.view_as(self.rows) - sums[..., None] * bias[:, None]
        gradient[:, 1] = moments @ decoder - gradient[:, 1]
        in_bias = sums[:, 1, :, None] * decoder - sums[:, 0, :, None] * encoder
        total = batches.sum(1)
        pulled = batches.shape[1] * self.decoder_bias - total[:, None]
        pulled.index_add_(1, self.owner, in_bias)
        variance = torch.stack([batch.square().sum() for batch in batches])
        variance -= torch.stack([row.square().sum() for row in total]) / batches.shape[1]
        scale = (2 / variance.clamp(min=1e-12))[:, None, None]
        torch.mul(gradient, scale[..., None], out=self.gradients[0])
        torch.mul(sums[:, 0], scale[..., 0], out=self.gradients[1])
        torch.mul(pulled, scale, out=self.gradients[2])

    @torch.no_grad()
    def normalise_decoders(self) -> None:
        """Give every decoder row unit norm."""
        self.rows[:, 1] = functional.normalize(self.rows[:, 1], dim=2)

    def to_saes(self) -> list[list[Sae]]:
        """The autoencoder of every cell, for every training."""
        return [
            [
                Sae(
                    encoder=rows[0, cell].clone(),
                    encoder_bias=encoder_bias[cell].clone(),
                    decoder=rows[1, cell].clone(),
                    decoder_bias=decoder_bias[number].clone(),
                    k=self.ks[number],
                )
                for number, cell in enumerate(self.cells)
            ]
            for rows, encoder_bias, decoder_bias in zip(*self.stacks, strict=True)
        ]


def _mark_highest(
    scores: Float[Tensor, "training latent n"], k: int, out: Float[Tensor, "training latent n"]
) -> None:
    """Set `out` to 1 where a sentence's k highest scores are, else to 0.

    k maxima are far faster than a sort, and numbers far faster to work with than truth values.
    """
    rest = scores
    for _ in range(k - 1):
        torch.ge(rest, rest.amax(1, keepdim=True), out=out)
        rest = torch.add(rest, out, alpha=-_FAR)
    torch.ge(scores, rest.amax(1, keepdim=True), out=out)


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
    """Maximum number of latents that so many sentences can initialise."""
    return min(MAX_MERGED, int(SHARE_MERGED * sentences))


def init_latents(training: Training, sizes: Sequence[int]) -> list[Float[Tensor, "latent d"]]:
    """Directions to start from, for every size: the clusters of Ward's hierarchy of a sample.

    All sizes are cuts of one hierarchy. Compared with draws of k-means++, this left less variance
    unexplained, seeds agreed more, and no latent started dead.
    """
    count = len(training)
    drawn = np.random.default_rng(training.seed).permutation(count)[: max_latents(count)]
    sample = training.rows(torch.from_numpy(drawn))
    merges = ward(torch.pdist(sample).double().numpy())
    centered = sample - training.mean()
    sums = {
        size: torch.zeros(size, centered.shape[1]).index_add_(0, _cut(merges, size), centered)
        for size in set(sizes)
    }
    return [functional.normalize(sums[size], dim=1) for size in sizes]


def _cut(merges: Float[np.ndarray, "merge 4"], size: int) -> Int[Tensor, " leaf"]:
    """The cluster of each leaf where a hierarchy has `size` clusters, in order of appearance.

    `scipy.cluster.hierarchy.cut_tree` returns the same. It renumbers all leaves at every merge,
    which takes longer than building the hierarchy.
    """
    leaves = len(merges) + 1
    clusters = list(range(leaves + len(merges)))
    for merge in reversed(range(leaves - size)):
        for child in merges[merge, :2].astype(int):
            clusters[child] = clusters[leaves + merge]
    numbers: dict[int, int] = {}
    return torch.tensor([numbers.setdefault(c, len(numbers)) for c in clusters[:leaves]])
