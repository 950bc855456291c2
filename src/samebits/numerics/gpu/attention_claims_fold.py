"""Folding the partials of claimed splits while the others still stream, in Gluon (`attention_claims_hopper`).

Partials are folded in ascending order of their splits, by the clause's rule, by the program that owns the row. A
partial is written in words of 64 bits, each a float32 and the launch's epoch, so a word says by itself whether it is
this launch's.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from samebits.numerics.gpu.attention_gluon import HIDDEN, finish_each

LANES = gl.constexpr(32)
LANE_BITS = gl.constexpr(5)
KEPT_WORDS = gl.constexpr(1 << 21)
"""So many words of partials may stay in the second-level cache: two thirds of it hold others."""
LAST_TOGETHER = gl.constexpr(16)
"""A row's last partials are folded so many at a time, at most."""
MAILS = gl.constexpr(4)
"""Claims that may be told and not yet heard of; the word behind them is the launch's epoch."""


@gluon.jit
def send(mail, mailed, place, word):
    """Tell a word to other warps, from a partition of one warp."""
    mail.index(place).store(gl.full([1], 0, gl.int32, gl.BlockedLayout([1], [32], [1], [0])) + word)
    gl.thread_barrier()
    mbarrier.arrive(mailed.index(place), count=1)


@gluon.jit
def receive(mail, mailed, place, turn):
    """A word that `send` told, in a partition of four warps."""
    mbarrier.wait(mailed.index(place), turn)
    return gl.max(mail.index(place).load(gl.BlockedLayout([1], [32], [4], [0])), axis=0)


