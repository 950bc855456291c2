"""Attention of decoding rows for Hopper (sm_90), in which runs of splits are claimed.

Written in Gluon. In every program one warp claims run after run (`attention_claims`) and copies keys and values of its
splits into a ring of shared memory, four warps consume them, and four fold the partials of pairs that are cut. Whoever
is free claims the next run, so that all programs end together although multiprocessors do not get equal shares of the
memory's rate. Which program computes a split changes no bit, and a pair's splits are folded in the clause's order: by
who claims a run, which goes on with the fold of the run before, or, where pairs are cut, by the program that owns the
row.

*Claims.* Program p begins with claim p and then takes the next of a counter. Each program asks once in vain; the last
that does sets the counter to zero and moves on the epoch.

*Ahead of the wait.* Keys and values that stood before this step, a unit's rows being all that its request has in it,
are written by no kernel that may still run; so a program's first copies do not wait for the kernel ahead.

*Words.* Folds and partials that others take are written in words of 64 bits, each a float32 and the launch's epoch, so
every word says by itself whether it is this launch's; none is taken before it is there, and nothing has to be reset.
Who waits for a run waits for an earlier claim, and programs work off theirs in ascending order, so the earliest that
is not done waits for nobody; who folds partials waits for splits that running programs have claimed or will claim,
while its own warps go on claiming. So waiting ends, as long as all programs run at a time, one a multiprocessor.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from samebits.numerics.gpu.attention_claims import CLAIM_WORDS, ENDS, IS_PARTIAL
from samebits.numerics.gpu.attention_claims_fold import (
    MAILS,
    follow,
    policy_of,
    put,
    receive,
    send,
    slot_of,
    take_up,
)
from samebits.numerics.gpu.attention_gluon import HIDDEN, finish, fold, fold_lanes
from samebits.numerics.gpu.attention_hopper import following
from samebits.numerics.gpu.attention_split_hopper import BLOCKS, ROWS, attend_split, copy_split, pages_of
from samebits.numerics.gpu.dependent_gluon import dependents_may_start, wait_for_the_kernel_ahead


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
    """What a claim's entry says to who copies: (first split, splits claimed, request, keys that stood before this step,
    last position, the pages of the first split's four key blocks)."""
    begin = gl.load(entry)
    taken = gl.load(entry + 1)
    count = gl.load(entry + 5)
    request = gl.load(entry + 6)
    last = gl.load(entry + 7)
    page_0 = gl.load(entry + 8)
    page_1 = gl.load(entry + 9)
    page_2 = gl.load(entry + 10)
    page_3 = gl.load(entry + 11)
    return begin, taken, request, last + 1 - count, last, page_0, page_1, page_2, page_3


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
def tell_epoch(state, mail, mailed, DEPENDENT: gl.constexpr):
    """Wait for the kernel ahead, and tell this program's other warps the launch's epoch."""
    wait_for_the_kernel_ahead(DEPENDENT)
    epoch = gl.load(state + 1, volatile=True) + 1
    send(mail, mailed, MAILS, epoch)
    return epoch


