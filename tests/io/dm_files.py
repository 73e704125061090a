"""Small DigitalMicrograph files, versions 3 and 4, written tag by tag: no library writes them.

The layout is the public one (B. Freitag's and C. Boothroyd's descriptions, which every reader follows): lengths and
types are big-endian and 4 bytes wide in version 3, 8 bytes in version 4; values are little-endian where the header
says so. Version 4 has the length of what follows before each tag's content.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

GROUP, DATA = 20, 21
INT32, UINT16, UINT32, FLOAT32, FLOAT64, STRUCT, ARRAY = 3, 4, 5, 6, 7, 15, 20
IMAGE_OF_FLOATS = 2
_CODES = {INT32: "<i4", UINT16: "<u2", UINT32: "<u4", FLOAT32: "<f4", FLOAT64: "<f8"}


@dataclass(frozen=True)
class Value:
    """A number of a type of the format."""

    number: float
    type: int = UINT32


class Writer:
    """Tags of one version of the format, as bytes."""

    def __init__(self, version: int) -> None:
        self.version = version

    def length(self, *values: int) -> bytes:
        return struct.pack(f">{len(values)}{'i' if self.version == 3 else 'q'}", *values)

    def tag(self, name: str, content) -> bytes:
        kind = GROUP if isinstance(content, Mapping | list) else DATA
        body = self.group(content) if kind == GROUP else b"%%%%" + self.data(content)
        length = self.length(len(body)) if self.version == 4 else b""
        return struct.pack(">bH", kind, len(name)) + name.encode() + length + body

    def group(self, content) -> bytes:
        items = list(content.items()) if isinstance(content, Mapping) else [("", item) for item in content]
        return b"\1\0" + self.length(len(items)) + b"".join(self.tag(name, item) for name, item in items)

    def data(self, content) -> bytes:
        match content:
            case Value(number, code):
                return self.length(1, code) + np.array(number, _CODES[code]).tobytes()
            case str():
                characters = content.encode("utf-16-le")
                return self.length(3, ARRAY, UINT16, len(content)) + characters
            case tuple():  # of numbers: a struct of 8-byte floats
                fields = [length for _ in content for length in (0, FLOAT64)]
                definition = self.length(3 + len(fields), STRUCT, 0, len(content), *fields)
                return definition + struct.pack(f"<{len(content)}d", *content)
            case np.ndarray():
                return self.length(3, ARRAY, FLOAT32, content.size) + content.astype("<f4").tobytes()
        raise TypeError(f"no tag holds {type(content).__name__}")


def write_dm(path, counts, *, start, step, pixel_nm, little_endian=True):
    """Write counts (y, x, channels) as DigitalMicrograph keeps a spectrum image: energy is the slowest axis.

    The version follows the name, .dm3 or .dm4. An origin is the channel at which the calibrated axis is zero.
    """
    writer = Writer(int(path.suffix[-1]))
    axes = [(0.0, pixel_nm, "nm"), (0.0, pixel_nm, "nm"), (-start / step, step, "eV")]  # x, y, energy
    dimensions = [
        {"Origin": Value(origin, FLOAT32), "Scale": Value(scale, FLOAT32), "Units": units}
        for origin, scale, units in axes
    ]
    brightness = {"Origin": Value(0, FLOAT32), "Scale": Value(1, FLOAT32), "Units": "counts"}
    image = {
        "ImageData": {
            "Calibrations": {"Brightness": brightness, "Dimension": dimensions, "DisplayCalibratedUnits": Value(1)},
            "Data": np.ascontiguousarray(counts.transpose(2, 0, 1)),
            "DataType": Value(IMAGE_OF_FLOATS),
            "Dimensions": [Value(size) for size in (counts.shape[1], counts.shape[0], counts.shape[2])],
            "PixelDepth": Value(4),
        },
        "ImageTags": {
            "EELS": {"Acquisition": {"Exposure (s)": Value(0.1, FLOAT64)}},
            "Meta Data": {"Format": "Spectrum image", "Signal": "EELS"},
            "Microscope Info": {"Voltage": Value(200e3, FLOAT32), "Stage (um)": (1.0, 2.0)},
        },
        "Name": "core loss",
    }
    root = writer.group({"ApplicationBounds": (0.0, 0.0, 8.0, 8.0), "ImageList": [image]}) + bytes(8)
    header = struct.pack(">i", writer.version) + writer.length(len(root)) + struct.pack(">i", little_endian)
    path.write_bytes(header + root)
    return path
