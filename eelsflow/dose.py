"""How many electrons, or how many averaged pixels, a wanted accuracy or error of the fraction needs.

From one acquisition: its pixels' expected counts, with the shapes of the model's classes put in (`_ClassShapes`), are
recorded anew at other doses by the noise that was estimated (`record`), prepared and judged as the acquisition's own
spectra are. The error of a fraction follows from the covariance of least squares. What no dose removes stays in both:
the model's own mistakes, and what acquisitions of one class differ by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from eelsflow.dataset.labels import UNLABELLED
from eelsflow.energy import EnergyAxis
from eelsflow.errors import InputError
from eelsflow.io.zarr_store import Block
from eelsflow.models.bundle import ModelBundle
from eelsflow.preprocess import presets
from eelsflow.preprocess.background import exponent_moments, pooled_prior
from eelsflow.preprocess.chain import Part, check_image, finish, fit_acquisition
from eelsflow.preprocess.noise import NoiseModel, sample_indices
from eelsflow.preprocess.rebin import rebin_linear
from eelsflow.preprocess.shapes import Shapes, band_edges, to_shapes, whitening
from eelsflow.preprocess.transform import ELECTRONS_PER, Fitted, product_axis, repair
from eelsflow.spectrum_image import energy_axis
from eelsflow.store import make_directory, write_json
from eelsflow.unmixing.field import COMMON, TELLING, unmix
from eelsflow.unmixing.references import mean_shape
from eelsflow.unmixing.structure import STRUCTURED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

SCHEMA = "eelsflow-dose-plan/1"

FEWEST_PIXELS = 32
"""Of a class, or of the specimen, from which expected counts are learnt; ours."""
RANGE = (0.1, 1e5)
"""Electrons per pixel and channel of .1 eV that are looked at."""
INTERVAL = (0.05, 0.95)
"""Quantiles of an interval: 90 % of acquisitions such as this one."""

_PER_DECADE = 4  # doses that are looked at
_N_ACQUISITIONS = 256  # draws of what acquisitions differ by, in pairs of opposite sign
_AS_GOOD = 0.002  # of an accuracy, by which the draws cannot tell it from that without noise
_N_PIXELS = 8  # spectra of each class in each of them
_N_ERRORS = 64  # draws of the classes' shapes that an error of the fraction is given an interval by
_N_NOISE = 2048  # spectra that the covariance of the noise is learnt from
_LEAST_POSTERIOR = 1e-6  # keeps the covariance of shapes that are known from being singular
_MOST_PIXELS = 4096  # of an image that its expected counts are learnt from


@dataclass(frozen=True)
class Curve:
    """A figure against the dose, or against the number of averaged pixels.

    Attributes
    ----------
    factor
        Dose relative to the acquisition's, or how many of its pixels are averaged, ascending, shape (n,).
    value, low, high
        What is expected, and between what 90 % of acquisitions such as this one lie, shape (n,).
    limit
        What is expected without any noise.
    """

    factor: Floats
    value: Floats
    low: Floats
    high: Floats
    limit: float

    def answer(self, target: float) -> Answer:
        """Return where the curve reaches a target: an accuracy where it rises, an error where it falls."""
        from scipy.special import ndtri

        rises = self.value[-1] >= self.value[0]

        def crossing(values: Floats) -> float | None:
            both = np.append(values, target)
            both = ndtri(np.clip(both, 1e-6, 1.0 - 1e-6)) if rises else -np.log(both)
            return _crossing(self.factor, both[:-1], float(both[-1]))

        better, worse = (self.high, self.low) if rises else (self.low, self.high)
        return Answer(target, crossing(self.value), crossing(better), crossing(worse))


@dataclass(frozen=True)
class Answer:
    """What a target needs.

    Attributes
    ----------
    target
        Accuracy, or standard error of the fraction.
    factor
        Dose relative to the acquisition's, or pixels of it to average; None where no dose reaches the target.
    low, high
        Between what 90 % of acquisitions such as this one need; None: more than any dose.
    """

    target: float
    factor: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class DosePlan:
    """What doses give, and which one is wanted.

    Attributes
    ----------
    model
        Name of the model.
    classes
        Its classes.
    electrons
        Of the acquisition, per pixel and channel of .1 eV: median over the pixels that the plan is for.
    pixel_size
        nm; None where it is not known.
    n_pixels
        That the plan is for: specimen, a quarter as thick as the thickest tenth at least.
    composition
        What the acquisition was taken for: fraction of each class, by what the model says or the labels.
    labelled
        Whether labels said it.
    readout_share
        Of the noise of a pixel at the acquisition's dose, variance of the read-out over all variance.
    accuracy, accuracy_averaged
        Share of single pixels of one class that are named rightly, mean over the classes, against the dose and against
        the number of averaged pixels.
    fraction_error, fraction_error_averaged
        Standard error of a class's fraction in a single pixel, root mean square over pixels and classes, likewise.
    answers
        By ``accuracy`` and ``fraction_error``, those that were asked for: of the dose, and of pixels to average.
    measured_accuracy
        Of the acquisition's own labelled pixels, mean over its classes; None without labels.
    """

    model: str
    classes: list[str]
    electrons: float
    pixel_size: float | None
    n_pixels: int
    composition: dict[str, float]
    labelled: bool
    readout_share: float
    accuracy: Curve
    accuracy_averaged: Curve
    fraction_error: Curve
    fraction_error_averaged: Curve
    answers: dict[str, tuple[Answer, Answer]]
    measured_accuracy: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; electrons are per pixel and channel of .1 eV, ``side_nm`` is of the averaged square."""
        values = asdict(self)
        for name in ("accuracy", "accuracy_averaged", "fraction_error", "fraction_error_averaged"):
            curve: Curve = getattr(self, name)
            values[name] = {key: array.tolist() for key, array in asdict(curve).items() if key != "limit"}
            values[name] |= {"electrons": (curve.factor * self.electrons).tolist(), "limit": curve.limit}
        values["answers"] = {
            name: {
                "dose": asdict(dose) | {"electrons": _times(dose.factor, self.electrons)},
                "averaged": asdict(averaged) | _square(averaged.factor, self.pixel_size),
            }
            for name, (dose, averaged) in self.answers.items()
        }
        return {"schema": SCHEMA, **values, "electrons_per_ev": ELECTRONS_PER}

    def sentences(self) -> list[str]:
        """Return the answers as a person reads them."""
        said = []
        for name, (dose, averaged) in self.answers.items():
            curve: Curve = getattr(self, name)
            what = (
                f"accuracy {dose.target:g}" if name == "accuracy" else f"standard error {dose.target:g} of a fraction"
            )
            if dose.factor is None:
                beyond = curve.limit > dose.target if name == "accuracy" else curve.limit < dose.target
                said.append(
                    f"{what} needs more than {RANGE[1]:g} electrons per pixel and channel of {ELECTRONS_PER:g} eV"
                    if beyond
                    else f"{what} is not reached at any dose: without noise it is {curve.limit:.3f}, by the "
                    "classes' shapes and what the model makes of them"
                )
                continue
            low, high = (_number(_times(bound, self.electrons)) for bound in (dose.low, dose.high))
            text = (
                f"{what}: {_number(dose.factor * self.electrons)} electrons per pixel and channel of {ELECTRONS_PER:g} "
                f"eV, {low} to {high} (this acquisition has {_number(self.electrons)}: factor {_number(dose.factor)})"
            )
            if averaged.factor is None:
                text += "; no number of averaged pixels gives it at this dose"
            elif averaged.factor <= 1:
                text += "; single pixels at this dose give it"
            else:
                square = _square(averaged.factor, self.pixel_size)
                nm = f", {_number(square['side_nm'])} nm" if square["side_nm"] is not None else ""
                text += (
                    f"; or average {square['pixels']} pixels at this dose "
                    f"(a square of {square['side']} x {square['side']}{nm})"
                )
            said.append(text)
        return said

    def plot(self) -> Figure:
        """Return the curves as a figure: accuracy and error of the fraction against the electrons of a spectrum."""
        from eelsflow.report.dose import dose_figure

        return dose_figure(
            (self.accuracy, self.accuracy_averaged),
            (self.fraction_error, self.fraction_error_averaged),
            electrons=self.electrons,
            answers=self.answers,
            n_classes=len(self.classes),
            title=f"Single pixels by {self.model}",
        )


