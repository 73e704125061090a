"""The dual problem of a support vector machine, solved to libsvm's tolerance on rows of the kernel that are needed.

    minimise  b^T K b / 2 - y^T b    subject to    sum b = 0,   lower <= b <= upper

with b = alpha y, so that the bounds of a class are [0, C_i] or [-C_i, 0]; a row that is not trained on has both bounds
zero. Everything is kept in the index space of all rows: ``F = K b`` then holds the decision values of the rows left
out as well, and nothing is sliced or copied for a fold.

Compiled by numba; the functions hold no lock, so threads run them side by side.
"""

from __future__ import annotations

import numpy as np
from numba import njit

TAU = 1e-12
"""Least curvature along a pair, as in libsvm: on kernels that are not positive definite it may be below zero."""

BARRED = 1e300
LEAST, MOST = np.iinfo(np.int64).min, np.iinfo(np.int64).max

REFINEMENTS = 3
"""Newton steps with one factor, each from the errors that the last one really left."""

PART, PART_GOAL = 192, 0.1
"""Variables of a block among which pairs are moved at once, and to what share of the violation."""

MOST_FIXED = 64
"""Variables that may meet their bound in one Newton step."""

BURST = 20_000
"""Pairs are moved for as long as a Newton step takes, about: the cube of the number of free variables over this."""

STRETCH = 4096
"""Values of a row that are added to all problems before the next ones: with four rows, what a core's cache holds."""

RIDGE = 1e-14
"""Added to the diagonal of a free block, as a share of its trace: rows that repeat others make it singular."""

_compiled = njit(cache=True, nogil=True, error_model="numpy")
_vectorised = njit(cache=True, nogil=True, error_model="numpy", fastmath=True)


# --- the whole problem --------------------------------------------------------------------------------------------


@_vectorised
def add_row(F, row, step):
    """F += step * row."""
    for j in range(F.size):
        F[j] += step * row[j]


@_vectorised
def add_four(F, row_0, row_1, row_2, row_3, step_0, step_1, step_2, step_3):
    """F += the sum of four rows times their steps."""
    for j in range(F.size):
        F[j] += step_0 * row_0[j] + step_1 * row_1[j] + step_2 * row_2[j] + step_3 * row_3[j]


@_compiled
def add_rows(F, cache, slots, steps):
    """Add rows of a cache to values of several problems: ``F += steps @ cache[slots]``.

    Four rows at a time, and a stretch of them for all problems before the next: what takes the time is to read them.
    """
    n_problems, n = F.shape
    fourfold = slots.size - slots.size % 4
    for first in range(0, n, STRETCH):
        part = slice(first, min(first + STRETCH, n))
        for r in range(0, fourfold, 4):
            row_0, row_1 = cache[slots[r], part], cache[slots[r + 1], part]
            row_2, row_3 = cache[slots[r + 2], part], cache[slots[r + 3], part]
            for p in range(n_problems):
                if steps[p, r] != 0.0 or steps[p, r + 1] != 0.0 or steps[p, r + 2] != 0.0 or steps[p, r + 3] != 0.0:
                    add_four(
                        F[p, part], row_0, row_1, row_2, row_3,
                        steps[p, r], steps[p, r + 1], steps[p, r + 2], steps[p, r + 3],
                    )  # fmt: skip
        for r in range(fourfold, slots.size):
            for p in range(n_problems):
                if steps[p, r] != 0.0:
                    add_row(F[p, part], cache[slots[r], part], steps[p, r])


@_compiled
def border_block(block, cache, slots, rows, first):
    """Add the kernel of rows from number `first` on, which are in `slots` of the cache, to that among those before."""
    for k in range(slots.size):
        row = cache[slots[k]]
        place = first + k
        for c in range(rows.size):
            value = row[rows[c]]
            block[place, c] = value
            if c < first:
                block[c, place] = value


@_compiled
def gather_block(out, cache, slots, columns):
    """Set `out` to some columns of rows of a cache."""
    for k in range(slots.size):
        row, target = cache[slots[k]], out[k]
        for c in range(columns.size):
            target[c] = row[columns[c]]


@_compiled
def shrink_block(block, kept):
    """Keep the rows and columns of a block that are named in ascending order, in its first ones."""
    for k in range(kept.size):
        row, source = block[k], block[kept[k]]
        for c in range(kept.size):
            row[c] = source[kept[c]]


