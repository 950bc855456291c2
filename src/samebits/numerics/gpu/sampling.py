"""The sampling clause on a GPU: launches. Given equal logits it gives the CPU sampler's bits.

Nothing waits for the device: what rows ask for is read there, row by row. The host says only which paths some row of
the batch may ask for (`Wants`), so that launches which no row needs are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from samebits.numerics.batch import SampleResult, SamplingBatch, TokenLists
from samebits.numerics.gpu import filters, sampling_rows, sampling_scores
from samebits.numerics.gpu.checks import check_tensor, result
from samebits.numerics.gpu.configuration import Launch, on_nvidia, start

CHUNK, SMALL_CHUNK = 4096, 1024
"""Ids of one program. The choice changes no bit: what chunks hand on is a best key, a guess or an integer sum."""
FEW_ROWS = 16
"""Up to these, small chunks keep more of the GPU busy."""
LIST_BLOCK = 128
LIST_PARTS = 8
BINS = 2048
CHUNK_LAUNCH = Launch(warps=4, stages=1)
ROW_LAUNCH = Launch(warps=4, stages=1)


@dataclass(frozen=True)
class Wants:
    """Which paths some row of a batch may ask for. A path that no row asks for changes no bit of any."""

    patched: bool = True
    """Penalties, bias or forbidden ids"""
    filtered: bool = True
    """Top-k, top-p or min-p"""

    @classmethod
    def of(cls, batch: SamplingBatch) -> Wants:
        """What a batch on the CPU asks for."""
        penalties = (
            (batch.presence_penalty != 0) | (batch.frequency_penalty != 0) | (batch.repetition_penalty != 1)
        )
        lists = batch.bias.ids.numel() + batch.forbidden.ids.numel() > 0
        filtered = (batch.top_k > 0) | (batch.top_p < 1) | (batch.min_p > 0)
        return cls(bool(penalties.any()) or lists, bool(filtered.any()))


@dataclass(frozen=True)
class SamplingWorkspace:
    """Fixed-address storage of the sampler for at most `rows` rows; made by `sampling_workspace`."""

    kinds: Tensor
    bad: Tensor
    orders: Tensor
    counts: Tensor
    chunk_keys: Tensor
    chunk_scores: Tensor
    borders: Tensor
    ties: Tensor
    prefixes: Tensor
    needs: Tensor
    sums: Tensor
    tie_counts: Tensor
    chunk_sums: Tensor
    chunk: int
    """ids of one program"""

    @property
    def rows(self) -> int:
        return self.kinds.shape[0]


def sampling_workspace(rows: int, vocabulary: int, device: torch.device) -> SamplingWorkspace:
    """Storage for batches of at most `rows` rows: 8 bytes a logit, and little else."""
    chunk = SMALL_CHUNK if rows <= FEW_ROWS else CHUNK
    chunks = triton.cdiv(vocabulary, chunk)

    def integers(*shape: int, kind: torch.dtype = torch.int32) -> Tensor:
        return torch.zeros(shape, dtype=kind, device=device)

    wide = torch.int64
    return SamplingWorkspace(
        kinds=integers(rows),
        bad=integers(rows),
        orders=integers(rows, vocabulary),
        counts=integers(rows, vocabulary),
        chunk_keys=integers(rows, chunks, kind=wide),
        chunk_scores=integers(rows, chunks, kind=torch.float32),
        borders=integers(rows),
        ties=integers(rows, kind=wide),
        prefixes=integers(rows),
        needs=integers(rows, kind=wide),
        sums=integers(rows, BINS, kind=wide),
        tie_counts=integers(rows, chunks),
        chunk_sums=integers(rows, chunks, kind=wide),
        chunk=chunk,
    )


def check_settings(batch: SamplingBatch, rows: int, vocabulary: int) -> None:
    """Raises NumericsError naming the field that does not fit."""
    wide = {"seed": torch.int64, "position": torch.int64, "sample_index": torch.int64, "top_k": torch.int32}
    names = (
        "temperature",
        "top_p",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        *wide,
    )
    for name in names:
        check_tensor(name, getattr(batch, name), (wide.get(name, torch.float32),), (rows,))
    for name in ("prompt", "output", "bias", "forbidden"):
        lists: TokenLists = getattr(batch, name)
        check_tensor(f"{name}.start", lists.start, (torch.int64,), (rows + 1,))
        check_tensor(f"{name}.ids", lists.ids, (torch.int64,), (None,))
    if batch.allowed is not None:
        check_tensor("allowed", batch.allowed, (torch.int32,), (rows, -(-vocabulary // 32)))


def patch(bits: Tensor, batch: SamplingBatch, work: SamplingWorkspace) -> None:
    """Penalties, bias and masks of the rows that ask for them, into their orders."""
    rows, vocabulary = bits.shape
    grid = (rows, work.chunk_keys.shape[1])
    options = CHUNK_LAUNCH
    start(
        sampling_rows.clear_counts,
        grid,
        work.counts,
        work.kinds,
        vocabulary,
        CHUNK=work.chunk,
        launch=options,
    )
    prompt, output, bias, forbidden = batch.prompt, batch.output, batch.bias, batch.forbidden
    start(sampling_rows.count_tokens, (rows, LIST_PARTS), 
        work.counts, work.kinds, prompt.start, prompt.ids, output.start, output.ids, vocabulary, BLOCK=LIST_BLOCK,
        launch=options,
    )  # fmt: skip
    start(
        sampling_rows.patch_orders,
        grid,
        bits,
        work.orders,
        work.counts,
        work.kinds,
        work.bad,
        batch.presence_penalty,
        batch.frequency_penalty,
        batch.repetition_penalty,
        vocabulary,
        CHUNK=work.chunk,
        launch=options,
    )
    start(
        sampling_rows.patch_lists,
        (rows,),
        bits,
        work.orders,
        work.kinds,
        work.bad,
        bias.start,
        bias.ids,
        work.orders if bias.values is None else bias.values,
        forbidden.start,
        forbidden.ids,
        vocabulary,
        BLOCK=LIST_BLOCK,
        launch=ROW_LAUNCH,
    )


@dataclass(frozen=True)
class AllowedIds:
    """The allowed set as kernels take it."""

    words: Tensor
    given: bool

    @classmethod
    def of(cls, batch: SamplingBatch, bits: Tensor) -> AllowedIds:
        return cls(bits if batch.allowed is None else batch.allowed, batch.allowed is not None)


def find_borders(bits: Tensor, batch: SamplingBatch, work: SamplingWorkspace, chunks_padded: int) -> None:
    """Distances of the filtered rows, and the borders of their top-k and top-p."""
    allowed = AllowedIds.of(batch, bits)
    rows, vocabulary = bits.shape
    grid = (rows, work.chunk_keys.shape[1])
    options = CHUNK_LAUNCH
    start(
        sampling_rows.store_distances,
        grid,
        bits,
        work.orders,
        allowed.words,
        work.kinds,
        work.chunk_keys,
        batch.temperature,
        vocabulary,
        allowed.words.shape[1],
        HAS_ALLOWED=allowed.given,
        CHUNK=work.chunk,
        CHUNKS=chunks_padded,
        launch=options,
    )
    start(filters.reset_borders, (rows,), work.borders, work.ties, launch=Launch(warps=1, stages=1))
    asked = (work.kinds, batch.top_k, batch.top_p, work.borders, work.ties, work.prefixes)
    for mode in (0, 1):
        for level in range(3):
            start(
                filters.add_weights,
                grid,
                work.orders,
                *asked,
                work.sums,
                vocabulary,
                LEVEL=level,
                MODE=mode,
                CHUNK=work.chunk,
                launch=options,
            )
            start(
                filters.next_digit,
                (rows,),
                *asked,
                work.needs,
                work.sums,
                vocabulary,
                LEVEL=level,
                MODE=mode,
                launch=ROW_LAUNCH,
            )
    start(
        filters.count_ties,
        grid,
        work.orders,
        work.kinds,
        work.borders,
        work.tie_counts,
        vocabulary,
        CHUNK=work.chunk,
        launch=options,
    )


def processed_logprobs(
    batch: SamplingBatch,
    work: SamplingWorkspace,
    tokens: Tensor,
    faults: Tensor,
    processed: Tensor,
    padded: int,
) -> None:
    """Fill `processed` float32 [rows, vocabulary]."""
    rows, vocabulary = processed.shape
    grid = (rows, work.chunk_keys.shape[1])
    state = (work.orders, work.kinds, work.borders, work.ties, work.tie_counts, batch.min_p, work.chunk_sums)
    options = CHUNK_LAUNCH
    start(filters.sum_survivors, grid, *state, vocabulary, CHUNK=work.chunk, CHUNKS=padded, launch=options)
    start(
        filters.write_processed,
        grid,
        *state,
        tokens,
        faults,
        processed,
        vocabulary,
        CHUNK=work.chunk,
        CHUNKS=padded,
        launch=options,
    )


def sample(
    logits: Tensor,
    batch: SamplingBatch,
    want_processed: bool = False,
    *,
    wants: Wants = Wants(),
    workspace: SamplingWorkspace | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> SampleResult:
    """Sampling clause over contiguous float32 logits [rows, vocabulary]; see `Operators.sample`.

    `wants` must name every path that a row asks for. `out`: int64 and uint8 [rows].
    """
    rows, vocabulary = check_tensor("logits", logits, (torch.float32,), (None, None)).shape
    check_settings(batch, rows, vocabulary)
    work = workspace or sampling_workspace(rows, vocabulary, logits.device)
    tokens = result("tokens", None if out is None else out[0], logits, torch.int64, (rows,))
    faults = result("faults", None if out is None else out[1], logits, torch.uint8, (rows,))
    processed = torch.empty_like(logits) if want_processed else None
    if rows == 0:
        return SampleResult(tokens, faults, processed)
    bits = logits.view(torch.int32)
    chunks = work.chunk_keys.shape[1]
    padded = int(triton.next_power_of_2(chunks))
    filtered = wants.filtered or want_processed
    start(
        sampling_rows.classify_rows,
        (rows,),
        work.kinds,
        work.bad,
        batch.top_k,
        batch.top_p,
        batch.min_p,
        batch.presence_penalty,
        batch.frequency_penalty,
        batch.repetition_penalty,
        batch.bias.start,
        batch.forbidden.start,
        batch.temperature,
        vocabulary,
        WANT_PROCESSED=want_processed,
        launch=Launch(warps=1, stages=1),
    )
    if wants.patched:
        patch(bits, batch, work)
    options = CHUNK_LAUNCH
    allowed = AllowedIds.of(batch, bits)
    start(
        sampling_rows.best_of_chunks,
        (rows, chunks),
        bits,
        work.orders,
        allowed.words,
        work.kinds,
        work.bad,
        work.chunk_keys,
        vocabulary,
        allowed.words.shape[1],
        HAS_ALLOWED=allowed.given,
        CHUNK=work.chunk,
        launch=options,
    )
    if filtered:
        find_borders(bits, batch, work, padded)
    shared = (
        bits,
        work.orders,
        allowed.words,
        work.kinds,
    )
    settings = (
        batch.temperature,
        batch.min_p,
        work.borders,
        work.ties,
        work.tie_counts,
        batch.seed,
        batch.position,
        batch.sample_index,
    )
    sizes = (vocabulary, allowed.words.shape[1])
    constants = {
        "WITH_FILTERS": filtered,
        "HAS_ALLOWED": allowed.given,
        "CHUNK": work.chunk,
        "CHUNKS": padded,
        "NVIDIA": on_nvidia(),
    }
    start(
        sampling_scores.scores_of_chunks,
        (rows, chunks),
        *shared,
        work.chunk_keys,
        work.chunk_scores,
        *settings,
        *sizes,
        launch=options,
        **constants,
    )
    start(
        sampling_scores.choose_tokens,
        (rows,),
        *shared,
        work.bad,
        work.chunk_keys,
        work.chunk_scores,
        *settings,
        tokens,
        faults,
        *sizes,
        chunks,
        launch=ROW_LAUNCH,
        **constants,
    )
    if processed is not None:
        processed_logprobs(batch, work, tokens, faults, processed, padded)
    return SampleResult(tokens, faults, processed)
