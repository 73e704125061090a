"""Whole acquisitions: against the measured table, reproducible, and on disk with their truth."""

import csv
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from pydantic import ValidationError

from eelsflow.errors import InputError, OutputPathError
from eelsflow.io.zarr_store import open_dataset, open_spectrum_image
from eelsflow.simulator import PRESETS, Acquisition, AcquisitionParameters, simulate_acquisition, simulate_directory
from eelsflow.simulator.acquisition import _draw_axis_error
from eelsflow.simulator.detector import Detector, DetectorParameters
from eelsflow.spectrum_image import check_spectrum_image

PAPER = PRESETS["paper"]
SMALL = (12, 12)


def with_values(parameters: AcquisitionParameters = PAPER, **changes: dict[str, object]) -> AcquisitionParameters:
    """Return parameters with values of their parts replaced, part by part."""
    parts = {name: getattr(parameters, name).model_copy(update=values) for name, values in changes.items()}
    return parameters.model_copy(update=parts)


def at_energy(acquisition: Acquisition) -> np.ndarray:
    """True energies of the channels, mean over the scan."""
    nominal, attrs = acquisition.image["energy_loss"].values, acquisition.truth.attrs
    return 530.0 + (nominal + attrs["offset"] - 530.0) * (1.0 + attrs["dispersion_error"])


@pytest.fixture(scope="module")
def acquisitions() -> dict[str, Acquisition]:
    """One acquisition of either pure oxide and a core-shell one, at the middle of the levels' ranges."""
    fixed = with_values(
        levels={"dose": (1.0, 1.0), "background_exponent": (3.38, 3.38), "support_exponent": (3.69, 3.69)}
    )
    return {
        kind: simulate_acquisition(with_values(fixed, specimen={"kind": kind}), 7)
        for kind in ("FeO", "Fe3O4", "core_shell")
    }


@pytest.fixture(scope="module")
def magnetite(acquisitions: dict[str, Acquisition]) -> Acquisition:
    return acquisitions["Fe3O4"]


def mean_edge(acquisition: Acquisition) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """True energies, mean counts of the specimen, the same less the power law before O K, and its exponent."""
    energy = at_energy(acquisition)
    spikes = acquisition.truth["spike_mask"].values | acquisition.truth["dead_channels"].values
    counts = np.where(spikes, np.nan, acquisition.image.values)[~acquisition.truth["vacuum"].values]
    with np.errstate(all="ignore"):
        mean = np.array([np.nanmean(c) if np.isfinite(c).any() else np.nan for c in counts.T])
    mean = np.interp(energy, energy[np.isfinite(mean)], mean[np.isfinite(mean)])
    before = (energy >= 495.0) & (energy < 522.0)
    slope, amplitude = np.polyfit(np.log(energy[before]), np.log(mean[before]), 1)
    return energy, mean, mean - np.exp(amplitude) * energy**slope, -float(slope)


def test_level_background_and_peak_are_the_measured_ones(magnetite: Acquisition) -> None:
    energy, mean, edge, exponent = mean_edge(magnetite)
    thickness = magnetite.truth["thickness"].values
    relative = thickness[thickness > 0.25 * thickness.max()].mean() / 35.0
    near = np.abs(energy - 490.0) < 3.0
    assert mean[near].mean() == pytest.approx(65.0 + 340.0 * relative, rel=0.03)
    film = magnetite.image.values[thickness == 0][:, near].mean()
    assert film == pytest.approx(65.0, rel=0.05)
    assert exponent == pytest.approx(3.38, abs=0.08)
    assert edge[(energy > 536.0) & (energy < 543.0)].max() == pytest.approx(300.0 * relative, rel=0.08)


def test_mean_spectrum_has_the_measured_shape(magnetite: Acquisition) -> None:
    energy, _, edge, _ = mean_edge(magnetite)
    smooth = np.convolve(edge, np.ones(3) / 3.0, mode="same")
    main = smooth[(energy > 536.0) & (energy < 543.0)].max()
    measured = {0.0: 0.63, 3.3: 0.32, 7.0: 0.81, 9.0: 1.0, 20.0: 0.40, 30.5: 0.72, 43.0: 0.55}
    for position, height in measured.items():
        # every acquisition has a shape of its own within the ranges; the mean spectrum has 2 % of noise left
        assert np.interp(530.0 + position, energy, smooth) / main == pytest.approx(height, abs=0.1), position


