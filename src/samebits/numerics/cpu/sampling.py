"""The sampling clause on CPU: filters in the contract's order, then Gumbel-argmax (numba)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from samebits.errors import NumericsError
from samebits.numerics.batch import SampleResult, SamplingBatch, TokenLists
from samebits.numerics.cpu import filters, noise
from samebits.numerics.cpu.arrays import float32_array, int32_array, int64_array
from samebits.numerics.cpu.filters import (
    WEIGHT_SCALE,
    WEIGHTLESS,
    fill_weights,
    ids_within,
    keep_min_p,
    keep_top_p,
)
from samebits.numerics.cpu.kernel import Kernel, inlined
from samebits.numerics.cpu.lanes import (
    float_bits,
    float_from_bits,
    load_float,
    load_int32,
    load_int64,
    store_byte,
    store_int64,
)
from samebits.numerics.cpu.math import log32
from samebits.numerics.cpu.order import (
    EXCLUDED,
    INFINITE,
    LAST_ALLOWED,
    best_ids,
    fill_orders,
    first_best,
    first_with,
    order_of_bits,
    smallest_order,
)
from samebits.numerics.cpu.pool import Pool
from samebits.numerics.philox import STREAM_SAMPLE

NON_FINITE = np.uint8(1)
NOTHING_LEFT = np.uint8(2)
CHUNK = 1024
"""Ids whose noise is made together; a multiple of 4. No result depends on it."""
SHARED_FROM = 16384
"""Logits in a batch from which other threads help."""


ROW_WORDS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "position",
    "sample_index",
)
LIST_WORDS = ("prompt", "output", "bias", "forbidden")
# Places in the arguments: addresses of one value a row, of (start, ids) of each list, of others; then sizes.
TEMPERATURE, TOP_K, TOP_P, MIN_P, PRESENCE, FREQUENCY, REPETITION, SEED, POSITION, SAMPLE_INDEX = range(10)
PROMPT, OUTPUT, BIAS, FORBIDDEN = range(10, 18, 2)
BIAS_VALUES, ALLOWED, LOGITS, TOKENS, FAULTS, PROCESSED, ROWS, VOCABULARY, ALLOWED_WORDS, WANTED = range(
    18, 28
)


@inlined
def row_float(arguments, word, row):
    """One row's float32 setting."""
    return load_float(load_int64(arguments, word), row)


@inlined
def row_integer(arguments, word, row):
    """One row's int64 setting."""
    return load_int64(load_int64(arguments, word), row)


@inlined
def row_ids(arguments, word, row):
    """One row's token ids in a list: int64 array."""
    first, last = row_integer(arguments, word, row), row_integer(arguments, word, row + 1)
    return int64_array(arguments, word + 1, last)[first:]


@inlined
def best_of_chunk(distances, chunk_noise, best):
    """(order, index) of the first best score in a chunk, if it is better than `best`; else (best, -1)."""
    chunk_best = EXCLUDED
    for i in range(distances.shape[0]):
        score = chunk_noise[i] - float_from_bits(np.int64(distances[i]))
        order = EXCLUDED if distances[i] == EXCLUDED else order_of_bits(float_bits(score))
        chunk_best = min(chunk_best, order)
    if chunk_best >= best:
        return best, np.int64(-1)
    for i in range(distances.shape[0]):
        score = chunk_noise[i] - float_from_bits(np.int64(distances[i]))
        if distances[i] != EXCLUDED and order_of_bits(float_bits(score)) == chunk_best:
            return chunk_best, np.int64(i)
    return best, np.int64(-1)


@inlined
def hopeless(distances, best):
    """Whether no noise can lift any id of this chunk to the best score so far."""
    nearest = smallest_order(distances)
    if nearest == EXCLUDED:
        return True
    highest = noise.NOISE_BOUND - float_from_bits(np.int64(nearest))
    return order_of_bits(float_bits(highest)) > best


@inlined
def gumbel_argmax(ids, distances, count, seed, position, sample_index):
    """The id with the largest noise - distance among distances[:count], ties to the lower id.

    `ids` int32 holds the ascending ids of the distances; empty: place and id are the same.
    """
    words = np.empty(CHUNK, np.uint32)
    chunk_noise = np.empty(CHUNK, np.float32)
    best, winner = EXCLUDED, np.int64(-1)
    for first in range(0, count, CHUNK):
        last = min(count, first + CHUNK)
        chunk = distances[first:last]
        if hopeless(chunk, best):
            continue
        if ids.shape[0]:
            noise.words_of_ids(ids[first:last], seed, position, sample_index, STREAM_SAMPLE, words)
        else:
            noise.words_of_range(first, seed, position, sample_index, STREAM_SAMPLE, words)
        noise.noise_of_words(words, chunk_noise)
        best, index = best_of_chunk(chunk, chunk_noise, best)
        winner = winner if index < 0 else first + index
    return np.int64(ids[winner]) if ids.shape[0] else winner


