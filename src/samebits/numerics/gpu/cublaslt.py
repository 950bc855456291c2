"""cuBLASLt through its C interface: a GEMM algorithm is asked for once, kept by its own bytes, and called by them.

`torch.mm` leaves the choice to a heuristic that may choose again: with another row count, alignment or workspace.
Here the heuristic only proposes. Proposals that split K or reduce in any scheme are dropped, the rest are
candidates like any other, and what was proven is what is called. No algorithm gets a workspace, so calls on
several streams share nothing.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import byref, c_float, c_int, c_int32, c_size_t, c_uint16, c_uint32, c_uint64, c_void_p, sizeof
from dataclasses import dataclass

import torch
from torch import Tensor

from samebits.errors import NumericsError
from samebits.numerics.gpu.gemm_problem import GemmProblem
from samebits.numerics.gpu.launch import ALIGNMENT

DATA_TYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 14}
COMPUTE_FLOAT32 = 68
TRANSPOSE = 1
DESCRIPTION_TRANSPOSE_A, DESCRIPTION_EPILOGUE, DESCRIPTION_BIAS_POINTER = 3, 7, 8
EPILOGUE_BIAS = 4
PREFERENCE_WORKSPACE, PREFERENCE_REDUCTIONS = 1, 3
ALGORITHM_TILE, ALGORITHM_SPLIT_K, ALGORITHM_REDUCTION, ALGORITHM_SWIZZLE = 1, 2, 3, 4
ALGORITHM_OPTION, ALGORITHM_CLUSTER = 5, 8
LEAST_ALIGNMENT = range(5, 9)
"""Preferences: least alignment of A, B, C and D."""


class Algorithm(ctypes.Structure):
    """cublasLtMatmulAlgo_t: opaque, and valid in every process with the same library version."""

    _fields_ = [("data", c_uint64 * 8)]

    @property
    def text(self) -> str:
        return bytes(self).hex()


class _Proposal(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = [
        ("algorithm", Algorithm),
        ("workspace", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    ]


@functools.cache
def library() -> ctypes.CDLL:
    """The cuBLASLt that torch itself has loaded. Raises `NumericsError` where there is none."""
    if torch.version.cuda is None:
        raise NumericsError("this torch was built without CUDA, so there is no cuBLASLt")
    torch.cuda.current_blas_handle()
    name = f"libcublasLt.so.{torch.version.cuda.split('.')[0]}"
    try:
        found = ctypes.CDLL(name)
    except OSError as error:
        raise NumericsError(
            f"cannot open {name}, which torch's cuBLAS package should bring: {error}"
        ) from error
    found.cublasLtGetVersion.restype = c_size_t
    return found


def version() -> str:
    return str(library().cublasLtGetVersion())


def _call(function: str, *arguments: object) -> None:
    status = getattr(library(), function)(*arguments)
    if status:
        raise NumericsError(f"{function} returned status {status}")


@functools.cache
def _handle(device: int) -> c_void_p:
    handle = c_void_p()
    with torch.cuda.device(device):
        _call("cublasLtCreate", byref(handle))
    return handle


def _set(function: str, target: c_void_p, attribute: int, value: ctypes._SimpleCData) -> None:
    _call(function, target, c_int(attribute), byref(value), c_size_t(sizeof(value)))


def _layout(kind: int, height: int, width: int) -> c_void_p:
    """A column-major matrix without gaps."""
    layout = c_void_p()
    _call(
        "cublasLtMatrixLayoutCreate",
        byref(layout),
        c_int(kind),
        c_uint64(height),
        c_uint64(width),
        ctypes.c_int64(height),
    )
    return layout


@dataclass(frozen=True)
class Matmul:
    """One product as the library sees it: out^T [columns, rows] = weight [columns, depth] x^T [depth, rows], all
    column-major, which is our row-major read the other way round."""

    problem: GemmProblem
    rows: int
    description: c_void_p
    weight: c_void_p
    x: c_void_p
    out: c_void_p

    def proposals(self, count: int) -> list[Algorithm]:
        """Up to `count` algorithms that do not split K, the library's own favourite first."""
        preference = c_void_p()
        _call("cublasLtMatmulPreferenceCreate", byref(preference))
        function = "cublasLtMatmulPreferenceSetAttribute"
        _set(function, preference, PREFERENCE_WORKSPACE, c_uint64(0))
        _set(function, preference, PREFERENCE_REDUCTIONS, c_uint32(0))
        for attribute in LEAST_ALIGNMENT:
            _set(function, preference, attribute, c_uint32(ALIGNMENT))
        results = (_Proposal * (4 * count))()
        found = c_int(0)
        status = library().cublasLtMatmulAlgoGetHeuristic(
            _handle(torch.cuda.current_device()), self.description, self.weight, self.x, self.out, self.out,
            preference, c_int(4 * count), results, byref(found),
        )  # fmt: skip
        library().cublasLtMatmulPreferenceDestroy(preference)
        if status:
            return []
        kept = [result.algorithm for result in results[: found.value] if not result.state]
        return [algorithm for algorithm in kept if not splits(algorithm)][:count]

    def arranged(self, algorithm: Algorithm, tile: int, option: int, cluster: int) -> Algorithm | None:
        """The same with another tile (a cublasLtMatmulTile_t), option and cluster (a cublasLtClusterShape_t), tiles in
        order; None where the library has no such kernel, or one that needs memory of its own or splits K."""
        found = algorithm_of(algorithm.text)
        for attribute, value in (
            (ALGORITHM_TILE, c_uint32(tile)),
            (ALGORITHM_OPTION, c_uint32(option)),
            (ALGORITHM_CLUSTER, c_uint16(cluster)),
            (ALGORITHM_SWIZZLE, c_uint32(0)),
        ):
            if library().cublasLtMatmulAlgoConfigSetAttribute(
                byref(found), c_int(attribute), byref(value), c_size_t(sizeof(value))
            ):
                return None
        result = _Proposal()
        status = library().cublasLtMatmulAlgoCheck(
            _handle(torch.cuda.current_device()), self.description, self.weight, self.x, self.out, self.out,
            byref(found), byref(result),
        )  # fmt: skip
        return None if status or result.state or result.workspace or splits(found) else found

    def run(
        self,
        algorithm: Algorithm,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        out: Tensor,
        onto: bool = False,
    ) -> None:
        """Launch on the current stream. `onto`: the product is added to what `out` holds."""
        tensors = (x, weight, out) if bias is None else (x, weight, out, bias)
        if any(tensor.data_ptr() % ALIGNMENT for tensor in tensors):
            raise NumericsError(f"cuBLASLt: every tensor of a product must start at {ALIGNMENT} bytes")
        if bias is not None:
            function = "cublasLtMatmulDescSetAttribute"
            _set(function, self.description, DESCRIPTION_BIAS_POINTER, c_void_p(bias.data_ptr()))
        status = library().cublasLtMatmul(
            _handle(out.device.index), self.description, _ONE, c_void_p(weight.data_ptr()), self.weight,
            c_void_p(x.data_ptr()), self.x, _ONE if onto else _ZERO, c_void_p(out.data_ptr()), self.out,
            c_void_p(out.data_ptr()), self.out, byref(algorithm), None, c_size_t(0),
            c_void_p(torch.cuda.current_stream().cuda_stream),
        )  # fmt: skip
        if status:
            raise NumericsError(
                f"cublasLtMatmul returned status {status} for {self.problem.key} at {self.rows} rows"
            )