@gluon.jit
def slot_of(line, kv_head, claims, KV_HEADS: gl.constexpr):
    """The slot of the run that stands at `line` in the line of all units' runs, which have a slot each, head after
    head."""
    return kv_head * (claims // KV_HEADS) + line


@gluon.jit
def policy_of(claims, WORDS: gl.constexpr):
    """How long the second-level cache shall keep partials of so many claims of WORDS words each: longest, but for many,
    which would leave no room to others. Written back to memory, a thirtieth of what is read, they make reading a
    twentieth slower."""
    kept = gl.inline_asm_elementwise(
        "createpolicy.fractional.L2::evict_last.b64 $0, 1.0;", "=l", [], dtype=gl.int64, is_pure=True, pack=1
    )  # fmt: skip
    plain = gl.inline_asm_elementwise(
        "createpolicy.fractional.L2::evict_normal.b64 $0, 1.0;", "=l", [], dtype=gl.int64, is_pure=True, pack=1
    )  # fmt: skip
    return gl.where(claims <= KEPT_WORDS // WORDS, kept, plain)


@gluon.jit
def put(places, values, epoch, wanted, policy):
    """Write float32 values with the launch's epoch where they are wanted."""
    words = (epoch.to(gl.int64) << 32) | (values.to(gl.int32, bitcast=True).to(gl.int64) & 0xFFFFFFFF)
    gl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $3, 0; @p st.relaxed.gpu.global.L2::cache_hint.b64 [$1], $2, $4; "
        "mov.b32 $0, 0; }",
        "=r,l,l,r,l", [places.to(gl.int64), words, wanted.to(gl.int32), policy], dtype=gl.int32, is_pure=False,
        pack=1,
    )  # fmt: skip


@gluon.jit
def floats(words):
    """The float32 of words."""
    return (words & 0xFFFFFFFF).to(gl.int32).to(gl.float32, bitcast=True)


@gluon.jit
def running_maximum(values, lane):
    """See `attention_fold.running_maximum`; along the second axis."""
    for step in gl.static_range(LANE_BITS):
        values = gl.maximum(values, gl.gather(values, gl.maximum(lane - (1 << step), 0), 1))
    return values


@gluon.jit
def wait_a_little():
    gl.inline_asm_elementwise("nanosleep.u32 40; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def asked(top_places, total_places, acc_places, epoch, known, wanted):
    """The words of a fold, as (tops, totals, accumulators), and whether one of those wanted is of another launch. Each
    thread looks at what it has itself: rows that several have could look different to them."""
    tops = gl.load(top_places, mask=known, other=0, volatile=True)
    totals = gl.load(total_places, mask=known, other=0, volatile=True)
    accs = gl.load(acc_places, mask=wanted, other=0, volatile=True)
    of_rows = ((tops >> 32) ^ epoch) | ((totals >> 32) ^ epoch)
    missing = ((accs >> 32) ^ epoch) | gl.expand_dims(of_rows, 1)
    missing = (gl.where(wanted, missing, 0) != 0).to(gl.int32)
    return tops, totals, accs, gl.max(gl.max(missing, axis=1), axis=0)


@gluon.jit
def take_up(top_places, total_places, acc_places, epoch, known, wanted):
    """The fold of a pair's run before, as (top, total, accumulator), when all of its words are there; rows that do not
    exist have empty ones. That run was claimed before, so somebody works on it. Places of rows lie as those of
    `acc_places` [ROWS, D] do."""
    tops, totals, accs, missing = asked(top_places, total_places, acc_places, epoch, known, wanted)
    while missing != 0:
        wait_a_little()
        tops, totals, accs, missing = asked(top_places, total_places, acc_places, epoch, known, wanted)
    return gl.where(known, floats(tops), HIDDEN), floats(totals), floats(accs)


@gluon.jit
def fold_group(
    tops, totals, places, line, top, total, acc, done, left, epoch, lane, factor, STRIDE: gl.constexpr,
    D: gl.constexpr, TOGETHER: gl.constexpr,
):  # fmt: skip
    """Fold the `left` partials from `done` on, at most TOGETHER, as soon as all of them are there: (top, total,
    accumulator, partials done). A group is looked for by its maxima and sums; if a word of its accumulators is not
    there yet, nothing is done."""
    wanted = line + (done + gl.minimum(lane, left - 1)) * STRIDE
    word_tops = gl.load(tops + wanted, volatile=True)
    word_totals = gl.load(totals + wanted, volatile=True)
    missing = ((word_tops >> 32) ^ epoch) | ((word_totals >> 32) ^ epoch)
    while gl.max(gl.max((missing != 0).to(gl.int32), axis=1), axis=0) != 0:
        wait_a_little()
        word_tops = gl.load(tops + wanted, volatile=True)
        word_totals = gl.load(totals + wanted, volatile=True)
        missing = ((word_tops >> 32) ^ epoch) | ((word_totals >> 32) ^ epoch)
    loaded = ()
    for one in gl.static_range(TOGETHER):
        word = gl.load(places + (done + gl.minimum(one, left - 1)) * (STRIDE * D), volatile=True)
        loaded = loaded + (word,)  # type: ignore[assignment]
    exists = lane < left
    after = gl.maximum(top, running_maximum(gl.where(exists, floats(word_tops), HIDDEN), lane))
    before = gl.where(lane == 0, top, gl.gather(after, gl.maximum(lane - 1, 0), 1))
    keep = gl.exp2((before - after) * factor)
    take = gl.where(exists, gl.exp2((floats(word_tops) - after) * factor), 0.0)
    part = gl.where(exists, floats(word_totals) * take, 0.0)
    new_total = total
    new_acc = acc
    missing = (loaded[0] >> 32) ^ epoch
    for one in gl.static_range(TOGETHER):
        which = lane * 0 + one
        of_keep = gl.gather(keep, which, 1)
        new_total = gl.fma(new_total, of_keep, gl.gather(part, which, 1))
        weighted = floats(loaded[one]) * gl.gather(take, which, 1)
        new_acc = gl.fma(new_acc, of_keep, gl.where(one < left, weighted, 0.0))
        missing = missing | ((loaded[one] >> 32) ^ epoch)
    if gl.max(gl.max((missing != 0).to(gl.int32), axis=1), axis=0) == 0:
        top = gl.gather(after, lane * 0 + (LANES - 1), 1)
        total = new_total
        acc = new_acc
        done += left
    return top, total, acc, done


@gluon.jit
def fold_rows(
    output, tops, totals, accumulators, epoch, first_row, first_slot, partials, first, count, kv_head, factor,
    QUERY_HEADS: gl.constexpr, KV_HEADS: gl.constexpr, D: gl.constexpr, STRIDE: gl.constexpr, TOGETHER: gl.constexpr,
    BESIDE: gl.constexpr,
):  # fmt: skip
    """Fold BESIDE rows of a pair from `first_row` on, TOGETHER partials at a time, but for the last few, of which
    little is left to do when they come. A slice, a part of a row's columns, lies in one warp alone, so that no two look
    at a word that changes: a lane has a column, and a partial's factors."""
    GROUP: gl.constexpr = QUERY_HEADS // KV_HEADS
    PARTS: gl.constexpr = D // LANES
    SLICES: gl.constexpr = BESIDE * PARTS
    LAST: gl.constexpr = LAST_TOGETHER if TOGETHER > LAST_TOGETHER else TOGETHER
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [1, 32], [4, 1], [1, 0])
    number = gl.arange(0, SLICES, gl.SliceLayout(1, layout))
    row = first_row + number // PARTS
    known = gl.minimum(row, count * GROUP - 1)
    lane = gl.expand_dims(gl.arange(0, LANES, gl.SliceLayout(0, layout)), 0) + gl.expand_dims(number * 0, 1)
    column = gl.expand_dims(number % PARTS * LANES, 1) + lane
    line = gl.expand_dims(first_slot.to(gl.int64) * STRIDE + known, 1)
    places = accumulators + line * D + column
    top = gl.full([SLICES, LANES], HIDDEN, gl.float32, layout)
    total = gl.zeros([SLICES, LANES], gl.float32, layout)
    acc = gl.zeros([SLICES, LANES], gl.float32, layout)
    done = 0
    if TOGETHER > LAST:
        while done < partials - LAST:
            left = gl.minimum(partials - LAST - done, TOGETHER)
            top, total, acc, done = fold_group(
                tops, totals, places, line, top, total, acc, done, left, epoch, lane, factor, STRIDE, D, TOGETHER,
            )  # fmt: skip
    while done < partials:
        left = gl.minimum(partials - done, LAST)
        top, total, acc, done = fold_group(
            tops, totals, places, line, top, total, acc, done, left, epoch, lane, factor, STRIDE, D, LAST,
        )  # fmt: skip
    line = ((first + row // GROUP).to(gl.int64) * QUERY_HEADS + kv_head * GROUP + row % GROUP) * D
    wanted = gl.expand_dims(row < count * GROUP, 1) & (lane >= 0)
    result = finish_each(total, acc).to(output.dtype.element_ty)
    gl.store(output + gl.expand_dims(line, 1) + column, result, mask=wanted)


@gluon.jit
def follow(
    claims, table, mail, mailed, output, unit_first, unit_count, split_start, tops, totals, accumulators, units, factor,
    QUERY_HEADS: gl.constexpr, KV_HEADS: gl.constexpr, D: gl.constexpr, STRIDE: gl.constexpr,
    TOGETHER: gl.constexpr, LEAST_BESIDE: gl.constexpr,
):  # fmt: skip
    """Fold the rows that this program owns, at least so many side by side that each of four warps has a slice."""
    GROUP: gl.constexpr = QUERY_HEADS // KV_HEADS
    BESIDE: gl.constexpr = LEAST_BESIDE if LEAST_BESIDE * D >= 4 * LANES else 4 * LANES // D
    EACH: gl.constexpr = (STRIDE + BESIDE - 1) // BESIDE
    epoch = receive(mail, mailed, MAILS, 0)
    is_cut = gl.load(table + 1) != 0
    for item in range(gl.program_id(0), units * KV_HEADS * EACH, gl.num_programs(0)):
        unit = item // (KV_HEADS * EACH)
        kv_head = item // EACH % KV_HEADS
        first_row = item % EACH * BESIDE
        begin = gl.load(split_start + unit)
        splits = gl.load(split_start + unit + 1) - begin
        first = gl.load(unit_first + unit)
        count = gl.load(unit_count + unit)
        if (splits > 1) & is_cut & (first_row < count * GROUP):
            fold_rows(
                output, tops, totals, accumulators, epoch, first_row, slot_of(begin, kv_head, claims, KV_HEADS), splits,
                first, count, kv_head, factor, QUERY_HEADS, KV_HEADS, D, STRIDE, TOGETHER, BESIDE,
            )  # fmt: skip
