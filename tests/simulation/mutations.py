"""Bugs to plant, each of another kind. Every one is a patch that lasts as long as its context; the product has
no switch for any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import count
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
import torch

from samebits.cache import radix
from samebits.cache.pages import PagePool
from samebits.cache.radix import Node, PrefixCache
from samebits.engine import step
from samebits.engine.deadlines import Deadlines
from samebits.engine.engine import Engine
from samebits.engine.masks import RequestMasks
from samebits.engine.sampling_stage import SamplerTable
from samebits.numerics.batch import RaggedBatch
from samebits.schedule import sharing
from samebits.schedule.request import Request
from samebits.schedule.scheduler import Chunk, Scheduler
from samebits.schedule.sharing import PageSharing
from samebits.verify.simulation.fake_runner import FakeRunner

Mutation = Callable[[], AbstractContextManager[Any]]


def page_off_by_one() -> AbstractContextManager[Any]:
    """The first token of a page goes to the page before it."""
    original = step.ragged_batch

    def mutated(chunks: Sequence[Chunk], page_table: np.ndarray, page_tokens: int) -> RaggedBatch:
        batch = original(chunks, page_table, page_tokens)
        owner = np.repeat(np.arange(batch.requests), np.diff(batch.query_start.numpy()))
        positions = batch.positions.numpy()
        border = (positions > 0) & (positions % page_tokens == 0)
        slots = batch.slots.numpy().copy()
        slots[border] = batch.page_table.numpy()[owner, positions // page_tokens - 1][border] * page_tokens
        return replace(batch, slots=torch.from_numpy(slots))

    return patch.object(step, "ragged_batch", mutated)


def stale_reference_count() -> AbstractContextManager[Any]:
    """A request that takes over a cached page does not count as one of its holders."""

    def mutated(self: PrefixCache, path: Sequence[Node]) -> None:
        for node in path:
            self.evictable_pages -= node.users == 0
            node.users += 1

    return patch.object(PrefixCache, "enter", mutated)


def released_while_shared() -> AbstractContextManager[Any]:
    """A page is free when the last but one lets go; the counts are kept so that no check of them notices."""
    original = PagePool.release

    def mutated(self: PagePool, pages: Sequence[int]) -> None:
        pages = list(pages)
        original(self, pages)
        self._free.extend(page for page in pages if self._references[page] == 1)

    return patch.object(PagePool, "release", mutated)


def split_follows_chunk() -> AbstractContextManager[Any]:
    """What a row sees is summed in parts that begin where its chunk does."""
    original = FakeRunner.forward

    def mutated(self: FakeRunner, batch: RaggedBatch) -> torch.Tensor:
        hidden = original(self, batch)
        starts = batch.query_start.long()
        parts = batch.positions[starts[:-1]] % 4  # a chunk at a border of parts does no harm
        owner = torch.repeat_interleave(torch.arange(batch.requests), starts.diff())
        return hidden ^ parts[owner][:, None]

    return patch.object(FakeRunner, "forward", mutated)


def noise_keyed_by_step() -> AbstractContextManager[Any]:
    """The noise of a sample follows the number of the step."""
    original = SamplerTable.batch
    steps = count()

    def mutated(self: SamplerTable, rows: Any) -> Any:
        batch = original(self, rows)
        return replace(batch, position=torch.full_like(batch.position, next(steps)))

    return patch.object(SamplerTable, "batch", mutated)


def evicts_locked_page() -> AbstractContextManager[Any]:
    """The least recently used leaf is evicted although a request uses it again."""

    def mutated(entry: tuple[int, int, Node]) -> bool:
        return entry[2].attached and not entry[2].children

    return patch.object(radix, "_is_fresh", mutated)


def published_before_full() -> AbstractContextManager[Any]:
    """A page enters the prefix cache when its first token is there; its key says that all are."""
    original = PageSharing.publish

    def mutated(self: PageSharing, request: Request) -> None:
        settled, tokens = request.settled, request.tokens
        size = self.cache.page_tokens
        if request.settled % size and request.settled + size <= request.prompt_length:
            request.settled = -(-settled // size) * size
        original(self, request)
        request.settled, request.tokens = settled, tokens

    return patch.object(PageSharing, "publish", mutated)


def published_before_run() -> AbstractContextManager[Any]:
    """A page enters the prefix cache when its step is launched, not when it has run."""
    original = PageSharing.publish

    launch = Scheduler.launch

    def mutated(self: Scheduler, chunks: Sequence[Chunk]) -> None:
        launch(self, chunks)
        for request, end in [(chunk.request, chunk.end) for chunk in chunks]:
            settled = request.settled
            request.settled = min(end, len(request.tokens))
            original(self._sharing, request)
            request.settled = settled

    return patch.object(Scheduler, "launch", mutated)


def match_too_long() -> AbstractContextManager[Any]:
    """The last token may come from the cache too, though its logits are needed."""
    original = Request.reusable_tokens.fget
    return patch.object(Request, "reusable_tokens", property(lambda self: original(self) + 1))


def key_misses_token() -> AbstractContextManager[Any]:
    """Pages that differ in their last token only count as the same."""
    original = sharing.page_keys

    def mutated(*arguments: Any) -> list[bytes]:
        return [key[:-4] + bytes(4) for key in original(*arguments)]

    return patch.object(sharing, "page_keys", mutated)


def preemption_keeps_computed() -> AbstractContextManager[Any]:
    """A preempted request believes that what it had computed is still there."""
    original = PageSharing.enter

    def mutated(self: PageSharing, request: Request, path: list[Node]) -> None:
        original(self, request, path)
        if request.preemptions:
            request.computed = request.settled = max(request.computed, len(request.tokens) - 1)

    return patch.object(PageSharing, "enter", mutated)


def preemption_forgets_output() -> AbstractContextManager[Any]:
    """A preempted request samples its output again, and sends it again."""
    original = Scheduler.preempt

    def mutated(self: Scheduler, request: Request) -> None:
        if not request.unread:
            del request.tokens[request.prompt_length :]
        original(self, request)

    return patch.object(Scheduler, "preempt", mutated)


def history_lost_by_preemption() -> AbstractContextManager[Any]:
    """Penalties of a request that was preempted forget its first output token."""
    original = step.sampled_row

    def mutated(chunk: Chunk, masks: Any) -> Any:
        row = original(chunk, masks)
        if not chunk.request.preemptions:
            return row
        return msgspec.structs.replace(row, output_ids=row.output_ids[1:])

    return patch.object(step, "sampled_row", mutated)


def history_lacks_unread_token() -> AbstractContextManager[Any]:
    """Penalties do not see the token that the step before sampled, when the host has not read it yet."""
    return patch.object(step, "with_unread", lambda batch, rows, unread: batch)


def prompt_logprobs_skip_cached() -> AbstractContextManager[Any]:
    """Tokens from the cache are not computed afresh for their logprobs."""
    return patch.object(Request, "reusable_tokens", property(lambda self: len(self.tokens) - 1))


def sampler_row_of_another() -> AbstractContextManager[Any]:
    """A slot keeps the sampling parameters of the first request that had it."""

    original = Engine._load_sampler

    def mutated(self: Engine, request: Request) -> None:
        if self._slot_owner[request.slot] is None:
            original(self, request)

    return patch.object(Engine, "_load_sampler", mutated)


def waits_for_the_dead() -> AbstractContextManager[Any]:
    """A request goes on waiting for a page of one that was aborted; the check that would say so is blind."""

    def mutated(self: PageSharing, request: Request) -> None:
        if request.node is not None:
            self.cache.leave(request.node)
        request.node = None
        request.cache_depth = 0

    class Both:
        def __enter__(self) -> None:
            self.patches = [
                patch.object(PageSharing, "leave", mutated),
                patch.object(PageSharing, "check", lambda self, running: self.cache.check()),
            ]
            for one in self.patches:
                one.start()

        def __exit__(self, *details: object) -> None:
            for one in self.patches:
                one.stop()

    return Both()  # type: ignore[return-value]


def flush_leaves_paths() -> AbstractContextManager[Any]:
    """After a flush, running requests go on adding pages below nodes that nobody can find any more."""
    original = PrefixCache.flush

    def mutated(self: PrefixCache) -> int:
        roots = list(self._roots.values())
        dropped = original(self)
        for root in roots:
            root.attached = True
            for node in radix._below(root):
                node.attached = True
        return dropped

    return patch.object(PrefixCache, "flush", mutated)


def mask_one_token_old() -> AbstractContextManager[Any]:
    """The mask of a token is made before the grammar has seen the token before it."""

    def mutated(self: RequestMasks, token_id: int) -> None:
        self._awaited.pop(self._accepted, None)
        self._accepted += 1
        self._fulfil()
        self._matcher.accept(token_id)

    return patch.object(RequestMasks, "accept", mutated)


def held_row_forgotten() -> AbstractContextManager[Any]:
    """After a lost step a row whose mask had just come is still said to wait for it."""
    original = Engine._lose

    def mutated(self: Engine, steps: Any, cause: BaseException) -> Any:
        late = [held.chunk.request for one in steps for held in one.late]
        events = original(self, steps, cause)
        for request in late:
            request.held = True
        return events

    return patch.object(Engine, "_lose", mutated)


def deadline_takes_another() -> AbstractContextManager[Any]:
    """A request whose deadline passes takes the next one in the line of deadlines with it."""
    original = Deadlines.take_expired

    def mutated(self: Deadlines, now: float) -> list[Request]:
        expired = original(self, now)
        return expired + original(self, self._heap[0][0]) if expired and self._heap else expired

    return patch.object(Deadlines, "take_expired", mutated)


MUTATIONS: dict[str, Mutation] = {
    mutation.__name__: mutation
    for mutation in (
        page_off_by_one,
        stale_reference_count,
        released_while_shared,
        split_follows_chunk,
        noise_keyed_by_step,
        evicts_locked_page,
        published_before_full,
        published_before_run,
        match_too_long,
        key_misses_token,
        preemption_keeps_computed,
        preemption_forgets_output,
        history_lost_by_preemption,
        history_lacks_unread_token,
        prompt_logprobs_skip_cached,
        sampler_row_of_another,
        waits_for_the_dead,
        flush_leaves_paths,
        mask_one_token_old,
        held_row_forgotten,
        deadline_takes_another,
    )
}
