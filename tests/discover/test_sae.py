import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import cut_tree, ward
from torch.nn import functional

from howwhen.discover.sae import (
    Shape,
    Training,
    _cut,
    _Grid,
    evaluate,
    init_latents,
    train_grid,
    train_grids,
)
from howwhen.errors import InputError
from howwhen.probes import Sae, Taxonomy
from howwhen.settings import DiscoverSettings
from tests.discover.planted import planted
from tests.oracles.sae import loss_of, train_plainly

SETTINGS = DiscoverSettings(steps=300, sentences_per_step=256, learning_rate=3e-3)


@pytest.mark.parametrize("k", [1, 2])
def test_planted_directions_are_found(k: int) -> None:
    inputs, which = planted()
    (sae,) = train_grid(inputs, [Shape(3, k)], SETTINGS, 0)
    category = sae.scores(inputs).argmax(1)
    best = sum(
        int((category == c).logical_and(which == w).sum()) for c, w in _matching(category, which)
    )
    assert best / len(inputs) > 0.97


def _matching(category: torch.Tensor, which: torch.Tensor) -> list[tuple[int, int]]:
    return [(c, int(which[category == c].mode().values)) for c in set(category.tolist())]


def test_the_first_latents_are_cuts_of_one_hierarchy_of_the_seeds_sample() -> None:
    inputs, which = planted()
    truth = torch.stack([inputs[which == one].mean(0) for one in range(3)]) - inputs.mean(0)
    three, six, again = init_latents(Training(inputs, 0), [3, 6, 3])
    cosines = functional.normalize(truth, dim=1) @ three.T
    assert (cosines.amax(1) > 0.99).all()
    assert (six @ three.T).amax(1).min() > 0.3  # each lies within one of the three
    torch.testing.assert_close(six.norm(dim=1), torch.ones(6))
    assert torch.equal(three, again)
    assert not torch.equal(three, init_latents(Training(inputs, 1), [3])[0])


def test_equal_sentences_start_and_train_without_a_nan() -> None:
    inputs = functional.normalize(torch.ones(40, 24), dim=1)
    (sae,) = train_grid(inputs, [Shape(4, 1)], SETTINGS, 0)
    assert all(one.isfinite().all() for one in (sae.encoder, sae.decoder, sae.decoder_bias))


def test_more_latents_explain_more() -> None:
    inputs, _ = planted()
    saes = train_grid(inputs, [Shape(3, 1), Shape(12, 3)], SETTINGS, 0)
    few, many = (evaluate(sae, inputs).fvu for sae in saes)
    assert many < few < 0.6


def test_gradients_through_gram_matrices_are_those_of_autograd() -> None:
    inputs, _ = planted()
    shapes = [Shape(3, 1), Shape(7, 2), Shape(5, 3)]
    grid = _Grid([Training(inputs, 0)], shapes)
    noise = torch.Generator().manual_seed(5)
    for parameter in grid.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=noise)
    grid.normalise_decoders()
    grid.fill_gradients(inputs[None, :200])
    for number, (cell, sae) in enumerate(zip(grid.cells, grid.to_saes()[0], strict=True)):
        plain = [sae.encoder, sae.encoder_bias, sae.decoder, sae.decoder_bias]
        for one in plain:
            one.requires_grad_()
        torch.autograd.backward(loss_of(sae, inputs[:200]), inputs=plain)
        rows, encoder_bias, decoder_bias = (one.grad for one in grid.parameters())
        assert rows is not None
        assert encoder_bias is not None
        assert decoder_bias is not None
        fast = [rows[0, cell], encoder_bias[cell], rows[1, cell], decoder_bias[number]]
        for one, two in zip(fast, plain, strict=True):
            torch.testing.assert_close(one, two.grad, atol=1e-5, rtol=1e-4)


def test_the_grid_ends_where_plain_training_ends() -> None:
    inputs, _ = planted()
    shapes = [Shape(4, 1), Shape(9, 3)]
    starts = init_latents(Training(inputs, 0), [4, 9])
    grid = train_grid(inputs, shapes, SETTINGS, 0)
    for sae, start, shape in zip(grid, starts, shapes, strict=True):
        plain = evaluate(train_plainly(inputs, start, shape, SETTINGS, 0), inputs).fvu
        assert evaluate(sae, inputs).fvu == pytest.approx(plain, rel=0.02)


