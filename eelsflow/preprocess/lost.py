"""Lost pixels: what the detector never wrote, or wrote without what it saw.

A lost pixel is neither specimen nor vacuum. It takes no part in anything that is learnt of an acquisition, and is a
state of its own in the product and in the map. Three kinds are told apart:

- **nan**: a count anywhere on the recorded axis is NaN or infinite. The whole axis is used: noise, spikes and
  principal components are those of whole spectra.
- **empty**: zero in every channel, as an aborted scan leaves it, where chance cannot have made it so. Electrons that
  are counted one by one leave a pixel empty with the probability ``exp(-m)``, m the electrons that it should hold. The
  darkest of the other pixels stand for m: the number of channels that counted anything, in the second darkest of them
  (the darkest may be the one in which the scan ended). Of n pixels ``n exp(-m)`` are empty by chance; where that is
  under one in a thousand, empty pixels are lost, and all of them are ordinary vacuum otherwise. Vacuum may also count
  no electron at all, beside a specimen whose every pixel counts dozens: where more than 1 % of the pixels are empty
  elsewhere than at the end of the scan (row by row), emptiness is what vacuum looks like, and no empty pixel is lost.
- **saturated**: clipped at a ceiling, which is the highest count of the image if

  1. it is 63 times the smallest positive count or more (the ceiling of the smallest counter, of 6 bits), so that the
     few counts of single electrons never are one; and
  2. it is found four times as often as the next lower count of the image, or more often: counts thin out towards their
     maximum and pile up at a ceiling.

  A pixel is clipped if it is at the ceiling in 8 adjacent channels, more than a spike spans, or in a channel where
  many pixels are: 1 % of them and 3 at the least, each in two adjacent channels or more, which spikes at random places
  are not, nor spectra that were divided by their maxima. A channel where every pixel is at the ceiling is stuck, and
  says nothing of a pixel. A ceiling that differs from channel to channel (a dark reference subtracted after the
  clipping) is not found, nor are fewer clipped pixels than these.

All of this, and every constant, is our choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eelsflow.errors import InputError
from eelsflow.preprocess.kernels import highest_counts
from eelsflow.preprocess.spikes import MAX_EVENT_WIDTH
from eelsflow.preprocess.transform import Part

MOST_LOST = 0.2
"""Share of the pixels beyond which what is left does not stand for the image, and it is refused (our choice)."""

_WORDS = {"nan": "with NaN or infinite counts", "empty": "zero throughout", "saturated": "clipped"}
_BY_CHANCE = 1e-3  # empty pixels to be expected in an image, under which an empty one is no chance
_VACUUM = 0.01  # of the pixels, empty before the end of the scan: a few are dropped, more are vacuum
_SMALLEST_CEILING = 63  # smallest positive counts
_PILE = 4  # times as many counts at a ceiling as at the next lower value
_FEWEST_CLIPPED = 3  # pixels
_SHARE_CLIPPED = 0.01  # of the pixels
_PLATEAU = MAX_EVENT_WIDTH + 1  # adjacent channels, more than a spike spans

Level = tuple[float, int]
"""A value, and how many counts have it."""


class Blocks(Protocol):
    """The blocks of an image, and how to ask each of them."""

    def map(self, function: Callable[..., Any], *args: Any, label: str) -> list[Any]:
        """Return ``function(part, *args)`` for every block."""

    def assemble(self, values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Put values of the blocks' pixels together to an image, shape (y, x)."""


@dataclass(frozen=True)
class Traces:
    """What the first look at a block tells of lost pixels.

    Attributes
    ----------
    broken, empty
        Shape (pixels,): where a count is not finite; where all are zero.
    highest
        The two highest values of the other pixels; one that does not exist is minus infinity.
    """

    broken: NDArray[np.bool_]
    empty: NDArray[np.bool_]
    highest: tuple[Level, Level]


@dataclass(frozen=True)
class Losses:
    """The lost pixels of an image, each of one kind.

    Attributes
    ----------
    nan, empty, saturated
        Shape (y, x).
    ceiling
        Count at which pixels are clipped; None where none are.
    """

    nan: NDArray[np.bool_]
    empty: NDArray[np.bool_]
    saturated: NDArray[np.bool_]
    ceiling: float | None = None

    @property
    def mask(self) -> NDArray[np.bool_]:
        """All lost pixels, shape (y, x)."""
        return self.nan | self.empty | self.saturated

    @property
    def numbers(self) -> dict[str, int]:
        """Pixels of each kind."""
        return {kind: int(getattr(self, kind).sum()) for kind in _WORDS}

    @property
    def sentence(self) -> str | None:
        """What a person should know of them; None where no pixel is lost."""
        if not self.mask.any():
            return None
        return f"{self._found()}; they take no part in anything and have no class"

    def require_few(self) -> None:
        """Refuse an image of which more than `MOST_LOST` is lost.

        Raises
        ------
        InputError
            Saying how many pixels of each kind there are.
        """
        if self.mask.mean() > MOST_LOST:
            raise InputError(
                f"{self._found()}; at most {MOST_LOST:.0%} may be, or the pixels that are left do not stand for the "
                "image: cut it to the part that was recorded well (channels that are NaN in every pixel are to be cut "
                "off the axis), export it again, or record it again with a shorter exposure where it is clipped"
            )

    def _found(self) -> str:
        kinds = []
        for kind, number in self.numbers.items():
            if number:
                y, x = np.argwhere(getattr(self, kind))[0]
                at = f" at {self.ceiling:g} counts" if kind == "saturated" else ""
                first = f"the first y={y}, x={x}" if number > 1 else f"y={y}, x={x}"
                kinds.append(f"{number:,} {_WORDS[kind]}{at} ({first})")
        lost = self.mask
        are = "is" if lost.sum() == 1 else "are"
        return f"{lost.sum():,} of {lost.size:,} pixels {are} lost: {', '.join(kinds)}"


