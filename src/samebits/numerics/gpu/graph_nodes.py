"""What a captured graph really launches: its kernel nodes, read back from the driver.

A proof is worth as much as the certainty that what was proven is what runs. So every kernel node of a served graph
is looked up among the nodes that the bound candidates make when they are captured alone.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterable
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_void_p
from dataclasses import dataclass

import torch

from samebits.errors import NumericsError

KERNEL_NODE = 0


class _KernelParameters(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS of the second version."""

    _fields_ = [
        ("function", c_void_p),
        ("grid", c_uint * 3),
        ("block", c_uint * 3),
        ("shared", c_uint),
        ("parameters", c_void_p),
        ("extra", c_void_p),
        ("kernel", c_void_p),
        ("context", c_void_p),
    ]


@dataclass(frozen=True)
class KernelNode:
    """The machine code that one node launches."""

    name: str
    """its symbol"""
    handle: int
    """the driver's handle of the loaded function, the same for every launch in this process"""


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _call(function: str, *arguments: object) -> None:
    status = getattr(_driver(), function)(*arguments)
    if status:
        raise NumericsError(f"{function} returned status {status}")


def kernel_nodes(graph: torch.cuda.CUDAGraph) -> list[KernelNode]:
    """Every kernel node of a graph that was captured with `keep_graph=True`. Copies and fills are not kernels."""
    raw = c_void_p(graph.raw_cuda_graph())
    count = c_size_t(0)
    _call("cuGraphGetNodes", raw, None, byref(count))
    nodes = (c_void_p * count.value)()
    _call("cuGraphGetNodes", raw, nodes, byref(count))
    return [_kernel_of(c_void_p(node)) for node in nodes if _kind_of(c_void_p(node)) == KERNEL_NODE]


def _kind_of(node: c_void_p) -> int:
    kind = c_int(-1)
    _call("cuGraphNodeGetType", node, byref(kind))
    return kind.value


def _kernel_of(node: c_void_p) -> KernelNode:
    parameters, name = _KernelParameters(), c_char_p()
    _call("cuGraphKernelNodeGetParams_v2", node, byref(parameters))
    if parameters.function:
        _call("cuFuncGetName", byref(name), c_void_p(parameters.function))
        return KernelNode((name.value or b"").decode(), parameters.function)
    _call("cuKernelGetName", byref(name), c_void_p(parameters.kernel))
    return KernelNode((name.value or b"").decode(), parameters.kernel or 0)


def captured_nodes(run: Callable[[], None]) -> list[KernelNode]:
    """The kernels that `run` launches, by capturing it. It must have run before, so that it only launches."""
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        run()
    return kernel_nodes(graph)


def unknown_nodes(graph: torch.cuda.CUDAGraph, proven: Iterable[KernelNode]) -> list[KernelNode]:
    """The kernels of a graph that are not among the proven ones."""
    known = {node.handle for node in proven}
    return [node for node in kernel_nodes(graph) if node.handle not in known]
