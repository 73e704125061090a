"""The dual problem of a support vector machine, solved to libsvm's tolerance on rows of the kernel that are needed.

    minimise  b^T K b / 2 - y^T b    subject to    sum b = 0,   lower <= b <= upper

with b = alpha y, so that the bounds of a class are [0, C_i] or [-C_i, 0]; a row that is not trained on has both bounds
zero. Everything is kept in the index space of all rows: ``F = K b`` then holds the decision values of the rows left
out as well, and nothing is sliced or copied for a fold.

Compiled by numba; the functions hold no lock, so threads run them side by side.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

TAU = 1e-12
"""Least curvature along a pair, as in libsvm: on kernels that are not positive definite it may be below zero."""

BARRED = 1e300

REFINEMENTS = 3
"""Newton steps with one inverse, each from the errors that the last one really left."""

PART, PART_GOAL = 256, 0.1
"""Variables of a large block among which pairs are moved at once, and to what share of the violation."""

SMALL_FACE = 48
"""An inverse of so many variables is formed anew rather than kept: it costs microseconds and rounding stays out."""

_compiled = njit(cache=True, nogil=True, error_model="numpy")
_vectorised = njit(cache=True, nogil=True, error_model="numpy", fastmath=True)


# --- the whole problem --------------------------------------------------------------------------------------------


@_vectorised
def add_row(F, row, step):
    """F += step * row."""
    for j in range(F.size):
        F[j] += step * row[j]


@_compiled
def add_rows(F, cache, slots, steps):
    """F += sum of steps * rows of the cache."""
    for number in range(slots.size):
        if steps[number] != 0.0:
            add_row(F, cache[slots[number]], steps[number])


@_compiled
def gather_block(cache, slots, rows):
    """Return the kernel among `rows`, which are in `slots` of the cache, (size, size)."""
    size = rows.size
    block = np.empty((size, size))
    for k in range(size):
        row = cache[slots[k]]
        for c in range(size):
            block[k, c] = row[rows[c]]
    return block


# --- a block of it: pairs until the face is found, Newton on the face ---------------------------------------------


@_compiled
def solve_block(K, error, b, low, high, goal, most_steps, rows, where, A, face, m, definite):
    """Solve a small dense problem in place to a violation of `goal`; return the steps taken."""
    size = error.size
    steps = 0
    while steps < most_steps:
        n_free = 0
        for k in range(size):
            if low[k] < b[k] < high[k]:
                n_free += 1
        # As long with pairs as a Newton step will take: its cost grows with the cube of the face.
        burst = 64 + n_free * n_free * n_free // (20 * size)
        burst = min(burst, most_steps - steps)
        if size > PART:
            done, gap = move_parts(K, error, b, low, high, goal, burst)
        else:
            done, gap = move_pairs(K, error, b, low, high, goal, burst)
        steps += done
        if gap <= goal:
            break
        newton, m = solve_face(K, error, b, low, high, goal, rows, where, A, face, m, definite)
        steps += max(newton, 1)
    return steps, m


@_vectorised
def move_pairs(K, error, b, low, high, goal, most_steps):
    """Move the pair that gains most (second order, as libsvm does), again and again.

    Loops are written so that they vectorise: what may not rise or fall carries a number that keeps it from being
    chosen, and the place of an extreme is looked up once its value is known.
    """
    size = error.size
    rising, falling = np.empty(size), np.empty(size)
    diagonal, gain = np.empty(size), np.empty(size)
    for k in range(size):
        rising[k] = 0.0 if b[k] < high[k] else -BARRED
        falling[k] = 0.0 if b[k] > low[k] else BARRED
        diagonal[k] = K[k, k]
    steps = 0
    gap = BARRED
    while True:
        highest, lowest = -BARRED, BARRED
        for k in range(size):
            highest = max(highest, error[k] + rising[k])
            lowest = min(lowest, error[k] + falling[k])
        gap = highest - lowest
        if gap <= goal or steps >= most_steps:
            break
        i = 0
        while i < size - 1 and error[i] + rising[i] != highest:
            i += 1
        row_i, d_i = K[i], K[i, i]
        best = 0.0
        for k in range(size):
            difference = max(highest - (error[k] + falling[k]), 0.0)
            curvature = max(d_i + diagonal[k] - 2.0 * row_i[k], TAU)
            value = difference * difference / curvature
            gain[k] = value
            best = max(best, value)
        j = 0
        while j < size - 1 and gain[j] != best:
            j += 1
        if best <= 0.0 or i == j:
            break
        row_j = K[j]
        curvature = max(d_i + diagonal[j] - 2.0 * row_i[j], TAU)
        step = (error[i] - error[j]) / curvature
        room_i, room_j = high[i] - b[i], b[j] - low[j]
        if step >= min(room_i, room_j):
            step = min(room_i, room_j)
        b[i] = high[i] if step == room_i else b[i] + step
        b[j] = low[j] if step == room_j else b[j] - step
        rising[i] = 0.0 if b[i] < high[i] else -BARRED
        falling[i] = 0.0
        falling[j] = 0.0 if b[j] > low[j] else BARRED
        rising[j] = 0.0
        for k in range(size):
            error[k] -= step * (row_i[k] - row_j[k])
        steps += 1
    return steps, gap


@_compiled
def move_parts(K, error, b, low, high, goal, most_steps):
    """Move pairs as `move_pairs` does, but part after part of a large block: what violates most stays in the cache."""
    size = error.size
    steps = 0
    rising, falling = np.empty(size), np.empty(size)
    part = np.empty(PART, np.int64)
    while True:
        highest, lowest = -BARRED, BARRED
        for k in range(size):
            rising[k] = error[k] if b[k] < high[k] else -BARRED
            falling[k] = error[k] if b[k] > low[k] else BARRED
            highest = max(highest, rising[k])
            lowest = min(lowest, falling[k])
        gap = highest - lowest
        if gap <= goal or steps >= most_steps:
            return steps, gap
        top = np.partition(rising, size - PART // 2)[size - PART // 2]
        bottom = np.partition(falling, PART // 2)[PART // 2]
        n = 0
        for k in range(size):
            # A row can only move with one at the other end that it violates against.
            rises, falls = rising[k] >= top and rising[k] > lowest, falling[k] <= bottom and falling[k] < highest
            if n < PART and (rises or falls):
                part[n] = k
                n += 1
        some = part[:n]
        local = gather_block(K, some, some)
        start, part_error = b[some], error[some]
        moved = start.copy()
        part_goal = max(goal, PART_GOAL * gap)
        done, _ = move_pairs(local, part_error, moved, low[some], high[some], part_goal, most_steps - steps)
        if done == 0:  # so many equal errors that the part misses one end
            done, gap = move_pairs(K, error, b, low, high, goal, most_steps - steps)
            return steps + done, gap
        steps += done
        for r in range(n):
            if moved[r] != start[r]:
                add_row(error, K[some[r]], start[r] - moved[r])
                b[some[r]] = moved[r]


@_compiled
def form_face(K, b, low, high, rows, where, A, face, definite):
    """Form the inverse of the kernel of all free variables of the block anew; return their number, 0 if impossible."""
    m = 0
    for k in range(b.size):
        if low[k] < b[k] < high[k]:
            face[m] = rows[k]
            m += 1
    local = np.empty((m, m))
    trace = 0.0
    for r in range(m):
        source = K[where[face[r]]]
        for c in range(m):
            local[r, c] = source[where[face[c]]]
        trace += local[r, r]
    for r in range(m):
        local[r, r] += 1e-14 * trace
    local = invert(local, definite)
    if local.size == 0:
        return 0
    put_corner(A, local)
    return m


@_compiled
def sync_face(K, b, low, high, rows, where, A, face, m, definite):
    """Make `A` the inverse of the kernel of all free variables of the block; return their number, 0 if impossible."""
    size = b.size
    inside = np.zeros(size, np.bool_)
    n_free = 0
    for k in range(size):
        if low[k] < b[k] < high[k]:
            n_free += 1
    if n_free < 2 or n_free > A.shape[0]:
        return 0
    n_gone = 0
    for r in range(m):
        k = where[face[r]]
        if k >= 0 and low[k] < b[k] < high[k]:
            inside[k] = True
        else:
            n_gone += 1
    n_new = n_free - (m - n_gone)
    if n_free <= SMALL_FACE or n_gone + n_new > n_free // 2:
        return form_face(K, b, low, high, rows, where, A, face, definite)
    if n_gone >= 4:
        marked = np.zeros(m, np.bool_)
        for r in range(m):
            k = where[face[r]]
            marked[r] = k < 0 or not inside[k]
        m = drop_block(A, face, m, marked)
        if m == 0:
            return form_face(K, b, low, high, rows, where, A, face, definite)
    else:
        r = 0
        while r < m:
            k = where[face[r]]
            if k >= 0 and inside[k]:
                r += 1
            else:
                m = pivot_out(A, face, m, r)
    if n_new >= 4:
        new = np.empty(n_new, np.int64)
        c = 0
        for k in range(size):
            if low[k] < b[k] < high[k] and not inside[k]:
                new[c] = k
                c += 1
        grown = add_block(A, face, m, K, rows, where, new, definite)
        if grown > m:
            return grown
    for k in range(size):
        if low[k] < b[k] < high[k] and not inside[k]:
            grown = pivot_in(A, face, m, K, rows, where, k)
            if grown == m:  # it depends on the others: form all anew, with a ridge
                return form_face(K, b, low, high, rows, where, A, face, definite)
            m = grown
    return m


@_compiled
def solve_face(K, error, b, low, high, goal, rows, where, A, face, m, definite):
    """Solve for the free variables, fixing those that meet a bound; return the number of Newton steps, 0 if none.

    At first many variables may be fixed in a step, each on the bound it crosses, and the sum that this breaks is
    restored by the last step. If the objective is not better for it, the steps are taken again with one variable fixed
    at a time, which can only improve it.
    """
    steps = 0
    n_face = sync_face(K, b, low, high, rows, where, A, face, m, definite)
    for _ in range(REFINEMENTS):
        if n_face < 2:
            break
        start = b.copy()
        members = np.empty(n_face, np.int64)
        for r in range(n_face):
            members[r] = where[face[r]]
        numbers = face.copy()
        inverse = corner_of(A, n_face)
        better = False
        change = np.empty(error.size)
        for share in (32, 0):
            taken, m = descend_face(K, error, b, low, high, where, A, face, n_face, share)
            if taken and restore_sum(b, start, low, high, members):
                for k in range(error.size):
                    change[k] = error[k]
                gain = 0.0
                for k in members:
                    step = b[k] - start[k]
                    if step != 0.0:
                        add_row(change, K[k], -step)
                for k in members:
                    gain += (b[k] - start[k]) * (error[k] + change[k])
                if gain >= 0.0:
                    better = True
                    break
            for k in members:
                b[k] = start[k]
            put_corner(A, inverse)
            for r in range(n_face):
                face[r] = numbers[r]
        if not better:
            return steps, 0
        for k in range(error.size):
            error[k] = change[k]
        steps += taken
        n_face = m
        highest, lowest = -1e300, 1e300
        for r in range(m):
            e = error[where[face[r]]]
            highest, lowest = max(highest, e), min(lowest, e)
        if highest - lowest <= 0.5 * goal:
            return steps, m
    return steps, 0  # rounding has spoilt the inverse: form it anew next time


@_compiled
def restore_sum(b, start, low, high, members):
    """Take what rounding of an ill-conditioned inverse added to the sum from the variable with most room.

    Returns False if none has enough.
    """
    excess, widest, place = 0.0, 0.0, -1
    for k in members:
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
def descend_face(K, error, b, low, high, where, A, face, m, share):
    """Move the free variables to the minimum on the face that is left; return steps, 0 on failure, and face size."""
    steps = 0
    imbalance = 0.0
    direction, total, crossing = np.empty(m), np.empty(m), np.empty(m)
    residual = np.empty(m)
    marked = np.zeros(m, np.bool_)
    for r in range(m):
        residual[r] = error[where[face[r]]]
    while m >= 2:
        nu = newton_direction(A, residual, direction, total, m, imbalance)
        n_crossing = 0
        for r in range(m):
            k = where[face[r]]
            d = direction[r]
            crossing[r] = 2.0
            if b[k] + d > high[k]:
                crossing[r] = (high[k] - b[k]) / d
                n_crossing += 1
            elif b[k] + d < low[k]:
                crossing[r] = (low[k] - b[k]) / d
                n_crossing += 1
        most = max(m // share, 1) if share else 1
        length = 1.0
        if n_crossing > most or (n_crossing and share == 0):
            length = nth_smallest(crossing, m, most)
        for r in range(m):
            b[where[face[r]]] += length * direction[r]
            residual[r] -= length * (residual[r] - nu)
        imbalance *= 1.0 - length
        steps += 1
        if n_crossing == 0:
            return steps, m
        n_marked = 0
        for r in range(m):
            marked[r] = crossing[r] <= length
            if marked[r]:
                n_marked += 1
                k = where[face[r]]
                bound = high[k] if direction[r] > 0.0 else low[k]
                moved = bound - b[k]
                b[k] = bound
                imbalance += moved
                if moved != 0.0:
                    row = K[k]
                    for c in range(m):
                        residual[c] -= moved * row[where[face[c]]]
        if n_marked < 4:
            for r in range(m - 1, -1, -1):
                if marked[r]:
                    last = m - 1
                    residual[r], residual[last] = residual[last], residual[r]
                    m = pivot_out(A, face, m, r)
        else:
            kept = 0
            for r in range(m):
                if not marked[r]:
                    residual[kept] = residual[r]
                    kept += 1
            m = drop_block(A, face, m, marked)
    return 0, 0  # too few are left, or the inverse is spoilt


@_compiled
def nth_smallest(values, n_values, n):
    """Return the n-th smallest of the first values, by taking the smallest away n - 1 times."""
    reached = -BARRED
    for _ in range(n):
        smallest = BARRED
        for r in range(n_values):
            if reached < values[r] < smallest:
                smallest = values[r]
        reached = smallest
    return reached


@_vectorised
def newton_direction(A, residual, direction, total, m, imbalance):
    """Solve for the step d that makes the errors of the face equal and restores the sum; return what they become."""
    sum_p = sum_q = 0.0
    for r in range(m):
        p = q = 0.0
        row = A[r]
        for c in range(m):
            p += row[c] * residual[c]
            q += row[c]
        direction[r], total[r] = p, q
        sum_p += p
        sum_q += q
    nu = (sum_p + imbalance) / sum_q
    for r in range(m):
        direction[r] -= nu * total[r]
    return nu


@_compiled
def corner_of(A, m):
    """Return a copy of the first m rows and columns."""
    out = np.empty((m, m))
    for r in range(m):
        for c in range(m):
            out[r, c] = A[r, c]
    return out


@_compiled
def put_corner(A, corner):
    """Write a matrix to the first rows and columns of A."""
    for r in range(corner.shape[0]):
        for c in range(corner.shape[0]):
            A[r, c] = corner[r, c]


@_compiled
def transposed(A):
    """Return the transpose as a contiguous matrix."""
    n, m = A.shape
    out = np.empty((m, n))
    for r in range(n):
        for c in range(m):
            out[c, r] = A[r, c]
    return out


@_compiled
def drop_block(A, face, m, marked):
    """Remove the marked variables from an inverse of m variables, keeping the order.

    Returns how many are left; 0 if rounding has spoilt the inverse.
    """
    n_gone = 0
    for r in range(m):
        if marked[r]:
            n_gone += 1
    n_kept = m - n_gone
    kept, gone = np.empty(n_kept, np.int64), np.empty(n_gone, np.int64)
    a = c = 0
    for r in range(m):
        if marked[r]:
            gone[c] = r
            c += 1
        else:
            kept[a] = r
            a += 1
    cross, corner = np.empty((n_gone, n_kept)), np.empty((n_gone, n_gone))
    for r in range(n_gone):
        row = A[gone[r]]
        for c in range(n_kept):
            cross[r, c] = row[kept[c]]
        for c in range(n_gone):
            corner[r, c] = row[gone[c]]
    inverse = invert(corner, True)
    if inverse.size == 0:
        return 0
    change = multiply(transposed(cross), multiply(inverse, cross))
    for r in range(n_kept):
        source, target = A[kept[r]], A[r]
        for c in range(n_kept):
            target[c] = source[kept[c]] - change[r, c]
        face[r] = face[kept[r]]
    return n_kept


@_compiled
def add_block(A, face, m, K, rows, where, new, definite):
    """Border an inverse of m variables with those numbered `new` in the block; return their number, m on failure."""
    n_new = new.size
    columns, corner = np.empty((m, n_new)), np.empty((n_new, n_new))
    for r in range(m):
        row = K[where[face[r]]]
        for c in range(n_new):
            columns[r, c] = row[new[c]]
    trace = 0.0
    for r in range(n_new):
        for c in range(n_new):
            corner[r, c] = K[new[r], new[c]]
        trace += corner[r, r]
    u = multiply(corner_of(A, m), columns)
    explained = multiply(transposed(columns), u)
    for r in range(n_new):
        for c in range(n_new):
            corner[r, c] -= explained[r, c]
        corner[r, r] += 1e-14 * trace
        if not corner[r, r] > 1e-10 * abs(K[new[r], new[r]]):
            return m
    corner = invert(corner, definite)
    if corner.size == 0:
        return m
    scaled = multiply(u, corner)
    change = multiply(scaled, transposed(u))
    for r in range(m):
        for c in range(m):
            A[r, c] += change[r, c]
        for c in range(n_new):
            A[r, m + c] = -scaled[r, c]
            A[m + c, r] = -scaled[r, c]
    for r in range(n_new):
        for c in range(n_new):
            A[m + r, m + c] = corner[r, c]
        face[m + r] = rows[new[r]]
    return m + n_new


@_compiled
def multiply(one, other):
    """Return the product of two contiguous matrices."""
    return np.dot(one, other)


@_compiled
def is_positive(A):
    """Return whether a symmetric matrix is positive definite, by its Cholesky factor."""
    m = A.shape[0]
    factor = np.zeros((m, m))
    for r in range(m):
        for c in range(r + 1):
            total = A[r, c] - dot(factor[r], factor[c], c)
            if r == c:
                if not total > 0.0:
                    return False
                factor[r, r] = math.sqrt(total)
            else:
                factor[r, c] = total / factor[c, c]
    return True


@_vectorised
def dot(one, other, n):
    """Return the scalar product of the first n values."""
    total = 0.0
    for k in range(n):
        total += one[k] * other[k]
    return total


@_compiled
def invert(A, definite):
    """Return the inverse of a positive definite matrix; an empty one if it is none.

    `definite` says that it is known to be at least semidefinite, which saves the check.
    """
    m = A.shape[0]
    if not definite and not is_positive(A):
        return np.empty((0, 0))
    found = np.linalg.inv(A)
    inverse = np.empty((m, m))
    for r in range(m):
        if not 0.0 < found[r, r] < BARRED:
            return np.empty((0, 0))
        for c in range(m):
            inverse[r, c] = found[r, c]
    return inverse


@_vectorised
def pivot_out(A, face, m, r):
    """Remove variable r from an inverse of m variables: the last takes its place. Return m - 1."""
    last = m - 1
    if r != last:
        for c in range(m):
            A[r, c], A[last, c] = A[last, c], A[r, c]
        for c in range(m):
            A[c, r], A[c, last] = A[c, last], A[c, r]
        face[r], face[last] = face[last], face[r]
    scale = 1.0 / A[last, last]
    bottom = A[last]
    for i in range(last):
        factor = A[i, last] * scale
        row = A[i]
        for c in range(last):
            row[c] -= factor * bottom[c]
    return last


@_vectorised
def pivot_in(A, face, m, K, rows, where, k):
    """Border an inverse of m variables with variable k of the block; return m + 1, or m if it depends on the others."""
    u = np.empty(m)
    source = K[k]
    schur = source[k]
    column = np.empty(m)
    for r in range(m):
        column[r] = source[where[face[r]]]
    for r in range(m):
        row = A[r]
        total = 0.0
        for c in range(m):
            total += row[c] * column[c]
        u[r] = total
        schur -= total * column[r]
    if not schur > 1e-10 * abs(source[k]):
        return m
    scale = 1.0 / schur
    for r in range(m):
        factor = u[r] * scale
        row = A[r]
        for c in range(m):
            row[c] += factor * u[c]
        row[m] = -factor
    for c in range(m):
        A[m, c] = -u[c] * scale
    A[m, m] = scale
    face[m] = rows[k]
    return m + 1