def test_dead_latents_and_l0_are_counted() -> None:
    eye = torch.eye(3)
    sae = Sae(eye, torch.tensor([0.0, 0.0, -9.0]), eye, torch.zeros(3), k=1)
    metrics = evaluate(sae, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    assert metrics.dead == 1
    assert metrics.l0 == pytest.approx(2 / 3)
    assert metrics.fvu == pytest.approx(1 / 2)


def test_a_cell_does_not_depend_on_the_rest_of_the_grid() -> None:
    inputs, _ = planted()
    alone = train_grid(inputs, [Shape(5, 3)], SETTINGS, 0)[0]
    in_grid = train_grid(inputs, [Shape(8, 1), Shape(5, 3)], SETTINGS, 0)[1]
    torch.testing.assert_close(alone.decoder, in_grid.decoder, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alone.encoder, in_grid.encoder, atol=1e-4, rtol=1e-4)


def test_a_training_does_not_depend_on_those_beside_it() -> None:
    inputs, _ = planted()
    shapes = [Shape(8, 1), Shape(5, 3)]
    trainings = [
        Training(inputs, 0),
        Training(inputs[:200], 0),  # whose batches are smaller
        Training(inputs, 1),
        Training(inputs[::2], 0),
    ]
    together = train_grids(trainings, shapes, SETTINGS)
    for training, saes in zip(trainings, together, strict=True):
        alone = train_grid(training.inputs, shapes, SETTINGS, training.seed)
        for sae, plain in zip(saes, alone, strict=True):
            assert sae.k == plain.k
            for name in ("encoder", "encoder_bias", "decoder", "decoder_bias"):
                torch.testing.assert_close(
                    getattr(sae, name), getattr(plain, name), atol=1e-4, rtol=1e-4
                )


@pytest.mark.parametrize("seed", range(3))
def test_cuts_of_a_hierarchy_are_those_of_scipy(seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(60, 3))
    rows[40:50] = rows[:10]  # equal sentences
    merges = ward(rows)
    sizes = [1, 2, 5, 30, 49]
    expected = cut_tree(merges, n_clusters=sizes)
    for size, labels in zip(sizes, expected.T, strict=True):
        assert _cut(merges, size).tolist() == labels.tolist()


def test_decoder_rows_have_unit_norm_and_training_repeats() -> None:
    inputs, _ = planted()
    first, again = (train_grid(inputs, [Shape(6, 2)], SETTINGS, 0)[0] for _ in range(2))
    torch.testing.assert_close(first.decoder.norm(dim=1), torch.ones(6))
    assert torch.equal(first.encoder, again.encoder)


def test_reconstruction_keeps_the_top_k_raw_scores() -> None:
    sae = Sae(torch.eye(3), torch.tensor([0.0, 0.5, 0.0]), torch.eye(3), torch.zeros(3), k=2)
    inputs = torch.tensor([[3.0, -2.0, 1.0]])
    # scores 3, -1.5, 1: the top two are latents 0 and 2
    torch.testing.assert_close(sae.reconstruct(inputs), torch.tensor([[3.0, 0.0, 1.0]]))


def test_impossible_cells_are_refused() -> None:
    inputs, _ = planted(count=6)
    with pytest.raises(InputError, match="6 sentences can start .* 4 latents at most, not of 5"):
        train_grid(inputs, [Shape(5, 1)], SETTINGS, 0)
    assert train_grid(inputs, [Shape(4, 1)], SETTINGS, 0)[0].encoder.isfinite().all()
    with pytest.raises(InputError, match="3 latents cannot keep k=4"):
        train_grid(inputs, [Shape(3, 4)], SETTINGS, 0)


def test_a_taxonomy_centres_and_normalises_before_it_categorises() -> None:
    sae = Sae(torch.eye(2), torch.zeros(2), torch.eye(2), torch.zeros(2), k=1)
    taxonomy = Taxonomy("m", 0, torch.tensor([10.0, 10.0]), sae, ("a", "b"))
    residual = torch.tensor([[10.5, 10.1], [11.0, 19.0]])
    torch.testing.assert_close(taxonomy.normalise(residual).norm(dim=1), torch.ones(2))
    assert taxonomy.categorise(residual).tolist() == [0, 1]
