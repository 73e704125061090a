"""The plan: which dose, or how many averaged pixels, a wanted accuracy or error of the fraction needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from eelsflow.dose.curves import Answer, Curve, Draws, fraction_curve
from eelsflow.dose.pilot import Pilot
from eelsflow.dose.shapes import class_shapes
from eelsflow.errors import InputError
from eelsflow.maps.judge import say_unlike
from eelsflow.models.bundle import ModelBundle
from eelsflow.preprocess.transform import ELECTRONS_PER
from eelsflow.store import make_directory, write_json
from eelsflow.unmixing.references import mean_shape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = "eelsflow-dose-plan/1"
RANGE = (0.1, 1e5)
"""Electrons per pixel and channel of .1 eV that are looked at."""
_PER_DECADE = 4  # doses that are looked at


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
    warnings
        What to know before the plan is believed.
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
    warnings: tuple[str, ...] = ()

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
        """Return warnings and answers as a person reads them."""
        said = [f"warning: {warning}" for warning in self.warnings]
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
    uncalibrated: ModelBundle | None = None,
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
    uncalibrated
        The model that takes over where edges lie as far apart as in no compound, which `bundle` expects of no file.
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
    pilot, said = Pilot.of(image, bundle), ""
    if pilot.unlikely:
        said = "; ".join(pilot.unlikely) + ": the dispersion of this file is not as well known as the model expects"
        if uncalibrated is None:
            said += ", so classes are taken for each other: calibrate the axis"
        else:
            said += ", so the plan is for its model for files whose dispersion is not known"
            bundle, pilot = uncalibrated, Pilot.of(image, uncalibrated)
    shapes, measured = class_shapes(pilot, bundle, labels)
    rng = np.random.default_rng(seed)
    field = Draws.of(pilot, shapes, bundle, rng)
    doses = np.geomspace(*RANGE, round(np.log10(RANGE[1] / RANGE[0]) * _PER_DECADE) + 1) / pilot.electrons
    many = np.append(1.0, doses[doses > 1.0])
    limit = field.accuracy(np.inf, 1.0)
    by_dose = by_number = field.curve(doses, np.ones_like(doses), limit)
    if pilot.fitted.noise.readout_variance > 0:
        by_number = field.curve(many, many, limit)
    errors = fraction_curve(doses, pilot, shapes, readout=lambda factor: 1.0 / factor)
    errors_averaged = fraction_curve(many, pilot, shapes, readout=lambda factor: 1.0)
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
        warnings=(*([said] if said else []), *_warnings_about(pilot, bundle, labelled=labels is not None)),
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


def _warnings_about(pilot: Pilot, bundle: ModelBundle, *, labelled: bool) -> Iterator[str]:
    shapes, references = pilot.single[pilot.telling], bundle.references
    unlike = say_unlike(
        references,
        mean_distance=float(references.distance(mean_shape(shapes))[0]),
        unknown=int((references.distance(shapes) > references.pixel_limit).sum()),
        pixels=int(pilot.telling.sum()),
    )
    if unlike is not None:
        yield f"{unlike}. The plan is for the classes of the model, and this may be another specimen"
    if bundle.provenance.get("alone_of"):
        yield f"the file shows {bundle.edge.name} alone, so the plan is for the model of that edge"
    if not labelled:
        yield (
            f"what the pixels are is what {bundle.name} says of them; the plan is surer where that is known (--label, "
            "--truth)"
        )


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