def test_background_before_iron_has_the_measured_exponent(magnetite: Acquisition) -> None:
    energy, mean, _, _ = mean_edge(magnetite)
    before = (energy > 655.0) & (energy < 697.0)
    assert -np.polyfit(np.log(energy[before]), np.log(mean[before]), 1)[0] == pytest.approx(3.05, abs=0.2)


def test_iron_lines_lie_where_measured(magnetite: Acquisition) -> None:
    energy, mean, edge, _ = mean_edge(magnetite)
    before = (energy > 655.0) & (energy < 697.0)
    slope, amplitude = np.polyfit(np.log(energy[before]), np.log(mean[before]), 1)
    lines = mean - np.exp(amplitude) * energy**slope
    l3, l2 = (energy > 700.0) & (energy < 713.0), (energy > 715.0) & (energy < 727.0)
    position = energy[l3][lines[l3].argmax()]
    assert position - 530.0 == pytest.approx(177.5, abs=0.8)
    assert energy[l2][lines[l2].argmax()] - position == pytest.approx(13.0, abs=1.0)
    assert lines[l3].max() / lines[l2].max() == pytest.approx(2.77, rel=0.12)
    assert (lines[l3] > 0.5 * lines[l3].max()).sum() * 0.25 == pytest.approx(5.0, abs=0.5)
    assert lines[l3].max() / edge[(energy > 536.0) & (energy < 543.0)].max() == pytest.approx(2.4, rel=0.12)


def test_raw_noise_is_the_measured_share_of_the_peak(magnetite: Acquisition) -> None:
    """Noise rms over the fine-structure window of a pixel, against the O K main peak: .16."""
    energy, _, edge, _ = mean_edge(magnetite)
    window = (energy >= 525.0) & (energy < 555.0)
    thickness = magnetite.truth["thickness"].values
    thick = thickness > 0.95 * thickness.max()
    clean = ~magnetite.truth["spike_mask"].values[thick].any(axis=1)
    counts = magnetite.image.values[thick][clean][:, window].astype(float)
    relative = thickness[thick].mean() / thickness[~magnetite.truth["vacuum"].values].mean()
    noise = np.sqrt(counts.var(axis=0).mean())
    assert noise / (relative * edge[(energy > 536.0) & (energy < 543.0)].max()) == pytest.approx(0.16, abs=0.025)


def test_noise_of_the_film_follows_the_measured_law(magnetite: Acquisition) -> None:
    film = magnetite.truth["thickness"].values == 0
    spikes = magnetite.truth["spike_mask"].values[film]
    counts = np.where(spikes, np.nan, magnetite.image.values[film].astype(float))[:, :400]
    mean, variance = np.nanmean(counts, axis=0), np.nanvar(counts, axis=0)
    alive = ~magnetite.truth["dead_channels"].values[:400]
    # the film's unevenness adds its square to the Poisson and read-out variance
    expected = 5.55 * mean + 6.4**2 + (0.05 * mean) ** 2
    assert (variance / expected)[alive].mean() == pytest.approx(1.0, abs=0.06)


def test_about_five_components_stand_above_the_noise() -> None:
    """Singular values of a raw image against those of the noise of a detector that sees its mean spectra.

    For as many spectra as the measured image had (658,920 channels are some 320 spectra), spikes included.
    """
    n_above = []
    for seed in range(5):
        scan = with_values(specimen={"kind": "core_shell", "largest_share": 0.8}, detector={"n_dead_channels": (0, 0)})
        acquisition = simulate_acquisition(scan.model_copy(update={"shape": (17, 19)}), seed)
        counts = acquisition.image.values.astype(float).reshape(-1, 2048)
        thickness = acquisition.truth["thickness"].values.ravel()
        thick = thickness > 0.9 * thickness.max()
        film, particle = (np.median(counts[where], axis=0) for where in (thickness == 0, thick))
        share = (thickness / thickness[thick].mean())[:, None]
        model = np.clip(film + share * (particle - film), 0.0, None).astype(np.float32)
        rng = np.random.default_rng(seed)
        still = DetectorParameters(gain_pattern=0.0, n_dead_channels=(0, 0), spike_rate=0.0)
        noise = Detector.draw(still, n_channels=2048, rng=rng).record(model, rng=rng)[0] - model
        weight = 1.0 / np.sqrt(np.maximum(counts.mean(axis=0), 1.0))  # makes Poisson noise even over the channels
        values, bound = (np.linalg.svd(x * weight, compute_uv=False) for x in (counts, noise))
        n_above.append(int((values > bound[0]).sum()))
    assert 3 <= np.median(n_above) <= 7, n_above  # 5 were measured


