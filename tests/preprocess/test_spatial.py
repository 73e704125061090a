import math

import numpy as np
import pytest

from eelsflow.edges import O_K
from eelsflow.errors import StudyFileError
from eelsflow.executors import DaskExecutor, ThreadExecutor
from eelsflow.io.zarr_store import open_dataset, write_spectrum_image
from eelsflow.preprocess.blocks import prepare_blocks
from eelsflow.preprocess.chain import prepare
from eelsflow.preprocess.presets import Spatial, resolve_preset
from eelsflow.preprocess.shapes import Shapes
from eelsflow.preprocess.spatial import Guide, fit_guide, gather
from eelsflow.simulator import plan_directory, simulate_acquisition

PRESET = resolve_preset("recommended").for_acquisition


def two_phases(noise: float, shape: tuple[int, int] = (24, 24), seed: int = 0) -> Shapes:
    """A field whose left half has another shape than its right half."""
    rng = np.random.default_rng(seed)
    base = np.full(20, 0.05)
    contrast = np.where(np.arange(20) < 10, 0.01, -0.01)
    left = np.arange(shape[1]) < shape[1] // 2
    values = base + np.where(left[None, :, None], contrast, -contrast) + noise * rng.standard_normal((*shape, 20))
    relative = np.full(shape, noise**2)
    return Shapes(values, relative, np.ones(shape), np.arange(20.0))


def test_gather_is_the_weighted_mean_of_a_plain_loop():
    rng = np.random.default_rng(4)
    values, variance = rng.random((6, 7, 3)).astype(np.float32), rng.random((6, 7, 3)).astype(np.float32)
    guide = Guide(
        rng.normal(size=(6, 7, 2)).astype(np.float32), (rng.random((6, 7)) < 0.8).astype(np.float32), 1.2, 1.5
    )
    means, mean_variance, n = gather(values, variance, guide)
    for y in range(6):
        for x in range(7):
            weights = np.zeros((6, 7))
            for j in range(6):
                for i in range(7):
                    if max(abs(j - y), abs(i - x)) <= guide.halo and guide.weight[j, i] and guide.weight[y, x]:
                        apart = ((guide.values[j, i] - guide.values[y, x]) ** 2).sum()
                        weights[j, i] = math.exp(-((j - y) ** 2 + (i - x) ** 2) / 2 / 1.2**2 - apart / 2 / 1.5**2)
            if not guide.weight[y, x]:
                assert (means[y, x] == 0).all()
                assert n[y, x] == 0
                continue
            share = weights / weights.sum()
            np.testing.assert_allclose(means[y, x], np.einsum("ji,jic->c", share, values), rtol=1e-4)
            np.testing.assert_allclose(mean_variance[y, x], np.einsum("ji,jic->c", share**2, variance), rtol=1e-4)
            assert n[y, x] == pytest.approx(1 / (share**2).sum(), rel=1e-4)


def test_vacuum_lends_nothing():
    shapes = two_phases(0.02)
    specimen = np.ones((24, 24), dtype=bool)
    specimen[:, 10:14] = False
    guide = fit_guide(shapes, specimen, Spatial())
    assert guide.reach > 0
    values = np.ones((24, 24, 2), dtype=np.float32)
    values[~specimen] = 1e9
    means, _, _ = gather(values, None, guide)
    np.testing.assert_allclose(means[specimen], 1.0, rtol=1e-6)


def test_variance_that_is_carried_along_is_that_of_many_draws():
    guide = fit_guide(two_phases(0.02), np.ones((24, 24), dtype=bool), Spatial(method="mean"))
    rng = np.random.default_rng(6)
    draws = rng.standard_normal((24, 24, 4000)).astype(np.float32)
    means, variance, n = gather(draws, np.ones_like(draws), guide)
    # of 4,000 draws a variance is known to 2.2 %; five of these
    np.testing.assert_allclose(means.var(axis=-1), variance[..., 0], rtol=0.11)
    np.testing.assert_allclose(variance[..., 0], 1 / n, rtol=1e-4)


def test_a_guided_mean_keeps_an_edge_that_a_plain_mean_blurs():
    shapes, specimen = two_phases(0.02), np.ones((24, 24), dtype=bool)
    phase = np.zeros((24, 24, 1), dtype=np.float32)
    phase[:, :12] = 1.0
    lent = {}
    for method in ("guided", "mean"):
        means, _, _ = gather(phase, None, fit_guide(shapes, specimen, Spatial(method=method)))
        lent[method] = float(means[:, 12].mean())
    assert lent["mean"] > 0.2
    assert lent["guided"] < 0.5 * lent["mean"]


def test_reach_falls_with_the_noise_and_is_none_where_a_pixel_is_enough():
    specimen = np.ones((24, 24), dtype=bool)
    reaches = [fit_guide(two_phases(noise), specimen, Spatial()).reach for noise in (0.02, 0.012, 0.002)]
    assert reaches[0] > reaches[1] > reaches[2] == 0
    means, _, n = gather(np.ones((24, 24, 1), np.float32), None, fit_guide(two_phases(0.002), specimen, Spatial()))
    assert (n == 1).all()
    assert (means == 1).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_few_pixels_and_line_scans_are_gathered(shape):
    shapes = two_phases(0.02, shape)
    guide = fit_guide(shapes, np.ones(shape, dtype=bool), Spatial())
    means, _, n = gather(np.ones((*shape, 2), np.float32), None, guide)
    np.testing.assert_allclose(means, 1.0, rtol=1e-6)
    assert (guide.reach > 0) == (max(shape) == 40)
    assert (n >= 1 - 1e-5).all()


@pytest.fixture(scope="module")
def dask_executor():
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield DaskExecutor(client)


def test_blocks_with_a_halo_equal_the_whole(tmp_path, dask_executor):
    (planned,) = plan_directory(
        n_acquisitions=1, seed=3, shape=(40, 44), preset="wide", detector="ccd", scenes=("interface",), dose=(0.5, 0.5)
    )
    image = simulate_acquisition(planned.parameters, planned.seed, name="field").image
    whole = prepare(image, edge=O_K, preset=PRESET)
    assert whole.attrs["spatial_reach"] > 0.5
    raw = write_spectrum_image(image, tmp_path / "raw.zarr", block_shape=(16, 16))
    for name, executor in (("loop", None), ("threads", ThreadExecutor(2)), ("dask", dask_executor)):
        prepare_blocks(raw, tmp_path / f"{name}.zarr", edge=O_K, preset=PRESET, executor=executor, block_shape=(16, 16))
        product = open_dataset(tmp_path / f"{name}.zarr")
        assert product.attrs["spatial_reach"] == pytest.approx(whole.attrs["spatial_reach"], rel=1e-6)
        for variable in ("gathered", "gathered_variance", "effective_spectra"):
            # sums over blocks are taken in another order, by which the reach may differ in its last digits
            np.testing.assert_allclose(product[variable].values, whole[variable].values, rtol=1e-3, atol=1e-3)


def test_a_spatial_step_before_the_common_grid_is_refused():
    with pytest.raises(StudyFileError, match="averages the spectra of the product"):
        resolve_preset(["align", "background", "spatial", "rebin"])
