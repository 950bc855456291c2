"""The sampling clause on CPU: filters in the contract's order, then Gumbel-argmax (numba)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from samebits.numerics.batch import SampleResult, SamplingBatch
from samebits.numerics.cpu import filters, noise
from samebits.numerics.cpu.filters import WEIGHT_SCALE, fill_weights, keep_min_p, keep_top_k, keep_top_p
from samebits.numerics.cpu.lanes import float_bits, float_from_bits
from samebits.numerics.cpu.math import log32
from samebits.numerics.cpu.order import (
    EXCLUDED,
    INFINITE,
    fill_orders,
    first_best,
    first_with,
    order_of_bits,
    smallest_order,
)
from samebits.numerics.philox import STREAM_SAMPLE

NON_FINITE = np.uint8(1)
NOTHING_LEFT = np.uint8(2)
CHUNK = 1024
"""Ids whose noise is made together; a multiple of 4. No result depends on it."""
LIST_NAMES = ("prompt", "output", "bias", "forbidden")


class RowSettings(NamedTuple):
    """`SamplingBatch` as arrays, for numba; empty arrays stand for absent ones."""

    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    min_p: np.ndarray
    presence_penalty: np.ndarray
    frequency_penalty: np.ndarray
    repetition_penalty: np.ndarray
    seed: np.ndarray
    position: np.ndarray
    sample_index: np.ndarray
    prompt_start: np.ndarray
    prompt_ids: np.ndarray
    output_start: np.ndarray
    output_ids: np.ndarray
    bias_start: np.ndarray
    bias_ids: np.ndarray
    bias_values: np.ndarray
    forbidden_start: np.ndarray
    forbidden_ids: np.ndarray
    allowed: np.ndarray


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
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


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def hopeless(distances, best):
    """Whether no noise can lift any id of this chunk to the best score so far."""
    nearest = smallest_order(distances)
    if nearest == EXCLUDED:
        return True
    highest = noise.NOISE_BOUND - float_from_bits(np.int64(nearest))
    return order_of_bits(float_bits(highest)) > best


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def gumbel_argmax_all(distances, seed, position, sample_index):
    """The id with the largest noise - distance over a whole vocabulary, ties to the lower id."""
    words = np.empty(CHUNK, np.uint32)
    chunk_noise = np.empty(CHUNK, np.float32)
    best, token_id = EXCLUDED, np.int64(-1)
    for first in range(0, distances.shape[0], CHUNK):
        chunk = distances[first : min(distances.shape[0], first + CHUNK)]
        if hopeless(chunk, best):
            continue
        noise.words_of_range(first, seed, position, sample_index, STREAM_SAMPLE, words)
        noise.noise_of_words(words, chunk_noise)
        best, index = best_of_chunk(chunk, chunk_noise, best)
        token_id = token_id if index < 0 else first + index
    return token_id


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def gumbel_argmax_of(ids, distances, seed, position, sample_index):
    """The same over survivors with ascending ids."""
    count = ids.shape[0]
    words = np.empty(min(count, CHUNK), np.uint32)
    chunk_noise = np.empty(min(count, CHUNK), np.float32)
    best, token_id = EXCLUDED, np.int64(-1)
    for first in range(0, count, CHUNK):
        last = min(count, first + CHUNK)
        chunk, chunk_words = distances[first:last], words[: last - first]
        if hopeless(chunk, best):
            continue
        noise.words_of_ids(ids[first:last], seed, position, sample_index, STREAM_SAMPLE, chunk_words)
        noise.noise_of_words(chunk_words, chunk_noise)
        best, index = best_of_chunk(chunk, chunk_noise, best)
        token_id = token_id if index < 0 else np.int64(ids[first + index])
    return token_id


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def write_processed(ids, distances, processed):
    """Logprobs of the survivors: -distance - log(sum of weights / 2**40), -0 made +0; -inf elsewhere."""
    total = fill_weights(distances, np.empty(distances.shape[0], np.int64))
    log_total = log32(np.float32(total) / WEIGHT_SCALE)
    processed[:] = -np.inf
    for i in range(ids.shape[0]):
        logprob = -float_from_bits(np.int64(distances[i])) - log_total
        processed[ids[i]] = logprob + np.float32(0.0)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def processed_orders(bits, rows, row, orders):
    """Penalties, bias and masks of one row. Fills `orders`; returns whether every logit is finite."""
    finite = fill_orders(bits, orders) < INFINITE
    prompt = rows.prompt_ids[rows.prompt_start[row] : rows.prompt_start[row + 1]]
    output = rows.output_ids[rows.output_start[row] : rows.output_start[row + 1]]
    repetition, frequency = rows.repetition_penalty[row], rows.frequency_penalty[row]
    presence = rows.presence_penalty[row]
    if repetition != 1.0 or frequency != 0.0 or presence != 0.0:
        finite &= filters.apply_penalties(orders, prompt, output, repetition, frequency, presence)
    bias = slice(rows.bias_start[row], rows.bias_start[row + 1])
    finite &= filters.apply_bias(orders, rows.bias_ids[bias], rows.bias_values[bias])
    forbidden = rows.forbidden_ids[rows.forbidden_start[row] : rows.forbidden_start[row + 1]]
    filters.exclude_listed(orders, forbidden)
    if rows.allowed.shape[0]:
        filters.exclude_unset(orders, rows.allowed[row])
    return finite


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def draw(distances, rows, row, processed):
    """Top-k, top-p, min-p and Gumbel-argmax of one row after temperature -> token id."""
    top_k, top_p, min_p = rows.top_k[row], rows.top_p[row], rows.min_p[row]
    seed, position, sample_index = rows.seed[row], rows.position[row], rows.sample_index[row]
    cut = 0 < top_k < distances.shape[0]
    if not cut and top_p >= 1.0 and min_p <= 0.0 and processed.shape[0] == 0:
        return gumbel_argmax_all(distances, seed, position, sample_index)
    ids = keep_top_k(distances, top_k) if cut else filters.all_survivors(distances)
    near = distances[ids]
    if top_p < 1.0:
        ids, near = keep_top_p(ids, near, top_p)
    if min_p > 0.0:
        ids, near = keep_min_p(ids, near, min_p)
    if processed.shape[0]:
        write_processed(ids, near, processed)
    return gumbel_argmax_of(ids, near, seed, position, sample_index)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def sample_row(bits, rows, row, orders, processed):
    """(token id, fault) of one row of float32 bits. `orders` is scratch of the row's length."""
    if processed.shape[0]:
        processed[:] = -np.inf
    if not processed_orders(bits, rows, row, orders):
        return np.int64(-1), NON_FINITE
    best = smallest_order(orders)
    if best == EXCLUDED:
        return np.int64(-1), NOTHING_LEFT
    if rows.temperature[row] == 0.0:
        token_id = first_with(orders, best)
        if processed.shape[0]:
            processed[token_id] = 0.0
        return token_id, np.uint8(0)
    filters.orders_to_distances(orders, best, rows.temperature[row])
    return draw(orders, rows, row, processed), np.uint8(0)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def is_plain_argmax(rows, row):
    """Whether the row asks for nothing but the best raw logit."""
    return (
        rows.temperature[row] == 0.0
        and rows.repetition_penalty[row] == 1.0
        and rows.frequency_penalty[row] == 0.0
        and rows.presence_penalty[row] == 0.0
        and rows.bias_start[row] == rows.bias_start[row + 1]
        and rows.forbidden_start[row] == rows.forbidden_start[row + 1]
        and rows.allowed.shape[0] == 0
    )


