"""What a file holds, in one look: shape, axis, edges in range, energy offset, spikes, background pixels."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from eelsflow.digest import digest_file
from eelsflow.edges import O_K, SHIPPED, Edge
from eelsflow.energy import EnergyAxis, format_window
from eelsflow.errors import EdgeOutOfRangeError, EelsflowError, InputError
from eelsflow.io.counts import LAZY_BYTES
from eelsflow.io.read import read_low_loss, read_spectrum_image
from eelsflow.io.tables import read_separate_ranges, read_spectra_table
from eelsflow.io.zarr_store import blocks
from eelsflow.low_loss.companion import path_of
from eelsflow.low_loss.instrument import instrument_of
from eelsflow.low_loss.pair import measure_low_loss
from eelsflow.preprocess.calibration import calibrate, usual_distance
from eelsflow.preprocess.chain import Acquisition, Part, fit_acquisition
from eelsflow.preprocess.companion import settle_offset
from eelsflow.preprocess.offset import OffsetEstimate, estimate_offset
from eelsflow.preprocess.presets import MAX_OFFSET, Align, Preset, Spikes, Step, VacuumMask
from eelsflow.spectrum_image import energy_axis

KNOWN_ONSETS: dict[str, float] = {
    "B_K": 188.0,
    "C_K": 284.0,
    "N_K": 401.0,
    "O_K": 532.0,
    "F_K": 685.0,
    "Na_K": 1072.0,
    "Mg_K": 1305.0,
    "Al_K": 1560.0,
    "Si_K": 1839.0,
    "P_K": 2146.0,
    "K_L3": 294.0,
    "Ca_L3": 346.0,
    "Sc_L3": 402.0,
    "Ti_L3": 456.0,
    "V_L3": 513.0,
    "Cr_L3": 575.0,
    "Mn_L3": 640.0,
    "Fe_L3": 708.0,
    "Co_L3": 779.0,
    "Ni_L3": 855.0,
    "Cu_L3": 931.0,
    "Zn_L3": 1020.0,
    "Ga_L3": 1115.0,
    "Ge_L3": 1217.0,
    "As_L3": 1323.0,
    "Se_L3": 1436.0,
    "Sr_L3": 1940.0,
    "Y_L3": 2080.0,
    "Zr_L3": 2222.0,
    "Nb_L3": 2371.0,
    "Mo_M5": 227.0,
    "Pd_M5": 335.0,
    "Ag_M5": 367.0,
    "Cd_M5": 404.0,
    "In_M5": 443.0,
    "Sn_M5": 485.0,
    "Sb_M5": 528.0,
    "Te_M5": 572.0,
    "I_M5": 620.0,
    "Cs_M5": 726.0,
    "Ba_M5": 781.0,
    "La_M5": 832.0,
    "Ce_M5": 883.0,
    "Pr_M5": 931.0,
    "Nd_M5": 978.0,
    "Sm_M5": 1080.0,
    "Eu_M5": 1131.0,
    "Gd_M5": 1185.0,
}
"""Onsets of common core-loss edges, eV, after C. C. Ahn and O. L. Krivanek, EELS Atlas (Gatan, 1983)."""

_BEFORE, _AFTER = 5.0, 20.0  # eV of axis needed before and after an onset to call an edge in range; our choice
_FAR = 20.0  # eV between edges that tell a dispersion
_SIGNIFICANT = 3.0  # standard errors by which the offsets of two edges disagree
_FEWEST_PIXELS = 4  # below this specimen and vacuum cannot be told apart


def describe(
    path: Path | str, edge: Edge | None = None, *, low_loss: Path | str | None = None, density: float | None = None
) -> dict[str, Any]:
    """Describe a readable file.

    Parameters
    ----------
    path
        Anything `eelsflow.io.read.read_spectrum_image` takes, or an npz table of spectra.
    edge
        The edge to judge the file by; of several that are judged together the lowest. By default the first shipped edge
        whose fine structure the axis shows and whose energy offset can be estimated.
    low_loss
        The file of the low loss of the same scan. By default the low loss that the file itself holds, beside its core
        loss (dual EELS) or as its only signal; where there is none, nothing is said of it.
    density
        Of the specimen, g/cm^3; with beam energy and angles from the file it makes nanometres of t/lambda.

    Returns
    -------
    dict
        JSON values. ``shape`` [y, x, channels]; ``energy_loss`` {start, stop, dispersion} of the channel centres, eV,
        nominal; ``edges`` in range on the nominal axis, with ``edge_onsets`` in eV; ``edge`` that the following refer
        to; ``energy_offset`` {value, error}, eV to add to the nominal axis at the reference energy, 1 sigma;
        ``offsets`` {edge: {value, error}} of every edge that shows, and a warning where they disagree;
        ``dispersion`` {value, error, edges, distances}, eV per channel, that the edges together ask for, or null, with
        ``distances`` {edge: {value, error, usual, usual_spread}}, eV from the first of the edges to each other on the
        file's own axis, and in compounds;
        ``lost_pixels`` {nan, empty, saturated} that take no part (see `eelsflow.preprocess.lost`);
        ``spikes`` {channels, pixels} affected; ``dead_channels``; ``background_fraction`` of the pixels that show no
        specimen; ``noise`` {gain, readout_variance}; ``counts`` {min, max, mean} of the finite ones; ``file``,
        ``format``, ``signal``, ``sha256``, ``pixel_size``, ``pixel_unit``; ``warnings``;
        ``low_loss`` {file, shape, zero_loss {mean, spread, low, high}, offset {value, error}, resolution, t_over_lambda
        {median, low, high}, thickness (the same in nm, or null), instrument {beam_energy keV, convergence_angle,
        collection_angle mrad}}: positions on the nominal axis and widths in eV, the spread the standard deviation over
        the scan, the offset minus the mean position. What cannot be estimated is None, and a warning says why.

    Raises
    ------
    UnreadableFileError
        If the file cannot be read.
    EdgeOutOfRangeError
        If the nominal axis does not span the fine-structure window of `edge`.

    Notes
    -----
    Spikes, vacuum and offset are found as the preset ``recommended`` finds them, by the same functions. That an edge
    is in range does not say that the specimen shows it.
    """
    path = Path(path)
    if path.suffix.lower() == ".npz":
        separate = read_separate_ranges(path)
        if separate is not None:
            return _describe_separate_ranges(path, *separate, edge=edge)
        image = read_spectra_table(path)
    else:
        image = read_spectrum_image(path)
    axis = energy_axis(image)
    if edge is not None:
        edge.require_within(axis, pre_edge=False)
        edge = edge.alone[0]
    metadata = json.loads(image.attrs["metadata"])
    warnings: list[str] = list(metadata.get("notes", []))
    parts = _parts(image, path)
    acquisition, estimated_for = _learn(axis, parts, image.shape[:2], edge, warnings)
    judged = edge or estimated_for
    if judged and not axis.covers(judged.background_window):
        warnings.append(
            f"the background window {format_window(judged.background_window)} of {judged.name} reaches past the axis "
            f"({axis.start:.1f}-{axis.stop:.1f} eV): the fine structure shows, but its background cannot be subtracted"
        )
    counts = _count_range(parts)
    low = _describe_low_loss(path, image, low_loss, density, warnings)
    onsets = edges_in_range(axis, [*SHIPPED.values(), *([edge] if edge else [])])
    offset = vacuum = noise = spikes = dead = None
    offsets: dict[str, OffsetEstimate] = {}
    dispersion: dict[str, Any] | None = None
    if acquisition and estimated_for:
        offset, vacuum = acquisition.fitted.offset, acquisition.vacuum
        assert offset is not None  # the steps that an edge is estimated by align
        warnings += [warning for warning in acquisition.warnings if warning not in warnings]
        offsets = {estimated_for.name: offset, **_other_offsets(acquisition, estimated_for)}
        warnings += _disagreements(offsets, axis, estimated_for)
        dispersion = _dispersion(offsets, axis, estimated_for)
        if low and axis.start > 0:
            _, apart = settle_offset(offset, OffsetEstimate(low["offset"]["value"], low["offset"]["error"]))
            warnings += [apart] if apart else []
    elif acquisition and counts["min"] < 0:
        warnings.append(
            f"counts reach down to {counts['min']:.4g}: usual where a dark reference or a background was subtracted"
        )
    if acquisition and axis.start <= 0:
        warnings.append(
            "the axis holds the zero-loss peak, which moves a little from pixel to pixel: spikes and dead channels "
            "cannot be told from that"
        )
    elif acquisition:
        noise = acquisition.fitted.noise
        dead = np.flatnonzero(acquisition.fitted.dead_channels).tolist()
        hits = [part.spikes for part in acquisition.parts if part.spikes is not None]
        spikes = {
            "channels": sum(len(hit) for hit in hits),
            "pixels": sum(len(np.unique(hit[:, 0])) for hit in hits),
        }
    return {
        "file": str(path),
        "format": metadata.get("format"),
        "signal": metadata.get("signal", {}).get("title") or None,
        "sha256": image.attrs["sha256"],
        "shape": list(image.shape),
        "pixel_size": image.attrs["pixel_size"],
        "pixel_unit": image.attrs["pixel_unit"],
        "energy_loss": {"start": axis.start, "stop": axis.stop, "dispersion": axis.dispersion},
        "counts": counts,
        "edges": list(onsets),
        "edge_onsets": onsets,
        "edge": estimated_for.name if estimated_for else None,
        "energy_offset": _offset_values(offset) if offset else None,
        "offsets": {name: _offset_values(estimate) for name, estimate in offsets.items()},
        "dispersion": dispersion,
        "lost_pixels": acquisition.losses.numbers if acquisition else None,
        "spikes": spikes,
        "dead_channels": dead,
        "background_fraction": vacuum.fraction if vacuum else None,
        "noise": {"gain": noise.gain, "readout_variance": noise.readout_variance} if noise else None,
        "low_loss": low,
        "warnings": warnings,
    }


def _describe_low_loss(
    path: Path, image: xr.DataArray, given: Path | str | None, density: float | None, warnings: list[str]
) -> dict[str, Any] | None:
    """Describe the low loss that was given or that the file holds; None where there is none."""
    file, low = path, None
    if given is not None:
        file = Path(given)
        low = read_spectrum_image(file)
    elif path.suffix.lower() != ".npz":
        low = image if image.coords["energy_loss"].values[0] < 0 else read_low_loss(path)
    if low is None:
        return None
    stride = int(np.ceil(np.sqrt(low.nbytes / LAZY_BYTES)))  # what may not fit into memory is sampled
    if stride > 1:
        warnings.append(f"the low loss is large: every {stride}th pixel along either side was measured")
    try:
        measured = measure_low_loss(low[::stride, ::stride])
    except InputError as problem:
        if given is not None:
            raise InputError(f"{file}: {problem}") from problem
        warnings.append(str(problem))
        return None
    if low.shape[:2] != image.shape[:2]:
        warnings.append(
            f"the low loss has {low.shape[0]} x {low.shape[1]} pixels and the core loss {image.shape[0]} x "
            f"{image.shape[1]}: they are not of the same scan, or one of them was cut"
        )
    position, thickness = -measured["offset"].values, measured["t_over_lambda"].values
    n_seen = int(np.isfinite(position).sum())
    error = float(np.sqrt(np.nanmean(measured["offset_error"].values ** 2) / n_seen))
    relative = None
    if np.isfinite(thickness).any():
        shares = {"median": 0.5, "low": 0.0, "high": 1.0}
        relative = {name: float(np.nanquantile(thickness, share)) for name, share in shares.items()}
    instrument = instrument_of(low)
    free_path = path_of(instrument, density)
    if density is not None and free_path is None:
        warnings.append(
            "the file does not say beam energy and collection angle, without which t/lambda makes no thickness in nm"
        )
    return {
        "file": str(file),
        "shape": list(low.shape),
        "zero_loss": {
            "mean": float(np.nanmean(position)),
            "spread": float(np.nanstd(position)),
            "low": float(np.nanmin(position)),
            "high": float(np.nanmax(position)),
        },
        "offset": {"value": float(measured.attrs["offset"]), "error": error},
        "resolution": float(measured.attrs["resolution"]),
        "t_over_lambda": relative,
        "thickness": {name: free_path * value for name, value in relative.items()} if free_path and relative else None,
        "instrument": asdict(instrument),
    }


def _describe_separate_ranges(
    path: Path, spectra: NDArray[np.floating], ranges: NDArray[np.floating], *, edge: Edge | None
) -> dict[str, Any]:
    """Describe a table whose spectra each have their own energy range: most of it cannot be said of all at once."""
    lowest, highest = float(ranges.min()), float(ranges.max())
    reason = (
        f"each of the {len(spectra)} spectra has its own energy range, within {lowest:.1f}-{highest:.1f} eV: register "
        "them onto one axis (energy_loss) before a study uses them"
    )
    if edge is not None:
        raise EdgeOutOfRangeError(f"{path}: {reason}; {edge.name} cannot be judged without a common axis")
    unknown = (
        "signal",
        "energy_loss",
        "edge",
        "energy_offset",
        "lost_pixels",
        "spikes",
        "dead_channels",
        "background_fraction",
        "noise",
        "low_loss",
    )
    return {
        "file": str(path),
        "format": "table of spectra on separate axes",
        "sha256": digest_file(path),
        "shape": [1, *spectra.shape],
        "pixel_size": 1.0,
        "pixel_unit": "px",
        "counts": {"min": float(spectra.min()), "max": float(spectra.max()), "mean": float(spectra.mean())},
        "edges": [],
        "edge_onsets": {},
        "offsets": {},
        "dispersion": None,
        **dict.fromkeys(unknown),
        "warnings": [reason],
    }


def edges_in_range(axis: EnergyAxis, edges: Sequence[Edge] = tuple(SHIPPED.values())) -> dict[str, float]:
    """Return the edges that a nominal axis shows, with their onsets in eV, by rising energy.

    Parameters
    ----------
    axis
        The nominal axis.
    edges
        Edges with windows: in range if the axis spans their fine structure. The others of `KNOWN_ONSETS` need 5 eV of
        axis before and 20 eV after the onset.

    Examples
    --------
    >>> list(edges_in_range(EnergyAxis(440.0, 0.5, 300)))
    ['Ti_L3', 'Sn_M5', 'V_L3', 'Sb_M5', 'O_K']
    """
    configured = {edge.name: edge for edge in edges}
    onsets = {
        name: onset
        for name, onset in KNOWN_ONSETS.items()
        if name not in configured and axis.covers((onset - _BEFORE, onset + _AFTER))
    }
    for name, edge in configured.items():
        if axis.covers(edge.elnes_window):
            onsets[name] = KNOWN_ONSETS.get(name, edge.reference_energy)
    return dict(sorted(onsets.items(), key=lambda item: item[1]))


def format_description(description: dict[str, Any]) -> str:
    """Return a description (see `describe`) as aligned lines for a terminal."""
    n_y, n_x, n_channels = description["shape"]
    axis, counts = description["energy_loss"], description["counts"]
    spikes, noise, lost = description["spikes"], description["noise"], description["lost_pixels"]
    vacuum, dead = description["background_fraction"], description["dead_channels"]
    kind = "spectrum image" if n_y > 1 else "line scan" if n_x > 1 else "single spectrum"
    if description["pixel_unit"] == "px":
        pixel = "not calibrated"
    else:
        pixel = f"{description['pixel_size']:.4g} {description['pixel_unit']}"
    edges = [f"{name} {onset:.0f}" for name, onset in description["edge_onsets"].items()]
    unknown = "cannot be estimated"
    lines = {
        "file": description["file"],
        "format": ", ".join(str(part) for part in (description["format"], description["signal"]) if part),
        "shape": f"{n_y} x {n_x} pixels, {n_channels} channels ({kind})",
        "pixel size": pixel,
        "energy loss": f"{axis['start']:.2f} to {axis['stop']:.2f} eV, {axis['dispersion']:.4g} eV per channel"
        if axis
        else "no common axis",
        "counts": f"{counts['min']:.4g} to {counts['max']:.4g}, mean {counts['mean']:.4g}",
        "edges in range (eV)": ", ".join(edges) or "none of the known ones",
        "energy offset to add": "; ".join(
            f"{offset['value']:+.2f} +- {offset['error']:.2f} eV at {name}"
            for name, offset in description["offsets"].items()
        )
        or unknown,
        **_dispersion_lines(description["dispersion"]),
        "lost pixels": unknown
        if lost is None
        else ", ".join(f"{number} {kind}" for kind, number in lost.items() if number) or "none",
        "spikes": f"{spikes['channels']} channels in {spikes['pixels']} pixels" if spikes else unknown,
        "dead channels": unknown if dead is None else _count_of(dead),
        "vacuum": unknown if vacuum is None else f"{100 * vacuum:.1f} %",
        "noise": f"variance of a channel: {noise['gain']:.3g} x its counts + {noise['readout_variance']:.3g}"
        if noise
        else unknown,
        **_low_loss_lines(description["low_loss"]),
        "sha256": description["sha256"],
    }
    width = max(len(name) for name in lines)
    text = [f"{name:<{width}}  {value}" for name, value in lines.items()]
    return "\n".join([*text, *(f"{'warning':<{width}}  {warning}" for warning in description["warnings"])])


def _count_of(dead: list[int]) -> str:
    """Return how many dead channels there are, and which."""
    if not dead:
        return "none"
    return f"{len(dead)} (channel{'s' if len(dead) > 1 else ''} {', '.join(map(str, dead))})"


def _dispersion_lines(dispersion: dict[str, Any] | None) -> dict[str, str]:
    if dispersion is None:
        return {}
    value = f"{dispersion['value']:.4g} +- {dispersion['error']:.2g} eV per channel"
    apart = (
        f"{abs(one['value']):.2f} +- {one['error']:.2f} eV from {dispersion['edges'][0]} to {name} on this axis; "
        f"compounds have {abs(one['usual']):.1f} +- {one['usual_spread']:.1f}"
        for name, one in dispersion["distances"].items()
    )
    return {
        "distance of edges": "; ".join(apart),
        "dispersion": f"{value}, by the distance of {' and '.join(dispersion['edges'])}",
    }


def _low_loss_lines(low: dict[str, Any] | None) -> dict[str, str]:
    if low is None:
        return {}
    zero, thickness = low["zero_loss"], low["t_over_lambda"]
    return {
        "low loss": low["file"],
        "zero loss": f"{zero['mean']:+.3f} eV, spread {zero['spread']:.3f} eV ({zero['low']:+.3f} to "
        f"{zero['high']:+.3f} eV) over the scan",
        "resolution": f"{low['resolution']:.3f} eV",
        "t/lambda": f"median {thickness['median']:.3f}, {thickness['low']:.3f} to {thickness['high']:.3f}"
        if thickness
        else "cannot be estimated",
        **_thickness_line(low["thickness"]),
    }


def _thickness_line(thickness: dict[str, float] | None) -> dict[str, str]:
    if thickness is None:
        return {}
    return {
        "thickness": f"median {thickness['median']:.0f} nm, {thickness['low']:.0f} to {thickness['high']:.0f} nm (the "
        "mean free path is known to 10 %)"
    }


def _parts(image: xr.DataArray, path: Path) -> list[Part]:
    """Return the blocks of an image; those of a store are read when they are worked on."""
    n_y, n_x, _ = image.shape
    source = path if path.suffix.lower() == ".zarr" else image.data if image.chunks is not None else image.values
    return [Part(source, block, width=n_x) for block in blocks(n_y, n_x)]


def _learn(
    axis: EnergyAxis, parts: list[Part], shape: tuple[int, ...], edge: Edge | None, warnings: list[str]
) -> tuple[Acquisition | None, Edge | None]:
    """Return what can be learnt, with the edge it was learnt for; what failed becomes a warning."""
    n_y, n_x = shape
    in_range = [edge] if edge else [shipped for shipped in SHIPPED.values() if axis.covers(shipped.elnes_window)]
    spikes, align, vacuum = Spikes(), Align(), VacuumMask()
    whole: list[tuple[Step, ...]] = [(spikes, align)]
    if n_y * n_x >= _FEWEST_PIXELS:
        whole.insert(0, (spikes, vacuum, align))
    attempts = [(candidate, steps) for candidate in in_range for steps in whole]
    failures: dict[str, str] = {}  # the first reason that each edge gave: what is tried after it only follows from it
    # The last attempt needs no edge; any will do.
    for candidate, steps in [*attempts, (edge or O_K, (spikes,))]:
        try:
            preset = Preset(name="info", steps=steps)
            acquisition = fit_acquisition(axis, parts, (n_y, n_x), edge=candidate, preset=preset)
        except EelsflowError as error:
            if len(steps) > 1:
                failures.setdefault(candidate.name, str(error))
                continue
            # whatever was tried failed for what is wrong with the counts themselves
            warnings.append(str(error))
            return None, None
        if len(steps) > 1:
            warnings += [f"{name}: {reason}" for name, reason in failures.items() if name == candidate.name]
            return acquisition, candidate
        warnings += [f"{name}: {reason}" for name, reason in failures.items()]
        return acquisition, None
    raise AssertionError("the last attempt returns")


def _other_offsets(acquisition: Acquisition, edge: Edge) -> dict[str, OffsetEstimate]:
    """Return the offsets at the other shipped edges that the mean spectrum shows; most specimens show none."""
    fitted = acquisition.fitted
    n_specimen = sum(int(part.specimen.sum()) for part in acquisition.parts)
    variance = fitted.noise.variance(acquisition.mean_spectrum) / n_specimen
    offsets = {}
    for name, other in SHIPPED.items():
        if name != edge.name and fitted.axis.covers(other.elnes_window):
            with contextlib.suppress(EelsflowError):
                offsets[name] = estimate_offset(
                    fitted.axis.values, acquisition.mean_spectrum, other, variance=variance, max_offset=MAX_OFFSET
                )
    return offsets


def _dispersion(offsets: dict[str, OffsetEstimate], axis: EnergyAxis, edge: Edge) -> dict[str, Any] | None:
    """Return the dispersion that several edges ask for together; None for one edge."""
    others = [
        (SHIPPED[name], offset)
        for name, offset in offsets.items()
        if name != edge.name and abs(usual_distance(edge, SHIPPED[name])[0]) > _FAR
    ]
    if not others:
        return None
    found = calibrate(edge, offsets[edge.name], others)
    return {
        "value": axis.dispersion * found.dispersion,
        "error": axis.dispersion * found.dispersion_error,
        "edges": [edge.name, *(one.name for one, _ in others)],
        "distances": {
            one.name: dict(
                zip(
                    ("value", "error", "usual", "usual_spread"),
                    (*found.distances[one.name], *usual_distance(edge, one)),
                    strict=True,
                )
            )
            for one, _ in others
        },
    }


def _disagreements(offsets: dict[str, OffsetEstimate], axis: EnergyAxis, edge: Edge) -> list[str]:
    """Return what it means that edges of one file ask for different offsets."""
    first, here = edge, offsets[edge.name]
    warnings = []
    for name, there in offsets.items():
        if name == first.name:
            continue
        usual, spread = usual_distance(first, SHIPPED[name])
        nominal = SHIPPED[name].reference_energy - there.value - (first.reference_energy - here.value)
        error = float(np.sqrt(here.error**2 + there.error**2 + spread**2))
        if abs(nominal - usual) <= _SIGNIFICANT * error:
            continue
        dispersion = axis.dispersion * usual / nominal
        warnings.append(
            f"{first.name} and {name} lie {abs(nominal):.1f} +- {np.hypot(here.error, there.error):.1f} eV apart on "
            f"this axis, and compounds have {abs(usual):.1f} +- {spread:.1f} eV: if the specimen holds both "
            f"elements, the dispersion is wrong, {axis.dispersion:.4g} eV per channel where {dispersion:.4g} would be "
            f"true ({100 * (usual / nominal - 1):+.1f} +- {100 * error / abs(nominal):.1f} %). A study of both "
            f"(edges: [{first.name}, {name}]) corrects that; one of a single edge must expect distances between its "
            "features to be off by as much"
        )
    return warnings


def _offset_values(estimate: OffsetEstimate) -> dict[str, float]:
    return {"value": estimate.value, "error": estimate.error}


def _count_range(parts: list[Part]) -> dict[str, float]:
    """Return least, greatest and mean finite count, one block in memory at a time."""
    least, greatest, total, n_values = np.inf, -np.inf, 0.0, 0
    for part in parts:
        counts = part.read()
        if counts.dtype.kind == "f" and not (finite := np.isfinite(counts)).all():
            counts = counts[finite]
        if counts.size:
            least, greatest = min(least, float(counts.min())), max(greatest, float(counts.max()))
            total, n_values = total + float(counts.sum(dtype=np.float64)), n_values + counts.size
    if not n_values:
        raise InputError("the image holds no finite count at all: export the raw counts again")
    return {"min": least, "max": greatest, "mean": total / n_values}