@gluon.jit
def produce(
    claim, claims, begin, taken, request, known, last, page_0, page_1, page_2, page_3, keys, values, key_pieces,
    value_pieces, table, state, page_table, table_width, ring, ready, free, mail, mailed, KV_HEADS: gl.constexpr,
    PAGE: gl.constexpr, KEYS: gl.constexpr, SPLIT: gl.constexpr, STAGES: gl.constexpr, DEPENDENT: gl.constexpr,
):  # fmt: skip
    """Claim split after split, tell the consumers, and copy keys and values into the ring. What the ring has room for
    is copied ahead of the wait for the kernel ahead, but for splits that hold a key that this step writes. The epoch,
    which the last to ask in vain moves on, is read and told to this program's other warps after that wait and before
    this program asks first."""
    group = 0
    phase = 1
    place = 0
    turn = 0
    epoch = 0
    copies = 0
    while claim < claims:
        kv_head = claim % KV_HEADS
        for split in range(begin, begin + taken):
            key = split * SPLIT
            if key + SPLIT > known:
                wait_for_the_kernel_ahead(DEPENDENT)
            for side in gl.static_range(2):
                if (epoch == 0) & (copies == STAGES):
                    epoch = tell_epoch(state, mail, mailed, DEPENDENT)
                mbarrier.wait(free.index(group), phase)
                copy_split(
                    keys if side == 0 else values, key_pieces if side == 0 else value_pieces, page_0, page_1, page_2,
                    page_3, kv_head, key, last, ring, ready, group, KV_HEADS, PAGE, KEYS,
                )  # fmt: skip
                group, phase = following(group, phase, STAGES)
                copies += 1
            more = split + 1 < begin + taken
            page_0, page_1, page_2, page_3 = pages_of(
                page_table, table_width, request, key + SPLIT, last, more, KEYS, PAGE
            )
        if epoch == 0:
            epoch = tell_epoch(state, mail, mailed, DEPENDENT)
        claim = next_claim(state, epoch, claims)
        send(mail, mailed, place, claim)
        place, turn = following(place, turn, MAILS)
        begin, taken, request, known, last, page_0, page_1, page_2, page_3 = copied(
            entry_of(table, claim, claims, KV_HEADS)
        )
    if epoch == 0:
        epoch = tell_epoch(state, mail, mailed, DEPENDENT)
        next_claim(state, epoch, claims)


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
def claimed(entry, claim, claims, positions, token):
    """What a claim's entry says: (first split, splits claimed, what becomes of their fold, place in the line of runs,
    first row, rows, last position), and the unit's positions. There are no rows where there is no such claim."""
    begin = gl.load(entry)
    taken = gl.load(entry + 1)
    fate = gl.load(entry + 2)
    line = gl.load(entry + 3)
    first = gl.load(entry + 4)
    count = gl.where(claim < claims, gl.load(entry + 5), 0)
    last = gl.load(entry + 7)
    position = gl.load(positions + first + token, mask=token < count, other=-1).to(gl.int32)
    return begin, taken, fate, line, first, count, last, position


