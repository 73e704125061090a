"""Arithmetic of small networks, compiled: what a layer gives, and the gradients of what it was given.

One thread and no BLAS, so that neither the number of threads nor the library changes a sum. Arrays are float32 and
contiguous. Values are laid out so that the innermost loop is long: (spectrum, feature) for dense layers,
(channel, position, spectrum) for convolutions, where a shift by a position is a shift in memory.

`out` is overwritten with the result. In the functions of a gradient, `above` is the gradient of the layer's output, and
is used up; arrays named ``d_...`` are overwritten with the gradients of the weights and, `d_x`, of the layer's input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])
Array = NDArray[np.float32]

BLOCK_ROWS = 64
BLOCK_VALUES = 4096
"""What is worked on at once stays in the cache next to the processor: 64 rows of 64 units, or 4096 values, 16 KiB."""

ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)  # plain floats would make everything double


def compiled(function: Function) -> Function:
    """Compile a function when it is first called, and keep the result on disk.

    Sums may be taken in another order, which is what makes them quick; a value that is not finite stays so.
    """
    loosened = {"reassoc", "contract", "nsz", "arcp"}
    return cast("Function", njit(cache=True, nogil=True, error_model="numpy", fastmath=loosened)(function))


@compiled
def multiply(a: Array, b: Array, out: Array) -> None:
    """Add the matrix product ``a @ b`` to `out`; `a` may be a transposed view."""
    n_rows, n_terms = a.shape
    n_columns = b.shape[1]
    for first in range(0, n_rows, BLOCK_ROWS):
        last = min(first + BLOCK_ROWS, n_rows)
        for k in range(0, n_terms - 7, 8):
            b0, b1, b2, b3, b4, b5, b6, b7 = b[k], b[k + 1], b[k + 2], b[k + 3], b[k + 4], b[k + 5], b[k + 6], b[k + 7]
            for i in range(first, last):
                a0, a1, a2, a3 = a[i, k], a[i, k + 1], a[i, k + 2], a[i, k + 3]
                a4, a5, a6, a7 = a[i, k + 4], a[i, k + 5], a[i, k + 6], a[i, k + 7]
                row = out[i]
                for j in range(n_columns):
                    row[j] += (
                        (a0 * b0[j] + a1 * b1[j]) + (a2 * b2[j] + a3 * b3[j])
                        + (a4 * b4[j] + a5 * b5[j]) + (a6 * b6[j] + a7 * b7[j])
                    )  # fmt: skip
        for k in range(n_terms - n_terms % 8, n_terms):
            b0 = b[k]
            for i in range(first, last):
                a0, row = a[i, k], out[i]
                for j in range(n_columns):
                    row[j] += a0 * b0[j]


@compiled
def add_shifted(out: Array, source: Array, offsets: NDArray[np.intp], weights: Array) -> None:
    """Add ``weights[t] * source[offsets[t]:][:len(out)]`` of every t to `out`."""
    n, n_terms = len(out), len(offsets)
    t = 0
    while t + 8 <= n_terms:
        w0, w1, w2, w3 = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
        w4, w5, w6, w7 = weights[t + 4], weights[t + 5], weights[t + 6], weights[t + 7]
        s0, s1, s2 = source[offsets[t] :], source[offsets[t + 1] :], source[offsets[t + 2] :]
        s3, s4, s5 = source[offsets[t + 3] :], source[offsets[t + 4] :], source[offsets[t + 5] :]
        s6, s7 = source[offsets[t + 6] :], source[offsets[t + 7] :]
        for i in range(n):
            out[i] += (
                (w0 * s0[i] + w1 * s1[i]) + (w2 * s2[i] + w3 * s3[i])
                + (w4 * s4[i] + w5 * s5[i]) + (w6 * s6[i] + w7 * s7[i])
            )  # fmt: skip
        t += 8
    while t + 2 <= n_terms:
        w0, w1 = weights[t], weights[t + 1]
        s0, s1 = source[offsets[t] :], source[offsets[t + 1] :]
        for i in range(n):
            out[i] += w0 * s0[i] + w1 * s1[i]
        t += 2
    if t < n_terms:
        w0, s0 = weights[t], source[offsets[t] :]
        for i in range(n):
            out[i] += w0 * s0[i]


@compiled
def dot_shifted(values: Array, source: Array, offsets: NDArray[np.intp], sums: Array) -> None:
    """Add ``values @ source[offsets[t]:][:len(values)]`` to ``sums[t]`` for every t."""
    n, n_terms = len(values), len(offsets)
    t = 0
    while t + 4 <= n_terms:
        s0, s1 = source[offsets[t] :], source[offsets[t + 1] :]
        s2, s3 = source[offsets[t + 2] :], source[offsets[t + 3] :]
        d0, d1, d2, d3 = ZERO, ZERO, ZERO, ZERO
        for i in range(n):
            d0 += values[i] * s0[i]
            d1 += values[i] * s1[i]
            d2 += values[i] * s2[i]
            d3 += values[i] * s3[i]
        sums[t] += d0
        sums[t + 1] += d1
        sums[t + 2] += d2
        sums[t + 3] += d3
        t += 4
    while t < n_terms:
        s0, d0 = source[offsets[t] :], ZERO
        for i in range(n):
            d0 += values[i] * s0[i]
        sums[t] += d0
        t += 1


@compiled
def rectify(values: Array) -> None:
    """Set negative values to zero, in place; NaN stays, so that a diverged training is seen."""
    for i in range(len(values)):
        values[i] = ZERO if values[i] < ZERO else values[i]


@compiled
def rectify_gradient(above: Array, values: Array) -> None:
    """Set the gradient to zero, in place, where the value was rectified away."""
    for i in range(len(values)):
        above[i] = above[i] if values[i] > ZERO else ZERO


@compiled
def dense(x: Array, kernel: Array, bias: Array, relu: bool, out: Array) -> None:
    """Write ``x @ kernel + bias``, rectified or not; `kernel` is (feature, unit)."""
    out[:] = bias
    multiply(x, kernel, out)
    if relu:
        rectify(out.reshape(-1))


@compiled
def dense_gradient(
    above: Array,
    x: Array,
    out: Array,
    kernel: Array,
    relu: bool,
    d_kernel: Array,
    d_bias: Array,
    d_x: Array,
    wanted: bool,
) -> None:
    """Gradients of `dense`; that of the input only if wanted."""
    if relu:
        rectify_gradient(above.reshape(-1), out.reshape(-1))
    d_bias[:] = ZERO
    for i in range(len(above)):
        d_bias += above[i]
    d_kernel[:] = ZERO
    multiply(x.T, above, d_kernel)
    if wanted:
        d_x[:] = ZERO
        multiply(above, np.ascontiguousarray(kernel.T), d_x)


@compiled
def convolution(x: Array, kernel: Array, bias: Array, relu: bool, out: Array) -> None:
    """Write `kernel`, (tap, channel, filter), slid over `x`, (channel, position, spectrum); rectified or not."""
    n_taps, n_channels, n_filters = kernel.shape
    _, n_positions, n_spectra = x.shape
    source, result = x.reshape(-1), out.reshape((n_filters, -1))
    offsets, weights = np.empty(n_taps * n_channels, np.intp), np.empty(n_taps * n_channels, np.float32)
    for first in range(0, result.shape[1], BLOCK_VALUES):
        last = min(first + BLOCK_VALUES, result.shape[1])
        for f in range(n_filters):
            for c in range(n_channels):
                for k in range(n_taps):
                    offsets[c * n_taps + k] = (c * n_positions + k) * n_spectra + first
                    weights[c * n_taps + k] = kernel[k, c, f]
            block = result[f, first:last]
            block[:] = bias[f]
            add_shifted(block, source, offsets, weights)
            if relu:
                rectify(block)


@compiled
def convolution_gradient(
    above: Array,
    x: Array,
    out: Array,
    kernel: Array,
    relu: bool,
    d_kernel: Array,
    d_bias: Array,
) -> None:
    """Gradients of the weights of `convolution`; `above` becomes that of what was rectified."""
    n_taps, n_channels, n_filters = kernel.shape
    _, n_positions, n_spectra = x.shape
    if relu:
        rectify_gradient(above.reshape(-1), out.reshape(-1))
    source, result = x.reshape(-1), above.reshape((n_filters, -1))
    offsets = np.empty(n_taps * n_channels, np.intp)
    sums = np.zeros((n_filters, n_taps * n_channels), np.float32)
    d_bias[:] = ZERO
    for first in range(0, result.shape[1], BLOCK_VALUES):
        last = min(first + BLOCK_VALUES, result.shape[1])
        for c in range(n_channels):
            for k in range(n_taps):
                offsets[c * n_taps + k] = (c * n_positions + k) * n_spectra + first
        for f in range(n_filters):
            block, total = result[f, first:last], ZERO
            dot_shifted(block, source, offsets, sums[f])
            for i in range(len(block)):
                total += block[i]
            d_bias[f] += total
    for f in range(n_filters):
        for c in range(n_channels):
            for k in range(n_taps):
                d_kernel[k, c, f] = sums[f, c * n_taps + k]


@compiled
def convolution_input_gradient(above: Array, kernel: Array, padded: Array, d_x: Array) -> None:
    """Gradient of the input of `convolution`, after `convolution_gradient`; `padded` is room to work in."""
    n_taps, n_channels, n_filters = kernel.shape
    n_spectra = d_x.shape[2]
    # Beyond both ends the gradient is nothing; with these zeros written out, a shift by a tap is a shift in memory.
    edge = n_taps - 1
    padded[:, :edge] = ZERO
    padded[:, edge : edge + above.shape[1]] = above
    padded[:, edge + above.shape[1] :] = ZERO
    source, result = padded.reshape(-1), d_x.reshape((n_channels, -1))
    offsets, weights = np.empty(n_taps * n_filters, np.intp), np.empty(n_taps * n_filters, np.float32)
    for first in range(0, result.shape[1], BLOCK_VALUES):
        last = min(first + BLOCK_VALUES, result.shape[1])
        for c in range(n_channels):
            for f in range(n_filters):
                for k in range(n_taps):
                    offsets[f * n_taps + k] = (f * padded.shape[1] + edge - k) * n_spectra + first
                    weights[f * n_taps + k] = kernel[k, c, f]
            block = result[c, first:last]
            block[:] = ZERO
            add_shifted(block, source, offsets, weights)


@compiled
def pooling(x: Array, out: Array) -> None:
    """Write means of neighbouring positions; an odd last one is left out."""
    for c in range(out.shape[0]):
        for position in range(out.shape[1]):
            one, other, mean = x[c, 2 * position], x[c, 2 * position + 1], out[c, position]
            for i in range(len(mean)):
                mean[i] = HALF * (one[i] + other[i])


@compiled
def pooling_gradient(above: Array, d_x: Array) -> None:
    """Gradient of `pooling`."""
    d_x[:, 2 * above.shape[1] :] = ZERO
    for c in range(above.shape[0]):
        for position in range(above.shape[1]):
            mean, one, other = above[c, position], d_x[c, 2 * position], d_x[c, 2 * position + 1]
            for i in range(len(mean)):
                one[i] = HALF * mean[i]
                other[i] = HALF * mean[i]


@compiled
def average(x: Array, out: Array) -> None:
    """Write means over all positions: (channel, position, spectrum) becomes (spectrum, channel)."""
    n_channels, n_positions, n_spectra = x.shape
    out[:] = ZERO
    scale = ONE / np.float32(n_positions)
    for c in range(n_channels):
        for position in range(n_positions):
            for i in range(n_spectra):
                out[i, c] += scale * x[c, position, i]


@compiled
def average_gradient(above: Array, d_x: Array) -> None:
    """Gradient of `average`."""
    n_channels, n_positions, n_spectra = d_x.shape
    scale = ONE / np.float32(n_positions)
    for c in range(n_channels):
        for position in range(n_positions):
            for i in range(n_spectra):
                d_x[c, position, i] = scale * above[i, c]


@compiled
def column_moments(x: Array) -> tuple[Array, Array]:
    """Return mean and variance of every column."""
    n_rows, n_columns = x.shape
    scale = ONE / np.float32(n_rows)
    mean, variance = np.zeros(n_columns, np.float32), np.zeros(n_columns, np.float32)
    for i in range(n_rows):
        row = x[i]
        for j in range(n_columns):
            mean[j] += scale * row[j]
    for i in range(n_rows):
        row = x[i]
        for j in range(n_columns):
            variance[j] += scale * ((row[j] - mean[j]) * (row[j] - mean[j]))
    return mean, variance


@compiled
def row_moments(x: Array) -> tuple[Array, Array]:
    """Return mean and variance of every row."""
    n_rows, n_columns = x.shape
    scale = ONE / np.float32(n_columns)
    mean, variance = np.empty(n_rows, np.float32), np.empty(n_rows, np.float32)
    for i in range(n_rows):
        row, total, square = x[i], ZERO, ZERO
        for j in range(n_columns):
            total += row[j]
        middle = scale * total
        for j in range(n_columns):
            square += (row[j] - middle) * (row[j] - middle)
        mean[i] = middle
        variance[i] = scale * square
    return mean, variance


@compiled
def normalized_columns(x: Array, mean: Array, deviation: Array, gamma: Array, beta: Array, out: Array) -> None:
    """Write columns brought to standard deviation `gamma` and mean `beta`."""
    factor = gamma / deviation
    for i in range(x.shape[0]):
        row, result = x[i], out[i]
        for j in range(len(factor)):
            result[j] = factor[j] * (row[j] - mean[j]) + beta[j]


@compiled
def normalized_rows(x: Array, mean: Array, deviation: Array, gamma: Array, beta: Array, out: Array) -> None:
    """Write rows brought to standard deviation `gamma` and mean `beta`."""
    for i in range(x.shape[0]):
        row, result, middle, factor, plus = x[i], out[i], mean[i], gamma[i] / deviation[i], beta[i]
        for j in range(len(row)):
            result[j] = factor * (row[j] - middle) + plus


@compiled
def normalized_columns_gradient(
    above: Array, x: Array, mean: Array, deviation: Array, gamma: Array, d_gamma: Array, d_beta: Array, d_x: Array
) -> None:
    """Gradients of the batch normalisation of columns, by their own mean and deviation."""
    n_rows, n_columns = x.shape
    d_gamma[:] = ZERO
    d_beta[:] = ZERO
    for i in range(n_rows):
        row, over = x[i], above[i]
        for j in range(n_columns):
            d_beta[j] += over[j]
            d_gamma[j] += over[j] * (row[j] - mean[j])
    d_gamma /= deviation
    scale = ONE / np.float32(n_rows)
    factor, level, slope = gamma / deviation, scale * d_beta, scale * (d_gamma / deviation)
    for i in range(n_rows):
        row, over, result = x[i], above[i], d_x[i]
        for j in range(n_columns):
            result[j] = factor[j] * (over[j] - level[j] - slope[j] * (row[j] - mean[j]))


@compiled
def normalized_rows_gradient(
    above: Array, x: Array, mean: Array, deviation: Array, gamma: Array, d_gamma: Array, d_beta: Array, d_x: Array
) -> None:
    """Gradients of the batch normalisation of rows, by their own mean and deviation."""
    n_rows, n_columns = x.shape
    scale = ONE / np.float32(n_columns)
    for i in range(n_rows):
        row, over, result, middle = x[i], above[i], d_x[i], mean[i]
        total, product = ZERO, ZERO
        for j in range(n_columns):
            total += over[j]
            product += over[j] * (row[j] - middle)
        d_beta[i] = total
        d_gamma[i] = product / deviation[i]
        factor, level, slope = gamma[i] / deviation[i], scale * total, scale * (d_gamma[i] / deviation[i])
        for j in range(n_columns):
            result[j] = factor * (over[j] - level - slope * (row[j] - middle))


@compiled
def dropout(values: Array, drawn: Array, kept: float, out: Array) -> None:
    """Write ``values / kept`` where what was drawn, of 0-1, is less than `kept`, else zero; also its own gradient."""
    source, chance, result = values.reshape(-1), drawn.reshape(-1), out.reshape(-1)
    limit, factor = np.float32(kept), np.float32(1 / kept)
    for i in range(len(source)):
        result[i] = factor * source[i] if chance[i] < limit else ZERO


@compiled
def cross_entropy(logits: Array, labels: NDArray[np.int32], weights: Array) -> tuple[float, int, Array]:
    """Return the sum of the weighted losses of a softmax, how many are right, and the gradient of the mean loss."""
    n_rows, n_classes = logits.shape
    gradient = np.empty(logits.shape, np.float32)
    scale = ONE / np.float32(n_rows)
    total, n_correct = 0.0, 0
    for i in range(n_rows):
        row, label, highest = logits[i], labels[i], 0
        for j in range(1, n_classes):
            if row[j] > row[highest]:
                highest = j
        if highest == label:
            n_correct += 1
        norm = ZERO
        for j in range(n_classes):
            gradient[i, j] = np.exp(row[j] - row[highest])
            norm += gradient[i, j]
        total += weights[i] * (np.log(norm) - (row[label] - row[highest]))
        for j in range(n_classes):
            gradient[i, j] *= scale * weights[i] / norm
        gradient[i, label] -= scale * weights[i]
    return total, n_correct, gradient


@compiled
def adam_step(
    values: Array, gradient: Array, first: Array, second: Array, rate: float, beta_1: float, beta_2: float, eps: float
) -> None:
    """Move `values` by a step of Adam, and its running means of gradient and squared gradient; all in place."""
    step, gain_1, gain_2, small = np.float32(rate), np.float32(1 - beta_1), np.float32(1 - beta_2), np.float32(eps)
    for i in range(len(values)):
        first[i] += gain_1 * (gradient[i] - first[i])
        second[i] += gain_2 * (gradient[i] * gradient[i] - second[i])
        values[i] -= step * first[i] / (np.sqrt(second[i]) + small)
