"""The filters of the sampling clause, one row at a time (numba).

Before temperature, a row is a list of orders (`order.py`). After it, a row is a list of *distances*: how far
each scaled logit lies below the best one, as the bits of a float32 >= 0, which ascend as the scaled logits
descend. From the first filter that bites, a row is a list of survivors: token ids and their distances.
"""

from __future__ import annotations

import numpy as np

from samebits.numerics.cpu.kernel import inlined
from samebits.numerics.cpu.lanes import float_bits, float_from_bits
from samebits.numerics.cpu.math import exp32
from samebits.numerics.cpu.order import (
    EXCLUDED,
    INFINITE,
    MAGNITUDE,
    bits_of_order,
    order_of_bits,
    weighted_prefix,
)

ZERO = np.float32(0.0)
WEIGHT_SCALE = np.float32(2.0**40)
"""Fixed-point weight of a token: floor(exp(scaled logit) * 2**40); 2**22 of them fit in an int64 sum."""
WEIGHTLESS = np.int32(0x41E00000)
"""The distance 28, from which a weight is 0: exp(-28) * 2**40 < 1."""
BITS_PER_WORD = 32


@inlined
def value_of_order(order):
    """The float32 that an order was made of (+0 for -0)."""
    return float_from_bits(np.int64(bits_of_order(order)))


@inlined
def penalized(value, repetition, frequency, presence, count):
    """One logit under its penalties; `count` is how often the id stands in the output (0: prompt only)."""
    value = value / repetition if value > ZERO else value * repetition
    if count > 0:
        value = value - frequency * np.float32(count)
        value = value - presence
    return value


@inlined
def set_value(orders, token_id, value):
    """Replace one logit. Returns whether it is finite."""
    bits = float_bits(value)
    orders[token_id] = order_of_bits(bits)
    return (bits & MAGNITUDE) < INFINITE


@inlined
def apply_penalties(orders, prompt, output, repetition, frequency, presence):
    """Penalties in place; the lists' order and repeats in the prompt do not matter. Returns whether all
    changed logits are finite."""
    counts = np.zeros(orders.shape[0], np.int32)
    for i in range(output.shape[0]):
        counts[output[i]] += 1
    finite = True
    for i in range(prompt.shape[0]):
        token_id = prompt[i]
        if counts[token_id] == 0:
            value = value_of_order(orders[token_id])
            finite &= set_value(orders, token_id, penalized(value, repetition, frequency, presence, 0))
            counts[token_id] = -1
    for i in range(output.shape[0]):
        token_id = output[i]
        count = counts[token_id]
        if count > 0:
            value = value_of_order(orders[token_id])
            finite &= set_value(orders, token_id, penalized(value, repetition, frequency, presence, count))
            counts[token_id] = -1
    return finite


@inlined
def apply_bias(orders, ids, values):
    """Add a bias to each listed id, in list order. Returns whether all changed logits are finite."""
    finite = True
    for i in range(ids.shape[0]):
        finite &= set_value(orders, ids[i], value_of_order(orders[ids[i]]) + values[i])
    return finite


@inlined
def exclude_listed(orders, ids):
    """Exclude the listed ids."""
    for i in range(ids.shape[0]):
        orders[ids[i]] = EXCLUDED


@inlined
def exclude_unset(orders, allowed):
    """Exclude the ids whose bit in `allowed` (int32 words, lowest bit first) is 0."""
    for index in range(allowed.shape[0]):
        word = allowed[index]
        if word != -1:
            first = index * BITS_PER_WORD
            for bit in range(min(BITS_PER_WORD, orders.shape[0] - first)):
                if (word >> bit) & 1 == 0:
                    orders[first + bit] = EXCLUDED


@inlined
def orders_to_distances(orders, best, temperature):
    """Temperature, in place: distance = (largest - logit) / temperature, two roundings; excluded stay so."""
    largest = value_of_order(best)
    for i in range(orders.shape[0]):
        order = orders[i]
        distance = (largest - value_of_order(order)) / temperature
        orders[i] = EXCLUDED if order == EXCLUDED else float_bits(distance)


@inlined
def probability(distance):
    """exp(scaled logit), the best token's being 1. float32."""
    return exp32(-float_from_bits(np.int64(distance)))


@inlined
def fill_weights(distances, count, weights):
    """Fixed-point weights int64 of distances[:count]. Returns their sum, which no order can change."""
    total = np.int64(0)
    for i in range(count):
        weights[i] = np.int64(probability(distances[i]) * WEIGHT_SCALE)
        total += weights[i]
    return total


@inlined
def ids_within(distances, worst, ids):
    """Ascending ids of the distances up to `worst`, to the front of `ids`. Returns their number."""
    count = 0
    for i in range(distances.shape[0]):
        ids[count] = i
        count += distances[i] <= worst
    return count


@inlined
def keep_top_p(ids, distances, count, top_p):
    """Keep the smallest prefix in total order whose weights reach their part `top_p`; at least one.

    Survivors are in ascending order of id, and stay so; in place; returns their number. The prefix must reach
    ceil(top_p * sum of weights), the product taken in float64.
    """
    weights = np.empty(count, np.int64)
    total = fill_weights(distances, count, weights)
    product = np.float64(top_p) * np.float64(total)
    goal = np.int64(product)
    goal += goal < product
    border, need = weighted_prefix(distances, weights, max(goal, np.int64(1)))
    kept = 0
    for i in range(count):
        distance = distances[i]
        is_tie = distance == border
        ids[kept], distances[kept] = ids[i], distance
        kept += distance < border or (is_tie and need > 0)
        need -= weights[i] if is_tie else 0
    return kept


@inlined
def keep_min_p(ids, distances, count, min_p):
    """Keep survivors whose probability is at least `min_p` times the best one's, which is 1. In place."""
    kept = 0
    for i in range(count):
        distance = distances[i]
        ids[kept], distances[kept] = ids[i], distance
        kept += probability(distance) >= min_p
    return kept