@gluon.jit
def consume(
    claim, claims, queries, output, positions, table, tops, totals, accumulators, factor, q, p, ring, ready,
    free, mail, mailed, QUERY_HEADS: gl.constexpr, KV_HEADS: gl.constexpr, D: gl.constexpr, KEYS: gl.constexpr,
    SPLIT: gl.constexpr, STRIDE: gl.constexpr, STAGES: gl.constexpr, DEPENDENT: gl.constexpr,
):  # fmt: skip
    """Compute every run that this program claims, going on with the fold of the one before, and hand it on, or leave
    the partial of a split. What a claim needs besides keys and values is asked for while the one ahead is computed."""
    GROUP: gl.constexpr = QUERY_HEADS // KV_HEADS
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16])
    s_rows: gl.constexpr = gl.SliceLayout(0, s_layout)
    flat: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    token = gl.arange(0, ROWS, s_rows) // GROUP
    group = 0
    phase = 0
    place = 0
    turn = 0
    begin, taken, fate, line, first, count, last, position = claimed(
        first_entry(table, KV_HEADS), claim, claims, positions, token
    )
    policy = policy_of(claims, STRIDE * (D + 2))
    wait_for_the_kernel_ahead(DEPENDENT)
    tile = queries_of(queries, first, count, claim % KV_HEADS, QUERY_HEADS, KV_HEADS, D)
    epoch = receive(mail, mailed, MAILS, 0)
    while claim < claims:
        q.store(tile)
        fence_async_shared()
        gl.thread_barrier()
        kv_head = claim % KV_HEADS
        top = gl.full([ROWS], HIDDEN, gl.float32, s_rows)
        total = gl.zeros([ROWS], gl.float32, s_rows)
        acc = gl.permute(gl.zeros([D, ROWS], gl.float32, s_layout), (1, 0))
        a_row = gl.arange(0, ROWS, gl.SliceLayout(1, acc.type.layout))
        a_column = gl.arange(0, D, gl.SliceLayout(0, acc.type.layout))
        a_wanted = gl.expand_dims(a_row // GROUP < count, 1) & gl.expand_dims(a_column >= 0, 0)
        a_place = gl.expand_dims(a_row * D, 1) + gl.expand_dims(a_column, 0)
        s_row = gl.arange(0, ROWS, s_rows)
        if (begin > 0) & (fate != IS_PARTIAL):
            before = slot_of(line - 1, kv_head, claims, KV_HEADS).to(gl.int64) * STRIDE
            top, total, acc = take_up(
                tops + before + a_row, totals + before + a_row, accumulators + before * D + a_place, epoch,
                a_row // GROUP < count, a_wanted,
            )  # fmt: skip
            top = gl.convert_layout(top, s_rows)
            total = gl.convert_layout(total, s_rows)
        next_one = claim
        n_begin = begin
        n_taken = taken
        n_fate = fate
        n_line = line
        n_first = first
        n_count = count
        n_last = last
        n_position = position
        for done in range(0, taken):
            if done == taken - 1:
                # The last split's copies are asked for, so the next claim is, too.
                next_one = receive(mail, mailed, place, turn)
                n_begin, n_taken, n_fate, n_line, n_first, n_count, n_last, n_position = claimed(
                    entry_of(table, next_one, claims, KV_HEADS), next_one, claims, positions, token
                )
                tile = queries_of(queries, n_first, n_count, next_one % KV_HEADS, QUERY_HEADS, KV_HEADS, D)
            one_top, one_lanes, one_acc, group, phase = attend_split(
                q, p, ring, ready, free, group, phase, (begin + done) * SPLIT, last, position, factor, D, KEYS,
                STAGES,
            )  # fmt: skip
            if fate == IS_PARTIAL:
                top = one_top
                total = gl.convert_layout(fold_lanes(one_lanes), s_rows)
                acc = one_acc
            else:
                top, total, acc = fold(top, total, acc, one_top, one_lanes, one_acc, factor)
        if fate != ENDS:
            at = slot_of(line, kv_head, claims, KV_HEADS).to(gl.int64) * STRIDE
            put(tops + at + s_row, top, epoch, token < count, policy)
            put(totals + at + s_row, total, epoch, token < count, policy)
            put(accumulators + at * D + a_place, acc, epoch, a_wanted, policy)
        else:
            result = gl.convert_layout(finish(total, acc).to(output.dtype.element_ty), flat)
            places, wanted = query_places(first, count, kv_head, QUERY_HEADS, KV_HEADS, D)
            gl.store(output + places, result, mask=wanted)
        place, turn = following(place, turn, MAILS)
        claim = next_one
        begin = n_begin
        taken = n_taken
        fate = n_fate
        line = n_line
        first = n_first
        count = n_count
        last = n_last
        position = n_position


@gluon.jit
def attention_claims_hopper(
    queries, keys, values, key_pieces, value_pieces, output, positions, unit_first, unit_count, split_start, table,
    state, page_table, tops, totals, accumulators, units, table_width, factor, QUERY_HEADS: gl.constexpr,
    KV_HEADS: gl.constexpr, D: gl.constexpr, PAGE: gl.constexpr, KEYS: gl.constexpr, SPLIT: gl.constexpr,
    STRIDE: gl.constexpr, STAGES: gl.constexpr, TOGETHER: gl.constexpr, BESIDE: gl.constexpr,
    DEPENDENT: gl.constexpr,
):  # fmt: skip
    """Grid (programs,). `keys` and `values` are descriptors of [rows, D], read a key block at a time, `key_pieces` and
    `value_pieces` the same, read a piece at a time; partials lie in tops and totals int64
    [capacity, STRIDE] and accumulators int64 [capacity, STRIDE, D]; `table` and `split_start` are what
    `attention_claims.plan_claims` wrote; state int32 [2]: the counter, zero between launches, and the epoch of
    the launch before. The ring holds STAGES times the keys or the values of a split."""
    dependents_may_start(DEPENDENT)
    # What the plan of a step wrote may be read before the wait.
    claim = gl.program_id(0)
    claims = gl.load(table)
    begin, taken, request, known, last, page_0, page_1, page_2, page_3 = copied(first_entry(table, KV_HEADS))
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
    gl.warp_specialize(
        [
            (consume, (
                claim, claims, queries, output, positions, table, tops, totals, accumulators, factor, q, p,
                ring, ready, free, mail, mailed, QUERY_HEADS, KV_HEADS, D, KEYS, SPLIT, STRIDE, STAGES, DEPENDENT,
            )),
            (produce, (
                claim, claims, begin, taken, request, known, last, page_0, page_1, page_2, page_3, keys, values,
                key_pieces, value_pieces, table, state, page_table, table_width, ring, ready, free, mail, mailed,
                KV_HEADS, PAGE, KEYS, SPLIT, STAGES, DEPENDENT,
            )),
            (follow, (
                claims, table, mail, mailed, output, unit_first, unit_count, split_start, tops, totals, accumulators,
                units, factor, QUERY_HEADS, KV_HEADS, D, STRIDE, TOGETHER, BESIDE,
            )),
        ],
        [1, 4],
        [32, 232],
    )  # fmt: skip
