"""The library's face: what notebooks and programs call. `eelsflow` has these names, loaded when they are asked for.

The command line and the flows call the same functions. What is not here may change from one release to the next.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eelsflow.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import ArrayLike

    from eelsflow.dose import DosePlan
    from eelsflow.edges import Edge
    from eelsflow.explanation import Explanation
    from eelsflow.maps import Map
    from eelsflow.models.bundle import ModelBundle
    from eelsflow.search.estimator import SvmGridSearch
    from eelsflow.study.config import Study

Runner = Literal["loop", "prefect"]


def read(acquisition: Any) -> xr.DataArray:
    """Read a spectrum image, line scan or single spectrum.

    Parameters
    ----------
    acquisition
        A file of any format that is read (``eelsflow info --help`` lists them); also an array or a HyperSpy signal,
        which are brought into the same form.

    Returns
    -------
    xarray.DataArray
        Counts (y, x, energy_loss): eV along the energy, nm (or px) along y and x; see `eelsflow.spectrum_image`. Large
        files stay on disk until their counts are asked for.

    Raises
    ------
    EelsflowError
        If it cannot be read, is damaged or holds no energy-loss spectra.
    """
    from eelsflow.io.acquisitions import as_spectrum_image

    return as_spectrum_image(acquisition)


def info(
    file: Path | str,
    *,
    edge: Edge | str | None = None,
    low_loss: Path | str | None = None,
    density: float | None = None,
) -> dict[str, Any]:
    """Describe what a file holds: shape, axis, edges in range, energy offset, spikes, background.

    Parameters
    ----------
    file
        An acquisition, or an npz table of spectra.
    edge
        The edge to judge it by; by default the first shipped one that it shows.
    low_loss
        File of the low loss of the same scan, where `file` does not hold it.
    density
        Of the specimen, g/cm^3: makes nanometres of t/lambda.

    Returns
    -------
    dict
        What ``eelsflow info --json`` prints; see `eelsflow.describe.describe`.

    Raises
    ------
    EelsflowError
        If the file cannot be read or does not show the edge that is named.
    """
    from eelsflow.describe import describe
    from eelsflow.edges import resolve_edge

    return describe(file, resolve_edge(edge) if isinstance(edge, str) else edge, low_loss=low_loss, density=density)


def simulate(
    directory: Path | str,
    *,
    acquisitions: int = 6,
    seed: int = 0,
    pixels: int = 48,
    preset: str = "paper",
    detector: Literal["ccd", "counting", "both"] = "ccd",
    dose: float | None = None,
    dispersion_error: float | None = None,
    low_loss: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Simulate acquisitions of iron oxides with their ground truth, and a manifest of them.

    Parameters
    ----------
    directory
        Where they are written; made if it is not there.
    acquisitions, seed
        How many, and which: the same seed gives the same spectra.
    pixels
        Along either side of a scan.
    preset
        ``paper``: nanocubes as one measured microscope shows them; ``wide``: fields of particles with edges, thickness,
        background, film and energy axis different in every acquisition.
    detector
        ``ccd``, ``counting``, or ``both``: either, by chance.
    dose
        Of the beam, relative to the measured one (1); drawn by the preset if it is None.
    dispersion_error
        How far the channels' widths are from what files say, relatively, a standard deviation; by the preset if it is
        None.
    low_loss
        Whether the low loss of every scan is written too.
    progress
        Is told how many are done, and of how many.

    Returns
    -------
    pathlib.Path
        The manifest.

    Raises
    ------
    EelsflowError
        If the preset or the detector is unknown, the error of the dispersion out of range, or the folder cannot be
        written.
    """
    from eelsflow.simulator import LowLossRecording, simulate_directory
    from eelsflow.store import make_directory

    if acquisitions < 1 or pixels < 8:
        raise InputError(f"{acquisitions} acquisitions of {pixels} x {pixels} pixels; at least 1 of 8 x 8 is simulated")

    return simulate_directory(
        make_directory(Path(directory)),
        n_acquisitions=acquisitions,
        seed=seed,
        shape=(pixels, pixels),
        preset=preset,
        detector=detector,
        dose=None if dose is None else (dose, dose),
        dispersion_error=dispersion_error,
        low_loss=LowLossRecording() if low_loss else None,
        progress=progress,
    )


