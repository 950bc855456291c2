"""Wrong GEMM kernels, each of which the prover must reject.

Not among them: the first two atoms swapped, for the sum of two does not depend on their order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from samebits.numerics.gpu.gemm_candidates import unit_of
from samebits.numerics.gpu.gemm_operator import reference_tile
from samebits.numerics.gpu.gemm_problem import ATOM, GemmProblem
from samebits.numerics.gpu.launch import KernelSource, blocks, load, pointer
from samebits.numerics.gpu.prover import Candidate, Tensors

RIGHT, SPLIT, SWAPPED, SWAPPED_EARLY, REVERSED, HALVES, DROPPED, ROUNDED, LEAKING, SHIFTED = range(10)
MUTANTS = {
    "two-way split of K": SPLIT,
    "last two atoms swapped": SWAPPED,
    "second and third atom swapped": SWAPPED_EARLY,
    "reversed chain": REVERSED,
    "half atoms": HALVES,
    "dropped tail": DROPPED,
    "accumulation in the activation type": ROUNDED,
    "a neighbour's row times zero": LEAKING,
    "rows stored one place on": SHIFTED,
}


@triton.jit
def mutant_gemm(
    x,
    weight,
    out,
    rows,
    column_units,
    depth_units,
    COLUMN_UNIT: tl.constexpr,
    DEPTH_UNIT: tl.constexpr,
    TILE: tl.constexpr,
    ATOM: tl.constexpr,
    MUTANT: tl.constexpr,
):
    columns = column_units * COLUMN_UNIT
    depth = depth_units * DEPTH_UNIT
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    k = tl.arange(0, ATOM)
    atoms = tl.cdiv(depth, ATOM)
    total = tl.zeros((TILE, TILE), tl.float32)
    first_half = tl.zeros((TILE, TILE), tl.float32)
    for step in range(0, atoms):
        atom = step
        if MUTANT == 2:
            atom = tl.where(step == atoms - 2, atoms - 1, tl.where(step == atoms - 1, atoms - 2, step))
        if MUTANT == 3:
            atom = tl.where(step == 1, 2, tl.where(step == 2, 1, step))
        if MUTANT == 4:
            atom = atoms - 1 - step
        start = atom * ATOM
        inside = start + k < depth
        if MUTANT == 6:
            inside = inside & (step < atoms - 1)
        left = tl.load(
            x + row[:, None] * depth + (start + k)[None, :],
            mask=(row < rows)[:, None] & inside[None, :],
            other=0.0,
        )
        right = tl.load(
            weight + column[:, None] * depth + (start + k)[None, :],
            mask=(column < columns)[:, None] & inside[None, :],
            other=0.0,
        )
        if MUTANT == 1 and step == atoms // 2:
            first_half = total
            total = tl.zeros((TILE, TILE), tl.float32)
        if MUTANT == 5:
            low = (k < ATOM // 2)[None, :]
            total = tl.dot(tl.where(low, left, 0.0), right.T, total, input_precision="ieee")
            total = tl.dot(tl.where(low, 0.0, left), right.T, total, input_precision="ieee")
        else:
            total = tl.dot(left, right.T, total, input_precision="ieee")
        if MUTANT == 7:
            total = total.to(x.dtype.element_ty).to(tl.float32)
        if MUTANT == 8:
            next_row = tl.minimum(row + 1, rows - 1)
            neighbour = tl.load(
                x + next_row[:, None] * depth + (start + k)[None, :],
                mask=(row < rows)[:, None] & inside[None, :],
                other=0.0,
            )
            total += tl.sum(neighbour.to(tl.float32) * 0.0, axis=1)[:, None]
    if MUTANT == 1:
        total = first_half + total
    place = row
    if MUTANT == 9:
        place = (row + 1) % rows
    tl.store(
        out + place[:, None] * columns + column[None, :],
        total.to(out.dtype.element_ty),
        mask=(row < rows)[:, None] & (column < columns)[None, :],
    )


def mutant_candidate(problem: GemmProblem, mutant: int) -> Candidate:
    """A candidate that does one thing wrong, or nothing (`RIGHT`).

    The tile is the reference's, for the interpreter's atoms (products by numpy) follow the tile.
    """
    tile = reference_tile(problem)
    act = pointer(problem.act)
    units = (unit_of(problem.columns), unit_of(problem.depth))
    source = KernelSource(
        mutant_gemm,
        (act, act, pointer(problem.out), "i32", "i32", "i32"),
        (*units, tile, ATOM, mutant),
        warps=4,
        stages=1,
    )
    kernel = load(source)

    def run(inputs: Tensors, outputs: Tensors) -> None:
        x, weight = inputs
        rows = x.shape[0]
        grid = (blocks(rows, tile), blocks(problem.columns, tile), 1)
        lengths = (rows, problem.columns // units[0], problem.depth // units[1])
        kernel.launch(grid, x, weight, outputs[0], *lengths)

    return Candidate(f"mutant {mutant}", kernel.digest, run)
