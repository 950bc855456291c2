"""Kernels in CUDA C++: compiled by the NVRTC that torch's CUDA packages bring, launched through the driver.

For what Triton 3.6 has no words for: clusters of programs whose copies go to all of them. A kernel is compiled from its
whole text; the digest of the machine code is its name in a proof, as it is of a Triton kernel.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from samebits.errors import NumericsError

OPTIONS = ("--gpu-architecture=sm_90a", "--fmad=false", "--std=c++17")
"""A fused multiply-add exists only where the text has one."""
SHARED_BYTES_ATTRIBUTE = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"""
BFLOAT16_MAP, SWIZZLE_128, PROMOTE_256 = 9, 3, 3
"""CUtensorMapDataType, CUtensorMapSwizzle, CUtensorMapL2promotion."""
MAP_BYTES = 128


@functools.cache
def library() -> ctypes.CDLL:
    """NVRTC of the CUDA version that torch was built for, or of any where it was built for none. Raises
    `NumericsError` where there is none."""
    major = torch.version.cuda.split(".")[0] if torch.version.cuda else "[0-9]*"
    package = importlib.util.find_spec("nvidia")
    for root in (package.submodule_search_locations or []) if package is not None else []:
        for path in sorted(Path(root).glob(f"*/lib/libnvrtc.so.{major}")):
            # It looks for its other half by name, which is not in the loader's path.
            for half in sorted(path.parent.glob("libnvrtc-builtins.so.*")):
                ctypes.CDLL(str(half), ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(str(path))
    try:
        return ctypes.CDLL(f"libnvrtc.so.{major}")
    except OSError as error:
        raise NumericsError(
            f"cannot open NVRTC, which torch's CUDA packages should bring: {error}"
        ) from error


@dataclass(frozen=True)
class Code:
    """What became of a text."""

    ptx: str
    machine: bytes


def _check(function: str, status: int) -> None:
    if status:
        raise NumericsError(f"{function} returned status {status}")


def _text_of(program: c_void_p, kind: str) -> bytes:
    size = c_size_t(0)
    _check(f"nvrtcGet{kind}Size", getattr(library(), f"nvrtcGet{kind}Size")(program, byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(f"nvrtcGet{kind}", getattr(library(), f"nvrtcGet{kind}")(program, buffer))
    return buffer.raw


@functools.cache
def compiled(text: str, name: str) -> Code:
    """Compile a text. Raises `NumericsError` with the compiler's words where it does not compile."""
    program = c_void_p()
    _check(
        "nvrtcCreateProgram",
        library().nvrtcCreateProgram(byref(program), text.encode(), name.encode(), 0, None, None),
    )
    options = (c_char_p * len(OPTIONS))(*(option.encode() for option in OPTIONS))
    status = library().nvrtcCompileProgram(program, len(OPTIONS), options)
    if status:
        words = _text_of(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
        raise NumericsError(f"{name} does not compile: {words}")
    code = Code(_text_of(program, "PTX").rstrip(b"\0").decode(), _text_of(program, "CUBIN"))
    library().nvrtcDestroyProgram(byref(program))
    return code


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _call(function: str, *arguments: object) -> None:
    _check(function, getattr(_driver(), function)(*arguments))


@dataclass(frozen=True)
class TensorMap:
    """A bfloat16 matrix as the copy engine sees it: blocks of lines of 64 elements, swizzled."""

    memory: ctypes.Array[ctypes.c_char]
    address: int

    @staticmethod
    def of(matrix: Tensor, lines: int, width: int) -> TensorMap:
        """For blocks of `lines` lines of `width` elements of a matrix without gaps."""
        memory = ctypes.create_string_buffer(2 * MAP_BYTES)
        address = -(-ctypes.addressof(memory) // MAP_BYTES) * MAP_BYTES
        _call(
            "cuTensorMapEncodeTiled", c_void_p(address), c_int(BFLOAT16_MAP), c_uint32(2), c_void_p(matrix.data_ptr()),
            (c_uint64 * 2)(matrix.shape[1], matrix.shape[0]), (c_uint64 * 1)(matrix.stride(0) * matrix.itemsize),
            (c_uint32 * 2)(width, lines), (c_uint32 * 2)(1, 1),
            c_int(0), c_int(SWIZZLE_128), c_int(PROMOTE_256), c_int(0),
        )  # fmt: skip
        return TensorMap(memory, address)


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel on this process's GPU."""

    digest: str
    """sha256 of the machine code"""
    threads: int
    shared: int
    """bytes of a program"""
    handle: int
    """the driver's handle of the loaded function"""

    def launch(self, programs: int, maps: Sequence[TensorMap], out: Tensor, numbers: Sequence[int]) -> None:
        """Run (maps..., out, int32 numbers...) on the current stream of the current device."""
        scalars = (c_void_p(out.data_ptr()), *map(c_int, numbers))
        addresses = [*(item.address for item in maps), *map(ctypes.addressof, scalars)]
        _call(
            "cuLaunchKernel", c_void_p(self.handle), programs, 1, 1, self.threads, 1, 1, c_uint(self.shared),
            c_void_p(torch.cuda.current_stream().cuda_stream), (c_void_p * len(addresses))(*addresses), None,
        )  # fmt: skip


@functools.cache
def load(text: str, name: str, threads: int, shared: int, device: int) -> Kernel:
    """The kernel `name` of a text on a device, compiled and loaded on first use."""
    code = compiled(text, f"{name}.cu").machine
    module, function = c_void_p(), c_void_p()
    with torch.cuda.device(device):
        torch.cuda.current_stream().synchronize()  # the context exists from here on
        _call("cuModuleLoadData", byref(module), code)
        _call("cuModuleGetFunction", byref(function), module, name.encode())
        _call("cuFuncSetAttribute", function, c_int(SHARED_BYTES_ATTRIBUTE), c_int(shared))
    return Kernel(hashlib.sha256(code).hexdigest(), threads, shared, function.value or 0)
