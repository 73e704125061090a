"""Pixels where the beam missed the specimen, found by the edge's signal.

Vacuum here means that the specimen is thinner than a quarter of its greatest thickness in the image: the beam missed
it or met only its rim. The measure is the edge's own intensity above its background, which grows with thickness; the
support film has background counts but none (or little) of the edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eelsflow.energy import EnergyAxis, Window, format_window
from eelsflow.errors import InputError

VACUUM_FRACTION = 0.25
"""Signal, as a fraction of the image's maximum, below which a pixel is vacuum."""

_SIGNIFICANT = 5.0  # standard errors above zero that show a specimen
_CLEAR_SPREAD = 5.0  # standard errors of the signal's variance by which its spread must exceed its noise
_NOISY = 0.1  # error of a pixel's signal, over the maximum, above which neighbours are averaged in


@dataclass(frozen=True)
class VacuumMask:
    """Which pixels show no specimen.

    Parameters
    ----------
    mask
        Shape of the image, bool, True where there is no specimen.
    separation
        Distance of the two groups' mean signals over their pooled standard deviation: under about 3.5 there are no
        two groups (a Gaussian cut in the middle has 2.65, an even slope 3.46); infinite where nothing is vacuum.
    method
        How it was found, in words.
    """

    mask: NDArray[np.bool_]
    separation: float
    method: str

    @property
    def fraction(self) -> float:
        """Share of the pixels that is vacuum, 0 to 1."""
        return float(self.mask.mean())


def background_exponent(spectrum: ArrayLike, energy_loss: ArrayLike, window: Window) -> float:
    """Return the exponent r of a power-law background ``A E**-r`` from the two halves of a window.

    Parameters
    ----------
    spectrum
        Mean or summed counts, shape (channels,).
    energy_loss
        Channel centres, shape (channels,), eV.
    window
        Window before the edge, eV.

    Returns
    -------
    float
        ``ln(I1 / I2) / ln(E2 / E1)``, with the mean counts I and the geometric mean energies E of the halves; 3, a
        typical value, where the window holds no counts.

    Raises
    ------
    InputError
        If the window holds fewer than 4 channels.
    """
    energies = np.asarray(energy_loss, dtype=np.float64)
    channels = _channels(energies, window, "pre-edge")
    counts, energies = np.asarray(spectrum, dtype=np.float64)[channels], energies[channels]
    half = counts.size // 2
    first, second = counts[:half].mean(), counts[half:].mean()
    if first <= 0 or second <= 0:
        return 3.0
    distance = np.log(energies[half:]).mean() - np.log(energies[:half]).mean()
    return float(np.log(first / second) / distance)


def edge_signal(
    counts: ArrayLike,
    energy_loss: ArrayLike,
    *,
    pre_edge_window: Window,
    edge_window: Window,
    exponent: float | None = None,
) -> NDArray[np.float64]:
    """Return the counts of an edge above its background, for every pixel.

    Parameters
    ----------
    counts
        Raw counts, shape (..., channels). Not modified.
    energy_loss
        Channel centres, shape (channels,), eV, on the axis the windows are meant on.
    pre_edge_window, edge_window
        Windows before and in the edge, eV.
    exponent
        Exponent of the power law, from `background_exponent` of the whole image's mean spectrum; None takes the mean
        of `counts`. Give it whenever `counts` is a block of an image.

    Returns
    -------
    float64 array, shape (...)
        ``sum(edge window) - R * sum(pre-edge window)``, counts.

    Notes
    -----
    R is the ratio of the power law's two integrals, the same in every pixel: the signal is linear in the counts, so
    thin pixels are not biased and no fit can fail. An exponent off by .3 in a pixel is off by 2 % of its background
    at O K. A per-pixel fit would extrapolate its noise instead. The choice is ours; the true subtraction of the
    background comes later.
    """
    energies = np.asarray(energy_loss, dtype=np.float64)
    values = np.asarray(counts)
    before = _channels(energies, pre_edge_window, "pre-edge")
    edge = _channels(energies, edge_window, "edge")
    if exponent is None:
        exponent = background_exponent(
            values.reshape(-1, values.shape[-1]).mean(axis=0, dtype=np.float64), energies, pre_edge_window
        )
    ratio = _background_ratio(energies, before, edge, exponent)
    signal = values[..., edge].sum(axis=-1, dtype=np.float64)
    signal -= ratio * values[..., before].sum(axis=-1, dtype=np.float64)
    return np.asarray(signal)