def plan_dose(
    image: xr.DataArray,
    bundle: ModelBundle,
    *,
    accuracy: float | None = None,
    fraction_error: float | None = None,
    labels: NDArray[np.str_] | None = None,
    seed: int = 0,
) -> DosePlan:
    """Plan the dose of acquisitions such as one that was recorded.

    Parameters
    ----------
    image
        Raw counts of the acquisition, by the schema of `eelsflow.spectrum_image`; not modified.
    bundle
        The model.
    accuracy
        Wanted share of single pixels of one class that are named rightly, above chance and below 1.
    fraction_error
        Wanted standard error of a class's fraction in a single pixel, between 0 and 1.
    labels
        Class of each pixel, shape (y, x), as `eelsflow.dataset.labels.label_pixels` gives it; pixels of no class of the
        model are left out. None: the model says what the acquisition holds.
    seed
        Of the draws.

    Raises
    ------
    InputError
        If a target is no share, the model's preset cannot be planned for, the labels do not fit, or there is too little
        specimen.
    EelsflowError
        As `eelsflow.preprocess.chain.prepare`.

    Notes
    -----
    Expected counts: least squares of the recorded channels on a constant, the counts before the edge and their square
    (whose noise is not that of the edge), and these counts times the row of the scan, with which the energy axis may
    drift; then the mean edge times what is left of a pixel's own without its noise. Shapes of the classes: those that
    the acquisition shows itself (labelled, or found by the model) are taken from it; the others are the references',
    moved by `COMMON` of what the acquisition deviates from them by, with what is left of their spread. A field that has
    no structure is of each class with the probability that the model gives. What the energy offset is wrong by is that
    of this acquisition. All choices are ours.

    Averaged pixels: m times the counts with m times the variance of the read-out; that each pixel's background is
    fitted alone is left out.

    The model decides on each spectrum alone, also one that maps by the field (`ModelBundle.maps_by_fraction`):
    neighbours lend nothing here.
    """
    _check_targets(accuracy, fraction_error, len(bundle.classes))
    pilot = _Pilot.of(image, bundle)
    shapes, measured = _hypotheses(pilot, bundle, labels)
    rng = np.random.default_rng(seed)
    field = _Draws.of(pilot, shapes, bundle, rng)
    doses = np.geomspace(*RANGE, round(np.log10(RANGE[1] / RANGE[0]) * _PER_DECADE) + 1) / pilot.electrons
    many = np.append(1.0, doses[doses > 1.0])
    limit = field.accuracy(np.inf, 1.0)
    by_dose = by_number = field.curve(doses, np.ones_like(doses), limit)
    if pilot.fitted.noise.readout_variance > 0:
        by_number = field.curve(many, many, limit)
    errors = _fraction_curve(doses, pilot, shapes, readout=lambda factor: 1.0 / factor)
    errors_averaged = _fraction_curve(many, pilot, shapes, readout=lambda factor: 1.0)
    answers = {}
    if accuracy is not None:
        answers["accuracy"] = by_dose.answer(accuracy), by_number.answer(accuracy)
    if fraction_error is not None:
        answers["fraction_error"] = errors.answer(fraction_error), errors_averaged.answer(fraction_error)
    unit, size = image.attrs.get("pixel_unit"), float(image.attrs.get("pixel_size", np.nan))
    return DosePlan(
        model=bundle.name,
        classes=bundle.classes,
        electrons=pilot.electrons,
        pixel_size=size if unit == "nm" and np.isfinite(size) else None,
        n_pixels=int(pilot.telling.sum()),
        composition={name: float(shapes.composition[k]) for k, name in enumerate(bundle.classes)},
        labelled=labels is not None,
        readout_share=float(np.median(pilot.readout_share)),
        accuracy=by_dose,
        accuracy_averaged=by_number,
        fraction_error=errors,
        fraction_error_averaged=errors_averaged,
        answers=answers,
        measured_accuracy=measured,
    )


