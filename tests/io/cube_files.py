"""Small files of the formats that are read, written byte by byte where no writer exists."""

import importlib
import json
import shutil
import struct
import warnings
import zipfile

import h5py
import numpy as np
import tifffile
import zarr

from eelsflow.io.zarr_store import write_spectrum_image
from eelsflow.spectrum_image import build_spectrum_image
from tests.io.dm_files import write_dm

N_Y, N_X, N_CHANNELS, START, STEP, PIXEL_NM = 3, 4, 20, 500.0, 0.5, 2.0
ENERGIES = START + STEP * np.arange(N_CHANNELS)
COUNTS = np.random.default_rng(3).poisson(200, (N_Y, N_X, N_CHANNELS)).astype("float32")


def column(value, size=4096):
    """Metadata as Velox stores them: JSON in a column of bytes, filled up with zeros."""
    text = json.dumps(value).encode()
    return np.frombuffer(text.ljust(size, b"\0"), dtype=np.uint8)[:, None]


def write_velox(path, *, eels=True, eds=True):
    pixel = {"width": str(PIXEL_NM * 1e-9), "height": str(PIXEL_NM * 1e-9)}
    scan = {"PixelSize": pixel, "PixelUnitX": "m", "PixelUnitY": "m", "Offset": {"x": "0", "y": "0"}}
    with h5py.File(path, "w") as file:
        file["Version"] = np.array([json.dumps({"format": "Velox", "version": "1.10"}).encode()])
        data = file.create_group("Data")
        data["Image/0a/Data"] = np.ones((N_Y, N_X, 1), dtype="uint16")
        data["Image/0a/Metadata"] = column({"BinaryResult": scan, "Detectors": {}})
        data["SpectrumImage/0b/Metadata"] = column({"BinaryResult": scan})
        data["SpectrumImage/0b/SpectrumImageSettings"] = np.array([b'{"endFramePosition": "1"}'])
        if eds:
            data["SpectrumStream/0c/Data"] = np.zeros((10, 1), dtype="uint16")
        if eels:
            data["EelsSpectrumImage/0d/Data"] = COUNTS.transpose(1, 2, 0)
            data["EelsSpectrumImage/0d/Metadata"] = column({"a": 1})
            data["EelsSpectrumImage/0d/AcquisitionMetadata"] = column({"Data": {"offset": START, "dispersion": STEP}})
    return path