@inlined
def write_processed(ids, distances, count, processed):
    """Logprobs of the survivors: -distance - log(sum of weights / 2**40), -0 made +0; -inf elsewhere."""
    total = fill_weights(distances, count, np.empty(count, np.int64))
    log_total = log32(np.float32(total) / WEIGHT_SCALE)
    for i in range(count):
        logprob = -float_from_bits(np.int64(distances[i])) - log_total
        processed[ids[i]] = logprob + np.float32(0.0)


@inlined
def processed_orders(arguments, row, bits, orders):
    """Penalties, bias and masks of one row. Fills `orders`; returns whether every logit is finite."""
    finite = fill_orders(bits, orders) < INFINITE
    repetition = row_float(arguments, REPETITION, row)
    frequency, presence = row_float(arguments, FREQUENCY, row), row_float(arguments, PRESENCE, row)
    if repetition != 1.0 or frequency != 0.0 or presence != 0.0:
        prompt, output = row_ids(arguments, PROMPT, row), row_ids(arguments, OUTPUT, row)
        finite &= filters.apply_penalties(orders, prompt, output, repetition, frequency, presence)
    bias, last = row_ids(arguments, BIAS, row), row_integer(arguments, BIAS, row + 1)
    values = float32_array(arguments, BIAS_VALUES, last)
    finite &= filters.apply_bias(orders, bias, values[last - bias.shape[0] :])
    filters.exclude_listed(orders, row_ids(arguments, FORBIDDEN, row))
    words = load_int64(arguments, ALLOWED_WORDS)
    if words:
        filters.exclude_unset(orders, int32_array(arguments, ALLOWED, (row + 1, words))[row])
    return finite


@inlined
def draw(arguments, row, distances, processed):
    """Top-k, top-p, min-p and Gumbel-argmax of one row after temperature -> token id."""
    size = distances.shape[0]
    top_k = np.int64(load_int32(load_int64(arguments, TOP_K), row))
    top_p, min_p = row_float(arguments, TOP_P, row), row_float(arguments, MIN_P, row)
    cut = 0 < top_k < size
    ids, near, count = np.empty(0, np.int32), distances, size
    if cut or top_p < 1.0 or min_p > 0.0 or processed.shape[0] > 0:
        ids = np.empty(size, np.int32)
        if cut:
            count = best_ids(distances, top_k, LAST_ALLOWED, ids)
        else:
            count = ids_within(distances, WEIGHTLESS if top_p < 1.0 else LAST_ALLOWED, ids)
        near = np.empty(count, np.int32)
        for i in range(count):
            near[i] = distances[ids[i]]
        if top_p < 1.0:
            count = keep_top_p(ids, near, count, top_p)
        if min_p > 0.0:
            count = keep_min_p(ids, near, count, min_p)
        if processed.shape[0]:
            write_processed(ids, near, count, processed)
    seed, position = row_integer(arguments, SEED, row), row_integer(arguments, POSITION, row)
    return gumbel_argmax(ids, near, count, seed, position, row_integer(arguments, SAMPLE_INDEX, row))


@inlined
def sample_row(arguments, row, bits, processed):
    """(token id, fault) of one row of float32 bits; fills `processed` unless it is empty."""
    orders = np.empty(bits.shape[0], np.int32)
    processed[:] = -np.inf
    if not processed_orders(arguments, row, bits, orders):
        return np.int64(-1), NON_FINITE
    best = smallest_order(orders)
    if best == EXCLUDED:
        return np.int64(-1), NOTHING_LEFT
    temperature = row_float(arguments, TEMPERATURE, row)
    if temperature == 0.0:
        token_id = first_with(orders, best)
        if processed.shape[0]:
            processed[token_id] = 0.0
        return token_id, np.uint8(0)
    filters.orders_to_distances(orders, best, temperature)
    return draw(arguments, row, orders, processed), np.uint8(0)