def write_plan(plan: DosePlan, directory: Path) -> None:
    """Write ``plan.json``, ``plan.png`` and ``plan.svg``; the directory is created where it does not exist.

    Raises
    ------
    OutputPathError
        If it cannot be written to.
    """
    from eelsflow.report.style import render

    make_directory(directory)
    write_json(directory / "plan.json", plan.to_dict())
    figure = plan.plot()
    for format in ("png", "svg"):
        (directory / f"plan.{format}").write_bytes(render(figure, format))


def record(
    expected: NDArray[np.floating], noise: NoiseModel, rng: np.random.Generator, *, readout: float = 1.0
) -> NDArray[np.float32]:
    """Record expected counts with the noise of a detector.

    Parameters
    ----------
    expected
        Shape (n, channels), counts, spread over the channels already; negative ones count as none.
    noise
        As estimated from an acquisition.
    rng
        Source of the draws.
    readout
        How many read-outs are in a spectrum.

    Returns
    -------
    counts
        Shape (n, channels).

    Notes
    -----
    Electrons are Poisson-distributed; what they deviate by is spread over the channels by the symmetric kernel whose
    autocorrelation is the noise's, so that variance and correlation are those of the model. The read-out is white.
    """
    from scipy.ndimage import convolve1d

    per_electron, mean = noise.counts_per_electron, np.maximum(expected, 0.0)
    deviation = np.zeros(mean.shape, dtype=np.float32)
    if per_electron > 0:
        electrons = mean / per_electron
        deviation = (rng.poisson(electrons) - electrons).astype(np.float32)
        deviation *= np.float32(np.sqrt(noise.gain * per_electron))
        kernel = spread_kernel(noise)
        if kernel.size > 1:
            deviation = np.asarray(convolve1d(deviation, kernel.astype(np.float32), axis=-1, mode="reflect"))
    counts = mean.astype(np.float32) + deviation
    if noise.readout_variance > 0:
        counts += np.float32(np.sqrt(noise.readout_variance * readout)) * rng.standard_normal(counts.shape, np.float32)
    return np.asarray(counts, dtype=np.float32)


def spread_kernel(noise: NoiseModel) -> Floats:
    """Return the symmetric kernel whose autocorrelation is that of the electrons' noise, sum of squares 1."""
    lags = noise.correlation[1:] / max(noise.electron_share, 0.1)
    if not lags.any():
        return np.ones(1)
    size = 512
    row = np.zeros(size)
    row[0] = 1.0
    row[1 : lags.size + 1] = row[size - lags.size :][::-1] = lags
    response = np.fft.irfft(np.sqrt(np.clip(np.fft.rfft(row).real, 0.0, None)), size)
    reach = 2 * lags.size
    kernel = np.concatenate([response[size - reach :], response[: reach + 1]])
    return np.asarray(kernel / np.sqrt((kernel**2).sum()))