def trace_losses(counts: NDArray[Any], totals: NDArray[np.float64]) -> Traces:
    """Look for lost pixels in one block.

    Parameters
    ----------
    counts
        Raw counts, shape (pixels, channels).
    totals
        Their sums over the channels, shape (pixels,): whatever is not finite shows in them.
    """
    broken, empty = ~np.isfinite(totals), totals == 0
    broken[broken] = ~np.isfinite(counts[broken]).all(axis=1)
    empty[empty] = ~counts[empty].any(axis=1)
    first, n_first, second, n_second = highest_counts(counts, ~broken)
    return Traces(broken, empty, ((first, n_first), (second, n_second)))


def find_losses(traces: Sequence[Traces], blocks: Blocks) -> Losses:
    """Tell which pixels of an image are lost.

    Parameters
    ----------
    traces
        Of every block. Only where they give reason to are the blocks looked at again.
    blocks
        The same blocks.
    """
    nan = blocks.assemble([trace.broken for trace in traces])
    empty = blocks.assemble([trace.empty for trace in traces])
    if empty.any():
        darkest = np.sort(np.concatenate(blocks.map(_darkest, label="look for empty pixels")))[:2]
        if (
            not darkest.size
            or empty.size * math.exp(-float(darkest[-1])) > _BY_CHANCE
            or _empty_before_the_end(empty, nan) > _VACUUM * empty.size
        ):
            empty = np.zeros_like(empty)
    (ceiling, n_ceiling), (_, n_below) = _highest_of(traces)
    if n_ceiling >= max(_PILE * n_below, 2 * _FEWEST_CLIPPED):
        looked = blocks.map(_channels_at, ceiling, label="look for clipped channels")
        if ceiling >= _SMALLEST_CEILING * min(least for _, least in looked):
            n_pixels = int(nan.size - (nan | empty).sum())
            clipped = _clipped_channels(np.sum([hits for hits, _ in looked], axis=0), n_pixels)
            saturated = blocks.assemble(blocks.map(_clipped_pixels, ceiling, clipped, label="look for clipped pixels"))
            if saturated.any():
                return Losses(nan, empty, saturated, ceiling)
    return Losses(nan, empty, np.zeros_like(nan))


def _empty_before_the_end(empty: NDArray[np.bool_], nan: NDArray[np.bool_]) -> int:
    """Return how many pixels are empty before those that end the scan, row by row."""
    recorded = np.flatnonzero(~(empty | nan))
    end = int(recorded[-1]) + 1 if recorded.size else 0
    return int(empty.ravel()[:end].sum())


def _highest_of(traces: Sequence[Traces]) -> tuple[Level, Level]:
    """Return the two highest values of all blocks: each is among the two highest of any block that has it."""
    number: dict[float, int] = {}
    for value, n in (level for trace in traces for level in trace.highest):
        number[value] = number.get(value, 0) + n
    first, second = [*sorted(number, reverse=True), -math.inf][:2]
    return (first, number[first]), (second, number.get(second, 0))


def _darkest(part: Part) -> NDArray[np.intp]:
    """Return in how many channels the two darkest pixels of a block counted anything, those left out that did not."""
    counted = np.count_nonzero(part.read(), axis=1)
    return np.sort(counted[counted > 0])[:2]


def _channels_at(part: Part, ceiling: float) -> tuple[NDArray[np.int64], float]:
    """Return how many pixels of a block are at the ceiling in each channel and one beside it, and the least positive.

    Shape (channels,), and a count, infinite where none is positive.
    """
    counts = part.read()
    at = counts == ceiling
    beside = np.zeros_like(at)
    beside[:, 1:] |= at[:, :-1]
    beside[:, :-1] |= at[:, 1:]
    positive = counts[counts > 0]
    return (at & beside).sum(axis=0), float(positive.min()) if positive.size else math.inf


def _clipped_channels(hits: NDArray[np.int64], n_pixels: int) -> NDArray[np.bool_]:
    """Tell the channels in which many pixels are at the ceiling, but not all; shape (channels,)."""
    return np.asarray((hits >= max(_FEWEST_CLIPPED, _SHARE_CLIPPED * n_pixels)) & (hits < n_pixels))


def _clipped_pixels(part: Part, ceiling: float, clipped: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tell which pixels of a block are at the ceiling in a clipped channel, or over a plateau; shape (pixels,)."""
    at = part.read() == ceiling
    runs = np.lib.stride_tricks.sliding_window_view(at, min(_PLATEAU, at.shape[1]), axis=1)
    return np.asarray((at & clipped).any(axis=1) | np.asarray(runs.all(axis=-1)).any(axis=1))
