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
from samebits.numerics.gpu.configuration import Launch, Start, on_nvidia, start

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

    @property
    def chunks(self) -> int:
        """of a row"""
        return self.chunk_keys.shape[1]

    @property
    def chunks_padded(self) -> int:
        """up to a power of two, as a program looks at all of them"""
        return int(triton.next_power_of_2(self.chunks))


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


@dataclass(frozen=True)
class Logits:
    """What the kernels read ids from: the logits, or the orders of patched rows, and the allowed set."""

    bits: Tensor
    """int32 [rows, vocabulary]"""
    allowed: Tensor | None
    work: SamplingWorkspace

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, chunks)"""
        return self.bits.shape[0], self.work.chunks

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.bits, self.work.orders, self._words, self.work.kinds

    @property
    def sizes(self) -> tuple[int, int]:
        """Of the vocabulary, and words of the allowed set."""
        return self.bits.shape[1], self._words.shape[1]

    @property
    def _words(self) -> Tensor:
        return self.bits if self.allowed is None else self.allowed


def classify(
    batch: SamplingBatch, work: SamplingWorkspace, vocabulary: int, want_processed: bool, start: Start
) -> None:
    """Which paths each row asks for."""
    start(
        sampling_rows.classify_rows,
        (batch.temperature.shape[0],),
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


def patch(logits: Logits, batch: SamplingBatch, start: Start) -> None:
    """Penalties, bias and masks of the rows that ask for them, into their orders."""
    bits, work = logits.bits, logits.work
    rows, vocabulary = bits.shape
    start(
        sampling_rows.clear_counts,
        logits.grid,
        work.counts,
        work.kinds,
        vocabulary,
        CHUNK=work.chunk,
        launch=CHUNK_LAUNCH,
    )
    prompt, output, bias, forbidden = batch.prompt, batch.output, batch.bias, batch.forbidden
    start(sampling_rows.count_tokens, (rows, LIST_PARTS), 
        work.counts, work.kinds, prompt.start, prompt.ids, output.start, output.ids, vocabulary, BLOCK=LIST_BLOCK,
        launch=CHUNK_LAUNCH,
    )  # fmt: skip
    start(
        sampling_rows.patch_orders,
        logits.grid,
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
        launch=CHUNK_LAUNCH,
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


def find_borders(logits: Logits, batch: SamplingBatch, start: Start) -> None:
    """Distances of the filtered rows, and the borders of their top-k and top-p."""
    work, (rows, _), (vocabulary, _) = logits.work, logits.grid, logits.sizes
    start(
        sampling_rows.store_distances,
        logits.grid,
        *logits.tensors,
        work.chunk_keys,
        batch.temperature,
        *logits.sizes,
        HAS_ALLOWED=logits.allowed is not None,
        CHUNK=work.chunk,
        CHUNKS=work.chunks_padded,
        launch=CHUNK_LAUNCH,
    )
    start(filters.reset_borders, (rows,), work.borders, work.ties, launch=Launch(warps=1, stages=1))
    asked = (work.kinds, batch.top_k, batch.top_p, work.borders, work.ties, work.prefixes)
    for mode in (0, 1):
        for level in range(3):
            start(
                filters.add_weights,
                logits.grid,
                work.orders,
                *asked,
                work.sums,
                vocabulary,
                LEVEL=level,
                MODE=mode,
                CHUNK=work.chunk,
                launch=CHUNK_LAUNCH,
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
        logits.grid,
        work.orders,
        work.kinds,
        work.borders,
        work.tie_counts,
        vocabulary,
        CHUNK=work.chunk,
        launch=CHUNK_LAUNCH,
    )


def choose(
    logits: Logits, batch: SamplingBatch, filtered: bool, tokens: Tensor, faults: Tensor, start: Start
) -> None:
    """Draw: the best rough score of each chunk, then the token. `filtered`: whether borders were found."""
    work = logits.work
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
    constants = {
        "WITH_FILTERS": filtered,
        "HAS_ALLOWED": logits.allowed is not None,
        "CHUNK": work.chunk,
        "CHUNKS": work.chunks_padded,
        "NVIDIA": on_nvidia(),
    }
    start(
        sampling_scores.scores_of_chunks,
        logits.grid,
        *logits.tensors,
        work.chunk_keys,
        work.chunk_scores,
        *settings,
        *logits.sizes,
        launch=CHUNK_LAUNCH,
        **constants,
    )
    start(
        sampling_scores.choose_tokens,
        logits.grid[:1],
        *logits.tensors,
        work.bad,
        work.chunk_keys,
        work.chunk_scores,
        *settings,
        tokens,
        faults,
        *logits.sizes,
        work.chunks,
        launch=ROW_LAUNCH,
        **constants,
    )


def processed_logprobs(
    batch: SamplingBatch,
    work: SamplingWorkspace,
    tokens: Tensor,
    faults: Tensor,
    processed: Tensor,
    start: Start,
) -> None:
    """Fill `processed` float32 [rows, vocabulary]."""
    rows, vocabulary = processed.shape
    state = (work.orders, work.kinds, work.borders, work.ties, work.tie_counts, batch.min_p, work.chunk_sums)
    constants = {"CHUNK": work.chunk, "CHUNKS": work.chunks_padded}
    grid = (rows, work.chunks)
    start(filters.sum_survivors, grid, *state, vocabulary, launch=CHUNK_LAUNCH, **constants)
    start(
        filters.write_processed,
        grid,
        *state,
        tokens,
        faults,
        processed,
        vocabulary,
        launch=CHUNK_LAUNCH,
        **constants,
    )


def sample(
    logits: Tensor,
    batch: SamplingBatch,
    want_processed: bool = False,
    *,
    wants: Wants = Wants(),
    workspace: SamplingWorkspace | None = None,
    out: tuple[Tensor, Tensor] | None = None,
    start: Start = start,
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
    classify(batch, work, vocabulary, want_processed, start)
    read = Logits(logits.view(torch.int32), batch.allowed, work)
    if wants.patched:
        patch(read, batch, start)
    start(
        sampling_rows.best_of_chunks,
        read.grid,
        *read.tensors,
        work.bad,
        work.chunk_keys,
        *read.sizes,
        HAS_ALLOWED=batch.allowed is not None,
        CHUNK=work.chunk,
        launch=CHUNK_LAUNCH,
    )
    filtered = wants.filtered or want_processed
    if filtered:
        find_borders(read, batch, start)
    choose(read, batch, filtered, tokens, faults, start)
    if processed is not None:
        processed_logprobs(batch, work, tokens, faults, processed, start)
    return SampleResult(tokens, faults, processed)
