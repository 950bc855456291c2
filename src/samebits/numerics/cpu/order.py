"""The one total order over token ids: value descending with -0 = +0, then id ascending (numba).

An *order* is an int32 made from a float32's bits so that a smaller order is a better token: comparing
integers needs no floating-point environment, and puts every bit pattern in its place. `EXCLUDED` marks an id
that must not be chosen; no finite value, and not even -inf, has it.
"""

from __future__ import annotations

import numpy as np

from samebits.numerics.cpu.kernel import inlined

EXCLUDED = np.int32(0x7FFFFFFF)
LAST_ALLOWED = np.int32(0x7FFFFFFE)
MAGNITUDE = np.int32(0x7FFFFFFF)
INFINITE = np.int32(0x7F800000)
NEGATIVE_ZERO = np.int32(-0x80000000)
ZERO = np.int32(0)
SIGN_SHIFT = np.int32(31)
BLOCK = 256
"""Ids that share one minimum in a search; no result depends on it."""


@inlined
def order_of_bits(bits):
    """int32 bits of a float32 -> int32 order. Its own inverse but for -0, which comes back as +0."""
    flipped = bits ^ ((bits >> SIGN_SHIFT) & MAGNITUDE)
    return ~(ZERO if bits == NEGATIVE_ZERO else flipped)


@inlined
def bits_of_order(order):
    """int32 order -> int32 bits of the float32."""
    flipped = ~order
    return flipped ^ ((flipped >> SIGN_SHIFT) & MAGNITUDE)


@inlined
def fill_orders(bits, orders):
    """Orders of a whole row. Returns the largest magnitude bits: >= INFINITE means a value is not finite."""
    largest = ZERO
    for i in range(bits.shape[0]):
        value = bits[i]
        orders[i] = order_of_bits(value)
        largest = max(largest, value & MAGNITUDE)
    return largest


@inlined
def smallest_order(orders):
    """Minimum of an int32 array of at least one element."""
    best = EXCLUDED
    for i in range(orders.shape[0]):
        best = min(best, orders[i])
    return best


@inlined
def first_with(orders, wanted):
    """The lowest index that holds `wanted`; -1 if none does."""
    for i in range(orders.shape[0]):
        if orders[i] == wanted:
            return np.int64(i)
    return np.int64(-1)


@inlined
def first_best(bits):
    """(largest magnitude bits, index of the first best value) of a row of float32 bits, without a copy."""
    count = bits.shape[0]
    largest, best, best_block = ZERO, EXCLUDED, 0
    for block in range((count + BLOCK - 1) // BLOCK):
        part = bits[block * BLOCK : min(count, block * BLOCK + BLOCK)]
        block_best = EXCLUDED
        for i in range(part.shape[0]):
            value = part[i]
            block_best = min(block_best, order_of_bits(value))
            largest = max(largest, value & MAGNITUDE)
        if block_best < best:
            best, best_block = block_best, block
    for i in range(best_block * BLOCK, count):
        if order_of_bits(bits[i]) == best:
            return largest, np.int64(i)
    return largest, np.int64(0)


@inlined
def kth_smallest(values, size, rank):
    """The `rank`-th smallest, from 1, of values[:size] int32, by bisection over the integers."""
    low, high = np.int64(-0x80000000), np.int64(0x7FFFFFFF)
    while low < high:
        middle = (low + high) >> 1
        limit = np.int32(middle)
        below = 0
        for i in range(size):
            below += values[i] <= limit
        if below >= rank:
            high = middle
        else:
            low = middle + 1
    return np.int32(low)


@inlined
def best_ids(orders, count, worst, ids):
    """The `count` best ids in total order, of those with an order of at most `worst`, in ascending order of
    id, to the front of `ids` int32 [size]; returns their number.

    The count-th smallest minimum of a block bounds the answer, so that only a few blocks are looked into.
    """
    size = orders.shape[0]
    blocks = (size + BLOCK - 1) // BLOCK
    minima = np.empty(blocks, np.int32)
    for block in range(blocks):
        minima[block] = smallest_order(orders[block * BLOCK : min(size, block * BLOCK + BLOCK)])
    bound = min(worst, kth_smallest(minima, blocks, count)) if count < blocks else worst
    found = 0
    for block in range(blocks):
        if minima[block] <= bound:
            for i in range(block * BLOCK, min(size, block * BLOCK + BLOCK)):
                ids[found] = i
                found += orders[i] <= bound
    if found <= count:
        return found
    near = np.empty(found, np.int32)
    for i in range(found):
        near[i] = orders[ids[i]]
    border = kth_smallest(near, found, count)
    ties = count
    for i in range(found):
        ties -= near[i] < border
    kept = 0
    for i in range(found):
        ids[kept] = ids[i]
        is_tie = near[i] == border
        kept += near[i] < border or (is_tie and ties > 0)
        ties -= is_tie
    return kept


@inlined
def weighted_prefix(distances, weights, need):
    """Where the running sum of `weights` (int64 >= 0), in ascending order of `distances` (int32 >= 0), first
    reaches `need`, which is 1 to the total: (that distance, what is still needed among its ties).

    Digit by digit of the distance, from the top: linear in the row's length whatever it holds.
    """
    prefix = np.int32(0)
    sums = np.empty(2048, np.int64)
    for level in range(3):
        shift, bits = np.int32(20), np.int32(11)
        if level == 1:
            shift, bits = np.int32(10), np.int32(10)
        elif level == 2:
            shift, bits = np.int32(0), np.int32(10)
        sums[:] = 0
        digit_mask = np.int32((1 << bits) - 1)
        above = shift + bits
        for i in range(weights.shape[0]):
            if level == 0 or (distances[i] >> above) == prefix:
                sums[(distances[i] >> shift) & digit_mask] += weights[i]
        digit = 0
        while sums[digit] < need:
            need -= sums[digit]
            digit += 1
        prefix = np.int32((prefix << bits) | np.int32(digit))
    return prefix, need
