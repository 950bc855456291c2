"""Attention of few rows over long contexts for Hopper (sm_90), in which splits are claimed and the fold follows.

Written in Gluon. In every program one warp claims split after split and copies its keys and values into a ring of
shared memory, four warps consume them, and four fold. Whoever is free claims the next split, so that all programs end
together although multiprocessors do not get equal shares of the memory's rate. Which program computes a split's partial
changes no bit, and partials are folded in the clause's order, by the program that owns the row, as soon as they are
there.

*Claims.* Program p begins with claim p and then takes the next of a counter. Each program asks once in vain; the last
that does sets the counter to zero and moves on the epoch.

*Partials.* A partial is written in words of 64 bits, each a float32 and the launch's epoch, so every word says by
itself whether it is this launch's; no word is taken before it is there, and nothing has to be reset. A program that
folds waits only for splits that running programs have claimed or will claim, and its own warps go on claiming
meanwhile: so waiting ends, however many programs run at a time.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from samebits.numerics.gpu.attention_claims_fold import MAILS, follow, policy_of, put, receive, send
from samebits.numerics.gpu.attention_gluon import HIDDEN, finish, fold, fold_lanes
from samebits.numerics.gpu.attention_hopper import following
from samebits.numerics.gpu.attention_split_hopper import BLOCKS, ROWS, attend_split, copy_split, pages_of

CLAIM_WORDS = gl.constexpr(16)
"""As in `attention_claims`."""


@gluon.jit
def entry_of(table, claim, claims, KV_HEADS: gl.constexpr):
    """Where the table tells about a claim; about the last one where there is none."""
    return table + (1 + gl.maximum(gl.minimum(claim, claims - 1), 0) // KV_HEADS) * CLAIM_WORDS


@gluon.jit
def first_entry(table, KV_HEADS: gl.constexpr):
    """Where the table tells about this program's first claim; it is long enough if there is none."""
    return table + (1 + gl.program_id(0) // KV_HEADS) * CLAIM_WORDS


@gluon.jit
def copied(entry):
    """What a claim's entry says to who copies: (first split, splits claimed, request, last position, the pages of the
    first split's four key blocks)."""
    begin = gl.load(entry)
    taken = gl.load(entry + 1)
    request = gl.load(entry + 6)
    last = gl.load(entry + 7)
    page_0 = gl.load(entry + 8)
    page_1 = gl.load(entry + 9)
    page_2 = gl.load(entry + 10)
    page_3 = gl.load(entry + 11)
    return begin, taken, request, last, page_0, page_1, page_2, page_3


@gluon.jit
def next_claim(state, epoch, claims):
    """Claim what comes next."""
    programs = gl.num_programs(0)
    asked = gl.atomic_add(state, 1, sem="relaxed", scope="gpu")
    if asked == gl.maximum(claims, programs) - 1:
        gl.store(state, 0)
        gl.store(state + 1, epoch)
    return programs + asked


@gluon.jit
def produce(
    claim, claims, begin, taken, request, last, page_0, page_1, page_2, page_3, keys, values, table, state,
    page_table, table_width, ring, ready, free, mail, mailed, KV_HEADS: gl.constexpr, PAGE: gl.constexpr,
    KEYS: gl.constexpr, SPLIT: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Claim split after split, tell the consumers, and copy keys and values into the ring. The epoch, which the last
    to ask in vain moves on, is read and told to this program's other warps before this program asks first; its
    first copies do not wait for that."""
    group = 0
    phase = 1
    place = 0
    turn = 0
    epoch = gl.load(state + 1, volatile=True) + 1
    if claim >= claims:
        send(mail, mailed, MAILS, epoch)
        next_claim(state, epoch, claims)
    told = 0
    while claim < claims:
        kv_head = claim % KV_HEADS
        for split in range(begin, begin + taken):
            key = split * SPLIT
            for side in gl.static_range(2):
                mbarrier.wait(free.index(group), phase)
                copy_split(
                    keys if side == 0 else values, page_0, page_1, page_2, page_3, kv_head, key, last, ring, ready,
                    group, KV_HEADS, PAGE, KEYS,
                )  # fmt: skip
                group, phase = following(group, phase, STAGES)
            if told == 0:
                send(mail, mailed, MAILS, epoch)
            told += 1
            more = split + 1 < begin + taken
            page_0, page_1, page_2, page_3 = pages_of(
                page_table, table_width, request, key + SPLIT, last, more, KEYS, PAGE
            )
        claim = next_claim(state, epoch, claims)
        send(mail, mailed, place, claim)
        place, turn = following(place, turn, MAILS)
        begin, taken, request, last, page_0, page_1, page_2, page_3 = copied(
            entry_of(table, claim, claims, KV_HEADS)
        )


@gluon.jit
def query_places(first, count, kv_head, QUERY_HEADS: gl.constexpr, KV_HEADS: gl.constexpr, D: gl.constexpr):
    """Where the queries [ROWS, D] of a unit and head stand, and which of them exist."""
    GROUP: gl.constexpr = QUERY_HEADS // KV_HEADS
    flat: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    row = gl.arange(0, ROWS, gl.SliceLayout(1, flat))
    column = gl.arange(0, D, gl.SliceLayout(0, flat))
    line = ((first + row // GROUP).to(gl.int64) * QUERY_HEADS + kv_head * GROUP + row % GROUP) * D
    wanted = gl.expand_dims(row // GROUP < count, 1) & gl.expand_dims(column >= 0, 0)
    return gl.expand_dims(line, 1) + gl.expand_dims(column, 0), wanted


@gluon.jit
def queries_of(
    queries, first, count, kv_head, QUERY_HEADS: gl.constexpr, KV_HEADS: gl.constexpr, D: gl.constexpr
):
    """The queries [ROWS, D] of a unit and head; none are looked at where `count` is 0."""
    places, wanted = query_places(first, count, kv_head, QUERY_HEADS, KV_HEADS, D)
    return gl.load(queries + places, mask=wanted, other=0.0)


@gluon.jit
def claimed(
    entry, claim, claims, queries, positions, token, QUERY_HEADS: gl.constexpr, KV_HEADS: gl.constexpr, D: gl.constexpr
):  # fmt: skip
    """What a claim's entry says: (first split, splits claimed, splits of the unit, its first slot, first row, rows,
    last position), and the unit's queries and positions. There are no rows where there is no such claim."""
    begin = gl.load(entry)
    taken = gl.load(entry + 1)
    splits = gl.load(entry + 2)
    slot = gl.load(entry + 3)
    first = gl.load(entry + 4)
    count = gl.where(claim < claims, gl.load(entry + 5), 0)
    last = gl.load(entry + 7)
    tile = queries_of(queries, first, count, claim % KV_HEADS, QUERY_HEADS, KV_HEADS, D)
    position = gl.load(positions + first + token, mask=token < count, other=-1).to(gl.int32)
    return begin, taken, splits, slot, first, count, last, tile, position


@gluon.jit
def consume(
    claim, claims, queries, output, positions, table, tops, totals, accumulators, factor, q, p, ring, ready,
    free, mail, mailed, QUERY_HEADS: gl.constexpr, KV_HEADS: gl.constexpr, D: gl.constexpr, KEYS: gl.constexpr,
    SPLIT: gl.constexpr, STRIDE: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Compute every split that this program claims. What a claim needs besides keys and values is asked for while the
    one ahead is computed."""
    GROUP: gl.constexpr = QUERY_HEADS // KV_HEADS
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16])
    s_rows: gl.constexpr = gl.SliceLayout(0, s_layout)
    flat: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    token = gl.arange(0, ROWS, s_rows) // GROUP
    group = 0
    phase = 0
    place = 0
    turn = 0
    begin, taken, splits, slot, first, count, last, tile, position = claimed(
        first_entry(table, KV_HEADS), claim, claims, queries, positions, token, QUERY_HEADS, KV_HEADS, D
    )
    policy = policy_of(claims, STRIDE * (D + 2))
    epoch = receive(mail, mailed, MAILS, 0)
    while claim < claims:
        q.store(tile)
        fence_async_shared()
        gl.thread_barrier()
        kv_head = claim % KV_HEADS
        is_whole = taken == splits
        top = gl.full([ROWS], HIDDEN, gl.float32, s_rows)
        total = gl.zeros([ROWS], gl.float32, s_rows)
        acc = gl.permute(gl.zeros([D, ROWS], gl.float32, s_layout), (1, 0))
        a_row = gl.arange(0, ROWS, gl.SliceLayout(1, acc.type.layout))
        a_column = gl.arange(0, D, gl.SliceLayout(0, acc.type.layout))
        a_wanted = gl.expand_dims(a_row // GROUP < count, 1) & gl.expand_dims(a_column >= 0, 0)
        a_place = gl.expand_dims(a_row * D, 1) + gl.expand_dims(a_column, 0)
        s_row = gl.arange(0, ROWS, s_rows)
        next_one = claim
        n_begin = begin
        n_taken = taken
        n_splits = splits
        n_slot = slot
        n_first = first
        n_count = count
        n_last = last
        n_position = position
        for done in range(0, taken):
            if done == taken - 1:
                # The last split's copies are asked for, so the next claim is, too.
                next_one = receive(mail, mailed, place, turn)
                n_begin, n_taken, n_splits, n_slot, n_first, n_count, n_last, tile, n_position = claimed(
                    entry_of(table, next_one, claims, KV_HEADS), next_one, claims, queries, positions, token,
                    QUERY_HEADS, KV_HEADS, D,
                )  # fmt: skip
            one_top, one_lanes, one_acc, group, phase = attend_split(
                q, p, ring, ready, free, group, phase, (begin + done) * SPLIT, last, position, factor, D, KEYS,
                STAGES,
            )  # fmt: skip
            if is_whole:
                top, total, acc = fold(top, total, acc, one_top, one_lanes, one_acc, factor)
            else:
                one_total = gl.convert_layout(fold_lanes(one_lanes), s_rows)
                at = (slot + kv_head * splits + begin + done).to(gl.int64) * STRIDE
                put(tops + at + s_row, one_top, epoch, token < count, policy)
                put(totals + at + s_row, one_total, epoch, token < count, policy)
                put(accumulators + at * D + a_place, one_acc, epoch, a_wanted, policy)
        if is_whole:
            result = gl.convert_layout(finish(total, acc).to(output.dtype.element_ty), flat)
            places, wanted = query_places(first, count, kv_head, QUERY_HEADS, KV_HEADS, D)
            gl.store(output + places, result, mask=wanted)
        place, turn = following(place, turn, MAILS)
        claim = next_one
        begin = n_begin
        taken = n_taken
        splits = n_splits
        slot = n_slot
        first = n_first
        count = n_count
        last = n_last
        position = n_position


@gluon.jit
def attention_claims_hopper(
    queries, keys, values, output, positions, unit_first, unit_count, split_start, table, state, page_table,
    tops, totals, accumulators, units, table_width, factor, QUERY_HEADS: gl.constexpr,
    KV_HEADS: gl.constexpr, D: gl.constexpr, PAGE: gl.constexpr, KEYS: gl.constexpr, SPLIT: gl.constexpr,
    STRIDE: gl.constexpr, STAGES: gl.constexpr, TOGETHER: gl.constexpr, BESIDE: gl.constexpr, DEPENDENT: gl.constexpr,
):  # fmt: skip
    """Grid (programs,). `keys` and `values` are descriptors of [rows, D]; partials lie in tops and totals int64
    [capacity, STRIDE] and accumulators int64 [capacity, STRIDE, D]; `table` and `split_start` are what
    `attention_claims.plan_claims` wrote; state int32 [2]: the counter, zero between launches, and the epoch of
    the launch before. The ring holds STAGES times the keys or the values of a split."""
    if DEPENDENT:
        gl.inline_asm_elementwise(
            "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
        )
    # What the plan of a step wrote may be read before the wait.
    claim = gl.program_id(0)
    claims = gl.load(table)
    begin, taken, request, last, page_0, page_1, page_2, page_3 = copied(first_entry(table, KV_HEADS))
    act: gl.constexpr = keys.dtype
    ring = gl.allocate_shared_memory(act, [STAGES * BLOCKS, KEYS, D], keys.layout)
    q_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, D], act)
    p_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, KEYS], act)
    q = gl.allocate_shared_memory(act, [ROWS, D], q_layout)
    p = gl.allocate_shared_memory(act, [BLOCKS, ROWS, KEYS], p_layout)
    mail = gl.allocate_shared_memory(gl.int32, [MAILS + 1, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mailed = gl.allocate_shared_memory(gl.int64, [MAILS + 1, 1], mbarrier.MBarrierLayout())
    for group in gl.static_range(STAGES):
        mbarrier.init(ready.index(group), count=BLOCKS)
        mbarrier.init(free.index(group), count=1)
    for place in gl.static_range(MAILS + 1):
        mbarrier.init(mailed.index(place), count=1)
    fence_async_shared()
    if DEPENDENT:
        gl.inline_asm_elementwise(
            "griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
        )
    gl.warp_specialize(
        [
            (consume, (
                claim, claims, queries, output, positions, table, tops, totals, accumulators, factor, q, p,
                ring, ready, free, mail, mailed, QUERY_HEADS, KV_HEADS, D, KEYS, SPLIT, STRIDE, STAGES,
            )),
            (produce, (
                claim, claims, begin, taken, request, last, page_0, page_1, page_2, page_3, keys, values, table, state,
                page_table, table_width, ring, ready, free, mail, mailed, KV_HEADS, PAGE, KEYS, SPLIT, STAGES,
            )),
            (follow, (
                claims, mail, mailed, output, unit_first, unit_count, split_start, tops, totals, accumulators, units,
                factor, QUERY_HEADS, KV_HEADS, D, STRIDE, TOGETHER, BESIDE,
            )),
        ],
        [1, 4],
        [32, 216],
    )  # fmt: skip