def _check_targets(accuracy: float | None, fraction_error: float | None, n_classes: int) -> None:
    if accuracy is not None and not 1.0 / n_classes < accuracy < 1.0:
        raise InputError(
            f"the accuracy {accuracy:g} cannot be planned for: of {n_classes} classes chance gives "
            f"{1 / n_classes:.3g}, and no dose gives 1; name a share between, such as .95"
        )
    if fraction_error is not None and not 0.0 < fraction_error < 1.0:
        raise InputError(
            f"the standard error {fraction_error:g} of a fraction cannot be planned for: fractions lie between 0 and "
            "1; name an error between, such as .05"
        )


# -- the acquisition ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pilot:
    """What the acquisition shows, of the pixels that the plan is for (`telling` of the image, in its order)."""

    fitted: Fitted  # on the detector channels that are recorded anew
    telling: NDArray[np.bool_]  # (y, x)
    counts: NDArray[np.float32]  # (pixels, channels), spikes and dead channels bridged
    basis: Floats  # (pixels, functions): what expected counts are linear in
    edge_counts: Floats  # (pixels,), of the detector channels in the window, most of their noise left out
    rest: Floats  # (pixels,), the part of them that does not follow from the counts before the edge
    edge: Floats  # (channels,), what the edge adds, sum 1 in the window
    single: Shapes  # of the image, (y, x, bands)
    intensity: NDArray[np.float32]  # (y, x, channels of the product)
    band_bounds: Floats  # (bands + 1,), eV
    readout_share: Floats  # (pixels,)
    electrons: float

    @classmethod
    def of(cls, image: xr.DataArray, bundle: ModelBundle) -> _Pilot:
        preset, edge = bundle.acquisition_preset, bundle.edge
        if preset.find(presets.Background) is None or _denoises(preset):
            raise InputError(
                f"the model {bundle.name} is of the preset {preset.name}, which "
                + ("denoises the whole image" if _denoises(preset) else "subtracts no background")
                + ": what it would make of another dose cannot be drawn pixel by pixel; name a model of `recommended`"
            )
        check_image(image, edge=edge)
        n_y, n_x, _ = image.shape
        whole = Part(image.values, Block(slice(0, n_y), slice(0, n_x)), width=n_x)
        acquisition = fit_acquisition(energy_axis(image), [whole], (n_y, n_x), edge=edge, preset=preset)
        part, fitted = acquisition.parts[0], acquisition.fitted
        product, axis = finish(part, fitted), product_axis(fitted)
        single = to_shapes(product["intensity"], product["variance"], axis, edge)
        specimen = ~product["vacuum_mask"]
        telling = specimen & single.known
        if telling.any():
            telling &= single.counts >= TELLING * np.quantile(single.counts[telling], 0.9)
        if telling.sum() < FEWEST_PIXELS:
            raise InputError(
                f"{int(telling.sum())} pixels show an edge above their noise, and {FEWEST_PIXELS} are needed to learn "
                "what counts are expected: record more pixels or electrons for a first look"
            )
        chosen = np.flatnonzero(telling)
        chosen = chosen[sample_indices(chosen.size, _MOST_PIXELS)]
        telling = np.isin(np.arange(telling.size), chosen).reshape(telling.shape)
        recorded = _recorded_channels(fitted)
        counts = repair(part.read(), fitted.dead_channels, part.spikes, recorded)[chosen]
        begin = fitted.axis.values[recorded.start]
        fitted = replace(
            fitted,
            axis=EnergyAxis(float(begin), fitted.axis.dispersion, recorded.stop - recorded.start),
            dead_channels=np.zeros(recorded.stop - recorded.start, dtype=bool),
        )
        corrected = fitted.corrected_axis
        before, inside = corrected.channels(edge.background_window), corrected.channels(edge.elnes_window)
        pivot = np.sqrt(edge.background_window[0] * edge.background_window[1])
        fall = (corrected.values[inside] / pivot)[None] ** -product["background_exponent"].ravel()[chosen, None]
        background = product["background_amplitude"].ravel()[chosen] * fall.sum(axis=1)
        total = counts[:, inside].sum(axis=1, dtype=np.float64)
        below = counts[:, before].sum(axis=1, dtype=np.float64)
        level = below / below.mean()
        row = np.nonzero(telling)[0] / max(n_y - 1, 1) - 0.5
        basis = np.stack([np.ones_like(level), level, level**2, row * level], axis=1)
        edge_counts = total - background
        by_level = basis @ np.linalg.lstsq(basis, edge_counts)[0]
        noise = fitted.noise.counts_per_electron * (total + background**2 / np.maximum(below, 1.0))
        rest = edge_counts - by_level
        rest *= max(1.0 - float(noise.mean() / max(rest.var(), 1e-30)), 0.0)
        values = corrected.values
        amplitude, exponent = (product[f"background_{name}"].ravel()[chosen] for name in ("amplitude", "exponent"))
        mean_background = float(amplitude.mean()) * (values / pivot) ** -float(exponent.mean())
        net = np.where(values < edge.background_window[1], 0.0, counts.mean(axis=0, dtype=np.float64) - mean_background)
        net /= net[inside].sum()
        readout = (inside.stop - inside.start) * fitted.noise.readout_variance
        variance = fitted.noise.gain * np.maximum(total, 0.0) + readout
        edges = product_axis(fitted).boundaries[band_edges(axis, edge)]
        return cls(
            fitted, telling, counts, basis, by_level + rest, rest, net, single, product["intensity"], edges,
            readout / np.maximum(variance, 1e-30), float(np.median(product["electrons"][telling])),
        )  # fmt: skip

    def relative_variance(self, factor: float, readout: float) -> Floats:
        """Return that of each pixel's window at a dose, with `readout` times the read-out's part, (pixels,)."""
        own = self.single.relative_variance[self.telling] / factor
        return np.asarray(own * (1.0 - self.readout_share + self.readout_share * readout))


