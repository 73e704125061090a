"""Where on the energy axis a spectrum lies, judged by training spectra: models that an axis off by eV does not fool.

A classifier that was trained on spectra at their place fails on spectra elsewhere: half an eV of error is as much as
the chemical shift. Here the place is found first, or summed over, in one of three ways:

``spectrum``
    Every spectrum is read at the place where it is most like the training spectra. Nothing is left of the absolute
    energy, and at the noise of one pixel a good part of what tells the classes apart is used up to find the place.
``acquisition``
    One place for all spectra of an acquisition, from their mean, whose noise is small.
``marginal``
    The classes' probabilities are summed over all places, each weighted by how likely it is: around that of the
    acquisition as far as its spectra agree on one, which they tell themselves (empirical Bayes); any other else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from eelsflow.errors import UnreadableFileError
from eelsflow.models.spec import Align

RANGE_EV = 10.0
"""Places looked at on either side. Where the spectra are not so much wider than the window, their ends are held."""

SPREAD_EV = 0.15
"""Standard deviation of places within an acquisition whose spectra agree on one: drift, and the error of its mean."""

MOST_PLACES = 6
"""Places of one spectrum that a classifier is asked about; the rest hardly weigh."""

LEAST_GROUPS = 4
"""Training acquisitions of all classes from which on means of acquisitions have a spread of their own."""

_RIDGE = 1e-4
_EM_STEPS = 100
_BLOCK = 2048


@dataclass(frozen=True)
class _Gaussians:
    """One normal distribution a class, with a covariance in common: some directions, and the same in all others.

    Attributes
    ----------
    mean
        Of each class, (n_classes, n_channels).
    components
        Orthonormal, (n_components, n_channels).
    variance
        Along each component, (n_components,).
    rest
        Along all others.
    independent
        Channels that count as one: neighbours share their noise.
    """

    mean: NDArray[np.float64]
    components: NDArray[np.float64]
    variance: NDArray[np.float64]
    rest: float
    independent: float

    @classmethod
    def fit(cls, windows: NDArray[np.float64], codes: NDArray[np.integer[Any]], *, n_components: int) -> Self:
        """Fit on windows (n, n_channels) divided by their mean, and their class numbers."""
        classes = np.unique(codes)
        mean = np.stack([windows[codes == code].mean(axis=0) for code in classes])
        residual = windows - mean[np.searchsorted(classes, codes)]
        n_kept = max(min(n_components, len(windows) - len(classes), windows.shape[1] - 1), 0)
        variance, vectors = np.linalg.eigh(residual.T @ residual / len(windows))
        components = vectors[:, ::-1][:, :n_kept].T
        total = np.trace(residual.T @ residual) / len(windows)
        found = np.maximum(variance[::-1][:n_kept], 0.0)
        left = (total - found.sum()) / (windows.shape[1] - n_kept)
        rest = max(left, 0.0) + _RIDGE * max(total / windows.shape[1], 1e-12)
        noise = residual - (residual @ components.T) @ components
        return cls(mean, components, found, float(rest), _independent(noise))

    def misfit(self, spectra: NDArray[np.float64], start: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return minus twice the log of the density of every window, (n, n_windows, n_classes), but for a constant.

        Parameters
        ----------
        spectra
            Shape (n, n_wide).
        start
            First channel of each window, (n_windows,).
        """
        n_channels = self.mean.shape[1]
        size = 1 << int(np.ceil(np.log2(spectra.shape[1] + n_channels)))
        image = np.fft.rfft(spectra, size, axis=1)

        def against(template: NDArray[np.float64]) -> NDArray[np.float64]:
            product = image * np.conj(np.fft.rfft(template, size))
            return np.asarray(np.fft.irfft(product, size, axis=1)[:, start])

        sums = _running(spectra, start, n_channels)
        area = np.where(sums > 0, sums / n_channels, np.nan)  # a window without signal has no shape
        square = _running(spectra**2, start, n_channels) / area**2
        along = [against(component) / area for component in self.components]
        misfit = np.empty((*area.shape, len(self.mean)))
        for number, mean in enumerate(self.mean):
            misfit[..., number] = (square - 2.0 * against(mean) / area + mean @ mean) / self.rest
            for component, projected, variance in zip(self.components, along, self.variance, strict=True):
                away = np.square(projected - component @ mean)
                misfit[..., number] += away * (1.0 / (variance + self.rest) - 1.0 / self.rest)
        return np.where(np.isfinite(misfit), misfit, 1e12) / self.independent