@njit(cache=True, nogil=True, error_model="numpy", fastmath=False)
def sample_rows(first, last, bits, rows, tokens, faults, processed):
    """Sample rows first .. last - 1. `processed` has no rows when it is not wanted."""
    orders = np.empty(bits.shape[1], np.int32)
    for row in range(first, last):
        if processed.shape[0] == 0 and is_plain_argmax(rows, row):
            largest, token_id = first_best(bits[row])
            finite = largest < INFINITE
            tokens[row] = token_id if finite else -1
            faults[row] = np.uint8(0) if finite else NON_FINITE
        else:
            wanted = processed[row] if processed.shape[0] else np.empty(0, np.float32)
            tokens[row], faults[row] = sample_row(bits[row], rows, row, orders, wanted)


def row_settings(batch: SamplingBatch) -> RowSettings:
    """The batch's tensors as arrays."""
    lists = (batch.prompt, batch.output, batch.bias, batch.forbidden)
    values: dict[str, np.ndarray] = {}
    for name, token_list in zip(LIST_NAMES, lists, strict=True):
        values[f"{name}_start"] = token_list.start.numpy()
        values[f"{name}_ids"] = token_list.ids.numpy()
    bias_values = batch.bias.values
    values["bias_values"] = np.empty(0, np.float32) if bias_values is None else bias_values.numpy()
    values["allowed"] = np.empty((0, 0), np.int32) if batch.allowed is None else batch.allowed.numpy()
    for name in RowSettings._fields:
        if name not in values:
            values[name] = getattr(batch, name).numpy()
    return RowSettings(**values)


def sample(logits: Tensor, batch: SamplingBatch, want_processed: bool = False) -> SampleResult:
    """Sampling clause over float32 logits [rows, vocabulary] on CPU; see `Operators.sample`."""
    rows, vocabulary = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64)
    faults = torch.empty(rows, dtype=torch.uint8)
    processed = torch.empty((rows if want_processed else 0, vocabulary), dtype=torch.float32)
    bits = logits.contiguous().view(torch.int32).numpy()
    sample_rows(0, rows, bits, row_settings(batch), tokens.numpy(), faults.numpy(), processed.numpy())
    return SampleResult(tokens, faults, processed if want_processed else None)