def _denoises(preset: presets.Preset) -> bool:
    return any(isinstance(step, presets.Pca) for step in preset.acquisition_steps)


def _recorded_channels(fitted: Fitted) -> slice:
    """Return the detector channels that the product depends on."""
    before = fitted.corrected_axis.channels(fitted.edge.background_window)
    return slice(min(before.start, fitted.crop.start), max(before.stop, fitted.crop.stop))


# -- the classes' shapes in it --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reading:
    """What the acquisition may hold, and the shapes that its classes have then.

    With G groups of pixels whose mean shapes were measured, K classes and the composition F (G, K) of the groups, the
    classes' shapes are normal about the references' with the covariance C (K, K) over the classes times the spread over
    the bands, C = COMMON + (1 - COMMON) 1, before the groups are looked at.
    """

    weight: float
    group: NDArray[np.intp]  # (pixels,), -1 where a pixel takes no part
    measured: Floats  # (groups, bands)
    measured_variance: Floats  # (groups,), relative
    mean: Floats  # (classes, bands)
    gain: Floats  # (classes, groups): what a class follows of what is measured
    left: Floats  # (classes, classes): of the spread, what is still open
    own: NDArray[np.intp]  # (classes,): the group that a class's pixels are taken from, -1 for all

    @classmethod
    def of(
        cls, weight: float, group: NDArray[np.intp], composition: Floats, pilot: _Pilot, references: Floats
    ) -> _Reading:
        n_classes = len(references)
        shapes = pilot.single[pilot.telling]
        means = [mean_shape(shapes[group == number]) for number in range(len(composition))]
        measured = np.concatenate([one.values for one in means])
        common = COMMON + (1.0 - COMMON) * np.eye(n_classes)
        seen = composition @ common @ composition.T + _LEAST_POSTERIOR * np.eye(len(composition))
        gain = np.asarray(np.linalg.solve(seen, composition @ common).T, dtype=np.float64)
        mean = references + gain @ (measured - composition @ references)
        own = np.full(n_classes, -1, dtype=np.intp)
        for number, share in enumerate(composition):
            if len(composition) > 1:
                own[share.argmax()] = number
        return cls(
            weight, group, measured, np.concatenate([one.relative_variance for one in means]),
            mean, gain, np.asarray(common - gain @ composition @ common), own,
        )  # fmt: skip

    def draw(self, n_pairs: int, spread: Floats, noise: Floats, rng: np.random.Generator) -> Floats:
        """Draw the classes' shapes in acquisitions such as this one, (2 pairs, classes, bands), mean `self.mean`."""
        open_part = _root(self.left) @ rng.standard_normal((n_pairs, *self.mean.shape)) @ _root(spread).T
        error = rng.standard_normal((n_pairs, len(self.measured), self.mean.shape[1])) @ _root(noise).T
        part = open_part + self.gain @ (error * np.sqrt(self.measured_variance)[:, None])
        return np.asarray(self.mean + np.concatenate([part, -part]))


@dataclass(frozen=True)
class _ClassShapes:
    """All readings of the acquisition, and what the bands vary by."""

    readings: list[_Reading]
    composition: Floats  # (classes,)
    spread: Floats  # (bands, bands), between acquisitions
    noise: Floats  # (bands, bands), for a relative variance of 1
    within: Floats  # (bands, bands), between the pixels of one class


def _root(covariance: Floats) -> Floats:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))