def _running(values: NDArray[np.float64], start: NDArray[np.intp], length: int) -> NDArray[np.float64]:
    """Return sums over windows, (n, n_windows)."""
    total = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1)], axis=1)
    return np.asarray(total[:, start + length] - total[:, start])


def _independent(noise: NDArray[np.float64]) -> float:
    """Return the number of channels that share their noise, from the autocorrelation of residuals."""
    some = noise[: min(len(noise), 2000)]
    power = np.square(np.abs(np.fft.rfft(some, 2 * some.shape[1], axis=1))).mean(axis=0)
    correlation = np.fft.irfft(power)[: some.shape[1] // 4]
    if correlation[0] <= 0:
        return 1.0
    relative = correlation / correlation[0]
    below = np.flatnonzero(relative < 0.1)
    n_lags = int(below[0]) if below.size else relative.size
    return float(1.0 + 2.0 * relative[1:n_lags].sum())


@dataclass(frozen=True)
class _Templates:
    """Mean spectra of the classes on the whole axis, moved along it; noise that each spectrum has to itself.

    Attributes
    ----------
    mean
        Of each class, (n_classes, n_wide).
    independent
        Channels that count as one: neighbours share their noise.
    """

    mean: NDArray[np.float64]
    independent: float

    @classmethod
    def fit(cls, spectra: NDArray[np.float64], codes: NDArray[np.integer[Any]]) -> Self:
        """Fit on spectra (n, n_wide) and their class numbers."""
        mean = np.stack([spectra[codes == code].mean(axis=0) for code in np.unique(codes)])
        centred, shape = spectra - spectra.mean(axis=1, keepdims=True), mean - mean.mean(axis=1, keepdims=True)
        own = shape[np.unique(codes, return_inverse=True)[1]]
        slope = (centred * own).sum(axis=1) / np.maximum((own**2).sum(axis=1), 1e-300)
        return cls(mean, _independent(centred - slope[:, None] * own))

    def misfit(self, spectra: NDArray[np.float64], places: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return minus twice the log of the likelihood at every place, (n, n_places, n_classes), but for a constant.

        Height, offset and noise of each spectrum are those that fit it best, so only its shape counts. Where a template
        that is moved ends, its last value is held.
        """
        n_wide = spectra.shape[1]
        most = int(np.abs(places).max())
        size = 1 << int(np.ceil(np.log2(2 * n_wide + 2 * most)))
        centred = spectra - spectra.mean(axis=1, keepdims=True)
        image = np.fft.rfft(centred, size, axis=1)
        square = (centred**2).sum(axis=1)[:, None]
        misfit = np.empty((len(spectra), places.size, len(self.mean)))
        for number, mean in enumerate(self.mean):
            held = np.pad(mean, most, mode="edge")[None]
            start = most - places  # the template at place p begins p channels later
            norm = _running(held**2, start, n_wide)[0] - _running(held, start, n_wide)[0] ** 2 / n_wide
            product = np.fft.irfft(image * np.conj(np.fft.rfft(held[0], size)), size, axis=1)
            along = product[:, (-start) % size]  # the spectrum is centred, so the template need not be
            explained = np.maximum(along, 0.0) ** 2 / np.maximum(norm, 1e-300)
            left = np.maximum(1.0 - explained / np.maximum(square, 1e-300), 1e-9)
            misfit[..., number] = n_wide / self.independent * np.log(left)
        return misfit


@dataclass(frozen=True)
class Registration:
    """What places are judged by; fitted on training spectra.

    Attributes
    ----------
    align
        See the module.
    dispersion
        eV a channel.
    first
        First channel of the fine-structure window on the wide axis.
    of_spectra
        Of single spectra.
    of_means
        Of the means of acquisitions; None where there are too few to know their spread.
    """

    align: Align
    dispersion: float
    first: int
    n_wide: int
    n_window: int
    of_spectra: _Templates
    of_means: _Gaussians | None

    @classmethod
    def fit(
        cls,
        wide: NDArray[np.floating[Any]],
        label: NDArray[np.str_],
        group: NDArray[np.str_] | None,
        *,
        align: Align,
        channels: slice,
        dispersion: float,
    ) -> Self:
        """Fit on wide training spectra (n, n_wide), of which `channels` is the fine-structure window.

        Parameters
        ----------
        wide, label, group
            Spectra, their classes, and what was recorded together, if that is known.
        align, channels, dispersion
            As in the attributes.
        """
        spectra = fill(wide)
        windows = spectra[:, channels]
        area = windows.mean(axis=1, keepdims=True)
        usable = area[:, 0] > 0.1 * windows.std(axis=1)
        codes = np.unique(label, return_inverse=True)[1]
        of_spectra = _Templates.fit((spectra / np.where(usable[:, None], area, 1.0))[usable], codes[usable])
        of_means = None
        if group is not None:
            cells = [np.flatnonzero((group == name) & (codes == code)) for name, code in _pairs(group, codes)]
            means = np.stack([windows[rows].mean(axis=0) for rows in cells])
            means /= means.mean(axis=1, keepdims=True)
            of_class = np.array([codes[rows[0]] for rows in cells])
            if len(cells) >= LEAST_GROUPS and np.unique(of_class).size == codes.max() + 1:
                of_means = _Gaussians.fit(means, of_class, n_components=len(cells) // 2)
        return cls(align, dispersion, channels.start, wide.shape[1], windows.shape[1], of_spectra, of_means)

    @property
    def places(self) -> NDArray[np.intp]:
        """Channels by which spectra may lie too high, ascending."""
        most = round(min(RANGE_EV / self.dispersion, self.n_window / 3))
        return np.arange(-most, most + 1)

    def locate(
        self, wide: NDArray[np.floating[Any]], group: NDArray[np.str_] | None
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Return places to read each spectrum at, (n, n_places), channels, and their weights, which add up to one.

        Parameters
        ----------
        wide
            Spectra (n, n_wide) as they came; what lies beyond, of other edges, is not looked at.
        group
            What was recorded together; None: each spectrum is alone.
        """
        if len(wide) == 0:
            return np.zeros((0, 1), np.intp), np.ones((0, 1))
        spectra = fill(wide[:, : self.n_wide])
        if self.align != "spectrum" and group is not None:
            return self._of_groups(spectra, group)
        if self.align == "marginal":
            likelihood = self._likelihood(spectra)
            return self._heaviest(likelihood / likelihood.sum(axis=1, keepdims=True))
        best = np.concatenate(
            [
                self.of_spectra.misfit(spectra[rows], self.places).min(axis=2).argmin(axis=1)
                for rows in _blocks(len(spectra))
            ]
        )
        return self.places[best][:, None], np.ones((len(spectra), 1))

    def _of_groups(
        self, spectra: NDArray[np.float64], group: NDArray[np.str_]
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        width = 1 if self.align == "acquisition" else MOST_PLACES
        place, weight = np.zeros((len(spectra), width), np.intp), np.zeros((len(spectra), width))
        for name in np.unique(group):
            rows = np.flatnonzero(group == name)
            mean = spectra[rows].mean(axis=0, keepdims=True)
            common = self._place_of(mean)
            if self.align == "acquisition":
                place[rows], weight[rows] = self.places[common], 1.0
                continue
            likelihood = self._likelihood(spectra[rows])
            near = np.exp(-0.5 * np.square((self.places - self.places[common]) * self.dispersion / SPREAD_EV))
            place[rows], weight[rows] = self._heaviest(_by_agreement(likelihood, near / near.sum()))
        return place, weight

    def _place_of(self, mean: NDArray[np.float64]) -> int:
        """Return the number of the place where the mean of an acquisition fits best, whichever class."""
        if self.of_means is None:
            misfit = self.of_spectra.misfit(mean, self.places)
        else:
            most = int(self.places[-1])
            misfit = self.of_means.misfit(
                np.pad(mean, ((0, 0), (most, most)), mode="edge"), self.first + most + self.places
            )
        return int(misfit.min(axis=2)[0].argmin())

    def _likelihood(self, spectra: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how likely each place is, all classes alike, (n, n_places), at most one."""
        likelihood = np.empty((len(spectra), self.places.size))
        for rows in _blocks(len(spectra)):
            misfit = self.of_spectra.misfit(spectra[rows], self.places)
            density = np.exp(-0.5 * (misfit - misfit.min(axis=(1, 2), keepdims=True)))
            likelihood[rows] = density.mean(axis=2)
        return likelihood

    def _heaviest(self, weight: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Return a few places that stand for all: the mean of each of the heaviest stretches of half an eV."""
        stretch = max(round(0.5 / self.dispersion), 1)
        n_stretches = -(-self.places.size // stretch)
        padded = np.zeros((len(weight), n_stretches * stretch))
        padded[:, : self.places.size] = weight
        number = np.zeros(n_stretches * stretch)
        number[: self.places.size] = self.places
        mass = padded.reshape(len(weight), n_stretches, stretch).sum(axis=2)
        moment = (padded * number).reshape(len(weight), n_stretches, stretch).sum(axis=2)
        n_kept = min(MOST_PLACES, n_stretches)
        heaviest = np.argpartition(-mass, n_kept - 1, axis=1)[:, :n_kept]
        kept = np.take_along_axis(mass, heaviest, axis=1)
        centre = np.divide(np.take_along_axis(moment, heaviest, axis=1), kept, out=np.zeros_like(kept), where=kept > 0)
        place, total = np.zeros((len(weight), MOST_PLACES), np.intp), np.zeros((len(weight), MOST_PLACES))
        place[:, :n_kept], total[:, :n_kept] = np.rint(centre), kept
        return place, total / total.sum(axis=1, keepdims=True)

    def save(self, path: Path) -> None:
        """Write an npz file."""
        arrays: dict[str, NDArray[Any]] = {
            "align": np.array(self.align),
            "axis": np.array([self.dispersion, self.first, self.n_wide, self.n_window]),
        }
        for name, of in (("of_spectra", self.of_spectra), ("of_means", self.of_means)):
            if of is not None:
                arrays |= {f"{name}_{field}": np.asarray(getattr(of, field)) for field in of.__dataclass_fields__}
        np.savez(path, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        UnreadableFileError
            If the file is missing or damaged.
        """
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                dispersion, *sizes = stored["axis"].tolist()
                first, n_wide, n_window = map(int, sizes)
                return cls(
                    str(stored["align"]),  # type: ignore[arg-type]
                    dispersion,
                    first,
                    n_wide,
                    n_window,
                    _Templates(**_fields(stored, "of_spectra")),
                    _Gaussians(**_fields(stored, "of_means")) if "of_means_mean" in stored.files else None,
                )
        except SystemError:  # of Python 3.11, where threads read numpy's headers at once: no fault of the file
            raise
        except Exception as error:  # zipfile.BadZipFile, KeyError and OSError share no base class
            raise UnreadableFileError(f"{path} holds no usable registration: {error}; train the model again") from error


def _fields(stored: Any, name: str) -> dict[str, Any]:
    """Return the arrays of one part, numbers as numbers."""
    found = {key.removeprefix(f"{name}_"): stored[key] for key in stored.files if key.startswith(f"{name}_")}
    return {key: float(value) if value.ndim == 0 else value for key, value in found.items()}


def fill(wide: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return spectra with their first and last recorded value held where nothing was recorded."""
    spectra = np.asarray(wide, dtype=np.float64)
    recorded = np.isfinite(spectra)
    if recorded.all():
        return spectra
    first = recorded.argmax(axis=1)[:, None]
    last = spectra.shape[1] - 1 - recorded[:, ::-1].argmax(axis=1)[:, None]
    return np.take_along_axis(spectra, np.clip(np.arange(spectra.shape[1]), first, last), axis=1)


def _pairs(group: NDArray[np.str_], codes: NDArray[np.integer[Any]]) -> list[tuple[str, int]]:
    return sorted(set(zip(group.tolist(), codes.tolist(), strict=True)))


def _blocks(n: int) -> list[slice]:
    return [slice(first, min(first + _BLOCK, n)) for first in range(0, n, _BLOCK)]


def _by_agreement(likelihood: NDArray[np.float64], near: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weight of each place for each spectrum, rows adding up to one.

    The prior is a mixture of `near` and of all places alike, whose share is the one that makes the spectra together
    most likely (EM): near nothing where they agree on the place of their mean, near one where each has its own.
    """
    at_common, anywhere = likelihood @ near, likelihood.mean(axis=1)
    share = 0.5
    for _ in range(_EM_STEPS):
        part = share * anywhere
        share = float(np.mean(part / np.maximum((1.0 - share) * at_common + part, 1e-300)))
    prior = (1.0 - share) * near + share / near.size
    weight = likelihood * prior
    total = weight.sum(axis=1, keepdims=True)
    return np.where(total > 0, weight / np.where(total > 0, total, 1.0), prior)