@inlined
def is_plain_argmax(arguments, row):
    """Whether the row asks for nothing but the best raw logit."""
    return (
        row_float(arguments, TEMPERATURE, row) == 0.0
        and row_float(arguments, REPETITION, row) == 1.0
        and row_float(arguments, FREQUENCY, row) == 0.0
        and row_float(arguments, PRESENCE, row) == 0.0
        and row_ids(arguments, BIAS, row).shape[0] == 0
        and row_ids(arguments, FORBIDDEN, row).shape[0] == 0
        and load_int64(arguments, ALLOWED_WORDS) == 0
        and load_int64(arguments, WANTED) == 0
    )


def _sample_task(arguments, row):
    """One row of the sampling clause."""
    vocabulary, wanted = load_int64(arguments, VOCABULARY), load_int64(arguments, WANTED)
    bits = int32_array(arguments, LOGITS, (row + 1, vocabulary))[row]
    if is_plain_argmax(arguments, row):
        largest, token_id = first_best(bits)
        fault = np.uint8(0) if largest < INFINITE else NON_FINITE
        token_id = token_id if largest < INFINITE else np.int64(-1)
    else:
        processed = float32_array(arguments, PROCESSED, (row + 1, vocabulary if wanted else 0))[row]
        token_id, fault = sample_row(arguments, row, bits, processed)
    store_int64(load_int64(arguments, TOKENS), row, token_id)
    store_byte(load_int64(arguments, FAULTS), row, fault)


SAMPLE = Kernel(_sample_task)


def check_operand(
    name: str, tensor: Tensor, kind: torch.dtype, shape: tuple[int, ...] | None = None
) -> Tensor:
    """The tensor, if it is a contiguous CPU tensor of this dtype and shape. Raises NumericsError."""
    fits = shape is None or tuple(tensor.shape) == shape
    if tensor.dtype != kind or not fits or not tensor.is_contiguous() or tensor.device.type != "cpu":
        expected = "" if shape is None else f" {list(shape)}"
        raise NumericsError(
            f"{name} must be contiguous {kind}{expected} on CPU, not {tensor.dtype} {list(tensor.shape)}"
        )
    return tensor


def settings_tensors(batch: SamplingBatch, rows: int, vocabulary: int) -> list[Tensor]:
    """The batch's tensors in the order of the arguments, checked. Raises NumericsError naming the field."""
    kinds = {"top_k": torch.int32, "seed": torch.int64, "position": torch.int64, "sample_index": torch.int64}
    tensors = [
        check_operand(name, getattr(batch, name), kinds.get(name, torch.float32), (rows,))
        for name in ROW_WORDS
    ]
    for name in LIST_WORDS:
        lists: TokenLists = getattr(batch, name)
        tensors.append(check_operand(f"{name}.start", lists.start, torch.int64, (rows + 1,)))
        tensors.append(check_operand(f"{name}.ids", lists.ids, torch.int64))
    values = torch.empty(0) if batch.bias.values is None else batch.bias.values
    tensors.append(check_operand("bias.values", values, torch.float32, tuple(batch.bias.ids.shape)))
    allowed = torch.empty((0, 0), dtype=torch.int32)
    if batch.allowed is not None:
        allowed = check_operand("allowed", batch.allowed, torch.int32, (rows, -(-vocabulary // 32)))
    return [*tensors, allowed]


def launch_words(
    settings: list[Tensor], logits: Tensor, tokens: Tensor, faults: Tensor, processed: Tensor
) -> tuple[int, ...]:
    """The arguments of the sampling kernel. The tensors must outlive the launch."""
    rows, vocabulary = logits.shape
    tensors = (*settings, logits, tokens, faults, processed)
    sizes = (rows, vocabulary, settings[-1].shape[1], int(processed.shape[0] > 0))
    return tuple(tensor.data_ptr() for tensor in tensors) + sizes


def sample(pool: Pool, logits: Tensor, batch: SamplingBatch, want_processed: bool = False) -> SampleResult:
    """Sampling clause over contiguous float32 logits [rows, vocabulary] on CPU; see `Operators.sample`.

    The ids in the batch's lists lie in the vocabulary: the caller has checked them. Raises NumericsError for
    a tensor of the wrong kind.
    """
    rows, vocabulary = check_operand("logits", logits, torch.float32).shape
    tokens = torch.empty(rows, dtype=torch.int64)
    faults = torch.empty(rows, dtype=torch.uint8)
    processed = torch.empty((rows if want_processed else 0, vocabulary))
    settings = settings_tensors(batch, rows, vocabulary)
    if rows:
        words = launch_words(settings, logits, tokens, faults, processed)
        pool.run(SAMPLE.address, words, rows, rows * vocabulary >= SHARED_FROM)
    return SampleResult(tokens, faults, processed if want_processed else None)