def _hypotheses(
    pilot: _Pilot, bundle: ModelBundle, labels: NDArray[np.str_] | None
) -> tuple[_ClassShapes, float | None]:
    """Return the shapes of the classes, and the share of labelled pixels that the model names rightly."""
    references = bundle.references
    order = [references.classes.index(name) for name in bundle.classes]
    means, n_classes = references.mean[order], len(order)
    everywhere = np.ones(pilot.telling.shape)
    unmixed = unmix(pilot.single, pilot.single, everywhere, pilot.telling, references)
    if labels is not None:
        group, held = _labelled_groups(labels, pilot, bundle.classes)
        reading = _Reading.of(1.0, group, np.eye(n_classes)[held], pilot, means)
        composition = np.bincount(np.array(held)[group[group >= 0]], minlength=n_classes) / (group >= 0).sum()
        shapes = _ClassShapes([reading], composition, references.spread, *_recorded_shapes(pilot, group))
        return shapes, _share_right(pilot, bundle, labels, [bundle.classes[k] for k in held])
    fraction = unmixed.fraction[pilot.telling][:, order]
    composition = fraction.mean(axis=0)
    if unmixed.correlation >= STRUCTURED:
        nearest = fraction.argmax(axis=1)
        held = [k for k in range(n_classes) if np.count_nonzero(nearest == k) >= FEWEST_PIXELS]
        group = np.full(len(nearest), -1, dtype=np.intp)
        for number, k in enumerate(held):
            group[nearest == k] = number
        of_groups = np.array([fraction[group == number].mean(axis=0) for number in range(len(held))])
        readings = [_Reading.of(1.0, group, of_groups, pilot, means)]
    else:
        probability = unmixed.probability[pilot.telling][0, order]
        group = np.zeros(len(fraction), dtype=np.intp)
        readings = [
            _Reading.of(float(share), group, np.eye(n_classes)[[k]], pilot, means)
            for k, share in enumerate(probability)
        ]
    return _ClassShapes(readings, composition, references.spread, *_recorded_shapes(pilot, group)), None


def _recorded_shapes(pilot: _Pilot, group: NDArray[np.intp]) -> tuple[Floats, Floats]:
    """Return the covariance of a shape's noise for a relative variance of 1, and of pixels' shapes without noise.

    Of pixels that are recorded anew, since what neighbours differ by holds boundaries too, the more the higher the
    dose. The latter is within the groups: thickness and film change a shape. Both have the shape (bands, bands).
    """
    taking_part = np.flatnonzero(group >= 0)
    rows = taking_part[np.arange(max(_N_NOISE, taking_part.size)) % taking_part.size]
    expected = _expected_counts(pilot, group)[rows]
    counts = record(expected, pilot.fitted.noise, np.random.default_rng(0))
    axis, edge = product_axis(pilot.fitted), pilot.fitted.edge
    starts = band_edges(axis, edge)
    (mean, _), (intensity, variance) = (_prepare_again(part, pilot.fitted) for part in (expected, counts))
    window = slice(starts[0], starts[-1])
    mean, deviation = (
        np.add.reduceat(part[:, window], starts[:-1] - starts[0], axis=1, dtype=np.float64)
        for part in (mean, intensity - mean)
    )
    shape = mean / mean.sum(axis=1, keepdims=True)
    deviation -= shape * deviation.sum(axis=1, keepdims=True)  # linear: a ratio of few counts has no variance
    deviation /= np.sqrt(variance[:, window].sum(axis=1, dtype=np.float64))[:, None]
    for number in range(group.max() + 1):
        members = group[rows] == number
        shape[members] -= shape[members].mean(axis=0)
    return np.asarray(deviation.T @ deviation / len(deviation)), np.asarray(shape.T @ shape / len(shape))


def _labelled_groups(
    labels: NDArray[np.str_], pilot: _Pilot, classes: Sequence[str]
) -> tuple[NDArray[np.intp], list[int]]:
    """Return the number of each pixel's group, and the class of each group."""
    if labels.shape != pilot.telling.shape:
        raise InputError(
            f"the labels have the shape {labels.shape} and the image {pilot.telling.shape}; they must be of the same "
            "scan"
        )
    own = labels[pilot.telling]
    held = [k for k, name in enumerate(classes) if np.count_nonzero(own == name) >= FEWEST_PIXELS]
    if not held:
        found = sorted(set(own.tolist()) - {UNLABELLED})
        raise InputError(
            f"no class of the model ({', '.join(classes)}) has {FEWEST_PIXELS} labelled pixels that show an edge; the "
            f"labels are {', '.join(found) or 'empty'}: leave them out, or name a model of these classes"
        )
    group = np.full(own.size, -1, dtype=np.intp)
    for number, k in enumerate(held):
        group[own == classes[k]] = number
    return group, held


def _share_right(pilot: _Pilot, bundle: ModelBundle, labels: NDArray[np.str_], classes: Sequence[str]) -> float:
    """Return the share of labelled pixels that the model names rightly, mean over the classes."""
    predicted = _predict(pilot.intensity[pilot.telling], product_axis(pilot.fitted), bundle, None)
    own = labels[pilot.telling]
    return float(np.mean([(predicted[own == name] == name).mean() for name in classes]))