# --- a block of it: pairs until the face is found, Newton on the face ---------------------------------------------


@_compiled
def solve_block(K, error, b, low, high, goal, most_steps):
    """Solve a small dense problem in place to a violation of `goal`; return the steps taken.

    Only as many rows and columns of K count as there are errors.
    """
    size = error.size
    steps = 0
    while steps < most_steps:
        n_free = 0
        for k in range(size):
            if low[k] < b[k] < high[k]:
                n_free += 1
        # As long with pairs as a Newton step will take: its cost grows with the cube of the face.
        burst = 64 + n_free * n_free * n_free // BURST
        burst = min(burst, most_steps - steps)
        done, gap = move_parts(K, error, b, low, high, goal, burst)
        steps += done
        if gap <= goal:
            break
        steps += max(solve_face(K, error, b, low, high, goal), 1)
    return steps


@_compiled
def move_parts(K, error, b, low, high, goal, most_steps):
    """Move pairs to a violation of `goal`, part after part of the block: what violates most stays in the cache."""
    size = error.size
    steps = 0
    rising, falling = np.empty(size), np.empty(size)
    part = np.empty(min(PART, size), np.int64)
    while True:
        for k in range(size):
            rising[k] = error[k] if b[k] < high[k] else -BARRED
            falling[k] = error[k] if b[k] > low[k] else BARRED
        part[0], part[1] = rising.argmax(), falling.argmin()
        highest, lowest = rising[part[0]], falling[part[1]]
        gap = highest - lowest
        if gap <= goal or steps >= most_steps:
            return steps, gap
        top, bottom = -BARRED, BARRED
        if size > PART:
            top, bottom = extremes(rising, falling, highest, lowest, PART // 2)
        n = 2
        for k in range(size):
            # A row can only move with one at the other end that it violates against.
            rises, falls = rising[k] >= top and rising[k] > lowest, falling[k] <= bottom and falling[k] < highest
            if n < part.size and (rises or falls) and k != part[0] and k != part[1]:
                part[n] = k
                n += 1
        some = part[:n]
        moved = b[some]
        part_error = error[some] - 0.5 * (highest + lowest)  # near zero, where single precision tells most apart
        part_goal = max(goal, PART_GOAL * gap)
        done = move_pairs(K, some, part_error, moved, low[some], high[some], part_goal, most_steps - steps)
        if done == 0:
            return steps, gap
        steps += done
        for r in range(n):
            step = b[some[r]] - moved[r]
            if step != 0.0:
                add_row(error, K[some[r]], step)
                b[some[r]] = moved[r]


@_compiled
def extremes(rising, falling, highest, lowest, most):
    """Return the least value of `rising` and the greatest of `falling` that about `most` or fewer go beyond.

    By counts in equal parts of what lies between the highest and the lowest: quicker than a partition, and as good.
    """
    n_parts = 64
    per_value = n_parts / (highest - lowest)
    above, below = np.zeros(n_parts, np.int64), np.zeros(n_parts, np.int64)
    for k in range(rising.size):
        if rising[k] > lowest:
            above[min(int((highest - rising[k]) * per_value), n_parts - 1)] += 1
        if falling[k] < highest:
            below[min(int((falling[k] - lowest) * per_value), n_parts - 1)] += 1
    n_above, n_below, total_above, total_below = 1, 1, above[0], below[0]
    while n_above < n_parts and total_above + above[n_above] <= most:
        total_above += above[n_above]
        n_above += 1
    while n_below < n_parts and total_below + below[n_below] <= most:
        total_below += below[n_below]
        n_below += 1
    return highest - n_above / per_value, lowest + n_below / per_value


@_vectorised
def fill_distances(distances, r, K, rows, diagonal):
    """Set row `r` to the squared distances ``K_ii + K_kk - 2 K_ik`` that a kernel means."""
    source = K[rows[r]]
    for c in range(rows.size):
        distances[r, c] = diagonal[r] + diagonal[c] - 2.0 * source[rows[c]]


@_vectorised
def move_pairs(K, rows, error, b, low, high, goal, most_steps):
    """Move the pair of some rows that gains most (second order, as libsvm does), again and again; return the steps.

    Parameters
    ----------
    K
        Kernel of the block.
    rows
        Which of its rows may move, (size,).
    error, b, low, high
        Theirs, (size,). The errors come out moved by a number that is the same for all, which changes no difference.

    Notes
    -----
    Which pair moves is chosen in single precision, how far and what comes of it in double. To find the place of an
    extreme in one vectorised loop, the bits of a number, which sort as it does, and its place are compared as one
    integer. Distances are gathered when a row first moves: mostly few do.
    """
    size = error.size
    distances, known, diagonal = np.empty((size, size)), np.zeros(size, np.bool_), np.empty(size)
    zero, tau, barred = np.float32(0.0), np.float32(TAU), np.float32(1e30)
    rise_cap, fall_cap = np.empty(size, np.int64), np.empty(size, np.int64)
    held, gain, short = np.empty(size, np.float32), np.empty(size, np.float32), error.astype(np.float32)
    short_bits, gain_bits = short.view(np.int32), gain.view(np.int32)
    for k in range(size):
        rise_cap[k] = MOST if b[k] < high[k] else LEAST
        fall_cap[k] = LEAST if b[k] > low[k] else MOST
        held[k] = zero if b[k] > low[k] else barred
        diagonal[k] = K[rows[k], rows[k]]
    steps = 0
    while steps < most_steps:
        top, bottom = LEAST, MOST
        for k in range(size):
            bits = short_bits[k]
            key = (np.int64(bits ^ ((bits >> 31) & 0x7FFFFFFF)) << 32) | k
            top = max(top, min(key, rise_cap[k]))
            bottom = min(bottom, max(key, fall_cap[k]))
        if top == LEAST or bottom == MOST:
            break
        i = top & 0xFFFFFFFF
        if error[i] - error[bottom & 0xFFFFFFFF] <= goal:
            break
        if not known[i]:
            fill_distances(distances, i, K, rows, diagonal)
            known[i] = True
        highest, row_i = short[i], distances[i]
        for k in range(size):
            difference = max(highest - (short[k] + held[k]), zero)
            gain[k] = difference * difference / max(np.float32(row_i[k]), tau)
        best = np.int64(0)
        for k in range(size):
            best = max(best, (np.int64(gain_bits[k]) << 32) | k)
        j = best & 0xFFFFFFFF
        if gain[j] <= zero or i == j:
            break
        if not known[j]:
            fill_distances(distances, j, K, rows, diagonal)
            known[j] = True
        row_j = distances[j]
        step = (error[i] - error[j]) / max(row_i[j], TAU)
        room_i, room_j = high[i] - b[i], b[j] - low[j]
        if step >= min(room_i, room_j):
            step = min(room_i, room_j)
        b[i] = high[i] if step == room_i else b[i] + step
        b[j] = low[j] if step == room_j else b[j] - step
        for moved in (i, j):
            rise_cap[moved] = MOST if b[moved] < high[moved] else LEAST
            fall_cap[moved] = LEAST if b[moved] > low[moved] else MOST
            held[moved] = zero if b[moved] > low[moved] else barred
        change = 0.5 * step
        for k in range(size):
            value = error[k] + change * (row_i[k] - row_j[k])
            error[k] = value
            short[k] = value
        steps += 1
    return steps


@_compiled
def solve_face(K, error, b, low, high, goal):
    """Solve for the free variables, fixing those that meet a bound; return the number of Newton steps, 0 if none.

    One factor of the kernel of all free variables serves every step. That the sum stays, and that a variable stays on
    the bound it has met, are linear conditions. What each adds to a solution is made conjugate to what those before it
    added, so that a new one changes no old one and costs one solution with the factor.
    """
    free = np.flatnonzero((low < b) & (b < high))
    m = free.size
    if m < 2:
        return 0
    factor = factorise(K, free)
    if factor.size == 0:
        return 0
    n_most = min(m - 1, MOST_FIXED)
    parts, weight, place = np.empty((n_most + 1, m)), np.empty(n_most + 1), np.empty(n_most + 1, np.int64)
    parts[0] = 1.0
    solve_factor(factor, parts[0], 0)
    weight[0] = parts[0].sum()
    if not 0.0 < weight[0] < BARRED:
        return 0
    fixed = np.zeros(m, np.bool_)
    steps, n = 0, 1
    for _ in range(REFINEMENTS):
        start = b.copy()
        target = error[free]
        solve_factor(factor, target, 0)
        add_row(target, parts[0], -target.sum() / weight[0])
        for i in range(1, n):
            add_row(target, parts[i], -target[place[i]] / weight[i])
        n_before = n
        n = descend(factor, target, low[free] - b[free], high[free] - b[free], fixed, parts, weight, place, n)
        for r in range(m):
            k = free[r]
            b[k] = start[k] + target[r]
        for i in range(n_before, n):
            k = free[place[i]]
            b[k] = high[k] if target[place[i]] > 0.0 else low[k]
        if not (restore_sum(b, start, low, high, free) and update_errors(K, error, b, start, free)):
            b[:] = start
            return steps
        steps += 1 + n - n_before
        highest, lowest = -BARRED, BARRED
        for r in range(m):
            if not fixed[r]:
                highest, lowest = max(highest, error[free[r]]), min(lowest, error[free[r]])
        if highest - lowest <= 0.5 * goal or n > n_most:
            break
    return steps


@_compiled
def descend(factor, target, least, most, fixed, parts, weight, place, n):
    """Go towards the minimum on the face until a bound is met; fix that variable, and go on to the minimum left.

    `target` holds that minimum at first, and in the end how far each variable goes. Returns the number of conditions,
    of which there were `n`.
    """
    m = target.size
    moves = np.zeros(m)
    while True:
        length, first = 1.0, -1
        for r in range(m):
            if not least[r] <= target[r] <= most[r] and not fixed[r]:
                bound = most[r] if target[r] > most[r] else least[r]
                share = (bound - moves[r]) / (target[r] - moves[r])
                if share < length:
                    length, first = max(share, 0.0), r
        for r in range(m):
            if not fixed[r]:
                moves[r] += length * (target[r] - moves[r])
        if first < 0 or n == weight.size:
            break
        bound = most[first] if target[first] > most[first] else least[first]
        part = parts[n]
        part[:] = 0.0
        part[first] = 1.0
        solve_factor(factor, part, first)
        for i in range(n):
            add_row(part, parts[i], -parts[i, first] / weight[i])
        if not 0.0 < part[first] < BARRED:
            break  # rounding has the last word
        moves[first] = bound
        fixed[first] = True
        weight[n], place[n] = part[first], first
        add_row(target, part, (bound - target[first]) / part[first])
        n += 1
    target[:] = moves
    return n


@_compiled
def factorise(K, rows):
    """Return the lower Cholesky factor of the kernel among some rows; an empty matrix if there is none."""
    m = rows.size
    local = np.empty((m, m))
    trace = 0.0
    for r in range(m):
        source = K[rows[r]]
        for c in range(m):
            local[r, c] = source[rows[c]]
        trace += local[r, r]
    for r in range(m):
        local[r, r] += RIDGE * trace
    try:
        return np.linalg.cholesky(local)
    except Exception:  # not positive definite: the only error there is
        return np.empty((0, 0))


@_compiled
def solve_factor(factor, x, first):
    """Solve ``factor @ factor.T @ out = x`` in place; x is zero before `first`."""
    m = x.size
    for r in range(first, m):
        x[r] = (x[r] - dot(factor[r], x, first, r)) / factor[r, r]
    for r in range(m - 1, -1, -1):
        x[r] /= factor[r, r]
        subtract(x, factor[r], x[r], r)


@_vectorised
def dot(one, other, first, last):
    """Return the scalar product of the values from `first` up to before `last`."""
    total = 0.0
    for k in range(first, last):
        total += one[k] * other[k]
    return total


@_vectorised
def subtract(x, row, step, last):
    """Subtract step * row from the values before `last`."""
    for k in range(last):
        x[k] -= step * row[k]


@_compiled
def restore_sum(b, start, low, high, free):
    """Take what rounding of an ill-conditioned factor added to the sum from the variable with most room.

    Returns False if none has enough.
    """
    excess, widest, place = 0.0, 0.0, -1
    for k in free:
        excess += b[k] - start[k]
        room = min(high[k] - b[k], b[k] - low[k])
        if room > widest:
            widest = room
            place = k
    if excess == 0.0:
        return True
    if widest <= abs(excess):
        return False
    b[place] -= excess
    return True


@_compiled
def update_errors(K, error, b, start, free):
    """Set the errors to those of `b`; return False, and leave them, if the objective is not better than at `start`."""
    changed = error.copy()
    for k in free:
        if b[k] != start[k]:
            add_row(changed, K[k], start[k] - b[k])
    gain = 0.0
    for k in free:
        gain += (b[k] - start[k]) * (error[k] + changed[k])
    if not gain >= 0.0:
        return False
    error[:] = changed
    return True
