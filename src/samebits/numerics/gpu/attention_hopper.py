"""Attention of whole tiles for Hopper (sm_90): one warp copies key blocks, two groups of four warps consume them.

Written in Gluon, Triton's language below Triton: layouts, copies, barriers and tensor-core products in flight are
named here, not inferred. What is computed for one row is the clause, block by block, as in `attention_core`.

A program walks tiles of 2 * GROUP_ROWS rows. Its producer warp copies keys and values of one key block after another
into a ring of shared memory; each consumer group owns GROUP_ROWS rows, with its own state in registers. A consumer
issues the scores of the next key block and the value product of this one together, hands the tensor cores to the
other group, and does its exponentials while that one's products run.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
)

from samebits.numerics.gpu.attention_consumers import GROUP_ROWS, consume, following, work_of


@gluon.jit
def wait_ahead(DEPENDENT: gl.constexpr):
    """See `dependent.wait_ahead`."""
    if DEPENDENT:
        gl.inline_asm_elementwise(
            "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
        )
        gl.inline_asm_elementwise(
            "griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
        )


@gluon.jit
def produce(
    queries,
    keys,
    values,
    positions,
    tile_first,
    tile_count,
    tile_request,
    page_table,
    table_width,
    tiles,
    q_ring,
    k_ring,
    v_ring,
    q_ready,
    q_free,
    k_ready,
    k_free,
    v_ready,
    v_free,
    COPIED: gl.constexpr,
    QUERY_HEADS: gl.constexpr,
    KV_HEADS: gl.constexpr,
    PAGE: gl.constexpr,
    KEYS: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Copy the queries, with COPIED, and the key blocks of every tile of this program into the rings."""
    group: gl.constexpr = QUERY_HEADS // KV_HEADS
    slot = 0
    phase = 1
    q_slot = 0
    q_phase = 1
    for begin in range(0, tiles * KV_HEADS, gl.num_programs(0)):
        tile, kv_head = work_of(begin, tiles, KV_HEADS)
        count = gl.load(tile_count + tile, mask=tile < tiles, other=0)
        if count > 0:
            request = gl.load(tile_request + tile)
            first = gl.load(tile_first + tile)
            last = gl.load(positions + first + count - 1).to(gl.int32)
            if COPIED:
                mbarrier.wait(q_free.index(q_slot), q_phase)
                mbarrier.expect(q_ready.index(q_slot), 2 * queries.block_type.nbytes)
                for which in gl.static_range(2):
                    row = first + which * (GROUP_ROWS // group)
                    place = q_ring.index(2 * q_slot + which)
                    tma.async_copy_global_to_shared(
                        queries, [row, kv_head * group, 0], q_ready.index(q_slot), place
                    )
                q_phase = q_phase ^ q_slot
                q_slot = q_slot ^ 1
            pages = page_table + request.to(gl.int64) * table_width
            for key in range(0, last + 1, KEYS):
                page = gl.load(pages + key // PAGE)
                row = (page * KV_HEADS + kv_head) * PAGE + key % PAGE
                mbarrier.wait(k_free.index(slot), phase)
                mbarrier.expect(k_ready.index(slot), keys.block_type.nbytes)
                tma.async_copy_global_to_shared(keys, [row, 0], k_ready.index(slot), k_ring.index(slot))
                mbarrier.wait(v_free.index(slot), phase)
                mbarrier.expect(v_ready.index(slot), values.block_type.nbytes)
                tma.async_copy_global_to_shared(values, [row, 0], v_ready.index(slot), v_ring.index(slot))
                slot, phase = following(slot, phase, STAGES)


@gluon.jit
def attention_hopper(
    queries,
    keys,
    values,
    output,
    positions,
    tile_first,
    tile_count,
    tile_request,
    page_table,
    table_width,
    tiles,
    factor,
    QUERY_HEADS: gl.constexpr,
    KV_HEADS: gl.constexpr,
    D: gl.constexpr,
    PAGE: gl.constexpr,
    KEYS: gl.constexpr,
    SPLIT: gl.constexpr,
    STAGES: gl.constexpr,
    COPIED: gl.constexpr,
    DEPENDENT: gl.constexpr,
):
    """Grid (programs,), any number. Tile t is the batch rows tile_first[t] .. + tile_count[t] - 1, at most
    2 * GROUP_ROWS div group of them, of the request tile_request[t]."""
    wait_ahead(DEPENDENT)
    act: gl.constexpr = keys.dtype
    k_ring = gl.allocate_shared_memory(act, [STAGES, KEYS, D], keys.layout)
    v_ring = gl.allocate_shared_memory(act, [STAGES, KEYS, D], values.layout)
    group: gl.constexpr = QUERY_HEADS // KV_HEADS
    if COPIED:
        q_ring = gl.allocate_shared_memory(act, [4, GROUP_ROWS // group, group, D], queries.layout)
    else:
        q_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([GROUP_ROWS, D], act)
        q_ring = gl.allocate_shared_memory(act, [2, GROUP_ROWS, D], q_layout)
    q_ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    q_free = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(stage), count=1)
        mbarrier.init(v_ready.index(stage), count=1)
        mbarrier.init(k_free.index(stage), count=2)
        mbarrier.init(v_free.index(stage), count=2)
    for which in gl.static_range(2):
        mbarrier.init(q_ready.index(which), count=1)
        mbarrier.init(q_free.index(which), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (consume, (
                queries, output, positions, tile_first, tile_count, tiles, factor, q_ring, k_ring, v_ring, q_ready,
                q_free, k_ready, k_free, v_ready, v_free, 0, COPIED, QUERY_HEADS, KV_HEADS, D,
                KEYS, SPLIT, STAGES,
            )),
            (consume, (
                queries, output, positions, tile_first, tile_count, tiles, factor, q_ring, k_ring, v_ring, q_ready,
                q_free, k_ready, k_free, v_ready, v_free, 1, COPIED, QUERY_HEADS, KV_HEADS, D,
                KEYS, SPLIT, STAGES,
            )),
            (produce, (
                queries, keys, values, positions, tile_first, tile_count, tile_request, page_table, table_width, tiles,
                q_ring, k_ring, v_ring, q_ready, q_free, k_ready, k_free, v_ready, v_free, COPIED, QUERY_HEADS,
                KV_HEADS, PAGE, KEYS, STAGES,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
