"""The sampling clause on CPU: filters in the contract's order, then Gumbel-argmax (numba)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from samebits.errors import NumericsError
from samebits.numerics.batch import SampleResult, SamplingBatch
from samebits.numerics.cpu import filters, noise
from samebits.numerics.cpu.arrays import float32_array, int32_array, int64_array, uint8_array
from samebits.numerics.cpu.filters import WEIGHT_SCALE, fill_weights, keep_min_p, keep_top_k, keep_top_p
from samebits.numerics.cpu.kernel import Kernel, inlined
from samebits.numerics.cpu.lanes import float_bits, float_from_bits, load_int64
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
from samebits.numerics.cpu.pool import Pool
from samebits.numerics.philox import STREAM_SAMPLE

NON_FINITE = np.uint8(1)
NOTHING_LEFT = np.uint8(2)
CHUNK = 1024
"""Ids whose noise is made together; a multiple of 4. No result depends on it."""
SHARED_FROM = 16384
"""Logits in a batch from which other threads help."""


class Settings(NamedTuple):
    """What the rows ask for: `SamplingBatch` as arrays, for numba. `allowed` has no rows when it is absent."""

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


@inlined
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


@inlined
def write_processed(ids, distances, processed):
    """Logprobs of the survivors: -distance - log(sum of weights / 2**40), -0 made +0; -inf elsewhere."""
    total = fill_weights(distances, np.empty(distances.shape[0], np.int64))
    log_total = log32(np.float32(total) / WEIGHT_SCALE)
    processed[:] = -np.inf
    for i in range(ids.shape[0]):
        logprob = -float_from_bits(np.int64(distances[i])) - log_total
        processed[ids[i]] = logprob + np.float32(0.0)


@inlined
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


@inlined
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


@inlined
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


@inlined
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


@inlined
def settings_of(arguments, rows, allowed_words):
    """The settings behind words 0 to 19 of the arguments."""
    prompt_start = int64_array(arguments, 10, rows + 1)
    output_start = int64_array(arguments, 12, rows + 1)
    bias_start = int64_array(arguments, 14, rows + 1)
    forbidden_start = int64_array(arguments, 17, rows + 1)
    return Settings(
        float32_array(arguments, 0, rows),
        int32_array(arguments, 1, rows),
        float32_array(arguments, 2, rows),
        float32_array(arguments, 3, rows),
        float32_array(arguments, 4, rows),
        float32_array(arguments, 5, rows),
        float32_array(arguments, 6, rows),
        int64_array(arguments, 7, rows),
        int64_array(arguments, 8, rows),
        int64_array(arguments, 9, rows),
        prompt_start,
        int64_array(arguments, 11, prompt_start[rows]),
        output_start,
        int64_array(arguments, 13, output_start[rows]),
        bias_start,
        int64_array(arguments, 15, bias_start[rows]),
        float32_array(arguments, 16, bias_start[rows]),
        forbidden_start,
        int64_array(arguments, 18, forbidden_start[rows]),
        int32_array(arguments, 19, (rows if allowed_words else 0, allowed_words)),
    )


def _sample_task(arguments, row):
    """One row. Words 20 on: logits, tokens, faults, processed; rows, vocabulary, allowed words, want processed."""
    rows, vocabulary = load_int64(arguments, 24), load_int64(arguments, 25)
    settings = settings_of(arguments, rows, load_int64(arguments, 26))
    bits = int32_array(arguments, 20, (rows, vocabulary))[row]
    tokens, faults = int64_array(arguments, 21, rows), uint8_array(arguments, 22, rows)
    wanted = load_int64(arguments, 27)
    processed = float32_array(arguments, 23, (rows if wanted else 1, vocabulary if wanted else 0))
    if wanted == 0 and is_plain_argmax(settings, row):
        largest, token_id = first_best(bits)
        finite = largest < INFINITE
        tokens[row] = token_id if finite else -1
        faults[row] = np.uint8(0) if finite else NON_FINITE
    else:
        orders = np.empty(vocabulary, np.int32)
        tokens[row], faults[row] = sample_row(bits, settings, row, orders, processed[row if wanted else 0])


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
    """The tensors behind `Settings`, in its order, checked. Raises NumericsError naming the field."""
    lists = {"prompt": batch.prompt, "output": batch.output, "bias": batch.bias, "forbidden": batch.forbidden}
    tensors = []
    for field in Settings._fields:
        if field == "allowed":
            empty = torch.empty((0, 0), dtype=torch.int32)
            words = (rows, -(-vocabulary // 32))
            tensors.append(
                empty if batch.allowed is None else check_operand(field, batch.allowed, torch.int32, words)
            )
        elif field == "bias_values":
            values = torch.empty(0) if batch.bias.values is None else batch.bias.values
            tensors.append(check_operand(field, values, torch.float32, tuple(batch.bias.ids.shape)))
        elif field.endswith("_start"):
            start = lists[field.removesuffix("_start")].start
            tensors.append(check_operand(field, start, torch.int64, (rows + 1,)))
        elif field.endswith("_ids"):
            tensors.append(check_operand(field, lists[field.removesuffix("_ids")].ids, torch.int64))
        else:
            kind = torch.int64 if field in ("seed", "position", "sample_index") else torch.float32
            kind = torch.int32 if field == "top_k" else kind
            tensors.append(check_operand(field, getattr(batch, field), kind, (rows,)))
    return tensors


def launch_words(
    logits: Tensor, settings: list[Tensor], tokens: Tensor, faults: Tensor, processed: Tensor
) -> tuple[int, ...]:
    """The arguments of the sampling kernel. The tensors must outlive the launch."""
    rows, vocabulary = logits.shape
    tensors = (*settings, logits, tokens, faults, processed)
    sizes = (rows, vocabulary, settings[-1].shape[1], int(processed.shape[0] > 0))
    return tuple(tensor.data_ptr() for tensor in tensors) + sizes


def sample(pool: Pool, logits: Tensor, batch: SamplingBatch, want_processed: bool = False) -> SampleResult:
    """Sampling clause over contiguous float32 logits [rows, vocabulary] on CPU; see `Operators.sample`.

    The ids in the batch's lists lie in the vocabulary: the caller has checked them. Raises NumericsError for a
    tensor of the wrong kind.
    """
    rows, vocabulary = check_operand("logits", logits, torch.float32).shape
    tokens = torch.empty(rows, dtype=torch.int64)
    faults = torch.empty(rows, dtype=torch.uint8)
    processed = torch.empty((rows if want_processed else 0, vocabulary))
    settings = settings_tensors(batch, rows, vocabulary)
    if rows:
        words = launch_words(logits, settings, tokens, faults, processed)
        pool.run(SAMPLE.address, words, rows, rows * vocabulary >= SHARED_FROM)
    return SampleResult(tokens, faults, processed if want_processed else None)
