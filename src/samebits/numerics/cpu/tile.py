"""The register tile: a small matrix product whose every element is one chain of fused multiply-adds.

    c[m, n] = (c[m, n] or +0), then for k ascending: c[m, n] = fma(a[m, k], b[k, n], c[m, n])

The columns come in panels of sixteen; b holds `panel_stride` elements between panels and `row_stride` between
successive k. Tile height, number of panels and vector width do not enter any element's arithmetic.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import signature
from numba.extending import intrinsic

from samebits.numerics.cpu.lanes import (
    FLOAT,
    I64,
    LANES,
    STORAGE_ELEMENT,
    VECTOR,
    element_pointer,
    emit_fma,
    emit_load,
    emit_load_weights,
    emit_splat,
)


def _constant(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def _emit_tile(builder: ir.IRBuilder, args: list[ir.Value], rows: int, panels: int, storage: str) -> None:
    a, a_stride, b, panel_stride, row_stride, c, c_stride, depth, accumulate = args
    element = STORAGE_ELEMENT[storage]
    a_rows = [element_pointer(builder, a, builder.mul(a_stride, _constant(m)), FLOAT) for m in range(rows)]
    b_base = element_pointer(builder, b, None, element)
    b_panels = [
        builder.gep(b_base, [builder.mul(panel_stride, _constant(p))], source_etype=element)
        for p in range(panels)
    ]
    c_base = element_pointer(builder, c, None, FLOAT)
    c_tiles = []
    for m in range(rows):
        for p in range(panels):
            offset = builder.add(builder.mul(c_stride, _constant(m)), _constant(p * LANES))
            c_tiles.append(builder.gep(c_base, [offset], source_etype=FLOAT))

    entry = builder.block
    reload_block = builder.append_basic_block("tile.reload")
    loop_head = builder.append_basic_block("tile.head")
    loop_body = builder.append_basic_block("tile.body")
    done = builder.append_basic_block("tile.done")
    builder.cbranch(builder.icmp_signed("!=", accumulate, _constant(0)), reload_block, loop_head)
    builder.position_at_end(reload_block)
    loaded = [emit_load(builder, pointer, VECTOR, 4) for pointer in c_tiles]
    builder.branch(loop_head)

    builder.position_at_end(loop_head)
    zero = ir.Constant(VECTOR, [0.0] * LANES)
    k = builder.phi(I64)
    k.add_incoming(_constant(0), entry)
    k.add_incoming(_constant(0), reload_block)
    sums = []
    for start in loaded:
        value = builder.phi(VECTOR)
        value.add_incoming(zero, entry)
        value.add_incoming(start, reload_block)
        sums.append(value)
    builder.cbranch(builder.icmp_signed("<", k, depth), loop_body, done)

    builder.position_at_end(loop_body)
    k_offset = builder.mul(k, row_stride)
    weights = []
    for base in b_panels:
        pointer = builder.gep(base, [k_offset], source_etype=element)
        weights.append(emit_load_weights(builder, pointer, storage, LANES))
    next_sums = []
    for m in range(rows):
        scalar = emit_load(builder, builder.gep(a_rows[m], [k], source_etype=FLOAT), FLOAT, 4)
        lanes = emit_splat(builder, scalar)
        for p in range(panels):
            next_sums.append(emit_fma(builder, lanes, weights[p], sums[m * panels + p]))
    next_k = builder.add(k, _constant(1))
    for value, following in zip(sums, next_sums, strict=True):
        value.add_incoming(following, builder.block)
    k.add_incoming(next_k, builder.block)
    builder.branch(loop_head)

    builder.position_at_end(done)
    for value, pointer in zip(sums, c_tiles, strict=True):
        builder.store(value, pointer).align = 4


def make_tile(storage: str, panels: int, min_rows: int, max_rows: int):
    """An intrinsic tile(rows, a, a_stride, b, panel_stride, row_stride, c, c_stride, depth, accumulate).

    `rows` is `min_rows` to `max_rows`, `panels` columns of sixteen are computed; a and c are float32, b is of the
    storage dtype. All arguments are int64: addresses in bytes, strides in elements.
    """

    @intrinsic
    def tile(typingctx, rows, a, a_stride, b, panel_stride, row_stride, c, c_stride, depth, accumulate):
        def codegen(context, builder, sig, args):
            rows, *rest = args
            end = builder.append_basic_block("tile.end")
            switch = builder.switch(rows, end)
            for height in range(min_rows, max_rows + 1):
                case = builder.append_basic_block(f"tile.rows{height}")
                switch.add_case(_constant(height), case)
                builder.position_at_end(case)
                _emit_tile(builder, rest, height, panels, storage)
                builder.branch(end)
            builder.position_at_end(end)
            return context.get_dummy_value()

        return signature(types.void, *[types.int64] * 10), codegen

    return tile