# -- what doses give ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Draws:
    """Expected counts of pixels of each class in acquisitions that may be, at the acquisition's own dose."""

    expected: NDArray[np.float32]  # (classes, acquisitions, pixels, channels)
    fitted: Fitted
    bundle: ModelBundle
    seed: int

    @classmethod
    def of(cls, pilot: _Pilot, shapes: _ClassShapes, bundle: ModelBundle, rng: np.random.Generator) -> _Draws:
        n_classes, n_pairs = len(shapes.composition), _N_ACQUISITIONS // 2
        weights = np.cumsum([reading.weight for reading in shapes.readings])
        chosen = np.searchsorted(weights / weights[-1], (np.arange(n_pairs) + 0.5) / n_pairs)
        boundaries = pilot.fitted.corrected_axis.boundaries
        parts = []
        for number in np.unique(chosen):
            reading, n = shapes.readings[number], int((chosen == number).sum())
            base = _expected_counts(pilot, reading.group)
            drawn = reading.draw(n, shapes.spread, shapes.noise, rng)
            expected = np.empty((n_classes, 2 * n, _N_PIXELS, boundaries.size - 1), dtype=np.float32)
            for k in range(n_classes):
                pool = np.flatnonzero(reading.group == reading.own[k] if reading.own[k] >= 0 else reading.group >= 0)
                pixels = rng.choice(pool, (2 * n, _N_PIXELS))
                change = drawn[:, k, None] - reading.measured[reading.group[pixels]]
                density = spread_bands(change, pilot.band_bounds, boundaries)
                expected[k] = base[pixels] + pilot.edge_counts[pixels][..., None] * density
            parts.append(expected)
        return cls(np.concatenate(parts, axis=1), pilot.fitted, bundle, int(rng.integers(2**31)))

    def accuracy(self, factor: float, readout: float) -> tuple[float, float]:
        """Return the share of pixels that are named rightly at a dose, and its variance between acquisitions."""
        n_classes, n_acquisitions, n_pixels, n_channels = self.expected.shape
        counts = self.expected.reshape(-1, n_channels)
        if np.isfinite(factor):
            counts = record(factor * counts, self.fitted.noise, np.random.default_rng(self.seed), readout=readout)
        group = np.tile(np.repeat([f"{number}" for number in range(n_acquisitions)], n_pixels), n_classes)
        intensity, _ = _prepare_again(counts, self.fitted)
        predicted = _predict(intensity, product_axis(self.fitted), self.bundle, group)
        names = np.asarray(self.bundle.classes)[:, None, None]
        right = predicted.reshape(n_classes, n_acquisitions, n_pixels) == names
        of_each = right.mean(axis=2)
        sampling = (of_each * (1.0 - of_each) / (n_pixels - 1)).sum(axis=0).mean() / n_classes**2
        mean = of_each.mean(axis=0)
        return float(mean.mean()), float(max(mean.var() - sampling, 0.0) + sampling / n_acquisitions)

    def curve(self, factor: Floats, readout: Floats, limit: tuple[float, float]) -> Curve:
        """Return the accuracy against the dose; doses beyond two that are as good as no noise get its accuracy."""
        found: list[tuple[float, float]] = []
        for dose, number in zip(factor, readout, strict=True):
            as_good = len(found) > 1 and min(found[-1][0], found[-2][0]) >= limit[0] - _AS_GOOD
            found.append(limit if as_good or (found and found[-1] is limit) else self.accuracy(dose, number))
        return _curve(factor, found, limit[0])