def test_pre_peak_lies_at_530_after_adding_the_true_offset() -> None:
    """With the dispersion and the drift wrong too; noise taken away by raising the dose."""
    for seed in range(4):
        bright = with_values(
            levels={"dose": (100.0, 100.0)}, specimen={"kind": "Fe3O4"}, detector={"n_dead_channels": (0, 0)}
        )
        acquisition = simulate_acquisition(bright.model_copy(update={"shape": (16, 16)}), seed)
        energy = acquisition.image["energy_loss"].values + acquisition.truth.attrs["offset"]
        mean = acquisition.image.values[~acquisition.truth["vacuum"].values].mean(axis=0)
        near = np.abs(energy - 530.0) < 1.2
        a, b, _ = np.polyfit(energy[near] - 530.0, mean[near], 2)
        # the background, and the plasmon of this acquisition, pull the maximum by some hundredths of an eV
        assert -b / (2.0 * a) == pytest.approx(0.0, abs=0.1)


def test_offsets_spread_with_tails_inside_the_limit() -> None:
    rng = np.random.default_rng(1)
    offsets = np.array([_draw_axis_error(PAPER.axis, n_rows=4, rng=rng).offset for _ in range(2000)])
    assert np.abs(offsets).max() <= 8.0
    assert np.abs(np.median(offsets)) < 0.2
    assert 1.0 < np.median(np.abs(offsets)) * 1.48 < 3.0  # standard deviation of the bell: 1-3 eV
    assert np.abs(offsets).max() > 7.0


def test_drift_has_zero_mean_and_stays_below_its_limit(magnetite: Acquisition) -> None:
    drift = magnetite.truth["drift"].values
    assert drift.mean() == pytest.approx(0.0, abs=1e-12)
    assert np.ptp(drift) <= 0.06
    assert magnetite.truth.attrs["drift"] == pytest.approx(drift[-1] - drift[0])


def test_acquisition_follows_the_schema_and_keeps_its_truth(acquisitions: dict[str, Acquisition]) -> None:
    for kind, acquisition in acquisitions.items():
        check_spectrum_image(acquisition.image)
        assert acquisition.image.dtype == np.int32
        assert acquisition.image.values.min() < 0
        energy = acquisition.image["energy_loss"].values
        assert (energy[0], energy[-1], energy.size) == (450.0, 961.75, 2048)
        truth = acquisition.truth
        assert truth["phase_fraction"].dims == ("phase", "y", "x")
        total = truth["thickness"].values
        np.testing.assert_array_equal(truth["vacuum"].values, total < 0.25 * total.max())
        fraction = truth["phase_fraction"].values
        np.testing.assert_allclose(fraction.sum(axis=0), total > 0, atol=1e-6)
        present = {name for name, part in zip(truth["phase"].values, fraction, strict=True) if part.any()}
        assert present == ({"FeO", "Fe3O4"} if kind == "core_shell" else {kind})
        depth = truth["relative_thickness"].values[total > 0.9 * total.max()]
        assert 0.2 < depth.min() < depth.max() < 0.6  # cubes of 30-50 nm, tilted


def test_same_seed_gives_the_same_acquisition_and_another_seed_another() -> None:
    parameters = PAPER.model_copy(update={"shape": SMALL})
    one, again, other = (simulate_acquisition(parameters, seed) for seed in (1, 1, 2))
    xr.testing.assert_identical(one.image, again.image)
    xr.testing.assert_identical(one.truth, again.truth)
    assert not (one.image.values == other.image.values).all()
    sequence = np.random.SeedSequence(1)
    for _ in range(2):  # using a seed sequence must not use it up
        xr.testing.assert_identical(simulate_acquisition(parameters, sequence).image, one.image)