def run_study(
    study: Study | Path | str,
    out: Path | str,
    *,
    runner: Runner = "loop",
    quick: bool = False,
    promote: bool = False,
    strict: bool = False,
    on_step: Callable[[str, int | None, int | None], None] = lambda title, number, total: None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run a study: prepare, search, train, assess, report.

    Parameters
    ----------
    study
        A study file, or what `load_study` made of one.
    out
        Where results are written: ``report.html``, ``results.json``, ``model``, maps and figures.
    runner
        ``loop``: in this process; ``prefect``: orchestrated on a Dask cluster, with the pages. Both give the same.
    quick
        Small grids, two seeds, 30 epochs: a first look.
    promote
        Whether the best model becomes the champion of its edge, unless it is worse.
    strict
        Whether acquisitions that cannot be used stop the study; else they are set aside.
    on_step
        Is told what is worked on, its number and how many there are.
    say
        Is told where the pages are, by ``prefect``.

    Returns
    -------
    dict
        Content of ``results.json``.

    Raises
    ------
    EelsflowError
        If the study or its data are bad, or the flows are asked for and not installed.
    """
    from eelsflow.store import Store, home, make_directory, read_json
    from eelsflow.study.config import Study, load_study

    if runner not in ("loop", "prefect"):
        raise InputError(f"there is no runner {runner!r}; name 'loop' or 'prefect'")
    resolved = study if isinstance(study, Study) else load_study(Path(study))
    resolved = resolved.quick() if quick else resolved
    out = make_directory(Path(out))
    store = Store(home() / "store")
    store.remove_abandoned()
    if runner == "loop":
        from eelsflow.executors import LoopExecutor
        from eelsflow.study import run
        from eelsflow.study.stages import Place

        place = Place(store=store, executor=LoopExecutor())
        run.run_study(resolved, out, place=place, on_step=on_step, promote=promote, strict=strict)
    elif orchestration_importable():
        flows = importlib.import_module("flows.study")
        flows.run_study(resolved, out, store=store, on_step=on_step, promote=promote, strict=strict, say=say)
    else:
        raise MissingDependencyError(
            "the runner 'prefect' needs the flows of a checkout and Prefect, and they cannot be imported; install the "
            "checkout with `pip install -e '.[cpu,orchestration]'`, or use the runner 'loop'"
        )
    results: dict[str, Any] = read_json(out / "results.json")
    return results


def orchestration_importable() -> bool:
    """Tell whether the flows of a checkout and Prefect are installed."""
    return importlib.util.find_spec("flows") is not None and importlib.util.find_spec("prefect") is not None


def load_model(model: Path | str = "default", *, edge: str | None = None) -> ModelBundle:
    """Load a model that `classify` takes.

    Parameters
    ----------
    model
        A study's results, a model directory, a registered name, or "default": the champion of the edge, else the
        newest model for it.
    edge
        That "default" must fit.

    Raises
    ------
    EelsflowError
        If there is none, it is damaged, or it is a network and TensorFlow is not installed.
    """
    from eelsflow.maps import find_model
    from eelsflow.models.bundle import ModelBundle

    return ModelBundle.load(find_model(str(model), edge=edge))


def grid_search(
    spectra: ArrayLike,
    labels: ArrayLike,
    *,
    kernel: Literal["rbf", "linear", "sigmoid"] = "rbf",
    grid: Mapping[str, Sequence[float]] | None = None,
    cv: Any = 10,
) -> SvmGridSearch:
    """Search C, gamma and coef0 of a support vector machine by cross-validation, exactly.

    Parameters
    ----------
    spectra, labels
        Shapes (n, channels) and (n,).
    kernel
        Of the machine.
    grid
        Parameter -> values; the paper's by default.
    cv
        Number of stratified folds, a splitter of scikit-learn, or pairs of rows.

    Returns
    -------
    SvmGridSearch
        Fitted: ``results_`` (xarray, over parameters and folds), ``best_params_``, ``predict``; as scikit-learn's
        ``GridSearchCV`` finds them.

    Raises
    ------
    EelsflowError
        If spectra and labels do not fit each other, or a class has too few spectra for the folds.
    """
    import numpy as np

    from eelsflow.models.spec import resolve_model
    from eelsflow.search.estimator import SvmGridSearch

    rows, names = np.asarray(spectra, dtype=np.float64), np.asarray(labels)
    if rows.ndim != 2 or names.shape != rows.shape[:1] or not np.isfinite(rows).all():
        raise InputError(
            f"spectra have the shape {rows.shape} and labels {names.shape}"
            f"{'' if np.isfinite(rows).all() else ', and some values are not finite'}; expected (n, channels) and (n,)"
        )
    values = resolve_model(f"svm-{kernel}").resolve_grid("paper") if grid is None else grid
    return SvmGridSearch(kernel, values, cv=cv).fit(rows, names)


def perturb(
    spectra: xr.DataArray, *, shift_ev: ArrayLike = 0.0, noise_sigma: float = 0.0, seed: int = 0
) -> xr.DataArray:
    """Do to spectra what a microscope may: move them along the energy axis, and add noise.

    Parameters
    ----------
    spectra
        With the dimension ``energy_loss`` (eV) last, such as ``intensity`` of what `prepare` returns; not modified.
    shift_ev
        How far features move to higher energy, eV: one value, or one a spectrum. Beyond what was recorded the last
        value is held.
    noise_sigma
        Of white Gaussian noise, in units of each spectrum's span (its 99th less its 1st percentile).
    seed
        Of the noise.

    Raises
    ------
    InputError
        If the energy is not the last dimension.

    Notes
    -----
    As the studies disturb their test spectra (`eelsflow.robustness`). Spectra that hold NaN keep it in these channels.
    """
    import numpy as np

    from eelsflow.energy import axis_of
    from eelsflow.preprocess.features import shift_spectra
    from eelsflow.robustness.perturb import add_gaussian_noise

    dims = tuple(getattr(spectra, "dims", ()))
    if not dims or dims[-1] != "energy_loss":
        raise InputError(
            f"spectra are {type(spectra).__name__} with dimensions {dims}; expected an xarray with 'energy_loss' last, "
            "such as spectra.transpose(..., 'energy_loss')"
        )
    if not np.isfinite(shift_ev).all() or not noise_sigma >= 0:
        raise InputError(
            f"shifts {shift_ev!r} eV and noise {noise_sigma}; expected finite shifts and no negative noise"
        )
    axis = axis_of(spectra["energy_loss"].values)
    rows = np.asarray(spectra.values, dtype=np.float32).reshape(-1, axis.size)
    recorded = np.isfinite(rows)
    some = np.flatnonzero(recorded.any(axis=1))
    changed = rows.copy()
    shifts = np.broadcast_to(np.asarray(shift_ev, dtype=np.float64), spectra.shape[:-1]).ravel()
    if shifts.any():
        changed[some] = shift_spectra(rows[some], axis, shifts[some])
    if noise_sigma:
        where = np.ix_(some, recorded[some].all(axis=0))
        changed[where] = add_gaussian_noise(changed[where], sigma=noise_sigma, rng=np.random.default_rng(seed))
    changed[~recorded] = np.nan
    return spectra.copy(data=changed.reshape(spectra.shape))


def explain(
    value: Any = None,
    *,
    model: ModelBundle | Path | str | None = None,
    models: Sequence[ModelBundle | Path | str] = (),
    pixels: Any = None,
    classes: tuple[str, str] | None = None,
    width: float = 1.0,
) -> Explanation:
    """Show which energies decide between two classes: in a map, in single pixels, or in a model.

    Parameters
    ----------
    value
        A map that `classify` returned, or an acquisition as `classify` takes it; None explains the model alone.
    model
        As in `classify`; of a map its own.
    models
        Further ones, the same model trained with other seeds: contributions are the mean over all, and each is kept.
    pixels
        Pairs (y, x), each explained by itself, or a mask, shape (y, x), whose pixels are explained together; None: all
        pixels of each class.
    classes
        The two classes; positive contributions speak for the first. By default the model's first two.
    width
        Of an energy band, eV.

    Returns
    -------
    Explanation
        It draws and saves itself, and holds an xarray Dataset: contributions over bands, with spread and error.

    Raises
    ------
    EelsflowError
        If the acquisition, the model or what is asked for cannot be used, a model is named beside a map, or the map was
        loaded and has no spectra.
    """
    from eelsflow.explanation import explain
    from eelsflow.maps import Map, classify

    if classes is not None and (isinstance(classes, str) or len(classes) != 2):
        raise InputError(f"classes are {classes!r}; name two, such as ('FeO', 'Fe3O4')")
    if isinstance(value, Map) and model is not None:
        raise InputError("a map is explained by the model that made it; leave model out, or explain the acquisition")
    others = [one if not isinstance(one, str | Path) else load_model(one) for one in models]
    if value is None:
        bundle = model if model is not None and not isinstance(model, str | Path) else load_model(model or "default")
        return explain(bundle, classes=classes, width=width, models=others)
    found = value if isinstance(value, Map) else classify(value, model="default" if model is None else model)
    if found.prepared is None or found.bundle is None:
        raise InputError("the map was loaded from a folder, which keeps no spectra; explain the acquisition's file")
    return explain(found.bundle, found.prepared, pixels=pixels, classes=classes, width=width, models=others)


def plan_dose(
    acquisition: Any,
    *,
    model: ModelBundle | Path | str = "default",
    accuracy: float | None = None,
    fraction_error: float | None = None,
    labels: Any = None,
) -> DosePlan:
    """Plan how many electrons, or how many averaged pixels, a wanted result needs.

    Parameters
    ----------
    acquisition
        A first look at the specimen, as `read` takes it.
    model
        As in `classify`.
    accuracy
        Wanted share of single pixels of one class that are named rightly, above chance and below 1.
    fraction_error
        Wanted standard error of a class's fraction in a single pixel, between 0 and 1; where neither is wanted, the
        curves alone are the answer.
    labels
        What the pixels are, where it is known: a class (text) that all are of, a truth file (a `Path`), or the class of
        each, shape (y, x). None: the model says it.

    Returns
    -------
    DosePlan
        Curves against the electrons per pixel and channel of .1 eV, and the answers; it draws itself.

    Raises
    ------
    EelsflowError
        If the acquisition, the model or what is wanted cannot be used; see `eelsflow.dose.plan_dose`.
    """
    import numpy as np

    from eelsflow.dataset.labels import label_pixels
    from eelsflow.dose import plan_dose
    from eelsflow.maps import find_model
    from eelsflow.maps.registry import model_for_uncalibrated
    from eelsflow.models.bundle import ModelBundle
    from eelsflow.spectrum_image import energy_axis

    image = read(acquisition).load()
    bundle, uncalibrated = model, None
    if isinstance(bundle, str | Path):
        directory = find_model(str(bundle), axis=energy_axis(image))
        bundle, other = ModelBundle.load(directory), model_for_uncalibrated(directory)
        uncalibrated = ModelBundle.load(other) if other is not None else None
    if isinstance(labels, str | Path):
        no_vacuum = np.zeros(image.shape[:2], dtype=bool)  # thin pixels take no part in a plan, whatever they are
        if isinstance(labels, str) and labels not in bundle.classes:
            raise InputError(f"all pixels are labelled {labels!r}, which is not one of the classes {bundle.classes}")
        label, truth = (labels, None) if isinstance(labels, str) else ("", labels)
        labels = label_pixels(no_vacuum, label=label, truth=truth, classes=bundle.classes, name=image.attrs["source"])
    elif labels is not None:
        labels = np.asarray(labels, dtype=np.str_)
    return plan_dose(
        image, bundle, accuracy=accuracy, fraction_error=fraction_error, labels=labels, uncalibrated=uncalibrated
    )


def to_hyperspy(value: xr.DataArray | Map) -> Any:
    """Return a spectrum image, or a map, as HyperSpy signals with axes and units.

    Parameters
    ----------
    value
        What `read` or `classify` returns; its arrays are shared.

    Returns
    -------
    signal, or dict of signals
        Of an image one signal of the type EELS (exspy's, where it is installed); of a map one a layer, keyed as in
        `Map.dataset`, which `from_hyperspy` takes back.

    Raises
    ------
    MissingDependencyError
        If HyperSpy is not installed.
    """
    from eelsflow.io.acquisitions import as_spectrum_image
    from eelsflow.io.hyperspy_signals import signal_of_image, signals_of_dataset
    from eelsflow.maps import Map

    return signals_of_dataset(value.dataset) if isinstance(value, Map) else signal_of_image(as_spectrum_image(value))


def from_hyperspy(value: Any) -> xr.DataArray | Map:
    """Return what HyperSpy signals hold: a spectrum image of a signal, a map of the signals that were made of one.

    Raises
    ------
    EelsflowError
        If a signal holds no energy-loss spectra, or signals are not of a map.
    """
    from eelsflow.io.hyperspy_signals import dataset_of_signals, image_of_signal
    from eelsflow.maps import Map

    return Map(dataset_of_signals(value)) if isinstance(value, Mapping) else image_of_signal(value)
