from typing import get_args

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from howwhen.discover.clusters import fit_clusters
from howwhen.errors import InputError
from howwhen.settings import Method
from tests.discover.planted import planted

METHODS = [method for method in get_args(Method) if method != "sae"]


@pytest.mark.parametrize("method", METHODS)
def test_every_clustering_finds_planted_directions_and_repeats(method: Method) -> None:
    inputs, which = planted(300)
    found = fit_clusters(method, inputs, 3, 8, seed=0)
    assert found.method == method
    labels = found.scores(inputs).argmax(1)
    assert adjusted_rand_score(which, labels) > 0.95
    assert torch.equal(fit_clusters(method, inputs, 3, 8, seed=0).weights, found.weights)


def test_linear_scores_name_the_nearest_centre() -> None:
    inputs, _ = planted(300)
    fitted = KMeans(7, n_init=4, random_state=5).fit(inputs.double().numpy())
    labels = fit_clusters("kmeans", inputs, 7, 8, seed=5).scores(inputs).argmax(1)
    assert labels.tolist() == fitted.labels_.tolist()


def test_linear_scores_name_the_likeliest_component_of_a_mixture() -> None:
    inputs, _ = planted(400)
    rows = inputs.double().numpy()
    ridge = 1e-4 * float(rows.var(0).mean()) + 1e-12
    fitted = GaussianMixture(4, covariance_type="tied", reg_covar=ridge, random_state=3).fit(rows)
    labels = fit_clusters("mixture", inputs, 4, 8, seed=3).scores(inputs).argmax(1)
    assert labels.tolist() == fitted.predict(rows).tolist()


def test_a_pca_version_on_all_components_is_the_plain_clustering() -> None:
    inputs, _ = planted(200)
    plain = fit_clusters("agglomerative", inputs, 5, 8, seed=0).scores(inputs).argmax(1)
    whole = fit_clusters("pca-agglomerative", inputs, 5, 24, seed=0).scores(inputs).argmax(1)
    assert adjusted_rand_score(plain, whole) == pytest.approx(1)


def test_too_few_sentences_are_refused() -> None:
    inputs, _ = planted(6)
    with pytest.raises(InputError, match="6 sentences cannot make 7 clusters"):
        fit_clusters("kmeans", inputs, 7, 8, seed=0)
