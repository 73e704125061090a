"""Numbers in a page: whole numbers as byte planes, compressed and in base64, that a few lines of JavaScript read.

Noise does not repeat itself, so nothing is gained by looking for repetitions: a spectrum's values are told as
differences from what those before them let expect, and bytes are Huffman coded (deflate that looks for runs of one byte
alone: several times as fast as at its usual level, and no larger).
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LARGEST = 2**29 - 1
"""Whole numbers to be coded lie between -LARGEST and LARGEST: the sum of four of them has 32 bits."""


def code_rows(rows: NDArray[np.int32]) -> NDArray[np.uint32]:
    """Return the codes of spectra, shape (n, channels); `rows`, between -LARGEST and LARGEST, is not modified.

    A value less the rounded mean of the four before it (at the start of a row, where there are fewer, the first stands
    for those that lack) is coded with its sign in the lowest bit.
    """
    first = rows[:, :1]
    before = np.concatenate([first, first, first, rows], axis=1)
    expected = before[:, 3:-1] + before[:, 2:-2]
    expected += before[:, 1:-3]
    expected += before[:, :-4]
    expected += 2
    expected >>= 2
    differences = rows.copy()
    differences[:, 1:] -= expected
    return ((differences << 1) ^ (differences >> 31)).view(np.uint32)


def code_maps(maps: NDArray[np.float64], steps: NDArray[np.float64]) -> tuple[NDArray[np.uint32], NDArray[np.float64]]:
    """Return the codes of maps: 0 for NaN, else 1 plus how many steps a value lies above the lowest.

    Parameters
    ----------
    maps
        Shape (maps, pixels); what is not finite is not known. Not modified.
    steps
        Of each map, shape (maps,): values are kept to half of it.

    Returns
    -------
    codes
        Shape (maps, pixels).
    lowest
        Of each map, shape (maps,).
    """
    known = np.isfinite(maps)
    lowest = np.where(known, maps, np.inf).min(axis=1, initial=np.inf)
    lowest[~np.isfinite(lowest)] = 0.0
    above = np.where(known, maps, lowest[:, None]) - lowest[:, None]
    return np.where(known, np.rint(above / steps[:, None]) + 1, 0).astype(np.uint32), lowest


def pack(codes: Sequence[NDArray[np.uint32]]) -> list[str]:
    """Pack whole numbers, one array after the other, into byte planes: as many, lowest first, as the largest needs."""
    largest = max(int(some.max(initial=0)) for some in codes)
    planes = []
    for number in range(max(1, -(-largest.bit_length() // 8))):
        compressor = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
        parts = [compressor.compress(((some >> (8 * number)) & 255).astype(np.uint8).tobytes()) for some in codes]
        planes.append(base64.b64encode(b"".join([*parts, compressor.flush()])).decode())
    return planes