def _prepare_again(counts: NDArray[np.float32], fitted: Fitted) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return recorded spectra (n, channels) as prepared ones and their variance.

    The prior of the exponents is that of these spectra: how far it holds them together changes with the dose.
    """
    if fitted.prior is not None:
        energies, window, noise = fitted.corrected_axis.values, fitted.edge.background_window, fitted.noise
        prior = exponent_moments(energies, counts, window, noise=noise).prior()
        if noise.quantum:
            prior = pooled_prior(energies, counts.sum(axis=0, dtype=np.float64) / noise.quantum, window, prior)
        fitted = replace(fitted, prior=prior)
    part = Part(counts[:, None], Block(slice(0, len(counts)), slice(0, 1)), width=1)
    product = finish(part, fitted)
    return product["intensity"][:, 0], product["variance"][:, 0]


def spread_bands(change: Floats, bounds: Floats, boundaries: Floats) -> Floats:
    """Return what bands (..., bands) hold as channels (..., channels), smooth, with the same sum in every band.

    Parameters
    ----------
    change
        Of each band; nothing lies beyond them.
    bounds
        Of the bands, (bands + 1,), eV.
    boundaries
        Of the channels, (channels + 1,), eV.
    """
    from scipy.interpolate import CubicSpline

    total = np.concatenate([np.zeros((*change.shape[:-1], 1)), np.cumsum(change, axis=-1)], axis=-1)
    spline = CubicSpline(bounds, total, axis=-1)
    return np.asarray(np.diff(spline(np.clip(boundaries, bounds[0], bounds[-1])), axis=-1))


def _expected_counts(pilot: _Pilot, group: NDArray[np.intp]) -> NDArray[np.float32]:
    """Return the expected counts of each pixel by those of its group, (pixels, channels).

    How a shape changes with level and row, beyond what is in proportion, counts as far as it stands above its noise
    (James and Stein, positive part): else pixels would seem to differ by the noise of what was learnt.
    """
    expected = np.zeros(pilot.counts.shape, dtype=np.float32)
    for number in range(group.max() + 1):
        members = group == number
        rest = pilot.rest[members, None] * pilot.edge
        own = pilot.counts[members] - rest
        basis = np.linalg.qr(pilot.basis[members])[0]
        coefficients = basis.T @ own
        noise = float(pilot.fitted.noise.variance(own.mean(axis=0)).sum())
        coefficients[2:] *= np.maximum(1.0 - noise / (coefficients[2:] ** 2).sum(axis=1, keepdims=True), 0.0)
        expected[members] = basis @ coefficients + rest
    return expected


def _predict(
    intensity: NDArray[np.float32], axis: EnergyAxis, bundle: ModelBundle, group: NDArray[np.str_] | None
) -> NDArray[np.str_]:
    if axis.values.shape != bundle.transform.axis.values.shape or axis != bundle.transform.axis:
        intensity = np.asarray(rebin_linear(axis.values, intensity, bundle.transform.axis), dtype=np.float32)
    return bundle.predict(intensity, group=group)[0]


def _curve(factor: Floats, found: Sequence[tuple[float, float]], limit: float) -> Curve:
    """Return accuracies as a curve that does not fall, with the interval of a beta distribution."""
    from scipy.stats import beta
    from sklearn.isotonic import isotonic_regression

    mean = np.clip([value for value, _ in found], 1e-4, 1.0 - 1e-4)
    variance = np.clip([value for _, value in found], 1e-8, 0.99 * mean * (1.0 - mean))
    # between acquisitions, as a share of the most it could be: noisy dose by dose, and smooth over them
    share = np.pad(variance / (mean * (1.0 - mean)), 2, mode="edge")
    size = 1.0 / np.convolve(share, np.full(5, 0.2), mode="valid") - 1.0
    curves = [mean, *(beta.ppf(q, mean * size, (1.0 - mean) * size) for q in INTERVAL)]
    value, low, high = (np.asarray(isotonic_regression(curve)) for curve in curves)
    return Curve(factor, value, np.minimum(low, value), np.maximum(high, value), limit)


def _fraction_curve(factor: Floats, pilot: _Pilot, shapes: _ClassShapes, *, readout: Any) -> Curve:
    """Return the standard error of fractions by the covariance of least squares; see `DosePlan`."""
    whiten = whitening(shapes.noise)
    rng = np.random.default_rng(0)
    pixels = np.linspace(0, 1, 65)[:-1] + 1 / 128
    steps = np.append(factor, np.inf)
    relative = np.array([np.quantile(pilot.relative_variance(f, readout(f)), pixels) for f in steps])  # inf: none
    squares = np.zeros((1 + _N_ERRORS, steps.size))
    for reading in shapes.readings:
        drawn = np.concatenate([reading.mean[None], reading.draw(_N_ERRORS // 2, shapes.spread, shapes.noise, rng)])
        open_part = np.diag(reading.left).mean() * shapes.spread + shapes.within
        eigenvalues, vectors = np.linalg.eigh(whiten @ open_part @ whiten.T)
        left = np.maximum(eigenvalues, 0.0) + np.mean(reading.gain**2 @ reading.measured_variance)
        coordinates = drawn @ whiten.T @ vectors
        directions = coordinates[:, :-1] - coordinates[:, -1:]
        for number, values in enumerate(relative):
            weighted = directions[0] / (values[:, None, None] + left)  # (pixels, contrasts, bands)
            inverse = np.linalg.inv(weighted @ directions[0].T)
            # what these weights make of the contrasts that another acquisition of the same classes has
            slope = np.linalg.inv(inverse.mean(axis=0) @ weighted.mean(axis=0) @ directions.transpose(0, 2, 1))
            slope = slope @ np.linalg.inv(slope[0])
            covariance = slope @ inverse.mean(axis=0) @ slope.transpose(0, 2, 1)
            of_all = np.trace(covariance, axis1=-2, axis2=-1) + covariance.sum(axis=(-2, -1))
            squares[:, number] += reading.weight * of_all / len(reading.mean)
    errors = np.sqrt(squares / sum(reading.weight for reading in shapes.readings))
    value, others = errors[0], np.quantile(errors[1:], INTERVAL, axis=0)
    low, high = np.minimum(others[0], value), np.maximum(others[1], value)
    return Curve(factor, value[:-1], low[:-1], high[:-1], float(value[-1]))


def _crossing(factor: Floats, values: Floats, target: float) -> float | None:
    """Return where rising values reach a target; the first factor where they do from the start, None if they do not."""
    from scipy.interpolate import PchipInterpolator

    reached = np.flatnonzero(values >= target)
    if not reached.size:
        return None
    fine = np.linspace(np.log(factor[0]), np.log(factor[-1]), 4001)
    return float(np.exp(fine[np.argmax(PchipInterpolator(np.log(factor), values)(fine) >= target - 1e-9)]))


# -- how it is told -------------------------------------------------------------------------------------------------


def _times(factor: float | None, value: float) -> float | None:
    return None if factor is None else factor * value


def _square(pixels: float | None, pixel_size: float | None) -> dict[str, Any]:
    """Return whole pixels to average, and the square that holds them."""
    if pixels is None:
        return {"pixels": None, "side": None, "side_nm": None}
    whole = int(np.ceil(round(pixels, 6)))
    side = int(np.ceil(np.sqrt(whole)))
    return {"pixels": whole, "side": side, "side_nm": _times(pixel_size, side)}


def _number(value: float | None) -> str:
    return "more than any dose gives" if value is None else f"{value:.3g}"