_ONE, _ZERO = byref(c_float(1.0)), byref(c_float(0.0))


@functools.cache
def matmul(problem: GemmProblem, rows: int) -> Matmul:
    """Descriptions of one product; they live as long as the process."""
    act, out = DATA_TYPES[problem.act], DATA_TYPES[problem.out]
    description = c_void_p()
    _call(
        "cublasLtMatmulDescCreate",
        byref(description),
        c_int(COMPUTE_FLOAT32),
        c_int(DATA_TYPES[torch.float32]),
    )
    function = "cublasLtMatmulDescSetAttribute"
    _set(function, description, DESCRIPTION_TRANSPOSE_A, c_int32(TRANSPOSE))
    if problem.bias:
        _set(function, description, DESCRIPTION_EPILOGUE, c_int32(EPILOGUE_BIAS))
        _set(function, description, DESCRIPTION_BIAS_POINTER, c_void_p(ALIGNMENT))
    return Matmul(
        problem,
        rows,
        description,
        weight=_layout(act, problem.depth, problem.columns),
        x=_layout(act, problem.depth, rows),
        out=_layout(out, problem.columns, rows),
    )


def _configured(algorithm: Algorithm, attribute: int) -> int:
    value, written = c_uint32(0), c_size_t(0)
    _call(
        "cublasLtMatmulAlgoConfigGetAttribute", byref(algorithm), c_int(attribute), byref(value),
        c_size_t(sizeof(value)), byref(written),
    )  # fmt: skip
    return value.value


def splits(algorithm: Algorithm) -> bool:
    """Whether an algorithm divides K among programs, or joins partial sums in any scheme."""
    return _configured(algorithm, ALGORITHM_SPLIT_K) > 1 or _configured(algorithm, ALGORITHM_REDUCTION) != 0


def parts_of(name: str) -> int:
    """How many parts a candidate named `cublaslt 3 in 2` makes of the rows, one after another."""
    words = name.split()
    return int(words[3]) if len(words) > 2 else 1


def algorithm_of(text: str) -> Algorithm:
    """The algorithm whose bytes a proof kept."""
    return Algorithm.from_buffer_copy(bytes.fromhex(text))