def signal_variance(
    mean: ArrayLike, energy_loss: ArrayLike, pre_edge_window: Window, edge_window: Window, *, exponent: float
) -> float:
    """Return the mean variance of `edge_signal` over the electrons counted, counts.

    Parameters
    ----------
    mean
        Mean spectrum, shape (channels,), counts.
    energy_loss, pre_edge_window, edge_window, exponent
        As in `edge_signal`.
    """
    energies, counts = np.asarray(energy_loss, dtype=np.float64), np.asarray(mean, dtype=np.float64)
    before = _channels(energies, pre_edge_window, "pre-edge")
    edge = _channels(energies, edge_window, "edge")
    ratio = _background_ratio(energies, before, edge, exponent)
    return float(counts[edge].sum() + ratio**2 * counts[before].sum())


def signal_with_total(
    signal: NDArray[np.float64], total: NDArray[np.float64], *, quantum: float, noise: float
) -> tuple[NDArray[np.float64], float]:
    """Return the edge's signal as all electrons of a pixel tell it too, and its error.

    Parameters
    ----------
    signal
        From `edge_signal`, shape (...), counts.
    total
        Counts of all channels, of the same shape.
    quantum
        Counts of one electron.
    noise
        Mean variance of the signal, counts squared.

    Returns
    -------
    signal, error
        Shape (...), counts of the edge as before; its standard deviation, counts.

    Notes
    -----
    At one electron a channel the edge of a pixel is lost in the noise of its background, yet the background itself
    grows with the thickness. Over the pixels, signal and total lie about a straight line, ``total = a + b signal``,
    with the film's counts a; the moments that it follows from are freed from the noise, which is known for counted
    electrons. ``(total - a) / b`` is a second measure of the signal, whose error has two parts: noise, and how far the
    pixels scatter about the line (another film, another material). The two are averaged with the weights that make the
    error least: the total counts where noise hides the edge, and not where the edge can be seen or where the total says
    something else. The choice is ours.
    """
    n = signal.size
    spread, total_spread = float(signal.var()), float(total.var())
    shared = float(((signal - signal.mean()) * (total - total.mean())).mean())
    # the electrons of the edge are among all, those before it too, with the opposite weight
    noise_shared, total_noise = quantum * float(signal.mean()), quantum * float(total.mean())
    true, slope = spread - noise, 0.0
    if true > _CLEAR_SPREAD * spread * (2.0 / n) ** 0.5:
        slope = (shared - noise_shared) / true
    if slope <= 0:
        return signal, noise**0.5
    scatter = max(total_spread - total_noise - slope**2 * true, 0.0)
    first, cross, second = noise, noise_shared / slope, (total_noise + scatter) / slope**2
    weight = min(max((first - cross) / max(first + second - 2 * cross, 1e-30), 0.0), 1.0)
    other = (total - (total.mean() - slope * signal.mean())) / slope
    error = (1 - weight) ** 2 * first + 2 * weight * (1 - weight) * cross + weight**2 * second
    return (1 - weight) * signal + weight * other, error**0.5


