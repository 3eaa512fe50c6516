"""Baselines: clusterings of scikit-learn that are applied the way an autoencoder is.

Each becomes a linear scorer. The `pca-` versions cluster the leading principal components, and are
then written as linear functions of the whole activation again.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from sklearn.cluster import AgglomerativeClustering, KMeans, kmeans_plusplus
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from torch import Tensor

from howwhen.errors import InputError
from howwhen.probes import Clusters
from howwhen.settings import Method

STARTS = 4
"""Starts of a clustering, of which the best is kept."""
MAX_MERGED = 4000
"""Maximum number of sentences in the hierarchy, which looks at every pair."""
SHARE_MERGED = 0.8
"""Share of few sentences that it is built from, so that another seed sees others."""
Linear = tuple[np.ndarray, np.ndarray]
"""Weights (category, feature) and biases (category,)."""


def fit_clusters(
    method: Method, inputs: Float[Tensor, "n d"], size: int, dimensions: int, seed: int
) -> Clusters:
    """Cluster normalised activations into `size` categories.

    Args:
        method: which clustering: k-means by distance (`kmeans`) or by cosine (`spherical`), a
            Gaussian mixture with one covariance for all components, or Ward's hierarchy.
        inputs: the activations.
        size: number of categories.
        dimensions: maximum number of principal components kept by the `pca-` versions.
        seed: of everything random.

    Raises:
        InputError: fewer sentences than categories.
    """
    if len(inputs) < size:
        raise InputError(
            f"{len(inputs)} sentences cannot make {size} clusters; give more problems "
            "(--collect.limit) or smaller sizes (--discover.sizes)"
        )
    rows, fit = inputs.double().numpy(), _FITS[method.removeprefix("pca-")]
    if not method.startswith("pca-"):
        weights, biases = fit(rows, size, seed)
        return _clusters(weights, biases, method)
    pca = PCA(min(dimensions, *rows.shape), random_state=seed).fit(rows)
    weights, biases = fit(pca.transform(rows), size, seed)
    whole = weights @ pca.components_
    return _clusters(whole, biases - whole @ pca.mean_, method)


def _clusters(weights: np.ndarray, biases: np.ndarray, method: str) -> Clusters:
    return Clusters(
        torch.from_numpy(weights).float(), torch.from_numpy(biases).float(), method=method
    )


def _nearest(centres: np.ndarray) -> Linear:
    """The nearest centre: `argmax(x . c - |c|^2 / 2)`."""
    return centres, -0.5 * (centres**2).sum(1)


def _kmeans(rows: np.ndarray, size: int, seed: int) -> Linear:
    return _nearest(KMeans(size, n_init=STARTS, random_state=seed).fit(rows).cluster_centers_)


def _spherical(rows: np.ndarray, size: int, seed: int) -> Linear:
    """Centres of unit norm that the rows, at unit norm, have the largest cosines with."""
    unit = _at_unit_norm(rows)
    state = np.random.RandomState(seed)
    starts = [kmeans_plusplus(unit, size, random_state=state)[0] for _ in range(STARTS)]
    tries = [_settle(unit, centres) for centres in starts]
    best = max(tries, key=lambda centres: (unit @ centres.T).max(1).sum())
    return best, np.zeros(size)


def _settle(unit: np.ndarray, centres: np.ndarray, most_steps: int = 300) -> np.ndarray:
    """Lloyd's steps by cosine until no row changes its centre; an empty centre stays put."""
    before = None
    for _ in range(most_steps):
        own = (unit @ centres.T).argmax(1)
        if before is not None and (own == before).all():
            break
        sums = np.zeros_like(centres)
        np.add.at(sums, own, unit)
        used = np.bincount(own, minlength=len(centres)) > 0
        centres = np.where(used[:, None], _at_unit_norm(sums), centres)
        before = own
    return centres


def _at_unit_norm(rows: np.ndarray) -> np.ndarray:
    unit: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def _mixture(rows: np.ndarray, size: int, seed: int) -> Linear:
    """The likeliest component: with one covariance for all, a linear function of the row."""
    ridge = 1e-4 * float(rows.var(0).mean()) + 1e-12
    found = GaussianMixture(size, covariance_type="tied", reg_covar=ridge, random_state=seed)
    found.fit(rows)
    weights = found.means_ @ found.precisions_
    biases = np.log(found.weights_ + 1e-300) - 0.5 * (weights * found.means_).sum(1)
    return weights, biases


def _agglomerative(rows: np.ndarray, size: int, seed: int) -> Linear:
    """Ward's hierarchy over a sample of the sentences, applied by the nearest mean."""
    count = max(size, min(MAX_MERGED, int(SHARE_MERGED * len(rows))))
    some = rows[np.random.RandomState(seed).permutation(len(rows))[:count]]
    labels = AgglomerativeClustering(size).fit_predict(some)
    return _nearest(np.stack([some[labels == number].mean(0) for number in range(size)]))


_FITS: dict[str, Callable[[np.ndarray, int, int], Linear]] = {
    "kmeans": _kmeans,
    "spherical": _spherical,
    "mixture": _mixture,
    "agglomerative": _agglomerative,
}