def test_another_detector_sees_the_same_specimen() -> None:
    parameters = PAPER.model_copy(update={"shape": SMALL})
    noisier = with_values(parameters, detector={"readout_noise": 30.0, "spike_rate": 1e-4})
    one, other = simulate_acquisition(parameters, 3), simulate_acquisition(noisier, 3)
    for name in ("thickness", "phase_fraction", "drift", "dead_channels"):
        xr.testing.assert_identical(one.truth[name], other.truth[name])
    assert one.truth.attrs["offset"] == other.truth.attrs["offset"]


def test_clean_preset_has_no_axis_error_and_no_damage() -> None:
    acquisition = simulate_acquisition(PRESETS["clean"].model_copy(update={"shape": SMALL}), 0)
    truth = acquisition.truth
    assert (truth.attrs["offset"], truth.attrs["dispersion_error"], truth.attrs["drift"]) == (0.0, 0.0, 0.0)
    assert not truth["spike_mask"].values.any()
    assert not truth["dead_channels"].values.any()


def test_a_seed_below_zero_is_refused() -> None:
    with pytest.raises(InputError, match="must not be negative"):
        simulate_acquisition(PAPER, -1)


def test_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(ValidationError, match="thickness"):
        AcquisitionParameters.model_validate({**PAPER.model_dump(), "thickness": 3})


def test_directory_holds_acquisitions_truth_and_manifest(tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    manifest = simulate_directory(
        tmp_path / "raw", n_acquisitions=6, seed=5, shape=SMALL, progress=lambda n, total: done.append((n, total))
    )
    assert done == [(n, 6) for n in range(1, 7)]
    with manifest.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["path", "label", "group", "truth"]
    labels = [row["label"] for row in rows]
    assert (labels.count("FeO"), labels.count("Fe3O4"), labels.count("")) == (2, 2, 2)
    assert len({row["group"] for row in rows}) == 6
    seen = set()
    for row in rows:
        image = open_spectrum_image(manifest.parent / row["path"])
        truth = open_dataset(manifest.parent / row["truth"])
        assert image.shape == truth["spike_mask"].shape == (*SMALL, 2048)
        assert image.attrs["sha256"] == truth.attrs["sha256"]
        assert list(truth["phase"].values) == ["FeO", "Fe3O4"]
        if row["label"]:
            index = list(truth["phase"].values).index(row["label"])
            oxide = truth["thickness"].values > 0
            np.testing.assert_allclose(truth["phase_fraction"].values[index][oxide], 1.0)
        seen.add(truth.attrs["offset"])
    assert len(seen) == 6  # every acquisition has errors of its own
    assert sorted(path.name for path in manifest.parent.iterdir()) == sorted(
        ["manifest.csv", *(row[key] for row in rows for key in ("path", "truth"))]
    )


def test_asking_for_more_acquisitions_adds_to_the_same_ones(tmp_path: Path) -> None:
    for n in (1, 2):
        simulate_directory(tmp_path / str(n), n_acquisitions=n, seed=9, shape=SMALL)
    name = "cubes-000-FeO.zarr"
    few, more = (open_spectrum_image(tmp_path / str(n) / name) for n in (1, 2))
    xr.testing.assert_identical(few, more)


def test_truth_on_disk_is_the_truth_in_memory(tmp_path: Path) -> None:
    simulate_directory(tmp_path, n_acquisitions=1, seed=4, shape=SMALL)
    alone = PAPER.model_copy(update={"shape": SMALL, "specimen": PAPER.specimen.model_copy(update={"kind": "FeO"})})
    truth = simulate_acquisition(alone, np.random.SeedSequence(4, spawn_key=(0,))).truth
    xr.testing.assert_identical(open_dataset(tmp_path / "cubes-000-FeO.truth.zarr"), truth)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_acquisitions": 0}, "at least 1"),
        ({"seed": -3}, "must not be negative"),
        ({"preset": "papers"}, "no simulator preset is called 'papers'; there are paper, clean"),
    ],
)
def test_what_cannot_be_simulated_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        simulate_directory(tmp_path, **{"n_acquisitions": 1, "seed": 0, **changes})  # type: ignore[arg-type]
    assert not (tmp_path / "manifest.csv").exists()


def test_a_directory_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputPathError, match="cannot write to"):
        simulate_directory(tmp_path / "file" / "raw", n_acquisitions=1, seed=0)