def find_vacuum(
    signal: ArrayLike,
    *,
    method: Literal["threshold", "kmeans"] = "threshold",
    features: ArrayLike | None = None,
    normalize: bool = True,
    signal_error: ArrayLike | None = None,
    fraction: float = VACUUM_FRACTION,
    lost: NDArray[np.bool_] | None = None,
) -> VacuumMask:
    """Find the pixels without specimen.

    Parameters
    ----------
    signal
        Counts of the edge above its background, shape (y, x), as from `edge_signal`. Not modified.
    method
        "threshold": signal below `fraction` of the image's maximum. "kmeans": two classes of spectra; the one with
        less signal is vacuum.
    features
        Spectra (or anything that stands for them) to cluster, shape (y, x, f); the signal itself where not given.
        Only for "kmeans".
    normalize
        Whether "kmeans" divides each spectrum by its L2 norm first, as the published code does. Leave it out for
        PCA scores. Without `features` nothing is normalised.
    signal_error
        One standard deviation of the signal's noise, scalar or (y, x). Default: from the differences of neighbouring
        pixels (1.4826 x median absolute difference / sqrt 2), which is a little too large where thickness varies.
    fraction
        Signal, over the maximum, below which a pixel is vacuum.
    lost
        Pixels that take no part, shape (y, x): neither vacuum nor a neighbour of any. Default: none.

    Returns
    -------
    VacuumMask

    Raises
    ------
    InputError
        If nothing stands above the noise: the image shows no specimen. Also for values that are not finite.

    Notes
    -----
    *Maximum*: 95th percentile of the signal among the pixels that stand 5 errors above zero. A maximum proper would
    be that of the noise; a percentile of all pixels would miss a small particle.

    *Threshold*: where a pixel's error exceeds 10 % of the maximum, the signal is first averaged over its neighbours by
    (1 2 1) weights along y and x: that halves and more the noise and blurs the rim by less than a pixel.

    *K-means*: Lloyd's iterations from the mean spectra of the tenth of the pixels with the least and with the most
    signal, so nothing is drawn at random. If the class with less signal still has more than twice `fraction` of the
    other's, two thicknesses were told apart and nothing is vacuum.

    Truth is thickness; the edge grows a little less than in proportion (plural scattering), which moves the cut from
    25 % to 20-25 % of the thickness. All constants are ours.
    """
    values = np.asarray(signal, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise InputError(f"the edge signal has the shape {values.shape}; expected one number a pixel, (y, x)")
    kept = np.ones(values.shape, dtype=bool) if lost is None else ~lost
    broken = kept & ~np.isfinite(values)
    if broken.any():
        raise InputError(
            f"{int((~np.isfinite(values[kept])).sum())} pixels have an edge signal that is not finite; specimen and "
            "vacuum cannot be told apart there: mask or repair these pixels first"
        )
    error = _signal_error(values, kept) if signal_error is None else np.asarray(signal_error, dtype=np.float64)
    smooth, smooth_error = _smoothed(values, kept), error * _noise_after_smoothing(values.shape)
    # the significance test sees the smoothed map: a specimen is larger than a pixel, a noise peak is not
    significant = smooth > _SIGNIFICANT * smooth_error
    if not significant.any():
        raise InputError(
            f"no pixel's edge signal stands {_SIGNIFICANT:g} standard errors above zero (largest {smooth.max():.3g}, "
            f"error {float(np.median(smooth_error)):.3g} counts): the image shows no specimen with this edge: "
            "vacuum or support film alone, or a specimen without the element; check the edge and the energy range, or "
            "leave the acquisition out"
        )
    maximum = float(np.percentile(smooth[significant], 95))
    if method == "kmeans":
        spectra = values[..., None] if features is None else np.asarray(features, dtype=np.float64)
        if spectra.shape[:2] != values.shape:
            raise InputError(
                f"features have the shape {spectra.shape} and the signal {values.shape}; both must hold the same pixels"
            )
        mask = np.zeros(values.shape, dtype=bool)
        mask[kept], how = _two_means(spectra[kept], values[kept], normalize and features is not None)
        mask &= ~_is_specimen(values, mask, maximum, 2 * fraction)
    else:
        noisy = float(np.median(error)) > _NOISY * maximum
        mask = kept & ((smooth if noisy else values) < fraction * maximum)
        how = (
            f"edge signal{', averaged over neighbours,' if noisy else ''} under {fraction:.0%} of {maximum:.4g} counts"
        )
    if mask[kept].all():
        raise InputError(
            "no pixel is left once those without specimen are taken out: the image shows only vacuum or support film; "
            "check the edge and the energy range, or leave the acquisition out"
        )
    separation = _separation(values[kept], mask[kept])
    if not mask.any():
        how += "; no pixel is vacuum"
    return VacuumMask(mask, separation, how)


def _background_ratio(energies: NDArray[np.float64], before: slice, edge: slice, exponent: float) -> float:
    """Return the power law's counts in the edge over those before it."""
    shape = (energies / energies[edge].mean()) ** -exponent
    return float(shape[edge].sum() / shape[before].sum())


def _channels(energies: NDArray[np.float64], window: Window, what: str) -> slice:
    """Return the channels of a window, at least 4."""
    channels = EnergyAxis.from_values(energies).channels(window)
    if channels.stop - channels.start < 4:
        raise InputError(
            f"the {what} window {format_window(window)} holds {channels.stop - channels.start} channels of the energy "
            f"axis, which spans {energies[0]:.1f}-{energies[-1]:.1f} eV; at least 4 are needed to measure the edge"
        )
    return channels


def _signal_error(signal: NDArray[np.float64], kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the noise of one pixel's signal from the differences between neighbours that are both kept."""
    pairs = (kept[1:] & kept[:-1], kept[:, 1:] & kept[:, :-1])
    differences = np.concatenate([np.diff(signal, axis=axis)[both] for axis, both in enumerate(pairs)])
    if differences.size == 0:
        return np.zeros(())
    return np.asarray(1.4826 * np.median(np.abs(differences)) / np.sqrt(2.0))


def _smoothed(signal: NDArray[np.float64], kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the signal averaged by (1 2 1) / 4 weights along y and x over what is kept; the border repeats."""
    from scipy.ndimage import convolve1d

    signal, weight = np.where(kept, signal, 0.0), kept.astype(np.float64)
    for axis in (0, 1):
        if signal.shape[axis] > 1:
            signal, weight = (
                convolve1d(values, [0.25, 0.5, 0.25], axis=axis, mode="nearest") for values in (signal, weight)
            )
    return np.divide(signal, weight, out=np.zeros_like(signal), where=kept)


def _noise_after_smoothing(shape: tuple[int, ...]) -> float:
    """Return by how much (1 2 1) / 4 weights along each axis reduce independent noise."""
    return float(np.prod([np.sqrt(0.375) if size > 1 else 1.0 for size in shape]))


def _two_means(
    spectra: NDArray[np.float64], signal: NDArray[np.float64], normalize: bool
) -> tuple[NDArray[np.bool_], str]:
    """Return the class with less signal of two, by Lloyd's iterations from the extremes of the signal."""
    if normalize:
        norm = np.sqrt(np.einsum("pf,pf->p", spectra, spectra))
        spectra = spectra / np.where(norm > 0, norm, 1.0)[:, None]
    order = np.argsort(signal.ravel(), kind="stable")
    tenth = max(1, order.size // 10)
    low, high = spectra[order[:tenth]].mean(axis=0), spectra[order[-tenth:]].mean(axis=0)
    labels, total = np.zeros(order.size, dtype=bool), spectra.sum(axis=0)
    for iteration in range(1, 301):
        # |s - low|^2 < |s - high|^2, expanded: one product decides
        direction = high - low
        nearer_low = spectra @ direction < 0.5 * float(direction @ (high + low))
        if iteration > 1 and np.array_equal(nearer_low, labels):
            break
        labels = nearer_low
        if labels.all() or not labels.any():
            break
        # a product with the labels copies no spectra
        low_sum, n_low = labels.astype(np.float64) @ spectra, int(np.count_nonzero(labels))
        low, high = low_sum / n_low, (total - low_sum) / (labels.size - n_low)
    mask = labels.reshape(signal.shape)
    if mask.any() and not mask.all() and signal[mask].mean() > signal[~mask].mean():
        mask = ~mask
    return mask, f"2-means of {'L2-normalised ' if normalize else ''}spectra, {iteration} iterations"


def _is_specimen(
    signal: NDArray[np.float64], mask: NDArray[np.bool_], maximum: float, fraction: float
) -> NDArray[np.bool_]:
    """Return the supposed vacuum that is specimen after all: both classes thick."""
    thick = bool(mask.any()) and float(np.median(signal[mask])) > fraction * maximum
    return mask if thick else np.zeros_like(mask)


def _separation(signal: NDArray[np.float64], mask: NDArray[np.bool_]) -> float:
    """Return the distance of the two groups' mean signals over their pooled standard deviation."""
    if not mask.any() or mask.all():
        return float("inf")
    pooled = np.sqrt((mask.sum() * signal[mask].var() + (~mask).sum() * signal[~mask].var()) / mask.size)
    distance = float(signal[~mask].mean() - signal[mask].mean())
    return distance / float(pooled) if pooled > 0 else float("inf")