def write_ser(path, *, images=False):
    def axis(size, delta, units):
        text = b"name"
        return struct.pack("<IddII4sI", size, 0.0, delta, 0, len(text), text, len(units)) + units

    axes = axis(N_X, PIXEL_NM * 1e-9, b"meters") + axis(N_Y, PIXEL_NM * 1e-9, b"meters")
    header = struct.pack("<HHHIIII", 0x4949, 0x0197, 0x0210, 0x4122 if images else 0x4120, 0x4142, N_Y * N_X, N_Y * N_X)
    offset_array = len(header) + 8 + len(axes)
    first = offset_array + 2 * 4 * N_Y * N_X
    elements, offsets, tag_offsets = b"", [], []
    for index, spectrum in enumerate(COUNTS.reshape(-1, N_CHANNELS)):
        offsets.append(first + len(elements))
        elements += struct.pack("<ddIHI", START, STEP, 0, 7, N_CHANNELS) + spectrum.astype("<f4").tobytes()
        tag_offsets.append(first + len(elements))
        position = (PIXEL_NM * 1e-9 * (index % N_X), PIXEL_NM * 1e-9 * (index // N_X))
        elements += struct.pack("<HHIdd", 0x4142, 0, 0, *position)
    table = struct.pack(f"<{2 * N_Y * N_X}I", *offsets, *tag_offsets)
    path.write_bytes(header + struct.pack("<II", offset_array, 2) + axes + table + elements)
    return path


def write_ripple(path):
    path.with_suffix(".raw").write_bytes(COUNTS.astype("<f4").tobytes())
    said = {
        **{"width": N_X, "height": N_Y, "depth": N_CHANNELS, "offset": 0, "data-length": 4, "data-type": "float"},
        **{"byte-order": "little-endian", "record-by": "vector", "signal": "EELS"},
        **{"depth-origin": START, "depth-scale": STEP, "depth-units": "eV", "depth-name": "Energy loss"},
        **{f"{side}-{key}": value for side in ("width", "height") for key, value in (("scale", 2.0), ("units", "nm"))},
    }
    path.write_text("key\tvalue\n" + "".join(f"{key}\t{value}\n" for key, value in said.items()))
    return path


def write_panta_rhei(path, *, pickled=False):
    def calibration(unit, value, offset):
        return {"unit": unit, "value": value, "offset": offset}

    # image order: the fastest axis first, and the energy axis runs backwards
    energy = calibration("eV", STEP, -(START + (N_CHANNELS - 1) * STEP) / STEP)
    pixel = calibration("m", PIXEL_NM * 1e-9, 0.0)
    said = {"content.types": ["Energy", "ScanX", "ScanY"], "device.calib": [energy, pixel, pixel]}
    said |= {"filter.mode": "EELS", "repo_id": "core loss.1"}
    arrays = {"meta_data": np.array([said], dtype=object)} if pickled else {"meta_data_json": json.dumps([said])}
    with path.open("wb") as stream:
        np.savez(stream, data=COUNTS[..., ::-1], **arrays)
    return path


def nion_properties():
    axes = [(0.0, PIXEL_NM, "nm"), (0.0, PIXEL_NM, "nm"), (START, STEP, "eV")]
    calibrations = [{"offset": offset, "scale": scale, "units": units} for offset, scale, units in axes]
    return {"title": "core loss", "dimensional_calibrations": calibrations, "collection_dimension_count": 2}


def write_ndata(path):
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("data.npy", "w") as stream:
            np.lib.format.write_array(stream, COUNTS, allow_pickle=False)
        archive.writestr("metadata.json", json.dumps(nion_properties()))
    return path


def write_nion_hdf5(path):
    with h5py.File(path, "w") as file:
        name = "data/0" if path.suffix == ".nhdf" else "data"
        file[name] = COUNTS
        file[name].attrs["properties"] = json.dumps(nion_properties())
    return path


def write_gatan_tiff(path):
    tags = [
        *((65003, "s", 3, "nm", False), (65004, "s", 3, "nm", False), (65005, "s", 3, "eV", False)),
        *((65006, "d", 1, 0.0, False), (65007, "d", 1, 0.0, False), (65008, "d", 1, START, False)),
        *((65009, "d", 1, PIXEL_NM, False), (65010, "d", 1, PIXEL_NM, False), (65011, "d", 1, STEP, False)),
    ]
    pages = np.ascontiguousarray(COUNTS.transpose(2, 0, 1))
    tifffile.imwrite(path, pages, extratags=tags, photometric="minisblack", metadata=None)
    return path


def write_with_rosettasciio(path):
    pixel = {"units": "nm", "scale": PIXEL_NM, "offset": 0.0, "navigate": True}
    energy = {"name": "Energy loss", "units": "eV", "scale": STEP, "offset": START, "navigate": False}
    axes = [{"name": "y", **pixel}, {"name": "x", **pixel}, energy]
    for index, (axis, size) in enumerate(zip(axes, COUNTS.shape, strict=True)):
        axis |= {"_type": "UniformDataAxis", "is_binned": False, "size": size, "index_in_array": index}
    signal = {"data": COUNTS, "axes": axes, "metadata": {"Signal": {"signal_type": "EELS"}, "General": {"title": ""}}}
    signal |= {"original_metadata": {}, "attributes": {"_lazy": False, "ragged": False}, "learning_results": {}}
    signal |= {"package_info": {"package": "test", "package_version": "1"}, "models": {}, "tmp_parameters": {}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the writer
        importlib.import_module(f"rsciio.{path.suffix[1:]}").file_writer(str(path), signal)
    return path


def copy_to_zarr(source: h5py.Group, target: zarr.Group) -> None:
    """Copy a .hspy tree to the zarr v2 tree of a .zspy file: the writer of rosettasciio needs zarr 2.

    Listed first: an iterator of h5py holds its lock, and garbage that is collected in the thread of zarr waits for it.
    """
    for key, value in list(source.attrs.items()):
        target.attrs[key] = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    for key, value in list(source.items()):
        if isinstance(value, h5py.Group):
            copy_to_zarr(value, target.require_group(key))
        else:
            array = target.create_array(key, shape=value.shape, dtype=value.dtype, chunks=(2, *value.shape[1:]))
            array[...] = value[()]


def write_zspy(path):
    twin = write_with_rosettasciio(path.with_name(f"{path.stem}.twin.hspy"))
    with h5py.File(twin) as file:
        copy_to_zarr(file, zarr.open_group(path, mode="w", zarr_format=2))
    twin.unlink()
    return path


def write_zipped_zspy(path):
    folder = write_zspy(path.with_name(f"{path.stem}.folder.zspy"))
    with zipfile.ZipFile(path, "w") as archive:
        for member in sorted(folder.rglob("*")):
            if member.is_file():
                archive.write(member, member.relative_to(folder))
    shutil.rmtree(folder)
    return path


def write_dm_cube(path):
    return write_dm(path, COUNTS, start=START, step=STEP, pixel_nm=PIXEL_NM)


def write_store(path):
    image = build_spectrum_image(COUNTS, ENERGIES, pixel_size=PIXEL_NM, pixel_unit="nm", source=path.name)
    return write_spectrum_image(image, path)


def write_msa(path):
    header = "#FORMAT : EMSA/MAS Spectral Data File\n#NPOINTS : 20\n#NCOLUMNS : 1\n#XUNITS : eV\n#DATATYPE : Y\n"
    header += "#XLABEL : Energy\n#XPERCHAN : 0.5\n#OFFSET : 500\n#SIGNALTYPE : ELS\n#SPECTRUM : here\n"
    path.write_text(header + "".join(f"{y}.0,\n" for y in range(100, 100 + N_CHANNELS)) + "#ENDOFDATA :\n")
    return path


def write_text(path):
    path.write_text("# eV\tcounts\n" + "".join(f"{x}\t{100 + i}\n" for i, x in enumerate(ENERGIES)))
    return path


def write_table(path):
    np.savez(path, spectra=COUNTS.reshape(-1, N_CHANNELS), energy_loss=ENERGIES)
    return path


CUBES = {
    "cube.dm3": write_dm_cube,
    "cube.dm4": write_dm_cube,
    "cube.zspy": write_zspy,
    "zipped.zspy": write_zipped_zspy,
    "cube.zarr": write_store,
    "cube.hspy": write_with_rosettasciio,
    "ncem.emd": write_with_rosettasciio,
    "velox.emd": write_velox,
    "scan_1.ser": write_ser,
    "cube.rpl": write_ripple,
    "cube.prz": write_panta_rhei,
    "cube.ndata": write_ndata,
    "cube.h5": write_nion_hdf5,
    "cube.nhdf": write_nion_hdf5,
    "cube.tif": write_gatan_tiff,
}
# Files that all hold the counts (3, 4, 20) from 500 eV in steps of 0.5 eV, 2 nm a pixel, with their writers.

SPECTRA = {"one.msa": write_msa, "one.txt": write_text, "table.npz": write_table}
# Files of the formats that hold no image.
